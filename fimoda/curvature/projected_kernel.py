"""The kernel of randomly projected gradients of a model's output functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad

from ..measured import Measure, Measured
from ..measurements import Output
from ..objective import Objective
from ..rows import Rows
from .projection import Projection

#: Rows whose gradients are projected at a time, at most; rows whose products are taken at a time.
_MOST_ROWS, _ROWS = 16384, 2048


class ProjectedKernel:
    r"""Features of the training rows, and solutions with their damped second moment, by Cholesky.

    The features are projected gradients :math:`\phi_{if}` (n, F, k) of the margin of a classifier or
    of the outputs of a regression, and ``slopes`` (n, F) the derivatives of the loss in these functions.
    The second moment ``gram`` (k, k), :math:`\sum_i s_i \sum_f \phi_{if} \phi_{if}^\top`, is float64.
    """

    def __init__(self, objective: Objective, project: Projection):
        self.objective = objective
        self.project = project
        functions = output_functions(objective)
        self.features = self._features([Measured(objective.rows, f) for f in functions])
        self.slopes = _slopes(objective)
        k = project.n_components
        self.gram = torch.zeros(k, k, dtype=torch.float64, device=self.features.device)
        shares = objective.rows.shares.to(self.features)
        for part, w in zip(self.features.split(_ROWS), shares.split(_ROWS), strict=True):
            flat = part.flatten(0, 1)
            self.gram += flat.mT @ (flat * w.repeat_interleave(part.shape[1])[:, None])
        if not bool(torch.isfinite(self.gram).all() and torch.isfinite(self.slopes).all()):
            raise ValueError(
                "the margin of a training row, or its gradient, is not finite: its predicted probability "
                "is exactly one or zero in this precision. Use a model that returns logits, or one in "
                "float64."
            )
        self._factored: tuple[float, Tensor] | None = None

    def _features(self, measured: list[Measured]) -> Tensor:
        """Return projected gradients (n, F, k) of the same rows, measured in F ways."""
        size, theta = self.objective.chunk(0.25, _MOST_ROWS), self.objective.model.theta
        features = theta.new_empty(len(measured[0]), len(measured), self.project.n_components)
        for f, one in enumerate(measured):
            for at, gradients in self.objective.row_gradients(one, size):
                features[at, f] = self.project(gradients)
        return features

    def solve(self, test: Measured, damping: float) -> Tensor:
        """Return features of test rows times the inverse of the damped second moment, (m, k)."""
        features, factor = self._features([test])[:, 0], self.factor(damping)
        parts = features.split(_ROWS)
        solved = [torch.cholesky_solve(V.double().mT, factor).mT.to(V) for V in parts]
        return torch.cat(solved)

    def factor(self, damping: float) -> Tensor:
        """Return the Cholesky factor, kept for the last damping; ValueError if singular."""
        if self._factored is None or self._factored[0] != damping:
            damped = self.gram.clone()
            damped.diagonal().add_(damping)
            factor, failed = torch.linalg.cholesky_ex(damped)
            diagonal = factor.diagonal()
            if int(failed) or float(diagonal.min()) <= 1e-7 * float(diagonal.max()):
                scale = float(self.gram.trace()) or 1.0
                raise ValueError(
                    f"the kernel of the projected gradients is singular, and damping={damping:g} does "
                    f"not make it positive definite. Raise damping above {1e-8 * scale:.1e}."
                )
            self._factored = damping, factor
        return self._factored[1]


def output_functions(objective: Objective) -> list[Measure]:
    """Return the functions of the outputs whose gradients are the features of a row."""
    if objective.model.loss.has_probabilities:
        return [objective.model.loss.margin]
    return [Output(c) for c in range(objective.n_outputs)]


def _slopes(objective: Objective) -> Tensor:
    """Return the derivatives (n, F) of rows' losses in the output functions."""
    return torch.cat(
        [_slopes_of(objective, rows) for rows in objective.rows.split(objective.fitting)]
    )


def _slopes_of(objective: Objective, rows: Rows) -> Tensor:
    """Return the derivatives of some of the rows' losses in the output functions."""
    loss, targets = objective.model.loss, rows.targets
    outputs = objective.model.outputs(rows.inputs).double()
    slopes = loss.gradient(outputs, targets)
    if not loss.has_probabilities:
        return slopes
    # the loss is a function of the margin: its slope there, from those in the outputs
    of_margin = grad(lambda f: loss.margin(f, targets).sum())(outputs)
    return ((slopes * of_margin).sum(1) / (of_margin**2).sum(1)).unsqueeze(1)
