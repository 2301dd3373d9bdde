"""torch modules, alone or inside a skorch net."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._arrays import entries, is_several, n_rows, take_rows
from ..losses import SquaredError, class_weight_of, has_positions
from ..model import FinalModel, unwrapped
from ..recipe import Recipe
from ..returned import outputs_in
from ..rows import mapped, parts
from .attention import with_whole_masks
from .first_run import UnknownId, check_ids, first_run
from .fitting_loss import fitting_loss, with_tried_loss
from .fresh_parameters import drawn_again
from .kinds import Kind
from .padding_trial import with_padding
from .private_copy import (
    N_TRIED,
    called,
    check_gradients_apart,
    check_rows_apart,
    copied,
    has_hooks,
    keep_inputs,
    private_copy,
    without_hooks,
)


def freeze(
    module: nn.Module,
    X: Any,
    y: Any,
    criterion: nn.Module,
    recipe: Recipe,
    classes_second: bool | None = None,
    probabilities: bool = False,
    binary: bool = False,
) -> FinalModel:
    """Return a private copy of a module, once it is known that it can be attributed.

    `classes_second` says where the classes of positions are, if it is known without their targets `y`;
    `probabilities` that the criterion is skorch's, on probabilities; `binary` that the net must have
    one output.
    """
    module = unwrapped(module)
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in module.parameters()):
        raise ValueError("estimator has uninitialised (lazy) parameters; run it on data first.")
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError(
            "estimator has no parameter that requires a gradient: nothing to attribute."
        )
    halves = {p.dtype for p in module.parameters()} & {torch.bfloat16, torch.float16}
    if halves:
        warnings.warn(
            f"estimator has parameters of {', '.join(sorted(map(str, halves)))}, whose rounding is larger "
            "than what a row does. All is computed in float32, from these parameters.",
            UserWarning,
            stacklevel=2,
        )
        module = copied(module).float()
        trainable = [p for p in module.parameters() if p.requires_grad]
    if len({(p.device, p.dtype) for p in trainable}) > 1:
        raise ValueError("estimator must have all its parameters on one device and in one dtype.")
    if not all(bool(torch.isfinite(p).all()) for p in module.parameters()):
        raise ValueError("estimator has parameters that are NaN or infinite; train it again.")
    frozen, way, raw = _tried(module, X)
    if raw.dim() < 1 or len(raw) != 1:
        raise ValueError(
            "estimator must return one tensor of shape (n_rows,), (n_rows, n_outputs), or with positions "
            f"between or behind them; for one row it returned {tuple(raw.shape)}."
        )
    if isinstance(criterion, nn.GaussianNLLLoss):  # a mean and a variance
        way["joined"] = True
        view = FinalModel(frozen, SquaredError(), **way)
        raw = view.outputs(view.encode_X(take_rows(X, np.arange(1))))
    shape = tuple(raw.shape[1:])
    loss, second = fitting_loss(criterion, shape, y, raw.dtype, classes_second, probabilities)
    n_outputs = prod(shape)
    classes = None
    if loss.is_classifier:
        if binary and n_outputs != 1:
            raise ValueError("a NeuralNetBinaryClassifier must have one output.")
        classes = np.arange(loss.n_classes(n_outputs))
    weight = None if has_positions(criterion, shape) else class_weight_of(criterion, n_outputs)
    if weight is not None:
        weight = weight.to(raw)
    model = FinalModel(
        frozen,
        loss,
        classes=classes,
        class_weight=weight,
        recipe=recipe,
        output_ndim=raw.dim(),
        classes_second=second,
        **way,
    )
    check_ids(model, X)
    return with_padding(with_tried_loss(model, X, y), X)


def _tried(module: nn.Module, X: Any) -> tuple[nn.Module, dict[str, Any], Tensor]:
    """Return the private copy, the way in which it takes rows, and its outputs for one of them."""
    frozen = private_copy(module)
    hooked = copy.deepcopy(frozen) if has_hooks(frozen) else None
    frozen = without_hooks(frozen)
    raw, way = _outputs(frozen, take_rows(X, np.arange(1)))
    view = FinalModel(frozen, SquaredError(), **way)
    rows = view.encode_X(take_rows(X, np.arange(min(N_TRIED, n_rows(X)))))
    with torch.no_grad():
        if hooked is not None:
            own = called(hooked, rows[:1])
            if own.shape != raw.shape or not torch.equal(own, raw):
                frozen, raw = hooked, own  # they are part of the model
        given = mapped(torch.clone, rows)
        try:
            outputs = outputs_in(first_run(frozen, given), len(rows))
        except UnknownId:
            raise
        except ValueError as error:
            raise ValueError(
                f"estimator could be run on one row of X, but not on {len(rows)} at a time: {error}"
            ) from error
        if not all(map(torch.equal, parts(given), parts(rows))):
            frozen.register_forward_pre_hook(keep_inputs, with_kwargs=True)
        if outputs.dim() > 0 and len(outputs) == len(rows):
            check_rows_apart(frozen, rows, outputs)
            check_gradients_apart(frozen, rows)
            with_whole_masks(frozen, rows, outputs)
    return frozen, way, raw


def _outputs(frozen: nn.Module, X: Any) -> tuple[Tensor, dict[str, Any]]:
    """Return the outputs for a row, and the way in which a `FinalModel` has to take rows for it.

    Embeddings need integers; any other network is given floating point numbers first. A tuple is one
    argument first, as skorch has it.
    """
    embeds = any(isinstance(part, nn.Embedding | nn.EmbeddingBag) for part in frozen.modules())
    ways: list[dict[str, Any]] = [
        {"takes_integers": integers} for integers in ((True,) if embeds else (False, True))
    ]
    if is_several(X):
        ways = [{}] if isinstance(X, Mapping) else [{"spreads": False}, {"spreads": True}]
    failed: list[Exception] = []
    for way in ways:
        row = FinalModel(frozen, SquaredError(), **way).encode_X(X)
        try:
            with torch.no_grad():
                found = first_run(frozen, mapped(torch.clone, row))
        except UnknownId:
            raise
        except ValueError as error:
            failed.append(error)
        else:
            return outputs_in(found, 1), way
    if not is_several(X):
        raise ValueError(
            f"estimator could not be run on a row of X of shape {np.shape(X)[1:]}: {failed[0]}"
        ) from failed[0]
    shapes = ", ".join(f"X{name} of shape {np.shape(part)[1:]}" for name, part in entries(X))
    told = "; ".join(dict.fromkeys(map(str, failed)))
    raise ValueError(
        f"estimator could not be run on a row of {shapes}, as skorch calls a module (a dict by the names of "
        f"its arguments): {told}"
    ) from failed[-1]


class Module(Kind):
    """A bare module, which knows neither its criterion nor how it was trained."""

    types = (nn.Module,)
    takes_criterion = True
    fits_itself = False
    knows_columns = False
    takes_sparse = False

    def is_fitted(self) -> bool:
        return True

    def goes_on_in_steps(self) -> bool:
        return True

    def is_network(self) -> bool:
        return True

    def frozen(self, X: Any, y: Any, weights: Any, criterion: Any) -> FinalModel:
        if criterion is None:
            raise ValueError(
                "criterion must be given with a bare torch.nn.Module, for example "
                "criterion=torch.nn.CrossEntropyLoss(); got None."
            )
        for name, part in self.model.named_modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training:
                raise ValueError(
                    f"estimator has a BatchNorm layer ({name or 'itself'}) in training mode. Scores are "
                    "defined with its running statistics frozen: call estimator.eval() first."
                )
        return freeze(self.model, X, y, criterion, Recipe())

    def fresh(self, seed: int) -> nn.Module:
        """Return a copy whose parts have drawn their parameters again."""
        return drawn_again(copied(unwrapped(self.model)).cpu())
