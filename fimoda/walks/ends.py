"""The ends of several runs, where measurements of test rows are differentiated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..training.run import Run
from ..training.workers import one_thread


@dataclass(frozen=True)
class Ends:
    """Parameters (n_runs, p) at each horizon, in steps, of runs that are trained beside that of a walk.

    The gradient of a test row where one run ends is a draw: near a kink it is of one side, and where scores
    are small it may be all that differs between runs.
    """

    thetas: dict[int, Tensor]

    @classmethod
    def of(cls, run: Run, seed: int, horizons: Sequence[int], n_runs: int) -> Ends:
        """Train so many other runs to the horizons, with seeds that follow from that of the walk."""
        reached: dict[int, list[Tensor]] = {step: [] for step in horizons}
        chance = np.random.SeedSequence(seed, spawn_key=(1,))
        with one_thread():
            for other in map(int, chance.generate_state(n_runs)):
                plan = run.plan(other)
                run.train(plan, horizons, lambda step, theta: reached[step].append(theta.clone()))
        return cls({step: torch.cat(thetas) for step, thetas in reached.items() if thetas})

    def beside(self, step: int, theta: Tensor) -> list[Tensor]:
        """Return the parameters at a horizon of all runs, with `theta` of the walk's own."""
        return [theta, *self.thetas.get(step, ())]
