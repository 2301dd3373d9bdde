"""Games: values against loops over all sets of rows, each trained on its own."""

from __future__ import annotations

import games_by_hand
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import make_classification, make_regression
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, log_loss, r2_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from skorch import NeuralNetClassifier
from torch import nn

from fimoda import (
    BetaShapley,
    DataBanzhaf,
    DataShapley,
    Downsampling,
    LeastCore,
    train_on_subsets,
)
from fimoda.games.least_core import least_core

N, M = 8, 5
GAMES = [DataShapley, BetaShapley, DataBanzhaf, LeastCore]
each_game = pytest.mark.parametrize("cls", GAMES)


def numbers(n: int = N):
    X, y = make_regression(n + M, 2, noise=20, random_state=0)
    return X[:n], y[:n] / 50, X[n:], y[n:] / 50


def classes(n: int = N):
    X, y = make_classification(
        n + M, 3, n_informative=3, n_redundant=0, flip_y=0.2, class_sep=0.5, random_state=3
    )
    return X[:n], y[:n], X[n:], y[n:]


def net(X, y) -> NeuralNetClassifier:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    made = NeuralNetClassifier(
        module,
        criterion=nn.CrossEntropyLoss,
        lr=0.3,
        max_epochs=3,
        batch_size=3,
        train_split=None,
        verbose=0,
    )
    return made.fit(X.astype(np.float32), y)


def by_definition(cls, value, n: int = N):
    """Return the values of a game with its utility as a function of the rows."""
    if cls is DataShapley:
        return games_by_hand.shapley(value, n)
    if cls is BetaShapley:
        return games_by_hand.beta_shapley(value, n, 16, 1)
    if cls is DataBanzhaf:
        return games_by_hand.banzhaf(value, n)
    sets = games_by_hand.all_sets(n)
    masks = np.array([np.isin(np.arange(n), rows) for rows in sets])
    return least_core(masks, np.array([value(rows) for rows in sets]))[0]


def remembered(value):
    known = {}

    def again(rows):
        if rows not in known:
            known[rows] = value(rows)
        return known[rows]

    return again


# ---- all sets -------------------------------------------------------------------------------


@each_game
@pytest.mark.parametrize("model", [Ridge(), DecisionTreeRegressor(max_depth=2, random_state=0)])
def test_losses_of_numbers(cls, model):
    X, y, X_test, y_test = numbers()
    found = cls(model, n_samples="exact", n_seeds=[0]).fit(X, y)
    scores = found.transform(X_test, y_test)
    for z in range(2):

        def value(rows, z=z):
            if not rows:
                return -((y.mean() - y_test[z]) ** 2)
            rows = list(rows)
            predicted = clone(model).fit(X[rows], y[rows]).predict(X_test[z : z + 1])[0]
            return -((predicted - y_test[z]) ** 2)

        assert_allclose(scores[z], by_definition(cls, remembered(value)), atol=1e-8)
    assert_array_equal(found.scores_sem_, 0)
    assert found.n_samples_ == 2**N
    if cls is not LeastCore:  # whose values are not linear in the utility
        assert_allclose(found.values_, scores.mean(0))


@each_game
@pytest.mark.parametrize("score", [log_loss, accuracy_score])
def test_classes_with_sets_that_cannot_be_fitted(cls, score):
    """Rows of one class are no rows: the classes' shares are predicted."""
    X, y, X_test, y_test = classes()
    model = LogisticRegression(tol=1e-12, max_iter=1000)
    shares = np.bincount(y) / N
    scoring = "neg_log_loss" if score is log_loss else "accuracy"

    def value(rows):
        rows = list(rows)
        if len(set(y[rows])) < 2:
            proba = np.tile(shares, (M, 1))
        else:
            proba = clone(model).fit(X[rows], y[rows]).predict_proba(X_test)
        return (
            -log_loss(y_test, proba)
            if score is log_loss
            else accuracy_score(y_test, proba.argmax(1))
        )

    game = cls(model, n_samples="exact", scoring=scoring, random_state=0).fit(X, y)
    expected = by_definition(cls, remembered(value))
    assert_allclose(game.values(X_test, y_test), expected, atol=1e-8)
    assert_array_equal(game.values_, game.values(X_test, y_test))
    assert {reason for *_, reason in game.failed_} == {"its rows have not every class"}
    if score is log_loss:
        plain = cls(model, n_samples="exact", random_state=0).fit(X, y)
        assert_allclose(plain.values(X_test, y_test), expected, atol=1e-8)


@each_game
def test_networks_in_stacks(cls):
    X, y, X_test, y_test = classes(5)
    X, X_test = X.astype(np.float32), X_test.astype(np.float32)
    model = net(X, y)
    game = cls(model, n_samples="exact", n_seeds=[3, 4], random_state=0).fit(X, y)
    scores = game.transform(X_test, y_test)
    sets = [rows for rows in games_by_hand.all_sets(5) if rows]
    measured = [
        train_on_subsets(model, X, y, [list(rows)], X_test, y_test, n_seeds=[3, 4]).mean[0]
        for rows in sets
    ]
    known = dict(zip(sets, measured, strict=True))
    shares = np.bincount(y) / 5
    for z in range(2):

        def value(rows, z=z):
            return -known[rows][z] if rows else np.log(shares[y_test[z]])

        assert_allclose(scores[z], by_definition(cls, value, 5), atol=1e-5)
    by_score = cls(model, n_samples="exact", n_seeds=[3, 4], scoring="accuracy").fit(X, y)
    assert by_score.values(X_test, y_test).shape == (5,)


def test_shapley_values_share_what_all_rows_achieve():
    X, y, X_test, y_test = numbers(30)
    model = Ridge().fit(X, y)
    for sampling in ("permutation", "antithetic", "stratified"):
        game = DataShapley(model, n_samples=4, sampling=sampling, random_state=0).fit(X, y)
        loss = (model.predict(X_test) - y_test) ** 2
        assert_allclose(game.transform(X_test, y_test).sum(1), (y.mean() - y_test) ** 2 - loss)
    game.set_params(scoring="r2").fit(X, y)
    gain = r2_score(y_test, model.predict(X_test)) - r2_score(y_test, np.full(M, y.mean()))
    assert_allclose(game.values(X_test, y_test).sum(), gain)


# ---- samples --------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [DataShapley, BetaShapley, DataBanzhaf])
@pytest.mark.parametrize("sampling", ["permutation", "antithetic", "stratified"])
def test_samples_agree_within_their_errors(cls, sampling):
    X, y, X_test, y_test = classes()
    params = {"random_state": 0, "n_samples": 2000}
    if cls is not DataBanzhaf:
        params["sampling"] = sampling
    model = KNeighborsClassifier(2)
    exact = cls(model, n_samples="exact").fit(X, y).transform(X_test, y_test)
    game = cls(model, **params).fit(X, y)
    found, errors = game.transform(X_test, y_test), game.scores_sem_
    assert game.n_samples_ == 2000
    z = (found - exact)[errors > 0] / errors[errors > 0]
    assert np.abs(z).max() < 4.5
    assert 0.5 < np.sqrt((z**2).mean()) < 1.6
    assert_allclose(found[errors == 0], exact[errors == 0], atol=1e-12)
    assert (errors > 0).mean() > 0.5
    assert errors.max() < 0.1


def test_least_core_of_enough_samples_is_that_of_all_sets():
    X, y, X_test, y_test = numbers(5)
    exact = LeastCore(Ridge(), n_samples="exact").fit(X, y)
    expected = exact.transform(X_test, y_test)
    game = LeastCore(Ridge(), n_samples=400, random_state=0).fit(X, y)
    assert_allclose(game.transform(X_test, y_test), expected, atol=1e-8)
    assert_allclose(game.subsidy_, exact.subsidy_, atol=1e-8)
    assert_array_equal(game.scores_sem_, 0)
    few = LeastCore(Ridge(), n_samples=6, random_state=0).fit(X, y)
    few.transform(X_test, y_test)
    assert np.isnan(few.scores_sem_).all()
    assert (few.subsidy_ <= exact.subsidy_ + 1e-9).all()  # fewer sets ask for less


def test_auto_draws_until_values_have_settled():
    X, y, X_test, y_test = numbers(20)
    game = DataShapley(Ridge(), n_samples="auto", random_state=0).fit(X, y)
    values = game.values(X_test, y_test)
    assert game.n_samples_ % 32 == 0
    other = DataShapley(Ridge(), n_samples=4 * game.n_samples_, random_state=1).fit(X, y)
    assert np.corrcoef(values, other.values(X_test, y_test))[0, 1] > 0.9
    banzhaf = DataBanzhaf(Ridge(), n_samples="auto", random_state=0).fit(X, y)
    banzhaf.values(X_test, y_test)
    assert (banzhaf.values_sem_**2).mean() <= 0.05 * banzhaf.values_.var(ddof=1)


@pytest.mark.parametrize("cls", [DataShapley, BetaShapley, DataBanzhaf])
def test_auto_ends_with_the_time(cls):
    X, y, X_test, y_test = numbers(20)
    noisy = {"random_state": 0, "scoring": lambda model, X, y: float(np.sum(model.predict(X)) % 1)}
    game = cls(Ridge(), n_samples="auto", max_seconds=1e-9, **noisy).fit(X, y)
    with pytest.warns(ConvergenceWarning, match="when max_seconds=1e-09 were"):
        values = game.values(X_test, y_test)
    first = {DataBanzhaf: 512}.get(cls, 32)
    assert game.n_samples_ == first
    game.set_params(
        n_samples=first
    )  # has no use for max_seconds, which is no end of single trainings
    assert_array_equal(game.fit(X, y).values(X_test, y_test), values)


def test_truncation_trains_less_and_changes_little():
    X, y, X_test, y_test = numbers(30)
    trained = []

    class Counted(Ridge):
        def fit(self, X, y, sample_weight=None):
            trained.append(len(X))
            return super().fit(X, y, sample_weight)

    def values(truncation):
        trained.clear()
        game = DataShapley(Counted(), n_samples=8, truncation=truncation, random_state=0)
        return game.fit(X, y).values(X_test, y_test), len(trained)

    (whole, n_whole), (cut, n_cut) = values(0.0), values(0.05)
    assert n_cut < 0.8 * n_whole
    assert np.corrcoef(whole, cut)[0, 1] > 0.8


def test_banzhaf_and_downsampling_at_one_half():
    """Downsampling compares with the mean row; for an additive measurement both are known."""
    X, y, X_test, y_test = numbers(40)
    banzhaf = (
        DataBanzhaf(Ridge(), n_samples=4000, random_state=0).fit(X, y).transform(X_test, y_test)
    )
    halves = Downsampling(Ridge(), n_subsets=800, n_seeds=1, random_state=0).fit(X, y)
    against_mean = banzhaf - banzhaf.mean(1, keepdims=True)
    for own, other in zip(against_mean, halves.transform(X_test, y_test), strict=True):
        assert np.corrcoef(own, other)[0, 1] > 0.8


# ---- the same numbers -----------------------------------------------------------------------


@pytest.mark.parametrize("cls", [DataShapley, DataBanzhaf])
@pytest.mark.parametrize("model", ["tree", "network"])
def test_n_jobs_chunks_and_memory(cls, model):
    X, y, X_test, y_test = classes(12)
    X, X_test = X.astype(np.float32), X_test.astype(np.float32)
    estimator = net(X, y) if model == "network" else DecisionTreeClassifier(max_depth=2)
    params = {"n_samples": 6 if cls in GAMES[:2] else 40, "random_state": 0}
    expected = cls(estimator, **params).fit(X, y).transform(X_test, y_test)
    assert_array_equal(
        cls(estimator, n_jobs=2, **params).fit(X, y).transform(X_test, y_test), expected
    )
    others = [{"chunk_size": 3}]
    if cls in GAMES[:2]:
        others.append({"memory_budget": 12 * (12 + 40 * M) * 2})
    for other in others:
        found = cls(estimator, **other, **params).fit(X, y).transform(X_test, y_test)
        assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("model", ["tree", "network", "logistic"])
def test_checkpoints(model, tmp_path):
    """A second call trains nothing; nor does another game of the same sets."""
    X, y, X_test, y_test = classes(8)
    X, X_test = X.astype(np.float32), X_test.astype(np.float32)
    made = {"tree": DecisionTreeClassifier(max_depth=2), "logistic": LogisticRegression()}
    estimator = net(X, y) if model == "network" else made[model]
    params = {"n_samples": "exact", "random_state": 0, "checkpoint_dir": tmp_path}
    first = DataShapley(estimator, **params).fit(X, y).transform(X_test, y_test)
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(files) > 1
    again = DataShapley(estimator, **params).fit(X, y).transform(X_test, y_test)
    assert_array_equal(again, first)
    DataBanzhaf(estimator, **params).fit(X, y).transform(X_test, y_test)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    DataShapley(estimator, **params).fit(X, y).transform(X_test[:2], y_test[:2])
    assert len(list(tmp_path.iterdir())) > len(files)
    damaged = next(path for path in tmp_path.iterdir() if path.suffix == ".npy")
    damaged.write_bytes(b"nothing")
    found = []
    with pytest.warns(RuntimeWarning, match="computed again"):
        found += [
            DataShapley(estimator, **params).fit(X, y).transform(X_test[rows], y_test[rows])
            for rows in (slice(None), slice(2))  # whichever the file is of
        ]
    assert_allclose(found[0], first, rtol=1e-6)


def test_repeated_calls_draw_the_same_samples():
    X, y, X_test, y_test = numbers()
    game = DataShapley(Ridge(), n_samples=3, random_state=0).fit(X, y)
    assert_array_equal(game.transform(X_test, y_test), game.transform(X_test, y_test))
    one = game.transform(X_test[:1], y_test[:1])
    assert_allclose(one, game.transform(X_test, y_test)[:1])


# ---- bad inputs -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"n_samples": "many"}, "n_samples"),
        ({"n_samples": 0}, "n_samples"),
        ({"sampling": "sobol"}, "sampling"),
        ({"truncation": -0.1}, "truncation"),
        ({"scoring": "accurracy"}, "scoring must be the name of a scorer"),
        ({"n_epochs": 3}, "n_epochs must be left alone for Ridge"),
        ({"refit": "search"}, "refit='search' is for a search"),
    ],
)
def test_bad_parameters(params, match):
    X, y, _, _ = numbers()
    with pytest.raises(ValueError, match=match):
        DataShapley(Ridge().fit(X, y), **params).fit(X, y)


@pytest.mark.parametrize("params", [{"alpha": 0.0}, {"beta": -1.0}])
def test_bad_parameters_of_beta(params):
    X, y, _, _ = numbers()
    with pytest.raises(ValueError, match=next(iter(params))):
        BetaShapley(Ridge(), **params).fit(X, y)


@each_game
def test_too_many_and_too_few_rows(cls):
    X, y, _, _ = numbers(15)
    with pytest.raises(ValueError, match="takes at most 14 rows, got 15"):
        cls(Ridge(), n_samples="exact").fit(X, y)
    with pytest.raises(ValueError, match="at least 2 rows"):
        cls(Ridge()).fit(X[:1], y[:1])


def test_what_values_need():
    X, y, X_test, y_test = numbers()
    game = DataShapley(Ridge(), scoring="r2", n_samples=2, random_state=0)
    with pytest.raises(ValueError, match="not fitted"):
        game.values(X_test, y_test)
    game.fit(X, y)
    with pytest.raises(AttributeError, match="values_ is there after transform"):
        _ = game.values_
    with pytest.raises(ValueError, match="y must be given to values"):
        game.values(X_test)
    with pytest.raises(ValueError, match="inconsistent"):
        game.values(X_test, y_test[:-1])
    X_test[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        game.values(X_test, y_test)


def test_a_score_that_is_no_number():
    X, y, X_test, y_test = numbers()
    game = DataShapley(Ridge(), scoring=lambda model, X, y: np.nan, n_samples=2, random_state=0)
    with pytest.raises(ValueError, match=r"is not defined for these test rows: .* is nan"):
        game.fit(X, y).values(X_test, y_test)
    game.set_params(scoring=lambda model, X, y: None)
    with pytest.raises(ValueError, match="scoring must give one number, got None"):
        game.fit(X, y).values(X_test, y_test)


@pytest.mark.filterwarnings("ignore:Only one class")
def test_a_score_of_test_rows_of_one_class():
    X, y, X_test, y_test = classes()
    game = DataBanzhaf(LogisticRegression(), scoring="roc_auc", random_state=0).fit(X, y)
    one = y_test == y_test[0]
    with pytest.raises(ValueError, match="test rows of every class"):
        game.values(X_test[one], y_test[one])


def test_a_row_that_is_in_all_sets_or_in_none():
    X, y, X_test, y_test = numbers()
    game = DataBanzhaf(Ridge(), n_samples=1, random_state=0).fit(X, y)
    with pytest.raises(ValueError, match=r"n_samples must be so large .* got 1: row 0"):
        game.transform(X_test, y_test)


def test_a_model_that_cannot_be_fitted_to_all_rows():
    X, y, X_test, y_test = classes()

    class Fails(SVC):
        def fit(self, X, y, sample_weight=None):
            if getattr(Fails, "broken", False):
                raise ValueError("out of order")
            return super().fit(X, y, sample_weight)

    game = DataShapley(Fails().fit(X, y), n_samples=2).fit(X, y)
    Fails.broken = True
    with pytest.raises(FloatingPointError, match="on all rows: ValueError: out of order"):
        game.transform(X_test, y_test)


@pytest.mark.filterwarnings("ignore")
def test_a_network_that_diverges():
    X, y, X_test, y_test = classes()
    X, X_test = X.astype(np.float32), X_test.astype(np.float32)
    game = DataShapley(net(X, y), lr=1e38, n_samples=2, random_state=0).fit(X, y)
    with pytest.raises(FloatingPointError, match="lower lr"):
        game.transform(X_test, y_test)
