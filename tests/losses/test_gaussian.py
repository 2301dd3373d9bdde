"""The Gaussian with two outputs a target, against torch's criterion and closed forms, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fimoda.losses import row_loss

N = 6
g = torch.Generator().manual_seed(0)


def draw(C: int) -> tuple[torch.Tensor, torch.Tensor]:
    mean = torch.randn(N, C, generator=g, dtype=torch.float64)
    variance = 0.2 + torch.rand(N, C, generator=g, dtype=torch.float64)
    return torch.cat([mean, variance], 1), torch.randn(N, C, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("C", [1, 3])
@pytest.mark.parametrize("full", [False, True])
def test_values_and_slopes_are_those_of_torch(C, full):
    outputs, y = draw(C)
    outputs[0, C] = 1e-9  # below eps
    criterion = nn.GaussianNLLLoss(full=full)
    loss = row_loss(criterion, (2 * C,))
    for i in range(N):
        leaf = outputs[i : i + 1].clone().requires_grad_()
        own = criterion(leaf[:, :C], y[i : i + 1], leaf[:, C:])
        torch.testing.assert_close(loss(outputs, y)[i], own.detach(), rtol=1e-12, atol=1e-12)
        (slope,) = torch.autograd.grad(own, leaf)
        torch.testing.assert_close(loss.gradient(outputs, y)[i : i + 1], slope, rtol=1e-10, atol=0)


@pytest.mark.parametrize("C", [1, 2])
def test_fisher_matrix(C):
    """diag(1 / v, 1 / (2 v^2)), over the number of targets, and the moment of gradients drawn from it."""
    outputs, y = draw(C)
    loss = row_loss(nn.GaussianNLLLoss(), (2 * C,))
    vectors = torch.stack(loss.fisher_cotangents(outputs, y))
    found = torch.einsum("cna,cnb->nab", vectors, vectors)
    v = outputs[:, C:]
    expected = torch.diag_embed(torch.cat([1 / v, 0.5 / v**2], 1)) / C
    torch.testing.assert_close(found, expected)
    row = outputs[:1].expand(200_000, -1)
    drawn = loss.sample_targets(row, torch.Generator().manual_seed(0))
    gradients = loss.likelihood.gradient(row, drawn)
    moment = gradients.mT @ gradients / len(row)
    torch.testing.assert_close(moment, expected[0], rtol=0.03, atol=0.03 * float(expected[0].max()))


def test_targets_and_outputs():
    outputs, y = draw(1)
    loss = row_loss(nn.GaussianNLLLoss(), (2,))
    assert loss.encode(np.zeros(N), 2, None).shape == (N, 1)
    np.testing.assert_array_equal(loss.predicted_targets(outputs), outputs[:, :1])
    np.testing.assert_array_equal(loss.target_output(outputs, y), outputs[:, 0])
    with pytest.raises(ValueError, match=r"means and variances for GaussianNLLLoss, .* 3 outputs"):
        row_loss(nn.GaussianNLLLoss(), (3,))
