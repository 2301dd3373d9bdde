"""Significance of scores: against scipy in a loop, and the share of false discoveries."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import ttest_1samp
from sklearn.datasets import make_regression
from sklearn.linear_model import Ridge

from fimoda import EnsembleAttributor, FurtherTraining, GradDot, significant_scores


def per_seed(n_test=3, n_columns=20, n_seeds=6, seed=0):
    return np.random.default_rng(seed).normal(size=(n_test, n_columns, n_seeds))


def mean_and_sem(values):
    return values.mean(-1), values.std(-1, ddof=1) / np.sqrt(values.shape[-1])


def benjamini_hochberg(p, fdr):
    """Step-up procedure as in the paper."""
    order = np.argsort(p)
    passed = [j for j, i in enumerate(order) if p[i] <= fdr * (j + 1) / len(p)]
    mask = np.zeros(len(p), dtype=bool)
    mask[order[: passed[-1] + 1 if passed else 0]] = True
    return mask


@pytest.mark.parametrize("fdr", [0.05, 0.3])
def test_against_a_loop(fdr):
    values = per_seed()
    values[:, :4] += 2
    scores, sem = mean_and_sem(values)
    result = significant_scores(scores, sem=sem, n_seeds=6, fdr=fdr)
    for z in range(3):
        p = [ttest_1samp(row, 0).pvalue for row in values[z]]
        assert_array_equal(result.mask[z], benjamini_hochberg(p, fdr))
        assert (result.p_values[z] >= np.array(p) - 1e-15).all()
    assert result.mask.any()
    stricter = significant_scores(scores, sem=sem, n_seeds=6, fdr=fdr, method="by")
    assert (stricter.mask <= result.mask).all()


def test_false_discoveries_are_controlled_and_real_ones_found():
    shares, found = [], []
    for seed in range(200):
        values = per_seed(1, 100, 10, seed)
        values[:, :10] += 2
        result = significant_scores(
            *mean_and_sem(values)[:1], sem=mean_and_sem(values)[1], n_seeds=10
        )
        shares.append(result.mask[0, 10:].sum() / max(1, result.mask.sum()))
        found.append(result.mask[0, :10].mean())
    assert np.mean(shares) < 0.065
    assert np.mean(found) > 0.9


def test_standard_errors_of_zero():
    scores, sem = np.array([[0.0, 1.0, 0.0]]), np.array([[0.0, 0.0, 1.0]])
    result = significant_scores(scores, sem=sem, n_seeds=3)
    assert_array_equal(result.mask, [[False, True, False]])
    assert_allclose(result.p_values, [[1, 0, 1]])


@pytest.fixture(scope="module")
def trained():
    X, y = make_regression(30, 3, noise=5, random_state=0)
    y = (y - y.mean()) / y.std()
    return Ridge().fit(X, y), X, y


SETTINGS = {"n_epochs": 2, "optimizer": "SGD", "lr": 0.02, "batch_size": 8, "compile": False}


def test_an_attributor(trained):
    ridge, X, y = trained
    gold = FurtherTraining(ridge, n_seeds=5, leave_out=8, random_state=0, **SETTINGS).fit(X, y)
    result = significant_scores(gold, X[:4], y[:4])
    by_hand = significant_scores(gold.transform(X[:4], y[:4]), sem=gold.scores_sem_, n_seeds=5)
    assert result.mask.shape == (4, 8)
    assert_array_equal(result.mask, by_hand.mask)
    assert result.mask.any()


def test_models_of_an_ensemble_are_its_runs(trained):
    """Given models have no seeds, and yet are independent."""
    _, X, y = trained
    models = [Ridge(alpha).fit(X, y) for alpha in (8.0, 9.0, 10.0, 11.0)]
    ensemble = EnsembleAttributor(models[0], models=models).fit(X, y)
    each = [GradDot(model).fit(X, y).transform(X[:4], y[:4]) for model in models]
    p = ttest_1samp(each, 0).pvalue
    found = significant_scores(ensemble, X[:4], y[:4], fdr=0.01)
    for z in range(4):
        assert_array_equal(found.mask[z], benjamini_hochberg(p[z], 0.01))
    assert found.mask.any()


def test_errors(trained):
    ridge, X, y = trained
    one = FurtherTraining(ridge, n_seeds=1, leave_out=3, random_state=0, **SETTINGS).fit(X, y)
    with pytest.raises(ValueError, match="n_seeds must be at least 2 for a standard error, got 1"):
        significant_scores(one, X[:2], y[:2])
    with pytest.raises(ValueError, match="X_test must be given"):
        significant_scores(one)
    with pytest.raises(ValueError, match=r"standard errors over seeds.*got GradDot"):
        significant_scores(GradDot(ridge).fit(X, y), X[:2], y[:2])
    flat = np.ones((2, 3))
    with pytest.raises(ValueError, match="sem must be given with a score matrix"):
        significant_scores(flat, n_seeds=3)
    with pytest.raises(ValueError, match="n_seeds must be given with a score matrix"):
        significant_scores(flat, sem=flat)
    with pytest.raises(ValueError, match=r"shape \(n_test, n_columns\), got \(2, 3\) and \(3,\)"):
        significant_scores(flat, sem=flat[0], n_seeds=3)
    for bad in (np.nan, np.inf, -1.0):
        with pytest.raises(ValueError, match="must be finite, and sem not negative"):
            significant_scores(flat, sem=np.full((2, 3), bad), n_seeds=3)
    with pytest.raises(ValueError, match=r"'fdr' parameter of .* range \(0.0, 1.0\). Got 5"):
        significant_scores(flat, sem=flat, n_seeds=3, fdr=5)
