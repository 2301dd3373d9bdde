"""Attention and recurrent layers by their formulas, which torch differentiates in every way.

Its fused kernels of attention, and of LSTM, GRU and RNN, lack second derivatives, forward mode or batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

#: The state of a recurrent layer: the hidden one and, of an LSTM, that of the cell; each (B, H).
State = tuple[Tensor, ...]

#: From a step's inputs times their weight, the state and the weights of the state, the next state.
Cell = Callable[..., State]


def is_recurrent(module: nn.Module) -> bool:
    """Return whether a network has recurrent layers."""
    return any(isinstance(part, nn.RNNBase) for part in module.modules())


@contextmanager
def by_formulas(recurrent: bool = True) -> Iterator[None]:
    """Compute attention, and recurrence if there is any, by formulas; outputs are the same to rounding."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), _step_by_step() if recurrent else nullcontext():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _step_by_step() -> Iterator[None]:
    """Compute recurrence step by step; on a GPU its weights are not packed for the fused kernels either."""
    packed = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        with _StepByStep():
            yield
    finally:
        torch.backends.cudnn.enabled = packed


class _StepByStep(TorchFunctionMode):
    """Within this context recurrent layers are computed step by step."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return RECURRENCES.get(func, func)(*args, **(kwargs or {}))


def _lstm(
    x: Tensor, state: State, weight: Tensor, bias: Tensor | None, out: Tensor | None
) -> State:
    hidden, cell = state
    i, f, g, o = (x + F.linear(hidden, weight, bias)).chunk(4, -1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    hidden = o.sigmoid() * cell.tanh()
    return (hidden if out is None else F.linear(hidden, out)), cell


def _gru(x: Tensor, state: State, weight: Tensor, bias: Tensor | None, _: None) -> State:
    (hidden,) = state
    (xr, xz, xn), (r, z, n) = x.chunk(3, -1), F.linear(hidden, weight, bias).chunk(3, -1)
    new = (xn + (xr + r).sigmoid() * n).tanh()
    return (new + (xz + z).sigmoid() * (hidden - new),)


def _rnn(activation: Callable[[Tensor], Tensor]) -> Cell:
    def cell(x: Tensor, state: State, weight: Tensor, bias: Tensor | None, _: None) -> State:
        return (activation(x + F.linear(state[0], weight, bias)),)

    return cell


def _recurrence(cell: Cell, data: Tensor, *given: Any) -> tuple[Tensor, ...]:
    """Return the outputs and last states of a recurrent layer, from the arguments that torch's takes.

    Rows are (B, T, in) or (T, B, in), or packed: (sum of the steps' sizes, in), with the sizes.
    """
    packed = not isinstance(given[2], bool)
    if packed:
        sizes = given[0].tolist()
        states, weights, biases, n_layers, dropout, training, both = given[1:]
        rows_first = False
    else:
        states, weights, biases, n_layers, dropout, training, both, rows_first = given
        data = data.transpose(0, 1) if rows_first else data
        sizes = [data.shape[1]] * len(data)
        data = data.flatten(0, 1)
    starts = list(zip(*(states if isinstance(states, tuple) else (states,)), strict=True))
    n_weights = len(weights) // len(starts)
    last: list[State] = []
    for layer in range(n_layers):
        if layer and dropout and training:
            data = F.dropout(data, dropout)
        found = []
        for backwards in range(1 + both):
            at = len(last)
            own = weights[at * n_weights : (at + 1) * n_weights]
            outputs, state = _direction(cell, data, sizes, starts[at], own, biases, bool(backwards))
            found.append(outputs)
            last.append(state)
        data = found[0] if len(found) == 1 else torch.cat(found, -1)
    if not packed:
        data = data.unflatten(0, (len(sizes), -1))
        data = data.transpose(0, 1) if rows_first else data
    return data, *(torch.stack(part) for part in zip(*last, strict=True))


def _direction(
    cell: Cell,
    data: Tensor,
    sizes: Sequence[int],
    start: State,
    weights: Sequence[Tensor],
    biases: bool,
    backwards: bool,
) -> tuple[Tensor, State]:
    """Return the outputs (as `data`) and the last state of one layer in one direction.

    Rows are sorted by their length: the last ones end first, and come in first on the way back.
    """
    of_inputs, of_state, *others = weights
    bias, bias_of_state = (others.pop(0), others.pop(0)) if biases else (None, None)
    out = others[0] if others else None
    steps = list(F.linear(data, of_inputs, bias).split(list(sizes)))
    state = tuple(part[: sizes[-1]] for part in start) if backwards else start
    outputs: list[Tensor] = []
    ended: list[State] = []
    for x in reversed(steps) if backwards else steps:
        known = len(state[0])
        if len(x) > known:
            state = tuple(
                torch.cat([a, b[known : len(x)]]) for a, b in zip(state, start, strict=True)
            )
        elif len(x) < known:
            ended.append(tuple(part[len(x) :] for part in state))
            state = tuple(part[: len(x)] for part in state)
        state = cell(x, state, of_state, bias_of_state, out)
        outputs.append(state[0])
    if ended:
        state = tuple(torch.cat(part[::-1]) for part in zip(*ended, state, strict=True))
    return torch.cat(outputs[::-1] if backwards else outputs), state


#: The steps of a recurrent layer, by the function of torch that takes them in one.
RECURRENCES: dict[Any, Callable[..., tuple[Tensor, ...]]] = {
    torch.lstm: partial(_recurrence, _lstm),
    torch.gru: partial(_recurrence, _gru),
    torch.rnn_tanh: partial(_recurrence, _rnn(torch.tanh)),
    torch.rnn_relu: partial(_recurrence, _rnn(torch.relu)),
}
