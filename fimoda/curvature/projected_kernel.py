"""The kernel of randomly projected gradients of a model's output functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad

from ..measured import Measure, Measured
from ..measurements import Output
from ..objective import Objective
from .feature_kernel import FeatureKernel
from .projection import Projection

#: Rows whose gradients are projected at a time, at most.
_MOST_ROWS = 16384


class ProjectedKernel:
    r"""Features of the training rows, and solutions with their second moment.

    The features are projected gradients :math:`\phi_i` (n, F, k) of the margin of a classifier or of
    the outputs of a regression, and ``slopes`` (n, F) the derivatives of the loss in these functions.
    ValueError where one of them is not finite.
    """

    def __init__(self, objective: Objective, project: Projection):
        self.objective = objective
        self.project = project
        model, targets = objective.model, objective.rows.targets
        functions = output_functions(objective)
        self.features = self._features([Measured(objective.rows, f) for f in functions])
        outputs = objective.outputs.double()
        self.slopes = model.loss.gradient(outputs, targets)
        if model.loss.has_probabilities:
            # the loss is a function of the margin: its slope there, from those in the outputs
            of_margin = grad(lambda f: model.loss.margin(f, targets).sum())(outputs)
            slopes = (self.slopes * of_margin).sum(1) / (of_margin**2).sum(1)
            self.slopes = slopes.unsqueeze(1)
        self._kernel = FeatureKernel(self.features, objective.rows.shares)
        if not bool(torch.isfinite(self._kernel.gram).all() and torch.isfinite(self.slopes).all()):
            raise ValueError(
                "the margin of a training row, or its gradient, is not finite: its predicted probability "
                "is exactly one or zero in this precision. Use a model that returns logits, or one in "
                "float64."
            )

    @property
    def mean_squared_length(self) -> float:
        """The mean, by share, of the squared lengths of a row's features, summed over functions."""
        return float(self._kernel.gram.trace())

    def check(self, damping: float) -> None:
        """Raise ValueError if the damped kernel is singular."""
        self._kernel.factor(damping)

    def _features(self, measured: list[Measured]) -> Tensor:
        """Return projected gradients (n, F, k) of the same rows, measured in F ways."""
        size, theta = self.objective.chunk(0.25, _MOST_ROWS), self.objective.model.theta
        features = theta.new_empty(len(measured[0]), len(measured), self.project.n_components)
        for f, one in enumerate(measured):
            for at, gradients in self.objective.row_gradients(one, size):
                features[at, f] = self.project(gradients)
        return features

    def solve(self, test: Measured, damping: float) -> Tensor:
        """Return features of test rows times the inverse of the damped kernel, (m, k)."""
        return self._kernel.solve(self._features([test])[:, 0], damping)


def output_functions(objective: Objective) -> list[Measure]:
    """Return the functions of the outputs whose gradients are the features of a row."""
    if objective.model.loss.has_probabilities:
        return [objective.model.loss.margin]
    return [Output(c) for c in range(objective.n_outputs)]
