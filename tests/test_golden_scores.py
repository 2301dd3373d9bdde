"""Scores that must not change: small cases against the numbers that were recorded once."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.base import BaseEstimator

import fimoda

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))

import cases  # noqa: E402
from record import SCORES, load  # noqa: E402

#: What the functions return, and what is no number.
RESULTS = {
    "AgreementCurve",
    "Attribution",
    "DistributionalAgreement",
    "Ensemble",
    "FinalModel",
    "FurtherTrainingCurve",
    "GreedyRemoval",
    "GroupComparison",
    "GroupInfluence",
    "LinearDatamodelingScore",
    "MethodComparison",
    "MetricInfluence",
    "MislabelDetection",
    "Significance",
    "SmallestFlips",
    "SubsetOutcomes",
    "SubsetRemovalCurve",
}


@pytest.fixture(scope="module")
def recorded() -> dict[str, dict[str, np.ndarray]]:
    """Return the arrays of each case."""
    return load()


@pytest.mark.parametrize("name", cases.CASES)
def test_scores_are_those_recorded(name, recorded):
    case = cases.CASES[name]
    found, expected = case.run(), recorded[name]
    assert found.keys() == expected.keys()
    changed = {}
    for key, old in expected.items():
        new = found[key]
        assert new.shape == old.shape, key
        assert_array_equal(np.isnan(new), np.isnan(old), err_msg=key)
        known = ~np.isnan(old)
        largest = np.abs(old[known]).max(initial=0.0)
        difference = np.abs(new[known] - old[known]).max(initial=0.0)
        if not difference <= case.rtol * largest:
            changed[key] = f"{difference:.2e} of {largest:.2e}"
    assert not changed


def test_every_case_is_recorded(recorded):
    assert recorded.keys() == cases.CASES.keys()


def test_recorded_scores_are_one_small_file():
    assert SCORES.stat().st_size < 1e6


def test_every_public_name_has_a_case():
    """A new method or function needs a case; the linter sees that imported names are used."""
    public = {name for name in fimoda.__all__ if not name.endswith("Display")}
    missing = public - RESULTS - set(vars(cases))
    assert not missing, f"add cases for {sorted(missing)} to tests/golden/cases.py"


@pytest.mark.parametrize("package", ["selection", "distances", "evaluation"])
def test_every_estimator_of_a_subpackage_has_a_case(package):
    module = inspect.importlib.import_module(f"fimoda.{package}")
    estimators = {
        name
        for name, thing in vars(module).items()
        if inspect.isclass(thing) and issubclass(thing, BaseEstimator) and not name.startswith("_")
    }
    missing = estimators - {"BaseEstimator"} - set(vars(cases))
    assert not missing, f"add cases for {sorted(missing)} to tests/golden/cases.py"
