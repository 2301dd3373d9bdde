"""The one call, and the comparison of methods."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_diabetes
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, SGDClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier
from torch import nn

import fimoda
from fimoda import (
    ExactInfluence,
    FurtherTraining,
    GradCos,
    GradDot,
    LeaveOneOut,
    TopRowsDisplay,
    attribute,
    compare_methods,
)

N, N_TEST = 40, 6


@pytest.fixture(scope="module")
def rows():
    X, y = load_diabetes(return_X_y=True)
    X, y = X / X.std(0), (y - y.mean()) / y.std()
    return X[:N], y[:N], X[N : N + N_TEST], y[N : N + N_TEST]


@pytest.fixture(scope="module")
def net(rows):
    X, y, *_ = rows
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 1)).double()
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
    own = {"n_seeds": 5} if expected == "FurtherTraining" else {}
    known = getattr(fimoda, expected)._parameter_constraints
    given = {k: v for k, v in GIVEN.items() if k in known}
    method = getattr(fimoda, expected)(net, **own, **given)
    np.testing.assert_array_equal(found.scores, method.fit(X, y).transform(X_test, y_test))
    if expected == "FurtherTraining":
        np.testing.assert_array_equal(found.errors, method.scores_sem_)
        assert found.process.endswith("3 epochs of SGD, learning rate 0.05, batches of 40")
        assert "standard errors are" in found.trust
    else:
        assert "more than the budget of 1e-09 s: FurtherTraining" in found.reason
        assert found.errors is None


def test_every_method_is_within_reach_of_some_budget(rows, net, monkeypatch):
    """From the most faithful to the fastest, as the budget gets smaller."""
    from fimoda.attribution import choice

    # a trial that warms up, and one at a second an epoch and model; the third would take too long
    times = iter([5.0, 2.0] * 3)
    monkeypatch.setattr(choice, "_seconds", lambda *_: next(times))
    # seconds: further training 3.05 x 41 x 5 = 625, unrolled 3 x 7 x 6 = 126, one kernel about 30
    for budget, expected in ((640, "FurtherTraining"), (140, "Unrolled"), (40, "Linearized")):
        made = choice.choose(net, (*rows[:2], None), rows[2:], budget, GIVEN)
        assert type(made.attributor).__name__.startswith(expected)
        assert made.reason.startswith(expected)
    assert made.attributor.n_segments == 1


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


def test_unfitted_classifier_and_predicted_class(rows):
    X, y, X_test, _ = rows
    found = attribute(LogisticRegression(), X, np.where(y > 0, "high", "low"), X_test, budget=1e6)
    assert found.behaviour == "loss of each test row at its predicted class"
    assert found.scores.shape == (N_TEST, N)


@pytest.mark.parametrize(("budget", "expected"), [(1e6, "LeaveOneOut"), (1e-9, "Downsampling")])
def test_model_without_gradients(rows, budget, expected):
    X, y, X_test, y_test = rows
    forest = RandomForestRegressor(2, max_depth=2, random_state=0).fit(X[:12], y[:12])
    found = attribute(forest, X[:12], y[:12], X_test, y_test, budget=budget, random_state=0)
    assert type(found.attributor).__name__ == expected
    assert found.scores.shape == (N_TEST, 12)


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
        ({"budget": 0}, r"budget must be a positive number of seconds, got 0"),
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
    assert means[found.recommended] > max(means.values()) - 0.01
    # what is as good is chosen by time
    as_good = [name for name in means if means[name] == means[found.recommended]]
    assert found.recommended == min(as_good, key=found.seconds.get)
    assert found.one_seed.shape == (2,)
    # full batches: seeds differ in the order of summation only
    np.testing.assert_allclose(found.one_seed, 1, atol=1e-6)
    assert repr(found) == str(found)
    assert "recommended" in str(found)
    assert list(found.to_frame().columns) == ["1 epochs", "3 epochs", "seconds"]


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
    assert np.isnan(found.one_seed).all()
    with pytest.raises(ValueError, match=r"methods: none of them ran"):
        compare_methods(model, X, y > 0, X_test, y_test > 0, methods={"no": methods["no"]}, **given)
