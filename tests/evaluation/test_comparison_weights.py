"""`compare_methods` with weights of rows, and what its table says."""

from __future__ import annotations

import numpy as np
from numpy.testing import assert_allclose
from sklearn.datasets import load_diabetes
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import Ridge

from fimoda import (
    TREX,
    GradDot,
    SubsetOutcomes,
    agreement_curve,
    compare_methods,
    further_training_curve,
    train_on_subsets,
)

X, Y = load_diabetes(return_X_y=True)
X, Y, X_TEST, Y_TEST = X[:40], Y[:40] / 100, X[40:46], Y[40:46] / 100
WEIGHTS = np.random.default_rng(0).uniform(0, 3, 40)


def test_weights_reach_the_gold_standard_and_the_methods():
    ridge = Ridge().fit(X, Y, sample_weight=WEIGHTS)
    settings = {"n_seeds": 2, "leave_out": 10, "random_state": 0}
    found = compare_methods(
        ridge, X, Y, X_TEST, Y_TEST, methods={"dots": GradDot(ridge)}, epochs=[1, 3],
        sample_weight=WEIGHTS, **settings,
    )  # fmt: skip
    given = ridge, X, Y, X_TEST, Y_TEST
    settings |= {"epochs": [1, 3], "correction": "mean"}
    curve = further_training_curve(*given, sample_weight=WEIGHTS, **settings)
    assert_allclose(found.curve.scores, curve.scores)
    method = GradDot(ridge).fit(X, Y, sample_weight=WEIGHTS)
    expected = agreement_curve({"dots": method}, curve, X_TEST, Y_TEST).mean()
    assert_allclose(found.agreement.mean(), expected)
    without = compare_methods(*given, methods={"dots": GradDot(ridge)}, epochs=[1, 3], n_seeds=2,
                              leave_out=10, random_state=0)  # fmt: skip
    assert np.abs(without.curve.scores - curve.scores).max() > 1e-3 * np.abs(curve.scores).max()


def test_weights_of_forests():
    forest = RandomForestRegressor(10, max_depth=3, random_state=0)
    forest.fit(X, Y, sample_weight=WEIGHTS)
    given = forest, X, Y, X_TEST, Y_TEST
    settings = {"methods": {"TREX": TREX(forest)}, "leave_out": 8, "n_seeds": [3]}
    found = compare_methods(*given, sample_weight=WEIGHTS, random_state=0, **settings)
    assert isinstance(found.curve, SubsetOutcomes)
    again = train_on_subsets(
        forest, X, Y, found.curve.subsets, X_TEST, Y_TEST, n_seeds=[3], sample_weight=WEIGHTS
    )
    assert_allclose(found.curve.measured, again.measured)


def test_the_table_says_its_rule_and_counts_right():
    ridge = Ridge().fit(X, Y)
    found = compare_methods(ridge, X, Y, X_TEST, Y_TEST, methods={"dots": GradDot(ridge)},
                            epochs=[1, 3], n_seeds=1, leave_out=5, random_state=0)  # fmt: skip
    assert "1 epoch  3 epochs" in str(found)
    rule = "the fastest that agrees as well as the best, within two standard errors"
    assert str(found).endswith(f"recommended: dots, {rule}")
    assert repr(found.agreement).startswith(
        "AgreementCurve: cosine with further training, mean of 6"
    )
    assert "dots" in repr(found.agreement)
    size = np.sqrt((found.curve.scores[0] ** 2).mean())
    told = repr(found.curve)
    assert "5 rows left out, 6 test rows, 1 seeds, correction='mean'" in told
    assert f"1: {size:.2g} ± nan" in told
