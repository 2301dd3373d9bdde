"""TracIn: inner products of gradients at checkpoints of the training run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from .._validation import MAX_SEED, POSITIVE_INTEGER, StrOptions, check_random_state
from ..curvature.projection import KINDS, Projection
from ..curvature.recorded_steps import gain
from ..measured import Measured
from ..measurements import Measurement
from ..model import DEFAULT_BUDGET
from ..objective import Objective
from ..row_gradients import RowGradients
from ..trajectory import Trajectory, model_at
from .families.along_the_run import BaseAlongTheRun, StageRows


class TracIn(BaseAlongTheRun):
    r"""Sum over checkpoints of the products of the test row's and the training row's gradient.

    .. math:: S_{z,i} = \sum_k \eta_k K_k \, \frac{w_i}{\sum_j w_j} \,
              \nabla_\theta m_z(\theta_k)^\top \nabla_\theta \ell_i(\theta_k)

    :math:`\eta_k K_k` is the sum of the learning rates of the :math:`K_k` steps since the checkpoint
    before, divided by one minus the momentum. It is the first-order effect of removing row i from
    these steps on the measurement *at that time*, added up over training (:math:`w_i = 1` unless
    weights are given, so the factor is 1/n). What later steps make of it is left out. For runs of
    other optimisers than SGD the scores rank rows, their size means nothing.

    Parameters
    ----------
    estimator : object, default=None
        Fitted model; an unfitted scikit-learn or skorch estimator is cloned and fitted. None is a
        small MLP.
    trajectory : Trajectory, "final" or None, default=None
        The training run; by default the one that the net's `TrajectoryRecorder` has recorded, and
        an estimator that is fitted here and has none stands for itself. "final" lets the final
        model stand for all of it, which makes this `GradDot`.
    stage : int, str or None, default=None
        Attribute to the rows of one stage only: its number or name.
    n_components : int, default=None
        Number of components to which gradients are projected at random, the same at all
        checkpoints; those of the training rows are then kept. None leaves out the projection.
    projection : {"rademacher", "gaussian", "sparse", "product"}, default="sparse"
        Distribution of the projection, see `TRAK`.
    n_epochs : float, default=None
        With "final": length of the training; the network's own by default.
    lr : float, default=None
        With "final": learning rate; the model's own by default, 0.01 if it has none.
    batch_size : int, default=None
        With "final": batch size; the model's own by default, 128 if it has none.
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
    memory_budget : int, default=512 MiB
        Bytes for gradients; projected ones come on top. Scores are the same for every value.
    random_state : int, RandomState or None, default=None
        Used to fit an unfitted `estimator` and to draw the projection.

    Attributes
    ----------
    estimator_ : object
        The final model.
    model_ : FinalModel
        Its frozen functional view.
    trajectory_ : Trajectory
        The training run.
    train_indices_ : ndarray of shape (n_columns,)
        Training row of each column.

    Raises
    ------
    ValueError
        If there are no checkpoints, or they are of another architecture or other rows.

    References
    ----------
    Pruthi et al., "Estimating Training Data Influence by Tracing Gradient Descent", NeurIPS 2020,
    arXiv 2002.08484 (TracInCP).

    Examples
    --------
    >>> import numpy as np, torch
    >>> from fimoda import TracIn, Trajectory
    >>> X = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
    >>> nets = [torch.nn.Linear(3, 1) for _ in range(2)]
    >>> run = Trajectory.from_checkpoints([net.state_dict() for net in nets], [50, 100], lrs=0.1)
    >>> tracin = TracIn(nets[-1], trajectory=run, criterion=torch.nn.MSELoss()).fit(X, X[:, :1])
    >>> tracin.transform(X[:4], X[:4, :1]).shape
    (4, 20)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseAlongTheRun._parameter_constraints,
        "n_components": [POSITIVE_INTEGER, None],
        "projection": [StrOptions(set(KINDS))],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        trajectory: Trajectory | str | None = None,
        stage: int | str | None = None,
        n_components: int | None = None,
        projection: str = "sparse",
        n_epochs: float | None = None,
        lr: float | None = None,
        batch_size: int | None = None,
        reweight_others: bool = False,
        measurement: Measurement = "loss",
        criterion: nn.Module | None = None,
        chunk_size: int | None = None,
        memory_budget: int = DEFAULT_BUDGET,
        random_state: Any = None,
    ):
        super().__init__(
            estimator, measurement=measurement, criterion=criterion, random_state=random_state
        )
        self.trajectory = trajectory
        self.stage = stage
        self.n_components = n_components
        self.projection = projection
        self.n_epochs = n_epochs
        self.lr = lr
        self.batch_size = batch_size
        self.reweight_others = reweight_others
        self.chunk_size = chunk_size
        self.memory_budget = memory_budget

    def _fit(self) -> None:
        super()._fit()
        self._project: Projection | None = None
        self._features: list[list[RowGradients]] = []
        if self.n_components is None:
            return
        self._project = Projection(
            self.model_.n_parameters,
            self.n_components,
            self.projection,
            seed=int(check_random_state(self.random_state).randint(MAX_SEED)),
            memory_budget=self.memory_budget,
        )
        for at, parts in self._checkpoints():
            trained = [self._mapped(self._project, at, s.objective.losses) for _, s in parts]
            self._features.append([RowGradients.of(features) for features in trained])

    def _checkpoints(self) -> Iterator[tuple[Objective, list[tuple[float, StageRows]]]]:
        """Yield the objective at each checkpoint that stands for steps, and the stages of these with the
        sums of their rates."""
        run, before = self.trajectory_, 0
        total = gain(run)
        for k, step in enumerate(run.steps):
            stop = run.n_steps if k == len(run) - 1 else step
            parts = []
            for s in self._attributed:
                inside = slice(max(before, run.stages[s].start), min(stop, run.stages[s].stop))
                rate = total * float(run.learning_rates[inside].sum())
                if inside.start < inside.stop and rate > 0:
                    parts.append((rate, self._stages[s]))
            before = stop
            if parts:
                yield self._chunked(self._objective.at(model_at(run, k, self.model_))), parts

    def _scores(self, test: Measured) -> NDArray[np.float64]:
        scores = np.zeros((len(test), len(self._objective)))
        for number, (at, parts) in enumerate(self._checkpoints()):
            if self._project is not None:
                features = RowGradients.of(self._mapped(self._project, at, test))
            for place, (rate, stage) in enumerate(parts):
                if self._project is not None:
                    found = features.inner(self._features[number][place]).cpu().numpy()
                else:
                    found = at.pairs(test, stage.objective.losses, self._inner, self._scaled)
                scores[:, stage.rows] += stage.removal(rate * stage.shares * found)
        return self._columns(scores)

    def _relabelled(
        self, test: Measured, rows: NDArray[np.int64], targets: NDArray[Any]
    ) -> NDArray[np.float64]:
        known, changed = self._with_targets(rows, targets)
        ratio, found = self._weight_ratio(known, changed), np.zeros((len(test), len(rows)))
        for at, parts in self._checkpoints():
            moved = self._products(at, test, known) - ratio * self._products(at, test, changed)
            found += sum(rate * self._shares_in(stage, rows) for rate, stage in parts) * moved
        return found

    def _products(self, at: Objective, test: Measured, rows: Measured) -> NDArray[np.float64]:
        """Return the products (n_test, k) of the gradients of test rows with those of training rows."""
        if self._project is None:
            return at.pairs(test, rows, self._inner, self._scaled)
        a, b = (RowGradients.of(self._mapped(self._project, at, one)) for one in (test, rows))
        return a.inner(b).cpu().numpy()

    def _mapped(self, project: Projection, at: Objective, measured: Measured) -> Tensor:
        return at.mapped(lambda gradients: project(self._scaled(gradients)), measured)

    def _inner(self, scaled: RowGradients, b: RowGradients) -> Tensor:
        return scaled.inner(self._scaled(b))

    def _own_products(self) -> NDArray[np.float64]:
        def inner(a: RowGradients, b: RowGradients) -> Tensor:
            a, b = self._scaled(a), self._scaled(b)
            if self._project is not None:
                a, b = (RowGradients.of(self._project(gradients)) for gradients in (a, b))
            return a.inner_rowwise(b)

        scores = np.zeros(len(self._objective))
        for at, parts in self._checkpoints():
            for rate, stage in parts:
                own = Measured(stage.objective.rows, self._measure)
                found = at.rowwise(own, stage.objective.losses, inner)
                scores[stage.rows] += rate * stage.shares * found
        return self._columns(scores)
