"""Parameters of a bare module before training: drawn again, as the constructors of its parts draw them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

#: Draws the parameters of one part of a model again.
Draw = Callable[[nn.Module], None]


def drawn_again(module: nn.Module) -> nn.Module:
    """Draw all trainable parameters again, children first, as their constructors do; return the module.

    Parts have ``reset_parameters`` for it, and models of ``transformers`` their own rule. Adapters of
    ``peft`` start again from the base model. ValueError if nothing says how a parameter is drawn.
    """
    wanted: dict[str, Tensor] = {}
    with torch.no_grad():
        _draw(module, "", wanted)
    left = [name for name, parameter in wanted.items() if bool(parameter.isnan().any())]
    if left:
        raise ValueError(
            f"estimator has parameters that no reset_parameters draws again ({', '.join(left)}), so "
            "it cannot be trained from scratch. Give the module that owns them a method "
            "reset_parameters, or pass init, a callable that makes a new module."
        )
    return module


def kept_beside(module: nn.Module) -> str | None:
    """Return the name of a buffer, if there is one, that computed parameters start with.

    Those are the vectors of a spectral norm, and the base of an orthogonal parametrisation.
    """
    for name, _ in module.named_buffers():
        if "parametrizations." in name:
            return name
    for name, part in module.named_modules():
        for hook in part._forward_pre_hooks.values():
            if type(hook).__name__ == "SpectralNorm":
                return f"{name}.{hook.name}_u".removeprefix(".")
    return None


def _draw(
    part: Any,
    name: str,
    wanted: dict[str, Tensor],
    rule: Draw | None = None,
    adapters: dict[str, Any] | None = None,
) -> None:
    """Draw what is below a part, and then its own parameters; those that nothing draws are NaN.

    The parameters that are `wanted` are noted by name. `rule` is that of a model of ``transformers``
    around the part, and `adapters` are the settings of ``peft``.
    """
    rule = getattr(part, "_init_weights", rule)
    adapters = getattr(part, "peft_config", adapters)
    if hasattr(part, "reset_lora_parameters"):
        _reset_adapters(part, name, wanted, adapters or {})
    elif hasattr(part, "modules_to_save") and hasattr(part, "original_module"):
        for trained in part.modules_to_save.values():
            trained.load_state_dict(part.original_module.state_dict())
    elif parametrize.is_parametrized(part):
        _draw_parametrised(part, name, wanted, rule=rule, adapters=adapters)
    else:
        for child, inner in part.named_children():
            _draw(inner, f"{name}{child}.", wanted, rule, adapters)
        _draw_own(part, name, wanted, rule)


def _draw_own(part: nn.Module, name: str, wanted: dict[str, Tensor], rule: Draw | None) -> None:
    """Draw the parameters that a part owns itself."""
    for k, p in part.named_parameters(recurse=False):
        if p.requires_grad:
            wanted[name + k] = p.fill_(torch.nan)
    reset = getattr(part, "reset_parameters", getattr(part, "_reset_parameters", None))
    if callable(reset):
        reset()
    if rule is not None:
        rule(part)


def _draw_parametrised(part: Any, name: str, wanted: dict[str, Tensor], **rules: Any) -> None:
    """Draw parameters that are computed of others: those others from a new draw of the former."""
    plain = _unparametrised(part)
    _draw(plain, name, wanted, **rules)
    for k, p in part.named_parameters():
        if not k.startswith("parametrizations."):
            wanted[name + k] = p.copy_(plain.get_parameter(k))
    for tensor in part.parametrizations:
        try:
            setattr(part, tensor, plain.get_parameter(tensor).detach())
        except (RuntimeError, NotImplementedError):  # it has no inverse
            wanted[name + tensor].fill_(torch.nan)


def _unparametrised(part: Any) -> Any:
    """Return a copy whose parameters are those that a part computes; torch's own removal changes both."""
    kind: Any = parametrize.type_before_parametrizations(part)
    plain = kind.__new__(kind)
    vars(plain).update(copy.deepcopy(vars(part)))
    del plain._modules["parametrizations"]
    for tensor, of in part.parametrizations.items():
        trained = any(p.requires_grad for p in of.parameters())
        setattr(plain, tensor, nn.Parameter(getattr(part, tensor).detach().clone(), trained))
    return plain


def _reset_adapters(
    part: Any, name: str, wanted: dict[str, Tensor], adapters: dict[str, Any]
) -> None:
    """Draw low-rank adapters again, which change nothing at first."""
    for adapter in dict.fromkeys((*part.lora_A, *part.lora_embedding_A)):
        way = getattr(adapters.get(adapter), "init_lora_weights", True)
        if way is True or way == "gaussian":
            part.reset_lora_parameters(adapter, way)
        else:  # it depends on the base model, or on data
            wanted[f"{name}lora_A.{adapter} of init_lora_weights={way!r}"] = torch.tensor(torch.nan)
