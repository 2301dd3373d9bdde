"""Metrics of a whole test set as functions of the model's outputs: their values and derivatives."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.metrics import get_scorer

from .._arrays import take_rows
from .._validation import UndefinedMetricWarning
from ..adapters import Answers, asked
from ..model import FinalModel

Floats = NDArray[np.float64]

#: Bytes of the outputs of changed models that are looked at together.
BLOCK = 2**25

#: Change of an output, as a part of its spread, by which smooth metrics are differentiated.
SMALL = 1e-4


@dataclass(frozen=True, eq=False)
class Judged:
    """Test rows of a model.

    Parameters
    ----------
    model : FinalModel
        What made the outputs.
    X : array-like
        The rows, as the user gave them.
    y : ndarray of shape (n,) or (n, n_targets)
        Their targets, in the user's words.
    encoded : ndarray of shape (n,) or (n, n_targets)
        Their targets, as the model takes them.
    """

    model: FinalModel
    X: Any
    y: NDArray[Any]
    encoded: NDArray[Any]

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: NDArray[np.int64]) -> Judged:
        """Return some of the rows."""
        found = take_rows(self.X, rows)
        return replace(self, X=found, y=self.y[rows], encoded=self.encoded[rows])


class Metric(ABC):
    """A metric of test rows, a function of the model's outputs of them."""

    @abstractmethod
    def values(self, outputs: Floats) -> Floats:
        """Return the metric (L,) of L models with outputs (L, n, C)."""

    def slopes(self, outputs: Floats, steps: Floats) -> Floats:
        """Return central differences (n, C) of the metric in each output (n, C), by steps (C,)."""
        found = np.empty(outputs.size)
        for block in blocks(outputs.size, 2 * outputs.nbytes):
            changes = np.zeros((len(block), *outputs.shape))
            step = np.broadcast_to(steps, outputs.shape).ravel()[block]
            changes.reshape(len(block), -1)[np.arange(len(block)), block] = step
            both = self.values(np.concatenate([outputs + changes, outputs - changes]))
            found[block] = (both[: len(block)] - both[len(block) :]) / (2 * step)
        return found.reshape(outputs.shape)

    def moves(self, outputs: Floats, spread: float) -> bool:
        """Return whether the least change of the outputs (n, C) moves it: it is smooth, no step function.

        Equal outputs stay equal: breaking a tie moves a metric of ranks.
        """
        waves = np.sin(np.arange(1, 5)[:, None, None] * outputs / spread)
        found = self.values(np.concatenate([outputs[None], outputs + 1e-7 * spread * waves]))
        return bool((found[1:] != found[0]).any())


def blocks(n: int, n_bytes: int) -> Iterator[NDArray[np.int64]]:
    """Yield the numbers below n in parts, of which each number takes so many bytes."""
    size = max(1, BLOCK // max(n_bytes, 1))
    return (np.arange(start, min(start + size, n)) for start in range(0, n, size))


# ---- means over rows ------------------------------------------------------------------------

#: From answers and test rows to a number for each row (..., n); NaN for rows that do not count.
OfRows = Callable[[Answers, Judged], NDArray[Any]]


def _squares(answers: Answers, test: Judged) -> Floats:
    """Return squared errors (..., n, n_targets)."""
    return (answers.predicted() - test.encoded) ** 2


def _r2(answers: Answers, test: Judged) -> Floats:
    around = ((test.encoded - test.encoded.mean(0)) ** 2).mean(0)
    if not around.all():
        raise ValueError("y_test must vary for scoring='r2', but a target is the same in all rows.")
    return (1 - _squares(answers, test) / around).mean(-1)


def _selected(answers: Answers, test: Judged) -> NDArray[np.bool_]:
    return answers.predicted() == 1


def _selected_of(label: int) -> OfRows:
    """Return whether a row is predicted the second class, of the rows of one class."""

    def of_rows(answers: Answers, test: Judged) -> Floats:
        return np.where(test.encoded == label, _selected(answers, test), np.nan)

    return of_rows


def _log_prob(answers: Answers, test: Judged) -> Floats:
    least = np.finfo(np.float64).eps
    own = _own(answers.probabilities(), test)
    return np.log(own.clip(least, 1 - least))


def _own(probabilities: Floats, test: Judged) -> Floats:
    """Return the probability (..., n) of each row's own class."""
    return probabilities[..., np.arange(len(test)), test.encoded]


#: Means over rows, of regressors.
OF_NUMBERS: dict[str, OfRows] = {
    "r2": _r2,
    "neg_mean_squared_error": lambda answers, test: -_squares(answers, test).mean(-1),
    "neg_mean_absolute_error": lambda answers, test: -np.sqrt(_squares(answers, test)).mean(-1),
}

#: Of classifiers: of any, of those with probabilities, and of two classes.
OF_CLASSES: dict[str, OfRows] = {
    "accuracy": lambda answers, test: answers.predicted() == test.encoded,
}
OF_PROBABILITIES: dict[str, OfRows] = {"neg_log_loss": _log_prob}
OF_TWO_CLASSES: dict[str, OfRows] = {
    "selection_rate": _selected,
    "true_positive_rate": _selected_of(1),
    "false_positive_rate": _selected_of(0),
}
OF_TWO_PROBABILITIES: dict[str, OfRows] = {
    "neg_brier_score": lambda answers, test: -((1 - _own(answers.probabilities(), test)) ** 2),
    "calibration": lambda answers, test: answers.probabilities()[..., 1] - test.encoded,
}

#: Names that scikit-learn does not have.
OUR_OWN = [*OF_TWO_CLASSES, "calibration"]


@dataclass(frozen=True, eq=False)
class MeanOfRows(Metric):
    """A mean over rows of a number that depends on each row's own outputs."""

    name: str
    of_rows: OfRows
    test: Judged

    def values(self, outputs: Floats) -> Floats:
        found = self._of_rows(outputs)
        return np.nansum(found, -1) / self._n_counted(found)

    def slopes(self, outputs: Floats, steps: Floats) -> Floats:
        found = np.empty(outputs.shape)
        for c, step in enumerate(steps):
            change = step * (np.arange(len(steps)) == c)
            up, down = self._of_rows(np.stack([outputs + change, outputs - change]))
            found[:, c] = np.nan_to_num(up - down) / (2 * step * self._n_counted(up))
        return found

    def _of_rows(self, outputs: Floats) -> Floats:
        return np.asarray(self.of_rows(Answers(self.test.model, outputs), self.test), dtype=float)

    def _n_counted(self, found: Floats) -> int:
        """Return the number of rows that count, which is the same for all outputs."""
        n = int((~np.isnan(found)).sum(-1).max())
        if not n:
            raise ValueError(
                f"scoring={self.name!r} is not defined: no test row is of the class that it is about."
            )
        return n


@dataclass(frozen=True, eq=False)
class RocAuc(Metric):
    """Area under the ROC curve of two classes: the share of pairs in the right order."""

    test: Judged

    def values(self, outputs: Floats) -> Floats:
        positive = self.test.encoded == 1
        n_pairs = positive.sum() * (~positive).sum()
        if not n_pairs:
            raise ValueError("scoring='roc_auc' is not defined: the test rows are of one class.")
        answers = Answers(self.test.model, outputs)
        ranks = rankdata(answers.decisions(), axis=-1)
        smallest = positive.sum() * (positive.sum() + 1) / 2
        return (ranks[..., positive].sum(-1) - smallest) / n_pairs


# ---- any scorer -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ByScorer(Metric):
    """A scorer of scikit-learn's kind, ``scorer(estimator, X, y)``, called for each changed model."""

    scorer: Callable[[Any, Any, Any], float]
    test: Judged
    n_jobs: int | None = None
    name: str | None = None

    def values(self, outputs: Floats) -> Floats:
        found = Parallel(n_jobs=self.n_jobs)(
            delayed(self._some)(outputs[part])
            for part in np.array_split(np.arange(len(outputs)), -(-len(outputs) // 256))
        )
        return np.concatenate(found)

    def _some(self, outputs: Floats) -> Floats:
        return np.array([self._one(one) for one in outputs])

    def _one(self, outputs: Floats) -> float:
        test = self.test
        with warnings.catch_warnings():
            warnings.simplefilter("error", UndefinedMetricWarning)
            warnings.filterwarnings("error", "No positive class found")
            try:
                found = asked(self.scorer, Answers(test.model, outputs), test.X, test.y, self.name)
            except UserWarning as warning:
                raise ValueError(f"scoring is not defined for these rows: {warning}") from warning
        if not isinstance(found, float | int | np.number) or not np.isfinite(found):
            raise ValueError(f"scoring must give one finite number, got {found!r}.")
        return float(found)


# ---- differences between groups -------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Gap(Metric):
    """The largest less the smallest of a metric over groups of the test rows."""

    groups: dict[Any, tuple[NDArray[np.int64], Metric]]

    def of_groups(self, outputs: Floats) -> Floats:
        """Return the metric (n_groups, L) of each group."""
        return np.stack([one.values(outputs[:, rows]) for rows, one in self.groups.values()])

    def values(self, outputs: Floats) -> Floats:
        return np.ptp(self.of_groups(outputs), axis=0)

    def slopes(self, outputs: Floats, steps: Floats) -> Floats:
        each, found = self.of_groups(outputs[None])[:, 0], np.zeros(outputs.shape)
        for sign, place in (1, each.argmax()), (-1, each.argmin()):
            rows, one = list(self.groups.values())[place]
            found[rows] += sign * one.slopes(outputs[rows], steps)
        return found


# ---- from names -----------------------------------------------------------------------------


def metric_of(scoring: Any, test: Judged, n_jobs: int | None = None) -> Metric:
    """Return the metric of test rows that a name or a scorer stands for.

    Raises
    ------
    ValueError
        If it is not one for the model.
    """
    if scoring is None:
        scoring = "accuracy" if test.model.loss.is_classifier else "r2"
    if not isinstance(scoring, str):
        if not callable(scoring):
            raise ValueError(
                "scoring must be a name, or a callable scorer(estimator, X, y) as "
                f"sklearn.metrics.make_scorer makes it, got {scoring!r}."
            )
        return ByScorer(scoring, test, n_jobs)
    known = _known(test.model)
    if scoring in known:
        return MeanOfRows(scoring, known[scoring], test)
    if scoring == "roc_auc" and "selection_rate" in known and not test.model.loss.only_classes:
        return RocAuc(test)
    if scoring in OUR_OWN:
        classes = test.model.classes
        if test.model.loss.is_classifier and classes is not None and len(classes) != 2:
            raise ValueError(
                f"scoring={scoring!r} is for a classifier of two classes, and this one has {len(classes)}. "
                "Take a scorer of one of them against the others, such as "
                f"lambda model, X, y: (model.predict(X) == {classes.tolist()[0]!r}).mean()."
            )
        raise ValueError(
            f"scoring={scoring!r} is for a classifier of two classes"
            f"{', with probabilities' * (scoring == 'calibration')}; the outputs of this model are "
            f"{test.model.loss.outputs_are}."
        )
    try:
        scorer = get_scorer(scoring)
    except ValueError as error:
        raise ValueError(
            f"scoring must be one of {', '.join(OUR_OWN)}, a name of sklearn.metrics.get_scorer_names() or "
            f"a scorer, got {scoring!r}."
        ) from error
    return ByScorer(scorer, test, n_jobs, scoring)


def _known(model: FinalModel) -> dict[str, OfRows]:
    """Return the means over rows that are metrics of a model."""
    loss = model.loss
    if not loss.is_classifier:
        return OF_NUMBERS
    likely = loss.has_probabilities and not loss.only_classes
    found = OF_CLASSES | (OF_PROBABILITIES if likely else {})
    if model.classes is None or len(model.classes) != 2:
        return found
    return found | OF_TWO_CLASSES | (OF_TWO_PROBABILITIES if likely else {})
