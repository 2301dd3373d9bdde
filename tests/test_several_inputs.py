"""Modules of several inputs: rows as a dict or a tuple of arrays, through everything that takes networks."""

from __future__ import annotations

import warnings
from collections import UserDict
from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier, NeuralNetRegressor
from test_common import ATTRIBUTORS, make
from torch import nn

import fimoda
from fimoda import GradDot, TrajectoryRecorder
from fimoda.adapters import as_final_model
from fimoda.rows import parts

N, N_TEST, N_IDS, N_NUMBERS, WORDS = 18, 4, 2, 3, 5

#: Scores are equal up to rounding: the same numbers go through the same operations.
SAME = {"rtol": 1e-9, "atol": 1e-12}


class Net(nn.Module):
    """A network of words and numbers, in float64."""

    def __init__(self, n_outputs: int = 1):
        super().__init__()
        self.words = nn.Embedding(WORDS, 2, dtype=torch.float64)
        self.hidden = nn.Linear(2 + N_NUMBERS, 4, dtype=torch.float64)
        self.out = nn.Linear(4, n_outputs, dtype=torch.float64)

    def outputs(self, ids, numbers):
        """Return the outputs (n, n_outputs) of words (n, 2), integers, and numbers (n, 3)."""
        seen = torch.cat([self.words(ids).mean(1), numbers], 1)
        return self.out(torch.tanh(self.hidden(seen)))


class Named(Net):
    """Its inputs are arguments."""

    def forward(self, ids, numbers):
        return self.outputs(ids, numbers)


class Listed(Net):
    """Its inputs are one list, which is what skorch makes of a tuple."""

    def forward(self, inputs):
        return self.outputs(*inputs)


class Joined(Net):
    """Its only input has ids and numbers in one array."""

    def forward(self, x):
        return self.outputs(x[:, :N_IDS].long(), x[:, N_IDS:])


rng = np.random.default_rng(0)
IDS = rng.integers(0, WORDS, (N + N_TEST, N_IDS))
NUMBERS = rng.normal(size=(N + N_TEST, N_NUMBERS))
Y = rng.normal(size=(N + N_TEST, 1))
LABELS = rng.integers(0, 2, N + N_TEST)
TRAIN, TEST = slice(N), slice(N, None)


def rows_of(form: str, which: slice) -> Any:
    """Return rows for a module of that form."""
    ids, numbers = IDS[which], NUMBERS[which]
    forms = {"dict": {"ids": ids, "numbers": numbers}, "joined": np.hstack([ids, numbers])}
    return forms.get(form, (ids, numbers))


MODULES = {"dict": Named, "tuple": Listed, "joined": Joined, "arguments": Named}


def fitted(form: str, classes: bool = False, **settings: Any) -> Any:
    """Return a net, trained on rows of a form; all forms have the same parameters."""
    torch.manual_seed(0)
    module = MODULES[form](2) if classes else MODULES[form]()
    kind = NeuralNetClassifier if classes else NeuralNetRegressor
    if classes:
        settings["criterion"] = nn.CrossEntropyLoss
    recorder = TrajectoryRecorder(checkpoints="all", batches=True)
    common = {"max_epochs": 2, "lr": 0.05, "batch_size": 6, "train_split": None, "verbose": 0}
    net = kind(module, callbacks=[("run", recorder)], **common, **settings)
    with torch.random.fork_rng():
        return net.fit(rows_of(form, TRAIN), LABELS[TRAIN] if classes else Y[TRAIN])


def bare(form: str) -> nn.Module:
    torch.manual_seed(1)
    return MODULES[form]().eval()


def scores_of(attributor: Any, form: str, y: Any = Y) -> list[np.ndarray]:
    """Return all that an attributor says of rows of a form."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nets of two epochs are far from their minimum
        attributor.fit(rows_of(form, TRAIN), y[TRAIN])
        test = rows_of(form, TEST)
        top = attributor.top(test, y[TEST], k=2)
        return [
            attributor.transform(test, y[TEST]),
            attributor.transform(test),
            attributor.self_influence(),
            top.scores if hasattr(top, "scores") else top.helpful,
        ]


def assert_same(got: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert np.abs(expected[0]).max() > 0
    for one, other in zip(got, expected, strict=True):
        assert_allclose(one, other, **SAME)


# ---- every attributor -----------------------------------------------------------------------


#: Distances are of rows in one array: `KNNShapley` refuses several.
OF_INPUTS = [cls for cls in ATTRIBUTORS if cls is not fimoda.KNNShapley]


@pytest.mark.parametrize("cls", OF_INPUTS, ids=lambda cls: cls.__name__)
def test_a_dict_scores_as_one_array(cls):
    expected = scores_of(make(cls, fitted("joined")), "joined")
    assert_same(scores_of(make(cls, fitted("dict")), "dict"), expected)


def test_distances_are_of_one_array():
    with pytest.raises(ValueError, match="X must be one array to compare rows by distance"):
        scores_of(make(fimoda.KNNShapley, fitted("dict")), "dict")


#: One attributor of each way of computing: products, factors, kernels, stacks of models, runs.
WAYS = ["GradDot", "EKFACInfluence", "ExactInfluence", "FurtherTraining", "LeaveOneOut", "Hydra"]
WAYS += ["UnrolledDifferentiation", "SOURCE", "TRAK"]


@pytest.mark.parametrize("name", WAYS)
def test_a_tuple_scores_as_one_array(name):
    cls = getattr(fimoda, name)
    expected = scores_of(make(cls, fitted("joined")), "joined")
    assert_same(scores_of(make(cls, fitted("tuple")), "tuple"), expected)


@pytest.mark.parametrize("form", ["dict", "tuple", "arguments"])
@pytest.mark.parametrize("name", ["GradDot", "ExactInfluence", "FurtherTraining", "Downsampling"])
def test_a_bare_module(name, form):
    cls, found = getattr(fimoda, name), {}
    for one in (form, "joined"):
        steps = {"lr": 0.1, "batch_size": 6, "optimizer": "SGD", "n_epochs": 1}
        steps = steps if "optimizer" in signature(cls).parameters else {}
        attributor = make(cls, bare(one), criterion=nn.MSELoss(), **steps)
        found[one] = scores_of(attributor, one)
    assert_same(found[form], found["joined"])


@pytest.mark.parametrize("name", ["GradDot", "UnrolledDifferentiation", "Datamodel", "RepSim"])
def test_a_classifier(name):
    cls = getattr(fimoda, name)
    expected = scores_of(make(cls, fitted("joined", classes=True)), "joined", LABELS)
    assert_same(scores_of(make(cls, fitted("dict", classes=True)), "dict", LABELS), expected)


# ---- functions ------------------------------------------------------------------------------


def test_further_training_and_agreement():
    found = []
    for form in ("dict", "joined"):
        net, rows = fitted(form), rows_of(form, TRAIN)
        test = (rows_of(form, TEST), Y[TEST])
        curve = fimoda.further_training_curve(
            net, rows, Y[TRAIN], *test, epochs=[1, 2], n_seeds=2, leave_out=5, random_state=0
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            product = GradDot(net).fit(rows, Y[TRAIN])
        agreement = fimoda.agreement_curve({"Grad-Dot": product}, curve, *test)
        found.append([curve.scores, agreement.values["cosine"]])
    assert_same(*found)


def test_attribute():
    found = []
    for form in ("dict", "joined"):
        net, rows = fitted(form), (rows_of(form, TRAIN), Y[TRAIN])
        test = (rows_of(form, TEST), Y[TEST])
        method = fimoda.FurtherTraining(n_epochs=1, n_seeds=2, random_state=0)
        found.append([fimoda.attribute(net, *rows, *test, method=method).scores])
    assert_same(*found)
    chosen = fimoda.attribute(
        fitted("dict"), rows_of("dict", TRAIN), Y[TRAIN], rows_of("dict", TEST), n_epochs=1
    )
    assert chosen.scores.shape == (N_TEST, N)


class Splits(StandardScaler):
    """A step that learns, and makes two inputs of its rows."""

    def transform(self, X):
        return {"ids": X[:, :N_IDS].astype(np.int64), "numbers": super().transform(X)[:, N_IDS:]}


def test_a_pipeline_that_makes_a_dict():
    rows, test = rows_of("joined", TRAIN), rows_of("joined", TEST)
    torch.manual_seed(0)
    settings = {"max_epochs": 1, "train_split": None, "verbose": 0}
    pipeline = make_pipeline(Splits(), NeuralNetRegressor(Named(), **settings)).fit(rows, Y[TRAIN])
    seen, seen_test = (pipeline[0].transform(one) for one in (rows, test))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = GradDot(pipeline).fit(rows, Y[TRAIN]).transform(test, Y[TEST])
        expected = GradDot(pipeline[-1]).fit(seen, Y[TRAIN]).transform(seen_test, Y[TEST])
    assert_allclose(scores, expected, **SAME)
    again = fimoda.LeaveOneOut(pipeline, n_seeds=1, leave_out=[3], random_state=0)
    assert np.isfinite(again.fit(rows, Y[TRAIN]).transform(test, Y[TEST])).all()


def test_subsets():
    subsets = rng.random((6, N)) < 0.5
    found = []
    for form in ("dict", "joined"):
        net, rows, test = fitted(form), rows_of(form, TRAIN), rows_of(form, TEST)
        settings = {"n_seeds": 1, "n_epochs": 1, "random_state": 0}
        trained = fimoda.train_on_subsets(net, rows, Y[TRAIN], subsets, test, Y[TEST], **settings)
        found.append([trained.measured])
    assert_same(*found)


def test_acting_on_scores():
    found = []
    for form in ("dict", "joined"):
        rows, test = rows_of(form, TRAIN), rows_of(form, TEST)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruned = fimoda.PrunedRegressor(fitted(form), fraction=0.2, cv=2, random_state=0)
            predicted = pruned.fit(rows, Y[TRAIN].astype(float)).predict(test)
            detector = fimoda.MislabelDetector(fitted(form, classes=True), random_state=0)
            found.append([predicted, detector.fit(rows, LABELS[TRAIN]).scores_])
    assert_same(*found)


def test_an_ensemble():
    found = []
    for form in ("dict", "joined"):
        rows = (rows_of(form, TRAIN), Y[TRAIN])
        ensemble = fimoda.train_ensemble(
            fitted(form), *rows, n_seeds=2, checkpoints=2, n_epochs=2, random_state=0
        )
        methods = [
            fimoda.EnsembleAttributor(fitted(form), attributor=GradDot(), models=ensemble),
            fimoda.TRAK(fitted(form), models=ensemble.models, random_state=0),
        ]
        found.append([one for method in methods for one in scores_of(method, form)])
    assert_same(*found)


def test_frames_of_scores_have_rows_of_the_dict():
    net = fitted("dict")
    attributor = GradDot(net).set_output(transform="pandas")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame = attributor.fit(rows_of("dict", TRAIN), Y[TRAIN]).transform(rows_of("dict", TEST))
    assert list(frame.columns) == [f"row{i}" for i in range(N)]
    assert len(frame) == N_TEST


# ---- types ----------------------------------------------------------------------------------


def test_each_input_keeps_its_type():
    class Masked(Named):
        def forward(self, ids, numbers, mask):
            assert (ids.dtype, mask.dtype) == (torch.int32, torch.bool)
            return self.outputs(ids, numbers * ~mask)

    rows = {
        "ids": IDS.astype(np.int32),
        "numbers": NUMBERS.astype(np.float32),
        "mask": NUMBERS > 1,
    }
    model = as_final_model(Masked(), rows, criterion=nn.MSELoss())
    encoded = parts(model.encode_X(rows))
    assert [part.dtype for part in encoded] == [torch.int32, torch.float64, torch.bool]
    expected = model.module.outputs(torch.tensor(IDS), torch.tensor(NUMBERS * (NUMBERS <= 1)))
    assert_allclose(model.outputs(model.encode_X(rows)), expected.detach(), rtol=1e-6)


@pytest.mark.parametrize(
    "as_given",
    [UserDict, lambda rows: {k: torch.as_tensor(v) for k, v in rows.items()}, lambda rows: rows],
    ids=["mapping", "tensors", "other order"],
)
def test_what_a_dict_may_be(as_given):
    attributor = GradDot(bare("dict"), criterion=nn.MSELoss())
    expected = attributor.fit(rows_of("dict", TRAIN), Y[TRAIN]).transform(rows_of("dict", TEST))
    test = dict(reversed(rows_of("dict", TEST).items()))
    got = attributor.fit(as_given(rows_of("dict", TRAIN)), Y[TRAIN]).transform(as_given(test))
    assert_array_equal(got, expected)


def test_a_module_that_writes_to_its_inputs():
    class Writes(Named):
        def forward(self, ids, numbers):
            numbers *= 2
            return self.outputs(ids, numbers)

    found = []
    for module, factor in ((Writes(), 1), (Named(), 2)):
        module.load_state_dict(bare("dict").state_dict())
        rows = {"ids": IDS, "numbers": NUMBERS * factor}
        found.append(GradDot(module, criterion=nn.MSELoss()).fit_transform(rows, Y))
        assert_array_equal(rows["numbers"], NUMBERS * factor)
    assert_allclose(*found, **SAME)


def test_refitting_with_an_array_after_a_dict():
    attributor = GradDot(bare("dict"), criterion=nn.MSELoss()).fit(rows_of("dict", TRAIN), Y[TRAIN])
    assert not hasattr(attributor, "n_features_in_")
    attributor.set_params(estimator=bare("joined")).fit(rows_of("joined", TRAIN), Y[TRAIN])
    assert attributor.n_features_in_ == N_IDS + N_NUMBERS
    attributor.set_params(estimator=bare("dict")).fit(rows_of("dict", TRAIN), Y[TRAIN])
    assert not hasattr(attributor, "n_features_in_")


# ---- errors ---------------------------------------------------------------------------------


def dict_of(ids: Any = IDS, numbers: Any = NUMBERS) -> dict[str, Any]:
    return {"ids": ids, "numbers": numbers}


MISSING = np.where(IDS[:, :1] > 3, np.nan, NUMBERS)
DATES = IDS.astype("M8[D]")
MASKED = np.ma.masked_less(NUMBERS, 0)


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ({}, ValueError, "X is a dict without entries"),
        (dict_of(numbers=NUMBERS[1:]), ValueError, r'X\["ids"\] has 22, X\["numbers"\] has 21'),
        (dict_of(numbers=MISSING), ValueError, r'X\["numbers"\] contains NaN'),
        (dict_of(numbers="text"), TypeError, r'X\["numbers"\] must be an array .* got str'),
        (dict_of(numbers=None), TypeError, r'X\["numbers"\] must be an array .* got NoneType'),
        (dict_of(numbers=NUMBERS.astype(str)), ValueError, r'X\["numbers"\] must hold numbers'),
        (dict_of(numbers=DATES), TypeError, r'X\["numbers"\] must hold numbers, .*Convert dates'),
        (dict_of(numbers=MASKED), ValueError, r'X\["numbers"\] is a masked array'),
        ({0: IDS, 1: NUMBERS}, TypeError, "names of the module's arguments as keys"),
        ({"ids": IDS}, ValueError, r'row of X\["ids"\] of shape \(2,\), .*missing.*numbers'),
        ({**dict_of(), "wrong": IDS}, ValueError, r"unexpected keyword argument 'wrong'"),
        (dict_of(ids=NUMBERS), ValueError, r'X\["ids"\] must hold integers, .* \'words\''),
        ((IDS, NUMBERS[1:]), ValueError, r"X\[0\] has 22, X\[1\] has 21"),
        ((IDS, NUMBERS, NUMBERS), ValueError, r"could not be run on a row of X\[0\] of shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_of_fit(rows, error, message):
    with pytest.raises(error, match=message):
        GradDot(bare("dict"), criterion=nn.MSELoss()).fit(rows, Y)


def test_errors_of_transform():
    attributor = GradDot(bare("dict"), criterion=nn.MSELoss()).fit(rows_of("dict", TRAIN), Y[TRAIN])
    with pytest.raises(
        ValueError, match=r"X\['ids'\], X\['numbers'\], got X\['ids'\]. X\['numbers'\] is"
    ):
        attributor.transform({"ids": IDS})
    with pytest.raises(ValueError, match=r"got X\[0\], X\[1\]"):
        attributor.transform((IDS, NUMBERS))
    with pytest.raises(ValueError, match="got one array"):
        attributor.transform(NUMBERS)
    with pytest.raises(ValueError, match=r'X\["numbers"\] contains infinity'):
        attributor.transform({"ids": IDS, "numbers": np.where(NUMBERS > 1, np.inf, NUMBERS)})
    with pytest.raises(ValueError, match=r"X\['numbers'\] must have rows of shape \(3,\)"):
        attributor.transform({"ids": IDS, "numbers": NUMBERS[:, 0]})
    with pytest.raises(ValueError, match="y must have one entry per row of X"):
        attributor.transform(rows_of("dict", TEST), Y[:2])
    one = GradDot(bare("joined"), criterion=nn.MSELoss()).fit(rows_of("joined", TRAIN), Y[TRAIN])
    with pytest.raises(ValueError, match="one array, got X"):
        one.transform(rows_of("dict", TEST))


def test_models_of_one_table_take_no_dict():
    for attributor in (GradDot(Ridge().fit(NUMBERS, Y)), GradDot(), fimoda.LeaveOneOut(Ridge())):
        with pytest.raises(TypeError, match=r"got a dict.*pandas.DataFrame\(X\)"):
            attributor.fit({"ids": IDS, "numbers": NUMBERS}, Y)
