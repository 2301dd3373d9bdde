"""The training rows that are given again, checked against those of an attributor."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._arrays import n_rows
from .._validation import check_targets
from ..base import BaseAttributor


def check_training_rows(attributor: BaseAttributor, X_train: Any, y_train: Any) -> None:
    """Raise ValueError unless there are as many rows as the attributor was fitted on, with its targets."""
    known = attributor._objective.rows.targets.cpu()
    n, given = len(attributor._objective), n_rows(X_train)
    if given != n:
        raise ValueError(
            f"X_train must be the {n} rows that attributor was fitted on, in their order, got {given} rows."
        )
    targets = attributor._model_targets(check_targets(y_train, n, "y_train"))
    encoded = attributor.model_.encode_y(targets, attributor.n_outputs_).cpu()
    other = (encoded != known).reshape(n, -1).any(1).numpy()
    if other.any():
        raise ValueError(
            "y_train must be the targets that attributor was fitted on, in their order; row "
            f"{np.flatnonzero(other)[0]} has another."
        )
