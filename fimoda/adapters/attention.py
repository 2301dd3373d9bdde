"""Masks of attention in models of ``transformers``, in a form that can be batched over rows.

Such a model looks at the numbers of a padding mask, to leave out one that masks nothing, which no batch over
rows or models can follow. The private copy of it always makes the mask; its attention stays as it is.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..rows import Inputs
from .first_run import FAILURES
from .private_copy import called, same_outputs

#: The setting of attention; its value where masks that mask nothing are left out, and where they are not.
_SETTING, _SKIPS, _NAME = "_attn_implementation", "sdpa", "fimoda_sdpa"

#: Options of functions that make masks, which say that a mask may be left out.
_OPTIONS = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}


def with_whole_masks(module: nn.Module, x: Inputs, outputs: Tensor) -> None:
    """Let attention within a private copy always make its masks, if its outputs for rows stay as they are."""
    configs = [getattr(part, "config", None) for part in module.modules()]
    found = {id(one): one for one in configs if getattr(one, _SETTING, None) == _SKIPS}
    if not found or not _registered():
        return
    handle = module.register_forward_pre_hook(_register_first)
    for config in found.values():
        setattr(config, _SETTING, _NAME)
    try:
        same = same_outputs(called(module, x), outputs)
    except FAILURES:
        same = False
    if not same:
        handle.remove()
        for config in found.values():
            setattr(config, _SETTING, _SKIPS)


def _registered() -> bool:
    """Make our attention known to ``transformers``; return whether it has such attention at all."""
    masks, models = (
        sys.modules.get(f"transformers.{name}") for name in ("masking_utils", "modeling_utils")
    )
    made = getattr(masks, "AttentionMaskInterface", None)
    forward = getattr(models, "AttentionInterface", None)
    if made is None or forward is None:
        return False
    if _NAME not in forward():
        made.register(_NAME, partial(_whole_mask, made()[_SKIPS]))
        forward.register(_NAME, forward()[_SKIPS])
    return True


def _whole_mask(make: Any, *args: Any, **options: Any) -> Any:
    return make(*args, **(options | _OPTIONS))


def _register_first(module: nn.Module, inputs: Any) -> None:
    """Make our attention known in the process that the copy is used in: a forward pre-hook."""
    _registered()
