"""Approximations that are corrected by real training of a few rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from fimoda import (
    Downsampling,
    FurtherTraining,
    GradDot,
    LeafInfluence,
    LeaveOneOut,
    RefinedAttributor,
    UnrolledDifferentiation,
    attribute,
)
from fimoda.training.refining import fitted_scale, mean_cosine, refine, weight_of_training

X, Y = load_diabetes(return_X_y=True)
X, Y = (X[:60] / X.std(0)), (Y[:60] - Y.mean()) / Y.std()
TEST = X[50:56], Y[50:56]
FURTHER = {"n_epochs": 3, "lr": 0.02, "batch_size": 16}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def refined(**params: object) -> RefinedAttributor:
    params = {"trained_rows": 8, "random_state": 0, **params}
    gold = FurtherTraining(n_seeds=params.pop("n_seeds", 3), random_state=0, **FURTHER)
    made = RefinedAttributor(network(), gold_standard=gold, criterion=nn.MSELoss(), **params)
    return made.fit(X, Y[:, None])


def scores(method: object) -> np.ndarray:
    return method.transform(TEST[0], TEST[1][:, None])


def test_scores_are_those_of_the_formula() -> None:
    found = refined()
    rows = found.gold_standard_.train_indices_
    gold = FurtherTraining(
        network(), leave_out=rows, n_seeds=3, random_state=0, criterion=nn.MSELoss(), **FURTHER
    ).fit(X, Y[:, None])
    own = UnrolledDifferentiation(network(), random_state=0, criterion=nn.MSELoss(), **FURTHER)
    a, g = scores(own.fit(X, Y[:, None])), scores(gold)
    sizes = GradDot(network(), criterion=nn.MSELoss()).fit(X, Y[:, None]).self_influence()[rows]
    smaller = [j for j in range(8) if (sizes < sizes[j]).sum() < 4]
    expected, cosines = np.empty_like(a), []
    for z in range(len(a)):
        on = a[z, rows]
        c = sum(on[j] * g[z, j] for j in smaller) / sum(on[j] ** 2 for j in smaller)
        c = min(max(c, 0.05), 20)
        v = np.mean(gold.scores_sem_[z] ** 2)
        d = max(np.mean((g[z] - c * on) ** 2) - v, 0)
        expected[z] = c * a[z]
        for j, i in enumerate(rows):
            expected[z, i] += d / (d + v) * (g[z, j] - expected[z, i])
        cosines.append(on @ g[z] / np.sqrt((on @ on) * (g[z] @ g[z])))
    np.testing.assert_allclose(scores(found), expected, rtol=1e-8, atol=1e-12)
    assert found.agreement_ == pytest.approx(np.mean(cosines))
    assert found.scale_.shape == found.weight_.shape == (6,)
    trained = np.isfinite(found.scores_sem_).all(0)
    np.testing.assert_array_equal(np.flatnonzero(trained), rows)


def test_all_rows_and_one_seed_are_the_gold_standard() -> None:
    found = refined(trained_rows=1.0, n_seeds=1)
    np.testing.assert_allclose(scores(found), scores(found.gold_standard_), rtol=1e-9, atol=1e-12)
    assert np.isnan(found.scores_sem_).all()
    np.testing.assert_array_equal(found.weight_, 1)


def test_rows_with_the_largest_gradients_are_trained() -> None:
    found = refined(trained_rows=0.1)
    own = GradDot(network(), criterion=nn.MSELoss()).fit(X, Y[:, None]).self_influence()
    np.testing.assert_array_equal(
        found.gold_standard_.train_indices_, np.sort(np.argsort(-own)[:6])
    )
    given = refined(trained_rows=[7, 3])
    np.testing.assert_array_equal(given.gold_standard_.train_indices_, [3, 7])


def test_the_derivative_is_of_the_gold_standards_training() -> None:
    own = refined().approximation_
    assert isinstance(own, UnrolledDifferentiation)
    assert (own.n_epochs, own.lr, own.batch_size) == (3, 0.02, 16)


def test_self_influence_is_the_diagonal() -> None:
    found = refined()
    whole = found.transform(X, Y[:, None])
    np.testing.assert_allclose(found.self_influence(), np.diag(whole), rtol=1e-9)


def test_scale_and_agreement() -> None:
    a = np.array([[1.0, 2.0], [1.0, 1.0], [0.0, 0.0], [1.0, -1.0]])
    g = np.array([[2.0, 4.0], [-3.0, -3.0], [1.0, 1.0], [100.0, -100.0]])
    np.testing.assert_allclose(fitted_scale(a, g), [2.0, 0.05, 1.0, 20.0])
    assert mean_cosine(a, g) == pytest.approx((1 - 1 + 0 + 1) / 4)


def test_rows_of_large_error_do_not_scale_the_others() -> None:
    """Scores are right but for the first, of which the approximation sees a tenth."""
    truth = np.array([[10.0, 1.0, -1.0, 0.5, -0.5]])
    own = truth * [0.1, 1, 1, 1, 1]
    rows = np.arange(3)
    errors = np.full((1, 3), np.nan)
    found = refine(own, rows, truth[:, rows], errors, smaller=np.array([1, 2]))
    np.testing.assert_allclose(found.scores, truth)
    np.testing.assert_allclose(found.scale, 1)
    assert found.agreement == pytest.approx(12 / np.sqrt(102 * 3))


def test_weights_follow_what_the_noise_does_not_explain() -> None:
    difference = np.array([[2.0, -2.0], [0.1, 0.1], [0.0, 0.0], [1.0, 1.0]])
    errors = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [np.nan, np.nan]])
    np.testing.assert_allclose(weight_of_training(difference, errors), [1, 0, 1, 1])
    middle = weight_of_training(np.array([[2.0, 2.0]]), np.array([[1.0, 1.0]]))
    np.testing.assert_allclose(middle, 3 / 4)


def test_a_row_learned_by_heart_has_the_size_of_its_removal() -> None:
    """One row far from all others, on a model that has fitted it: derivatives make little of it."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 4)) * 0.1
    rows[0] = 3.0
    targets = (rows @ np.ones(4) + 0.01 * rng.normal(size=40))[:, None]
    targets[0] += 1
    net = nn.Linear(4, 1).double()
    ridge = Ridge(alpha=1e-6).fit(rows, targets)
    with torch.no_grad():
        net.weight.copy_(torch.from_numpy(np.atleast_2d(ridge.coef_)))
        net.bias.copy_(torch.from_numpy(np.atleast_1d(ridge.intercept_)))
    run = {"n_epochs": 300, "lr": 0.02, "batch_size": 40, "criterion": nn.MSELoss()}
    gold = FurtherTraining(net, leave_out=[0, 1], n_seeds=1, **run).fit(rows, targets)
    expected = gold.transform(rows[:1], targets[:1])[0, 0]
    own = UnrolledDifferentiation(net, **run).fit(rows, targets)
    found = RefinedAttributor(
        net, gold_standard=FurtherTraining(n_seeds=1, **{k: run[k] for k in list(run)[:3]}),
        criterion=nn.MSELoss(), trained_rows=0.05,
    ).fit(rows, targets)  # fmt: skip
    assert own.transform(rows[:1], targets[:1])[0, 0] < expected / 3
    assert found.transform(rows[:1], targets[:1])[0, 0] == pytest.approx(expected, rel=1e-6)


class Opposite(GradDot):
    """Scores of the wrong sign."""

    def _scores(self, test):
        return -super()._scores(test)


def test_what_disagrees_with_training_is_told() -> None:
    with pytest.warns(
        UserWarning, match=r"scale_ of Opposite is at its bounds, 0.05 or 20, for \d of 6"
    ) as said:
        found = attribute(
            network(), X, Y[:, None], TEST[0], TEST[1][:, None],
            method=RefinedAttributor(
                approximation=Opposite(), criterion=nn.MSELoss(), trained_rows=8, random_state=0,
                gold_standard=FurtherTraining(n_seeds=1, random_state=0, **FURTHER),
            ),
        )  # fmt: skip
    told = str(said[0].message).split(":")[0]
    bounded = (found.attributor.scale_ == 0.05) | (found.attributor.scale_ == 20)
    assert bounded.sum() > 3
    assert f"for {bounded.sum()} of 6 test rows" in told
    assert told in found.trust
    assert "one seed: its noise is not known" in found.trust


@pytest.mark.filterwarnings("error::UserWarning")
def test_what_agrees_with_training_is_not() -> None:
    found = refined()
    size = scores(found)
    told = found._known_error(size)
    assert len(told) == 2
    assert "agrees" in told[0]
    assert "standard errors are" in told[1]


def test_trees_are_fitted_again() -> None:
    boosting = GradientBoostingRegressor(n_estimators=15, max_depth=2, random_state=0).fit(X, Y)
    found = RefinedAttributor(boosting, trained_rows=6, random_state=0).fit(X, Y)
    assert isinstance(found.approximation_, LeafInfluence)
    rows = found.gold_standard_.train_indices_
    largest = np.argsort(-np.abs(LeafInfluence(boosting).fit(X, Y).self_influence()))[:6]
    np.testing.assert_array_equal(rows, np.sort(largest))
    again = LeaveOneOut(boosting, leave_out=rows, n_seeds=2, random_state=0).fit(X, Y)
    np.testing.assert_allclose(found.transform(*TEST)[:, rows], again.transform(*TEST), rtol=1e-6)
    forest = RandomForestRegressor(20, max_depth=3, random_state=0).fit(X, Y)
    noisy = RefinedAttributor(forest, trained_rows=3, random_state=0).fit(X, Y)
    assert noisy.transform(*TEST).shape == (6, 60)


def test_pipelines_and_attribute() -> None:
    pipeline = make_pipeline(
        StandardScaler(), MLPRegressor(hidden_layer_sizes=(5,), max_iter=30, random_state=0)
    )
    pipeline.fit(X, Y)
    gold = FurtherTraining(n_epochs=2, n_seeds=2, random_state=0)
    method = RefinedAttributor(pipeline, gold_standard=gold, trained_rows=4, random_state=0)
    assert method.fit(X, Y).transform(*TEST).shape == (6, 60)
    found = attribute(pipeline, X, Y, *TEST, method=method)
    assert "without 4 rows" in str(found)
    assert "agrees" in str(found)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"gold_standard": Downsampling()}, "gold_standard must be able to leave out some rows"),
        ({"gold_standard": LeaveOneOut()}, "approximation must be given"),
        (
            {"approximation": UnrolledDifferentiation(n_epochs=1, leave_out=[0, 1])},
            "approximation must score all 60 training rows",
        ),
        ({"trained_rows": 61}, "trained_rows must be at most"),
        ({"trained_rows": [3, 60]}, "trained_rows must hold indices"),
        ({"trained_rows": [3, 3]}, "trained_rows"),
        ({"trained_rows": 1.5}, "trained_rows"),
        ({"trained_rows": 0}, "trained_rows"),
    ],
)
def test_what_cannot_be_is_refused(params: dict[str, object], message: str) -> None:
    given = {"gold_standard": FurtherTraining(n_epochs=1, n_seeds=1), **params}
    with pytest.raises(ValueError, match=message):
        RefinedAttributor(network(), criterion=nn.MSELoss(), **given).fit(X, Y[:, None])


def test_models_without_gradients_need_a_method() -> None:
    labels = (Y > 0).astype(int)
    with pytest.raises((TypeError, ValueError)):
        RefinedAttributor(GaussianNB().fit(X, labels)).fit(X, labels)
