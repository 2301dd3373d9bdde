"""Attribution by retraining: against exact refits, and effects that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from naive import refits, relative
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.ensemble import BaggingClassifier, RandomForestClassifier, VotingClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from torch import nn

from fimoda import (
    Datamodel,
    Downsampling,
    LeaveOneOut,
    SubsetOutcomes,
    random_subsets,
    train_on_subsets,
)
from fimoda.adapters import draws

N, D, N_TEST = 30, 3, 4


def data(n: int = N):
    rng = np.random.default_rng(3)
    X = rng.normal(size=(n + N_TEST, D))
    y = X @ [1.0, -2.0, 0.5] + 0.3 * rng.normal(size=len(X))
    return X[:n], y[:n], X[n:], y[n:]


def squared_errors(X, y):
    return lambda model: (model.predict(X) - y) ** 2


# ---- leave one out --------------------------------------------------------------------------


@pytest.mark.parametrize("model", [Ridge(2.0), LinearRegression(), KNeighborsRegressor(3)])
def test_leave_one_out_is_exact(model):
    X, y, X_test, y_test = data()
    method = LeaveOneOut(model, n_seeds=2).fit(X, y)
    exact = refits(model, X, y, squared_errors(X_test, y_test))
    assert relative(method.transform(X_test, y_test), exact) < 1e-8
    assert_allclose(method.scores_sem_, 0, atol=1e-12)
    own = refits(model, X, y, squared_errors(X, y))
    assert relative(method.self_influence(), np.diag(own)) < 1e-8


def test_leave_one_out_of_a_network_that_converges():
    """Full batches of a linear layer, trained to the end, are least squares."""
    X, y, X_test, y_test = data()
    method = LeaveOneOut(
        nn.Linear(D, 1).double(),
        criterion=nn.MSELoss(),
        optimizer="SGD",
        lr=0.2,
        n_epochs=400,
        batch_size=N,
        n_seeds=[1, 2],
        leave_out=[4, 0, 21],
    ).fit(X, y)
    exact = refits(LinearRegression(), X, y, squared_errors(X_test, y_test), [4, 0, 21])
    assert relative(method.transform(X_test, y_test), exact) < 1e-8
    assert_array_equal(method.train_indices_, [4, 0, 21])


def test_leave_one_out_averages_over_seeds():
    X, y, X_test, y_test = data()
    net = nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    settings = {"criterion": nn.MSELoss(), "n_epochs": 3, "lr": 0.1, "batch_size": 8}
    both = LeaveOneOut(net, n_seeds=[1, 2], **settings).fit(X, y)
    scores = both.transform(X_test, y_test)
    single = [
        LeaveOneOut(net, n_seeds=[s], **settings).fit(X, y).transform(X_test, y_test)
        for s in (1, 2)
    ]
    assert_allclose(scores, np.mean(single, 0), atol=1e-12)
    assert_allclose(both.scores_sem_, np.abs(single[0] - single[1]) / 2, atol=1e-12)


def test_too_many_failures_are_an_error():
    X, y = np.arange(6.0)[:, None], np.array([0, 0, 0, 1, 1, 2])
    model = LogisticRegression().fit(X, y)
    subsets = [[0, 1, 3, 5], [0, 2, 4, 5], [1, 2, 3, 4], [0, 1, 4], [2, 3, 5]]
    method = Downsampling(model, n_seeds=1, subsets=subsets).fit(X, y)
    with pytest.raises(FloatingPointError, match=r"2 of 5 models .* subset 2 .* none of class 2"):
        method.transform(X, y)
    some = LeaveOneOut(model, n_seeds=[3], leave_out=[0, 1]).fit(X, y)
    assert some.transform(X, y).shape == (6, 2)
    assert some.failed_ == []


# ---- random subsets -------------------------------------------------------------------------


def additive(n_subsets: int, noise: float = 0.0):
    """Outcomes of a measurement to which each row of a subset adds its own number."""
    rng = np.random.default_rng(0)
    weights = np.zeros((N_TEST, N))
    weights[np.arange(N_TEST), np.arange(N_TEST)] = 3.0
    weights += 0.2 * rng.normal(size=weights.shape)
    subsets = random_subsets(N, n_subsets, 0.5, random_state=1)
    measured = (subsets @ weights.T)[:, :, None] + noise * rng.normal(size=(n_subsets, N_TEST, 2))
    effects = -(weights - weights.mean(1, keepdims=True)) * N / (N - 1)
    return SubsetOutcomes(subsets, [0, 1], measured, []), effects


METHODS = [Downsampling(), Datamodel(regression="ridge"), Datamodel(regression="lasso")]


@pytest.mark.parametrize("method", METHODS)
def test_converges_to_the_effects_as_subsets_grow(method):
    is_mean = isinstance(method, Downsampling)
    errors = []
    for n_subsets in (60, 240, 960):
        outcomes, effects = additive(n_subsets, noise=0.5)
        scores = method.score_outcomes(outcomes)
        # a weight is the effect of the row itself, without the one that comes in its place
        effects = effects if is_mean else effects * (N - 1) / N
        errors.append(relative(scores - scores.mean(1, keepdims=True), effects))
        assert_array_equal(scores.argmin(1), np.arange(N_TEST))  # the planted rows
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < (0.3 if is_mean else 0.05)


@pytest.mark.parametrize("regression", ["lasso", "ridge"])
def test_datamodels_of_an_additive_measurement_are_exact(regression):
    outcomes, effects = additive(120)
    scores = Datamodel(regression=regression).score_outcomes(outcomes)
    found = scores - scores.mean(1, keepdims=True)
    assert relative(found, effects * (N - 1) / N) < 1e-2


def test_standard_errors_of_downsampling():
    """They cover the effects as often as they should."""
    outcomes, effects = additive(400, noise=0.5)
    scores, seen = Downsampling()._scores_of(outcomes)
    deviation = (scores - effects) / seen["scores_sem_"]
    assert 0.8 < np.sqrt(np.mean(deviation**2)) < 1.2


@pytest.mark.parametrize("method", [Downsampling, Datamodel], ids=["Downsampling", "Datamodel"])
def test_planted_rows_are_found(method):
    """Two copies of a test row with a wrong target hurt it most."""
    X, y, X_test, y_test = data()
    X, y = X.copy(), y.copy()
    X[[3, 17]] = 2 * X_test[:1]
    y[[3, 17]] = 2 * y_test[0] + 8
    found = method(Ridge(), n_subsets=200, n_seeds=1, random_state=0).fit(X, y)
    top = found.top(X_test[:1], y_test[:1], k=2)
    assert sorted(top.harmful[0]) == [3, 17]
    assert top.harmful_sem.shape == (1, 2)
    if method is Datamodel:
        assert found.stability_.shape == (1,)
        assert found.stability_[0] > 0.5


@pytest.mark.parametrize("method", [Downsampling, Datamodel])
def test_scores_of_outcomes_and_of_a_fit_are_the_same(method):
    X, y, X_test, y_test = data()
    subsets = random_subsets(N, 30, 0.5, random_state=4)
    model = Ridge().fit(X, y)
    outcomes = train_on_subsets(model, X, y, subsets, X_test, y_test, n_seeds=1)
    fitted = method(model, subsets=subsets, n_seeds=1, random_state=0).fit(X, y)
    scores = method(random_state=0).score_outcomes(outcomes)
    assert_allclose(fitted.transform(X_test, y_test), scores, rtol=1e-8, atol=1e-10)


def test_failed_subsets_are_left_out():
    outcomes, _ = additive(60)
    measured = outcomes.measured.copy()
    measured[7] = np.nan
    broken = SubsetOutcomes(outcomes.subsets, [0, 1], measured, [(7, 0, "why"), (7, 1, "why")])
    kept = np.arange(60) != 7
    clean = SubsetOutcomes(outcomes.subsets[kept], [0, 1], measured[kept], [])
    for method in METHODS:
        assert_allclose(method.score_outcomes(broken), method.score_outcomes(clean), atol=1e-12)


def test_two_methods_train_once(tmp_path):
    X, y, X_test, y_test = data()
    net = nn.Linear(D, 1).double()
    settings = {"criterion": nn.MSELoss(), "n_epochs": 2, "n_seeds": 2, "random_state": 0}
    settings |= {"n_subsets": 20, "checkpoint_dir": tmp_path}
    first = Downsampling(net, **settings).fit(X, y)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npy")}
    second = Datamodel(net, **settings).fit(X, y)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npy")} == files
    assert_array_equal(first.subsets_, second.subsets_)
    settings["checkpoint_dir"] = None
    again = Downsampling(net, **settings, n_jobs=2, chunk_size=5).fit(X, y)
    assert_allclose(again.transform(X_test, y_test), first.transform(X_test, y_test), rtol=1e-8)


def test_rows_that_are_always_in():
    X, y, *_ = data()
    with pytest.raises(ValueError, match="row 0 is in all of the 3"):
        Downsampling(Ridge(), subsets=[[0, 1], [0, 2], [0, 3]]).fit(X, y)
    with pytest.raises(ValueError, match="Raise n_subsets"):
        Datamodel(Ridge(), n_subsets=2).fit(X, y)


# ---- nothing random -------------------------------------------------------------------------


class Counted(Ridge):
    """Counts fits, and adds noise of one of the global generators or its own to the coefficients."""

    n_fits = 0

    def __init__(self, alpha=1.0, noise=None, random_state=None):
        super().__init__(alpha, random_state=random_state)
        self.noise = noise

    def fit(self, X, y, sample_weight=None):
        Counted.n_fits += 1
        super().fit(X, y, sample_weight)
        if self.noise == "numpy":
            self.coef_ += np.random.normal(size=D)  # noqa: NPY002
        if self.noise == "torch":
            self.coef_ += torch.randn(D).numpy()
        if self.noise == "unseeded":
            self.coef_ += np.random.default_rng().normal(size=D)
        if self.noise == "own":
            self.coef_ += check_random_state(self.random_state).normal(size=D)
        return self


def fits_of(method, X, y, X_test, y_test):
    """Return how often it fits, and what."""
    Counted.n_fits = 0
    scores = method.fit(X, y).transform(X_test, y_test)
    return Counted.n_fits, scores


def test_what_draws_nothing_is_fitted_once(tmp_path):
    X, y, X_test, y_test = data()
    model = Counted().fit(X, y)
    n_fits, scores = fits_of(LeaveOneOut(model), X, y, X_test, y_test)
    assert n_fits == N + 1 + 2  # and twice to look
    exact = refits(Ridge(), X, y, squared_errors(X_test, y_test))
    assert relative(scores, exact) < 1e-8
    n_fits, same = fits_of(LeaveOneOut(model, n_seeds=1, random_state=0), X, y, X_test, y_test)
    assert_allclose(same, scores, rtol=1e-12)
    assert n_fits == N + 1
    stored = LeaveOneOut(model, n_seeds=[3, 4], checkpoint_dir=tmp_path)
    assert_allclose(fits_of(stored, X, y, X_test, y_test)[1], scores, rtol=1e-12)
    assert {file.name[:6] for file in tmp_path.glob("*.npy")} == {"seed-3"}
    assert_array_equal(stored.scores_sem_, 0)
    assert stored._known_error(scores) == [
        "training draws no random numbers: scores have no error over seeds"
    ]
    outcomes = train_on_subsets(model, X, y, ~np.eye(N, dtype=bool), X_test, y_test, n_seeds=3)
    assert outcomes.measured.shape == (N, N_TEST, 3)
    assert_array_equal(outcomes.measured[..., 0], outcomes.measured[..., 2])


@pytest.mark.parametrize("noise", ["numpy", "torch", "own", "unseeded"])
def test_what_draws_is_fitted_with_each_seed(noise):
    X, y, X_test, y_test = data()
    method = LeaveOneOut(Counted(noise=noise).fit(X, y), n_seeds=[0, 1, 2])
    looks = 2 if noise == "unseeded" else 1
    assert fits_of(method, X, y, X_test, y_test)[0] == 3 * (N + 1) + looks
    assert (method.scores_sem_ > 0).all()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Ridge(), False),
        (LogisticRegression(), False),
        (make_pipeline(StandardScaler(), LogisticRegression()), False),
        (GridSearchCV(LogisticRegression(), {"C": [1, 2]}, cv=2), False),
        (LogisticRegression(solver="saga", max_iter=10), True),
        (RandomForestClassifier(2), True),
        (BaggingClassifier(LogisticRegression(), 2), True),
        (VotingClassifier([("a", LogisticRegression()), ("b", RandomForestClassifier(1))]), True),
        (VotingClassifier([("a", RandomForestClassifier(1)), ("b", Ridge())], n_jobs=2), True),
    ],
)
@pytest.mark.filterwarnings("ignore:The max_iter was reached")
def test_estimators_that_draw(model, expected):
    X, y, _, _ = data()
    assert draws(model, X, y > 0, None) == expected
    assert not hasattr(model, "n_features_in_")
