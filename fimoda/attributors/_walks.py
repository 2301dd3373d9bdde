"""Walks through runs of further training, as units of work for parallel workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, vmap

from ..curvature.batch_hessian import BatchHessian, batch_hessian
from ..curvature.unrolled import Unrolled, adjoint_scores, forward_tangents
from ..measured import Measure
from ..rows import mapped
from ..training.noise import seeded
from ..training.optimizers import OptimizerSpec
from ..training.products import fast_float32_products
from ..training.recorded import RecordedRun
from ..training.run import Run
from ..training.workers import one_thread


@dataclass(frozen=True, eq=False)
class Walk(Run):
    """A run of further training on all rows, and how to differentiate it.

    Parameters
    ----------
    kink_smoothing : float, default=None
        Sharpness of the curvature at kinks.
    """

    kink_smoothing: float | None = None

    def gradients(self, theta: Tensor, X: Tensor, y: Tensor, measure: Measure) -> Tensor:
        """Gradients of the measurements at parameters (p,), as (m, p)."""

        def one(theta: Tensor, x: Tensor, target: Tensor) -> Tensor:
            one = mapped(lambda part: part.unsqueeze(0), x)
            return measure(self.model.forward(theta, one), target.unsqueeze(0))[0]

        return vmap(grad(one), in_dims=(None, 0, 0))(theta, X, y)

    @contextmanager
    def _ready(self, seed: int, n_epochs: int) -> Iterator[tuple[RecordedRun, BatchHessian]]:
        """The run and the Hessian, on one thread and with the faster products."""
        with one_thread():
            run = RecordedRun(self, seed, n_epochs)
            hessian = batch_hessian(self.model, self.kink_smoothing)
            rows = self.rows[: self.batch_size]
            w = torch.full((len(rows),), 1 / len(rows)).to(self.model.theta)
            trial = self.model.theta.expand(2, -1).contiguous()

            def products() -> Tensor:
                with seeded(self.model, seed):
                    return hessian(trial[0], rows.inputs, rows.targets, w, trial)[0]

            with fast_float32_products(products):
                yield run, hessian


def kink_sharpness(
    given: float | str | None, optimizer: OptimizerSpec, auto: float
) -> float | None:
    """The sharpness that ``kink_smoothing`` asks for.

    "auto" is for plain and heavy-ball SGD: the preconditioner of an adaptive optimiser blows the
    curvature of kinks up.
    """
    if given == "auto":
        return auto if optimizer.step_of is torch.optim.SGD else None
    return None if given is None else float(given)


def check_run(walk: Walk, seed: int, n_epochs: int) -> None:
    """Run once, for what it raises."""
    with one_thread():
        RecordedRun(walk, seed, n_epochs)


def walk_back(
    walk: Walk, seed: int, horizons: list[int], X: Tensor, y: Tensor, measure: Measure
) -> Unrolled:
    """Scores (n_horizons, m, n) of all training rows for test rows."""
    with walk._ready(seed, horizons[-1]) as (run, hessian):
        return adjoint_scores(
            run, hessian, lambda theta: walk.gradients(theta, X, y, measure), horizons
        )


def walk_forward(walk: Walk, seed: int, horizons: list[int], left_out: list[int]) -> Unrolled:
    """Tangents (n_horizons, L, p) of left-out rows."""
    with walk._ready(seed, horizons[-1]) as (run, hessian):
        return forward_tangents(run, hessian, left_out, horizons)
