"""Methods by falling agreement: the first that fits the time is tried, then the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from ..base import BaseAttributor
from ..evaluation.failures import FAILURES, told
from ..training.workers import Deadline

Found = TypeVar("Found")


@dataclass(frozen=True)
class Candidate:
    """A method, the seconds it is thought to take, and what is to be said of it."""

    attributor: BaseAttributor
    seconds: float
    note: str = ""

    @property
    def name(self) -> str:
        return type(self.attributor).__name__


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
        return next((one for one in left if self.clock.is_within(one.seconds)), left[-1])

    def _reason(self, taken: Candidate) -> str:
        reason = f"{taken.name}, about {taken.seconds:.2g} s"
        before = self.candidates[: self.candidates.index(taken)]
        slower = [f"{c.name} {c.seconds:.2g} s" for c in before if c.name not in self.failed]
        if slower:
            reason += f"; more than the budget of {self.budget:g} s: {', '.join(slower)}."
        else:
            reason += "." if self.failed else f": {self.why}."
        failed = [f" {name} gave no scores: {why}" for name, why in self.failed.items()]
        return reason + taken.note + "".join(failed)
