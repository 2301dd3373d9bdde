"""Scores of a whole set of test rows: scikit-learn's scorers of a model that is known by its outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.metrics import get_scorer, get_scorer_names
from torch import Tensor

from ..adapters import Answers
from ..measured import ROWS, Measured, outputs_of_stack
from ..model import FinalModel
from ..rows import Rows

#: A scorer's name, a scorer, or a callable ``f(estimator, X, y)``; more is better.
Scoring = str | Callable[[Any, Any, Any], float]


def as_scorer(scoring: Scoring) -> Any:
    """Return the callable ``f(estimator, X, y)`` behind a scoring; ValueError for an unknown name."""
    if not isinstance(scoring, str):
        return scoring
    if scoring not in get_scorer_names():
        raise ValueError(
            "scoring must be the name of a scorer, as sklearn.metrics.get_scorer_names lists them, a "
            f"scorer, or a callable f(estimator, X, y), got {scoring!r}."
        )
    return get_scorer(scoring)


@dataclass(frozen=True)
class _Score:
    """A score as a measurement: the same number for each of the test rows."""

    model: FinalModel
    scoring: Any
    X: Any
    y: NDArray[Any]

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        answers = Answers(self.model, outputs.double().cpu().numpy())
        if isinstance(self.scoring, str) and self.scoring == "accuracy":
            found = float((self.model.predicted_targets(outputs) == targets).double().mean())
        elif self._is_area_of_pairs(targets):
            found = area_under_roc(answers.decisions(), (targets == 1).cpu().numpy())
        else:
            try:
                given = as_scorer(self.scoring)(answers.estimator(), self.X, self.y)
            except AttributeError as error:
                raise ValueError(
                    f"scoring must be of predictions that the model makes: {error}"
                ) from error
            try:
                found = float(given)
            except (TypeError, ValueError) as error:
                raise ValueError(f"scoring must give one number, got {given!r}.") from error
        return torch.full((len(targets),), found, dtype=torch.float64, device=outputs.device)

    def _is_area_of_pairs(self, targets: Tensor) -> bool:
        """Return whether the score is an area under the ROC curve of two classes that both are there."""
        if not isinstance(self.scoring, str) or self.scoring != "roc_auc":
            return False
        classes = self.model.classes
        return classes is not None and len(classes) == 2 and len(targets.unique()) == 2


def area_under_roc(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """Return the share of pairs, a positive row and another, in which the positive one has more."""
    n, ranks = int(positive.sum()), rankdata(scores)
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(scores) - n)))


@dataclass(frozen=True, eq=False)
class Scored(Measured):
    """Test rows that are measured together: the score of all is that of each."""

    def of_stack(self, model: FinalModel, thetas: Tensor) -> Tensor:
        """Return the score (L, n) of each of the models with parameters (L, p), n times."""
        parts = [outputs_of_stack(model, thetas, rows.inputs) for rows in self.rows.split(ROWS)]
        outputs = torch.cat(parts, dim=1)
        return torch.stack([self.measure(one, self.targets) for one in outputs])


def scored(model: FinalModel, scoring: Scoring, rows: Rows, X: Any, y: NDArray[Any]) -> Scored:
    """Return test rows, as users and models see them, with the score that is taken of them."""
    return Scored(rows, _Score(model, scoring, X, y))
