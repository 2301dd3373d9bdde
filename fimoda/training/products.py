"""Float32 matrix products by the faster of torch's two CPU libraries, where it is exact.

torch has two libraries for products on the CPU and by default uses one of them for float32. On
processors whose wide vector units only the other one uses, the other is about twice as fast and
just as exact. It is reached through a switch that *permits* a lower precision, so whether the
result is float32 is checked on the products of the run itself before the switch is left on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

#: Relative error above which a product was not computed in float32 (bfloat16 has 4e-3).
EXACT = 2e-5


@contextmanager
def _other_library() -> Iterator[None]:
    # torch's annotations do not know it
    switch: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = switch.fp32_precision
    switch.fp32_precision = "bf16"
    try:
        yield
    finally:
        switch.fp32_precision = before


#: Whether the other library is exact, by what the products are of.
_EXACT: dict[object, bool] = {}


@contextmanager
def fast_float32_products(trial: Callable[[], Tensor], key: object = None) -> Iterator[None]:
    """Take products by the faster library in this context, if that leaves the tensor of `trial` unchanged.

    It makes the products that the run will make, once per process if a `key` is given that tells them
    from others. Anything but float32 on the CPU is left alone.
    """
    if key is None:
        exact = _is_exact(trial)
    else:
        if key not in _EXACT:
            _EXACT[key] = _is_exact(trial)
        exact = _EXACT[key]
    with _other_library() if exact else nullcontext():
        yield


def _is_exact(trial: Callable[[], Tensor]) -> bool:
    """Return whether there is another library, which computes in float32 what is float32."""
    switch = getattr(getattr(torch.backends, "mkldnn", None), "matmul", None)
    if not hasattr(switch, "fp32_precision"):
        return False
    usual = trial()
    if usual.dtype != torch.float32 or usual.device.type != "cpu":
        return False
    with _other_library():
        other = trial()
    scale = usual.norm().clamp_min(torch.finfo(usual.dtype).tiny)
    return float((other - usual).norm() / scale) < EXACT
