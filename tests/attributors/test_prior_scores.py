"""Datamodels that start from the scores of another method."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import make_regression
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from fimoda import (
    Datamodel,
    GradDot,
    LeafInfluence,
    LeaveOneOut,
    SubsetOutcomes,
    random_subsets,
    train_on_subsets,
)

N, N_TEST = 24, 3
RNG = np.random.default_rng(0)
X, Y = make_regression(N + N_TEST, 3, noise=5, random_state=0)
Y = Y / Y.std()
TRAIN, TEST = (X[:N], Y[:N]), (X[N:], Y[N:])
LABELS = (Y > 0).astype(int)
FEW = {"n_subsets": 16, "n_seeds": 1, "random_state": 0}


def additive(n_subsets, noise=0.0):
    """Return made-up outcomes, and the effect of each row's removal."""
    weights = RNG.normal(size=(N_TEST, N))
    subsets = random_subsets(N, n_subsets, 0.5, random_state=1)
    measured = 2 + subsets @ weights.T + noise * RNG.normal(size=(n_subsets, N_TEST))
    return SubsetOutcomes(subsets, [0], measured[..., None], []), -weights


@pytest.mark.parametrize("regression", ["ridge", "lasso"])
def test_beside_a_plain_loop(regression):
    outcomes, _ = additive(40, noise=0.5)
    prior = RNG.normal(size=(N_TEST, N))
    found = Datamodel(regression=regression).score_outcomes(outcomes, prior)
    inside = outcomes.subsets.astype(float)
    for z in range(N_TEST):
        m = outcomes.measured[:, z, 0]
        of_prior = np.array([sum(prior[z, i] for i in range(N) if not row[i]) for row in inside])
        p, c = of_prior - of_prior.mean(), m - m.mean()
        factor = (p @ c) / (p @ p)
        left = c - factor * p
        if regression == "ridge":
            known = RidgeCV(np.logspace(-3, 4, 15)).fit(inside, left / left.std())
            expected = factor * prior[z] - left.std() * known.coef_
            assert_allclose(found[z], expected, rtol=1e-8)
        else:  # by the condition of its minimum
            weights = (factor * prior[z] - found[z]) / left.std()
            centred = inside - inside.mean(0)
            slope = centred.T @ (left / left.std() - centred @ weights) / len(m)
            penalty = np.abs(slope).max()
            used = np.abs(weights) > 1e-9
            assert_allclose(slope[used], penalty * np.sign(weights[used]), rtol=0.1)


def test_a_good_prior_needs_few_subsets():
    """Ten subsets cannot tell 24 rows apart, but how large the prior's scores should be."""
    outcomes, effects = additive(10)
    alone = Datamodel(regression="ridge").score_outcomes(outcomes)
    found = Datamodel(regression="ridge").score_outcomes(outcomes, effects / 3)
    assert_allclose(found, effects, rtol=1e-6, atol=1e-8)
    assert np.abs(alone - effects).max() > 0.5


def test_a_prior_that_misses_rows_is_corrected():
    outcomes, effects = additive(200, noise=0.1)
    part = np.where(np.arange(N) % 2, effects, 0)
    found = Datamodel(regression="ridge").score_outcomes(outcomes, part)
    # as many rows in each subset: what is added to all scores does not show
    found, effects = (one - one.mean(1, keepdims=True) for one in (found, effects))
    assert_allclose(found, effects, atol=0.1)


def test_a_prior_of_zeros_changes_nothing():
    outcomes, _ = additive(40, noise=0.5)
    for regression in ("ridge", "lasso"):
        method = Datamodel(regression=regression, random_state=0)
        expected = method.score_outcomes(outcomes)
        found = method.score_outcomes(outcomes, np.zeros((N_TEST, N)))
        assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_trees_in_a_pipeline_start_from_their_leaves():
    model = make_pipeline(
        StandardScaler(), HistGradientBoostingClassifier(max_iter=4, min_samples_leaf=3)
    ).fit(X[:N], LABELS[:N])
    method = Datamodel(model, prior=LeafInfluence(), regression="ridge", **FEW)
    made = method.fit(X[:N], LABELS[:N])
    found = made.transform(X[N:], LABELS[N:])
    prior = LeafInfluence(model).fit(X[:N], LABELS[:N]).transform(X[N:], LABELS[N:])
    given = model, X[:N], LABELS[:N], made.subsets_, X[N:], LABELS[N:]
    outcomes = train_on_subsets(*given, n_seeds=made.seeds_)
    expected = Datamodel(regression="ridge", random_state=0).score_outcomes(outcomes, prior)
    assert_allclose(found, expected, rtol=1e-8, atol=1e-10)
    assert made.prior_scale_.shape == (N_TEST,)
    assert made.scores_sem_.shape == found.shape
    assert (made.scores_sem_ > 0).any()
    own = made.transform(X[:N], LABELS[:N])
    assert_allclose(made.self_influence(), np.diagonal(own), rtol=1e-8, atol=1e-10)


def test_networks_start_from_a_method_of_networks():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    settings = {"criterion": nn.MSELoss(), "n_epochs": 2, "measurement": "output", **FEW}
    y = Y[:, None]
    made = Datamodel(net, prior=GradDot(), regression="ridge", **settings).fit(X[:N], y[:N])
    assert made.prior_.measurement == "output"
    found = made.transform(X[N:], y[N:])
    prior = GradDot(net, criterion=nn.MSELoss(), measurement="output").fit(X[:N], y[:N])
    settings |= {"n_seeds": made.seeds_, "subsets": made.subsets_}
    bare = Datamodel(net, regression="ridge", **settings).fit(X[:N], y[:N])
    outcomes = bare._outcomes(bare._test(X[N:], y[N:]))
    expected = bare.score_outcomes(outcomes, prior.transform(X[N:], y[N:]))
    assert_allclose(found, expected, rtol=1e-8, atol=1e-10)
    own = made.transform(X[:N], y[:N])
    assert_allclose(made.self_influence(), np.diagonal(own), rtol=1e-8, atol=1e-10)


def test_the_prior_given_stays_as_it_is():
    prior = LeaveOneOut(n_seeds=1)
    method = Datamodel(Ridge().fit(*TRAIN), prior=prior, **FEW)
    method.fit(*TRAIN)
    assert not hasattr(prior, "estimator_")
    assert clone(method).prior is not prior
    without = Datamodel(Ridge().fit(*TRAIN), **FEW).fit(*TRAIN)
    without.transform(*TEST)
    assert np.isnan(without.prior_scale_).all()


def test_what_is_no_prior():
    outcomes, effects = additive(20)
    with pytest.raises(ValueError, match=r"prior must be finite scores.* \(3, 24\)"):
        Datamodel().score_outcomes(outcomes, effects[:, :5])
    with pytest.raises(ValueError, match="prior must be finite scores"):
        Datamodel().score_outcomes(outcomes, np.full((N_TEST, N), np.nan))
    with pytest.raises(ValueError, match="prior must score every training row"):
        Datamodel(Ridge(), prior=LeaveOneOut(leave_out=[0, 1], n_seeds=1), **FEW).fit(*TRAIN)
    with pytest.raises(ValueError, match="prior"):
        Datamodel(Ridge(), prior="LeafInfluence", **FEW).fit(*TRAIN)


def test_scores_are_the_same_after_another_call():
    made = Datamodel(Ridge().fit(*TRAIN), prior=GradDot(), regression="ridge", **FEW).fit(*TRAIN)
    found = made.transform(*TEST)
    made.self_influence()
    assert_array_equal(made.transform(*TEST), found)
    assert_allclose(made.transform(X[N:][::-1], Y[N:][::-1]), found[::-1], rtol=1e-8)
