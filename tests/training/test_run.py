"""A run on an objective: many models at once, one model step by step, and what a worker is sent."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fimoda.losses import SquaredError
from fimoda.model import FinalModel
from fimoda.objective import Objective
from fimoda.rows import Rows, SeveralInputs
from fimoda.training.batches import FULL_DATA
from fimoda.training.optimizers import OptimizerSpec
from fimoda.training.recorded import RecordedRun
from fimoda.training.run import Run

N, BATCH, LR, EPOCHS, SEED = 9, 4, 0.1, 3, 5


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.deep = nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, wide, deep):
        return torch.tanh(self.wide(wide)) + self.deep(deep.flatten(1))


def two_inputs(apart=False):
    """A run on rows of two inputs, by name or in order, with weights."""
    torch.manual_seed(0)
    module = TwoInputs().double().requires_grad_(True)
    given = {"wide": torch.randn(N, 3).double(), "deep": torch.randn(N, 2, 1).double()}
    inputs = SeveralInputs(tuple(given.values()), apart=True) if apart else SeveralInputs(given)
    weights = torch.arange(1.0, N + 1).double()
    rows = Rows(inputs, torch.randn(N, 2).double(), weights)
    model = FinalModel(module, SquaredError())
    return Run(Objective(model, rows), OptimizerSpec(torch.optim.SGD, LR), BATCH), given


def by_hand(run, given, left_out):
    """Plain SGD on the mean by weight of each batch, a left-out row at weight zero."""
    module = TwoInputs().double()
    module.load_state_dict(run.model.module.state_dict())
    weights, targets = run.rows.weights.clone(), run.rows.targets
    if left_out != FULL_DATA:
        weights[left_out] = 0
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(EPOCHS):
        for at in torch.randperm(N, generator=generator).split(BATCH):
            found = module(given["wide"][at], given["deep"][at])
            losses = run.model.loss(found, targets[at])
            share = weights[at] / max(float(weights[at].sum()), 1e-300)
            module.zero_grad()
            (share * losses).sum().backward()
            with torch.no_grad():
                for part in module.parameters():
                    part -= LR * part.grad
    return run.model.flatten({k: v.detach() for k, v in module.named_parameters()})


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("mode", ["mask", "drop"])
def test_a_stack_on_rows_of_two_inputs(apart, mode):
    run, given = two_inputs(apart)
    left_out = (FULL_DATA, 2, 7) if mode == "mask" else (FULL_DATA,)
    found = run.train(run.plan(SEED, left_out, mode), [run.n_steps(EPOCHS)])
    for theta, row in zip(found, left_out, strict=True):
        torch.testing.assert_close(theta, by_hand(run, given, row), rtol=1e-10, atol=1e-12)


def test_one_model_step_by_step_on_rows_of_two_inputs():
    run, given = two_inputs()
    recorded = RecordedRun(run, SEED, run.n_steps(EPOCHS))
    expected = by_hand(run, given, FULL_DATA)
    torch.testing.assert_close(recorded.last.theta, expected, rtol=1e-10, atol=1e-12)


def test_models_begin_where_they_are_told():
    """At one point, or each at its own."""
    run, _ = two_inputs()
    starts = torch.stack([run.model.theta, 2 * run.model.theta])
    plan = run.plan(SEED, (FULL_DATA, FULL_DATA))
    together = replace(run, start=starts).train(plan, [1])
    for start, theta in zip(starts, together, strict=True):
        alone = replace(run, start=start).train(run.plan(SEED), [1])[0]
        torch.testing.assert_close(theta, alone, rtol=1e-12, atol=0)


def test_workers_are_sent_one_array():
    """The same one each time, so that joblib maps it instead of copying it for every unit."""
    run, _ = two_inputs()
    sent = [
        run.rows.__getstate__()["arrays"],
        replace(run, compile=True).rows.__getstate__()["arrays"],
    ]
    for one, other in zip(*(state[0].tensors for state in sent), strict=True):
        assert isinstance(one, np.ndarray)
        assert one is other
    again = pickle.loads(pickle.dumps(run))
    assert again.rows.identity() == run.rows.identity()
    assert again.identity([4]) == run.identity([4])
    plan = run.plan(SEED, (FULL_DATA, 2))
    assert torch.equal(again.train(plan, [4]), run.train(plan, [4]))
