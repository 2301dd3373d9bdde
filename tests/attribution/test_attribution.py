"""The one call, and the comparison of methods."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from problems import tanh_network
from scipy.sparse import csr_array
from sklearn.base import clone, is_classifier
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_diabetes
from sklearn.ensemble import (
    GradientBoostingRegressor,
    HistGradientBoostingRegressor,
    RandomForestRegressor,
)
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    Ridge,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR, LinearSVC
from sklearn.tree import DecisionTreeClassifier
from torch import nn

import fimoda
from fimoda import (
    TREX,
    ExactInfluence,
    FurtherTraining,
    GradCos,
    GradDot,
    LeafInfluence,
    LeafKernel,
    LeaveOneOut,
    TopRowsDisplay,
    attribute,
    compare_methods,
)
from fimoda.attribution import choice
from fimoda.attribution.ladder import Candidate, Ladder
from fimoda.training.workers import Deadline

N, N_TEST = 40, 6


@pytest.fixture(scope="module")
def rows():
    X, y = load_diabetes(return_X_y=True)
    X, y = X / X.std(0), (y - y.mean()) / y.std()
    return X[:N], y[:N], X[N : N + N_TEST], y[N : N + N_TEST]


@pytest.fixture(scope="module")
def net(rows):
    X, y, *_ = rows
    model = tanh_network(10, 8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(torch.from_numpy(X))[:, 0], torch.from_numpy(y)).backward()
        optimizer.step()
    return model


GIVEN = {"criterion": nn.MSELoss(), "n_epochs": 3, "lr": 0.05, "random_state": 0}


@pytest.mark.parametrize(("budget", "expected"), [(1e6, "FurtherTraining"), (1e-9, "GradDot")])
def test_network(rows, net, budget, expected):
    found = attribute(net, *rows, budget=budget, **GIVEN)
    assert type(found.attributor).__name__ == expected
    assert found.reason.startswith(expected)
    assert found.scores.shape == (N_TEST, N)
    X, y, X_test, y_test = rows
    own = {"n_seeds": 2, "leave_out_mode": "expected"} if expected == "FurtherTraining" else {}
    known = getattr(fimoda, expected)._parameter_constraints
    given = {k: v for k, v in GIVEN.items() if k in known}
    method = getattr(fimoda, expected)(net, **own, **given)
    np.testing.assert_array_equal(found.scores, method.fit(X, y).transform(X_test, y_test))
    if expected == "FurtherTraining":
        np.testing.assert_array_equal(found.errors, method.scores_sem_)
        steps = "3 epochs of SGD, learning rate 0.05, batches of 40"
        assert found.process.endswith(f"{steps}, rows left out in expectation")
        assert "standard errors are" in found.trust
    else:
        assert "not tried, since 1e-09 s were over: FurtherTraining" in found.reason
        assert found.errors is None


@pytest.mark.parametrize(
    ("changes", "mode"),
    [
        ({}, "expected"),
        ({"optimizer": "SGD", "optimizer_params": {"momentum": 0.9}}, "expected"),
        ({"optimizer": "Adam", "lr": 1e-3}, "mask"),
        ({"optimizer": "RMSprop", "lr": 1e-3}, "mask"),
    ],
)
def test_rows_are_left_out_in_expectation_with_sgd(rows, net, changes, mode):
    """Second moments would keep the squares of a row that is not left out where it comes up."""
    gold = gold_of(net, rows, **changes)
    assert (gold.leave_out_mode, gold.n_seeds) == (mode, 2 if mode == "expected" else 5)


def test_rows_are_masked_where_batches_have_statistics(rows):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)).double()
    assert gold_of(net.eval(), rows).leave_out_mode == "mask"


def gold_of(net, rows, **changes):
    ladder = choice.ladder_for(net, (*rows[:2], None), rows[2:], 1e6, GIVEN | changes)
    return ladder.candidates[0].attributor


def test_every_method_is_within_reach_of_some_budget(rows, net):
    """From the most faithful to the fastest, as the budget gets smaller."""
    ladder = choice.ladder_for(net, (*rows[:2], None), rows[2:], 1e6, GIVEN)
    names = [candidate.name for candidate in ladder.candidates]
    assert names == [
        "FurtherTraining", "RefinedAttributor", "UnrolledDifferentiation", "LinearizedFurtherTraining",
        "OnceLinearizedFurtherTraining", "SOURCE", "CGInfluence", "EKFACInfluence", "GradDot",
    ]  # fmt: skip
    seconds = [16e3, 8e3, 4e3, 2e3, 1e3, 500, 250, 125, 0]
    for place, name in enumerate(names):
        given = [
            Candidate(one.attributor, lambda s=s: s)
            for one, s in zip(ladder.candidates, seconds, strict=True)
        ]
        budget = 1.5 * seconds[place] + 1
        some = Ladder(given, "it is best", Deadline(budget), budget)
        made, scores = some.climb(lambda method: method.fit(*rows[:2]).transform(*rows[2:]))
        assert type(made.attributor).__name__ == name
        assert made.reason.startswith(name)
        assert scores.shape == (N_TEST, N)
        assert np.isfinite(scores).all()


def test_estimates_of_a_small_network(rows, net):
    """Every method can be tried, and tells a number of seconds."""
    ladder = choice.ladder_for(net, (*rows[:2], None), rows[2:], 1e6, GIVEN)
    for candidate in ladder.candidates:
        if candidate.name != "LinearizedFurtherTraining":  # as long as a seed of training
            assert 0 < candidate.seconds < 100
            assert candidate.is_tried
            assert not hasattr(candidate.attributor, "n_iter_")


@pytest.mark.parametrize("model", [Ridge(), LinearRegression()])
def test_linear_model_is_fitted_again(rows, model):
    X, y, X_test, y_test = rows
    fitted = model.fit(X, y)
    found = attribute(fitted, *rows, budget=1e6)
    assert isinstance(found.attributor, LeaveOneOut)
    for row in (0, 7):
        kept = np.arange(N) != row
        after = type(model)().fit(X[kept], y[kept])
        loss = [(m.predict(X_test) - y_test) ** 2 for m in (fitted, after)]
        np.testing.assert_allclose(found.scores[:, row], loss[1] - loss[0], rtol=1e-8, atol=1e-12)
    fast = attribute(model.fit(X, y), *rows, budget=1e-9)
    assert isinstance(fast.attributor, ExactInfluence)
    assert np.corrcoef(fast.scores.ravel(), found.scores.ravel())[0, 1] > 0.9
    assert "exact" not in fast.trust
    pipeline = make_pipeline(StandardScaler(), clone(model)).fit(X, y)
    assert attribute(pipeline, *rows, budget=1e6).process == "training anew: the whole Pipeline"
    fast = attribute(pipeline, *rows, budget=1e-9)
    assert fast.reason.endswith("The earlier steps of the Pipeline stay as they are.")


def test_unfitted_classifier_and_predicted_class(rows):
    X, y, X_test, _ = rows
    found = attribute(LogisticRegression(), X, np.where(y > 0, "high", "low"), X_test, budget=1e6)
    assert found.behaviour == "loss of each test row at its predicted class"
    assert found.scores.shape == (N_TEST, N)


@pytest.mark.parametrize(("budget", "expected"), [(1e6, "LeaveOneOut"), (1e-9, "Downsampling")])
def test_model_without_gradients(rows, budget, expected):
    X, y, X_test, y_test = rows
    neighbours = KNeighborsRegressor(3).fit(X[:12], y[:12])
    found = attribute(neighbours, X[:12], y[:12], X_test, y_test, budget=budget, random_state=0)
    assert type(found.attributor).__name__ == expected
    assert found.scores.shape == (N_TEST, 12)


def test_forests(rows):
    X, y, X_test, y_test = rows
    forest = RandomForestRegressor(5, max_depth=3, random_state=0).fit(X, y)
    found = attribute(forest, X, y, X_test, y_test, random_state=0)
    assert isinstance(found.attributor, TREX)
    assert "splits that move at random" in found.reason
    np.testing.assert_array_equal(found.scores, TREX(forest).fit(X, y).transform(X_test, y_test))
    found = attribute(forest, X, y, X_test, y_test, budget=1e-9)
    assert isinstance(found.attributor, LeafKernel)  # the last one is tried whatever the time


@pytest.mark.parametrize(("budget", "n_models"), [(600, 16), (1e-9, 1)])
@pytest.mark.parametrize("subsample", [0.7, 1.0])
def test_boosting(rows, budget, n_models, subsample):
    X, y, X_test, y_test = rows
    model = GradientBoostingRegressor(
        n_estimators=5, max_depth=2, subsample=subsample, random_state=0
    ).fit(X, y)
    found = attribute(model, X, y, X_test, y_test, budget=budget, random_state=0)
    assert isinstance(found.attributor, LeafInfluence)
    assert found.attributor.n_models == n_models
    assert "splits of the trees do not move" in found.trust
    if n_models == 1:
        assert found.errors is None
        return
    assert found.errors is not None
    agreement = float(re.search(r"two halves of the models.* agree (-?[\d.]+)", found.trust)[1])
    method = found.attributor
    each = method._each(method._test(X_test, y_test), method._members)
    halves = [np.nanmean(each[k::2], 0) for k in (0, 1)]
    known = np.isfinite(halves[0] + halves[1]).all(0)
    by_hand = [np.corrcoef(a[known], b[known])[0, 1] for a, b in zip(*halves, strict=True)]
    assert agreement == pytest.approx(np.mean(by_hand), abs=0.006)


class FittedOnce(GradientBoostingRegressor):
    """Boosting that refuses a second fit."""

    def fit(self, X, y, sample_weight=None):
        if self.random_state != 0:
            raise ValueError("once is enough")
        return super().fit(X, y, sample_weight)


def test_boosting_that_cannot_be_grown_again_is_explained_as_it_is(rows):
    X, y, X_test, y_test = rows
    model = FittedOnce(n_estimators=4, max_depth=2, random_state=0).fit(X, y)
    found = attribute(model, X, y, X_test, y_test, budget=600)
    assert isinstance(found.attributor, LeafInfluence)
    assert found.attributor.n_models == 1


def test_boosting_that_cannot_be_followed_is_fitted_again(rows):
    X, y, X_test, y_test = rows
    model = HistGradientBoostingRegressor(
        loss="absolute_error", max_iter=4, min_samples_leaf=5
    ).fit(X, y)
    found = attribute(model, X, y, X_test, y_test, budget=600)
    assert isinstance(found.attributor, LeaveOneOut)
    assert "no gradients" in found.reason


@pytest.mark.parametrize(
    "model",
    [SGDClassifier(random_state=0), LogisticRegression(solver="liblinear"), GaussianNB()],
)
def test_classifier_without_gradients_with_these_parameters(rows, model):
    X, y, X_test, y_test = rows
    found = attribute(model.fit(X, y > 0), X, y > 0, X_test, y_test > 0, budget=1e6)
    assert isinstance(found.attributor, LeaveOneOut)
    random = isinstance(model, SGDClassifier)
    assert len(found.attributor.seeds_) == (5 if random else 1)


@pytest.mark.parametrize(
    "model",
    [
        SGDClassifier(loss="log_loss", max_iter=20, tol=None),
        SGDRegressor(max_iter=20, tol=None),
        make_pipeline(StandardScaler(), SGDRegressor(max_iter=20, tol=None)),
    ],
)
def test_random_fits_have_seeds_and_errors(rows, model):
    X, y, X_test, y_test = rows
    if is_classifier(model):
        y, y_test = y > 0, y_test > 0
    found = attribute(model.fit(X, y), X, y, X_test, y_test, budget=1e6, random_state=0)
    assert isinstance(found.attributor, LeaveOneOut)
    assert len(found.attributor.seeds_) == 5
    assert found.errors.mean() > 0
    assert found.trust.startswith("standard errors are")
    assert "exact" not in str(found)
    name = next(name for name in model.get_params() if name.endswith("random_state"))
    without, seeds = np.arange(N) != 7, found.attributor.seeds_
    change = []
    for seed in seeds:
        fits = [clone(model).set_params(**{name: seed}).fit(X[r], y[r]) for r in (without, ...)]
        if is_classifier(model):
            logits = [fit.decision_function(X_test) for fit in fits]
            loss = [np.logaddexp(0, np.where(y_test, -f, f)) for f in logits]
        else:
            half = 0.5 if "SGD" in repr(model) else 1.0
            loss = [half * (fit.predict(X_test) - y_test) ** 2 for fit in fits]
        change.append(loss[0] - loss[1])
    np.testing.assert_allclose(found.scores[:, 7], np.mean(change, 0), rtol=1e-6, atol=1e-12)
    sem = np.std(change, 0, ddof=1) / np.sqrt(5)
    np.testing.assert_allclose(found.errors[:, 7], sem, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("model", [Ridge(), KNeighborsRegressor(3), SVR()])
def test_deterministic_fits_are_found_to_be(rows, model):
    X, y, *_ = rows
    found = attribute(model.fit(X, y), *rows, budget=1e6)
    assert len(found.attributor.seeds_) == 1
    assert found.errors is None
    assert found.trust == "exact: training is deterministic"


def test_one_seed_that_was_asked_for_is_not_called_exact(rows):
    X, y, *_ = rows
    model = SGDRegressor(max_iter=5, tol=None).fit(X, y)
    found = attribute(model, *rows, method=LeaveOneOut(n_seeds=1, leave_out=[0, 1]))
    assert found.trust == "one seed: with more, standard errors tell how random training is"


def test_a_model_of_other_weights_is_noticed(rows):
    X, y, *_ = rows
    model = Ridge().fit(X, y, np.linspace(0, 2, N))
    with pytest.warns(UserWarning, match="predicts otherwise than it does when it is fitted again"):
        found = attribute(model, *rows, budget=1e6)
    assert "the model given is another" in found.trust
    weighted = attribute(model, *rows, budget=1e6, sample_weight=np.linspace(0, 2, N))
    assert weighted.trust == "exact: training is deterministic"


def test_what_is_measured_is_said(rows):
    X, y, X_test, y_test = rows
    said = {}
    for model in (LinearSVC(), DecisionTreeClassifier(random_state=0), GaussianNB()):
        found = attribute(model.fit(X, y > 0), X, y > 0, X_test, y_test > 0, budget=1e6)
        said[type(model).__name__] = found.behaviour
    assert said == {
        "LinearSVC": "loss (hinge loss) of each test row",
        "DecisionTreeClassifier": (
            "loss (of probabilities that are smoothed, as counts of rows with one more) of each test "
            "row"
        ),
        "GaussianNB": "loss of each test row",
    }


def test_target_transform_is_looked_through(rows):
    """Networks inside are trained further, on the transformed targets."""
    X, y, X_test, y_test = rows
    y, y_test = 50 + 20 * y, 50 + 20 * y_test
    inner = MLPRegressor(hidden_layer_sizes=(4,), max_iter=30, random_state=0)
    model = TransformedTargetRegressor(inner, transformer=StandardScaler())
    search = GridSearchCV(model, {"regressor__alpha": [1e-3, 1.0]}, cv=2)
    with pytest.warns(fimoda._validation.ConvergenceWarning):
        search.fit(X, y)
    found = attribute(search, X, y, X_test, y_test, n_epochs=2, random_state=0)
    assert isinstance(found.attributor, FurtherTraining)
    best = search.best_estimator_
    seen = [best.transformer_.transform(t[:, None])[:, 0] for t in (y, y_test)]
    alone = FurtherTraining(best.regressor_, n_epochs=2, n_seeds=5, random_state=0).fit(X, seen[0])
    np.testing.assert_allclose(found.scores, alone.transform(X_test, seen[1]))
    assert "in the unit of the transformed target" in found.trust


def test_rows_that_only_the_estimator_takes(rows):
    X, y, X_test, y_test = rows
    frame = pd.DataFrame(np.r_[X, X_test], columns=[f"f{i}" for i in range(10)])
    frame.iloc[::5, 1] = np.nan
    frame["kind"] = pd.Categorical(np.where(frame["f2"] > 0, "high", "low"))
    train, test = frame[:N], frame[N:]
    model = HistGradientBoostingRegressor(max_iter=4, min_samples_leaf=5).fit(train, y)
    found = attribute(model, train, y, test, y_test, budget=1e6)
    assert isinstance(found.attributor, LeafInfluence)
    again = found.attributor.__sklearn_clone__().fit(train, y).transform(test, y_test)
    assert found.scores.shape == again.shape == (N_TEST, N)
    found = attribute(model, train, y, test, y_test, method=LeaveOneOut())
    without = clone(model).fit(train.drop(index=3), np.delete(y, 3))
    loss = [(m.predict(test) - y_test) ** 2 for m in (without, model)]
    np.testing.assert_allclose(found.scores[:, 3], loss[0] - loss[1], atol=1e-12)
    # and what is wrong with the rows is said by the estimator
    for wrong in ({"columns": frame.columns[::-1]}, {"columns": frame.columns[:-1]}):
        with pytest.raises(ValueError, match=r"names|missing"):
            attribute(model, train.reindex(**wrong), y, test, y_test)
        with pytest.raises(ValueError, match=r"names|missing"):
            attribute(model, train, y, test.reindex(**wrong), y_test)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        attribute(model, train, y[:-1], test, y_test)


def test_sparse_rows_and_texts(rows):
    X, y, X_test, y_test = rows
    sparse = [csr_array(np.where(abs(r) > 1, r, 0)) for r in (X, X_test)]
    model = LogisticRegression().fit(sparse[0], y > 0)
    found = attribute(model, sparse[0], y > 0, sparse[1], y_test > 0, budget=1e6)
    dense = attribute(
        model, sparse[0].toarray(), y > 0, sparse[1].toarray(), y_test > 0, budget=1e6
    )
    np.testing.assert_allclose(found.scores, dense.scores, atol=1e-5)
    words = np.array(["ant", "bee", "cow", "dog"])
    texts = [" ".join(words[np.argsort(r[:4])][:2]) for r in np.r_[X, X_test]]
    reader = make_pipeline(CountVectorizer(), Ridge()).fit(texts[:N], y)
    found = attribute(reader, texts[:N], y, texts[N:], y_test, budget=1e6)
    assert found.scores.shape == (N_TEST, N)
    assert found.process == "training anew: the whole Pipeline"


def test_bad_rows_are_said_to_be_bad(rows):
    X, y, X_test, y_test = rows
    bad = X.copy()
    bad[3, 1] = np.nan
    with pytest.raises(ValueError, match="X contains NaN"):
        attribute(
            LogisticRegression(solver="liblinear").fit(X, y > 0), bad, y > 0, X_test, y_test > 0
        )


def test_module_of_one_layer_is_a_network(rows):
    X, y, X_test, y_test = rows
    torch.manual_seed(0)
    layer = nn.Linear(10, 1).double()
    found = attribute(
        layer, X, y[:, None], X_test, y_test[:, None], n_epochs=2, criterion=nn.MSELoss(), lr=0.01
    )
    assert isinstance(found.attributor, FurtherTraining)


def test_comparison_of_a_solved_model_warns(rows):
    X, y, X_test, y_test = rows
    ridge = Ridge().fit(X, y)
    given = {"leave_out": 5, "n_seeds": 1, "methods": {"dots": GradDot(ridge)}, "random_state": 0}
    with pytest.warns(UserWarning, match="fitted by a solver"):
        compare_methods(ridge, X, y, X_test, y_test, **given)


def test_method_of_ones_own(rows, net):
    mine = GradCos(criterion=nn.MSELoss())
    found = attribute(net, *rows, method=mine)
    assert mine.estimator is None
    assert not hasattr(mine, "model_")
    expected = GradCos(net, criterion=nn.MSELoss()).fit(*rows[:2]).transform(*rows[2:])
    np.testing.assert_array_equal(found.scores, expected)
    assert found.reason == "GradCos, as asked for."


def test_result(rows, net):
    X, y, X_test, y_test = rows
    names = [f"r{i}" for i in range(N)]
    columns = [f"f{i}" for i in range(10)]
    train = pd.DataFrame(X, index=names, columns=columns)
    test = pd.DataFrame(X_test, index=list("abcdef"), columns=columns)
    found = attribute(net, train, y, test, y_test, method=GradDot(criterion=nn.MSELoss()))
    frame = found.to_frame()
    assert list(frame.index) == list("abcdef")
    assert list(frame.columns) == names
    top, known = found.top(3), found.attributor.top(test, y_test, k=3)
    np.testing.assert_array_equal(top.helpful, known.helpful)
    np.testing.assert_array_equal(top.harmful_scores, known.harmful_scores)
    display = found.plot(row=2, k=3)
    labels = [label.get_text() for label in display.ax_.get_yticklabels()]
    assert labels[:3] == [names[i] for i in top.helpful[2]]
    assert labels[3:] == [names[i] for i in top.harmful[2]][::-1]
    sizes = [bar.get_width() for bar in display.ax_.patches]
    np.testing.assert_allclose(sizes[:3], top.helpful_scores[2])
    plt.close("all")
    for text in (str(found), repr(found), found._repr_html_()):
        for fact in ("loss of each test row", "left out", "a step of gradient descent", "GradDot"):
            assert fact in text


def test_display_of_an_attributor(rows):
    X, y, X_test, y_test = rows
    gold = FurtherTraining(Ridge().fit(X, y), n_epochs=1, n_seeds=2, lr=1e-2, random_state=0)
    display = TopRowsDisplay.from_estimator(gold.fit(X, y), X_test, y_test, k=2).plot(1)
    assert len(display.ax_.patches) == 4
    assert display.ax_.containers[0].get_label() is not None
    with pytest.raises(ValueError, match=r"row must be .* 0 to 5, got 6"):
        display.plot(6)
    plt.close("all")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "best"}, r"method must be 'auto' or an attributor, for example .*, got 'best'"),
        ({"method": GradDot}, r"method must be .*, for example GradDot\(\), got <class"),
        ({"method": GradDot(Ridge())}, r"method must be an attributor of `model`, but has another"),
        (
            {"method": GradDot(), "measurement": "margin"},
            r"measurement is for method='auto', .* as in GradDot\(measurement=...\)",
        ),
        ({"budget": 0}, r"'budget' parameter of attribute must be .* Got 0"),
    ],
)
def test_errors(rows, net, changes, message):
    with pytest.raises(ValueError, match=message):
        attribute(net, *rows, **changes)


# ---- comparison -----------------------------------------------------------------------------


def test_comparison(rows, net):
    given = {"criterion": nn.MSELoss(), "lr": 0.05, "random_state": 0}
    found = compare_methods(net, *rows, epochs=[1, 3], n_seeds=3, leave_out=12, **given)
    assert found.agreement.methods[:2] == ["Grad-Dot", "Grad-Cos"]
    assert set(found.agreement.methods) | set(found.skipped) >= {"unrolled", "linearised"}
    means = dict(zip(found.agreement.methods, found.agreement.mean()[:, -1], strict=True))
    centred = found.agreement.mean("cosine_centred")[:, -1]
    assert centred[found.agreement.methods.index("unrolled")] > 0.99
    by_row = found.agreement.values["cosine"][:, -1]
    chosen = by_row[found.agreement.methods.index(found.recommended)]
    missing = by_row[by_row.mean(1).argmax()] - chosen
    assert missing.mean() <= 2 * missing.std() / (len(missing) - 1) ** 0.5
    # what is as good is chosen by time
    as_good = [name for name in means if means[name] == means[found.recommended]]
    assert found.recommended == min(as_good, key=found.seconds.get)
    assert found.one_seed.shape == (2,)
    # full batches: seeds differ in the order of summation only
    np.testing.assert_allclose(found.one_seed, 1, atol=1e-6)
    assert repr(found) == str(found)
    assert "recommended" in str(found)
    assert list(found.to_frame().columns) == ["1 epoch", "3 epochs", "seconds", "not_run"]


def test_comparison_of_ones_own_methods(rows):
    X, y, X_test, y_test = rows
    model = MLPClassifier((4,), max_iter=20, random_state=0)
    with pytest.warns(fimoda._validation.ConvergenceWarning):
        model.fit(X, y > 0)
    methods = {
        "dots": GradDot(model),
        "no": ExactInfluence(model, memory_budget=10),
        "late": GradCos(model),
    }
    given = {"leave_out": 5, "n_seeds": 1, "random_state": 0}
    found = compare_methods(model, X, y > 0, X_test, y_test > 0, methods=methods, **given)
    assert found.agreement.methods == ["dots", "late"]
    assert found.skipped["no"].startswith("MemoryError")
    frame = found.to_frame()
    assert list(frame.index) == ["dots", "late", "no"]
    assert frame.loc["no", "not_run"].startswith("MemoryError")
    assert frame.loc["no", ["1 epoch", "10 epochs", "seconds"]].isna().all()
    assert frame.loc["dots", "not_run"] == ""
    assert "no: not run, MemoryError" in str(found)
    assert np.isnan(found.one_seed).all()
    with pytest.raises(ValueError, match=r"methods: none of them ran"):
        compare_methods(model, X, y > 0, X_test, y_test > 0, methods={"no": methods["no"]}, **given)
