"""Views: what each makes of a user's model, its rows and its targets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from skorch import NeuralNetClassifier
from torch import nn

from fimoda.adapters import RefittableModel
from fimoda.rows import RawRows
from fimoda.trees import TreeModel
from fimoda.views import GradientView, PredictionView, TreeView, refitted_view

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 3))
Y = X[:, 0] + RNG.normal(size=30)
CLASSES = (Y > 0).astype(int)
PIPELINE = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, CLASSES)
SCALED = PIPELINE[0].transform(X)


def net() -> NeuralNetClassifier:
    torch.manual_seed(0)
    module = nn.Linear(3, 2).double()
    made = NeuralNetClassifier(
        module, criterion=nn.CrossEntropyLoss, max_epochs=1, train_split=None
    )
    return made.set_params(verbose=0).fit(X, CLASSES)


def test_gradients_are_of_the_last_step():
    view = GradientView(PIPELINE)
    assert view.leaves_rows
    assert_allclose(view.rows(X), SCALED)
    assert_allclose(view.rows(X, CLASSES), SCALED)
    model = view.freeze(SCALED, CLASSES, None, None)
    outputs = model.outputs(torch.from_numpy(SCALED)).numpy().ravel()
    assert_allclose(outputs, PIPELINE.decision_function(X), rtol=1e-6)
    assert not GradientView(PIPELINE[1]).leaves_rows
    with pytest.raises(TypeError, match="RandomForestClassifier"):
        GradientView(RandomForestClassifier(3).fit(X, CLASSES)).rows(X)


def test_targets_are_those_that_the_model_is_fitted_on():
    model = TransformedTargetRegressor(LinearRegression(), func=np.sinh, inverse_func=np.arcsinh)
    model.fit(X, Y)
    assert_allclose(GradientView(model).targets(Y), np.sinh(Y))
    assert_allclose(PredictionView(model, "last").targets(Y), np.sinh(Y))
    assert_array_equal(PredictionView(model, "all").targets(Y), Y)


@pytest.mark.parametrize("refit", ["all", "last"])
def test_predictions_leave_rows_as_they_are(refit):
    view = PredictionView(PIPELINE, refit)
    assert view.leaves_rows
    rows = view.rows(X, CLASSES)
    assert isinstance(rows, RawRows)
    assert_allclose(rows.values, X if refit == "all" else SCALED)
    model = view.freeze(rows, CLASSES, None, None)
    assert isinstance(model, RefittableModel)
    assert not model.n_parameters
    assert_allclose(model.outputs(rows).numpy().ravel(), PIPELINE.decision_function(X), rtol=1e-6)
    with pytest.raises(ValueError, match="features"):
        view.check_test_rows(model, X[:, :2])


def test_trees_by_their_leaves():
    model = HistGradientBoostingRegressor(max_iter=3).fit(X, Y)
    view = TreeView(make_pipeline(FunctionTransformer(), model))
    rows = view.rows(X, Y)
    found = view.freeze(rows, Y, None, None)
    assert isinstance(found, TreeModel)
    assert_allclose(found.outputs(rows).numpy().ravel(), model.predict(X))
    with pytest.raises(ValueError, match="at least one row, got none"):
        view.rows(X[:0])
    with pytest.raises(ValueError, match="at least 2 rows to leave one out"):
        view.freeze(view.rows(X[:1]), Y[:1], None, None)


@pytest.mark.parametrize(
    ("estimator", "refit", "kind"),
    [
        (net(), "all", GradientView),
        (make_pipeline(StandardScaler(), net()).fit(X, CLASSES), "all", PredictionView),
        (make_pipeline(StandardScaler(), net()).fit(X, CLASSES), "last", GradientView),
        (make_pipeline(FunctionTransformer(), net()).fit(X, CLASSES), "all", GradientView),
        (Ridge().fit(X, Y), "all", PredictionView),
        (KNeighborsClassifier().fit(X, CLASSES), "last", PredictionView),
    ],
)
def test_what_is_trained_again(estimator, refit, kind):
    assert isinstance(refitted_view(estimator, refit), kind)
