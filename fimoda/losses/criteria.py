"""Losses made of torch's criteria."""

from __future__ import annotations

import copy
import inspect
import warnings

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
    """Any torch criterion that knows ``reduction="none"``, of targets as they are given.

    Parameters
    ----------
    criterion : nn.Module
        The criterion; a copy with ``reduction="none"`` is kept.
    flat_outputs : bool, default=False
        Whether the criterion takes outputs of shape ``(n,)``, as the module returns them.
    """

    def __init__(self, criterion: nn.Module, flat_outputs: bool = False):
        self.criterion = _per_row(criterion)
        self.flat_outputs = flat_outputs

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return by_rows(self._of_rows, outputs, targets)

    def _of_rows(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.flat_outputs:
            outputs = outputs.squeeze(-1)
        if targets.is_floating_point():
            targets = targets.to(outputs.dtype)
        values = self.criterion.to(outputs.dtype)(outputs, targets)
        if values.dim() == 0 or values.shape[0] != outputs.shape[0]:
            raise ValueError(
                "criterion must give one loss per row when its reduction is 'none'; "
                f"{type(self.criterion).__name__} gave shape {tuple(values.shape)} for "
                f"{outputs.shape[0]} rows. Write the criterion so that reduction='none' "
                "returns a tensor whose first axis is the rows."
            )
        return values.flatten(1).mean(1) if values.dim() > 1 else values


class RegressionCriterion(TorchCriterion, Regression):
    """A torch criterion of real outputs and targets of the same shape, averaged over the outputs."""


def row_loss(criterion: nn.Module, output_ndim: int, n_outputs: int) -> RowLoss:
    """Turn a torch criterion into its per-row loss.

    Raises
    ------
    TypeError
        If the criterion is not an ``nn.Module`` or cannot give one loss per row.
    ValueError
        If its reduction is a sum, or it uses options that mix rows.
    """
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
    if isinstance(criterion, nn.MSELoss):
        return SquaredError()
    if isinstance(criterion, nn.CrossEntropyLoss):
        if criterion.label_smoothing == 0:
            return CrossEntropy()
        weight = criterion.weight
        return SmoothedCrossEntropy(
            criterion.label_smoothing, None if weight is None else weight.detach().clone()
        )
    if isinstance(criterion, nn.NLLLoss):
        return LogProbabilityNLL()
    if isinstance(criterion, nn.BCEWithLogitsLoss | nn.BCELoss):
        if criterion.weight is not None:
            raise ValueError(
                f"criterion {name} has a `weight`, which torch ties to positions in the batch; "
                "use sample_weight in fit instead."
            )
        if n_outputs > 1:
            return TorchCriterion(criterion)
        if isinstance(criterion, nn.BCELoss):
            return BinaryProbabilityNLL()
        weight = criterion.pos_weight
        return BinaryCrossEntropy(None if weight is None else weight.detach().reshape(()).clone())
    if isinstance(criterion, nn.L1Loss | nn.SmoothL1Loss | nn.HuberLoss):
        return RegressionCriterion(criterion)
    return TorchCriterion(criterion, flat_outputs=output_ndim == 1)


def pairs_all_rows(
    criterion: nn.Module, outputs: tuple[int, ...], targets: tuple[int, ...]
) -> bool:
    """Return whether torch spreads outputs and targets of these shapes to every pair of rows."""
    n = outputs[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = _per_row(criterion)(torch.zeros(outputs), torch.zeros(targets))
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
    weight = None if criterion.weight is None else criterion.weight.detach().clone()
    if 0 <= criterion.ignore_index < n_outputs:
        weight = torch.ones(n_outputs) if weight is None else weight
        weight[criterion.ignore_index] = 0
    return weight


def _per_row(criterion: nn.Module) -> nn.Module:
    """Return a copy that gives one value per row."""
    criterion = copy.deepcopy(criterion)
    setattr(criterion, "reduction", "none")  # noqa: B010
    return criterion
