"""A module's private copy in evaluation mode, and what it must not do."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from ..returned import outputs_in
from ..rows import Inputs, arguments, mapped
from .pickles import let_be_pickled
from .randomness import global_generators

#: Rows on which the copy is tried.
N_TRIED = 4

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def private_copy(module: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode that shares nothing with the user's module.

    Hooks that compute a parameter (those of ``torch.nn.utils.weight_norm``) stay. Embeddings give
    dense gradients, with the same values. ValueError if it cannot be differentiated row by row.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(
            "estimator is a module compiled by torch.jit, whose gradients cannot be taken row by row. "
            "Pass the module that it was compiled from."
        )
    for name, part in module.named_modules():
        where = name or "itself"
        if isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.max_norm is not None:
            raise ValueError(
                f"estimator has an embedding with max_norm ({where}), which changes its weights "
                "whenever it is used. Load its weights into a module without max_norm."
            )
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is None:
            raise ValueError(
                f"estimator has a BatchNorm layer ({where}) without running statistics, so that the "
                "outputs of a row depend on the other rows of the batch. Use track_running_stats=True."
            )
    made = copied(module)
    for part in made.modules():
        if isinstance(part, nn.Embedding | nn.EmbeddingBag):
            part.sparse = False
        for name in _computed(part):
            part.register_forward_hook(_Forget(name))
        _without_iterations(part)
        _without_extras(part)
    let_be_pickled(made)
    return made.eval()


def _without_iterations(part: nn.Module) -> None:
    """Keep a spectral norm from changing in training: it is that along the vectors of the final model."""
    for norm in (part, *part._forward_pre_hooks.values()):
        if type(norm).__name__.endswith("SpectralNorm"):
            vars(norm)["n_power_iterations"] = 0


class _Forget:
    """Forgets a weight that a hook has computed for a call, since it belongs to that call alone."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self, part: nn.Module, inputs: Any, outputs: Any) -> None:
        setattr(part, self.name, None)


def copied(module: nn.Module) -> nn.Module:
    """Return a deep copy, also of a module that holds a weight which a hook has computed."""
    held = [vars(part).get(name) for part in module.modules() for name in _computed(part)]
    known = {id(value): value.detach() for value in held if isinstance(value, Tensor)}
    try:
        return copy.deepcopy(module, known)
    except RuntimeError as error:
        raise ValueError(
            f"estimator cannot be copied: {error}. A module must not keep tensors that it has computed "
            "in a forward pass; where it does, detach them."
        ) from error


def _computed(part: nn.Module) -> list[str]:
    """Return the names of the weights that hooks of ``torch.nn.utils`` compute before each call."""
    hooks: list[Any] = list(part._forward_pre_hooks.values())
    return [hook.name for hook in hooks if _computes_parameter(hook)]


def _without_extras(part: Any) -> None:
    """Keep a module from caches, checkpoints of gradients, and outputs for padding that training has not."""
    if getattr(getattr(part, "config", None), "use_cache", False):
        part.config.use_cache = False
    if getattr(part, "gradient_checkpointing", False):
        part.gradient_checkpointing = False
    if getattr(part, "use_nested_tensor", False):
        part.use_nested_tensor = False


def without_hooks(module: nn.Module) -> nn.Module:
    """Take the user's hooks off the module, in place, and return it."""
    for hooks, key in _user_hooks(module):
        del hooks[key]
    return module


def has_hooks(module: nn.Module) -> bool:
    """Return whether the user has registered a hook on any part."""
    return bool(_user_hooks(module))


def _user_hooks(module: nn.Module) -> list[tuple[dict[int, Any], int]]:
    """Return the dicts that hold hooks of the user's, each with a hook's key."""
    held = [getattr(part, kind, None) or {} for part in module.modules() for kind in _HOOKS]
    return [(h, key) for h in held for key, hook in h.items() if not _computes_parameter(hook)]


def _computes_parameter(hook: Any) -> bool:
    return type(hook).__module__.startswith("torch.nn.utils") or isinstance(hook, _Forget)


def returned(module: nn.Module, x: Inputs) -> Any:
    """Return whatever a module returns for rows, to which it may write."""
    args, named = arguments(x)
    return module(*args, **named)


def called(module: nn.Module, x: Inputs) -> Tensor:
    """Return the outputs of a module for rows, which stay as they are."""
    return outputs_in(returned(module, mapped(torch.clone, x)), len(x))


def keep_inputs(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Give a module that works in place a copy of its rows: a forward pre-hook with keywords."""
    return _pytree.tree_map_only(Tensor, torch.clone, (inputs, named))


def same_outputs(other: Any, outputs: Tensor) -> bool:
    """Return whether outputs are equal to others up to rounding."""
    if not isinstance(other, Tensor) or other.shape != outputs.shape:
        return False
    tolerance = 1e3 * torch.finfo(outputs.dtype).eps * float(outputs.abs().max().clamp_min(1e-30))
    return not bool(((other - outputs).abs() > tolerance).any())


def check_rows_apart(module: nn.Module, x: Inputs, outputs: Tensor) -> None:
    """Raise ValueError unless the outputs of a row are always the same, whatever rows are beside it.

    The module is in evaluation mode, and gives these `outputs` (n, ...) for the few rows `x`.
    """
    with global_generators(1):  # with the same numbers, noise would not show
        again = called(module, x)
    if not same_outputs(again, outputs):
        raise ValueError(
            "estimator gives random outputs in evaluation mode: two passes over the same rows differ. "
            "Use nn.Dropout, or F.dropout with training=self.training, so that eval() switches it off."
        )
    alone = torch.cat([called(module, one) for one in x.split(1)])
    if not same_outputs(alone, outputs):
        raise ValueError(
            "estimator's outputs for a row depend on the other rows of the batch (it takes a mean over "
            "rows, for example), so that the loss of one row cannot be told from the others."
        )


def _of_plain_layers(module: nn.Module) -> bool:
    """Return whether all layers are torch's own, unchanged, and none is an embedding: nothing to try."""
    return not has_hooks(module) and all(
        type(part).__module__.startswith("torch.nn.modules.")
        and "forward" not in vars(part)
        and not isinstance(part, nn.Embedding | nn.EmbeddingBag)
        for part in module.modules()
    )


def check_gradients_apart(module: nn.Module, x: Inputs) -> None:
    """Raise ValueError unless rows that come up twice have twice the gradient of rows that come up once.

    Gradients of ``nn.Embedding(scale_grad_by_freq=True)`` have not, whatever its outputs are. What
    cannot be differentiated here at all is left to those who need it. The module is in evaluation mode,
    and `x` are a few rows.
    """
    if _of_plain_layers(module):
        return
    parameters = {k: p for k, p in module.named_parameters() if p.requires_grad}

    def gradients(rows: Inputs) -> tuple[Tensor | None, ...]:
        outputs = called(module, rows)
        # outputs count differently, or those of a softmax would sum to a constant
        counted = outputs.reshape(len(outputs), -1)
        counted = counted * torch.linspace(1, 2, counted.shape[1]).to(counted)
        return torch.autograd.grad(counted.sum(), tuple(parameters.values()), allow_unused=True)

    try:
        with torch.enable_grad():
            once, twice = gradients(x), gradients(x[torch.arange(len(x)).repeat(2)])
    except RuntimeError:
        return
    for name, found in zip(parameters, once, strict=True):
        if found is not None and found.layout != torch.strided:
            raise ValueError(
                f"estimator has a parameter whose gradients are sparse ({name}). Use sparse=False in its "
                "forward: the values are the same."
            )
    off = size = 0.0
    for one, two in zip(once, twice, strict=True):
        if one is not None and two is not None:
            off += float((two - 2 * one).double().square().sum())
            size += float((2 * one).double().square().sum())
    if off > 1e-6 * size:
        raise ValueError(
            "estimator's gradients for a row depend on the other rows of the batch, as those of "
            "nn.Embedding(scale_grad_by_freq=True) do, so that a row's part cannot be told from that of "
            "the others. Train the module without that, and pass it then."
        )
