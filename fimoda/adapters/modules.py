"""torch modules, alone or inside a skorch net."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..losses import (
    ProbabilityNLL,
    RowLoss,
    SquaredError,
    class_weight_of,
    row_loss,
)
from ..model import FinalModel, Recipe, unwrapped
from .kinds import Kind
from .private_copy import (
    N_TRIED,
    check_gradients_apart,
    check_rows_apart,
    first_output,
    has_hooks,
    keep_inputs,
    private_copy,
    without_hooks,
)


def from_module(module: nn.Module, X: Any, criterion: nn.Module | None) -> FinalModel:
    """Freeze a bare module, which knows neither its criterion nor how it was trained."""
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
    """Return a private copy of a module, once it is known that it can be attributed.

    `probabilities` says that the criterion is skorch's, on probabilities; `binary` that the net
    must have one output.
    """
    module = unwrapped(module)
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in module.parameters()):
        raise ValueError("estimator has uninitialised (lazy) parameters; run it on data first.")
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError(
            "estimator has no parameter that requires a gradient: nothing to attribute."
        )
    if len({(p.device, p.dtype) for p in trainable}) > 1:
        raise ValueError("estimator must have all its parameters on one device and in one dtype.")
    if trainable[0].dtype in (torch.bfloat16, torch.float16):
        # their rounding is larger than what a row does
        module = copy.deepcopy(module).float()
    if not all(bool(torch.isfinite(p).all()) for p in module.parameters()):
        raise ValueError("estimator has parameters that are NaN or infinite; train it again.")
    frozen, integers, raw = _tried(module, X)
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
    if loss.is_classifier:
        if binary and n_outputs != 1:
            raise ValueError("a NeuralNetBinaryClassifier must have one output.")
        classes = np.arange(loss.n_classes(n_outputs))
    weight = class_weight_of(criterion, n_outputs)
    if weight is not None:
        weight = weight.to(raw)
    return FinalModel(
        frozen,
        loss,
        classes=classes,
        class_weight=weight,
        recipe=recipe,
        output_ndim=raw.dim(),
        takes_integers=integers,
    )


def _tried(module: nn.Module, X: Any) -> tuple[nn.Module, bool, Any]:
    """The private copy, whether it takes integers as they are, and its outputs for one row."""
    frozen = private_copy(module)
    hooked = copy.deepcopy(frozen) if has_hooks(frozen) else None
    frozen = without_hooks(frozen)
    raw, integers = _outputs(frozen, X[:1])
    rows = FinalModel(frozen, SquaredError(), takes_integers=integers).encode_X(X[:N_TRIED])
    with torch.no_grad():
        if hooked is not None and not _same(first_output(hooked(rows[:1].clone())), raw):
            frozen = hooked  # they are part of the model
            raw = first_output(frozen(rows[:1].clone()))
        given = rows.clone()
        outputs = first_output(frozen(given))
        if not torch.equal(given, rows):
            frozen.register_forward_pre_hook(keep_inputs)
        if isinstance(outputs, Tensor) and outputs.dim() in (1, 2) and len(outputs) == len(rows):
            check_rows_apart(frozen, rows, outputs)
            check_gradients_apart(frozen, rows)
    return frozen, integers, raw


def _same(a: Any, b: Any) -> bool:
    tensors = isinstance(a, Tensor) and isinstance(b, Tensor)
    return tensors and a.shape == b.shape and bool(torch.equal(a, b))


def _outputs(frozen: nn.Module, X: Any) -> tuple[Any, bool]:
    """Outputs for a row, and whether integers had to stay integers for it.

    Embeddings need them; any other network is given floating point numbers first.
    """
    embeds = any(isinstance(part, nn.Embedding | nn.EmbeddingBag) for part in frozen.modules())
    failed: Exception | None = None
    for integers in (True,) if embeds else (False, True):
        row = FinalModel(frozen, SquaredError(), takes_integers=integers).encode_X(X)
        try:
            with torch.no_grad():
                return first_output(frozen(row.clone())), integers
        except (RuntimeError, TypeError, IndexError, ValueError) as error:
            failed = failed or error
    raise ValueError(
        f"estimator could not be run on a row of X of shape {np.shape(X)[1:]}: {failed}"
    ) from failed


class Module(Kind):
    """A bare module."""

    types = (nn.Module,)
    takes_criterion = True
    knows_columns = False
    takes_sparse = False

    def is_fitted(self) -> bool:
        return True

    def is_network(self) -> bool:
        return True

    def frozen(self, X: Any, y: Any, weights: Any, criterion: Any) -> FinalModel:
        return from_module(self.model, X, criterion)

    def fresh(self, seed: int) -> nn.Module:
        """Return a copy whose parts have drawn their parameters again."""
        return drawn_again(copy.deepcopy(self.model).cpu())


def drawn_again(module: nn.Module) -> nn.Module:
    """Draw all trainable parameters again, children first, as their constructors do; return the module."""
    left: list[str] = []

    def reset(part: nn.Module) -> None:
        draw = getattr(part, "reset_parameters", getattr(part, "_reset_parameters", None))
        if callable(draw):
            draw()
        elif any(p.requires_grad for p in part.parameters(recurse=False)):
            left.extend(name for name, _ in part.named_parameters(recurse=False))

    with torch.no_grad():
        module.apply(reset)
    if left:
        raise ValueError(
            f"estimator has parameters that no reset_parameters draws again ({', '.join(left)}), so "
            "it cannot be trained from scratch. Give the module that owns them a method "
            "reset_parameters, or pass init, a callable that makes a new module."
        )
    return module
