"""Losses of several positions a row, against torch's own criteria row by row, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fimoda.losses import CrossEntropy, OfPositions, row_loss

N, T, C = 6, 4, 3

g = torch.Generator().manual_seed(0)
OUTPUTS = 2 * torch.randn(N, T * C, generator=g, dtype=torch.float64)
TARGETS = torch.randint(C, (N, T), generator=g)
TARGETS[0, 1:] = TARGETS[1, :2] = TARGETS[3, 3] = -100
WEIGHT = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)

CRITERIA = {
    "plain": nn.CrossEntropyLoss(),
    "none": nn.CrossEntropyLoss(reduction="none"),
    "weight": nn.CrossEntropyLoss(weight=WEIGHT),
    "smoothed": nn.CrossEntropyLoss(label_smoothing=0.2),
    "smoothed, weight": nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.2),
    "a class is ignored": nn.CrossEntropyLoss(ignore_index=2),
}


def case(name):
    """The loss, targets for it, and what the criterion itself gives for one row in torch's order."""
    criterion, y = CRITERIA[name], TARGETS.clone()
    if criterion.ignore_index >= 0:
        y = torch.where(y == -100, criterion.ignore_index, y)
    own = nn.CrossEntropyLoss(criterion.weight, None, criterion.ignore_index)
    own.label_smoothing = criterion.label_smoothing
    return row_loss(criterion, (T, C)), y, lambda f, y: own(f.view(1, T, C).mT, y[None])


@pytest.mark.parametrize("name", CRITERIA)
def test_a_row_is_the_mean_over_its_positions(name):
    loss, y, of_row = case(name)
    expected = torch.stack([of_row(f, t) for f, t in zip(OUTPUTS, y, strict=True)])
    torch.testing.assert_close(loss(OUTPUTS, y), expected, rtol=1e-12, atol=1e-12)
    stacked = loss(OUTPUTS.expand(2, N, T * C), y.expand(2, N, T))
    torch.testing.assert_close(stacked, expected.expand(2, N), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in CRITERIA if n != "none"])
def test_torchs_mean_over_positions_is_that_of_rows_by_their_weights(name):
    loss, y, _ = case(name)
    weights = loss.row_weights(y, OUTPUTS)
    found = (weights * loss(OUTPUTS, y)).sum() / weights.sum()
    expected = CRITERIA[name](OUTPUTS.view(N, T, C).mT, y)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_rows_count_alike_where_the_criterion_does_not_reduce():
    loss, y, _ = case("none")
    assert loss.row_weights(y, OUTPUTS) is None


@pytest.mark.parametrize("name", CRITERIA)
def test_derivatives(name):
    loss, y, of_row = case(name)
    curved = loss.output_hessian(OUTPUTS, y)
    assert curved.shape == (N, T * C, T * C)
    for i in range(N):
        leaf = OUTPUTS[i].clone().requires_grad_()
        (slope,) = torch.autograd.grad(of_row(leaf, y[i]), leaf)
        torch.testing.assert_close(loss.gradient(OUTPUTS, y)[i], slope, rtol=1e-10, atol=1e-13)
        own = torch.autograd.functional.hessian(lambda f, i=i: of_row(f, y[i]), OUTPUTS[i])
        torch.testing.assert_close(curved[i], own, rtol=1e-10, atol=1e-13)
    vectors = torch.randn(N, 5, T * C, generator=g, dtype=torch.float64)
    torch.testing.assert_close(loss.curved(OUTPUTS, y, vectors), vectors @ curved)
    eye = torch.eye(T * C, dtype=torch.float64)
    roots = loss.root(OUTPUTS, y, eye)
    torch.testing.assert_close(roots.mT @ roots, curved, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", ["plain", "none", "weight", "a class is ignored"])
def test_fisher_vectors_make_the_second_derivative(name):
    loss, y, _ = case(name)
    vectors = torch.stack(loss.fisher_cotangents(OUTPUTS, y))
    found = torch.einsum("cna,cnb->nab", vectors, vectors)
    torch.testing.assert_close(found, loss.output_hessian(OUTPUTS, y), rtol=1e-10, atol=1e-13)


def test_gradients_at_drawn_targets_have_the_second_derivative_as_their_moment():
    loss, y, _ = case("plain")
    generator = torch.Generator().manual_seed(0)
    row, own = OUTPUTS[1:2].expand(100_000, -1), y[1:2].expand(100_000, -1)
    drawn = loss.sample_targets(row, generator, own)
    assert (drawn[:, :2] == -100).all()
    assert (drawn[:, 2:] >= 0).all()
    gradients = loss.likelihood.gradient(row, drawn)
    moment = gradients.mT @ gradients / len(row)
    expected = loss.output_hessian(OUTPUTS, y)[1]
    torch.testing.assert_close(moment, expected, rtol=0, atol=0.002)
    share = torch.bincount(drawn[:, 2]) / len(row)
    torch.testing.assert_close(
        share.double(), OUTPUTS[1].view(T, C)[2].softmax(0), atol=0.01, rtol=0
    )


def test_sampling_with_class_weights_is_refused():
    with pytest.raises(ValueError, match=r"targets cannot be sampled .* weights of classes"):
        case("weight")[0].likelihood  # noqa: B018


def test_measurements_are_plain_means_over_positions():
    loss, y, _ = case("plain")
    for i in range(N):
        apart, kept = OUTPUTS[i].view(T, C), y[i] >= 0
        p = apart.softmax(-1)[kept].gather(1, y[i][kept, None])[:, 0]
        assert torch.isclose(loss.log_prob(OUTPUTS, y)[i], p.log().mean(), rtol=1e-12)
        assert torch.isclose(loss.margin(OUTPUTS, y)[i], (p / (1 - p)).log().mean(), rtol=1e-9)
        raw = apart[kept].gather(1, y[i][kept, None])[:, 0]
        assert torch.isclose(loss.target_output(OUTPUTS, y)[i], raw.mean(), rtol=1e-12)
    torch.testing.assert_close(
        loss.probabilities(OUTPUTS), OUTPUTS.view(N, T, C).softmax(-1), rtol=1e-12, atol=0
    )
    np.testing.assert_array_equal(loss.predicted_targets(OUTPUTS), OUTPUTS.view(N, T, C).argmax(-1))


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.zeros(N, int), "an integer, the index of a class, for each position"),
        (np.zeros((N, T)), "an integer, the index of a class"),
        (np.full((N, T), 3), "classes from 0 to 2, or -100 .* got 3 in row 0"),
        (np.where(np.arange(N)[:, None] == 4, -100, 1) * np.ones((N, T), int), "in row 4 all are"),
    ],
)
def test_bad_targets(y, message):
    with pytest.raises(ValueError, match=message):
        OfPositions(CrossEntropy(), C).encode(y, T * C, np.arange(C))


def test_another_number_of_positions():
    with pytest.raises(ValueError, match="for each of the 4 positions of a row's outputs, got 3"):
        case("plain")[0](OUTPUTS, TARGETS[:, :3])


def test_dense_second_derivatives_that_are_too_large():
    loss = OfPositions(CrossEntropy(), 5000)
    outputs = torch.zeros(4, 8 * 5000)
    with pytest.raises(MemoryError, match=r"40000 outputs take 23\.8 GiB"):
        loss.output_hessian(outputs, torch.zeros(4, 8, dtype=torch.long))
    along = torch.randn(4, 1, 8 * 5000, generator=g)
    assert loss.curved(outputs, torch.zeros(4, 8, dtype=torch.long), along).shape == along.shape


def test_pixels():
    criterion = nn.CrossEntropyLoss()
    outputs = torch.randn(2, 3, 4, C, generator=g, dtype=torch.float64)
    y = torch.randint(C, (2, 3, 4), generator=g)
    loss = row_loss(criterion, (3, 4, C))
    encoded = torch.as_tensor(loss.encode(y.numpy(), 12 * C, np.arange(C)))
    expected = F.cross_entropy(outputs.movedim(-1, 1), y, reduction="none").mean((1, 2))
    torch.testing.assert_close(loss(outputs.flatten(1), encoded), expected)


@pytest.mark.parametrize("criterion", [nn.MSELoss(), nn.L1Loss(), nn.BCEWithLogitsLoss()])
def test_numbers_at_positions(criterion):
    outputs = torch.randn(N, T, C, generator=g, dtype=torch.float64)
    y = torch.rand(N, T, C, generator=g, dtype=torch.float64)
    loss = row_loss(criterion, (T, C))
    encoded = torch.as_tensor(loss.encode(y.numpy(), T * C, None))
    expected = torch.stack([criterion(f[None], t[None]) for f, t in zip(outputs, y, strict=True)])
    torch.testing.assert_close(loss(outputs.flatten(1), encoded), expected)
    if not isinstance(criterion, nn.BCEWithLogitsLoss):
        with pytest.raises(ValueError, match=r"one column per output of the model \(4, 3\)"):
            loss.encode(y.mT.numpy(), T * C, None)
