"""Small cases with fixed seeds, whose numbers must not change; through the public API alone.

Each case is a function that returns arrays by name. ``record.py`` writes what they return.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    Ridge,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeRegressor
from skorch import NeuralNetClassifier, NeuralNetRegressor
from torch import nn

from fimoda import (
    AXIL,
    SOURCE,
    TRAK,
    TREX,
    AgreementScorer,
    AllRows,
    ArnoldiInfluence,
    BaseAttributor,
    BetaShapley,
    BoostIn,
    CGInfluence,
    CVPlusRegressor,
    DataBanzhaf,
    DataInf,
    Datamodel,
    DataOOB,
    DataShapley,
    DistributionalInfluence,
    Downsampling,
    EKFACInfluence,
    EnsembleAttributor,
    ExactInfluence,
    FurtherTraining,
    GradCos,
    GradDot,
    Hydra,
    InfluencePruner,
    JackknifePlusRegressor,
    KNNShapley,
    LeafInfluence,
    LeafKernel,
    LeafRefit,
    LeastCore,
    LeaveOneOut,
    LinearDatamodelingScorer,
    LinearizedFurtherTraining,
    LiSSAInfluence,
    MislabelDetector,
    MislabelScorer,
    OnceLinearizedFurtherTraining,
    OutcomeSamples,
    PrunedClassifier,
    PrunedRegressor,
    RefinedAttributor,
    RepSim,
    Stage,
    TopRows,
    TracIn,
    Trajectory,
    TrajectoryRecorder,
    UnrolledDifferentiation,
    agreement_curve,
    as_final_model,
    attribute,
    class_detection,
    compare_group_influence,
    compare_methods,
    distributional_agreement,
    flip_labels,
    further_training_curve,
    greedy_removal,
    group_influence,
    joint_distance,
    linear_datamodeling_score,
    metric_influence,
    mislabel_detection,
    noise_ceiling,
    random_subsets,
    significant_scores,
    smallest_flip,
    subset_removal_curve,
    train_ensemble,
    train_on_subsets,
)
from fimoda.datasets import split_breast_cancer
from fimoda.distances import (
    KullbackLeibler,
    Quantile,
    SlicedWasserstein,
    TailProbability,
    Wasserstein,
    resolve_distance,
)
from fimoda.measurements import Output

Arrays = dict[str, Any]

N_TEST = 4


@dataclass(frozen=True)
class Case:
    """A function of no arguments, and the relative tolerance of what it returns."""

    function: Callable[[], Arrays]
    rtol: float

    def run(self) -> dict[str, NDArray[np.float64]]:
        """Return the arrays of the case, in float64; warnings are not its subject."""
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            found = self.function()
        return {name: np.asarray(array, dtype=np.float64) for name, array in found.items()}


#: All cases by name.
CASES: dict[str, Case] = {}


def case(function: Callable[[], Arrays]) -> Callable[[], Arrays]:
    """Enter a case of float64 in the table."""
    CASES[function.__name__] = Case(function, 1e-9)
    return function


def case32(function: Callable[[], Arrays]) -> Callable[[], Arrays]:
    """Enter a case of float32 in the table."""
    CASES[function.__name__] = Case(function, 1e-5)
    return function


# ---- rows and networks ------------------------------------------------------------------------


class Rows(NamedTuple):
    """Training rows and test rows."""

    X: NDArray[Any]
    y: NDArray[Any]
    X_test: NDArray[Any]
    y_test: NDArray[Any]

    @property
    def train(self) -> tuple[NDArray[Any], NDArray[Any]]:
        return self.X, self.y

    @property
    def test(self) -> tuple[NDArray[Any], NDArray[Any]]:
        return self.X_test, self.y_test

    @property
    def weights(self) -> NDArray[np.float64]:
        """Sample weights of the training rows."""
        return np.linspace(0.5, 2.0, len(self.X))

    def astype(self, dtype: Any) -> Rows:
        """Return the same in another floating point type."""
        return Rows(*(a.astype(dtype) if a.dtype.kind == "f" else a for a in self))


def split(X: NDArray[Any], y: NDArray[Any]) -> Rows:
    return Rows(X[:-N_TEST], y[:-N_TEST], X[-N_TEST:], y[-N_TEST:])


def inputs(n: int, *shape: int) -> NDArray[np.float64]:
    return np.random.default_rng(0).normal(size=(n + N_TEST, *shape))


def noise(n: int) -> NDArray[np.float64]:
    return np.random.default_rng(1).normal(size=n + N_TEST)


def regression(n: int = 20, n_outputs: int = 1) -> Rows:
    """Return 5 features and a column for each output."""
    X = inputs(n, 5)
    y = np.stack([np.sin(X[:, k]) + X[:, k + 1] + 0.3 * noise(n) for k in range(n_outputs)], 1)
    return split(X, y)


def vector_regression(n: int = 20) -> Rows:
    rows = regression(n)
    return rows._replace(y=rows.y[:, 0], y_test=rows.y_test[:, 0])


def classification(n: int = 20, n_classes: int = 3) -> Rows:
    """Return 5 features and labels."""
    X = inputs(n, 5)
    score = X[:, 0] + 0.5 * X[:, 1] + 0.5 * noise(n)
    return split(X, np.digitize(score, np.quantile(score, np.arange(1, n_classes) / n_classes)))


def images(n: int = 16) -> Rows:
    """Return images of 1 x 6 x 6 and labels of two classes."""
    X = inputs(n, 1, 6, 6)
    return split(X, (X[:, 0, :3].mean((1, 2)) + 0.1 * noise(n) > 0).astype(int))


def tokens(n: int = 16) -> Rows:
    """Return sequences of four integers and labels of two classes."""
    X = np.random.default_rng(0).integers(0, 6, size=(n + N_TEST, 4))
    return split(X, (X[:, 0] + noise(n) > 2.5).astype(int))


class Pooled(nn.Module):
    """Mean over the second axis."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1)


def made(*layers: Callable[[], nn.Module], dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return the layers in a row, with parameters of seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(*(layer() for layer in layers)).to(dtype)


def perceptron(
    n_outputs: int = 1,
    *,
    activation: type[nn.Module] = nn.Tanh,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> nn.Module:
    """Return a network of 5-3-outputs."""
    drop = [lambda: nn.Dropout(dropout)] if dropout else []
    return made(
        lambda: nn.Linear(5, 3), activation, *drop, lambda: nn.Linear(3, n_outputs), dtype=dtype
    )


def convolution() -> nn.Module:
    return made(
        lambda: nn.Conv2d(1, 2, 3),
        nn.Tanh,
        lambda: nn.AvgPool2d(2),
        nn.Flatten,
        lambda: nn.Linear(8, 2),
    )


def embedding() -> nn.Module:
    return made(lambda: nn.Embedding(6, 3), Pooled, nn.Tanh, lambda: nn.Linear(3, 2))


def normalised(n_outputs: int = 1) -> nn.Module:
    return made(
        lambda: nn.Linear(5, 4),
        lambda: nn.LayerNorm(4),
        nn.Tanh,
        lambda: nn.Linear(4, n_outputs),
    )


SQUARES: dict[str, Any] = {"criterion": nn.MSELoss()}
ENTROPY: dict[str, Any] = {"criterion": nn.CrossEntropyLoss()}
#: A short run.
RUN: dict[str, Any] = {
    "n_epochs": 3,
    "optimizer": "SGD",
    "lr": 0.05,
    "batch_size": 6,
    "random_state": 0,
}

OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {}),
    "momentum": ("SGD", {"momentum": 0.8}),
    "nesterov": ("SGD", {"momentum": 0.8, "nesterov": True}),
    "dampening": ("SGD", {"momentum": 0.8, "dampening": 0.3}),
    "decay": ("SGD", {"weight_decay": 0.1, "momentum": 0.5}),
    "adam": ("Adam", {"eps": 1e-3}),
    "adamdecay": ("Adam", {"eps": 1e-3, "weight_decay": 0.1}),
    "adamw": ("AdamW", {"eps": 1e-3, "weight_decay": 0.1}),
    "rmsprop": ("RMSprop", {"eps": 1e-2}),
    "adagrad": ("Adagrad", {"eps": 1e-2}),
}

#: Fitted values that are recorded beside the scores.
FITTED = ("damping_", "scores_sem_", "growth_", "eigenvalues_", "stability_", "train_indices_")


def prefixed(prefix: str, arrays: Arrays) -> Arrays:
    return {f"{prefix}/{name}": array for name, array in arrays.items()}


def together(**parts: Arrays) -> Arrays:
    """Return all arrays, each named by its part."""
    return {k: v for name, part in parts.items() for k, v in prefixed(name, part).items()}


def number(value: Any) -> Any:
    return list(value.values()) if isinstance(value, dict) else value


def foremost(top: TopRows) -> Arrays:
    """Return the rows of a table of top rows, and their scores."""
    return {
        "helpful": top.helpful,
        "helpful_scores": top.helpful_scores,
        "harmful": top.harmful,
        "harmful_scores": top.harmful_scores,
    }


def predicts(attributor: BaseAttributor, rows: Rows) -> bool:
    """Return whether there is one prediction to score without targets."""
    return rows.y.shape[1:] in ((), (1,)) and not isinstance(
        attributor.criterion, nn.PoissonNLLLoss
    )


def scored(attributor: BaseAttributor, rows: Rows, *, weights: bool = False) -> Arrays:
    """Return what an attributor says: scores with and without targets, diagonal, top rows."""
    given = {"sample_weight": rows.weights} if weights else {}
    attributor.fit(*rows.train, **given)
    found: Arrays = {"with_y": attributor.transform(*rows.test)}
    for name in FITTED:
        if getattr(attributor, name, None) is not None:
            found[name] = number(getattr(attributor, name))
    if predicts(attributor, rows):
        found["without_y"] = attributor.transform(rows.X_test)
    found["self_influence"] = attributor.self_influence()
    return found | foremost(attributor.top(*rows.test, k=2))


def transformed(attributor: BaseAttributor, rows: Rows, *, weights: bool = False) -> Arrays:
    """Return the scores with targets alone."""
    given = {"sample_weight": rows.weights} if weights else {}
    return {"with_y": attributor.fit(*rows.train, **given).transform(*rows.test)}


def battery(cls: Callable[..., BaseAttributor], **params: Any) -> Arrays:
    """Return what a method says of regression and of three classes, with two measurements each.

    And with weights of the rows, and of a convolution.
    """
    squares, classes = regression(), classification()
    net, many = perceptron(), perceptron(3)
    return together(
        squares=scored(cls(net, **SQUARES, **params), squares),
        output=transformed(cls(net, measurement="output", **SQUARES, **params), squares),
        classes=scored(cls(many, **ENTROPY, **params), classes),
        margin=transformed(cls(many, measurement="margin", **ENTROPY, **params), classes),
        weighted=transformed(cls(many, **ENTROPY, **params), classes, weights=True),
        images=transformed(cls(convolution(), **ENTROPY, **params), images()),
    )


# ---- gradients and influence ------------------------------------------------------------------


@case
def grad_dot() -> Arrays:
    return battery(GradDot) | together(
        others_stay=transformed(
            GradDot(perceptron(), reweight_others=False, **SQUARES), regression()
        ),
        steps=transformed(
            GradDot(perceptron(), n_epochs=3, lr=0.1, batch_size=4, **SQUARES), regression()
        ),
        chunks=transformed(GradDot(perceptron(), chunk_size=3, **SQUARES), regression()),
    )


@case
def grad_cos() -> Arrays:
    return battery(GradCos)


@case
def rep_sim() -> Arrays:
    return battery(RepSim) | together(
        dot=transformed(RepSim(perceptron(), metric="dot", **SQUARES), regression()),
        euclidean=transformed(RepSim(perceptron(), metric="euclidean", **SQUARES), regression()),
        layer=transformed(RepSim(perceptron(), layer="0", **SQUARES), regression()),
    )


@case
def exact_influence() -> Arrays:
    net = perceptron()
    return battery(ExactInfluence, damping=0.1) | together(
        auto=scored(ExactInfluence(net, **SQUARES), regression()),
        others_stay=transformed(
            ExactInfluence(net, damping=0.1, reweight_others=False, **SQUARES), regression()
        ),
        hessian=transformed(
            ExactInfluence(net, curvature="hessian", damping=3.0, **SQUARES), regression()
        ),
        empirical=transformed(
            ExactInfluence(net, curvature="empirical-fisher", damping=0.1, **SQUARES), regression()
        ),
        sampled=transformed(
            ExactInfluence(net, curvature="sampled-fisher", damping=0.1, random_state=0, **SQUARES),
            regression(),
        ),
        newton=scored(ExactInfluence(net, newton_step=True, damping=0.5, **SQUARES), regression()),
    )


@case
def exact_influence_dual_and_primal() -> Arrays:
    """More parameters than outputs, and fewer."""
    return together(
        dual=scored(ExactInfluence(perceptron(), damping=0.1, **SQUARES), regression(12)),
        primal=scored(ExactInfluence(perceptron(), damping=0.1, **SQUARES), regression(40)),
    )


@case
def tuned_damping() -> Arrays:
    tuning = {"n_epochs": 2, "n_seeds": [0], "leave_out": 6, "lr": 0.05, "batch_size": 6}
    given = {"damping": "tuned", "tuning": tuning, "random_state": 0, **SQUARES}
    return together(
        exact=scored(ExactInfluence(perceptron(), **given), regression()),
        ekfac=scored(EKFACInfluence(perceptron(), **given), regression()),
        arnoldi=transformed(ArnoldiInfluence(perceptron(), n_components=4, **given), regression()),
    )


@case
def cg_influence() -> Arrays:
    given = {"damping": 0.3, "tol": 1e-13}
    return battery(CGInfluence, **given) | together(
        hessian=transformed(
            CGInfluence(perceptron(), curvature="hessian", damping=3.0, tol=1e-13, **SQUARES),
            regression(),
        ),
        ekfac=transformed(
            CGInfluence(perceptron(), preconditioner="ekfac", **given, **SQUARES), regression()
        ),
    )


@case
def lissa_influence() -> Arrays:
    given = {"damping": 2.0, "tol": 1e-13, "random_state": 0, "scale": 20.0}
    return battery(LiSSAInfluence, **given) | together(
        batches=transformed(
            LiSSAInfluence(
                perceptron(),
                damping=2.0,
                depth=30,
                batch_size=5,
                scale=20.0,
                random_state=0,
                **SQUARES,
            ),
            regression(),
        ),
    )


@case
def arnoldi_influence() -> Arrays:
    return battery(ArnoldiInfluence, n_components=5, damping=0.1, random_state=0) | together(
        complement=transformed(
            ArnoldiInfluence(
                perceptron(),
                n_components=5,
                damping=0.1,
                complement="damping",
                random_state=0,
                **SQUARES,
            ),
            regression(),
        ),
    )


@case
def ekfac_influence() -> Arrays:
    return battery(EKFACInfluence, damping=0.1) | together(
        auto=scored(EKFACInfluence(perceptron(), **SQUARES), regression()),
        sampled=transformed(
            EKFACInfluence(perceptron(3), fisher="sampled", damping=0.1, random_state=0, **ENTROPY),
            classification(),
        ),
    )


@case
def data_inf() -> Arrays:
    return battery(DataInf) | together(
        others=scored(DataInf(perceptron(), reweight_others=True, **SQUARES), regression()),
        number=scored(DataInf(perceptron(), damping=0.2, **SQUARES), regression()),
    )


@case
def trak() -> Arrays:
    projected = {"n_components": 8, "random_state": 0}
    ensemble = [perceptron(3), copy.deepcopy(perceptron(3)).requires_grad_(True)]
    with torch.no_grad():
        for parameter in ensemble[1].parameters():
            parameter.mul_(1.1)
    return battery(TRAK, damping=0.1, **projected) | together(
        whole=scored(
            TRAK(perceptron(3), n_components=None, damping=0.1, **ENTROPY), classification()
        ),
        product=transformed(
            TRAK(perceptron(3), projection="product", damping=0.1, **projected, **ENTROPY),
            classification(),
        ),
        gaussian=transformed(
            TRAK(perceptron(3), projection="gaussian", damping=0.1, **projected, **ENTROPY),
            classification(),
        ),
        sparse=transformed(
            TRAK(perceptron(3), projection="sparse", damping=0.1, **projected, **ENTROPY),
            classification(),
        ),
        ensemble=scored(
            TRAK(perceptron(3), models=ensemble, damping=0.1, **projected, **ENTROPY),
            classification(),
        ),
        others=transformed(
            TRAK(perceptron(3), reweight_others=True, damping=0.1, **projected, **ENTROPY),
            classification(),
        ),
    )


@case
def embedding_and_layer_norm() -> Arrays:
    methods: dict[str, Callable[..., BaseAttributor]] = {
        "dot": GradDot,
        "exact": lambda *a, **k: ExactInfluence(*a, damping=0.1, **k),
        "ekfac": lambda *a, **k: EKFACInfluence(*a, damping=0.1, **k),
        "datainf": DataInf,
        "trak": lambda *a, **k: TRAK(*a, n_components=6, damping=0.1, random_state=0, **k),
        "unrolled": lambda *a, **k: UnrolledDifferentiation(
            *a, n_seeds=[0], **RUN, **k, order="own"
        ),
        "further": lambda *a, **k: FurtherTraining(*a, n_seeds=[0], leave_out=[0, 5], **RUN, **k),
    }
    return {
        key: array
        for name, make in methods.items()
        for key, array in together(
            **{
                f"{name}_embedding": transformed(make(embedding(), **ENTROPY), tokens()),
                f"{name}_norm": transformed(make(normalised(3), **ENTROPY), classification()),
            }
        ).items()
    }


# ---- losses -----------------------------------------------------------------------------------


def count_rows() -> Rows:
    rows = regression()
    return rows._replace(y=np.round(np.exp(rows.y / 2)), y_test=np.round(np.exp(rows.y_test / 2)))


def by_loss(criterion: nn.Module, rows: Rows, n_outputs: int, *last: Any) -> Arrays:
    """Return scores of several methods by one criterion, with and without weights."""
    net = made(lambda: nn.Linear(5, 3), nn.Tanh, lambda: nn.Linear(3, n_outputs), *last)
    given = {"criterion": criterion}
    return together(
        dot=scored(GradDot(net, **given), rows),
        weighted=transformed(GradDot(net, **given), rows, weights=True),
        exact=transformed(ExactInfluence(net, damping=0.5, **given), rows),
        further=transformed(
            FurtherTraining(net, n_seeds=[0], leave_out=[1, 6], **RUN, **given), rows
        ),
        unrolled=transformed(
            UnrolledDifferentiation(net, n_seeds=[0], **RUN, **given, order="own"), rows
        ),
    )


@case
def losses_of_numbers() -> Arrays:
    two = regression(n_outputs=2)
    return together(
        mse=by_loss(nn.MSELoss(), two, 2),
        l1=by_loss(nn.L1Loss(), two, 2),
        smooth=by_loss(nn.SmoothL1Loss(), two, 2),
        huber=by_loss(nn.HuberLoss(delta=0.7), two, 2),
        poisson=by_loss(nn.PoissonNLLLoss(), count_rows(), 1),
    )


@case
def losses_of_classes() -> Arrays:
    binary, three = classification(n_classes=2), classification()
    weight = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    return together(
        entropy=by_loss(nn.CrossEntropyLoss(), three, 3),
        weights=by_loss(nn.CrossEntropyLoss(weight=weight), three, 3),
        smoothing=by_loss(nn.CrossEntropyLoss(label_smoothing=0.1), three, 3),
        nll=by_loss(nn.NLLLoss(), three, 3, lambda: nn.LogSoftmax(-1)),
        logits=by_loss(nn.BCEWithLogitsLoss(), binary, 1),
        probabilities=by_loss(nn.BCELoss(), binary, 1, nn.Sigmoid),
    )


@case
def measurements() -> Arrays:
    """Every name, an output by number, and a function."""

    def spread(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs.var(-1) + 0.1 * targets

    chosen: dict[str, Any] = {
        "loss": "loss",
        "margin": "margin",
        "log_prob": "log_prob",
        "output": "output",
        "second": Output(1),
        "function": spread,
    }
    rows, net = classification(), perceptron(3)
    found: Arrays = {}
    for name, measurement in chosen.items():
        given = {"measurement": measurement, **ENTROPY}
        found |= together(
            **{
                f"{name}_dot": scored(GradDot(net, **given), rows),
                f"{name}_exact": transformed(ExactInfluence(net, damping=0.5, **given), rows),
                f"{name}_linear": transformed(
                    OnceLinearizedFurtherTraining(net, **RUN, **given), rows
                ),
                f"{name}_further": transformed(
                    FurtherTraining(net, n_seeds=[0], leave_out=[1, 6], **RUN, **given), rows
                ),
            }
        )
    return found


# ---- further training -------------------------------------------------------------------------


@case
def further_training() -> Arrays:
    return battery(FurtherTraining, n_seeds=[0, 1], **{**RUN, "n_epochs": 2})


@case
def further_training_modes() -> Arrays:
    """Every correction and leave-out mode, and rows drawn."""
    found: Arrays = {}
    for correction in ("full", "mean", None):
        for mode in ("mask", "drop"):
            attributor = FurtherTraining(
                perceptron(3),
                n_seeds=[0, 3],
                leave_out=[0, 4, 9, 13],
                correction=correction,
                leave_out_mode=mode,
                **RUN,
                **ENTROPY,
            )
            found |= prefixed(
                f"{correction}_{mode}", scored(attributor, classification(), weights=True)
            )
    drawn = FurtherTraining(perceptron(), n_seeds=2, leave_out=3, chunk_size=2, **RUN, **SQUARES)
    return found | prefixed("drawn", scored(drawn, regression()))


@case
def further_training_dropout() -> Arrays:
    net = perceptron(3, dropout=0.3)
    given = {"n_seeds": [0, 1], **RUN, **ENTROPY}
    return together(
        further=scored(FurtherTraining(net, leave_out=[2, 3, 11], **given), classification()),
        unrolled=scored(UnrolledDifferentiation(net, **given, order="own"), classification()),
        linear=scored(LinearizedFurtherTraining(net, n_segments=2, **given), classification()),
        steps=scored(OnceLinearizedFurtherTraining(net, solver="steps", **given), classification()),
    )


@case
def further_training_optimizers() -> Arrays:
    found: Arrays = {}
    for name, (optimizer, params) in OPTIMIZERS.items():
        given = {**RUN, "optimizer": optimizer, "optimizer_params": params, "lr": 0.02}
        attributor = FurtherTraining(
            perceptron(), n_seeds=[0], leave_out=[0, 4, 9], **given, **SQUARES
        )
        found |= prefixed(name, transformed(attributor, regression()))
    scheduled = FurtherTraining(
        perceptron(),
        n_seeds=[0],
        leave_out=[0, 4, 9],
        **{**RUN, "lr": lambda epoch: 0.1 / (1 + epoch)},
        **SQUARES,
    )
    return found | prefixed("schedule", transformed(scheduled, regression()))


@case
def further_training_curves() -> Arrays:
    rows, net = classification(), perceptron(3)
    given: dict[str, Any] = {
        "epochs": [1, 3, 6],
        "n_seeds": [0, 1, 2],
        "leave_out": [0, 3, 7, 12, 15],
        "optimizer": "SGD",
        "lr": 0.05,
        "batch_size": 6,
    }
    curve = further_training_curve(net, *rows.train, *rows.test, **given, **ENTROPY)
    found: Arrays = {}
    for correction in ("full", "mean", None):
        other = curve.corrected(correction)
        found |= prefixed(
            str(correction), {"scores": other.scores, "sem": other.sem, "per_seed": other.per_seed}
        )
    weighted = further_training_curve(
        net,
        *rows.train,
        *rows.test,
        sample_weight=rows.weights,
        leave_out_mode="drop",
        **given,
        **ENTROPY,
    )
    methods = {
        "dot": GradDot(net, **ENTROPY).fit(*rows.train),
        "linear": LinearizedFurtherTraining(
            net,
            n_epochs=[1, 3, 6],
            n_seeds=[0],
            n_segments=2,
            optimizer="SGD",
            lr=0.05,
            batch_size=6,
            **ENTROPY,
        ).fit(*rows.train),
    }
    agreement = agreement_curve(methods, curve, *rows.test)
    samples = OutcomeSamples.from_further_training(curve)
    return (
        found
        | {"weighted": weighted.scores}
        | prefixed("agreement", agreement.values)
        | {"agreement_mean": agreement.mean("spearman"), "agreement_sem": agreement.sem()}
        | {"samples_full": samples.full, "samples_left_out": samples.left_out}
    )


# ---- linearised and unrolled runs -------------------------------------------------------------


@case
def linearized_kernel() -> Arrays:
    return battery(OnceLinearizedFurtherTraining, solver="kernel", **RUN)


@case
def linearized_steps() -> Arrays:
    return battery(OnceLinearizedFurtherTraining, solver="steps", n_seeds=[0, 1], **RUN)


@case
def linearized_segments() -> Arrays:
    small = LinearizedFurtherTraining(
        perceptron(), n_segments=2, n_seeds=[0], n_components=12, block_size=6, **RUN, **SQUARES
    )
    whole = battery(LinearizedFurtherTraining, n_segments=2, n_seeds=[0], **RUN)
    return whole | prefixed("small", scored(small, regression()))


@case
def linearized_exact_removal() -> Arrays:
    attributor = OnceLinearizedFurtherTraining(
        perceptron(), removal="exact", **{**RUN, "n_epochs": [2, 7]}, **SQUARES
    )
    found = scored(attributor, regression())
    return found | {
        "horizons": attributor.transform_horizons(*regression().test),
        "two": transformed(
            OnceLinearizedFurtherTraining(perceptron(2), removal="exact", **RUN, **SQUARES),
            regression(n_outputs=2),
        )["with_y"],
    }


def horizons_and_groups(attributor: Any, rows: Rows) -> Arrays:
    """Return scores at several horizons, and of groups of rows."""
    attributor.fit(*rows.train)
    weights = np.ones(len(rows.X))
    weights[[0, 3]] = 0.0
    weights[5:8] = 2.0
    return {
        "horizons": attributor.transform_horizons(*rows.test),
        "horizons_without_y": attributor.transform_horizons(rows.X_test),
        "reweight": attributor.reweight(*rows.test, weights=weights),
        "relabel": attributor.relabel(*rows.test, rows=[1, 4], targets=rows.y[[2, 3]]),
    }


@case
def horizons_reweighting_relabelling() -> Arrays:
    run = {**RUN, "n_epochs": [1, 2, 5]}
    found: Arrays = {}
    for name, net, rows, given in (
        ("squares", perceptron(), regression(), SQUARES),
        ("classes", perceptron(3), classification(), ENTROPY),
    ):
        found |= together(
            **{
                f"{name}_kernel": horizons_and_groups(
                    OnceLinearizedFurtherTraining(net, solver="kernel", **run, **given),
                    rows,
                ),
                f"{name}_steps": horizons_and_groups(
                    OnceLinearizedFurtherTraining(net, solver="steps", **run, **given),
                    rows,
                ),
                f"{name}_segments": horizons_and_groups(
                    LinearizedFurtherTraining(net, n_segments=2, n_seeds=[0], **run, **given), rows
                ),
                f"{name}_unrolled": horizons_and_groups(
                    UnrolledDifferentiation(net, n_seeds=[0, 1], **run, **given, order="own"), rows
                ),
            }
        )
    return found


@case
def linearized_optimizers() -> Arrays:
    found: Arrays = {}
    for name, (optimizer, params) in OPTIMIZERS.items():
        given = {**RUN, "optimizer": optimizer, "optimizer_params": params, "lr": 0.02}
        for way, settings in (
            ("kernel", {"solver": "kernel"}),
            ("steps", {"solver": "steps"}),
            ("segments", {"n_segments": 2}),
        ):
            if name == "adamdecay" and way != "segments":
                continue  # one segment cannot follow it
            once = way != "segments"
            cls = OnceLinearizedFurtherTraining if once else LinearizedFurtherTraining
            attributor = cls(perceptron(), n_seeds=[0], **settings, **given, **SQUARES)
            found |= prefixed(f"{name}_{way}", transformed(attributor, regression()))
    return found


@case
def unrolled() -> Arrays:
    return battery(UnrolledDifferentiation, order="own", n_seeds=[0, 1], **RUN)


@case
def unrolled_modes() -> Arrays:
    start = perceptron()
    net = perceptron()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.7)
    given = {"n_seeds": [0], **RUN, **SQUARES}
    return together(
        adjoint=scored(
            UnrolledDifferentiation(net, mode="adjoint", **given, order="own"), regression()
        ),
        forward=scored(
            UnrolledDifferentiation(net, mode="forward", leave_out=[0, 5], **given, order="own"),
            regression(),
        ),
        start=scored(UnrolledDifferentiation(net, start=start, **given, order="own"), regression()),
        weighted=scored(
            UnrolledDifferentiation(net, **given, order="own"), regression(), weights=True
        ),
    )


@case
def unrolled_optimizers() -> Arrays:
    found: Arrays = {}
    for name, (optimizer, params) in OPTIMIZERS.items():
        given = {**RUN, "optimizer": optimizer, "optimizer_params": params, "lr": 0.02}
        attributor = UnrolledDifferentiation(
            perceptron(), n_seeds=[0], **given, **SQUARES, order="own"
        )
        found |= prefixed(name, transformed(attributor, regression()))
    return found


@case
def kinks() -> Arrays:
    net = perceptron(activation=nn.ReLU)
    pooled = made(
        lambda: nn.Conv2d(1, 2, 3),
        nn.LeakyReLU,
        lambda: nn.MaxPool2d(2),
        nn.Flatten,
        lambda: nn.Linear(8, 2),
    )
    found: Arrays = {}
    for smoothing in (None, "auto", 20.0):
        given = {"kink_smoothing": smoothing, "n_seeds": [0], **RUN}
        found |= together(
            **{
                f"unrolled_{smoothing}": transformed(
                    UnrolledDifferentiation(net, **given, **SQUARES, order="own"), regression()
                ),
                f"segments_{smoothing}": transformed(
                    LinearizedFurtherTraining(net, n_segments=2, **given, **SQUARES), regression()
                ),
                f"pooled_{smoothing}": transformed(
                    UnrolledDifferentiation(pooled, **given, **ENTROPY, order="own"), images()
                ),
                f"absolute_{smoothing}": transformed(
                    UnrolledDifferentiation(
                        perceptron(), criterion=nn.L1Loss(), **given, order="own"
                    ),
                    regression(),
                ),
            }
        )
    return found


# ---- along the training run -------------------------------------------------------------------


def recorded(
    net: nn.Module,
    rows: Rows,
    criterion: nn.Module,
    optimizer: str = "SGD",
    *,
    n_epochs: int = 3,
    stages: bool = False,
    **params: Any,
) -> tuple[nn.Module, Trajectory]:
    """Train a copy of the network by hand, with a record of every step."""
    net = copy.deepcopy(net)
    made_by = getattr(torch.optim, optimizer)(net.parameters(), lr=0.05, **params)
    run = Trajectory(optimizer=optimizer, optimizer_params=params)
    X, y = torch.from_numpy(rows.X), torch.from_numpy(rows.y)
    run.add_checkpoint(net, made_by)
    parts = torch.arange(len(X)).chunk(2) if stages else [torch.arange(len(X))]
    for number, part in enumerate(parts):
        if stages:
            run.begin_stage(f"part {number}", n_rows=len(part))
        for epoch in range(n_epochs):
            generator = torch.Generator().manual_seed(epoch)
            for batch in torch.randperm(len(part), generator=generator).split(6):
                made_by.zero_grad()
                criterion(net(X[part[batch]]), y[part[batch]]).backward()
                made_by.step()
                run.add_step(0.05, batch.numpy())
                run.add_checkpoint(net, made_by)
    return net, run


def along(run: Trajectory, net: nn.Module, rows: Rows, criterion: nn.Module) -> Arrays:
    """Return the scores of every method that looks along a run."""
    given = {"trajectory": run, "criterion": criterion}
    return together(
        tracin=scored(TracIn(net, **given), rows),
        others=transformed(TracIn(net, reweight_others=True, **given), rows),
        projected=transformed(TracIn(net, n_components=8, random_state=0, **given), rows),
        hydra=scored(Hydra(net, **given), rows),
        output=transformed(Hydra(net, measurement="output", **given), rows),
        source=scored(SOURCE(net, segments=2, **given), rows),
        fast=scored(SOURCE(net, segments=2, averaging="parameters", **given), rows),
        exact=transformed(SOURCE(net, segments=2, curvature="exact", **given), rows),
        lossy=transformed(
            SOURCE(net, segments=2, curvature="projected", n_components=8, random_state=0, **given),
            rows,
        ),
        cuts=transformed(SOURCE(net, segments=[4, 7, run.n_steps], **given), rows),
        auto=transformed(SOURCE(net, segments="auto", **given), rows),
        scale=transformed(SOURCE(net, segments=2, curvature_scale=1.0, **given), rows),
        weighted=transformed(SOURCE(net, segments=2, **given), rows, weights=True),
    )


@case
def along_the_run() -> Arrays:
    found: Arrays = {}
    for name, net, rows, criterion in (
        ("squares", perceptron(), regression(), nn.MSELoss()),
        ("classes", perceptron(3), classification(), nn.CrossEntropyLoss()),
    ):
        trained, run = recorded(net, rows, criterion)
        found |= prefixed(name, along(run, trained, rows, criterion))
    return found


@case
def along_the_run_optimizers() -> Arrays:
    found: Arrays = {}
    for name in ("momentum", "decay", "adam", "adamw", "rmsprop", "adagrad"):
        optimizer, params = OPTIMIZERS[name]
        trained, run = recorded(perceptron(), regression(), nn.MSELoss(), optimizer, **params)
        given = {"trajectory": run, **SQUARES}
        found |= together(
            **{
                f"{name}_source": transformed(SOURCE(trained, segments=2, **given), regression()),
                f"{name}_exact": transformed(
                    SOURCE(trained, segments=2, curvature="exact", **given), regression()
                ),
                f"{name}_tracin": transformed(TracIn(trained, **given), regression()),
                f"{name}_hydra": transformed(Hydra(trained, **given), regression()),
            }
        )
    return found


@case
def along_the_run_stages() -> Arrays:
    rows = regression()
    trained, run = recorded(perceptron(), rows, nn.MSELoss(), stages=True)
    found: Arrays = {}
    for stage in ("part 0", 1, None):
        given = {"trajectory": run, "stage": stage, **SQUARES}
        inside = {"part 0": slice(0, 10), 1: slice(10, 20), None: slice(0, 20)}[stage]
        attributed = rows._replace(X=rows.X[inside], y=rows.y[inside])
        found |= together(
            **{
                f"{stage}_tracin": scored(TracIn(trained, **given), attributed),
                f"{stage}_hydra": scored(Hydra(trained, **given), attributed),
                f"{stage}_source": scored(SOURCE(trained, segments=2, **given), attributed),
            }
        )
    return found


@case
def along_the_run_from_checkpoints() -> Arrays:
    """Checkpoints that a loop has saved, and the final model alone."""
    rows = regression()
    trained, run = recorded(perceptron(), rows, nn.MSELoss())
    n = run.n_steps
    saved = Trajectory.from_checkpoints(
        [run.state(k) for k in (0, n // 2, n)],
        [0, n // 2, n],
        0.05,
        n_steps=n,
        stages=[Stage("all", 0, n, n_rows=len(rows.X))],
    )
    alone = {"trajectory": "final", "n_epochs": 4, "lr": 0.05, "batch_size": 6, **SQUARES}
    return together(
        tracin=scored(TracIn(trained, trajectory=saved, **SQUARES), rows),
        source=scored(SOURCE(trained, trajectory=saved, segments=2, **SQUARES), rows),
        source_alone=scored(SOURCE(trained, **alone), rows),
        tracin_alone=scored(TracIn(trained, **alone), rows),
        hydra_alone=scored(Hydra(trained, **alone), rows),
    )


# ---- sources of models ------------------------------------------------------------------------


def own_methods(model: Any, rows: Rows, *, weights: bool = False) -> Arrays:
    """Return scores of a model that knows how it is trained, by several methods."""
    run = {"n_epochs": 2, "n_seeds": [0]}
    return together(
        dot=scored(GradDot(model), rows, weights=weights),
        exact=scored(ExactInfluence(model, damping=0.1), rows, weights=weights),
        ekfac=transformed(EKFACInfluence(model, damping=0.1), rows, weights=weights),
        further=scored(FurtherTraining(model, leave_out=[0, 6], **run), rows, weights=weights),
        linear=transformed(LinearizedFurtherTraining(model, **run), rows, weights=weights),
        unrolled=transformed(
            UnrolledDifferentiation(model, **run, order="own"), rows, weights=weights
        ),
    )


@case
def linear_models() -> Arrays:
    numbers, labels, two = vector_regression(), classification(), classification(n_classes=2)
    return together(
        ols=own_methods(LinearRegression().fit(*numbers.train), numbers),
        ridge=own_methods(
            Ridge(alpha=2.0).fit(*numbers.train, sample_weight=numbers.weights),
            numbers,
            weights=True,
        ),
        many=own_methods(Ridge().fit(*regression(n_outputs=2).train), regression(n_outputs=2)),
        logistic=own_methods(LogisticRegression(tol=1e-12).fit(*labels.train), labels),
        binary=own_methods(
            LogisticRegression(tol=1e-12, class_weight="balanced").fit(*two.train), two
        ),
        newton=scored(
            ExactInfluence(LogisticRegression(tol=1e-12).fit(*two.train), newton_step=True), two
        ),
    )


@case
def stochastic_linear_models() -> Arrays:
    numbers, labels = vector_regression(), classification()
    sgd = {
        "random_state": 0,
        "max_iter": 5,
        "tol": None,
        "learning_rate": "constant",
        "eta0": 0.05,
    }
    return together(
        regressor=own_methods(SGDRegressor(**sgd).fit(*numbers.train), numbers),
        classifier=own_methods(SGDClassifier(loss="log_loss", **sgd).fit(*labels.train), labels),
    )


@case
def multilayer_perceptrons() -> Arrays:
    mlp = {"hidden_layer_sizes": (3,), "activation": "tanh", "max_iter": 4, "random_state": 0}
    numbers, labels, two = vector_regression(), classification(), classification(n_classes=2)
    return together(
        regressor=own_methods(MLPRegressor(**mlp, batch_size=6).fit(*numbers.train), numbers),
        classifier=own_methods(
            MLPClassifier(**mlp, solver="sgd", batch_size=6).fit(*labels.train), labels
        ),
        binary=own_methods(MLPClassifier(**mlp, alpha=0.1, batch_size=6).fit(*two.train), two),
    )


@case
def pipelines_and_targets() -> Arrays:
    numbers, labels = vector_regression(), classification()
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-12)).fit(*labels.train)
    target = TransformedTargetRegressor(Ridge(), transformer=StandardScaler()).fit(*numbers.train)
    return together(
        pipeline=own_methods(pipeline, labels),
        target=together(
            dot=scored(GradDot(target), numbers),
            exact=scored(ExactInfluence(target, damping=0.1), numbers),
            loo=scored(LeaveOneOut(target, leave_out=[0, 4], n_seeds=[0]), numbers),
        ),
    )


def skorch_net(
    module: nn.Module, classifier: bool, callbacks: list[Any] | None = None, **params: Any
) -> Any:
    """Return an unfitted skorch net of float64."""
    cls = NeuralNetClassifier if classifier else NeuralNetRegressor
    given = {"criterion": nn.CrossEntropyLoss} if classifier else {}
    return cls(
        module,
        **given,
        max_epochs=3,
        lr=0.05,
        batch_size=6,
        train_split=None,
        verbose=0,
        callbacks=callbacks or [],
        **params,
    )


@case
def skorch_nets() -> Arrays:
    numbers, labels = regression(), classification()
    every = TrajectoryRecorder(checkpoints="all", batches=True)
    net = skorch_net(perceptron(), False, [every], optimizer__momentum=0.5).fit(*numbers.train)
    decayed = skorch_net(
        perceptron(3), True, optimizer=torch.optim.AdamW, optimizer__weight_decay=0.1
    ).fit(*labels.train)
    return together(
        regressor=own_methods(net, numbers),
        classifier=own_methods(decayed, labels),
        hydra=scored(Hydra(net), numbers),
        tracin=scored(TracIn(net), numbers),
        source=scored(SOURCE(net, segments=2), numbers),
    )


@case
def penalties() -> Arrays:
    """The objective's own penalty, and its removal when weights change."""
    rows = vector_regression()
    ridge = Ridge(alpha=3.0, fit_intercept=False).fit(*rows.train)
    net = skorch_net(perceptron(), False, optimizer__weight_decay=0.2).fit(*regression().train)
    return together(
        exact=scored(ExactInfluence(ridge), rows),
        stay=scored(ExactInfluence(ridge, reweight_others=False), rows),
        newton=scored(ExactInfluence(ridge, newton_step=True), rows),
        cg=scored(CGInfluence(ridge, damping=0.1, tol=1e-13), rows),
        loo=scored(LeaveOneOut(ridge, n_seeds=[0]), rows),
        net=scored(ExactInfluence(net, damping=0.3), regression()),
        dot=scored(GradDot(net), regression()),
    )


@case
def final_model() -> Arrays:
    rows, net = classification(), perceptron(3)
    model = as_final_model(net, rows.X, rows.y, **ENTROPY)
    X, labels = model.encode_X(rows.X), np.unique(rows.y)
    return together(
        model={
            "theta": model.theta.numpy(),
            "outputs": model.outputs(X).numpy(),
            "classes": labels if model.classes is None else model.classes,
        },
        dot=scored(GradDot(model), rows),
    )


# ---- retraining -------------------------------------------------------------------------------


@case
def retraining_without_gradients() -> Arrays:
    """Models that are fitted again: trees, forests, boosting, a support vector machine."""
    numbers, labels = vector_regression(24), classification(24, 2)
    few = {"leave_out": [0, 5, 9], "n_seeds": [0, 1]}
    boosting = GradientBoostingRegressor(n_estimators=3, max_depth=1, random_state=0).fit(
        *numbers.train
    )
    svc = SVC(tol=1e-12, kernel="linear").fit(*labels.train)
    forest = RandomForestClassifier(n_estimators=3, random_state=0).fit(*labels.train)
    tree = DecisionTreeRegressor(max_depth=1, min_samples_leaf=3, random_state=0).fit(
        *numbers.train
    )
    return together(
        tree=scored(LeaveOneOut(tree, **few), numbers),
        forest=scored(LeaveOneOut(forest, **few), labels),
        boosting=scored(LeaveOneOut(boosting, **few), numbers),
        svc=scored(LeaveOneOut(svc, n_seeds=[0]), labels),
        downsampling=scored(Downsampling(tree, n_subsets=12, n_seeds=[0], random_state=0), numbers),
        datamodel=scored(
            Datamodel(tree, regression="ridge", n_subsets=12, n_seeds=[0], random_state=0), numbers
        ),
    )


@case
def trees() -> Arrays:
    """Methods of trees, of boosting and of forests."""
    numbers, labels = vector_regression(24), classification(24, 2)
    given = {"n_estimators": 4, "max_depth": 1, "min_samples_leaf": 4, "random_state": 0}
    boosting = GradientBoostingRegressor(**given).fit(*numbers.train)
    classes = GradientBoostingClassifier(**given).fit(*labels.train)
    forest = RandomForestClassifier(n_estimators=3, random_state=0).fit(*labels.train)
    return together(
        leaf_influence=scored(LeafInfluence(boosting), numbers),
        ahead=scored(LeafInfluence(boosting, n_rounds=3, random_state=0), numbers),
        several=scored(LeafInfluence(classes, n_models=4, random_state=0), labels),
        leaf_refit=scored(LeafRefit(classes), labels),
        leaf_kernel=scored(LeafKernel(forest), labels),
        trex=scored(TREX(forest, alpha=0.1), labels),
        axil=scored(AXIL(boosting), numbers),
    )


def relabelled(attributor: BaseAttributor, rows: Rows, others: tuple[int, int]) -> Arrays:
    """Return what the targets of other rows do, and whose they are."""
    attributor.fit(*rows.train)
    return {"relabel": attributor.relabel(*rows.test, rows=[1, 4], targets=rows.y[list(others)])}


@case
def other_targets() -> Arrays:
    """Rows relabelled, where the cases of the methods do not have it."""
    numbers, labels, squares = vector_regression(24), classification(24, 2), regression()
    given = {"n_estimators": 4, "max_depth": 1, "min_samples_leaf": 4, "random_state": 0}
    boosting = GradientBoostingRegressor(**given).fit(*numbers.train)
    classes = GradientBoostingClassifier(**given).fit(*labels.train)
    forest = RandomForestClassifier(n_estimators=3, random_state=0).fit(*labels.train)
    label = int(np.flatnonzero(labels.y != labels.y[1])[0])
    other = int(np.flatnonzero(labels.y != labels.y[4])[0])
    trained, run = recorded(perceptron(), squares, nn.MSELoss())
    walk = {"trajectory": run, **SQUARES}
    adam = {**RUN, "optimizer": "Adam", "lr": 0.01, "n_seeds": [0], **SQUARES}
    of_trees = [
        ("axil", AXIL(boosting)),
        ("leaf_influence", LeafInfluence(classes)),
        ("leaf_refit", LeafRefit(classes)),
        ("leaf_kernel", LeafKernel(forest)),
        ("trex", TREX(classes, alpha=0.1)),
    ]
    of_networks = {
        "tracin": TracIn(trained, **walk),
        "hydra": Hydra(trained, **walk),
        "source": SOURCE(trained, segments=2, **walk),
        "datainf": DataInf(trained, damping=0.1, **SQUARES),
        "further": FurtherTraining(trained, leave_out=[0], n_seeds=[0, 1], **RUN, **SQUARES),
        "expected": UnrolledDifferentiation(trained, **adam),
        "own": UnrolledDifferentiation(trained, order="own", **adam),
    }
    found = {name: relabelled(one, squares, (2, 3)) for name, one in of_networks.items()}
    for name, one in of_trees:
        rows = labels if isinstance(one.estimator, ClassifierMixin) else numbers
        found[name] = relabelled(one, rows, (label, other))
    return together(**found)


@case32
def rounds_of_boosting() -> Arrays:
    """What rows did in the rounds of boosting, summed up in float32."""
    numbers, labels = vector_regression(24), classification(24, 2)
    given = {"n_estimators": 4, "max_depth": 1, "min_samples_leaf": 4, "random_state": 0}
    squared = BoostIn(GradientBoostingRegressor(**given).fit(*numbers.train))
    return together(
        squared=scored(squared, numbers),
        classes=scored(BoostIn(GradientBoostingClassifier(**given).fit(*labels.train)), labels),
        relabelled=relabelled(squared, numbers, (2, 3)),
    )


@case
def games() -> Arrays:
    """Values of rows: of a ridge, of trees that are fitted, of a network in stacks, and of nearest rows."""
    numbers, labels = vector_regression(12), classification(12, 2)
    ridge = Ridge().fit(*numbers.train)
    tree = DecisionTreeRegressor(max_depth=1, min_samples_leaf=3, random_state=0).fit(
        *numbers.train
    )
    short = {**RUN, **ENTROPY, "n_epochs": 2, "n_seeds": [0]}
    some: dict[str, Any] = {"n_seeds": [0], "random_state": 0}
    return together(
        ridge=scored(DataShapley(ridge, n_samples=3, sampling="stratified", **some), numbers),
        truncated=transformed(DataShapley(tree, n_samples=2, truncation=0.2, **some), numbers),
        beta=transformed(BetaShapley(ridge, n_samples=4, sampling="antithetic", **some), numbers),
        banzhaf=transformed(DataBanzhaf(perceptron(2), n_samples=20, **short), labels),
        core=transformed(LeastCore(ridge, n_samples=30, **some), numbers),
        votes=scored(KNNShapley(perceptron(2), n_neighbors=3, **ENTROPY), labels),
        means=scored(KNNShapley(ridge, n_neighbors=3), numbers),
        bags=transformed(DataOOB(tree, n_samples=30, **some), numbers),
    )


#: Networks trained anew.
ANEW: dict[str, Any] = {**RUN, "n_epochs": 2, "n_seeds": [0, 1]}


@case
def leave_one_out() -> Arrays:
    return battery(LeaveOneOut, leave_out=[0, 4, 9, 11], **ANEW)


@case
def downsampling() -> Arrays:
    return battery(Downsampling, n_subsets=14, **ANEW)


@case
def datamodel() -> Arrays:
    rows, net = regression(), perceptron()
    given = {"n_subsets": 40, "n_bootstrap": 3, **ANEW, **SQUARES}
    return together(
        lasso=transformed(Datamodel(net, **given), rows),
        ridge=scored(Datamodel(net, regression="ridge", **given), rows),
        output=transformed(Datamodel(net, measurement="output", **given), rows),
        classes=transformed(
            Datamodel(perceptron(3), regression="ridge", **{**given, **ENTROPY}), classification()
        ),
    )


@case
def subsets_and_lds() -> Arrays:
    rows, net = classification(), perceptron(3)
    subsets = random_subsets(len(rows.X), 16, ratio=0.6, random_state=0)
    run = {**ANEW, **ENTROPY}
    outcomes = train_on_subsets(net, *rows.train, subsets, *rows.test, **run)
    weighted = train_on_subsets(
        net, *rows.train, subsets[:4], *rows.test, sample_weight=rows.weights, **run
    )
    dot = GradDot(net, **ENTROPY).fit(*rows.train)
    influence = ExactInfluence(net, damping=0.1, **ENTROPY).fit(*rows.train)
    methods = {"dot": dot, "influence": influence}
    whole = train_on_subsets(
        net, *rows.train, np.ones((1, len(rows.X)), dtype=bool), *rows.test, **run
    )
    plain = linear_datamodeling_score(methods, outcomes, *rows.test, n_bootstrap=20, random_state=0)
    of_variance = linear_datamodeling_score(
        methods,
        outcomes,
        *rows.test,
        distance="variance",
        reference=whole.measured[0],
        n_bootstrap=20,
        random_state=0,
    )
    again = Downsampling(net, subsets=subsets, **run).fit(*rows.train)
    search = GridSearchCV(
        ExactInfluence(net, **ENTROPY),
        {"damping": [0.1, 10.0]},
        scoring=LinearDatamodelingScorer(outcomes, *rows.test),
        cv=AllRows(),
    ).fit(*rows.train)
    return {
        "subsets": subsets,
        "measured": outcomes.measured,
        "weighted": weighted.measured,
        "lds": plain.values,
        "lds_mean": plain.mean(),
        "lds_interval": plain.interval(),
        "lds_bootstrap": plain.bootstrap,
        "lds_ceiling": plain.ceiling,
        "lds_difference": plain.difference("dot")[0],
        "lds_variance": of_variance.values,
        "ceiling": noise_ceiling(outcomes.measured, n_splits=4, random_state=0),
        "downsampling": again.score_outcomes(outcomes),
        "search": search.cv_results_["mean_test_score"],
    }


@case
def ensembles() -> Arrays:
    rows, net = regression(), perceptron()
    run = {**RUN, "n_epochs": 2, "n_seeds": [0, 1], **SQUARES}
    ensemble = train_ensemble(net, *rows.train, checkpoints="all", **run)
    further = train_ensemble(
        net,
        *rows.train,
        start=ensemble,
        checkpoints=2,
        sample_weight=rows.weights,
        **{k: v for k, v in run.items() if k != "n_seeds"},
    )
    found: Arrays = {
        f"theta_{name}_{k}": model.theta.numpy()
        for name, made_of in (("first", ensemble), ("second", further))
        for k, model in enumerate(made_of.models)
    }
    for name, attributor in {
        "default": None,
        "hydra": Hydra(),
        "source": SOURCE(segments=2),
        "trak": TRAK(n_components=8, damping=0.1, random_state=0),
        "ekfac": EKFACInfluence(damping=0.1),
        "unrolled": UnrolledDifferentiation(
            n_epochs=1, n_seeds=[0], lr=0.05, batch_size=6, order="own"
        ),
    }.items():
        members = EnsembleAttributor(net, attributor=attributor, models=ensemble, **SQUARES)
        found |= prefixed(name, scored(members, rows))
    found |= prefixed("trained", scored(EnsembleAttributor(net, **run), rows))
    return found


@case
def refined() -> Arrays:
    rows, net = regression(), perceptron()
    further = FurtherTraining(n_epochs=2, n_seeds=[0, 1], lr=0.05, batch_size=6, compile=False)
    method = RefinedAttributor(
        net, gold_standard=further, trained_rows=4, random_state=0, **SQUARES
    )
    found = scored(method, rows)
    found |= {"scale": method.scale_, "weight": method.weight_}
    return found


# ---- metrics and intervals ----------------------------------------------------------------------


@case
def metrics_and_intervals() -> Arrays:
    classes, numbers = classification(24, 2), vector_regression(20)
    model = LogisticRegression(C=0.3).fit(*classes.train)
    exact = ExactInfluence(model).fit(*classes.train)
    sensitive = np.arange(len(classes.X_test)) % 2
    found: Arrays = {
        f"{name}_{how}": metric_influence(exact, *classes.test, name, how=how).scores
        for name in ("accuracy", "neg_log_loss")
        for how in ("difference", "derivative")
    }
    found["gap"] = metric_influence(
        exact, *classes.test, "selection_rate", sensitive=sensitive, how="derivative"
    ).scores
    for name, intervals in {
        "jackknife": JackknifePlusRegressor(Ridge()),
        "cv": CVPlusRegressor(Ridge(), cv=4, random_state=0),
    }.items():
        found[name] = intervals.fit(*numbers.train).predict_interval(numbers.X_test)
    return found


# ---- distributions ----------------------------------------------------------------------------


@case
def distances() -> Arrays:
    rng = np.random.default_rng(0)
    full, left_out = rng.normal(size=(9, 2)), rng.normal(size=(9, 2, 3)) + 0.3
    samples = OutcomeSamples(full, left_out)
    free = OutcomeSamples(full, left_out[:7], paired=False)
    found: Arrays = {"effects": samples.effects}
    chosen: dict[str, Any] = {
        name: name for name in ("mean", "variance", "std", "w1", "w2", "energy", "ks", "kl")
    }
    chosen |= {
        "quantile": Quantile(0.4),
        "tail": TailProbability(0.2),
        "wasserstein": Wasserstein(1),
        "histograms": KullbackLeibler(4),
        "function": lambda a, b: float(np.median(a) - np.median(b)),
    }
    for name, distance in chosen.items():
        found |= {
            f"{name}/paired": samples.distance(distance),
            f"{name}/free": free.distance(distance),
            f"{name}/itself": resolve_distance(distance)(left_out[:, 0, 0], full[:, 0]),
            f"{name}/interval": samples.interval(distance, n_bootstrap=9, random_state=0),
            f"{name}/test": samples.permutation_test(distance, n_permutations=9, random_state=0),
        }
    vectors = rng.normal(size=(2, 9, 3))
    return found | {
        "joint": joint_distance([samples, samples], SlicedWasserstein(5)),
        "sliced": SlicedWasserstein(5)(vectors[0], vectors[1]),
        "of_rows": samples.of_rows([2, 0]).left_out,
        "of_groups": samples.of_groups([[0, 1], [2]]).left_out,
    }


@case
def distributional_influence() -> Arrays:
    rows, net = regression(), perceptron()
    run = {**RUN, "n_epochs": 2, "n_seeds": [0, 1, 2]}
    ensemble = train_ensemble(net, *rows.train, checkpoints=1, **{**run, "n_epochs": 1}, **SQUARES)
    found: Arrays = {}
    for distance in ("mean", "variance", "w2"):
        found |= together(
            **{
                f"unrolled_{distance}": scored(
                    DistributionalInfluence(
                        net,
                        method=UnrolledDifferentiation(**run, order="own"),
                        distance=distance,
                        **SQUARES,
                    ),
                    rows,
                ),
                f"ensemble_{distance}": transformed(
                    DistributionalInfluence(
                        net,
                        method=ExactInfluence(damping=0.1),
                        models=ensemble,
                        distance=distance,
                        **SQUARES,
                    ),
                    rows,
                ),
            }
        )
    predicts = DistributionalInfluence(
        net, method=UnrolledDifferentiation(**run, order="own"), **SQUARES
    )
    predicted = predicts.fit(*rows.train).outcome_samples(*rows.test)
    steps = OnceLinearizedFurtherTraining(solver="steps", **run)
    linear = DistributionalInfluence(net, method=steps, **SQUARES)
    joint = DistributionalInfluence(
        net, method=UnrolledDifferentiation(**run, order="own"), joint=["loss", "output"], **SQUARES
    )
    subsets = ~np.eye(len(rows.X), dtype=bool)[:5]
    outcomes = train_on_subsets(
        net, *rows.train, [np.arange(len(rows.X)), *subsets], *rows.test, **run, **SQUARES
    )
    measured = OutcomeSamples.from_retraining(outcomes)
    curve = further_training_curve(
        net,
        *rows.train,
        *rows.test,
        epochs=[2],
        leave_out=range(5),
        **{k: v for k, v in run.items() if k != "n_epochs"},
        **SQUARES,
    )
    agreement = distributional_agreement(
        predicted, OutcomeSamples.from_further_training(curve), "w2"
    )
    return found | {
        "predicted_full": predicted.full,
        "predicted_left_out": predicted.left_out,
        "linear": transformed(linear, rows)["with_y"],
        "joint": transformed(joint, rows)["with_y"],
        "measured_left_out": measured.left_out,
        "measured_w2": measured.distance("w2"),
        "agreement_predicted": agreement.predicted,
        "agreement_measured": agreement.measured,
        "agreement_before": agreement.before,
        "agreement_after": agreement.after,
        "agreement_pearson": agreement.pearson,
        "agreement_spearman": agreement.spearman,
    }


# ---- judging and acting -----------------------------------------------------------------------


@case
def removal_and_significance() -> Arrays:
    labels, numbers = classification(24, 2), vector_regression(24)
    model = LogisticRegression(tol=1e-12).fit(*labels.train)
    ridge = Ridge().fit(*numbers.train)
    influence = ExactInfluence(model).fit(*labels.train)
    curve = subset_removal_curve(
        {"influence": influence},
        model,
        labels.y,
        *labels.test,
        X_train=labels.X,
        k=[1, 3, 6],
        random_state=0,
    )
    change = subset_removal_curve(
        {"influence": ExactInfluence(ridge).fit(*numbers.train)},
        ridge,
        numbers.y,
        *numbers.test,
        X_train=numbers.X,
        k=[1, 3],
        task="regression",
        random_state=0,
    )
    gold = FurtherTraining(perceptron(), n_seeds=[0, 1, 2], **RUN, **SQUARES)
    gold.fit(*regression().train)
    found = {
        "flips": curve.effects,
        "flips_mean": curve.mean(),
        "flips_sem": curve.sem(),
        "change": change.effects,
        "class_detection": class_detection(influence, labels.y, labels.y_test, labels.X_test, k=5),
    }
    for method in ("bh", "by"):
        found[f"p_{method}"] = significant_scores(
            gold, *regression().test, fdr=0.3, method=method
        ).p_values
    return found


@case
def mislabels_and_pruning() -> Arrays:
    rows, numbers = classification(36, 2), vector_regression(24)
    noisy, flipped = flip_labels(rows.y, 0.15, random_state=0)
    model = LogisticRegression(tol=1e-12).fit(rows.X, noisy)
    influence = ExactInfluence(model, damping=0.1).fit(rows.X, noisy)
    detection = mislabel_detection(influence, flipped)
    search = GridSearchCV(
        ExactInfluence(model),
        {"damping": [1e-3, 10.0]},
        scoring=MislabelScorer(flipped),
        cv=AllRows(),
    ).fit(rows.X, noisy)
    logistic = LogisticRegression(tol=1e-12)
    detectors = {
        "default": MislabelDetector(logistic, random_state=0),
        "exact": MislabelDetector(logistic, attributor=ExactInfluence(damping=0.1), random_state=0),
        "tree": MislabelDetector(RandomForestClassifier(3, random_state=0), random_state=0),
    }
    found: Arrays = {
        "noisy": noisy,
        "flipped": flipped,
        "inspected": detection.inspected,
        "found": detection.found,
        "judged": [detection.roc_auc, detection.average_precision, detection.found_after(0.2)],
        "search": search.cv_results_["mean_test_score"],
    }
    for name, detector in detectors.items():
        detector.fit(rows.X, noisy)
        found |= {f"{name}/scores": detector.scores_, f"{name}/labels": detector.labels_}
    for by in ("held-out", "self"):
        pruner = InfluencePruner(logistic, by=by, cv=3, random_state=0).fit(rows.X, noisy)
        found |= {f"{by}/scores": pruner.scores_, f"{by}/support": pruner.support_}
    classifier = PrunedClassifier(logistic, fraction=0.2, cv=3, random_state=0).fit(rows.X, noisy)
    regressor = PrunedRegressor(Ridge(), cv=3, random_state=0).fit(*numbers.train)
    return found | {
        "classifier": classifier.predict_proba(rows.X_test),
        "regressor": regressor.predict(numbers.X_test),
    }


@case
def comparison_and_attribute() -> Arrays:
    rows, net = regression(), perceptron()
    run = {k: v for k, v in RUN.items() if k != "n_epochs"}
    compared = compare_methods(
        net,
        *rows.train,
        *rows.test,
        methods={
            "dot": GradDot(net, **SQUARES),
            "exact": ExactInfluence(net, damping=0.1, **SQUARES),
        },
        budget=1e6,
        epochs=[1, 3],
        n_seeds=[0, 1],
        leave_out=6,
        **run,
        **SQUARES,
    )
    curve = compared.curve
    search = GridSearchCV(
        ExactInfluence(net, **SQUARES),
        {"damping": [0.1, 10.0]},
        scoring=AgreementScorer(curve, *rows.test),
        cv=AllRows(),
    ).fit(*rows.train)
    numbers = vector_regression()
    ridge, tree = Ridge().fit(*numbers.train), DecisionTreeRegressor(max_depth=2, random_state=0)
    given = attribute(net, *rows.train, *rows.test, method=GradDot(**SQUARES))
    found: Arrays = prefixed("agreement", compared.agreement.values) | {
        "one_seed": compared.one_seed,
        "curve": curve.scores,
        "search": search.cv_results_["mean_test_score"],
    }
    for name, result in {
        "given": given,
        "ridge": attribute(ridge, *numbers.train, *numbers.test, budget=1e5, random_state=0),
        "tree": attribute(
            tree.fit(*numbers.train), *numbers.train, *numbers.test, budget=1e5, random_state=0
        ),
        "network": attribute(
            net,
            *rows.train,
            rows.X_test,
            budget=1e5,
            n_epochs=2,
            **run,
            **SQUARES,
        ),
    }.items():
        found |= prefixed(name, {"scores": result.scores, "top": result.top(2).helpful_scores})
    return found


@case
def data_sets() -> Arrays:
    X_train, X_test, y_train, y_test = split_breast_cancer()
    return {"X_train": X_train[:5], "X_test": X_test[:5], "y_train": y_train, "y_test": y_test}


# ---- float32 ----------------------------------------------------------------------------------

SINGLE = np.float32


def single(n_outputs: int = 1) -> nn.Module:
    return perceptron(n_outputs, dtype=torch.float32)


@case32
def single_gradients() -> Arrays:
    rows, net = regression().astype(SINGLE), single()
    return together(
        dot=scored(GradDot(net, **SQUARES), rows),
        cos=scored(GradCos(net, **SQUARES), rows),
        similar=scored(RepSim(net, **SQUARES), rows),
        datainf=scored(DataInf(net, **SQUARES), rows),
    )


@case32
def single_influence() -> Arrays:
    rows, net = classification().astype(SINGLE), single(3)
    return together(
        exact=scored(ExactInfluence(net, damping=0.5, **ENTROPY), rows),
        cg=scored(CGInfluence(net, damping=0.5, tol=1e-7, **ENTROPY), rows),
        ekfac=scored(EKFACInfluence(net, damping=0.5, **ENTROPY), rows),
        trak=scored(TRAK(net, n_components=6, damping=0.5, random_state=0, **ENTROPY), rows),
    )


@case32
def single_further_training() -> Arrays:
    rows, net = classification().astype(SINGLE), single(3)
    run = {**RUN, "lr": 0.5}
    attributor = FurtherTraining(net, n_seeds=[0], leave_out=[0, 5, 8], **run, **ENTROPY)
    return scored(attributor, rows)


@case32
def single_runs() -> Arrays:
    rows, net = regression().astype(SINGLE), single()
    given = {"n_seeds": [0], **RUN, **SQUARES}
    return together(
        unrolled=scored(UnrolledDifferentiation(net, **given, order="own"), rows),
        kernel=scored(OnceLinearizedFurtherTraining(net, **given), rows),
        segments=scored(LinearizedFurtherTraining(net, n_segments=2, **given), rows),
    )


@case32
def single_along_the_run() -> Arrays:
    rows = regression().astype(SINGLE)
    trained, run = recorded(single(), rows, nn.MSELoss())
    given = {"trajectory": run, **SQUARES}
    return together(
        tracin=scored(TracIn(trained, **given), rows),
        hydra=scored(Hydra(trained, **given), rows),
        source=scored(SOURCE(trained, segments=2, **given), rows),
    )


@case32
def single_retraining() -> Arrays:
    rows = classification().astype(SINGLE)
    run = {**ANEW, **ENTROPY, "lr": 0.5}
    subsets = random_subsets(len(rows.X), 6, random_state=0)
    outcomes = train_on_subsets(single(3), *rows.train, subsets, *rows.test, **run)
    return {"measured": outcomes.measured} | prefixed(
        "loo", scored(LeaveOneOut(single(3), leave_out=[0, 5], **run), rows)
    )


@case
def groups_and_flips() -> Arrays:
    labels, numbers = classification(24, 2), vector_regression(24)
    model = LogisticRegression(C=0.5, tol=1e-12).fit(*labels.train)
    influence = ExactInfluence(model).fit(*labels.train)
    ridge = ExactInfluence(Ridge().fit(*numbers.train)).fit(*numbers.train)
    groups = [range(5), [7, 9], range(12, 20)]
    found: Arrays = {
        f"ridge_{way}": group_influence(ridge, groups, *numbers.test, method=way).effects
        for way in ("first-order", "second-order", "exact")
    }
    compared = compare_group_influence(
        influence, groups, *labels.test, X_train=labels.X, y_train=labels.y, train=model
    )
    chosen = greedy_removal(ridge, *numbers.test, n_rows=4)
    given = {
        "X_train": labels.X,
        "y_train": labels.y,
        "max_rows": 8,
        "n_seeds": 1,
        "random_state": 0,
    }
    flips = smallest_flip(influence, labels.X_test, **given)
    return found | {
        "compared": compared.effects,
        "retrained": compared.gold.effects,
        "greedy_rows": chosen.rows,
        "greedy_effects": chosen.effects,
        "flip_sizes": flips.size,
        "flip_sizes_top": flips.sizes["top"],
    }
