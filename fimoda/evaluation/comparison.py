"""Methods beside a small gold standard on the user's own model, and which of them to trust."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from joblib import cpu_count, effective_n_jobs
from numpy.typing import ArrayLike, NDArray
from torch import nn

from .._arrays import n_rows
from .._validation import check_horizons, is_integer
from ..adapters import trees_of
from ..attributors.further_training_curve import FurtherTrainingCurve, further_training_curve
from ..attributors.train_on_subsets import train_on_subsets
from ..base import BaseAttributor
from ..measurements import Measurement
from ..training.batches import LeaveOutMode
from ..training.optimizers import LearningRate
from ..training.outcomes import standard_error
from ..training.random_subsets import random_subsets
from ..training.subset_outcomes import SubsetOutcomes
from ..training.workers import Deadline
from ..trials import Trial
from ._candidates import default_methods, expected_seconds, overrun, planned_methods
from ._correlation import centred, cosine
from ._tables import table
from .agreement import AgreementCurve, agreement_curve
from .failures import FAILURES, told
from .lds import LinearDatamodelingScore, linear_datamodeling_score

#: How a method is recommended, for the table.
_RULE = "the fastest that agrees as well as the best, within two standard errors"


@dataclass(frozen=True, repr=False)
class MethodComparison:
    """Agreement of methods with further training, and what they cost.

    Forests are not trained further: methods agree with fitting them again on random halves of the rows.

    Attributes
    ----------
    agreement : AgreementCurve or LinearDatamodelingScore
        Of all methods that ran; the latter for forests.
    seconds : dict of str to float
        Of ``fit`` and of the scores of all training rows for the test rows.
    recommended : str
        The fastest of the methods that agree with further training at the last horizon as well as
        the best one does (within two standard errors over test rows).
    one_seed : ndarray of shape (n_epochs,)
        Agreement (cosine) of one seed of further training with the mean of the others: how much of
        a single run is noise. NaN for one seed. For forests the `noise_ceiling` (1,).
    curve : FurtherTrainingCurve or SubsetOutcomes
        The gold standard; the latter for forests.
    gold_seconds : float
        What it took.
    skipped : dict of str to str
        Methods that did not run, and why.
    unit : {"epoch", "round"}
        What horizons are counted in: rounds of boosting, or epochs.
    """

    agreement: AgreementCurve | LinearDatamodelingScore
    seconds: dict[str, float]
    recommended: str
    one_seed: NDArray[np.float64]
    curve: FurtherTrainingCurve | SubsetOutcomes
    gold_seconds: float
    skipped: dict[str, str] = field(default_factory=dict)
    unit: str = "epoch"

    def to_frame(self) -> Any:
        """Return one row per method: agreement (cosine) at each horizon, seconds, and why it did not run.

        For forests the agreement is the rank correlation over subsets (`linear_datamodeling_score`).
        A method that did not run has NaN, and one that did has no reason (an empty text).
        """
        import pandas as pd

        frame = pd.DataFrame(
            self.agreement.mean(),
            index=self.agreement.methods,
            columns=self._columns,
        ).reindex([*self.agreement.methods, *self.skipped])
        names = frame.index.rename("method")
        seconds = [self.seconds.get(name, np.nan) for name in names]
        reasons = [self.skipped.get(name, "") for name in names]
        return frame.set_index(names).assign(seconds=seconds, not_run=reasons)

    @property
    def _columns(self) -> list[str]:
        if isinstance(self.agreement, AgreementCurve):
            return [f"{e:g} {self.unit}{'' if e == 1 else 's'}" for e in self.agreement.epochs]
        return [f"{ratio:.0%} of the rows" for ratio in self.agreement.ratios]

    def __repr__(self) -> str:
        head, noise = ["cosine after", *self._columns, "seconds"], "one seed of further training"
        if not isinstance(self.agreement, AgreementCurve):
            head[0], noise = "rank correlation, fitted on", "ceiling of its noise"
        names = [*self.agreement.methods, noise]
        cost = [*(self.seconds[name] for name in self.agreement.methods), self.gold_seconds]
        values = [*self.agreement.mean(), self.one_seed]
        cells = (
            [*(f"{value:.2f}" for value in row), f"{spent:.1f}"]
            for row, spent in zip(values, cost, strict=True)
        )
        skipped = [f"{name}: not run, {why}" for name, why in self.skipped.items()]
        chosen = f"recommended: {self.recommended}, {_RULE}"
        return "\n".join([table(head, names, cells), *skipped, chosen])


def compare_methods(
    estimator: Any,
    X: Any,
    y: Any,
    X_test: Any,
    y_test: Any = None,
    *,
    methods: Mapping[str, BaseAttributor] | None = None,
    budget: float = 120.0,
    epochs: Any = (1, 10),
    n_seeds: int = 5,
    leave_out: Any = 50,
    leave_out_mode: LeaveOutMode = "mask",
    optimizer: str | type[torch.optim.Optimizer] | None = None,
    lr: LearningRate | None = None,
    batch_size: int | None = None,
    optimizer_params: dict[str, Any] | None = None,
    measurement: Measurement = "loss",
    criterion: nn.Module | None = None,
    random_state: Any = None,
    n_jobs: int | None = None,
    sample_weight: ArrayLike | None = None,
    verbose: int = 0,
) -> MethodComparison:
    """Run methods beside a small gold standard, and recommend one.

    Further training leaves some rows out; every method scores all rows and is compared with it on
    those. Methods are tried on some of the rows first; what would overrun the budget is left out, and
    time goes to those that usually agree best before it goes to others.

    Boosted trees are trained further in rounds. Forests, whose further trees do not change those that there
    are, are fitted again on random halves of the rows, and methods are judged by
    `linear_datamodeling_score`.

    Parameters
    ----------
    estimator : object
        Fitted model.
    X, y : array-like of shape (n_train, ...)
        The rows it was trained on, and their targets.
    X_test, y_test : array-like of shape (n_test, ...)
        Test rows, as in ``transform``.
    methods : dict of str to attributor, default=None
        What to compare, in this order; by default Grad-Dot, Grad-Cos, DataInf, TRAK, EK-FAC, exact
        influence, further training linearised once, unrolled and linearised in segments; for boosted trees
        TREX, BoostIn, LeafInfluence and LeafRefit, which also look ahead by as many rounds; for
        forests AXIL, LeafKernel and TREX.
    budget : float, default=120
        Seconds that methods may take, trials among them. One's own methods run in the order given as long
        as they fit.
    epochs : float or sequence of float, default=(1, 10)
        Horizons; forests have none.
    n_seeds : int or list of int, default=5
        As in `FurtherTraining`.
    leave_out : int or list of int, default=50
        Rows that further training leaves out, or their number (at most all). For forests the number of
        halves.
    leave_out_mode : {"mask", "drop", "expected"}, default="mask"
        As in `FurtherTraining`; "expected" needs the fewest seeds with SGD.
    optimizer, lr, batch_size, optimizer_params : default=None
        As in `FurtherTraining`.
    measurement : str or callable, default="loss"
        As in `FurtherTraining`.
    criterion : nn.Module, default=None
        Training criterion of a bare ``nn.Module``.
    random_state : int, RandomState or None, default=None
        As in `FurtherTraining`.
    n_jobs : int, default=None
        joblib workers.
    sample_weight : array-like of shape (n_train,), default=None
        Weights of the rows in the training objective, if the model was trained with them.
    verbose : int, default=0
        Show progress if positive.

    Returns
    -------
    MethodComparison
        Printed, it is a table.

    Raises
    ------
    ValueError
        If no method ran.

    Warns
    -----
    UserWarning
        If a solver has fitted the model: further training is another question than fitting it again.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from fimoda import GradDot, compare_methods
    >>> X, y = load_diabetes(return_X_y=True)
    >>> ridge = Ridge().fit(X, y)
    >>> methods = {"Grad-Dot": GradDot(ridge)}
    >>> settings = {"methods": methods, "leave_out": 20, "random_state": 0}
    >>> compared = compare_methods(ridge, X, y, X[:9], y[:9], **settings)
    >>> compared.recommended
    'Grad-Dot'
    """
    horizons = check_horizons(epochs)
    steps: dict[str, Any] = {"optimizer": optimizer, "lr": lr, "batch_size": batch_size}
    steps |= {"optimizer_params": optimizer_params, "n_jobs": n_jobs}
    common: dict[str, Any] = {"measurement": measurement, "criterion": criterion}
    common["random_state"] = random_state
    left_out = min(leave_out, n_rows(X)) if is_integer(leave_out) else leave_out
    gold: dict[str, Any] = {"n_seeds": n_seeds, "leave_out": left_out, "verbose": verbose}
    gold |= {"leave_out_mode": leave_out_mode, "sample_weight": sample_weight}
    refits = trees_of(estimator) == "apart"
    start = time.perf_counter()
    curve: FurtherTrainingCurve | SubsetOutcomes
    if refits:
        names = "n_seeds", "verbose", "sample_weight"
        of_halves = {name: gold[name] for name in names} | steps | common
        halves = _halves(leave_out, n_rows(X), random_state)
        curve = train_on_subsets(estimator, X, y, halves, X_test, y_test, **of_halves)
    else:
        gold |= {"epochs": horizons, "correction": "mean"} | steps | common
        curve = further_training_curve(estimator, X, y, X_test, y_test, **gold)
    gold_seconds = time.perf_counter() - start
    clock = Deadline(budget)
    of_rows = (X, y, sample_weight, (X_test, y_test), n_rows(X), n_rows(X_test))
    trial = Trial(*of_rows, lambda: clock.left, min(effective_n_jobs(n_jobs), cpu_count()))
    own = methods is not None
    if methods is None:
        run = {**steps, "n_epochs": horizons, "n_seeds": curve.seeds[:1]}
        methods = default_methods(estimator, common, run)
    expected, skipped = expected_seconds(methods, trial)
    # one's own methods in the order given, ours the best first
    planned, more = planned_methods(
        expected, clock.left, list(expected) if own else list(expected)[::-1]
    )
    skipped |= {name: overrun(expected[name], budget) for name in more}
    scores, seconds = {}, {}
    for place, name in enumerate(planned):
        later = sum(expected[other] for other in planned[place + 1 :])
        if expected[name] > clock.left or (not own and expected[name] > clock.left - later):
            skipped[name] = overrun(expected[name], budget)
            continue
        start = time.perf_counter()
        try:
            fitted = methods[name].fit(X, y, sample_weight=sample_weight)
            scores[name] = (
                fitted.transform(X_test, y_test)
                if refits
                else fitted._at_horizons(X_test, y_test, horizons)
            )
        except FAILURES as error:
            skipped[name] = told(error)
            continue
        seconds[name] = time.perf_counter() - start
    skipped = {name: skipped[name] for name in methods if name in skipped}
    if not scores:
        raise ValueError(f"methods: none of them ran; {skipped}.")
    if not refits and any(methods[name].model_.recipe.solved for name in scores):
        warnings.warn(
            "compare_methods: this model was fitted by a solver, and is compared with further training "
            "by gradient steps all the same. For what fitting it again without a row would give take "
            "LeaveOneOut, or ExactInfluence, whatever its agreement here.",
            UserWarning,
            stacklevel=2,
        )
    agreement: AgreementCurve | LinearDatamodelingScore
    if isinstance(curve, FurtherTrainingCurve):
        agreement = agreement_curve(scores, curve)
        last, one = agreement.values["cosine"][:, -1], _one_seed(curve)
    else:
        agreement = linear_datamodeling_score(scores, curve, random_state=random_state)
        last, one = agreement.values[:, -1], agreement.ceiling.mean(-1)
    best = _recommended(agreement.methods, last, seconds)
    unit = "round" if trees_of(estimator) == "boosted" else "epoch"
    return MethodComparison(agreement, seconds, best, one, curve, gold_seconds, skipped, unit)


def _halves(n_subsets: Any, n: int, random_state: Any) -> NDArray[np.bool_]:
    """Return random halves of the rows (n_subsets, n)."""
    if not is_integer(n_subsets):
        raise ValueError(
            "leave_out must be a number for a forest, of random halves of the rows that it is fitted again "
            f"on; got {n_subsets!r}. LeaveOneOut(forest, leave_out=...) leaves out single rows."
        )
    return random_subsets(n, n_subsets, random_state=random_state)


def _recommended(methods: list[str], last: NDArray[np.float64], seconds: dict[str, float]) -> str:
    """Return the fastest of the methods whose agreement (n_methods, n_test) is about the best."""
    best = last[last.mean(1).argmax()]
    missing = best - last
    good = missing.mean(1) <= 2 * np.nan_to_num(standard_error(missing))
    names = [name for name, fine in zip(methods, good, strict=True) if fine]
    return min(names, key=lambda name: seconds[name])


def _one_seed(curve: FurtherTrainingCurve) -> NDArray[np.float64]:
    """Return the mean cosine of each seed's scores with the mean of the others, (n_epochs,)."""
    per_seed = curve.per_seed
    n_others = per_seed.shape[-1] - 1
    if not n_others:
        return np.full(len(curve.epochs), np.nan)
    others = (per_seed.sum(-1, keepdims=True) - per_seed) / n_others
    mine, rest = (np.moveaxis(one, -1, 0) for one in (per_seed, others))
    return cosine(mine, centred(rest)).mean((0, 2))
