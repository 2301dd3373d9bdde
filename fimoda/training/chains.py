"""Networks that are a chain of linear layers and pointwise functions, read off their graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import FinalModel


@dataclass(frozen=True)
class Affine:
    """``z W^T + b`` with the named parameters."""

    weight: str
    bias: str | None


@dataclass(frozen=True)
class Pointwise:
    """A function of each number z, with value h.

    `forward` takes z; `backward` the gradient in h, and h; `bend`, the second derivative, h. A
    function with a kink at zero has none: see `fimoda.walks.kinks`.
    """

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]
    bend: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Dropout:
    """Zero each unit with probability `p`, the same units in all models of a stack."""

    p: float


Link = Affine | Pointwise | Dropout

RELU = Pointwise(torch.relu, lambda g, h: torch.ops.aten.threshold_backward(g, h, 0))
TANH = Pointwise(torch.tanh, lambda g, h: g * (1 - h * h), lambda h: -2 * h * (1 - h * h))
SIGMOID = Pointwise(
    torch.sigmoid, lambda g, h: g * h * (1 - h), lambda h: h * (1 - h) * (1 - 2 * h)
)

#: By the module, the function or the name of the method that is called.
_POINTWISE: dict[Any, Pointwise] = {
    **dict.fromkeys((nn.ReLU, F.relu, torch.relu, "relu"), RELU),
    **dict.fromkeys((nn.Tanh, F.tanh, torch.tanh, "tanh"), TANH),
    **dict.fromkeys((nn.Sigmoid, F.sigmoid, torch.sigmoid, "sigmoid"), SIGMOID),
}


def read_chain(model: FinalModel) -> tuple[Link, ...] | None:
    """Return the links of the network from input to output, or None if it is not such a chain.

    Every layer must feed the next one only, with all parameters trainable and no hooks. Rows may
    be flattened first, and one output squeezed to shape ``(n,)`` last.
    """
    if model.output_ndim > 2:
        return None
    # inside a Sequential, so that a network of one layer is a layer of the graph, too; in training
    # mode, since a forward may branch on it
    module = nn.Sequential(model.training_module)
    modules = dict(module.named_modules())
    names = {id(p): name for name, p in model.training_module.named_parameters()}
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in modules.values())
    if hooked or list(module.buffers()):  # tracing a forward that writes to them would spoil them
        return None
    try:
        graph = torch.fx.symbolic_trace(module).graph
    except (TimeoutError, MemoryError):
        raise
    except Exception:  # tracing runs the user's code, which may raise anything
        return None
    links: list[Link] = []
    previous = None
    for node in graph.nodes:
        if node.op == "placeholder" and previous is None:
            previous = node
            continue
        if previous is None or len(previous.users) != 1 or node.args[:1] != (previous,):
            return None
        if node.op == "output":
            break
        reshapes = (not links and _flattens_rows(node, modules)) or (
            model.output_ndim == 1 and _squeezes_output(node)
        )
        link = [] if reshapes else _link(node, modules, names)
        if link is None:
            return None
        links += link
        previous = node
    used = [n for link in links if isinstance(link, Affine) for n in (link.weight, link.bias) if n]
    return tuple(links) if used and sorted(used) == sorted(model.shapes) else None


def _flattens_rows(node: torch.fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Return whether the node makes a vector of each row."""
    if node.op == "call_module":
        part = modules[str(node.target)]
        return type(part) is nn.Flatten and (part.start_dim, part.end_dim) == (1, -1)
    flattens = node.target in (torch.flatten, "flatten")
    return flattens and node.args[1:] == (1,) and not node.kwargs


def _squeezes_output(node: torch.fx.Node) -> bool:
    """Return whether the node takes the last axis of the network's one output away."""
    last = all(user.op == "output" for user in node.users)
    return last and node.target == "squeeze" and node.args[1:] in ((-1,), (1,))


def _link(
    node: torch.fx.Node, modules: dict[str, nn.Module], names: dict[int, str]
) -> list[Link] | None:
    """Return the links of one node of the graph; an empty list for the identity."""
    alone = len(node.args) == 1 and set(node.kwargs) <= {"inplace"}
    called: Any = node.target if alone else None
    if node.op == "call_module":
        part = modules[str(node.target)]
        if type(part) is nn.Linear:
            bias = None if part.bias is None else names[id(part.bias)]
            return [Affine(names[id(part.weight)], bias)]
        if type(part) is nn.Dropout:
            return [Dropout(part.p)] if part.p > 0 else []
        if type(part) is nn.Identity:
            return []
        called = type(part)
    pointwise = _POINTWISE.get(called)
    return None if pointwise is None else [pointwise]


def _affine(h: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """Return ``h w + b`` of each model."""
    if b is None or w.shape[-1] == 1:
        z = _product(h, w)
        return z if b is None else z + b.unsqueeze(1)
    return torch.baddbmm(b.unsqueeze(1), h, w)


def _product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Return ``a b`` of each model; a vector is multiplied without the overhead of a matrix product."""
    if a.shape[-1] == 1:
        return torch.mul(a, b, out=out)
    if a.shape[-2] == 1:
        return torch.sum(a.mT * b, -2, keepdim=True, out=out)
    if b.shape[-1] == 1:
        return torch.sum(a * b.mT, -1, keepdim=True, out=out)
    return torch.bmm(a, b, out=out)


def chain_forward(
    links: tuple[Link, ...], parameters: dict[str, Tensor], x: Tensor, training: bool
) -> tuple[Tensor, list[Tensor]]:
    """Return outputs (L, B, C) of a stack for rows (L, B, d), and what each link keeps for the way back.

    An affine link keeps its input, a pointwise one its value, dropout its factors.
    """
    tape = []
    h = x
    for link in links:
        if isinstance(link, Affine):
            tape.append(h)
            bias = None if link.bias is None else parameters[link.bias]
            h = _affine(h, parameters[link.weight].mT, bias)
        elif isinstance(link, Dropout):
            tape.append(F.dropout(torch.ones_like(h[0]), link.p, training))
            h = h * tape[-1]
        else:
            h = link.forward(h)
            tape.append(h)
    return h, tape


def chain_backward(
    links: tuple[Link, ...],
    parameters: dict[str, Tensor],
    tape: list[Tensor],
    gradient: Tensor,
    out: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return the gradients of all parameters, stacked (L, *shape), from that in the outputs (L, B, C).

    They are written to `out` if it is given.
    """
    into = {} if out is None else out
    first = next(k for k, link in enumerate(links) if isinstance(link, Affine))
    gradients: dict[str, Tensor] = {}
    for k in range(len(links) - 1, first - 1, -1):
        link, kept = links[k], tape[k]
        if isinstance(link, Affine):
            weight = link.weight
            gradients[weight] = _product(gradient.mT, kept, out=into.get(weight))
            if link.bias is not None:
                gradients[link.bias] = torch.sum(gradient, 1, out=into.get(link.bias))
            if k > first:
                gradient = _product(gradient, parameters[weight])
        elif isinstance(link, Dropout):
            gradient = gradient * kept
        else:
            gradient = link.backward(gradient, kept)
    return gradients
