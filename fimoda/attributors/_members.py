"""A method, fitted to each of several models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..adapters import transforms
from ..base import BaseAttributor
from ..model import FinalModel
from ..training.ensemble import Ensemble
from ..trajectory import Trajectory


def models_and_runs(given: Ensemble | Sequence[Any]) -> tuple[list[Any], list[Trajectory | None]]:
    """The models, and their trajectories as far as they are not their own."""
    runs = given.trajectories if isinstance(given, Ensemble) else []
    models = list(given.models if isinstance(given, Ensemble) else given)
    if not models:
        raise ValueError("models must hold at least one fitted model, got none.")
    return models, list(runs) or [None] * len(models)


def fit_member(
    owner: Any,
    template: BaseAttributor,
    model: Any,
    run: Trajectory | None = None,
    **params: Any,
) -> BaseAttributor:
    """The method, fitted to one model on the rows that `owner` has seen (``_seen_rows``).

    It has the owner's measurement, and the criterion where the model does not know its own.
    """
    if transforms(model):  # the rows that the owner has seen are transformed already
        raise ValueError(
            f"models must hold the models themselves, got a {type(model).__name__} whose rows or targets "
            "are transformed on their way in, perhaps otherwise than estimator's. Pass the fitted last "
            "steps of Pipelines that share their earlier ones."
        )
    member = template.__sklearn_clone__()
    known = member.get_params(deep=False)
    criterion = None if isinstance(model, FinalModel) else owner.criterion
    params.update(estimator=model, measurement=owner.measurement, criterion=criterion)
    if run is not None and "trajectory" in known:
        params["trajectory"] = run
    X, y, weights = owner._seen_rows
    return member.set_params(**params).fit(X, y, weights)
