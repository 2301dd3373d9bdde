"""Stationary segments in the space of randomly projected gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..measured import Measure, Measured
from ..measurements import Output
from ..model import FinalModel
from ..row_gradients import RowDifferentiator, RowGradients
from ..rows import Rows
from .projection import Projection
from .stationary import Segment, Stationary


class ProjectedStationary(Stationary):
    r"""Segments with the Gauss-Newton matrix of projected gradients of an output function.

    For classification that is the margin, in which the loss has slope :math:`-(1 - p)` and curvature
    :math:`p (1 - p)`; for regression the outputs. The mean gradients of the training rows are kept,
    so that test rows cost little. A preconditioner is averaged over segments.

    Parameters
    ----------
    final : FinalModel
        Where the measurements are taken.
    segments : sequence of Segment
    project : Projection
        The same for all.
    chunk_size : int, default=None
        Rows whose gradients are held at a time.
    memory_budget : int
        Bytes for gradients.
    """

    def __init__(
        self,
        final: FinalModel,
        segments: Sequence[Segment],
        *,
        project: Projection,
        chunk_size: int | None,
        memory_budget: int,
    ):
        self.segments = segments
        self.project = project
        scales = [s.dynamics.preconditioner for s in segments]
        given = [P for P in scales if P is not None]
        self._root = torch.stack(given).mean(0).sqrt() if given else None
        self._differentiate = RowDifferentiator(final, segments[-1].X[:3])
        fitting = memory_budget // (4 * self._differentiate.row_bytes())
        self.chunk_size = chunk_size or int(min(max(fitting, 1), 4096))
        self._modes: list[tuple[Tensor, Tensor]] = []
        self._means: list[Tensor] = []
        for segment in segments:
            self._add(segment)

    def _add(self, segment: Segment) -> None:
        """Modes of the curvature, and mean gradients, of a segment."""
        n, k = len(segment.X), self.project.n_components
        share = segment.weights.double() / segment.weights.double().sum() / len(segment.models)
        mean = torch.zeros(n, k, dtype=segment.models[0].dtype, device=segment.X.device)
        H = torch.zeros(k, k, dtype=torch.float64, device=segment.X.device)
        for model in segment.models:
            differentiate = RowDifferentiator(model, segment.X[:3])
            functions = _functions(model, segment.X)
            outputs = model.outputs(segment.X).double()
            slopes, curved = _derivatives(model, functions, outputs, segment.y)
            for start in range(0, n, self.chunk_size):
                rows = slice(start, start + self.chunk_size)
                x, y = segment.X[rows], segment.y[rows]
                features = torch.stack(
                    [self._features(differentiate(Measured(Rows(x, y), f))) for f in functions], 1
                )  # (b, F, k)
                mean[rows] += (slopes[rows, :, None].to(features) * features).sum(1)
                weighted = (curved[rows] * share[rows, None, None]).to(features) @ features
                H += (weighted.flatten(0, 1).mT @ features.flatten(0, 1)).double()
        penalty = segment.models[0].l2
        own = 0.0 if penalty is None else float(penalty.mean())
        H.diagonal().add_(segment.dynamics.coupled_decay + own)
        values, vectors = torch.linalg.eigh((H + H.mT) / 2)
        self._modes.append((values.clamp_min(0) + segment.dynamics.decoupled_decay, vectors))
        self._means.append(mean / len(segment.models))

    def _features(self, gradients: RowGradients) -> Tensor:
        if self._root is not None:
            gradients = RowGradients.of(gradients.dense() * self._root)
        return self.project(gradients)

    def start(self, test: Measured) -> Tensor:
        chunks = self._differentiate.chunks(test, self.chunk_size)
        return torch.cat([self._features(gradients) for _, gradients in chunks]).double()

    def respond(self, k: int, adjoint: Tensor) -> Tensor:
        values, vectors = self._modes[k]
        return adjoint @ vectors * self.segments[k].dynamics.gathered(values) @ vectors.mT

    def carry(self, k: int, adjoint: Tensor) -> Tensor:
        values, vectors = self._modes[k]
        return adjoint @ vectors * self.segments[k].dynamics.carried(values) @ vectors.mT

    def products(self, k: int, response: Tensor) -> Tensor:
        return response @ self._means[k].double().mT

    def rowwise(self, k: int, response: Tensor, rows: Tensor) -> Tensor:
        return (response * self._means[k][rows].double()).sum(1)


def _functions(model: FinalModel, X: Tensor) -> list[Measure]:
    """The functions of the outputs whose gradients are projected."""
    if model.loss.has_probabilities:
        return [model.loss.margin]
    return [Output(c) for c in range(model.outputs(X[:1]).shape[1])]


def _derivatives(
    model: FinalModel, functions: list[Measure], outputs: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """First (n, F) and second (n, F, F) derivative of each row's loss in the functions."""
    if len(functions) == 1 and not isinstance(functions[0], Output):
        missing = torch.sigmoid(-functions[0](outputs, y))  # 1 - p
        return -missing[:, None], (missing * (1 - missing))[:, None, None]
    return model.loss.gradient(outputs, y), model.loss.output_hessian(outputs, y)
