"""Measurements of a model's outputs, which are attributed: their values and gradients.

A measurement is a callable ``m(outputs, targets)`` that gives one number per row: `outputs` is a
tensor (n, C), `targets` the encoded targets of those rows. The names ``"loss"``, ``"margin"``,
``"log_prob"`` and ``"output"`` stand for the built-in ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from .losses import RowLoss

#: From outputs (n, C) and targets of n rows to one number each.
Measure = Callable[[Tensor, Tensor], Tensor]

Measurement = str | Measure

NAMES = ("loss", "margin", "log_prob", "output")


class Output:
    """The raw output number `index` of the model.

    Parameters
    ----------
    index : int
        Which output; for a classifier, which class in the order of ``classes_``.

    Examples
    --------
    >>> import torch
    >>> from fimoda.measurements import Output
    >>> Output(1)(torch.tensor([[0.5, 2.0]]), torch.tensor([0]))
    tensor([2.])
    """

    def __init__(self, index: int):
        self.index = index

    def __repr__(self) -> str:
        return f"Output({self.index})"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if not 0 <= self.index < outputs.shape[-1]:
            raise ValueError(
                f"Output(index) must be in [0, {outputs.shape[-1]}) for this model, got {self.index}."
            )
        return outputs[..., self.index]


class _OfUser:
    """A callable, which may write to what it is given, and is not differentiated where it cannot be."""

    def __init__(self, measure: Measure):
        self.measure = measure

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        found = self.measure(outputs.clone(), targets.clone())
        if isinstance(found, Tensor) and outputs.requires_grad and not found.requires_grad:
            raise ValueError(
                "measurement has no gradient in the outputs: it is constant, or goes through argmax, a "
                "comparison, detach or numpy. This method differentiates it; write it with smooth "
                "operations of torch, or take a method that trains without each row, as LeaveOneOut and "
                "FurtherTraining do."
            )
        return found


class _HasLoss(Protocol):
    @property
    def loss(self) -> RowLoss: ...


def resolve(measurement: Measurement, model: _HasLoss) -> Measure:
    """Return the callable behind `measurement` for this model.

    * ``"loss"``: the training criterion per row.
    * ``"log_prob"``: log p_y, the log-probability of the target class.
    * ``"margin"``: log p_y - log(1 - p_y).
    * ``"output"``: the model's only output; for a classifier with one output per class, the raw
      output of the target class.
    * a callable: used as it is.

    Raises
    ------
    ValueError
        If the name is unknown, or needs class probabilities that the model does not have.
    """
    if callable(measurement):
        return _OfUser(measurement)
    if measurement not in NAMES:
        raise ValueError(
            f"measurement must be one of {', '.join(map(repr, NAMES))} or a callable "
            f"m(outputs, targets), got {measurement!r}."
        )
    loss = model.loss
    if measurement == "loss":
        return loss
    if measurement == "output":
        return loss.target_output
    if not loss.has_probabilities:
        raise ValueError(
            f"measurement={measurement!r} needs a classifier with class probabilities; the outputs "
            f"of this model are {loss.outputs_are}. Use 'loss', 'output' or a callable."
        )
    return loss.margin if measurement == "margin" else loss.log_prob


def values(measure: Measure, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the measurement of each row in float64, of shape ``outputs.shape[:-1]``."""
    result = measure(outputs.double(), targets)
    if not isinstance(result, Tensor) or result.shape != outputs.shape[:-1]:
        got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise ValueError(
            "measurement must give one number per row: for outputs of shape "
            f"{tuple(outputs.shape)} a tensor of shape {tuple(outputs.shape[:-1])}, got {got}."
        )
    return result


def stacked_values(measure: Measure, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return `values` (L, n) of a stack of models, from outputs (L, n, C) and targets (n, ...)."""
    return torch.stack([values(measure, one, targets) for one in outputs])


def require_numbers(measure: Measure, name: str, outputs: Tensor, targets: Tensor) -> None:
    """Raise ValueError if the measurement of one of the first training rows is NaN."""
    if torch.isnan(values(measure, outputs, targets)).any():
        raise ValueError(
            f"{name} must be a number for every row, but is NaN for one of the first two training "
            "rows. Look for 0 / 0, or the logarithm or root of a negative number."
        )
