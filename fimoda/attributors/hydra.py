"""Hydra, its fast version: gradients along the whole run, seen from its end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ..curvature.recorded_steps import gain
from ..measured import Measured
from ..measurements import Measurement
from ..model import DEFAULT_BUDGET
from ..objective import Objective
from ..trajectory import Trajectory, model_at
from .families.along_the_run import BaseAlongTheRun, StageRows


class Hydra(BaseAlongTheRun):
    r"""Sum over all steps of the products of the final test gradient with the row's gradient then.

    .. math:: S_{z,i} = \sum_t \eta_t \, 1[i \in B_t] \, \frac{w_i}{\sum_{j \in B_t} w_j} \,
              \nabla_\theta m_z(\theta_T)^\top \nabla_\theta \ell_i(\theta_t)

    with the rates divided by one minus the momentum. It is the derivative of the run in the row's
    weight without its curvature: what later steps make of a change is left out, and so is the share
    that the others of the batch take over. (:math:`w_i = 1` unless weights are given, so the factor
    is one over the batch size.) For runs of other optimisers than SGD the scores rank rows, their
    size means nothing.

    It needs a checkpoint before every step and the rows of every batch: a `TrajectoryRecorder` with
    ``checkpoints="all", batches=True``, or `train_ensemble` with ``checkpoints="all"``.

    Parameters
    ----------
    estimator : object, default=None
        Fitted model; an unfitted scikit-learn or skorch estimator is cloned and fitted. None is a
        small MLP.
    trajectory : Trajectory, "final" or None, default=None
        The training run; by default the one that the net's `TrajectoryRecorder` has recorded, and
        an estimator that is fitted here and has none stands for itself. "final" lets the final
        model stand for every step and its batches be what they are on average, which makes this
        `GradDot`.
    stage : int, str or None, default=None
        Attribute to the rows of one stage only: its number or name.
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
        Test rows whose gradients are held at a time; from `memory_budget` by default. The run is
        gone through once for each.
    memory_budget : int, default=512 MiB
        Bytes for gradients of test rows. Scores are the same for every value.
    random_state : int, RandomState or None, default=None
        Used to fit an unfitted `estimator`.

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
        If batches, or the checkpoint before a step, were not recorded.

    References
    ----------
    Chen et al., "HyDRA: Hypergradient Data Relevance Analysis for Interpreting Deep Neural
    Networks", AAAI 2021, arXiv 2102.02515.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from skorch import NeuralNetRegressor
    >>> from fimoda import Hydra, TrajectoryRecorder
    >>> X = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
    >>> recorder = TrajectoryRecorder(checkpoints="all", batches=True)
    >>> net = NeuralNetRegressor(
    ...     torch.nn.Linear(3, 1),
    ...     max_epochs=4,
    ...     batch_size=5,
    ...     verbose=0,
    ...     train_split=None,
    ...     callbacks=[recorder],
    ... ).fit(X, X[:, :1])
    >>> Hydra(net).fit(X, X[:, :1]).transform(X[:4], X[:4, :1]).shape
    (4, 20)
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        trajectory: Trajectory | str | None = None,
        stage: int | str | None = None,
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
        self.n_epochs = n_epochs
        self.lr = lr
        self.batch_size = batch_size
        self.reweight_others = reweight_others
        self.chunk_size = chunk_size
        self.memory_budget = memory_budget

    def _fit(self) -> None:
        super()._fit()
        run = self.trajectory_
        if self._alone:
            return
        if run.batches is None or len(run.batches) != run.n_steps:
            raise ValueError(
                "Hydra needs the rows of every batch, which the trajectory does not hold. Record with "
                "TrajectoryRecorder(checkpoints='all', batches=True), or pass batches to "
                "Trajectory.from_checkpoints."
            )
        spans = [range(run.stages[s].start, run.stages[s].stop) for s in self._attributed]
        missing = sorted({t for span in spans for t in span} - set(run.steps))
        if missing:
            raise ValueError(
                f"Hydra needs a checkpoint before every step; {len(missing)} are missing, the first "
                f"that of step {missing[0]}. Record with checkpoints='all', or use TracIn or SOURCE."
            )

        for s in self._attributed:
            used = run.batches[run.stages[s].start : run.stages[s].stop]
            highest = max(int(batch.max(initial=-1)) for batch in used)
            if highest >= len(self._stages[s].rows):
                raise ValueError(
                    f"trajectory has row {highest} in a batch of {run.stages[s].name!r}, which has "
                    f"{len(self._stages[s].rows)} rows. Number the rows of batches within their stage."
                )

    def _steps(self) -> Iterator[tuple[Objective, StageRows, float]]:
        """Yield the objective at each step, on all rows, with the rows of the step and its rate."""
        run = self.trajectory_
        total = gain(run)
        if self._alone or run.batches is None:
            yield self._objective, self._stages[0], total * float(run.learning_rates.sum())
            return
        number = {step: k for k, step in enumerate(run.steps)}
        for s in self._attributed:
            for t in range(run.stages[s].start, run.stages[s].stop):
                batch = self._trained_on(self._stages[s].rows[run.batches[t]])
                objective = self._objective.at(model_at(run, number[t], self.model_))
                yield objective, batch, total * float(run.learning_rates[t])

    def _test_gradients(self, test: Measured) -> Iterator[tuple[slice, Tensor]]:
        """Yield the gradients (m, p) of test rows, times what parameters have of the learning rate."""
        vector = 4 * self.model_.n_parameters * self.model_.theta.element_size()
        chunk = self.chunk_size or int(min(max(self.memory_budget // vector, 1), len(test)))
        for at, gradients in self._objective.row_gradients(test, chunk):
            dense = gradients.dense()
            yield at, dense if self._roots is None else dense * self._roots**2

    def _scores(self, test: Measured) -> NDArray[np.float64]:
        scores = np.zeros((len(test), len(self._objective)))
        for at, V in self._test_gradients(test):
            for objective, batch, rate in self._steps():
                train = objective.differentiate(batch.objective.losses)
                found = train.apply(V).mT.double().cpu().numpy() * (rate * batch.shares)
                np.add.at(scores[at].T, batch.rows, batch.removal(found).T)
        return self._columns(scores)

    def _relabelled(
        self, test: Measured, rows: NDArray[np.int64], targets: NDArray[Any]
    ) -> NDArray[np.float64]:
        known, changed = self._with_targets(rows, targets)
        ratio, found = self._weight_ratio(known, changed), np.zeros((len(test), len(rows)))
        for at, V in self._test_gradients(test):
            for objective, batch, rate in self._steps():
                shares = self._shares_in(batch, rows)
                inside = np.flatnonzero(shares)
                if len(inside):
                    before, after = (
                        objective.differentiate(one[inside]).apply(V).mT.double().cpu().numpy()
                        for one in (known, changed)
                    )
                    found[at, inside] += rate * shares[inside] * (before - ratio[inside] * after)
        return found

    def _own_products(self) -> NDArray[np.float64]:
        scores = np.zeros(len(self._objective))
        for objective, batch, rate in self._steps():
            own = self._objective.differentiate(self._own[batch.rows])
            train = objective.differentiate(batch.objective.losses)
            found = self._scaled(own).inner_rowwise(self._scaled(train)).cpu().numpy()
            np.add.at(scores, batch.rows, found * (rate * batch.shares))
        return self._columns(scores)
