"""Every attributor on every network of `networks`: it works, it refuses, or something breaks."""

from __future__ import annotations

import functools
import importlib
import inspect
import linecache
import pkgutil
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networks
import numpy as np
from numpy.typing import NDArray

import fimoda
import fimoda.attributors
from fimoda import BaseAttributor, FurtherTraining, GradDot, UnrolledDifferentiation
from fimoda.attributors.families.trained_again import BaseTrainedAgain
from fimoda.views import TreeView

#: Errors with which the package refuses.
REFUSALS = (ValueError, TypeError, NotImplementedError, MemoryError, FloatingPointError)

#: Parameters that keep a cell short, for attributors that have them.
SMALL = {
    "n_epochs": 1,
    "n_seeds": 1,
    "n_subsets": 8,
    "n_samples": 20,
    "n_components": 16,
    "regression": "ridge",
    "n_bootstrap": 2,
    "compile": False,
    "attributor": GradDot(),
    "method": UnrolledDifferentiation(n_epochs=1, n_seeds=1, random_state=0),
    "gold_standard": FurtherTraining(n_epochs=1, n_seeds=2, compile=False, random_state=0),
    "random_state": 0,
}


def find_attributors(of_trees: bool = False) -> list[type[BaseAttributor]]:
    """Return the public concrete subclasses of `BaseAttributor`: methods of trees, or the others."""
    found = set()
    for info in pkgutil.walk_packages(fimoda.attributors.__path__, "fimoda.attributors."):
        for _, cls in inspect.getmembers(importlib.import_module(info.name), inspect.isclass):
            if (
                issubclass(cls, BaseAttributor)
                and not inspect.isabstract(cls)
                and not cls.__name__.startswith(("_", "Base"))
                and (cls._sees is TreeView) == of_trees
            ):
                found.add(cls)
    return sorted(found, key=lambda cls: cls.__name__)


ATTRIBUTORS = {cls.__name__: cls for cls in find_attributors()}


def make(name: str, model: Any, **params: Any) -> BaseAttributor:
    """Return an attributor with small parameters."""
    cls = ATTRIBUTORS[name]
    known = set(inspect.signature(cls).parameters)
    if issubclass(cls, BaseTrainedAgain):
        known.discard("n_epochs")  # a model with a fit of its own refuses it
    small = {k: v for k, v in SMALL.items() if k in known}
    if "sampling" in known:  # a permutation is many trainings
        small["n_samples"] = 1
    return cls(model, **small, **params)


@functools.cache
def trained(network: str, dropout: bool = True) -> networks.Case:
    """Return a network with its rows, trained once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return networks.case(network, dropout=dropout)


def scores_of(attributor: str, case: networks.Case) -> NDArray[np.float64]:
    """Return the scores of an attributor on a trained network."""
    made = make(attributor, case.model, **case.params)
    return made.fit(case.X, case.y).transform(case.X_test, case.y_test)


@dataclass
class Cell:
    """What came of an attributor on a network."""

    network: str
    attributor: str
    #: "works", "refused" or "raw"
    outcome: str
    seconds: float
    #: different warnings
    warnings: tuple[str, ...] = ()
    #: first line of the error, and the deepest line of the package on the way to it
    message: str = ""
    place: str = ""
    scores: NDArray[np.float64] | None = None


def run_cell(network: str, attributor: str, case: networks.Case | None = None) -> Cell:
    """Return what comes of an attributor on a network, by default one trained on the CPU."""
    case = trained(network) if case is None else case
    start = time.process_time()
    outcome, message, place, scores = "works", "", "", None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            scores = scores_of(attributor, case)
            if problem := _wrong(scores):
                outcome, message = "raw", problem
        except Exception as error:
            outcome = "refused" if _is_refusal(error) else "raw"
            message, place = _in_one_line(error), _place(error)
    told = {
        f"{w.category.__name__}: {w.message}".split("\n")[0]
        for w in caught
        if not issubclass(w.category, DeprecationWarning)
    }
    seconds = time.process_time() - start
    return Cell(network, attributor, outcome, seconds, tuple(sorted(told)), message, place, scores)


def _wrong(scores: NDArray[np.float64]) -> str:
    """Return what is wrong with scores, if anything."""
    if scores.shape != (networks.N_TEST, networks.N):
        return f"scores of shape {scores.shape}"
    if not np.isfinite(scores).all():
        return "scores that are not finite"
    if not np.abs(scores).max() > 0:
        return "scores that are all zero"
    return ""


def _is_refusal(error: Exception) -> bool:
    """Return True for an error that the package raises by a statement of its own."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    raised = linecache.getline(last.filename, last.lineno or 0).strip().startswith("raise ")
    return isinstance(error, REFUSALS) and raised and _of_package(last)


def _of_package(frame: traceback.FrameSummary) -> bool:
    return Path(fimoda.__file__).parent in Path(frame.filename).parents


def _in_one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"


def _place(error: Exception) -> str:
    """Return the deepest line of the package on the way to an error."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _of_package(f)]
    if not frames:
        return ""
    inside = Path(frames[-1].filename).relative_to(Path(fimoda.__file__).parent)
    return f"{inside}:{frames[-1].lineno} {frames[-1].name}"
