"""Metrics as functions of outputs: scikit-learn's values, derivatives by hand, undefined ones."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from sklearn.datasets import load_iris, make_classification, make_regression
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.metrics import fbeta_score, get_scorer, make_scorer, roc_auc_score
from sklearn.neural_network import MLPClassifier

from fimoda import ExactInfluence, LeaveOneOut, as_final_model
from fimoda.evaluation.metrics import Judged, MeanOfRows, metric_of

OF_LABELS = ["accuracy", "neg_log_loss"]
OF_TWO = [*OF_LABELS, "neg_brier_score", "roc_auc", "average_precision", "f1", "recall"]
OF_NUMBERS = ["r2", "neg_mean_squared_error", "neg_mean_absolute_error", "neg_max_error"]


def two_classes():
    X, y = make_classification(90, 4, flip_y=0.3, random_state=0)
    return X, y


def three_classes():
    X, y = load_iris(return_X_y=True)
    return X[::2], y[::2]


def one_number():
    return make_regression(60, 4, noise=20.0, random_state=0)


def two_numbers():
    return make_regression(60, 4, n_targets=2, noise=20.0, random_state=0)


def outputs_of(estimator, X, y):
    """Return a fitted model's outputs (n, C) and the test set of its own rows."""
    model = as_final_model(estimator.fit(X, y), X, y)
    outputs = model.double.outputs(model.double.encode_X(X)).numpy()
    encoded = model.encode_y(y, outputs.shape[1]).numpy()
    return outputs, Judged(model, X, y, encoded)


CASES = [
    *[(LogisticRegression(), two_classes, name) for name in OF_TWO],
    *[(LogisticRegression(), three_classes, name) for name in [*OF_LABELS, "roc_auc_ovr"]],
    *[(MLPClassifier(random_state=0, max_iter=20), three_classes, name) for name in OF_LABELS],
    *[(RidgeClassifier(), two_classes, name) for name in ["accuracy", "f1", "selection_rate"]],
    *[(LinearRegression(), one_number, name) for name in OF_NUMBERS],
    *[(LinearRegression(), two_numbers, name) for name in OF_NUMBERS[:-1]],
]


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
@pytest.mark.parametrize(
    ("estimator", "data", "name"), CASES, ids=[f"{type(c[0]).__name__}-{c[2]}" for c in CASES]
)
def test_values_are_those_of_scikit_learn(estimator, data, name):
    try:
        outputs, test = outputs_of(estimator, *data())
    except TypeError:  # a model that is only fitted again
        X, y = data()
        attributor = LeaveOneOut(estimator.fit(X, y), n_seeds=1, leave_out=[0]).fit(X, y)
        outputs = attributor.model_.outputs(attributor._own.inputs).numpy()
        test = Judged(attributor.model_, X, y, attributor._own.targets.numpy())
    metric = metric_of(name, test)
    if name == "selection_rate":
        expected = estimator.predict(test.X).mean()
    else:
        expected = get_scorer(name)(estimator, test.X, test.y)
    both = metric.values(np.stack([outputs, outputs[:, ::-1]]))
    np.testing.assert_allclose(both[0], expected, rtol=1e-6)
    assert both.shape == (2,)


def test_labels_are_the_users():
    X, y = two_classes()
    words = np.array(["no", "yes"])[y]
    _, test = outputs_of(LogisticRegression(), X, words)
    outputs, _ = outputs_of(LogisticRegression(), X, words)
    scorer = make_scorer(partial(fbeta_score, pos_label="yes", beta=2))
    expected = scorer(LogisticRegression().fit(X, words), X, words)
    np.testing.assert_allclose(metric_of(scorer, test).values(outputs[None]), expected)


def test_probabilities_as_outputs():
    """A forest's outputs are probabilities, and there is no decision function."""
    X, y = two_classes()
    forest = RandomForestClassifier(20, random_state=0).fit(X, y)
    attributor = LeaveOneOut(forest, n_seeds=1, leave_out=[0]).fit(X, y)
    rows = attributor._test(X, y)
    outputs = attributor.model_.outputs(rows.inputs).numpy()
    test = Judged(attributor.model_, X, y, y)
    for name in ("accuracy", "roc_auc", "neg_brier_score", "average_precision"):
        expected = get_scorer(name)(forest, X, y)
        np.testing.assert_allclose(metric_of(name, test).values(outputs[None])[0], expected)


@pytest.mark.parametrize("name", ["selection_rate", "true_positive_rate", "false_positive_rate"])
def test_rates_by_hand(name):
    outputs, test = outputs_of(LogisticRegression(), *two_classes())
    counted = {"selection_rate": test.y >= 0, "true_positive_rate": test.y == 1}
    rows = counted.get(name, test.y == 0)
    found = metric_of(name, test).values(np.stack([outputs, -outputs]))
    np.testing.assert_allclose(
        found, [(outputs[rows, 0] > 0).mean(), (-outputs[rows, 0] > 0).mean()]
    )


def test_calibration_by_hand():
    outputs, test = outputs_of(LogisticRegression(), *two_classes())
    expected = (1 / (1 + np.exp(-outputs[:, 0]))).mean() - test.y.mean()
    np.testing.assert_allclose(metric_of("calibration", test).values(outputs[None])[0], expected)


# ---- derivatives ----------------------------------------------------------------------------


def test_derivatives_in_closed_form():
    outputs, test = outputs_of(LinearRegression(), *two_numbers())
    error, around = outputs - test.y, ((test.y - test.y.mean(0)) ** 2).sum(0)
    steps = np.full(2, 1e-4)
    found = metric_of("r2", test).slopes(outputs, steps)
    np.testing.assert_allclose(found, -2 * error / around / 2, rtol=1e-5, atol=1e-9)
    found = metric_of("neg_mean_squared_error", test).slopes(outputs, steps)
    np.testing.assert_allclose(found, -error / len(error), rtol=1e-5, atol=1e-7)

    outputs, test = outputs_of(LogisticRegression(), *three_classes())
    p = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
    found = metric_of("neg_log_loss", test).slopes(outputs, np.full(3, 1e-4))
    np.testing.assert_allclose(found, -(p - np.eye(3)[test.y]) / len(p), atol=1e-9)


@pytest.mark.parametrize("name", ["accuracy", "neg_log_loss", "true_positive_rate"])
def test_means_are_differentiated_as_any_metric(name):
    """Row by row, or all outputs changed one at a time."""
    outputs, test = outputs_of(LogisticRegression(), *two_classes())
    metric, steps = metric_of(name, test), np.array([0.3])
    assert isinstance(metric, MeanOfRows)
    whole = super(MeanOfRows, metric).slopes(outputs, steps)
    np.testing.assert_allclose(metric.slopes(outputs, steps), whole, atol=1e-12)
    assert (whole != 0).any()


def test_auc_counts_pairs_within_the_bandwidth():
    outputs, test = outputs_of(LogisticRegression(), *two_classes())
    f, positive, b = outputs[:, 0], test.y == 1, 0.4
    pairs = positive.sum() * (~positive).sum()
    near = np.abs(f[:, None] - f[None, :]) < b
    other = positive[:, None] != positive[None, :]
    expected = np.where(positive, 1, -1) * (near & other).sum(1) / (2 * b * pairs)
    found = metric_of("roc_auc", test).slopes(outputs, np.array([b]))[:, 0]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    # beyond all distances every pair counts
    wide = metric_of("roc_auc", test).slopes(outputs, np.array([1e3]))[:, 0]
    sizes = np.where(positive, positive.sum(), -(~positive).sum())
    np.testing.assert_allclose(wide, 1 / (2e3 * sizes))


def test_auc_with_ties():
    outputs, test = outputs_of(LogisticRegression(), *two_classes())
    rounded = outputs.round()
    found = metric_of("roc_auc", test).values(rounded[None])[0]
    np.testing.assert_allclose(found, roc_auc_score(test.y, rounded[:, 0]))


@pytest.mark.parametrize(
    ("name", "smooth"),
    [("accuracy", False), ("roc_auc", False), ("f1", False), ("neg_log_loss", True)],
)
def test_step_functions_are_told_from_smooth_ones(name, smooth):
    outputs, test = outputs_of(LogisticRegression(), *two_classes())
    assert metric_of(name, test).moves(outputs, outputs.std()) == smooth
    tied = outputs.round()  # as of trees
    assert len(np.unique(tied)) < 10
    assert metric_of(name, test).moves(tied, tied.std()) == smooth


# ---- bad ones -------------------------------------------------------------------------------


def test_names_of_another_kind_of_model():
    _, classes = outputs_of(LogisticRegression(), *two_classes())
    _, three = outputs_of(LogisticRegression(), *three_classes())
    _, numbers = outputs_of(LinearRegression(), *one_number())
    for test, name in [(numbers, "calibration"), (three, "selection_rate")]:
        with pytest.raises(ValueError, match=f"scoring='{name}' is for"):
            metric_of(name, test)
    X, y = one_number()
    outputs, numbers = outputs_of(LinearRegression(), X, y)
    with pytest.raises(ValueError, match="continuous"):  # scikit-learn's own words
        metric_of("accuracy", numbers).values(outputs[None])
    with pytest.raises(ValueError, match="scoring must be one of"):
        metric_of("acuracy", classes)
    with pytest.raises(ValueError, match="scoring must be a name"):
        metric_of(3, classes)


@pytest.mark.parametrize("name", ["roc_auc", "true_positive_rate", "recall", "average_precision"])
def test_metrics_that_need_a_positive_row(name):
    outputs, test = outputs_of(LogisticRegression(), *two_classes())
    rows = np.flatnonzero(test.y == 0)
    with pytest.raises(ValueError, match="not defined"):
        metric_of(name, test.take(rows)).values(outputs[None, rows])


@pytest.mark.parametrize("name", ["roc_auc", "neg_log_loss"])
def test_labels_alone_have_no_ranks(name):
    X, y = two_classes()
    votes = [("a", RidgeClassifier()), ("b", LogisticRegression())]
    model = VotingClassifier(votes, voting="hard").fit(X, y)
    attributor = LeaveOneOut(model, n_seeds=1, leave_out=[0]).fit(X, y)
    outputs = attributor.model_.outputs(attributor._own.inputs).numpy()
    metric = metric_of(name, Judged(attributor.model_, X, y, y))
    with pytest.raises(ValueError, match="predictions that the model makes"):
        metric.values(outputs[None])


def test_r2_of_targets_that_do_not_vary():
    X, y = one_number()
    outputs, test = outputs_of(LinearRegression(), X, y)
    same = Judged(test.model, X, np.ones(len(X)), np.ones((len(X), 1)))
    with pytest.raises(ValueError, match="y_test must vary"):
        metric_of("r2", same).values(outputs[None])


def test_scorers_that_give_no_number_or_ask_for_other_rows():
    outputs, test = outputs_of(LogisticRegression(), *two_classes())
    with pytest.raises(ValueError, match="one finite number"):
        metric_of(lambda estimator, X, y: np.nan, test).values(outputs[None])
    with pytest.raises(ValueError, match="all 90 test rows at once"):
        metric_of(lambda estimator, X, y: estimator.predict(X[:5]).mean(), test).values(
            outputs[None]
        )


def test_outputs_are_of_the_exact_model():
    """What the tests above call outputs is what an attributor attributes."""
    X, y = two_classes()
    outputs, _ = outputs_of(LogisticRegression(), X, y)
    attributor = ExactInfluence(LogisticRegression().fit(X, y)).fit(X, y)
    known = attributor.model_.outputs(attributor._own.inputs).double().numpy()
    np.testing.assert_allclose(known, outputs, rtol=1e-4, atol=1e-5)
