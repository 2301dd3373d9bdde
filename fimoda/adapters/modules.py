"""torch modules, alone or inside a skorch net."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..losses import (
    CLASS_KINDS,
    ProbabilityNLL,
    RowLoss,
    SquaredError,
    class_weight_of,
    row_loss,
)
from ..model import FinalModel, Recipe


def from_module(module: nn.Module, X: Any, criterion: nn.Module | None) -> FinalModel:
    """A bare module, which knows neither its criterion nor how it was trained."""
    if criterion is None:
        raise ValueError(
            "criterion must be given with a bare torch.nn.Module, for example "
            "criterion=torch.nn.CrossEntropyLoss(); got None."
        )
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training:
            raise ValueError(
                f"estimator has a BatchNorm layer ({name or 'itself'}) in training mode. Scores are "
                "defined with its running statistics frozen: call estimator.eval() first."
            )
    return freeze(module, X, criterion, Recipe())


def freeze(
    module: nn.Module,
    X: Any,
    criterion: nn.Module,
    recipe: Recipe,
    probabilities: bool = False,
    binary: bool = False,
) -> FinalModel:
    """A private copy of a module, once it is known that it can be attributed.

    `probabilities` says that the criterion is skorch's, on probabilities; `binary` that the net
    must have one output.
    """
    module = getattr(module, "_orig_mod", module)
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in module.parameters()):
        raise ValueError("estimator has uninitialised (lazy) parameters; run it on data first.")
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError(
            "estimator has no parameter that requires a gradient: nothing to attribute."
        )
    if len({(p.device, p.dtype) for p in trainable}) > 1:
        raise ValueError("estimator must have all its parameters on one device and in one dtype.")
    if not all(bool(torch.isfinite(p).all()) for p in module.parameters()):
        raise ValueError("estimator has parameters that are NaN or infinite; train it again.")
    frozen = copy.deepcopy(module).eval()
    probe = FinalModel(frozen, SquaredError())
    try:
        with torch.no_grad():
            raw = frozen(probe.encode_X(X[:1]))
    except (RuntimeError, TypeError, IndexError) as error:
        raise ValueError(
            f"estimator could not be run on a row of X of shape {np.shape(X)[1:]}: {error}"
        ) from error
    raw = raw[0] if isinstance(raw, tuple) else raw
    if not isinstance(raw, Tensor) or raw.dim() not in (1, 2) or len(raw) != 1:
        got = tuple(raw.shape) if isinstance(raw, Tensor) else type(raw).__name__
        raise ValueError(
            "estimator must return one tensor of shape (n_rows,) or (n_rows, n_outputs); for one "
            f"row it returned {got}."
        )
    n_outputs = 1 if raw.dim() == 1 else raw.shape[1]
    loss: RowLoss
    if probabilities:
        loss = ProbabilityNLL(eps=torch.finfo(raw.dtype).eps)
    else:
        loss = row_loss(criterion, raw.dim(), n_outputs)
    classes = None
    if loss.kind in CLASS_KINDS:
        if binary and n_outputs != 1:
            raise ValueError("a NeuralNetBinaryClassifier must have one output.")
        classes = np.arange(2 if loss.kind.startswith("binary") else n_outputs)
    weight = class_weight_of(criterion)
    if weight is not None:
        weight = weight.detach().clone()
    return FinalModel(
        frozen, loss, classes=classes, class_weight=weight, recipe=recipe, output_ndim=raw.dim()
    )
