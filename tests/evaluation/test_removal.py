"""Removal curves: planted problems, a plain loop over test rows, failures and errors."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import make_regression
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier

from fimoda import (
    ExactInfluence,
    FurtherTraining,
    GradDot,
    LeaveOneOut,
    SubsetRemovalCurve,
    SubsetRemovalCurveDisplay,
    subset_removal_curve,
    train_on_subsets,
)
from fimoda.evaluation.removal import _random_rows
from fimoda.measurements import Output

mpl.use("Agg")

N_TRAIN, N_TEST = 30, 6


class Planted:
    """Test row z is classified correctly while more than half of its own votes are there.

    The votes of test row z are training rows 4z to 4z+3, and the rows from 24 on vote for nobody.
    """

    n_seeds = 2

    def __init__(self):
        self.votes = np.zeros((N_TEST, N_TRAIN))
        for z in range(N_TEST):
            self.votes[z, 4 * z : 4 * z + 4] = 1
        self.calls: list[np.ndarray] = []

    def __call__(self, subsets):
        self.calls.append(subsets)
        margins = subsets @ self.votes.T - 2.5  # positive for three votes
        jitter = np.linspace(-0.1, 0.1, self.n_seeds)
        return SimpleNamespace(subsets=subsets, measured=margins[..., None] + jitter)


def labels():
    """Two test rows a class, and the rows that vote for nobody in the first."""
    return np.r_[np.repeat([0, 0, 1, 1, 2, 2], 4), np.zeros(6, int)], np.array([0, 0, 1, 1, 2, 2])


def test_planted_votes():
    train = Planted()
    y_train, y_test = labels()
    methods = {"exact": train.votes, "blind": np.tile(np.arange(30.0), (N_TEST, 1))}
    curve = subset_removal_curve(
        methods, train, y_train, y_test=y_test, k=[1, 2, 3], random_state=0
    )
    assert curve.methods == ["exact", "blind", "Random"]
    assert_array_equal(curve.k, [1, 2, 3])
    assert_array_equal(curve.test_rows, range(N_TEST))
    assert_array_equal(curve.mean()[0], [0, 1, 1])
    assert_array_equal(curve.mean()[1], 0)
    assert curve.mean()[2, 2] < 1
    assert curve.n_failed == 0
    assert curve.sem().shape == (3, 3)


def naive_flips(scores, train, k, test_rows):
    """A loop over test rows and sizes; every size is trained, even after a flip."""
    flips = np.zeros((len(k), len(test_rows)))
    for column, z in enumerate(test_rows):
        order = sorted(range(scores.shape[1]), key=lambda i: (-scores[z, i], i))
        flipped = False
        for j, size in enumerate(k):
            subset = np.ones(scores.shape[1], dtype=bool)
            subset[order[:size]] = False
            flipped = flipped or train(subset[None]).measured[0, z].mean() <= 0
            flips[j, column] = flipped
    return flips


def margin_trainer(X, y, X_test, y_test, n_seeds=2):
    """Margins of least squares on the labels; the "seeds" differ in their penalty."""

    def train(subsets):
        measured = np.zeros((len(subsets), len(X_test), n_seeds))
        for s, subset in enumerate(subsets):
            for r in range(n_seeds):
                model = Ridge(1.0 + r).fit(X[subset], 2 * y[subset] - 1)
                measured[s, :, r] = model.predict(X_test) * (2 * y_test - 1)
        return SimpleNamespace(subsets=subsets, measured=measured)

    return train


@pytest.fixture(scope="module")
def classes():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(60, 2))
    y = (X[:, 0] + 0.8 * rng.normal(size=60) > 0).astype(int)
    return X[:40], y[:40], X[40:52], y[40:52]


def test_against_a_loop(classes):
    X, y, X_test, y_test = classes
    train = margin_trainer(X, y, X_test, y_test)
    influence = ExactInfluence(LogisticRegression().fit(X, y)).fit(X, y)
    scores = influence.transform(X_test, y_test)
    k = [1, 2, 4, 8]
    curve = subset_removal_curve(
        {"influence": influence, "opposite": -scores},
        train, y, X_test, y_test, k=k, random_state=0,
    )  # fmt: skip
    correct = (train(np.ones((1, 40), bool)).measured[0] > 0).all(1)
    assert 0 < correct.sum() < len(correct)
    assert_array_equal(curve.test_rows, np.flatnonzero(correct))
    assert_array_equal(curve.effects[0], naive_flips(scores, train, k, curve.test_rows))
    assert_array_equal(curve.effects[1], naive_flips(-scores, train, k, curve.test_rows))
    influence_flips, opposite, random = curve.mean()[:, -1]
    assert influence_flips > random >= opposite


def test_flipped_rows_and_equal_subsets_are_not_trained_again():
    train = Planted()
    y_train, y_test = labels()
    methods = {"a": train.votes, "b": train.votes}
    curve = subset_removal_curve(
        methods, train, y_train, y_test=y_test, k=[1, 2, 3, 4], random_baseline=False
    )
    # all rows, then one subset a test row of size 1 and of size 2, shared by both methods
    assert [len(call) for call in train.calls] == [1, 6, 6]
    assert curve.n_trained == 13
    assert_array_equal(curve.effects[:, 2:], 1)


def test_random_baseline_stays_within_the_class():
    y_train, y_test = labels()
    rows = _random_rows(y_train, y_test, N_TEST, 9, True, np.random.RandomState(0))
    for chosen, label in zip(rows, y_test, strict=True):
        own = chosen[chosen >= 0]
        assert len(set(own)) == len(own) == min(9, (y_train == label).sum())
        assert (y_train[own] == label).all()
    assert not np.array_equal(rows[0], rows[1])
    anywhere = _random_rows(y_train, None, N_TEST, 9, False, np.random.RandomState(0))
    assert (anywhere >= 0).all()
    assert len(set(y_train[anywhere[0]])) == 3


def test_random_state_repeats():
    y_train, y_test = labels()
    asked = []
    for seed in (0, 0, 1):
        train = Planted()
        # nine rows of a class of eight: all of them go
        subset_removal_curve(
            {"v": train.votes}, train, y_train, y_test=y_test, k=[3, 9], random_state=seed
        )
        asked.append(train.calls[1])
    assert_array_equal(asked[0], asked[1])
    assert not np.array_equal(asked[0], asked[2])


def test_only_rows_correct_with_every_seed():
    train = Planted()
    train.votes[2, :] = 0
    plain = train.__call__

    def unsure(subsets):
        outcomes = plain(subsets)
        outcomes.measured[:, 4, 1] = -0.5  # right in the mean, wrong with one seed
        outcomes.measured[:, 5, 0] = np.nan  # one training failed
        return outcomes

    y_train, y_test = labels()
    curve = subset_removal_curve({"v": train.votes}, unsure, y_train, y_test=y_test, k=[2])
    assert_array_equal(curve.test_rows, [0, 1, 3])


def test_failed_trainings():
    planted = Planted()

    def train(subsets):
        outcomes = planted(subsets)
        smaller = subsets.sum(1) < N_TRAIN
        outcomes.measured[smaller, 0] = np.nan  # all seeds of test row 0
        outcomes.measured[smaller, 1, 1] = np.nan  # one seed of test row 1
        return outcomes

    y_train, y_test = labels()
    curve = subset_removal_curve(
        {"v": planted.votes}, train, y_train, y_test=y_test, k=[2, 3], random_baseline=False
    )
    assert_array_equal(curve.effects[0, 0], [0, 1, 1, 1, 1, 1])
    assert curve.n_failed == 2


def test_an_attributor_of_some_rows(classes):
    X, y, X_test, y_test = classes
    settings = {"n_epochs": 1, "n_seeds": [0], "optimizer": "SGD", "lr": 0.1, "compile": False}
    model = LogisticRegression().fit(X, y)
    gold = FurtherTraining(model, leave_out=[7, 3, 20], **settings).fit(X, y)
    trained = []
    plain = margin_trainer(X, y, X_test, y_test)

    def train(subsets):
        trained.append(subsets)
        return plain(subsets)

    subset_removal_curve({"gold": gold}, train, y, X_test, y_test, k=[2, 3], random_baseline=False)
    lost = np.flatnonzero(~np.vstack(trained).all(0))
    assert_array_equal(lost, [3, 7, 20])
    with pytest.raises(
        ValueError, match=r"at most 3, the rows with a score in methods\['gold'\], got 4"
    ):
        subset_removal_curve({"gold": gold}, plain, y, X_test, y_test, k=[4])


# ---- regression -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def regression():
    X, y = make_regression(70, 4, noise=30, random_state=0)
    y = (y - y.mean()) / y.std()
    return X[:60], y[:60], X[60:], y[60:]


def ridge_trainer(X, y, X_test, y_test):
    def train(subsets):
        predicted = np.array([Ridge().fit(X[s], y[s]).predict(X_test) for s in subsets])
        return SimpleNamespace(subsets=subsets, measured=np.abs(predicted - y_test)[..., None])

    return train


def test_change_of_the_absolute_error(regression):
    X, y, X_test, y_test = regression
    train = ridge_trainer(X, y, X_test, y_test)
    influence = ExactInfluence(Ridge().fit(X, y), damping=0.0).fit(X, y)
    k = [1, 5, 10]
    curve = subset_removal_curve(
        {"exact": influence}, train, y, X_test, y_test, k=k, task="regression", random_state=0
    )
    scores = influence.transform(X_test, y_test)
    before = train(np.ones((1, 60), bool)).measured[0, :, 0]
    for z in range(10):
        order = np.argsort(-scores[z], kind="stable")
        for j, size in enumerate(k):
            subset = np.ones((1, 60), dtype=bool)
            subset[0, order[:size]] = False
            expected = train(subset).measured[0, z, 0] - before[z]
            assert_allclose(curve.effects[0, j, z], expected, rtol=1e-12)
    assert (np.diff(curve.mean()[0]) > 0).all()
    assert (curve.mean()[0] > 3 * np.abs(curve.mean()[1])).all()
    assert curve.n_trained <= 1 + 2 * 3 * 10


def test_regression_without_targets_of_the_test_rows(regression):
    X, y, X_test, y_test = regression
    scores = np.random.default_rng(0).normal(size=(10, 60))
    train = ridge_trainer(X, y, X_test, y_test)
    curve = subset_removal_curve({"m": scores}, train, y, k=3, task="regression")
    assert curve.effects.shape == (2, 1, 10)


# ---- models that are trained again ----------------------------------------------------------


@pytest.fixture(scope="module")
def three_classes():
    rng = np.random.default_rng(4)
    X = rng.normal(size=(75, 2))
    y = np.argmax(X @ [[1.0, 0.2, -1.0], [0.3, -1.0, 0.5]] + 1.2 * rng.normal(size=(75, 3)), 1)
    y = np.array(["a", "b", "c"])[y]
    return X[:60], y[:60], X[60:], y[60:]


def test_an_estimator_of_three_classes_is_trained_again(three_classes):
    """Right is the predicted class, which may have a probability below one half."""
    X, y, X_test, y_test = three_classes
    model = LogisticRegression(C=0.1).fit(X, y)

    def correct(subsets):
        fits = [LogisticRegression(C=0.1).fit(X[s], y[s]) for s in subsets]
        measured = np.array([np.where(fit.predict(X_test) == y_test, 1, -1) for fit in fits])
        return SimpleNamespace(measured=measured[..., None])

    probability = model.predict_proba(X_test).max(1)[model.predict(X_test) == y_test]
    assert probability.min() < 0.5
    influence = ExactInfluence(model).fit(X, y)
    scores = influence.transform(X_test, y_test)
    expected = subset_removal_curve({"m": scores}, correct, y, y_test=y_test, k=[2, 6, 12])
    assert 0 < expected.mean()[0, -1] < 1
    for train in (model, LogisticRegression(C=0.1), influence, LeaveOneOut(model, n_seeds=2)):
        found = subset_removal_curve(
            {"m": influence}, train, y, X_test, y_test, X_train=X, k=[2, 6, 12]
        )
        assert_array_equal(found.test_rows, expected.test_rows)
        assert_array_equal(found.effects[0], expected.effects[0])


def test_a_network_is_trained_again_as_the_method_says(three_classes):
    X, y, X_test, y_test = three_classes
    net = MLPClassifier((4,), max_iter=30, random_state=0, solver="sgd", learning_rate_init=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net.fit(X, y)
    settings = {"n_seeds": [3, 5], "n_epochs": 4, "batch_size": 10}
    classes = np.array(["a", "b", "c"])

    def train(subsets):
        outputs = [
            train_on_subsets(
                net, X, y, subsets, X_test, y_test, measurement=Output(c), **settings
            ).measured
            for c in range(3)
        ]
        right = classes[np.argmax(outputs, 0)] == y_test[:, None]
        return SimpleNamespace(measured=np.where(right, 1.0, -1.0))

    scores = np.random.default_rng(0).normal(size=(len(X_test), len(X)))
    curves = [
        subset_removal_curve(
            {"m": scores}, one, y, X_test, y_test, X_train=X, k=[10, 30], random_state=0
        )
        for one in (train, LeaveOneOut(net, **settings))
    ]
    assert_array_equal(curves[0].test_rows, curves[1].test_rows)
    assert_array_equal(curves[0].effects, curves[1].effects)
    assert curves[0].mean()[:, -1].max() > 0


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_an_equal_call_trains_nothing(three_classes, tmp_path):
    """Nor does a longer one train what the first has."""
    X, y, X_test, y_test = three_classes
    net = MLPClassifier((4,), max_iter=5, random_state=0, solver="sgd", learning_rate_init=0.3)
    train = LeaveOneOut(
        net.fit(X, y), n_seeds=[3], n_epochs=4, batch_size=10, checkpoint_dir=tmp_path
    )
    scores = np.random.default_rng(0).normal(size=(len(X_test), len(X)))

    def files_after(k):
        curve = subset_removal_curve(
            {"m": scores}, train, y, X_test, y_test, X_train=X, k=k, random_state=0
        )
        return curve.effects, {
            file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.npy")
        }

    effects, first = files_after([10])
    again, second = files_after([10])
    assert_array_equal(again, effects)
    assert second == first
    longer, third = files_after([10, 30])
    assert_array_equal(longer[:, :1], effects)
    assert first.items() < third.items()


def test_an_estimator_of_a_regression_is_trained_again(regression):
    X, y, X_test, y_test = regression
    scores = np.random.default_rng(0).normal(size=(10, 60))
    settings = {"k": [1, 5], "task": "regression", "random_state": 0}
    curves = [
        subset_removal_curve({"m": scores}, train, y, X_test, y_test, X_train=X, **settings)
        for train in (Ridge(), ridge_trainer(X, y, X_test, y_test))
    ]
    assert_allclose(curves[0].effects, curves[1].effects, rtol=1e-6, atol=1e-9)


def test_weights_of_the_fit():
    rng = np.random.default_rng(0)
    X, X_test = rng.normal(size=(60, 3)), rng.normal(size=(12, 3))
    y, y_test = (X[:, 0] + rng.normal(size=60) > 0).astype(int), (X_test[:, 0] > 0).astype(int)
    weights = np.where(y == 1, 6.0, 0.3)
    model = LogisticRegression().fit(X, y, weights)
    methods = {"exact": ExactInfluence(model).fit(X, y, weights)}
    given = {"X_train": X, "k": [10, 20], "random_baseline": False}
    found = subset_removal_curve(methods, model, y, X_test, y_test, **given)
    scores = methods["exact"].transform(X_test, y_test)
    for j, k in enumerate((10, 20)):
        flipped = []
        for z in found.test_rows:
            kept = np.argsort(-scores[z], kind="stable")[k:]
            again = LogisticRegression().fit(X[kept], y[kept], weights[kept])
            flipped.append(again.predict(X_test[[z]])[0] != y_test[z])
        assert ((found.effects[0, j] > 0) >= flipped).all()
        if j == 0:
            assert_array_equal(found.effects[0, j] > 0, flipped)
    same = subset_removal_curve(
        {"exact": scores}, model, y, X_test, y_test, sample_weight=weights, **given
    )
    assert_array_equal(same.effects, found.effects)
    other = subset_removal_curve({"exact": scores}, model, y, X_test, y_test, **given)
    assert not np.array_equal(other.test_rows, found.test_rows) or not np.array_equal(
        other.effects, found.effects
    )


def test_errors_of_models_that_are_trained_again(classes):
    X, y, X_test, y_test = classes
    scores = {"m": np.zeros((len(X_test), len(X)))}
    model = LogisticRegression().fit(X, y)
    with pytest.raises(ValueError, match="X_train must be given to train LogisticRegression"):
        subset_removal_curve(scores, model, y, X_test, y_test, k=[1])
    with pytest.raises(ValueError, match="X_train and X_test must be given"):
        subset_removal_curve(scores, model, y, y_test=y_test, k=[1])
    with pytest.raises(ValueError, match=r"task='regression' does not fit train.*binary logit"):
        subset_removal_curve(scores, model, y, X_test, y_test, X_train=X, k=[1], task="regression")
    smaller = min((y == 0).sum(), (y == 1).sum())
    with pytest.raises(ValueError, match=rf"k must be below {smaller}, the rows of class"):
        subset_removal_curve(scores, model, y, X_test, y_test, X_train=X, k=[smaller])


# ---- errors ---------------------------------------------------------------------------------


def test_errors(classes):
    train, (y_train, y_test) = Planted(), labels()
    votes = {"v": train.votes}
    with pytest.raises(ValueError, match="methods must name at least one"):
        subset_removal_curve({}, train, y_train, y_test=y_test)
    for bad in ([], [0, 1], [2, 1], [1, 1], [30], [1.5], [[1, 2]]):
        with pytest.raises(ValueError, match="k must be increasing numbers of rows from 1 to 29"):
            subset_removal_curve(votes, train, y_train, y_test=y_test, k=bad)
    with pytest.raises(
        ValueError, match=r"'task' parameter of subset_removal_curve must be .*Got 'x'"
    ):
        subset_removal_curve(votes, train, y_train, y_test=y_test, task="x")
    with pytest.raises(ValueError, match="y_test must be given for the baseline"):
        subset_removal_curve(votes, train, y_train)
    with pytest.raises(ValueError, match="methods must not hold 'Random'"):
        subset_removal_curve({"Random": train.votes}, train, y_train, y_test=y_test)
    with pytest.raises(ValueError, match=r"methods\['v'\].*30 training rows.*shape \(6, 29\)"):
        subset_removal_curve({"v": train.votes[:, 1:]}, train, y_train, y_test=y_test)
    with pytest.raises(ValueError, match=r"methods\['v'\] has 5 test rows, 6 were measured"):
        subset_removal_curve({"v": train.votes[1:]}, train, y_train, y_test=y_test)
    with pytest.raises(ValueError, match="y_test must have one entry for each of the 6 test rows"):
        subset_removal_curve(votes, train, y_train, y_test=y_test[1:])

    def flat(subsets):
        return SimpleNamespace(measured=np.ones((len(subsets), N_TEST)))

    with pytest.raises(ValueError, match=r"n_subsets = 1, got shape \(1, 6\)"):
        subset_removal_curve(votes, flat, y_train, y_test=y_test)

    def wrong(subsets):
        return SimpleNamespace(measured=-np.ones((len(subsets), N_TEST, 1)))

    with pytest.raises(ValueError, match=r"train must measure a positive number.*none of 6"):
        subset_removal_curve(votes, wrong, y_train, y_test=y_test)
    X, y, X_test, y_test = classes
    dot = GradDot(LogisticRegression().fit(X, y), measurement="margin").fit(X, y)
    with pytest.raises(ValueError, match=r"methods\['dot'\] must score the loss.*'margin'"):
        subset_removal_curve({"dot": dot}, train, y, X_test, y_test)


# ---- results --------------------------------------------------------------------------------


def example(task="classification") -> SubsetRemovalCurve:
    effects = np.random.default_rng(0).integers(2, size=(2, 3, 5)).astype(float)
    return SubsetRemovalCurve(
        ["Grad-Dot", "Random"], np.array([1, 5, 20]), np.arange(5), effects, task, 20, 0
    )


def test_mean_sem_and_frame():
    curve = example()
    assert_allclose(curve.mean(), curve.effects.mean(2))
    assert_allclose(curve.sem(), curve.effects.std(2, ddof=1) / np.sqrt(5))
    frame = curve.to_frame()
    assert list(frame.columns) == ["method", "k", "mean", "sem"]
    table = frame.pivot(index="method", columns="k", values="mean")
    assert_array_equal(table.loc[curve.methods, [1, 5, 20]], curve.mean())
    single = SubsetRemovalCurve(
        ["m"], np.array([1]), np.arange(1), np.ones((1, 1, 1)), "classification", 2, 0
    )
    assert np.isnan(single.sem()).all()


@pytest.mark.parametrize(
    ("task", "label"),
    [
        ("classification", "fraction of test rows misclassified"),
        ("regression", "change of the absolute error"),
    ],
)
def test_display(task, label):
    import matplotlib.pyplot as plt

    curve = example(task)
    figure, (left, right) = plt.subplots(1, 2)
    display = SubsetRemovalCurveDisplay(curve).plot(right)
    assert display.ax_ is right
    assert display.figure_ is figure
    assert not left.lines
    assert right.get_ylabel() == label
    for name, mean in zip(curve.methods, curve.mean(), strict=True):
        (line,) = [line for line in right.lines if line.get_label() == name]
        assert_array_equal(line.get_xdata(), curve.k)
        assert_array_equal(line.get_ydata(), mean)
    figure.canvas.draw()
    y_train, y_test = labels()
    train = Planted()
    made = SubsetRemovalCurveDisplay.from_attributors(
        {"v": train.votes}, train, y_train, y_test=y_test, k=[2], random_state=0
    )
    assert_array_equal(made.curve.mean()[0], [1])
    assert made.ax_ is not right
    plt.close("all")
