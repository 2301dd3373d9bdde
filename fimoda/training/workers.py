"""Work units over processes: progress, resume, one thread a worker."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from math import inf
from typing import Any, TypeVar

import torch
from joblib import Parallel, delayed, effective_n_jobs
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController
from tqdm.auto import tqdm

from .store import StoredArray, UnitStore

#: What a unit keeps, in memory or on disk; ``np.asarray`` gives the array.
Result = NDArray[Any] | StoredArray


@dataclass(frozen=True)
class Workers:
    """Processes for jobs of joblib, with a progress bar if asked to be verbose."""

    n_jobs: int | None = None
    verbose: int = 0
    description: str = ""

    @property
    def do(self) -> Parallel:
        """Returns the results of jobs, in their order."""
        return Parallel(n_jobs=self.n_jobs)

    def shown(self, jobs: list[Any]) -> Any:
        """Return the jobs, with a bar that shows how many have begun."""
        return tqdm(jobs, desc=self.description, unit="run", disable=not self.verbose)


#: A piece of work with a `key`, which names its file and is the same in every process.
AnyUnit = TypeVar("AnyUnit", bound=Any)


class Deadline:
    """An end of the time there is: so many seconds from now on, or none."""

    def __init__(self, seconds: float | None):
        self._seconds = seconds
        self._begin = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._begin

    @property
    def left(self) -> float:
        """Seconds that are left, none below zero."""
        return inf if self._seconds is None else max(self._seconds - self.spent, 0.0)

    @property
    def passed(self) -> bool:
        """True if the time is over."""
        return self.left == 0

    def is_within(self, seconds: float) -> bool:
        """Return whether what takes so many seconds would end in time."""
        return seconds <= self.left


_TURN = threading.RLock()  # again, where an estimator that is fitted trains networks itself


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread inside; it has as many as before outside.

    Threads of one process (joblib's threading backend, dask workers with several threads) take
    turns: torch's number of threads, its random generator and its choice of library for products
    belong to the process, and the result would depend on who changes them when.
    """
    with _TURN:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@lru_cache(maxsize=1)
def _thread_pools(n_modules: int) -> ThreadpoolController:
    """Return the thread pools of the libraries that are loaded, looked for again after an import."""
    return ThreadpoolController()


def one_thread_in_libraries() -> AbstractContextManager[Any]:
    """Let the thread pools of BLAS and OpenMP have one thread inside."""
    return _thread_pools(len(sys.modules)).limit(limits=1)


def run_units(
    work: Callable[[AnyUnit], NDArray[Any]],
    units: Sequence[AnyUnit],
    *,
    store: UnitStore | None = None,
    n_jobs: int | None = None,
    verbose: int = 0,
    description: str = "further training",
    max_seconds: float | None = None,
    n_required: int = 0,
) -> Iterator[tuple[AnyUnit, Result]]:
    """Yield every unit with its result, in no fixed order; finished ones come from `store`.

    Runs `work` under joblib's current backend with `n_jobs` workers of one thread each. What a unit
    computes does not depend on the worker, so results are the same for every `n_jobs`. With
    `max_seconds` no unit but the first `n_required` begins after so many seconds: those that are
    left are not yielded, and which these are depends on the machine.
    """
    deadline = Deadline(max_seconds)
    pending: list[AnyUnit] = []
    with tqdm(total=len(units), desc=description, unit="stack", disable=not verbose) as progress:
        for unit in units:
            done = None if store is None else store.get(unit.key, partial(work, unit))
            if done is None:
                pending.append(unit)
            else:
                progress.update()
                yield unit, done
        needed = {unit.key for unit in units[:n_required]}
        begun = (
            (number, unit)
            for number, unit in enumerate(pending)
            if unit.key in needed or not deadline.passed
        )
        for number, result in _parallel(work, begun, len(pending), n_jobs):
            unit = pending[number]
            progress.update()
            yield (
                unit,
                result if store is None else store.put(unit.key, result, partial(work, unit)),
            )


def _parallel(
    work: Callable[[AnyUnit], NDArray[Any]],
    units: Iterator[tuple[int, AnyUnit]],
    n_units: int,
    n_jobs: int | None,
) -> Iterator[tuple[int, NDArray[Any]]]:
    if effective_n_jobs(n_jobs) == 1 or n_units <= 1:
        for number, unit in units:
            yield number, work(unit)
        return
    jobs = (delayed(_numbered)(work, number, unit) for number, unit in units)
    try:
        parallel = Parallel(n_jobs=n_jobs, return_as="generator_unordered", pre_dispatch="n_jobs")
        results = parallel(jobs)
    except ValueError:  # a backend that returns everything at the end
        results = Parallel(n_jobs=n_jobs)(jobs)
    yield from results


def _numbered(
    work: Callable[[AnyUnit], NDArray[Any]], number: int, unit: AnyUnit
) -> tuple[int, NDArray[Any]]:
    return number, work(unit)
