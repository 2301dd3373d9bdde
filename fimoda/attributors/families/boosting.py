"""Methods that follow the run of boosting, of one model or of several that are grown anew."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from torch import nn

from ..._validation import (
    POSITIVE_INTEGER,
    Interval,
    StrOptions,
    check_horizons,
    check_is_fitted,
    check_random_state,
    check_seeds,
)
from ...adapters import last_step
from ...gradient_mode import with_gradients
from ...last_call import of_last_call
from ...measured import Measured
from ...measurements import Measurement, values
from ...model import DEFAULT_BUDGET
from ...training.grown import agreement_of_halves, grown_on
from ...training.random_subsets import drawn_subsets
from ...training.subset_outcomes import mean_and_error
from ...trees import BoostingRun, Member, Relabelled
from .trees import BaseTrees, Floats

#: The beginning of what is said of a method that follows the training from its first round.
_ANEW = "training anew"


if TYPE_CHECKING:
    _Trees = BaseTrees
else:
    _Trees = object


class BoostingMixin(_Trees):
    """Mixin of methods of trees that follow the run of boosting, of the final model or of several grown anew.

    A method implements `_of_member` and `_relabelled_of_member`.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseTrees._parameter_constraints,
        "n_rounds": [POSITIVE_INTEGER, "array-like", None],
        "first_score": [StrOptions({"moves", "held"})],
        "n_models": [POSITIVE_INTEGER],
        "share": [Interval(Real, 0, 1, closed="right")],
        "n_jobs": [Integral, None],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        n_rounds: int | Iterable[int] | None = None,
        first_score: str = "moves",
        n_models: int = 1,
        share: float = 0.7,
        measurement: Measurement = "loss",
        criterion: nn.Module | None = None,
        memory_budget: int = DEFAULT_BUDGET,
        random_state: Any = None,
        n_jobs: int | None = None,
    ):
        super().__init__(
            estimator, measurement=measurement, criterion=criterion, random_state=random_state
        )
        self.n_rounds = n_rounds
        self.first_score = first_score
        self.n_models = n_models
        self.share = share
        self.memory_budget = memory_budget
        self.n_jobs = n_jobs

    # ---- fit --------------------------------------------------------------------------------

    def _fit(self) -> None:
        rng, n = check_random_state(self.random_state), len(self._objective)
        self.horizons_ = self._check_horizons()
        own = self.model_.run(self._objective.rows)  # which looks whether leaves come from these
        if self.n_models == 1 and self.n_rounds is None:
            self._members = [Member(self.model_, self._started(own), np.arange(n))]
            return
        subsets = self._subsets(rng)
        self.seeds_ = check_seeds(self.n_models, rng)
        model = last_step(self.estimator_)
        if not hasattr(model, "get_params"):
            raise TypeError(
                f"n_models must be 1 and n_rounds None for a {type(model).__name__}, which has no fit of its "
                f"own to be grown by; got {self.n_models} and {self.n_rounds}. Pass the library's "
                "scikit-learn estimator."
            )
        given = model, self._seen_rows, self.horizons_[-1]
        members = Parallel(n_jobs=self.n_jobs)(
            delayed(grown_on)(*given, np.flatnonzero(subset), seed)
            for subset, seed in zip(subsets, self.seeds_, strict=True)
        )
        self._members = [replace(one, run=self._started(one.run)) for one in members]
        if any(member.model.ensemble.n_outputs != self.n_outputs_ for member in self._members):
            raise ValueError(
                f"share must leave rows of every class to each model, got {self.share:g} of rows of which a "
                "class has few. Raise it, or leave n_models=1."
            )

    def _check_horizons(self) -> list[int | None]:
        """Return the numbers of rounds to look ahead by, or None for the whole training."""
        if self.n_rounds is None:
            return [None]
        rounds = check_horizons(self.n_rounds, "n_rounds")
        if not all(isinstance(one, int) for one in rounds):
            raise ValueError(f"n_rounds must be whole numbers of rounds, got {self.n_rounds!r}.")
        return [int(one) for one in rounds]

    def _started(self, run: BoostingRun) -> BoostingRun:
        """Return the run with a first score that moves without a row, or is held."""
        if self.first_score == "moves":
            return run
        return replace(run, boosting=replace(run.boosting, start_is_fitted=False))

    def _subsets(self, rng: np.random.RandomState) -> NDArray[np.bool_]:
        """Return the rows (n_models, n) that each model is grown on."""
        n = len(self._objective)
        if self.share == 1 or self.n_models == 1:
            return np.ones((self.n_models, n), dtype=bool)
        subsets = drawn_subsets(n, self.n_models, self.share, rng, cover=True)
        if not subsets.any(0).all():
            raise ValueError(
                f"n_models must be larger for every row to be in one of the models, got {self.n_models} "
                f"models of {self.share:g} of the rows. Raise n_models or share."
            )
        return subsets

    # ---- transform --------------------------------------------------------------------------

    def _scores(self, test: Measured) -> Floats:
        return self._after(self.horizons_[-1], test)

    def _relabelled(self, test: Measured, rows: NDArray[np.int64], targets: NDArray[Any]) -> Floats:
        found = np.full((len(self._members), len(test), len(rows)), np.nan)
        encoded, factors = self._relabels(rows, targets)
        share = 1.0 if len(self._members) == 1 else self.share  # as in the scores
        for one, whole in zip(found, self._members, strict=True):
            member, inside = whole.after(self.horizons_[-1]), np.isin(rows, whole.rows)
            loss, C = member.run.boosting.loss, member.run.boosting.n_outputs
            at, new = member.numbers(rows[inside]), loss.encoded(encoded, C)
            change = Relabelled(at, new[:, inside], factors[inside])
            if inside.any():
                one[:, inside] = share * self._relabelled_of_member(member, test, change)
        return mean_and_error(np.moveaxis(found, 0, -1))[0]

    @with_gradients
    def transform_horizons(self, X: Any, y: Any = None) -> Floats:
        """Score at every horizon of `n_rounds`.

        Parameters
        ----------
        X : array-like of shape (n_test, n_features)
            Test rows.
        y : array-like of shape (n_test,), default=None
            Their targets, as in `transform`.

        Returns
        -------
        S : ndarray of shape (n_horizons, n_test, n_columns)
            ``S[k]`` belongs to ``horizons_[k]``; the last is what `transform` gives, and the only one where
            `n_rounds` is None.
        """
        check_is_fitted(self, "model_")
        test = self._test(X, y)
        return self._finite(np.stack([self._after(one, test) for one in self.horizons_]))

    def _at_horizons(self, X: Any, y: Any, epochs: list[float]) -> Floats:
        if not set(epochs) <= set(self.horizons_):
            return super()._at_horizons(X, y, epochs)
        known: list[Any] = self.horizons_
        return self.transform_horizons(X, y)[[known.index(one) for one in epochs]]

    def _after(self, n_rounds: int | None, test: Measured) -> Floats:
        """Return the scores (n_test, n) at a horizon."""
        members = [member.after(n_rounds) for member in self._members]
        if len(members) == 1:
            unknown = np.broadcast_to(np.nan, (len(test), len(self.train_indices_)))
            self._seen["scores_sem_"] = unknown
            return self._of_member(members[0], test)
        each = self._each(test, members)
        found, errors = mean_and_error(np.moveaxis(each, 0, -1))
        self._seen["scores_sem_"] = errors
        self._agreement = agreement_of_halves(each)
        return found

    def _each(self, test: Measured, members: list[Member]) -> Floats:
        """Return the scores (n_models, n_test, n) of each model, NaN for rows that it was not grown on.

        A row matters the less the more there are of them: they are those of all rows by `share`.
        """
        found = np.full((len(members), len(test), len(self.train_indices_)), np.nan)
        for one, member in zip(found, members, strict=True):
            scores = self._of_member(member, test)
            of_all = scores.shape[1] == found.shape[2]  # with weight zero for those left out
            one[:, member.rows] = self.share * (scores[:, member.rows] if of_all else scores)
        return found

    @abstractmethod
    def _of_member(self, member: Member, test: Measured) -> Floats:
        """Hook of `transform`: scores (n_test, n_rows) of the rows that a model was grown on."""

    @abstractmethod
    def _relabelled_of_member(self, member: Member, test: Measured, change: Relabelled) -> Floats:
        """Hook of `relabel`: effects (n_test, k) on one model of rows that get other targets."""

    def _coupled(self, test: Measured) -> tuple[Floats, Floats]:
        if len(self._members) == 1:
            return super()._coupled(test)
        if self.share < 1:
            raise ValueError(
                f"share must be 1 where models are looked at one by one, got {self.share:g}: each of them "
                "has scores of all rows then."
            )
        measured = [
            values(test.measure, member.model.outputs(test.inputs), test.targets).numpy()
            for member in self._members
        ]
        return np.stack(measured), self._each(test, self._members)

    def _bytes_of_row(self, run: BoostingRun) -> int:
        """Return the bytes of what is known of all training rows for each test row."""
        return 8 * len(run) * (run.boosting.n_outputs + 2)

    scores_sem_ = of_last_call(
        "scores_sem_",
        "Standard error over models of the scores last returned, (n_test, n_train); NaN for one model.",
    )

    def _n_runs(self) -> int:
        return len(self._members)

    def _process(self) -> str:
        what = self.process
        if self.n_rounds is not None:
            rounds = self._check_horizons()[-1]
            what = f"further boosting of the final model, {rounds} rounds{what.removeprefix(_ANEW)}"
        if self.n_models == 1:
            return what
        part = "" if self.share == 1 else f" on {self.share:.0%} of the rows each"
        grown = "grown anew" if self.n_rounds is None else "that go on"
        return f"{what}, in the mean over {self.n_models} models {grown}{part}"

    def _known_error(self, scores: Floats) -> list[str]:
        if len(self._members) == 1:
            return ["one model: with n_models, others whose splits differ tell how far they matter"]
        halves = f"two halves of the models, whose splits differ, agree {self._agreement:.2f}"
        return [halves, *super()._known_error(scores)]
