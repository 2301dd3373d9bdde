"""Methods by falling agreement: the first that fits the time is tried, then the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, TypeVar

from ..base import BaseAttributor
from ..evaluation.failures import FAILURES, told
from ..training.workers import Deadline

Found = TypeVar("Found")


@dataclass(frozen=True)
class Candidate:
    """A method, how to find the seconds that it would take, and what is to be said of it."""

    attributor: BaseAttributor
    estimate: Callable[[], float]
    note: str = ""

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
    """The method that gave the scores, why it was taken, and what is known about its scores before."""

    attributor: BaseAttributor
    reason: str
    known: list[str]


@dataclass
class Ladder:
    """Methods for one model and its rows, the most faithful first, and the time there is.

    `why` is said of the first, and `known` of its scores. `failed` tells by name why a method gave no scores.
    """

    candidates: list[Candidate]
    why: str
    clock: Deadline
    budget: float
    known: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def climb(self, scores: Callable[[BaseAttributor], Found]) -> tuple[Step, Found]:
        """Return the first method that fits the time and gives scores, with them.

        Where none fits, the last is tried first. The error of the last one tried is raised if all fail.
        """
        left = list(self.candidates)
        while True:
            taken = self._next(left)
            reason = self._reason(taken)
            try:
                found = scores(taken.attributor)
            except FAILURES as error:
                left.remove(taken)
                if not left:
                    for name, why in self.failed.items():
                        error.add_note(f"{name} gave no scores either: {why}")
                    raise
                self.failed[taken.name] = told(error)
                continue
            known = self.known if taken is self.candidates[0] else []
            return Step(taken.attributor, reason, known), found

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
        slower = [c for c in self.candidates[:number] if c.name not in self.failed]
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
            reason += "." if self.failed else f": {self.why}."
        failed = [f" {name} gave no scores: {why}" for name, why in self.failed.items()]
        return reason + taken.note + "".join(failed)
