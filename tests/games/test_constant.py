"""Constant outputs are those of the smallest loss."""

from __future__ import annotations

import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from fimoda.games.constant import constant_outputs
from fimoda.losses import (
    BinaryCrossEntropy,
    BinaryProbabilityNLL,
    CrossEntropy,
    LogProbabilityNLL,
    ProbabilityNLL,
    SquaredError,
    ZeroOneLoss,
    row_loss,
)

SHARES = torch.tensor([0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("loss", [CrossEntropy(), LogProbabilityNLL(), ProbabilityNLL(0.0)])
def test_classes(loss):
    found = constant_outputs(loss, torch.tensor([0, 1, 2, 1]), SHARES, 3)
    assert_allclose(loss.probabilities(found), [0.1, 0.6, 0.3], rtol=1e-6)


@pytest.mark.parametrize("loss", [BinaryCrossEntropy(), BinaryProbabilityNLL()])
def test_two_classes(loss):
    found = constant_outputs(loss, torch.tensor([0, 1, 0, 1]), SHARES, 1)
    assert_allclose(loss.probabilities(found), [0.4, 0.6], rtol=1e-6)


def test_predicted_classes():
    found = constant_outputs(ZeroOneLoss(), torch.tensor([0, 1, 2, 1]), SHARES, 3)
    assert found.tolist() == [0, 1, 0]


def test_numbers():
    targets = torch.tensor([[1.0, 0.0], [2.0, 5.0], [3.0, 1.0], [4.0, 2.0]])
    found = constant_outputs(SquaredError(over_outputs="sum"), targets, SHARES, 2)
    assert_allclose(found, (SHARES.double()[:, None] * targets).sum(0), rtol=1e-6)


def test_any_other_loss():
    targets = torch.tensor([[1.0], [2.0], [3.0], [40.0]])
    loss = row_loss(nn.HuberLoss(delta=0.5), (1,))
    found = constant_outputs(loss, targets, SHARES, 1)
    grid = torch.linspace(1, 40, 40_000).double()
    each = loss(grid[:, None, None].expand(-1, 4, 1), targets.double().expand(40_000, 4, 1))
    mean = (each * SHARES).sum(1)
    assert_allclose(found.item(), grid[mean.argmin()].item(), atol=2e-3)
