"""The loss of each row for a module's criterion, from what the module returns and the targets it had."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from .._arrays import n_rows, take_rows
from ..losses import ProbabilityNLL, RowLoss, has_positions, positions_loss, row_loss
from ..model import FinalModel
from .private_copy import N_TRIED


def fitting_loss(
    criterion: nn.Module,
    shape: tuple[int, ...],
    y: Any,
    dtype: torch.dtype,
    classes_second: bool | None,
    probabilities: bool,
) -> tuple[RowLoss, bool]:
    """Return the loss for outputs whose rows have a shape, and whether positions' classes are second.

    The arguments are those of `freeze`.
    """
    several = has_positions(criterion, shape)
    second = several and (
        have_classes_second(shape, y) if classes_second is None else classes_second
    )
    if not probabilities:
        return row_loss(criterion, shape, second), second
    loss = ProbabilityNLL(eps=torch.finfo(dtype).eps)
    return positions_loss(criterion, shape, second, loss) if several else loss, second


def have_classes_second(shape: tuple[int, ...], y: Any) -> bool:
    """Return whether the classes of positions are the first axis of a row's outputs, from the shape of `y`.

    Without targets they are last. ValueError if neither fits.
    """
    if y is None:
        return False
    of_row = np.shape(y)[1:]
    last, second = shape[:-1] == of_row, shape[1:] == of_row
    if not last and not second:
        told = ", ".join(map(str, shape))
        raise ValueError(
            f"y must have a class for each position of the outputs, whose shape is (n_rows, {told}): y of "
            f"shape (n_rows, {', '.join(map(str, shape[:-1]))}) if the classes are last, or (n_rows, "
            f"{', '.join(map(str, shape[1:]))}) if they are second, got shape {np.shape(y)}."
        )
    if last and second:
        warnings.warn(
            f"the outputs of a row have shape {shape}, and y {of_row}: the last axis is taken for the "
            "classes, as models of transformers have it. If that is wrong, wrap the module in one whose "
            "forward moves the classes to the end.",
            UserWarning,
            stacklevel=2,
        )
    return second and not last


def with_tried_loss(model: FinalModel, X: Any, y: Any) -> FinalModel:
    """Return the model with its loss tried on a few rows, if that is a criterion of the user's own."""
    if y is None or not model.loss.is_own:
        return model
    some = np.arange(min(N_TRIED, n_rows(X)))
    outputs = model.outputs(model.encode_X(take_rows(X, some))).double()
    targets = model.encode_y(np.asarray(y)[some], outputs.shape[1])
    return replace(model, loss=model.loss.tried(outputs, targets))
