"""Scores are the same where the caller has switched gradients off."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from problems import tanh_network
from test_common import ATTRIBUTORS, make
from torch import nn

from fimoda import (
    LinearizedFurtherTraining,
    OnceLinearizedFurtherTraining,
    UnrolledDifferentiation,
    further_training_curve,
    train_ensemble,
)
from fimoda.attributors.families.trained_again import BaseTrainedAgain

rng = np.random.default_rng(0)
X, y = rng.normal(size=(20, 3)), rng.integers(2, size=20)


def module() -> nn.Module:
    return tanh_network(3, 4, 2)


MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cls", ATTRIBUTORS, ids=lambda cls: cls.__name__)
def test_every_attributor(cls, mode):
    model = module()
    settings = {"n_epochs": 2} if issubclass(cls, BaseTrainedAgain) else {}

    def scores():
        attributor = make(cls, model, criterion=nn.CrossEntropyLoss(), **settings).fit(X, y)
        return attributor.transform(X[:4], y[:4]), attributor.self_influence()

    expected = scores()
    with MODES[mode]():
        found = scores()
    for a, b in zip(found, expected, strict=True):
        assert_array_equal(a, b)


@pytest.mark.parametrize("mode", MODES)
def test_horizons_and_other_weights(mode):
    weights = np.linspace(0.5, 1.5, 20)
    model = module()
    settings = {"criterion": nn.CrossEntropyLoss(), "n_epochs": [1, 2], "random_state": 0}

    def scores():
        found = []
        for cls in (
            UnrolledDifferentiation,
            LinearizedFurtherTraining,
            OnceLinearizedFurtherTraining,
        ):
            method = cls(model, **settings).fit(X, y)
            found.append(method.transform_horizons(X[:3], y[:3]))
            found.append(method.reweight(X[:3], y[:3], weights=weights))
        return found

    expected = scores()
    with MODES[mode]():
        found = scores()
    for a, b in zip(found, expected, strict=True):
        assert_array_equal(a, b)


@pytest.mark.parametrize("mode", MODES)
def test_functions_that_train(mode):
    model, criterion = module(), nn.CrossEntropyLoss()

    def results():
        curve = further_training_curve(
            model,
            X,
            y,
            X[:3],
            y[:3],
            epochs=[1, 2],
            n_seeds=2,
            leave_out=[0, 1],
            criterion=criterion,
        )
        ensemble = train_ensemble(
            model, X, y, criterion=criterion, n_seeds=2, n_epochs=2, random_state=0
        )
        return curve.scores, ensemble.models[0].theta.numpy(), ensemble.models[1].theta.numpy()

    expected = results()
    with MODES[mode]():
        found = results()
    for a, b in zip(found[1:], expected[1:], strict=True):
        assert_array_equal(a, b)
