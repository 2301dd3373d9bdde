"""Second derivative of the loss of one batch, applied to many vectors at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..derivatives import Linearization
from ..hessians import hessian_products
from ..model import FinalModel
from ..rows import Rows
from ..training.chains import RELU, Affine, Dropout, Link, Pointwise, chain_forward, read_chain
from .kinks import SmoothedKinks, bump
from .leaving_out import change

#: Numbers in one activation of all vectors of a block: what stays in a processor's cache.
_BLOCK = 2**19


class BatchHessian(ABC):
    r"""The matrix :math:`H = \sum_b s_b \, \partial^2\ell_b / \partial\theta^2` of a batch, by share.

    `kink_smoothing` is the sharpness of the curvature at kinks (see `fimoda.walks.kinks`); None
    leaves it out.
    """

    def __init__(self, model: FinalModel, kink_smoothing: float | None = None):
        self.model = model
        self.kink_smoothing = kink_smoothing

    def _smoothed(self) -> AbstractContextManager[Any]:
        """Return the context in which kinks have the curvature asked for."""
        smooth = self.kink_smoothing
        return nullcontext() if smooth is None else SmoothedKinks(smooth)

    @abstractmethod
    def __call__(
        self, theta: Tensor, batch: Rows, V: Tensor, total: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return products ``H v`` (k, p) and slopes (k, B) of the rows' losses along V (k, p).

        All at parameters (p,), and without the second derivative of a penalty. The products are added to
        `total` (k, p) if that is given.
        """

    def without_rows(self, theta: Tensor, batch: Rows, V: Tensor, total: Tensor) -> Tensor:
        """Add products to `total`, and return what leaving out each row does (k, B).

        That is the change of the batch's gradient along V (k, p).
        """
        _, slopes = self(theta, batch, V, total)
        return change(slopes, batch.shares.to(theta))

    def slopes(self, theta: Tensor, batch: Rows, V: Tensor) -> Tensor:
        """Return the slopes (k, B) of the rows' losses along V (k, p), without the products."""
        model = self.model

        def losses(parameters: dict[str, Tensor]) -> Tensor:
            return model.loss(model.call(parameters, batch.inputs, training=True), batch.targets)

        return Linearization(model, losses, theta).push(V)


def batch_hessian(model: FinalModel, kink_smoothing: float | None = None) -> BatchHessian:
    """Return the implementation that suits the model: by layers for a chain, else by autograd."""
    links = None if model.is_stochastic else read_chain(model)
    if links is None or any(_unknown_bend(link) for link in links):
        return AutogradHessian(model, kink_smoothing)
    return ChainHessian(model, links, kink_smoothing)


def _unknown_bend(link: Link) -> bool:
    return isinstance(link, Dropout) or (
        isinstance(link, Pointwise) and link.bend is None and link is not RELU
    )


class AutogradHessian(BatchHessian):
    """For any model: by automatic differentiation."""

    def __call__(
        self, theta: Tensor, batch: Rows, V: Tensor, total: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        def losses(parameters: dict[str, Tensor]) -> Tensor:
            outputs = self.model.call(parameters, batch.inputs, training=True)
            return self.model.loss(outputs, batch.targets)

        with self._smoothed():
            return hessian_products(self.model, losses, batch.shares.to(theta), V, theta, total)


@dataclass(frozen=True)
class _Point:
    """Whatever the products with all vectors have in common at one batch."""

    kept: list[Tensor]  # by link: input of an affine one, value of a pointwise one
    signals: list[Tensor]  # by link: gradient of the mean loss in its value
    slopes: dict[int, Tensor]  # by pointwise link: its derivative
    bends: dict[int, Tensor]  # by pointwise link: its second derivative times the signal
    gradient: Tensor  # of each row's loss in its outputs, (B, C)
    curvature: Tensor  # its second derivative, times the row's share, (B, C, C)


class ChainHessian(BatchHessian):
    """For a chain of linear layers and pointwise functions: batched products, layer by layer.

    What depends on the parameters only is computed once for all vectors; vectors go through in
    blocks whose activations stay in the processor's cache.
    """

    def __init__(
        self, model: FinalModel, links: tuple[Link, ...], kink_smoothing: float | None = None
    ):
        super().__init__(model, kink_smoothing)
        self.links = links
        self._width = max(
            model.shapes[link.weight][0] for link in links if isinstance(link, Affine)
        )

    def __call__(
        self, theta: Tensor, batch: Rows, V: Tensor, total: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        parameters = self.model.views(theta)
        point = self._point(parameters, batch)
        total = torch.zeros_like(V) if total is None else total
        slopes = V.new_empty(len(V), len(batch))
        block = max(1, _BLOCK // (self._width * len(batch)))
        for a in range(0, len(V), block):
            one = slice(a, a + block)
            products = torch.empty_like(V[one])
            slopes[one] = self._products(parameters, point, V[one], products)
            total[one] += products
        return total, slopes

    def _point(self, parameters: dict[str, Tensor], batch: Rows) -> _Point:
        """Pass forward and back through the batch once."""
        x, y = batch.inputs.flatten(1), batch.targets
        stacked = {name: value.unsqueeze(0) for name, value in parameters.items()}
        outputs, tape = chain_forward(self.links, stacked, x.unsqueeze(0), training=False)
        outputs, kept = outputs[0], [h[0] for h in tape]
        gradient = self.model.loss.gradient(outputs, y)
        w = batch.shares.to(gradient)
        with self._smoothed():
            curvature = self.model.loss.output_hessian(outputs, y) * w[:, None, None]
        upstream = gradient * w[:, None]
        signals: list[Tensor] = []
        slopes: dict[int, Tensor] = {}
        bends: dict[int, Tensor] = {}
        for k in range(len(self.links) - 1, -1, -1):
            link = self.links[k]
            signals.append(upstream)
            if isinstance(link, Affine):
                upstream = upstream @ parameters[link.weight]
            elif isinstance(link, Pointwise):
                slopes[k] = link.backward(torch.ones_like(kept[k]), kept[k])
                bend = self._bend(k, link, kept, parameters, x)
                if bend is not None:
                    bends[k] = upstream * bend
                upstream = link.backward(upstream, kept[k])
        return _Point(kept, signals[::-1], slopes, bends, gradient, curvature)

    def _bend(
        self, k: int, link: Pointwise, kept: list[Tensor], parameters: dict[str, Tensor], x: Tensor
    ) -> Tensor | None:
        """Return the second derivative of link k, if it has one."""
        if link.bend is not None:
            return link.bend(kept[k])
        if self.kink_smoothing is None:
            return None
        z = kept[k - 1] if k else x  # what goes into it
        before = self.links[k - 1] if k else None
        if isinstance(before, Affine):
            z = z @ parameters[before.weight].mT
            z = z if before.bias is None else z + parameters[before.bias]
        return bump(z, self.kink_smoothing)

    def _products(
        self, parameters: dict[str, Tensor], point: _Point, V: Tensor, out: Tensor
    ) -> Tensor:
        """Fill `out` with the products of a block of vectors; return the slopes."""
        vectors, results = self.model.views(V), self.model.views(out)
        first = next(k for k, link in enumerate(self.links) if isinstance(link, Affine))
        moved: list[Tensor | None] = []  # what goes into each link, differentiated along V
        dh: Tensor | None = None
        for k, link in enumerate(self.links):
            moved.append(dh)
            if isinstance(link, Affine):
                h = point.kept[k].expand(len(V), -1, -1)
                dW = vectors[link.weight].mT
                if link.bias is None:
                    dz = torch.bmm(h, dW)
                else:
                    dz = torch.baddbmm(vectors[link.bias].unsqueeze(1), h, dW)
                if dh is not None:
                    dz = dz + dh @ parameters[link.weight].mT
                dh = dz
            elif dh is not None:
                dh = dh * point.slopes[k]
        if dh is None:
            raise RuntimeError("a chain has at least one affine link")
        along = (dh * point.gradient).sum(2)
        du = torch.einsum("bcd,zbd->zbc", point.curvature, dh)
        for k in range(len(self.links) - 1, first - 1, -1):
            link, before = self.links[k], moved[k]
            if isinstance(link, Affine):
                signal = point.signals[k].expand(len(V), -1, -1)
                product = torch.bmm(du.mT, point.kept[k].expand(len(V), -1, -1))
                if before is not None:
                    product = product.baddbmm_(signal.mT, before)
                results[link.weight].copy_(product)
                if link.bias is not None:
                    results[link.bias].copy_(du.sum(1))
                if k > first:
                    du = du @ parameters[link.weight]
                    du = du.baddbmm_(signal, vectors[link.weight])
            else:
                du = du * point.slopes[k]
                if k in point.bends and before is not None:
                    du = du.addcmul_(before, point.bends[k])
        return along
