"""The utility of a set of rows: what test rows measure after training on it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..measured import Measured
from ..measurements import values
from ..training.retraining import Retraining
from ..training.subset_outcomes import assemble_subsets


@dataclass(eq=False)
class Utility:
    """Measure test rows after training on sets of the training rows.

    The empty set has the constant `outputs` (C,), and so have sets that an estimator cannot be fitted on
    or that lack a class which its outputs need, if its training `may_fail`; they are listed in `failed`.
    What is measured of all test rows `as_one` is given once, (M, 1). A utility is `sign` times it.
    """

    retraining: Retraining
    measured: Measured
    outputs: Tensor
    n_rows: int
    may_fail: bool
    sign: float = -1.0
    as_one: bool = False
    failed: list[tuple[int, int, str]] = field(default_factory=list)
    n_trained: int = 0

    def __post_init__(self) -> None:
        outputs = self.outputs.to(self.measured.targets.device).expand(len(self.measured), -1)
        measured = values(self.measured.measure, outputs, self.measured.targets)
        self._empty = measured.cpu().numpy()
        self._full: NDArray[np.float64] | None = None

    def __call__(self, sets: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the utilities (M, n_test) of sets (M, n)."""
        packed = np.packbits(sets, axis=1)
        _, first, place = np.unique(packed, axis=0, return_index=True, return_inverse=True)
        different, sizes = sets[first], sets[first].sum(1)
        found = np.tile(self._empty, (len(different), 1))
        full = sizes == self.n_rows
        if full.any():
            found[full] = self._of_all()
        trained = (sizes > 0) & ~full
        if trained.any():
            found[trained] = self._trained(different[trained])
        found = found[place.reshape(-1)]
        return self.sign * (found[:, :1] if self.as_one else found)

    def _of_all(self) -> NDArray[np.float64]:
        """Return the utility (n_test,) of all rows."""
        if self._full is None:
            everything = np.ones((1, self.n_rows), dtype=bool)
            found, failed = self._measure(everything)
            if not np.isfinite(found).all():
                raise FloatingPointError(
                    f"the model cannot be trained on all rows: {failed[0][2]}."
                )
            self._full = found[0]
        return self._full

    def _trained(self, sets: NDArray[np.bool_]) -> NDArray[np.float64]:
        self._of_all()  # what always fails is no empty set
        found, failed = self._measure(sets)
        before = self.n_trained - len(sets)
        self.failed += [(before + number, seed, reason) for number, seed, reason in failed]
        missing = ~np.isfinite(found).all(1)
        if missing.any() and not self.may_fail:
            raise FloatingPointError(
                f"{missing.sum()} of {len(sets)} sets of rows have no utility. The reason of the first: "
                f"{failed[0][2]}."
            )
        found[missing] = self._empty
        return found

    def _measure(
        self, sets: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], list[tuple[int, int, str]]]:
        """Return the mean measurements (M, n_test) over seeds, and what failed."""
        seeds = self.retraining.seeds
        outcomes = assemble_subsets(sets, seeds, self.retraining.train(sets, self.measured))
        self.n_trained += len(sets)
        return outcomes.mean, outcomes.failed
