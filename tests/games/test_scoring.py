"""Scorers of models that are known by their outputs, against scorers of the models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import make_classification, make_regression
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import f1_score, get_scorer, make_scorer
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from fimoda import DataShapley
from fimoda.games.scoring import as_scorer, scored


def score_of(model, scoring, X, y):
    """Return the score from the outputs of a model on its own training rows."""
    method = DataShapley(model).fit(X, y)
    test = method._test(X, y)
    measured = scored(method.model_, scoring, test.rows, X, y)
    found = measured.measure(method.model_.outputs(test.inputs), test.targets)
    assert found.shape == (len(X),)
    assert (found == found[0]).all()
    return float(found[0])


@pytest.mark.parametrize(
    "scoring",
    [
        *(
            "accuracy",
            "roc_auc",
            "neg_log_loss",
            "balanced_accuracy",
            "f1_macro",
            "jaccard_weighted",
        ),
        *("matthews_corrcoef", "adjusted_rand_score"),
        make_scorer(f1_score, pos_label="no"),
        lambda model, X, y: np.mean(model.predict(X) == y) ** 2,
    ],
)
@pytest.mark.parametrize("model", [LogisticRegression(), DecisionTreeClassifier(max_depth=2)])
def test_classes(model, scoring):
    X, y = make_classification(50, 4, flip_y=0.3, random_state=0)
    y = np.array(["no", "yes"])[y]
    model.fit(X, y)
    expected = (
        get_scorer(scoring)(model, X, y) if isinstance(scoring, str) else scoring(model, X, y)
    )
    assert_allclose(score_of(model, scoring, X, y), expected)


@pytest.mark.parametrize("scoring", ["f1", "precision", "recall", "average_precision"])
def test_numbers_as_classes(scoring):
    """Each table of counts has its own score, in whatever order it is asked for."""
    X, y = make_classification(50, 4, flip_y=0.3, random_state=0)
    for depth in (1, 2, 3, 1):
        model = DecisionTreeClassifier(max_depth=depth).fit(X, y)
        assert_allclose(score_of(model, scoring, X, y), get_scorer(scoring)(model, X, y))
        y = 1 - y


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize(
    "scoring", ["f1_macro", "balanced_accuracy", "neg_log_loss", "roc_auc_ovr"]
)
def test_three_classes_one_of_which_is_not_tested(scoring):
    X, y = make_classification(60, 4, n_informative=3, n_redundant=0, n_classes=3, random_state=0)
    model = LogisticRegression().fit(X, np.array(["a", "b", "c"])[y])
    every = np.array(["a", "b", "c"])[y]
    assert_allclose(score_of(model, scoring, X, every), get_scorer(scoring)(model, X, every))
    if scoring in ("f1_macro", "balanced_accuracy"):
        test = DataShapley(model).fit(X, every)._test(X[y < 2], every[y < 2])
        view = DataShapley(model).fit(X, every).model_
        measured = scored(view, scoring, test.rows, X[y < 2], every[y < 2])
        found = float(measured.measure(view.outputs(test.inputs), test.targets)[0])
        assert_allclose(found, get_scorer(scoring)(model, X[y < 2], every[y < 2]))


@pytest.mark.parametrize("scoring", ["roc_auc", "average_precision", "accuracy"])
def test_decision_functions(scoring):
    X, y = make_classification(50, 4, flip_y=0.3, random_state=0)
    model = SVC().fit(X, y)
    assert_allclose(score_of(model, scoring, X, y), get_scorer(scoring)(model, X, y))
    with pytest.raises(ValueError, match="predictions that the model makes"):
        score_of(model, "neg_log_loss", X, y)


def test_area_with_ties():
    X, y = make_classification(60, 4, flip_y=0.4, random_state=0)
    model = KNeighborsClassifier(3).fit(X, y)
    assert_allclose(score_of(model, "roc_auc", X, y), get_scorer("roc_auc")(model, X, y))


@pytest.mark.parametrize("scoring", ["r2", "neg_mean_absolute_error"])
@pytest.mark.parametrize("n_targets", [1, 2])
def test_numbers(scoring, n_targets):
    X, y = make_regression(30, 4, n_targets=n_targets, noise=20, random_state=0)
    model = Ridge().fit(X, y)
    assert_allclose(score_of(model, scoring, X, y), get_scorer(scoring)(model, X, y))


@pytest.mark.parametrize("refit", ["all", "last"])
def test_targets_that_are_transformed(refit):
    """The score is of the part that is fitted: R2 does not see the scale of the targets."""
    X, y = make_regression(12, 2, noise=20, random_state=0)
    whole = TransformedTargetRegressor(Ridge(), transformer=StandardScaler()).fit(X, y)
    game = DataShapley(whole, n_samples=2, scoring="r2", refit=refit, random_state=0).fit(X, y)
    gain = whole.score(X, y)  # no rows predict the mean
    assert_allclose(game.values(X, y).sum(), gain, atol=1e-6)


def test_unknown_name():
    with pytest.raises(ValueError, match=r"scoring must be the name of a scorer.*'acuracy'"):
        as_scorer("acuracy")


def test_stack_of_networks_in_blocks():
    """A score is of all test rows, however many outputs are computed at a time."""
    X, y = make_classification(1500, 4, flip_y=0.3, random_state=0)
    net = torch.nn.Linear(4, 2)
    method = DataShapley(net, criterion=torch.nn.CrossEntropyLoss(), n_epochs=1).fit(X, y)
    test = method._test(X, y)
    whole = scored(method.model_, "accuracy", test.rows, X, y)
    thetas = torch.stack([method.model_.theta, -method.model_.theta])
    found = whole.of_stack(method.model_, thetas)
    outputs = net(torch.tensor(X, dtype=torch.float32)).detach()
    right = (outputs.argmax(1).numpy() == y).mean()
    assert_allclose(found[:, 0], [right, 1 - right])
