"""Gradients of one number per row in the parameters: inner products without forming them.

For a linear layer with input a and gradient d in its output, the gradient of a row is the outer
product d a^T (and d for the bias), so an inner product of two rows' gradients is
``(d . d') (a . a' + 1)``: the gradients themselves, as large as the model, are never needed. Other
layers' gradients are formed explicitly, a chunk of rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import grad, vmap

from .measured import Measured
from .model import FinalModel
from .rows import Inputs, mapped

#: Numbers in a temporary of products of many rows with many vectors.
_BLOCK = 2**24


@dataclass(frozen=True)
class FactoredGradients:
    """Gradients of n rows as one pair of factors a linear layer.

    Parameters
    ----------
    inputs : list of Tensor of shape (n, in)
        Input of each layer, with a last column of ones where it has a bias.
    signals : list of Tensor of shape (n, out)
        Gradient in the output of each layer.
    places : list of tuple of slice
        Where each layer's weight, and its bias if it has one, lie in the parameter vector.
    """

    inputs: list[Tensor]
    signals: list[Tensor]
    places: list[tuple[slice, ...]]

    def __len__(self) -> int:
        return len(self.signals[0])

    def __getitem__(self, rows: slice) -> FactoredGradients:
        inputs, signals = [a[rows] for a in self.inputs], [d[rows] for d in self.signals]
        return FactoredGradients(inputs, signals, self.places)

    def inner(self, other: FactoredGradients) -> Tensor:
        """Inner products of all pairs of rows, (n, n_other), summed over layers in float64."""
        layers = zip(self.inputs, self.signals, other.inputs, other.signals, strict=True)
        total = torch.zeros(())
        for a, d, b, e in layers:
            total = total + (a @ b.mT).mul_(d @ e.mT).double()
        return total

    def inner_rowwise(self, other: FactoredGradients) -> Tensor:
        """Inner product of row k with row k of `other`, (n,)."""
        layers = zip(self.inputs, self.signals, other.inputs, other.signals, strict=True)
        return torch.stack([_rowwise(a, b) * _rowwise(d, e) for a, d, b, e in layers]).sum(0)

    def unit(self) -> FactoredGradients:
        """The gradients divided by their lengths; a zero gradient stays zero."""
        length = _lengths(self)
        signals = [(d / length).to(d.dtype) for d in self.signals]
        return FactoredGradients(self.inputs, signals, self.places)

    def squared(self) -> FactoredGradients:
        """The squares of the gradients' entries, in float64."""
        inputs, signals = ([f.double() ** 2 for f in fs] for fs in (self.inputs, self.signals))
        return FactoredGradients(inputs, signals, self.places)

    def apply(self, vectors: Tensor) -> Tensor:
        """Inner products with the vectors (k, p), (n, k)."""
        total = torch.zeros((), dtype=vectors.dtype, device=vectors.device)
        for a, d, place in zip(self.inputs, self.signals, self.places, strict=True):
            matrices = torch.cat(
                [vectors[:, s].unflatten(1, (d.shape[1], -1)) for s in place], dim=2
            )  # (k, out, in)
            total = total + bilinear(matrices, a, d).mT
        return total

    def combine(self, coefficients: Tensor) -> Tensor:
        """Linear combinations of the gradients with coefficients (n, k), (k, p)."""
        vectors = self.inputs[0].new_empty(
            coefficients.shape[1], max(s.stop for place in self.places for s in place)
        )
        for a, d, place in zip(self.inputs, self.signals, self.places, strict=True):
            step = max(1, _BLOCK // d.numel())
            widths = [(s.stop - s.start) // d.shape[1] for s in place]
            for few, into in zip(coefficients.split(step, 1), vectors.split(step), strict=True):
                weighted = few.mT.unsqueeze(1) * d.mT  # (k, out, n)
                matrices = weighted.flatten(0, 1) @ a
                for s, block in zip(place, matrices.split(widths, dim=1), strict=True):
                    into[:, s] = block.reshape(len(into), -1)
        return vectors

    def dense(self) -> Tensor:
        """The gradients themselves, (n, p)."""
        d = self.signals[0]
        vectors = d.new_empty(len(d), max(s.stop for place in self.places for s in place))
        for a, d, place in zip(self.inputs, self.signals, self.places, strict=True):
            widths = [(s.stop - s.start) // d.shape[1] for s in place]
            for s, block in zip(place, a.split(widths, dim=1), strict=True):
                vectors[:, s] = (d.unsqueeze(2) * block.unsqueeze(1)).flatten(1)
        return vectors


@dataclass(frozen=True)
class DenseGradients:
    """Gradients of n rows, (n, p)."""

    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice) -> DenseGradients:
        return DenseGradients(self.rows[rows])

    def inner(self, other: DenseGradients) -> Tensor:
        return (self.rows @ other.rows.mT).double()

    def inner_rowwise(self, other: DenseGradients) -> Tensor:
        return _rowwise(self.rows, other.rows)

    def unit(self) -> DenseGradients:
        return DenseGradients((self.rows / _lengths(self)).to(self.rows.dtype))

    def squared(self) -> DenseGradients:
        return DenseGradients(self.rows.double() ** 2)

    def apply(self, vectors: Tensor) -> Tensor:
        return self.rows @ vectors.mT

    def combine(self, coefficients: Tensor) -> Tensor:
        return coefficients.mT @ self.rows

    def dense(self) -> Tensor:
        return self.rows


def bilinear(matrices: Tensor, a: Tensor, d: Tensor) -> Tensor:
    """Products ``d_i M_k a_i`` of matrices (m, out, in) with n pairs of vectors, (m, n)."""
    if d.shape[1] > a.shape[1]:
        a, d, matrices = d, a, matrices.mT
    step = max(1, _BLOCK // d.numel())
    result = []
    for few in matrices.split(step):
        pushed = (a @ few.flatten(0, 1).mT).view(len(a), len(few), d.shape[1])
        result.append(pushed.mul_(d.unsqueeze(1)).sum(2).mT)
    return torch.cat(result)


def _rowwise(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() * b.double()).sum(1)


def _lengths(gradients: RowGradients) -> Tensor:
    """Length of each row's gradient, (n, 1), with zero replaced by one."""
    length = gradients.inner_rowwise(gradients).sqrt().unsqueeze(1)
    return torch.where(length > 0, length, 1)


class RowGradients(Protocol):
    """Gradients of n rows; `other` must come from the same `RowDifferentiator`."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice) -> RowGradients: ...
    def inner(self, other: Any) -> Tensor: ...
    def inner_rowwise(self, other: Any) -> Tensor: ...
    def unit(self) -> RowGradients: ...
    def squared(self) -> RowGradients: ...
    def apply(self, vectors: Tensor) -> Tensor: ...
    def combine(self, coefficients: Tensor) -> Tensor: ...
    def dense(self) -> Tensor: ...


class RowDifferentiator:
    """Computes the gradients of rows in the parameters of a final model.

    Parameters
    ----------
    model : FinalModel
    inputs : Inputs
        Those of a few rows, to find out whether every parameter belongs to a linear layer that is used
        once on vectors; only then do gradients factor.
    """

    def __init__(self, model: FinalModel, inputs: Inputs):
        self.model = model
        self._layers = _factoring_layers(model, inputs)

    @property
    def factors(self) -> bool:
        """Whether inner products go through factors."""
        return self._layers is not None

    def row_bytes(self) -> int:
        """Bytes that one row's gradient takes while it is computed."""
        size = self.model.theta.element_size()
        if self._layers is None:
            return 3 * self.model.n_parameters * size
        return 4 * size * sum(layer.in_features + layer.out_features for layer in self._layers)

    def __call__(self, measured: Measured) -> RowGradients:
        """Return the gradients of all rows at once."""
        if self._layers is None:
            return DenseGradients(self._dense(measured))
        return self._factored(measured, self._layers)

    def chunks(self, measured: Measured, chunk_size: int) -> Iterator[tuple[slice, RowGradients]]:
        """Yield the gradients of `chunk_size` rows at a time, with the rows they belong to."""
        for start in range(0, len(measured), chunk_size):
            rows = slice(start, min(start + chunk_size, len(measured)))
            yield rows, self(measured[rows])

    def _dense(self, measured: Measured) -> Tensor:
        def one(theta: Tensor, x: Inputs, target: Tensor) -> Tensor:
            outputs = self.model.forward(theta, mapped(lambda part: part.unsqueeze(0), x))
            return measured.measure(outputs, target.unsqueeze(0)).squeeze(0)

        inputs, targets = measured.inputs, measured.targets
        try:
            return vmap(grad(one), in_dims=(None, 0, 0))(self.model.theta, inputs, targets)
        except RuntimeError:  # vmap has no rule for a layer, such as nn.GRU
            pass
        theta = self.model.theta.clone().requires_grad_()
        with torch.enable_grad():
            losses = [one(theta, inputs[k], target) for k, target in enumerate(targets)]
            return torch.stack([torch.autograd.grad(loss, theta)[0] for loss in losses])

    def _factored(self, measured: Measured, layers: list[nn.Linear]) -> FactoredGradients:
        theta = self.model.theta.clone().requires_grad_()
        with _recording(layers) as calls, torch.enable_grad():
            outputs = self.model.forward(theta, measured.inputs)
            total = measured.measure(outputs, measured.targets).sum()
        return _factors(total, layers, calls, _places(self.model, layers))


Calls = dict[nn.Module, list[tuple[Tensor, GradientEdge]]]


def _places(model: FinalModel, layers: list[nn.Linear]) -> list[tuple[slice, ...]]:
    """Where the parameters of each layer lie in the parameter vector."""
    names = {id(p): name for name, p in model.module.named_parameters()}
    return [tuple(model.slices[names[id(p)]] for p in layer.parameters()) for layer in layers]


def _factors(
    total: Tensor, layers: list[nn.Linear], calls: Calls, places: list[tuple[slice, ...]]
) -> FactoredGradients:
    """Factors of the gradient of `total`, from the only call of each layer."""
    inputs = [_with_ones(calls[layer][0][0].detach(), layer) for layer in layers]
    signals = torch.autograd.grad(total, [calls[layer][0][1] for layer in layers])
    return FactoredGradients(inputs, list(signals), places)


def _with_ones(inputs: Tensor, layer: nn.Linear) -> Tensor:
    if "bias" not in dict(layer.named_parameters()):
        return inputs
    return torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)


@contextmanager
def _recording(layers: Sequence[nn.Module]) -> Iterator[Calls]:
    """Records input and output of every call of the layers.

    The output as it stands in the graph: an activation may overwrite the tensor in place.
    """
    calls: Calls = {layer: [] for layer in layers}

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls[layer].append((inputs[0], get_gradient_edge(output)))

    handles = [layer.register_forward_hook(record) for layer in layers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _factoring_layers(model: FinalModel, inputs: Inputs) -> list[nn.Linear] | None:
    """The linear layers if they hold all trainable parameters and each is used once on vectors.

    Found by trying: on these rows, the factors must give gradients of the right length.
    """
    layers = [part for part in model.module.modules() if isinstance(part, nn.Linear)]
    held = [p for layer in layers for p in layer.parameters()]
    if len({id(p) for p in held}) < len(held):
        return None
    trainable = {id(p) for p in model.module.parameters() if p.requires_grad}
    if trainable != {id(p) for p in held}:
        return None
    theta = model.theta.clone().requires_grad_()
    with _recording(layers) as calls, torch.enable_grad():
        outputs = model.forward(theta, inputs)
        # outputs count differently, or those of a softmax would sum to a constant
        outputs = outputs * torch.linspace(1, 2, outputs.shape[1]).to(outputs)
    shapes = [[a.shape[:-1] for a, _ in calls[layer]] for layer in layers]
    if any(shape != [(len(inputs),)] for shape in shapes):
        return None
    gradients = DenseGradients(
        torch.stack(
            [torch.autograd.grad(row.sum(), theta, retain_graph=True)[0] for row in outputs]
        )
    )
    try:
        factors = _factors(outputs.sum(), layers, calls, _places(model, layers))
    except RuntimeError:  # a layer that the outputs do not use
        return None
    found, wanted = factors.inner_rowwise(factors), gradients.inner_rowwise(gradients)
    return layers if torch.allclose(found, wanted, rtol=1e-3) else None
