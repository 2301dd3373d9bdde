"""Batches of an epoch, with rows left out by mask or dropped."""

from __future__ import annotations

import pytest
import torch

from fimoda.training.batches import FULL_DATA, Plan, all_but


def batches_of(order, left_out, weights, batch_size, mode):
    """Batches of an epoch in an order of one's own."""
    plan = Plan(0, all_but(left_out, len(weights)), weights, batch_size, mode)
    return list(plan._masked(order) if mode == "mask" else plan._dropped(order))


def test_masked_batches():
    order = torch.tensor([4, 0, 3, 1, 2])
    row_weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
    batches = batches_of(order, [FULL_DATA, 0, 2], row_weights, 2, "mask")
    assert [b.rows.tolist() for b in batches] == [[4, 0], [3, 1], [2]]
    expected = [
        [[5 / 6, 1 / 6], [1, 0], [5 / 6, 1 / 6]],  # row 0 keeps its place, row 4 takes all
        [[4 / 6, 2 / 6]] * 3,
        [[1], [1], [0]],  # a batch of the left-out row alone
    ]
    for batch, weights in zip(batches, expected, strict=True):
        torch.testing.assert_close(batch.weights, torch.tensor(weights, dtype=torch.float64))


def test_masked_batch_averages_the_others():
    order = torch.arange(6)
    (batch,) = batches_of(order, [FULL_DATA, 3], torch.ones(6), 6, "mask")
    torch.testing.assert_close(batch.weights[0], torch.full((6,), 1 / 6))
    expected = torch.full((6,), 1 / 5)
    expected[3] = 0
    torch.testing.assert_close(batch.weights[1], expected)


def test_dropped_batches():
    order = torch.tensor([4, 0, 3, 1, 2])
    row_weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
    batches = batches_of(order, [0, 2], row_weights, 2, "drop")
    assert [b.rows.tolist() for b in batches] == [[[4, 3], [4, 0]], [[1, 2], [3, 1]]]
    torch.testing.assert_close(
        batches[0].weights, torch.tensor([[5 / 9, 4 / 9], [5 / 6, 1 / 6]], dtype=torch.float64)
    )
    (alone,) = batches_of(order, [FULL_DATA], row_weights, 5, "drop")
    assert alone.rows.tolist() == [order.tolist()]


def test_rows_beside_every_batch():
    """A row is taken out of each batch's mean with its share; in an epoch nothing of it is left."""
    weights = torch.arange(1.0, 13.0, dtype=torch.float64)
    weights[8] = 0
    left_out = (FULL_DATA, 3, 8)
    plan = Plan(7, all_but(left_out, 12), weights, 4, "expected")
    mask = Plan(7, all_but((FULL_DATA,), 12), weights, 4)
    assert plan.steps_per_epoch == 3
    for batch, full in zip(plan.batches(3), mask.batches(3), strict=True):
        assert batch.rows.shape == batch.weights.shape == (3, 5)
        torch.testing.assert_close(batch.weights.sum(1), torch.ones(3, dtype=torch.float64))
        for model in (0, 2):  # all rows, and one without weight
            torch.testing.assert_close(batch.weights[model, :4], full.weights[0])
            assert batch.weights[model, 4] == 0
        own = weights[3] / (weights.sum() - weights[3])
        torch.testing.assert_close(batch.weights[1, :4], full.weights[0] * (1 + own))
        assert batch.rows[1, 4] == 3
        assert batch.weights[1, 4] == -own
    even = Plan(7, all_but((3,), 12), torch.ones(12, dtype=torch.float64), 4, "expected")
    found = torch.zeros(12, dtype=torch.float64)
    for batch in even.batches(3):
        found.scatter_add_(0, batch.rows[0], batch.weights[0])
    torch.testing.assert_close(found, torch.where(torch.arange(12) == 3, 0, 3 / 11).double())


@pytest.mark.parametrize("mode", ["mask", "drop"])
def test_plan(mode):
    """Weights sum to one, a left-out row never counts, and every other row once an epoch."""
    generator = torch.Generator().manual_seed(7)
    orders = [torch.randperm(10, generator=generator) for _ in range(3)]
    left_out = (3, 8, 0)
    plan = Plan(7, all_but(left_out, 10), torch.ones(10, dtype=torch.float64), 4, mode)
    assert plan.n_models == 3
    for order, epoch in zip(orders, plan.epochs(3), strict=True):
        seen = [[], [], []]
        for batch in epoch:
            rows = batch.rows.expand(3, -1) if batch.rows.dim() == 1 else batch.rows
            for model, row in enumerate(left_out):
                others = batch.weights[model] > 0
                assert row not in rows[model][others]
                seen[model] += rows[model][others].tolist()
                total = float(batch.weights[model].sum())
                assert total == pytest.approx(1 if others.any() else 0, abs=1e-12)
        for model, row in enumerate(left_out):
            assert seen[model] == order[order != row].tolist()
