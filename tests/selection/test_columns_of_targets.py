"""Targets as a column: numbers reach the model as they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.datasets import make_classification, make_regression
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.exceptions import DataConversionWarning
from sklearn.linear_model import LogisticRegression, Ridge
from skorch import NeuralNetRegressor
from torch import nn

from fimoda import (
    CVPlusRegressor,
    InfluencePruner,
    JackknifePlusRegressor,
    MislabelDetector,
    PrunedRegressor,
)


def regression_net():
    torch.manual_seed(0)
    settings = {"max_epochs": 5, "lr": 0.05, "train_split": None, "verbose": 0}
    return NeuralNetRegressor(nn.Linear(4, 1), **settings)


class ShapeOfTargets(Ridge):
    """Keeps the shape of the targets that it is fitted to."""

    def fit(self, X, y, sample_weight=None):
        self.shape_ = y.shape
        return super().fit(X, y, sample_weight)


EVERY = [
    MislabelDetector, InfluencePruner, PrunedRegressor, JackknifePlusRegressor, CVPlusRegressor,
]  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("cls", EVERY)
def test_a_column_of_numbers_reaches_the_model(cls):
    X, y = make_regression(40, 4, noise=5, random_state=0)
    X, y = X.astype(np.float32), (y / 50).astype(np.float32)
    found = cls(regression_net(), random_state=0).fit(X, y[:, None])  # torch warns of others
    if cls not in (InfluencePruner, PrunedRegressor):  # whose models have fewer rows
        alone = regression_net().fit(X, y[:, None])
        assert_allclose(found.estimator_.predict(X), alone.predict(X), rtol=1e-5)
        kept = cls(ShapeOfTargets(), random_state=0).fit(X, y[:, None]).estimator_
        assert kept.shape_ == (40, 1)


@pytest.mark.filterwarnings("ignore:A column-vector y was passed")
@pytest.mark.parametrize("cls", EVERY)
@pytest.mark.parametrize(
    "model",
    [Ridge(), HistGradientBoostingRegressor(max_iter=5), RandomForestRegressor(5, random_state=0)],
)
def test_a_column_of_numbers_has_the_same_answers(cls, model):
    X, y = make_regression(60, 4, noise=5, random_state=0)
    flat, column = (cls(model, random_state=0).fit(X, one) for one in (y, y[:, None]))
    for name in ("scores_", "residuals_"):
        if hasattr(flat, name):
            assert_allclose(getattr(column, name), getattr(flat, name), rtol=1e-6)
            assert getattr(column, name).shape == (60,)
    if hasattr(flat, "predict_interval"):
        assert_allclose(column.predict_interval(X[:3]), flat.predict_interval(X[:3]), rtol=1e-6)


def test_a_column_of_labels_is_made_flat():
    X, y = make_classification(40, 4, random_state=0)
    with pytest.warns(DataConversionWarning):
        found = MislabelDetector(LogisticRegression(), random_state=0).fit(X, y[:, None])
    assert_allclose(found.scores_, MislabelDetector(LogisticRegression()).fit(X, y).scores_)
