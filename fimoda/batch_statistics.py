"""Batch normalisation in training: by the rows of its batch that a model has, with statistics of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: What batch normalisation does in training.
BatchStatistics = Literal["update", "frozen"]
BATCH_STATISTICS = get_args(BatchStatistics)

_BatchNorm = nn.modules.batchnorm._BatchNorm
_FIXED = (_BatchNorm, nn.modules.instancenorm._InstanceNorm)


class _Pass(NamedTuple):
    """A forward pass: which rows (B,) are there, None if all are, and new statistics by name."""

    present: Tensor | None
    found: dict[str, Tensor]


_PASS: ContextVar[_Pass | None] = ContextVar("_PASS", default=None)


@contextmanager
def statistics_of(present: Tensor | None) -> Iterator[dict[str, Tensor]]:
    """Give the new running statistics of a forward pass inside, by name; the module's own stay.

    They are of the rows (B,) that are `present`, or of all. In this presence, 0 or 1, all can be
    differentiated.
    """
    found: dict[str, Tensor] = {}
    token = _PASS.set(_Pass(present, found))
    try:
        yield found
    finally:
        _PASS.reset(token)


class TrainedBatchNorm(_BatchNorm):
    """Batch normalisation by the batch's own mean and variance, of the rows that are present.

    Inside `statistics_of` new running statistics are handed over, and otherwise kept, as torch's own
    layer does. A batch with less than two numbers a channel, of which torch has no variance, is
    normalised by the running statistics and leaves them as they are.
    """

    name: str

    @classmethod
    def of(cls, part: _BatchNorm, name: str) -> TrainedBatchNorm:
        """Return a layer of torch's as one that is trained; `name` is its place in the network."""
        made = cls.__new__(cls)
        made.__dict__.update(part.__dict__)
        made.name = f"{name}." if name else ""
        return made

    def _check_input_dim(self, input: Tensor) -> None:
        """Take what the layer has taken in evaluation mode."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised batch (B, C, ...)."""
        if not self.training:
            return self._normalised(x, self.running_mean, self.running_var)
        now = _PASS.get()
        n = x.numel() // x.shape[1]
        if n < 2:
            mean, var = self._statistic("running_mean", now), self._statistic("running_var", now)
            return self._normalised(x, mean, var)
        if now is None:
            return super().forward(x)
        axes = [0, *range(2, x.dim())]
        if now.present is None:
            var, mean = torch.var_mean(x, axes, correction=0)
            self._hand_over(now, torch.full_like(mean[0], n), mean, var)
            return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        shape = (1, -1, *[1] * (x.dim() - 2))
        there = now.present.to(x.dtype).view(-1, *[1] * (x.dim() - 1))
        count = there.sum() * (n // len(x))
        mean = (x * there).sum(axes) / count.clamp(min=1)
        var = ((x - mean.view(shape)).square() * there).sum(axes) / count.clamp(min=1)
        old_mean = self._statistic("running_mean", now)
        old_var = self._statistic("running_var", now)
        self._hand_over(now, count, mean, var)
        mean, var = torch.where(count < 2, old_mean, mean), torch.where(count < 2, old_var, var)
        return self._normalised(x, mean, var)

    def _normalised(self, x: Tensor, mean: Any, var: Any) -> Tensor:
        """Return a batch normalised by statistics, by a formula that has all derivatives."""
        shape = (1, -1, *[1] * (x.dim() - 2))
        h = (x - mean.view(shape)) * (var + self.eps).rsqrt().view(shape)
        if not self.affine:
            return h
        return h * self.weight.view(shape) + self.bias.view(shape)

    def _statistic(self, key: str, now: _Pass | None) -> Tensor:
        """Return a running statistic, as it is by now if the layer is used twice."""
        own = getattr(self, key)
        return own if now is None else now.found.get(self.name + key, own)

    def _hand_over(self, now: _Pass, count: Tensor, mean: Tensor, var: Tensor) -> None:
        """Give new running statistics, from the mean and variance of `count` numbers a channel."""
        enough = (count >= 2).to(mean.dtype)
        if self.momentum is None:
            batches = self._statistic("num_batches_tracked", now) + enough
            now.found[f"{self.name}num_batches_tracked"] = batches
            factor = enough / batches.clamp(min=1)
        else:
            factor = self.momentum * enough
        unbiased = var * count / (count - 1).clamp(min=1)
        for key, seen in (("running_mean", mean), ("running_var", unbiased)):
            own = self._statistic(key, now)
            now.found[self.name + key] = own + factor * (seen - own)


def is_trainable(part: Any) -> bool:
    """Return whether a module is torch's batch normalisation, with running statistics."""
    return (
        isinstance(part, _BatchNorm)
        and type(part).forward is _BatchNorm.forward
        and part.running_mean is not None
    )


def statistics_in(module: nn.Module) -> dict[str, torch.Size]:
    """Return the shape of each running statistic that training changes, by name."""
    found: dict[str, torch.Size] = {}
    for name, part in module.named_modules():
        if is_trainable(part):
            keys = ["running_mean", "running_var"]
            keys += ["num_batches_tracked"] * (part.momentum is None)
            found |= {f"{name}.{k}" if name else k: getattr(part, k).shape for k in keys}
    return found


def in_training(module: nn.Module, statistics: BatchStatistics) -> nn.Module:
    """Put a module into training mode, but for statistics that are frozen, and return it.

    Where they are trained, batch normalisation of this file takes the place of torch's.
    """
    module.train()
    for part in module.modules():
        trained = statistics == "update" and is_trainable(part)
        if isinstance(part, _FIXED) and not trained:
            part.eval()
    return with_trained_statistics(module) if statistics == "update" else module


def with_trained_statistics(module: nn.Module) -> nn.Module:
    """Return the module with batch normalisation that is trained, in place of torch's."""
    names = {part: name for name, part in module.named_modules() if is_trainable(part)}
    made: dict[nn.Module, nn.Module] = {
        part: TrainedBatchNorm.of(part, name)  # type: ignore[arg-type]
        for part, name in names.items()
    }
    for parent in list(module.modules()):
        for child, part in parent._modules.items():
            if part in made:
                parent._modules[child] = made[part]
    return made.get(module, module)
