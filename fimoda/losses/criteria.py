"""Losses made of torch's criteria."""

from __future__ import annotations

import copy
import inspect
import warnings
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from .base import RowLoss, by_rows
from .classification import (
    BinaryCrossEntropy,
    BinaryProbabilityNLL,
    ClassProbabilities,
    CrossEntropy,
    LogProbabilityNLL,
    SmoothedCrossEntropy,
)
from .gaussian import GaussianNLL
from .positions import OfPositions, is_mean_of
from .regression import Regression, SquaredError


class TorchCriterion(RowLoss):
    """Any criterion that knows ``reduction="none"``, or is given one row at a time: `alone`.

    Outputs of a row have a `shape`, (C,) by default.
    """

    is_own = True
    gradient = RowLoss.gradient
    output_hessian = RowLoss.output_hessian
    curved = RowLoss.curved
    root = RowLoss.root

    def __init__(self, criterion: nn.Module, shape: tuple[int, ...] | None = None, **changes: Any):
        self.alone = getattr(criterion, "reduction", None) is None
        self.criterion = _copy(
            criterion, **({} if self.alone else {"reduction": "none"}), **changes
        )
        self.shape = shape

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return by_rows(self._of_rows, outputs, targets)

    def _of_rows(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.shape is not None:
            outputs = outputs.reshape(len(outputs), *self.shape)
        criterion, targets = self.criterion.to(outputs.dtype), self._wanted(targets, outputs.dtype)
        if self.alone:
            return vmap(lambda f, y: criterion(f[None], y[None]).reshape(()))(outputs, targets)
        values = criterion(outputs, targets)
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

    def tried(self, outputs: Tensor, targets: Tensor) -> RowLoss:
        """Return this loss, or that of rows alone where the criterion gives one number for a few rows."""
        try:
            if not self.alone:
                self(outputs, targets)
                return self
        except (ValueError, RuntimeError):
            pass
        criterion: Any = copy.deepcopy(self.criterion)
        if not self.alone:
            criterion.reduction = "mean"
        by_row = copy.copy(self)
        by_row.alone, by_row.criterion = True, criterion
        name = type(criterion).__name__
        try:
            rows = by_row(outputs, targets)
            shaped = outputs if self.shape is None else outputs.reshape(len(outputs), *self.shape)
            whole = criterion(shaped, self._wanted(targets, outputs.dtype)).mean()
        except (RuntimeError, TypeError, IndexError, ValueError) as error:
            raise TypeError(
                f"criterion {name} must give a number for a row alone, in functions of torch that vmap can "
                f"map over rows, but raised: {error}. Give it a `reduction` attribute and return one value "
                "per row when it is 'none'."
            ) from error
        if not torch.isclose(whole, rows.mean(), rtol=1e-5, atol=1e-8):
            raise TypeError(
                f"criterion {name} must be a mean over rows: it gives {float(whole):.6g} for {len(rows)} "
                f"rows together, and {float(rows.mean()):.6g} on average for each of them alone. Give it a "
                "`reduction` attribute and return one value per row when it is 'none'; for positions, derive "
                "it from torch.nn.CrossEntropyLoss."
            )
        return by_row


class RegressionCriterion(TorchCriterion, Regression):
    """A criterion of real outputs and targets of the same shape, averaged over the outputs."""


class LogitsCriterion(TorchCriterion, CrossEntropy):
    """A criterion of logits."""

    is_centred = False


class LogProbabilitiesCriterion(TorchCriterion, LogProbabilityNLL):
    """A criterion of log-probabilities."""


class BinaryProbabilityCriterion(TorchCriterion, BinaryProbabilityNLL):
    """A criterion of the probability of the second class, and targets 0.0 and 1.0."""

    def _wanted(self, targets: Tensor, dtype: torch.dtype) -> Tensor:
        return targets.to(dtype)


class BinaryLogitCriterion(BinaryProbabilityCriterion, BinaryCrossEntropy):
    """A criterion of the logit of the second class, and targets 0.0 and 1.0."""


def row_loss(criterion: nn.Module, shape: tuple[int, ...], classes_second: bool = False) -> RowLoss:
    """Return the per-row loss of a torch criterion, for a model whose outputs for a row have a shape.

    That is () for one output, (C,) for C of them, and otherwise that of positions, with the classes last
    or, as torch has them, first: on the second axis of all rows'.
    """
    n_outputs = prod(shape)
    name = type(criterion).__name__
    if not isinstance(criterion, nn.Module):
        raise TypeError(
            f"criterion must be an instance of torch.nn.Module, got {criterion!r}. "
            "Pass for example criterion=torch.nn.CrossEntropyLoss()."
        )
    if isinstance(criterion, nn.GaussianNLLLoss) and is_torchs_own(criterion):
        return _gaussian(criterion, n_outputs)
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
    if reduction not in ("mean", "none", None):
        raise ValueError(
            f"criterion {name} must have reduction 'mean' or 'none', got {reduction!r}: scores are "
            "defined for an objective that averages over rows. Use reduction='mean' and scale lr."
        )
    # one that is derived from torch's may be another function of the same outputs
    own = not is_torchs_own(criterion)
    if isinstance(criterion, nn.MSELoss | nn.L1Loss | nn.SmoothL1Loss | nn.HuberLoss):
        squared = isinstance(criterion, nn.MSELoss) and not own
        regression = SquaredError() if squared else RegressionCriterion(criterion)
        regression.axes = shape
        return regression
    weight = getattr(criterion, "weight", None)
    if has_positions(criterion, shape):
        return positions_loss(criterion, shape, classes_second)
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
            return TorchCriterion(criterion, shape)
        if isinstance(criterion, nn.BCELoss):
            return BinaryProbabilityCriterion(criterion, ()) if own else BinaryProbabilityNLL()
        if own:
            return BinaryLogitCriterion(criterion, ())
        return BinaryCrossEntropy(_kept(criterion.pos_weight))
    return TorchCriterion(criterion, shape)


def _gaussian(criterion: Any, n_outputs: int) -> GaussianNLL:
    """Return the loss of a Gaussian, whose outputs are means and variances."""
    if n_outputs % 2:
        raise ValueError(
            "estimator must return means and variances for GaussianNLLLoss, as a tuple (mean, variance) or "
            f"as outputs (n_rows, 2 C), the means first; for a row it returned {n_outputs} outputs."
        )
    if criterion.reduction == "sum":
        raise ValueError(
            "criterion GaussianNLLLoss must have reduction 'mean' or 'none', got 'sum'."
        )
    return GaussianNLL(criterion.eps, criterion.full)


def is_torchs_own(criterion: Any) -> bool:
    """Return whether a criterion computes what torch's own class of that name does."""
    return isinstance(criterion, nn.Module) and (
        type(criterion).forward.__module__ == nn.MSELoss.__module__
    )


def has_positions(criterion: nn.Module, shape: tuple[int, ...]) -> bool:
    """Return whether the outputs of a row have a class at each of several positions."""
    return len(shape) > 1 and isinstance(criterion, nn.CrossEntropyLoss | nn.NLLLoss)


def positions_loss(
    criterion: Any,
    shape: tuple[int, ...],
    classes_second: bool,
    loss: ClassProbabilities | None = None,
) -> OfPositions:
    """Return the loss over positions of a cross-entropy or a negative log-likelihood.

    `loss` is that of one position, where it is not the criterion's own. One that is derived from torch's is
    tried on made-up numbers. TypeError if it is not the mean over all positions, or of the rows' means.
    """
    weight = _kept(criterion.weight)
    if isinstance(criterion, nn.CrossEntropyLoss):
        smoothing = criterion.label_smoothing
        loss = SmoothedCrossEntropy(smoothing, weight) if smoothing else CrossEntropy()
    elif loss is None:
        loss = LogProbabilityNLL()
    size = shape[0 if classes_second else -1]
    by_count, alike = (
        OfPositions(loss, size, criterion.ignore_index, weight, counted)
        for counted in (True, False)
    )
    if is_torchs_own(criterion):
        return by_count if criterion.reduction == "mean" else alike
    for known in (by_count, alike):
        if is_mean_of(known, criterion, shape, classes_second):
            return known
    raise TypeError(
        f"criterion {type(criterion).__name__} must be a mean of the loss of positions, over all that count "
        f"or over the rows' means, for outputs of shape (n_rows, {', '.join(map(str, shape))}). Pass "
        "torch.nn.CrossEntropyLoss, or write a module that flattens the outputs and calls it."
    )


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
