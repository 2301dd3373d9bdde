"""Candidates of `attribute`, the most faithful first, and the seconds they are thought to take."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np
import torch
from joblib import cpu_count, effective_n_jobs

from .._arrays import n_rows
from ..adapters import (
    fits_itself,
    has_earlier_steps,
    is_random,
    part_to_refit,
    trees_of,
)
from ..attributors.cg_influence import CGInfluence
from ..attributors.downsampling import Downsampling
from ..attributors.ekfac_influence import EKFACInfluence
from ..attributors.exact_influence import ExactInfluence
from ..attributors.further_training import FurtherTraining
from ..attributors.grad_dot import GradDot
from ..attributors.leaf_influence import LeafInfluence
from ..attributors.leaf_kernel import LeafKernel
from ..attributors.leave_one_out import LeaveOneOut
from ..attributors.linearized_further_training import LinearizedFurtherTraining
from ..attributors.once_linearized_further_training import OnceLinearizedFurtherTraining
from ..attributors.refined import RefinedAttributor
from ..attributors.source import SOURCE
from ..attributors.trex import TREX
from ..attributors.unrolled_differentiation import UnrolledDifferentiation
from ..base import BaseAttributor
from ..batch_statistics import statistics_in
from ..evaluation.failures import FAILURES
from ..training.chains import Affine, read_chain
from ..training.refits import UNIT_SIZE
from ..training.run import Run, resolve_run
from ..training.workers import Deadline
from ..trials import Trial
from .check import Check
from .ladder import Candidate, Ladder

Make = Callable[..., BaseAttributor]
Rows = tuple[Any, Any, Any]
TestRows = tuple[Any, Any]

#: Seeds where training is random, and where rows are left out in expectation.
N_SEEDS, N_SEEDS_IN_EXPECTATION = 5, 2

#: Boosted models that are grown anew, and the fewest that are worth it.
N_GROWN, FEWEST_GROWN = 16, 4

#: Why trees are not fitted again without each row.
_OF_TREES = (
    "trees that are fitted again without one row differ by splits that move at random, and derivatives with "
    "the splits held predict better what happens without rows"
)

#: Fewest subsets that Downsampling is asked for, and most.
N_SUBSETS, MAX_SUBSETS = 50, 2000

#: Seconds of a fit that is timed again after it has warmed up, and of a portion of short fits.
_WARM = 0.1

#: Seconds where no time is left.
_AT_ONCE = 1e-9


def ladder_for(
    estimator: Any, rows: Rows, test_rows: TestRows, budget: float, settings: dict[str, Any]
) -> Ladder:
    """Return the methods for a model, the most faithful first, with the seconds they are thought to take.

    The trial that measures the methods is part of the budget, which is in seconds. Methods that can
    end before they are done are told how much of it is left for training. Each method takes those of
    the `settings` that it has as parameters. What is wrong with rows or settings is raised here.
    """
    clock = Deadline(budget)

    def make(cls: type[BaseAttributor], model: Any = estimator, **own: Any) -> BaseAttributor:
        names = settings.keys() & cls._known_parameters()
        made = cls(model, **{name: settings[name] for name in names} | own)
        made._validate_params()
        return made

    if trees_of(estimator) is not None:
        try:
            return _trees(make, estimator, rows, test_rows, clock, budget)
        except TypeError:  # an option with which its training cannot be followed
            pass
    try:
        probe = make(GradDot).fit(*rows)
    except (TypeError, ValueError) as error:
        if isinstance(error, ValueError) and not fits_itself(estimator):
            raise
        # raises what is wrong with the rows
        refits = _Refits(make, estimator, rows, test_rows, clock)
        found, known = [*refits.leave_one_out(), refits.downsampling()], refits.known
        why = f"{type(estimator).__name__} has no gradients, or none for these parameters or rows"
        if len(found) == 1:
            why += ", and models without each row would take more than memory_budget"
        return Ladder(found, why, clock, budget, known)
    probe._test(*test_rows)
    if _is_linear(probe):
        refits = _Refits(make, probe.estimator_, rows, test_rows, clock)
        found, known = [*refits.leave_one_out(), _influence(make, probe)], refits.known
        return Ladder(found, "a linear model is quickly fitted again", clock, budget, known)
    found = _network(make, probe, rows, test_rows, clock)
    gold = found[0]

    def whole() -> float:
        return gold.seconds if gold.is_tried else inf

    check = Check(gold.attributor, whole, rows, test_rows, clock)
    return Ladder(found, "training further is the definition", clock, budget, check=check)


def _trees(
    make: Make, estimator: Any, rows: Rows, test_rows: TestRows, clock: Deadline, budget: float
) -> Ladder:
    """Return methods of trees: of several boosted models grown anew where there is time, or of the final one.

    Behind them comes fitting again without each row.
    """
    own = make(LeafInfluence if trees_of(estimator) == "boosted" else TREX)
    begun = clock.spent
    own.fit(*rows)
    own._test(*test_rows)
    own.transform(*test_rows)
    seconds = clock.spent - begun
    model = own.estimator_
    found = [Candidate.known(own, seconds)]
    if isinstance(own, TREX):
        found.append(Candidate.known(make(LeafKernel, model), seconds))
    elif fits_itself(model):
        begun = clock.spent
        try:
            two = make(LeafInfluence, model, n_models=2, share=1).fit(*rows)
        except FAILURES:  # it cannot be grown again, and the final one is there
            return Ladder(found, _OF_TREES, clock, budget)
        each = seconds + (clock.spent - begun) / two.n_models
        n_models = int(min(N_GROWN, clock.left / each))
        if n_models >= FEWEST_GROWN:
            several = make(LeafInfluence, model, n_models=n_models)
            found.insert(0, Candidate.known(several, n_models * each))
    return Ladder(found, _OF_TREES, clock, budget)


def _is_linear(probe: BaseAttributor) -> bool:
    """Return whether the model is one linear layer, trained by a ``fit`` of its own."""
    links = None if probe.model_.recipe.optimizer else read_chain(probe.model_)
    one = links is not None and len(links) == 1 and isinstance(links[0], Affine)
    return one and fits_itself(probe.estimator_)


class _Refits:
    """Methods that fit an estimator again, timed by doing so once."""

    def __init__(
        self, make: Make, estimator: Any, rows: Rows, test_rows: TestRows, clock: Deadline
    ):
        self._make, self._rows, self._clock = make, rows, clock
        self._method = make(LeaveOneOut, estimator, n_seeds=1)
        X, y, weights = rows
        trial = self._method.trainer(X, y, *test_rows, weights)
        one = trial.timed()
        if one.training < _WARM:  # the first has warmed up
            one = trial.timed()
        workers = effective_n_jobs(self._method.n_jobs)
        # workers do not run beside each other where one keeps several cores busy
        beside = min(workers, max(1.0, cpu_count() / max(one.cores, 1.0))) if workers > 1 else 1.0
        self.training = one.training / beside
        self._each = self.training + one.measuring  # which is done one after another
        self._chunk = int(np.clip(_WARM / one.training, 1, UNIT_SIZE))
        self._n_models = self._method.memory_budget // one.n_bytes
        self.known: list[str] = []

    def _made(self, cls: type[BaseAttributor], **own: Any) -> BaseAttributor:
        """Return a method that knows how long to train, and in which portions."""
        own["max_seconds"] = max(self._clock.left * self.training / self._each, _AT_ONCE)
        return self._make(cls, self._method.estimator_, chunk_size=self._chunk, **own)

    def leave_one_out(self) -> list[Candidate]:
        """Return leave-one-out with as many seeds as the model needs, if memory can hold the models."""
        n_models = n_rows(self._rows[0]) + 1
        seconds = self._each * n_models
        if n_models > self._n_models:
            return []
        if seconds > self._clock.left:
            one = self._make(LeaveOneOut, self._method.estimator_, n_seeds=1)
            return [Candidate.known(one, seconds)]
        X, y, weights = self._method._seen_rows
        n_seeds = 1
        if is_random(part_to_refit(self._method.estimator_, "all"), X.values, y, weights):
            n_seeds = int(min(N_SEEDS, self._n_models // n_models))
        else:
            self.known.append("exact: training is deterministic")
        return [Candidate.known(self._made(LeaveOneOut, n_seeds=n_seeds), seconds * n_seeds)]

    def downsampling(self) -> Candidate:
        """Return as many subsets as there is time for, each with a seed of its own."""
        affordable = self._clock.left / self._each
        n_subsets = int(np.clip(affordable, N_SUBSETS, min(MAX_SUBSETS, self._n_models)))
        method = self._made(Downsampling, n_subsets=n_subsets, n_seeds=1)
        seconds = self._each * min(n_subsets, max(affordable, 4))
        return Candidate.known(method, seconds)


def _influence(make: Make, probe: BaseAttributor) -> Candidate:
    """Return one step of Newton's method without each row."""
    model = probe.estimator_
    newton = probe.n_outputs_ == 1 and probe.model_.recipe.solved
    note = " The earlier steps of the Pipeline stay as they are." * has_earlier_steps(model)
    return Candidate.known(make(ExactInfluence, model, newton_step=newton), 1.0, note)


def _network(
    make: Make, probe: BaseAttributor, rows: Rows, test_rows: TestRows, clock: Deadline
) -> list[Candidate]:
    """Return further training and what approximates it, by falling agreement."""
    gold = make(FurtherTraining, probe.estimator_, n_seeds=N_SEEDS)
    _check_steps(gold, probe)
    if _in_expectation(gold, probe):
        gold.set_params(n_seeds=N_SEEDS_IN_EXPECTATION, leave_out_mode="expected")
    n_jobs = min(effective_n_jobs(gold.n_jobs), cpu_count())
    n, n_test = len(probe._objective), n_rows(test_rows[0])
    trial = Trial(*rows, test_rows, n, n_test, lambda: clock.left, n_jobs)

    def of(cls: type[BaseAttributor], **own: Any) -> Candidate:
        method = make(cls, probe.estimator_, **own)
        return Candidate(method, lambda: method._expected_seconds(trial))

    def training() -> float:
        seconds = gold._expected_seconds(trial)
        part = gold.n_epochs / (gold.n_epochs + n_test / (3 * n))  # the rest is measuring
        gold.set_params(max_seconds=max(clock.left * part, _AT_ONCE))
        return seconds

    first = Candidate(gold, training)
    segments = of(LinearizedFurtherTraining)

    def linearized() -> float:
        """Return its seconds, if these are fewer than those of one seed of further training."""
        seconds = segments.estimate()
        one_seed = first.seconds / gold.n_seeds
        if first.is_tried and seconds > one_seed:
            raise ValueError(
                f"it would take {seconds:.2g} s, and one seed of further training {one_seed:.2g} s"
            )
        return seconds

    unrolled = of(UnrolledDifferentiation)

    return [
        first,
        _refined(make, first, unrolled, probe),
        unrolled,
        Candidate(segments.attributor, linearized),
        of(OnceLinearizedFurtherTraining, solver="kernel"),
        *(of(SOURCE, **known) for known in _one_segment(gold, probe)),
        of(CGInfluence),
        of(EKFACInfluence),
        Candidate(probe, lambda: probe._expected_seconds(trial)),
    ]


def _refined(make: Make, first: Candidate, unrolled: Candidate, probe: BaseAttributor) -> Candidate:
    """Return the derivative of further training, corrected by training without the rows that matter most."""
    whole = first.attributor
    few = make(
        FurtherTraining, None, n_seeds=N_SEEDS_IN_EXPECTATION, leave_out_mode=whole.leave_out_mode
    )
    own = make(UnrolledDifferentiation, None)
    method = make(RefinedAttributor, probe.estimator_, approximation=own, gold_standard=few)

    def seconds() -> float:
        part = method.trained_rows * few.n_seeds / whole.n_seeds
        return first.seconds * part + unrolled.seconds

    return Candidate(method, seconds, is_compared=True)


def _continued(gold: FurtherTraining, probe: BaseAttributor) -> Run | None:
    """Return the run of further training, or None where its optimiser is not known."""
    chosen = gold.optimizer, gold.lr, gold.optimizer_params, gold.batch_size
    try:
        return resolve_run(probe._objective, probe.model_.recipe.continued, *chosen)
    except ValueError:
        return None


def _in_expectation(gold: FurtherTraining, probe: BaseAttributor) -> bool:
    """Return whether rows are better left out of every batch in expectation than masked in their own.

    They are with SGD; second moments would keep a row's squares, and statistics of batches the row.
    """
    run = _continued(gold, probe)
    plain = run is not None and run.optimizer.step_of is torch.optim.SGD
    return plain and not statistics_in(probe.model_.module)


def _one_segment(gold: FurtherTraining, probe: BaseAttributor) -> list[dict[str, Any]]:
    """Return parameters with which SOURCE speaks of further training, if its optimiser is the model's own."""
    own = probe.model_.recipe.optimizer
    run = _continued(gold, probe)
    if run is None or callable(run.optimizer.lr):
        return []
    if run.optimizer.cls is not (own or torch.optim.SGD):
        return []
    lr, batch_size = run.optimizer.lr, run.batch_size
    return [{"trajectory": "final", "lr": lr, "batch_size": batch_size, "reweight_others": True}]


def _check_steps(gold: FurtherTraining, probe: BaseAttributor) -> None:
    """Raise what is wrong with an optimiser, learning rate or batch size that was asked for."""
    asked = gold.optimizer, gold.lr, gold.optimizer_params, gold.batch_size
    if any(one is not None for one in asked):
        resolve_run(probe._objective, probe.model_.recipe.continued, *asked)
