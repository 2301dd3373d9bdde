"""Which method `attribute` takes: the closest to the gold standard that the time allows."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

from joblib import effective_n_jobs

from ..adapters import last_step
from ..attributors._kernel_run import kernel_bytes
from ..attributors._retraining import BaseRetraining
from ..attributors._segmented_run import bytes_per_component, components_that_fit
from ..attributors.downsampling import Downsampling
from ..attributors.exact_influence import ExactInfluence
from ..attributors.further_training import FurtherTraining
from ..attributors.grad_dot import GradDot
from ..attributors.leave_one_out import LeaveOneOut
from ..attributors.linearized_further_training import SEGMENTS, LinearizedFurtherTraining
from ..attributors.unrolled_differentiation import BLOCK, UnrolledDifferentiation
from ..base import BaseAttributor
from ..losses import SquaredError
from ..training.chains import Affine, read_chain

Make = Callable[..., BaseAttributor]
Rows = tuple[Any, Any, Any]

#: Parameters of training that an estimator with a ``fit`` of its own does not take.
_OF_NETWORKS = {"n_epochs", "optimizer", "lr", "batch_size", "optimizer_params", "criterion"}

#: Seeds where training is random.
N_SEEDS = 5

#: Fewest subsets that Downsampling trains.
N_SUBSETS = 50

#: Rows left out in the trial that is timed, and its epochs.
_TRIAL, _EPOCHS = 15, 10

#: Training passes over the rows that one test row takes to walk back an epoch, and by how much the
#: Krylov spaces of segments take longer than their operations: both for 8-128-128-1 and 927 rows.
_WALK, _KRYLOV = 7.0, 3.5


@dataclass(frozen=True)
class Candidate:
    """A method, and the seconds it is thought to take."""

    attributor: BaseAttributor
    seconds: float

    @property
    def name(self) -> str:
        once = getattr(self.attributor, "n_segments", None) == 1
        return type(self.attributor).__name__ + " (one segment)" * once


def parameters(cls: type[BaseAttributor]) -> set[str]:
    """Names of the parameters that can be set without knowing the model."""
    # a model's own fit knows how it is trained again
    return set(cls._parameter_constraints) - (
        _OF_NETWORKS if issubclass(cls, BaseRetraining) else set()
    )


def choose(
    estimator: Any, rows: Rows, n_test: int, budget: float, settings: dict[str, Any]
) -> tuple[BaseAttributor, str]:
    """The method, and why it was taken.

    Parameters
    ----------
    estimator : object
    rows : tuple
        Training rows, targets and sample weights.
    n_test : int
        Number of test rows.
    budget : float
        Seconds.
    settings : dict
        Parameters of attributors; each takes those that it has.
    """

    def make(cls: type[BaseAttributor], model: Any = estimator, **own: Any) -> BaseAttributor:
        known = {k: v for k, v in settings.items() if k in parameters(cls)}
        return cls(model, **{**known, **own})

    try:
        probe = make(GradDot).fit(*rows)
    except (TypeError, ValueError) as error:
        if isinstance(error, ValueError) and not _is_refitted(estimator):
            raise
        found = _refits(make, estimator, rows, budget)
        why = f"{type(estimator).__name__} has no gradients, or none with these parameters"
    else:
        if _is_linear(probe):
            found, why = _linear(make, rows, probe), "a linear model is quickly fitted again"
        else:
            found, why = _network(make, rows, probe, n_test), "training further is the definition"
    taken = next((c for c in found if c.seconds <= budget), found[-1])
    reason = f"{taken.name}, about {taken.seconds:.2g} s"
    if taken is found[0]:
        return taken.attributor, f"{reason}: {why}."
    slower = ", ".join(f"{c.name} {c.seconds:.2g} s" for c in found[: found.index(taken)])
    return taken.attributor, f"{reason}; more than the budget of {budget:g} s: {slower}."


def _is_refitted(estimator: Any) -> bool:
    """Whether it is an estimator with a ``fit`` of its own, and no network in it."""
    last = last_step(estimator)
    return hasattr(last, "fit") and not hasattr(last, "module_")


def _is_linear(probe: BaseAttributor) -> bool:
    """Whether the model is one linear layer, trained by a ``fit`` of its own."""
    links = None if probe.model_.recipe.optimizer else read_chain(probe.model_)
    one = links is not None and len(links) == 1 and isinstance(links[0], Affine)
    return one and _is_refitted(probe.estimator_)


def _seconds(attributor: BaseAttributor, rows: Rows) -> float:
    start = time.perf_counter()
    attributor.fit(*rows)
    return time.perf_counter() - start


def _refits(make: Make, estimator: Any, rows: Rows, budget: float) -> list[Candidate]:
    """Methods that fit an estimator without gradients again."""
    names: dict[str, Any] = getattr(estimator, "get_params", dict)()
    n_seeds = N_SEEDS if any(name.endswith("random_state") for name in names) else 1
    one = _seconds(make(LeaveOneOut, leave_out=[0], n_seeds=1), rows) / 2  # with and without
    n_subsets = max(N_SUBSETS, int(budget / one))
    return [
        Candidate(make(LeaveOneOut, n_seeds=n_seeds), one * (len(rows[1]) + 1) * n_seeds),
        Candidate(make(Downsampling, n_subsets=n_subsets), one * n_subsets),
    ]


def _linear(make: Make, rows: Rows, probe: BaseAttributor) -> list[Candidate]:
    """Methods for a linear model."""
    one = _seconds(make(LeaveOneOut, leave_out=[0], n_seeds=1), rows) / 2
    newton = probe.n_outputs_ == 1 and probe.model_.recipe.solved
    step = make(ExactInfluence, probe.estimator_, newton_step=newton)
    return [
        Candidate(make(LeaveOneOut, n_seeds=1), one * (len(rows[1]) + 1)),
        Candidate(step, 1.0),
    ]


def _network(make: Make, rows: Rows, probe: BaseAttributor, n_test: int) -> list[Candidate]:
    """Further training and what approximates it, by falling agreement."""
    net = probe.estimator_

    def of(cls: type[BaseAttributor], **own: Any) -> BaseAttributor:
        return make(cls, net, **own)

    gold = of(FurtherTraining, n_seeds=N_SEEDS)
    n_epochs, n_jobs = gold.n_epochs, effective_n_jobs(gold.n_jobs)
    n, p, n_outputs = len(probe._X), probe.model_.n_parameters, probe.n_outputs_
    some = range(min(_TRIAL, n - 1))
    _, trial = (
        _seconds(of(FurtherTraining, leave_out=some, n_seeds=1, n_epochs=e, verbose=0), rows)
        for e in (1, _EPOCHS)  # the first warms up
    )
    once = trial / (_EPOCHS * (len(some) + 1))  # one model, one epoch
    by_segments = of(LinearizedFurtherTraining)
    each = bytes_per_component(probe.model_, n, n_outputs, SEGMENTS, 1)
    k = components_that_fit(probe.model_, each, by_segments.memory_budget)
    krylov = SEGMENTS * _KRYLOV * (2 * k + 10 * k * k / (6 * n))  # in passes of 6 n p operations
    by_kernel = of(LinearizedFurtherTraining, n_segments=1, solver="kernel")
    n_steps = n_epochs * ceil(n / (by_kernel.batch_size or probe.model_.recipe.batch_size or n))
    modes = n * n_outputs
    squared = isinstance(probe.model_.loss, SquaredError)
    recursion = (10 * modes if squared else 2 * n_test * n_steps) * modes**2 / (6 * n * p)
    found = [
        Candidate(gold, once * (n + 1) * N_SEEDS * n_epochs / n_jobs),
        Candidate(
            of(UnrolledDifferentiation),
            once * _WALK * n_test * n_epochs / min(n_jobs, ceil(n_test / BLOCK)),
        ),
        Candidate(by_segments, once * (krylov + n_epochs) / min(n_jobs, SEGMENTS)),
    ]
    if probe.model_.l2 is None and kernel_bytes(n, n_outputs, 1, 1) <= by_kernel.memory_budget:
        found.append(Candidate(by_kernel, once * (recursion + n_epochs)))
    return [*found, Candidate(probe, 0.0)]
