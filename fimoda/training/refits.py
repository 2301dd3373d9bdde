"""Estimators that are not trained in stacks: fitted again on subsets of the rows."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from joblib import wrap_non_picklable_objects
from numpy.typing import NDArray

from .._identity import identity_of
from ..adapters import (
    RefittableModel,
    draws,
    fit_anew,
    is_network,
    last_step,
    own_training,
    part_to_refit,
    refit_outputs,
    takes_pairs,
    trained_in_stacks,
    unfitted,
)
from ..measured import Measured
from ..measurements import values
from ..rows import RawRows
from .subset_outcomes import as_reading
from .subsets import SubsetUnit, cut_units
from .workers import one_thread, one_thread_in_libraries

#: Refits in a work unit.
UNIT_SIZE = 16

#: What estimators raise when rows do not suit them (LinAlgError is a ValueError, an overflow an
#: ArithmeticError); all else, a TimeoutError or a wrong call of ``fit`` among it, ends the run.
FIT_ERRORS = (ValueError, ArithmeticError, LookupError, RuntimeError)

#: Parameters to leave alone where a model is trained again by a ``fit`` of its own.
OF_NETWORKS = (
    "n_epochs",
    "optimizer",
    "lr",
    "batch_size",
    "optimizer_params",
    "init",
    "criterion",
)


@dataclass(frozen=True)
class Refits:
    """Retraining of a scikit-learn estimator by its own ``fit``.

    Clones of the estimator are fitted to rows as it takes them, `chunk_size` in a work unit. What
    `train` gives are pickles, and stays in memory: on disk there are measurements only.
    """

    may_be_stored: ClassVar[bool] = False
    variant: ClassVar[str] = ""

    estimator: Any
    model: RefittableModel
    X: RawRows
    y: NDArray[Any]
    sample_weight: NDArray[np.float64] | None
    chunk_size: int | None = None

    @property
    def bytes_per_model(self) -> int:
        """Bytes that `train` keeps of a model, by the size of the final one."""
        return len(pickled(self.estimator))

    @cached_property
    def is_random(self) -> bool:
        """True if fits may differ from seed to seed."""
        with one_thread(), one_thread_in_libraries():
            return draws(self.estimator, self.X.values, self.y, self.sample_weight)

    def decided(self, *asked: Any) -> Refits:
        """Return the same: there is one way to fit."""
        return self

    def identity(self) -> dict[str, Any]:
        """Return what the run is, for the directory that keeps it."""
        weights = np.ones(len(self.X)) if self.sample_weight is None else self.sample_weight
        return {
            "estimator": f"{type(self.estimator).__name__} {identity_of(self.estimator, fitted=False)}",
            "X": identity_of(self.X.values),
            "y": identity_of(self.y),
            "sample_weight": identity_of(weights),
        }

    def units(self, subsets: NDArray[np.bool_], seeds: Sequence[int]) -> list[SubsetUnit]:
        """Cut seeds x subsets into units of work."""
        same = np.zeros(len(subsets))
        return cut_units(subsets, seeds, same, self.chunk_size or UNIT_SIZE)

    def train(self, unit: SubsetUnit) -> NDArray[np.uint8]:
        """Return the fitted estimators, or the reason why there is none, pickled."""
        with one_thread(), one_thread_in_libraries():
            fresh = unfitted(self.estimator, unit.seed)
            fitted = [(self._fitted(fresh, mask, unit.seed), mask) for mask in unit.masks]
        return np.frombuffer(pickled(fitted), np.uint8)

    def reasons(self, kept: NDArray[np.uint8]) -> list[str]:
        """Return the reason of the failure of each model that `train` kept, or an empty text."""
        return [one if isinstance(one, str) else "" for one, _ in pickle.loads(kept.tobytes())]

    def _fitted(self, fresh: Any, mask: NDArray[Any], seed: int) -> Any:
        weights = None if self.sample_weight is None else self.sample_weight[mask]
        try:
            rows = self._columns(self.X[mask], mask).values
            return fit_anew(fresh, rows, self.y[mask], weights, seed)
        except FIT_ERRORS as error:
            if self.model.classes is not None and len(np.unique(self.y[mask])) == 1:
                return f"its rows are all of class {self.y[mask][0]}"
            return f"{type(error).__name__}: {error}"

    def _columns(self, X: RawRows, mask: NDArray[np.bool_]) -> RawRows:
        """Return rows without the columns of the rows left out, if there is a column for each row."""
        return X.columns(mask) if takes_pairs(self.estimator) else X

    def measure(self, kept: NDArray[np.uint8], measurer: Measured) -> NDArray[Any]:
        """Return the measurements, or the reason of the failure, of each model that `train` kept."""
        fitted = pickle.loads(kept.tobytes())
        measured = np.full((len(fitted), len(measurer)), np.nan)
        reasons = [""] * len(fitted)
        with one_thread(), one_thread_in_libraries():
            for k, (estimator, mask) in enumerate(fitted):
                if isinstance(estimator, str):
                    reasons[k] = estimator
                    continue
                try:
                    rows = self._columns(measurer.inputs, mask)
                    outputs = refit_outputs(self.model, estimator, rows, self.y)
                except FIT_ERRORS as error:
                    reasons[k] = str(error)
                    continue
                measured[k] = values(measurer.measure, outputs, measurer.targets).cpu().numpy()
        return as_reading(measured, reasons)


def pickled(estimators: Any) -> bytes:
    """Return the pickle of estimators, which may have functions without a name in them."""
    return pickle.dumps(wrap_non_picklable_objects(estimators, keep_wrapper=False))


def settings_given(method: Any, names: Sequence[str]) -> list[str]:
    """Return which parameters are given that tell how a network is to be trained: these, and its engine."""
    given = [name for name in names if getattr(method, name) is not None]
    if method.compile is True:
        given.append("compile")
    if method.engine != "auto":
        given.append("engine")
    return given


def refuse_settings_of_networks(method: Any, estimator: Any, refit: str) -> None:
    """Raise ValueError if a parameter is given that the estimator's own ``fit`` would not see."""
    if not (given := settings_given(method, OF_NETWORKS)):
        return
    model = type(part_to_refit(estimator, refit)).__name__
    instead = "Set it up as an estimator instead."
    if setting := own_training(last_step(estimator)):
        instead = f"A network with {setting} is trained by nothing else."
    elif is_network(estimator):
        instead = (
            "Set refit='last' to train its network alone, behind its earlier steps as they are."
        )
    raise ValueError(
        f"{', '.join(given)} must be left alone for {model}, which is trained again by its own "
        f"fit and not by steps of an optimiser. {instead}"
    )


def training_anew(estimator: Any, refit: str) -> str:
    """Return which part of an estimator is trained again, in words."""
    process = "training anew"
    if estimator is None or trained_in_stacks(estimator, refit):
        return process
    setting = own_training(last_step(estimator))
    process += f" by its own fit ({setting})" if setting else ""
    if refit == "last":
        alone = last_step(estimator) is estimator
        return (
            process if alone else f"{process}: its last step, {type(last_step(estimator)).__name__}"
        )
    part = estimator if refit == "search" else part_to_refit(estimator, refit)
    whole = "" if last_step(part) is part else f": the whole {type(part).__name__}"
    return f"{process}{whole}" + ", with its search" * (refit == "search")
