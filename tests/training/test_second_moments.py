"""The buffer of squared gradients, raised to what given ones would make of it."""

from __future__ import annotations

import pytest
import torch
from numpy.testing import assert_allclose

from fimoda.training.optimizers import OptimizerSpec
from fimoda.training.second_moments import SecondMoments

NAMES = {
    "Adam": "exp_avg_sq", "AdamW": "exp_avg_sq", "RMSprop": "square_avg", "Adagrad": "sum",
}  # fmt: skip


@pytest.mark.parametrize("n_steps", [0, 1, 4])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_leaves_what_the_larger_of_two_would(name, n_steps):
    generator = torch.Generator().manual_seed(0)
    spec = OptimizerSpec(getattr(torch.optim, name), 0.1, {})
    moments = SecondMoments.of(spec)
    assert moments.name == NAMES[name]
    parameter = torch.zeros(8, dtype=torch.float64)
    optimizer = spec.build([parameter])

    def step(gradient):
        parameter.grad = gradient.clone()
        optimizer.step()
        return optimizer.state[parameter][moments.name].clone()

    for _ in range(n_steps):
        step(torch.randn(8, generator=generator, dtype=torch.float64))
    before = {
        key: value.clone() if isinstance(value, torch.Tensor) else value
        for key, value in optimizer.state[parameter].items()
    }
    gradient = torch.randn(8, generator=generator, dtype=torch.float64)
    squares = torch.rand(8, generator=generator, dtype=torch.float64)
    raised = moments.raised(spec, before if n_steps else {}, gradient, squares, n_steps)
    own = step(gradient)
    # a run of its own, whose gradients have these squares
    other = torch.zeros(8, dtype=torch.float64)
    steady = spec.build([other])
    for _ in range(n_steps + 1):
        other.grad = squares.sqrt()
        steady.step()
    optimizer.state[parameter] = raised
    again = spec.build([parameter])
    again.state[parameter] = raised
    parameter.grad = gradient.clone()
    again.step()
    wanted = torch.maximum(own, steady.state[other][moments.name])
    assert_allclose(again.state[parameter][moments.name], wanted, rtol=1e-6)
    if n_steps:
        assert_allclose(before[moments.name] <= raised[moments.name], True)


def test_optimisers_without_one():
    assert SecondMoments.of(OptimizerSpec(torch.optim.SGD, 0.1, {})) is None
