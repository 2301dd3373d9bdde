"""TRAK: influence in the space of randomly projected gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from .._validation import (
    MAX_SEED,
    NON_NEGATIVE_REAL,
    POSITIVE_INTEGER,
    StrOptions,
    check_random_state,
    check_weights,
)
from ..adapters import as_final_model, has_earlier_steps
from ..base import BaseAttributor
from ..curvature.checks import check_gradients
from ..curvature.damping import DAMPING_FACTOR, MOST_OF_TRACE
from ..curvature.projected_kernel import ProjectedKernel
from ..curvature.projection import KINDS, Projection
from ..curvature.removal import Removal
from ..measured import Measured
from ..measurements import Measurement
from ..model import FinalModel
from ..trials import Trial

#: ``damping="auto"`` for a linear model that a solver has fitted, of the mean squared length.
AT_MINIMUM = 1e-4

#: Rows times parameters times features from which ``projection="auto"`` is sparse.
MANY_OPERATIONS = 10**11


class TRAK(BaseAttributor):
    r"""Influence function with the Gauss-Newton matrix of randomly projected gradients.

    .. math:: S_{z,i} = \frac{w_i}{\sum_j w_j}\; \phi_z^\top
        \Big(\sum_j \tfrac{w_j}{\sum_k w_k} \phi_j \phi_j^\top + \lambda I\Big)^{-1} \phi_i \; Q_i,
        \qquad Q_i = \frac{\partial \ell_i}{\partial f_i}

    where :math:`f_i` is the model's output function at row i, :math:`\phi_i = P^\top \nabla_\theta
    f_i / \sqrt k` its projected gradient, and :math:`\phi_z = P^\top \nabla_\theta m_z / \sqrt k`
    that of the measurement. For classification f is the margin, :math:`\log p_y / (1 - p_y)`, so
    that :math:`Q_i = -(1 - p_y)`; for regression it is the output, and :math:`Q_i` the derivative of
    the loss in it; with several outputs one feature vector each, summed over. The sign and the
    factor 1/n make scores estimates of the change by removal. (The paper's scores are
    those of ``measurement="margin"`` up to the factor -1/n: with it, more positive means here that
    the row holds the margin down.) The output function has unit curvature in the kernel, and an L2
    penalty is left out of it.

    With several models the two factors, the product of features and Q, are averaged over models
    separately.

    Parameters
    ----------
    estimator : object, default=None
        Fitted model; an unfitted scikit-learn or skorch estimator is cloned and fitted. None is a
        small MLP.
    n_components : int, default=2048
        Number k of features. None, or a number of at least that of the parameters, leaves out the
        projection.
    projection : {"auto", "rademacher", "gaussian", "sparse", "product"}, default="auto"
        Distribution of P: signs, normal numbers, four signs among zeros for each parameter, or
        signs that are products of one sign for the input and one for the output that a weight
        connects. With p parameters and n rows the first two take n p k operations; the sparse one
        takes 4 n p and is as good. The product is for networks of linear layers only, never meets
        single parameters, and is somewhat noisier. "auto" takes signs, and the sparse one where they
        would take more than 1e11 operations (seconds).
    models : list, default=None
        Further fitted models, trained as `estimator` was with other seeds, over which scores are
        averaged. They take the rows that `estimator` (for a Pipeline: its last step) takes.
    damping : float or "auto", default="auto"
        :math:`\lambda`; "auto" is 1,000 times the mean squared entry of the gradients of the output
        function, at most a twentieth of their mean squared length, and 1e-4 of it for a linear
        model that a solver has fitted, averaged over models.
    reweight_others : bool, default=False
        Score the removal of a row as fitting without it does it: the other rows get its part of a mean,
        so that it is compared with their mean gradient, and balanced class weights change. False is
        the field's formula, in which the others keep their weights.
    measurement : str or callable, default="loss"
        What is attributed: ``"loss"``, ``"margin"``, ``"log_prob"``, ``"output"`` or a callable
        ``m(outputs, targets)`` giving one number per row.
    criterion : nn.Module, default=None
        Training criterion of a bare ``nn.Module``.
    chunk_size : int, default=None
        Rows whose gradients are held at a time; from `memory_budget` by default.
    memory_budget : int, default=1 GiB
        Bytes for gradients and for a kept projection; the features come on top. Scores are the
        same for every value.
    random_state : int, RandomState or None, default=None
        Used to fit an unfitted `estimator` and to draw the projections.

    Attributes
    ----------
    estimator_ : object
        The final model.
    model_ : FinalModel
        Its frozen functional view.
    projection_ : str
        The distribution that was used.
    output_function_ : {"margin", "output"}
        The function whose gradients are the features.
    damping_ : float
        The damping used; may be changed after ``fit``.
    train_indices_ : ndarray of shape (n_train,)
        Training row of each column.

    Raises
    ------
    ValueError
        If the damped kernel is singular, or the models do not fit together.

    References
    ----------
    Park et al., "TRAK: Attributing Model Behavior at Scale", ICML 2023, arXiv 2303.14186.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from fimoda import TRAK
    >>> X, y = load_iris(return_X_y=True)
    >>> model = LogisticRegression(max_iter=500).fit(X, y)
    >>> TRAK(model, n_components=8, random_state=0).fit(X, y).transform(X[:4], y[:4]).shape
    (4, 150)
    """

    process = "training to convergence near the final model"

    _shared = ("models",)
    _averages_models = True

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseAttributor._parameter_constraints,
        **BaseAttributor._BUDGET_CONSTRAINTS,
        "n_components": [POSITIVE_INTEGER, None],
        "projection": [StrOptions({"auto", *KINDS})],
        "models": [list, tuple, None],
        "damping": [NON_NEGATIVE_REAL, StrOptions({"auto"})],
        "reweight_others": ["boolean"],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        n_components: int | None = 2048,
        projection: str = "auto",
        models: Sequence[Any] | None = None,
        damping: float | str = "auto",
        reweight_others: bool = False,
        measurement: Measurement = "loss",
        criterion: nn.Module | None = None,
        chunk_size: int | None = None,
        memory_budget: int = 2**30,
        random_state: Any = None,
    ):
        super().__init__(
            estimator, measurement=measurement, criterion=criterion, random_state=random_state
        )
        self.n_components = n_components
        self.projection = projection
        self.models = models
        self.damping = damping
        self.reweight_others = reweight_others
        self.chunk_size = chunk_size
        self.memory_budget = memory_budget

    # ---- fit --------------------------------------------------------------------------------

    def _prepare(self, X: Any, y: Any, sample_weight: ArrayLike | None) -> None:
        super()._prepare(X, y, sample_weight)
        rows = self._objective.rows
        weights = check_weights(sample_weight, np.zeros((len(rows), 1)))
        self._objectives = [self._objective]
        for number, estimator in enumerate(self.models or ()):
            if has_earlier_steps(estimator):
                raise ValueError(
                    f"models[{number}] is a Pipeline, whose earlier steps may differ from "
                    "estimator's. Pass the fitted last steps of Pipelines that share their earlier ones."
                )
            model = as_final_model(
                estimator, rows.inputs, y, sample_weight=weights, criterion=self.criterion
            )
            own = replace(rows, inputs=model.encode_X(rows.inputs))
            objective = self._objective.at(model).of_rows(own)
            if objective.n_outputs != self.n_outputs_ or not _same_targets(model, self.model_):
                raise ValueError(
                    f"models[{number}] has other outputs, classes or another loss than estimator; the "
                    "models of an ensemble must be trained for the same targets."
                )
            self._objectives.append(objective)

    def _restrict(self, rows: NDArray[np.int64]) -> None:
        super()._restrict(rows)
        self._objectives = [objective.restricted(rows) for objective in self._objectives]

    def _expected_seconds(self, trial: Trial) -> float:
        # the projection that all rows would have
        return trial.by_rows(self, projection=trial.prepared(self)._kind())

    def _fit(self) -> None:
        check_gradients(self._objective)
        self.output_function_ = "margin" if self.model_.loss.has_probabilities else "output"
        self._share = self._objective.rows.shares
        self._removal = Removal.of(self._objective, self.reweight_others)
        seed = int(check_random_state(self.random_state).randint(MAX_SEED))
        self.projection_ = self._kind()
        self._members = []
        for number, objective in enumerate(self._objectives):
            project = Projection(
                objective.model.n_parameters,
                self.n_components,
                self.projection_,
                seed=seed + number,
                memory_budget=self.memory_budget // 2,
            )
            self._members.append(ProjectedKernel(objective, project))
        self.damping_ = self._automatic_damping() if self.damping == "auto" else float(self.damping)
        for member in self._members:
            member.factor(self.damping_)

    def _kind(self) -> str:
        """Return the distribution of the projection: signs, unless these take long."""
        if self.projection != "auto":
            return self.projection
        p = self.model_.n_parameters
        rows = len(self._objective) * (1 if self.model_.loss.has_probabilities else self.n_outputs_)
        return "sparse" if rows * p * (self.n_components or p) > MANY_OPERATIONS else "rademacher"

    def _automatic_damping(self) -> float:
        """Return the mean over models of a part of the features' mean squared length."""
        lengths = [float(m.gram.trace()) * _damping_part(m.objective.model) for m in self._members]
        damping = float(np.mean(lengths)) / self._members[0].slopes.shape[1]
        if damping == 0:
            raise ValueError(
                "damping='auto' needs a training row whose output has a gradient; all are zero at "
                "this model. Give damping as a number."
            )
        return damping

    # ---- transform --------------------------------------------------------------------------

    def _solutions(self, test: Measured) -> list[Tensor]:
        """Return the features of test rows times the inverse kernel, (m, k) of each member."""
        solutions = []
        for member in self._members:
            inputs = member.objective.model.encode_X(test.inputs)
            own = Measured(replace(test.rows, inputs=inputs), test.measure)
            solutions.append(member.solve(own, self.damping_))
        return solutions

    def _slopes(self) -> Tensor:
        """Return the derivative of the loss in the output functions, averaged over members, (n, F)."""
        return torch.stack([member.slopes for member in self._members]).mean(0)

    def _scores(self, test: Measured) -> NDArray[np.float64]:
        slopes = self._slopes()
        product = torch.zeros(len(test), slopes.numel(), dtype=torch.float64, device=slopes.device)
        for member, solved in zip(self._members, self._solutions(test), strict=True):
            product += (solved @ member.features.flatten(0, 1).mT).double()
        product = product.unflatten(1, slopes.shape) / len(self._members)
        found = (torch.einsum("mnf,nf->mn", product, slopes) * self._share).cpu().numpy()
        return self._removal(found)

    def _self_influence(self) -> NDArray[np.float64]:
        slopes = self._slopes()
        product = torch.zeros_like(slopes)
        member_of = torch.from_numpy(self._removal.members()).to(slopes)
        sums = torch.zeros_like(member_of)
        for member, solved in zip(self._members, self._solutions(self._own), strict=True):
            product += torch.einsum("nk,nfk->nf", solved, member.features).double()
            shares = (slopes * self._share[:, None]).to(member.features)
            of_rows = torch.einsum("nf,nfk->nk", shares, member.features)
            sums += (solved @ (of_rows.mT @ member_of.to(of_rows))).double()
        scores = (product / len(self._members) * slopes).sum(1) * self._share
        return self._removal.diagonal(
            scores.cpu().numpy(), (sums / len(self._members)).cpu().numpy()
        )


def _damping_part(model: FinalModel) -> float:
    """Return the part of the gradients' mean squared length that is ``damping="auto"``."""
    if model.recipe.solved:
        return AT_MINIMUM
    return min(DAMPING_FACTOR / model.n_parameters, MOST_OF_TRACE)


def _same_targets(a: FinalModel, b: FinalModel) -> bool:
    """Return whether two models have the same classes and the same kind of outputs."""
    if a.classes is None or b.classes is None:
        return a.loss.outputs_are == b.loss.outputs_are and a.classes is b.classes
    return a.loss.outputs_are == b.loss.outputs_are and np.array_equal(a.classes, b.classes)
