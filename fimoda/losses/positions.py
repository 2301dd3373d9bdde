"""Losses of several positions a row: the words of a sentence, the pixels of an image."""

from __future__ import annotations

import copy
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..returned import flattened
from .classification import ClassProbabilities, CrossEntropy

#: Rows, and numbers of outputs, on which a criterion is tried.
_TRIED, _NUMBERS = 8, 2**22

#: Bytes that second derivatives in all positions' outputs may take as matrices.
_DENSE = 2 * 2**30


class OfPositions(ClassProbabilities):
    r"""Mean of a loss over the positions of a row that count, :math:`\sum_t v_t \ell_t / \sum_t v_t`.

    Outputs (..., T C) are those of T positions side by side, C classes each, and targets (..., T) their
    classes. A position whose target is `ignore_index` has weight :math:`v_t = 0`, any other one, or that
    of its class.

    Parameters
    ----------
    loss : ClassProbabilities
        The loss of one position, from outputs (..., C) and targets (...).
    n_classes : int
        The number C of classes.
    ignore_index : int
        The target of positions that do not count.
    weight : Tensor of shape (C,) or None
        Weights of positions by their class.
    by_count : bool
        Whether rows weigh :math:`\sum_t v_t` in the training objective, as in a mean over all positions of
        all rows; otherwise all rows weigh alike.
    """

    def __init__(
        self,
        loss: ClassProbabilities,
        n_classes: int,
        ignore_index: int = -100,
        weight: Tensor | None = None,
        by_count: bool = True,
    ):
        self.loss = loss
        self.size = n_classes
        self.ignore_index = ignore_index
        self.weight = weight
        self.by_count = by_count
        self.power = 1.0
        self.outputs_are = f"{loss.outputs_are} of positions"
        counted = "rows count by their positions" if by_count else "all rows count alike"
        self.detail = f"the mean over the positions of a row; {counted}"

    # ---- positions --------------------------------------------------------------------------

    def _at(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return outputs (..., T, C), targets that are classes (..., T), and which count (..., T)."""
        apart = self.unflattened(outputs)
        if targets.shape[-1] != apart.shape[-2]:
            raise ValueError(
                f"y must have a target for each of the {apart.shape[-2]} positions of a row's outputs, got "
                f"{targets.shape[-1]}. Give those that do not count the target {self.ignore_index}."
            )
        counts = targets != self.ignore_index
        return apart, torch.where(counts, targets, 0), counts

    def unflattened(self, outputs: Tensor) -> Tensor:
        """Return the outputs (..., T, C) of each position."""
        return outputs.unflatten(-1, (-1, self.size))

    def _weights(self, targets: Tensor, counts: Tensor, like: Tensor) -> Tensor:
        """Return the weights v (..., T)."""
        if self.weight is None:
            return counts.to(like.dtype)
        return torch.where(counts, self.weight.to(like)[targets], 0)

    def _shares(self, targets: Tensor, counts: Tensor, like: Tensor) -> Tensor:
        """Return the weights over their sum, to a power."""
        return _normalised(self._weights(targets, counts, like)) ** self.power

    def row_weights(self, targets: Tensor, like: Tensor) -> Tensor | None:
        counts = targets != self.ignore_index
        safe = torch.where(counts, targets, 0)
        return self._weights(safe, counts, like).sum(-1) if self.by_count else None

    @property
    def likelihood(self) -> OfPositions:
        """The sum whose gradients at targets drawn for each position have the right second moment."""
        if self.weight is not None:
            raise ValueError(
                "targets cannot be sampled for a criterion with weights of classes at several positions. Use "
                "curvature='gauss-newton', or fisher='expected'."
            )
        drawn = copy.copy(self)
        drawn.power = self.power / 2
        return drawn

    # ---- values and derivatives -------------------------------------------------------------

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        apart, classes, counts = self._at(outputs, targets)
        shares = self._shares(classes, counts, outputs)
        return (shares * torch.where(counts, self.loss(apart, classes), 0)).sum(-1)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        apart, classes, counts = self._at(outputs, targets)
        shares = self._shares(classes, counts, outputs).unsqueeze(-1)
        return (shares * self.loss.gradient(apart, classes)).flatten(-2)

    def output_hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the second derivatives (..., T C, T C), zero between positions."""
        n_bytes = outputs.element_size() * outputs.numel() * outputs.shape[-1]
        if n_bytes > _DENSE:
            raise MemoryError(
                f"the second derivatives of {outputs.numel() // outputs.shape[-1]} rows in their "
                f"{outputs.shape[-1]} outputs take {n_bytes / 2**30:.1f} GiB as matrices. Use a method that "
                "needs products with them alone (CGInfluence, LiSSAInfluence), EKFACInfluence with "
                "fisher='sampled', or first derivatives (GradDot, DataInf, TRAK)."
            )
        apart, classes, counts = self._at(outputs, targets)
        shares = self._shares(classes, counts, outputs)[..., None, None]
        blocks = shares * self.loss.output_hessian(apart, classes)
        between = torch.eye(blocks.shape[-3], dtype=blocks.dtype, device=blocks.device)
        # (T, T) times (T, C, C), with the classes beside their positions
        spread = between[:, None, :, None] * blocks.unsqueeze(-2)
        return spread.flatten(-2).flatten(-3, -2)

    def curved(self, outputs: Tensor, targets: Tensor, vectors: Tensor) -> Tensor:
        apart, classes, counts = self._at(outputs, targets)
        shares = self._shares(classes, counts, outputs)[..., None, None]
        along = self.unflattened(vectors).movedim(-2, -3)
        curved = self.loss.curved(apart, classes, along) * shares
        return curved.movedim(-3, -2).flatten(-2)

    def root(self, outputs: Tensor, targets: Tensor, vectors: Tensor) -> Tensor:
        apart, classes, counts = self._at(outputs, targets)
        shares = self._shares(classes, counts, outputs).sqrt()[..., None, None]
        along = self.unflattened(vectors).transpose(0, 1)  # (T, k, C)
        return (shares * self.loss.root(apart, classes, along)).movedim(-3, -2).flatten(-2)

    def fisher_cotangents(self, outputs: Tensor, targets: Tensor) -> list[Tensor]:
        apart, classes, counts = self._at(outputs, targets)
        root = self._shares(classes, counts, outputs).sqrt()
        positions = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
        return [
            (vector * (root * at).unsqueeze(-1)).flatten(-2)
            for vector in self.loss.fisher_cotangents(apart, classes)
            for at in positions
        ]

    # ---- targets ----------------------------------------------------------------------------

    def n_classes(self, n_outputs: int) -> int:
        return self.size

    def encode(self, y: NDArray[Any], n_outputs: int, classes: NDArray[Any] | None) -> NDArray[Any]:
        """Return the targets (n, T); those of pixels (n, H, W) are put in one row."""
        if y.ndim < 2 or y.dtype.kind not in "iu":
            raise ValueError(
                "y must have an integer, the index of a class, for each position of a row, as those of "
                f"(n_rows, n_positions), got {y.dtype} of shape {y.shape}."
            )
        flat = y.reshape(len(y), -1).astype(np.int64)
        counts = flat != self.ignore_index
        outside = counts & ((flat < 0) | (flat >= self.size))
        if outside.any():
            row = int(outside.any(1).argmax())
            raise ValueError(
                f"y must be classes from 0 to {self.size - 1}, or {self.ignore_index} at positions that do "
                f"not count, got {flat[outside][0]} in row {row}."
            )
        if not counts.any(1).all():
            row = int(counts.any(1).argmin())
            raise ValueError(
                f"y must have a position that counts in every row: in row {row} all are {self.ignore_index}. "
                "Leave such rows out."
            )
        return flat

    def predicted_targets(self, outputs: Tensor, threshold: float = 0.5) -> Tensor:
        return self.loss.predicted_targets(self.unflattened(outputs))

    def sample_targets(
        self, outputs: Tensor, generator: torch.Generator, own: Tensor | None = None
    ) -> Tensor:
        """Return classes drawn for each position; positions whose `own` target does not count stay so."""
        apart = self.unflattened(outputs)
        drawn = self.loss.sample_targets(apart.flatten(0, -2), generator).view(apart.shape[:-1])
        return drawn if own is None else torch.where(own == self.ignore_index, own, drawn)

    # ---- measurements -----------------------------------------------------------------------

    def target_output(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._mean(self.loss.target_output, outputs, targets)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the probabilities (..., T, C) at each position."""
        return self.loss.probabilities(self.unflattened(outputs))

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._mean(self.loss.log_prob, outputs, targets)

    def margin(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._mean(self.loss.margin, outputs, targets)

    def _mean(self, measure: Any, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the plain mean of a measurement over the positions that count."""
        apart, classes, counts = self._at(outputs, targets)
        found = torch.where(counts, measure(apart, classes), 0)
        return (found * _normalised(counts.to(found.dtype))).sum(-1)


def is_mean_of(
    known: OfPositions, criterion: Any, shape: tuple[int, ...], classes_second: bool
) -> bool:
    """Return whether a criterion gives the mean of known losses, for rows whose outputs have a shape.

    It is tried on made-up outputs and targets, some of which do not count.
    """
    generator = torch.Generator().manual_seed(0)
    positions = shape[1:] if classes_second else shape[:-1]
    n = max(2, min(_TRIED, _NUMBERS // max(prod(shape), 1)))
    for scale in (0.5, 5.0):
        outputs = scale * torch.randn(n, *shape, generator=generator, dtype=torch.float64)
        if not isinstance(known.loss, CrossEntropy):
            outputs = outputs.log_softmax(1 if classes_second else -1)
        targets = torch.randint(known.size, (n, *positions), generator=generator)
        kept = torch.rand(targets.shape, generator=generator) < torch.rand(
            n, generator=generator
        ).view(n, *[1] * len(positions))
        kept.flatten(1)[:, 0] = True
        targets = torch.where(kept, targets, known.ignore_index)
        flat = flattened(outputs, classes_second)
        losses, encoded = known(flat, targets.flatten(1)), targets.flatten(1)
        weights = known.row_weights(encoded, flat)
        weights = torch.ones_like(losses) if weights is None else weights
        try:
            own = copy.deepcopy(criterion).double()(outputs, targets)
        except (RuntimeError, TypeError, IndexError, ValueError):
            return False
        expected = (weights * losses).sum() / weights.sum()
        if own.shape != () or not torch.isclose(own, expected, rtol=1e-9):
            return False
    return True


def _normalised(weights: Tensor) -> Tensor:
    """Return weights (..., T) over their sums, zero where these are."""
    total = weights.sum(-1, keepdim=True)
    return weights / torch.where(total > 0, total, 1)
