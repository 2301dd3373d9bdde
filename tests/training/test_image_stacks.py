"""Images with channels last: the same gradients, in whatever way rows and models come."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from naive import relative
from torch import nn

from fimoda import as_final_model
from fimoda.objective import Objective
from fimoda.rows import Rows
from fimoda.training import images
from fimoda.training.batches import FULL_DATA
from fimoda.training.optimizers import OptimizerSpec
from fimoda.training.run import Run


class Viewing(nn.Module):
    """A forward that takes views, which images with channels last do not have, and pools with options."""

    def __init__(self, channels):
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, 4, 3, padding=1), nn.Conv2d(4, 6, 3)
        self.head = nn.Linear(24, 2)

    def forward(self, X):
        hidden = F.max_pool2d(torch.relu(self.first(X)), 3, stride=2, padding=1, ceil_mode=True)
        hidden, places = F.max_pool2d(
            torch.tanh(self.second(hidden)), 2, stride=1, return_indices=True
        )
        assert not places.is_floating_point()
        return self.head(hidden.view(X.size(0), -1))


def plain(channels):
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2)
    )


def normalised(channels):
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Conv2d(4, 2, 3), nn.Flatten(),
        nn.Linear(32, 2),
    )  # fmt: skip


def described(made, channels):
    torch.manual_seed(0)
    module = made(channels).double().eval()
    X = torch.randn(10, channels, 8, 8, dtype=torch.float64)
    model = as_final_model(module, X, criterion=nn.CrossEntropyLoss())
    objective = Objective(model, Rows(model.encode_X(X), torch.arange(10) % 2))
    return Run(objective, OptimizerSpec(torch.optim.SGD, 0.1, {"momentum": 0.9}), 4)


@pytest.mark.parametrize("mode", ["mask", "drop"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("made", [Viewing, plain, normalised])
def test_stacks_and_single_models_are_a_plain_loop(made, channels, mode, monkeypatch):
    run = described(made, channels)
    left_out = (1, 5) if mode == "drop" else (FULL_DATA, 1, 5)
    plan = run.plan(2, left_out, mode)
    ends = {way: replace(run, way=way).train(plan, [6]) for way in ("vmap", "loop")}
    assert images._LAST[run.model.key] is (made is not Viewing)
    assert replace(run, way="vmap").engine.alone is False
    monkeypatch.setattr(images, "takes_images", lambda *_: False)
    monkeypatch.setattr("fimoda.training.gradients.takes_images", lambda *_: False)
    assert images.as_last(run.model, run.rows.inputs) is False
    expected = replace(run, way="loop").train(plan, [6])
    for found in ends.values():
        assert relative(found - run.first, expected - run.first) < 1e-10


def test_channels_and_models_lie_last():
    x = torch.randn(2, 3, 4, 5)
    last = images.channels_last(x)
    assert torch.equal(last, x)
    assert last.stride() == (60, 1, 15, 3)
    assert images.channels_last(x[:, :1]).stride() == (20, 1, 5, 1)
    stack = torch.randn(6, 2, 3, 4, 5)
    laid = images.models_last(stack)
    assert torch.equal(laid, stack.transpose(0, 1))
    assert laid.stride() == (360, 3, 1, 90, 18)
