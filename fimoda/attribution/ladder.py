"""Methods by falling agreement: the first that fits the time is tried, then the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..base import BaseAttributor
from ..evaluation.failures import FAILURES, told
from ..training.workers import Deadline
from .check import N_ROWS, Check

#: Agreement with further training of a few rows from which on no other method is tried.
GOOD = 0.8

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Candidate:
    """A method, how to find the seconds that it would take, and what is to be said of it.

    `is_compared` says that the method itself compares its scores with training.
    """

    attributor: BaseAttributor
    estimate: Callable[[], float]
    note: str = ""
    is_compared: bool = False

    @property
    def name(self) -> str:
        return type(self.attributor).__name__

    @classmethod
    def known(cls, attributor: BaseAttributor, seconds: float, note: str = "") -> Candidate:
        """Return a method whose seconds are known."""
        one = cls(attributor, lambda: seconds, note)
        vars(one)["seconds"] = seconds
        return one

    @property
    def is_tried(self) -> bool:
        """True if the seconds are known."""
        return "seconds" in vars(self)

    @cached_property
    def seconds(self) -> float:
        """Seconds that it is thought to take, found once."""
        return self.estimate()


class Step(NamedTuple):
    """The method that gave the scores, why it was taken, and what is known about its scores.

    `known` is so before they are there; `checked` was found with them.
    """

    attributor: BaseAttributor
    reason: str
    known: list[str]
    checked: list[str]


@dataclass
class Ladder:
    """Methods for one model and its rows, the most faithful first, and the time there is.

    `why` is said of the first, and `known` of its scores; those of others are compared by `check`. `failed`
    tells by name why a method gave no scores, and `behind` how much less than the one taken it agreed.
    """

    candidates: list[Candidate]
    why: str
    clock: Deadline
    budget: float
    known: list[str] = field(default_factory=list)
    check: Check | None = None
    failed: dict[str, str] = field(default_factory=dict)
    behind: dict[str, float] = field(default_factory=dict)

    def climb(self, scores: Callable[[BaseAttributor], Scores]) -> tuple[Step, Scores]:
        """Return the first method that fits the time and gives scores, with them.

        Where none fits, the last is tried first. The error of the last one tried is raised if all fail. If
        the method agrees badly with further training of a few rows, those behind it are compared as well.
        """
        left = list(self.candidates)
        taken, found = self._first(left, scores)
        if taken is self.candidates[0]:
            return Step(taken.attributor, self._reason(taken), self.known, []), found
        agreement = self._agreement(taken, found)
        if self.check is None or agreement is None:
            return Step(taken.attributor, self._reason(taken), [], []), found
        while agreement < GOOD and (other := self._fitting(left)) is not None:
            try:
                others = scores(other.attributor)
            except FAILURES as error:
                self.failed[other.name] = told(error)
                continue
            measured = self.check.agreement(others)
            if measured is None or measured <= agreement:
                self.behind[other.name] = measured or 0.0
                continue
            self.behind[taken.name] = agreement
            taken, found, agreement = other, others, measured
        checked = f"agrees {agreement:.2f} with further training of {N_ROWS} rows (correlation)"
        return Step(taken.attributor, self._reason(taken), [], [checked]), found

    def _agreement(self, taken: Candidate, found: Scores) -> float | None:
        """Return how well scores agree with training of a few rows, where that is still to be asked."""
        if self.check is None or taken.is_compared:
            return None
        return self.check.agreement(found)

    def _first(
        self, left: list[Candidate], scores: Callable[[BaseAttributor], Scores]
    ) -> tuple[Candidate, Scores]:
        """Take the first method that gives scores out of those that are left."""
        while True:
            taken = self._next(left)
            left.remove(taken)
            try:
                return taken, scores(taken.attributor)
            except FAILURES as error:
                if not left:
                    for name, why in self.failed.items():
                        error.add_note(f"{name} gave no scores either: {why}")
                    raise
                self.failed[taken.name] = told(error)

    def _fitting(self, left: list[Candidate]) -> Candidate | None:
        """Take the first that is thought to end in time out of those that are left, if any."""
        while left:
            one = left.pop(0)
            try:
                if self.clock.is_within(one.seconds):
                    return one
            except FAILURES as error:
                self.failed[one.name] = told(error)
        return None

    def _next(self, left: list[Candidate]) -> Candidate:
        """Return the first that is thought to end in time, else the last; what cannot be tried has failed."""
        for one in left[:-1]:
            if self.clock.passed:
                break
            try:
                fits = self.clock.is_within(one.seconds)
            except FAILURES as error:
                left.remove(one)
                self.failed[one.name] = told(error)
                return self._next(left)
            if fits:
                return one
        return left[-1]

    def _reason(self, taken: Candidate) -> str:
        number = self.candidates.index(taken)
        known = self.failed.keys() | self.behind.keys()
        slower = [c for c in self.candidates[:number] if c.name not in known]
        reason = taken.name + (f", about {taken.seconds:.2g} s" if taken.is_tried else "")
        if slower:
            tried = [f"{c.name} {c.seconds:.2g} s" for c in slower if c.is_tried]
            others = [c.name for c in slower if not c.is_tried]
            if tried:
                reason += f"; more than the budget of {self.budget:g} s: {', '.join(tried)}"
            if others:
                reason += f"; not tried, since {self.budget:g} s were over: {', '.join(others)}"
            reason += "."
        else:
            reason += "." if known else f": {self.why}."
        failed = [f" {name} gave no scores: {why}" for name, why in self.failed.items()]
        behind = [f"{name} {agreement:.2f}" for name, agreement in self.behind.items()]
        if behind:
            failed.append(
                f" Further training of {N_ROWS} rows agrees less with {', '.join(behind)}."
            )
        return reason + taken.note + "".join(failed)
