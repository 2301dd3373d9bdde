"""Losses made of torch's criteria."""

from __future__ import annotations

import copy
import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from .base import RowLoss, by_rows
from .classification import (
    BinaryCrossEntropy,
    BinaryProbabilityNLL,
    CrossEntropy,
    LogProbabilityNLL,
    SmoothedCrossEntropy,
)
from .regression import Regression, SquaredError


class TorchCriterion(RowLoss):
    """Any criterion that knows ``reduction="none"``; ``(n,)`` are its outputs if they are flat."""

    gradient = RowLoss.gradient
    output_hessian = RowLoss.output_hessian

    def __init__(self, criterion: nn.Module, flat_outputs: bool = False, **changes: Any):
        self.criterion = _copy(criterion, reduction="none", **changes)
        self.flat_outputs = flat_outputs

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return by_rows(self._of_rows, outputs, targets)

    def _of_rows(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.flat_outputs:
            outputs = outputs.squeeze(-1)
        values = self.criterion.to(outputs.dtype)(outputs, self._wanted(targets, outputs.dtype))
        if values.dim() == 0 or values.shape[0] != outputs.shape[0]:
            raise ValueError(
                "criterion must give one loss per row when its reduction is 'none'; "
                f"{type(self.criterion).__name__} gave shape {tuple(values.shape)} for "
                f"{outputs.shape[0]} rows. Write the criterion so that reduction='none' "
                "returns a tensor whose first axis is the rows."
            )
        return values.flatten(1).mean(1) if values.dim() > 1 else values

    def _wanted(self, targets: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the targets as the criterion takes them."""
        return targets.to(dtype) if targets.is_floating_point() else targets


class RegressionCriterion(TorchCriterion, Regression):
    """A criterion of real outputs and targets of the same shape, averaged over the outputs."""


class LogitsCriterion(TorchCriterion, CrossEntropy):
    """A criterion of logits."""


class LogProbabilitiesCriterion(TorchCriterion, LogProbabilityNLL):
    """A criterion of log-probabilities."""


class BinaryProbabilityCriterion(TorchCriterion, BinaryProbabilityNLL):
    """A criterion of the probability of the second class, and targets 0.0 and 1.0."""

    def _wanted(self, targets: Tensor, dtype: torch.dtype) -> Tensor:
        return targets.to(dtype)


class BinaryLogitCriterion(BinaryProbabilityCriterion, BinaryCrossEntropy):
    """A criterion of the logit of the second class, and targets 0.0 and 1.0."""


def row_loss(criterion: nn.Module, output_ndim: int, n_outputs: int) -> RowLoss:
    """Return the per-row loss of a torch criterion for a model of so many outputs."""
    name = type(criterion).__name__
    if not isinstance(criterion, nn.Module):
        raise TypeError(
            f"criterion must be an instance of torch.nn.Module, got {criterion!r}. "
            "Pass for example criterion=torch.nn.CrossEntropyLoss()."
        )
    given = [
        p.name
        for p in inspect.signature(criterion.forward).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(given) > 2:
        raise TypeError(
            f"criterion {name} takes {', '.join(given)}: it must be a function of outputs and targets. "
            "Write a module whose forward(outputs, targets) splits them and calls it."
        )
    reduction = getattr(criterion, "reduction", None)
    if reduction is None:
        raise TypeError(
            f"criterion {name} reduces to a scalar only: it has no `reduction` attribute, so the "
            "loss of one row cannot be told from the others. Give it a `reduction` attribute and "
            "return one value per row when it is 'none'."
        )
    if reduction not in ("mean", "none"):
        raise ValueError(
            f"criterion {name} must have reduction 'mean' or 'none', got {reduction!r}: scores are "
            "defined for an objective that averages over rows. Use reduction='mean' and scale lr."
        )
    # one that is derived from torch's may be another function of the same outputs
    own = type(criterion).forward.__module__ != nn.MSELoss.__module__
    if isinstance(criterion, nn.MSELoss) and not own:
        return SquaredError()
    if isinstance(criterion, nn.MSELoss | nn.L1Loss | nn.SmoothL1Loss | nn.HuberLoss):
        return RegressionCriterion(criterion)
    weight = getattr(criterion, "weight", None)
    if isinstance(criterion, nn.CrossEntropyLoss):
        if own:
            return LogitsCriterion(criterion, weight=None, ignore_index=-100)
        smoothing = criterion.label_smoothing
        return SmoothedCrossEntropy(smoothing, _kept(weight)) if smoothing else CrossEntropy()
    if isinstance(criterion, nn.NLLLoss):
        if own:
            return LogProbabilitiesCriterion(criterion, weight=None, ignore_index=-100)
        return LogProbabilityNLL()
    if isinstance(criterion, nn.BCEWithLogitsLoss | nn.BCELoss):
        if weight is not None:
            raise ValueError(
                f"criterion {name} has a `weight`, which torch ties to positions in the batch; "
                "use sample_weight in fit instead."
            )
        if n_outputs > 1:
            return TorchCriterion(criterion)
        if isinstance(criterion, nn.BCELoss):
            return BinaryProbabilityCriterion(criterion, True) if own else BinaryProbabilityNLL()
        if own:
            return BinaryLogitCriterion(criterion, True)
        return BinaryCrossEntropy(_kept(criterion.pos_weight))
    return TorchCriterion(criterion, output_ndim == 1)


def pairs_all_rows(
    criterion: nn.Module, outputs: tuple[int, ...], targets: tuple[int, ...]
) -> bool:
    """Return whether torch spreads outputs and targets of these shapes to every pair of rows."""
    n = outputs[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = _copy(criterion, reduction="none")(torch.zeros(outputs), torch.zeros(targets))
    except (TimeoutError, MemoryError):
        raise
    except Exception:  # a criterion that refuses them raises what it likes
        return False
    return isinstance(values, Tensor) and values.shape == (n, n)


def class_weight_of(criterion: nn.Module, n_outputs: int) -> Tensor | None:
    """Return the class weights that the criterion averages with (n_outputs,), or None.

    The rows of an ignored class have no part in torch's mean: their weight is zero.
    """
    if not isinstance(criterion, nn.CrossEntropyLoss | nn.NLLLoss):
        return None
    weight = _kept(criterion.weight)
    if 0 <= criterion.ignore_index < n_outputs:
        weight = torch.ones(n_outputs) if weight is None else weight
        weight[criterion.ignore_index] = 0
    return weight


def _kept(weight: Tensor | None) -> Tensor | None:
    """Return a copy of a criterion's buffer."""
    return None if weight is None else weight.detach().clone()


def _copy(criterion: nn.Module, **changes: Any) -> nn.Module:
    """Return a copy with some attributes changed."""
    criterion = copy.deepcopy(criterion)
    for name, value in changes.items():
        setattr(criterion, name, value)
    return criterion
