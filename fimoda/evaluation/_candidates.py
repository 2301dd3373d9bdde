"""The methods to compare on a model, and which of them fit a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..adapters import trees_of
from ..attributors.axil import AXIL
from ..attributors.boost_in import BoostIn
from ..attributors.data_inf import DataInf
from ..attributors.ekfac_influence import EKFACInfluence
from ..attributors.exact_influence import ExactInfluence
from ..attributors.grad_cos import GradCos
from ..attributors.grad_dot import GradDot
from ..attributors.leaf_influence import LeafInfluence
from ..attributors.leaf_kernel import LeafKernel
from ..attributors.leaf_refit import LeafRefit
from ..attributors.linearized_further_training import LinearizedFurtherTraining
from ..attributors.once_linearized_further_training import OnceLinearizedFurtherTraining
from ..attributors.trak import TRAK
from ..attributors.trex import TREX
from ..attributors.unrolled_differentiation import UnrolledDifferentiation
from ..base import BaseAttributor
from ..trials import Trial
from .failures import FAILURES, told


def expected_seconds(
    methods: Mapping[str, BaseAttributor], trial: Trial
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the seconds that methods are thought to take, and why some cannot be tried."""
    expected, failed = {}, {}
    for name, method in methods.items():
        try:
            seconds = method._expected_seconds(trial)
        except FAILURES as error:
            failed[name] = told(error)
            continue
        expected[name] = 0.0 if np.isnan(seconds) else seconds  # unknown ones begin
    return expected, failed


def planned_methods(
    expected: dict[str, float], left: float, by_rank: list[str]
) -> tuple[list[str], list[str]]:
    """Return the methods that fit the time, in their order, and the others; the first ones have priority."""
    planned: set[str] = set()
    for name in by_rank:
        if expected[name] <= left:
            planned.add(name)
            left -= expected[name]
    return [n for n in expected if n in planned], [n for n in expected if n not in planned]


def overrun(seconds: float, budget: float) -> str:
    """Return why a method does not run that would take too long."""
    return f"it would take about {seconds:.2g} s of the budget of {budget:g} s"


def default_methods(
    estimator: Any, common: dict[str, Any], run: dict[str, Any]
) -> dict[str, BaseAttributor]:
    """Return the methods that a model is compared with, those that usually agree best last.

    `common` are parameters of all, `run` those of methods that follow further training.
    """

    def of(cls: Callable[..., BaseAttributor], **own: Any) -> BaseAttributor:
        return cls(estimator, **common, **own)

    trees = trees_of(estimator)
    if trees == "apart":
        return {"AXIL": of(AXIL), "LeafKernel": of(LeafKernel), "TREX": of(TREX)}
    if trees == "boosted":
        of_run = {"BoostIn": BoostIn, "LeafInfluence": LeafInfluence, "LeafRefit": LeafRefit}
        back = {name: of(method) for name, method in of_run.items()}
        rounds = run["n_epochs"]
        ahead = {f"{name} ahead": of(method, n_rounds=rounds) for name, method in of_run.items()}
        return {"TREX": of(TREX), **back, **ahead}
    return {
        "Grad-Dot": of(GradDot),
        "Grad-Cos": of(GradCos),
        "DataInf": of(DataInf),
        "TRAK": of(TRAK, n_components=512),
        "EK-FAC": of(EKFACInfluence),
        "exact influence": of(ExactInfluence),
        "linearised once": of(OnceLinearizedFurtherTraining, **run),
        "unrolled": of(UnrolledDifferentiation, **run),
        "linearised": of(LinearizedFurtherTraining, **run),
    }
