"""Measurements of raw scores: how they differ, and their gradients."""

from __future__ import annotations

import numpy as np
import torch

from ..measured import Measured
from ..measurements import values
from .ensemble import Floats


def differences(test: Measured, outputs: Floats, changes: Floats) -> Floats:
    """Return how the measurements (m, n) differ if the outputs (C, m) of test rows change by (C, m, n).

    To first order where there is no measurement of the changed outputs, which may be no probabilities.
    """
    C, m, n = changes.shape
    changed = outputs[..., None] + changes
    flat = torch.from_numpy(changed.reshape(C, m * n).T.copy())
    targets = test.targets.repeat_interleave(n, dim=0)
    before = values(test.measure, torch.from_numpy(outputs.T.copy()), test.targets).numpy()
    found = values(test.measure, flat, targets).numpy().reshape(m, n) - before[:, None]
    unknown = ~np.isfinite(found)
    if unknown.any():
        found[unknown] = np.einsum("cm,cmn->mn", slopes(test, outputs), changes)[unknown]
    return found


def slopes(test: Measured, outputs: Floats) -> Floats:
    """Return the gradient of each row's measurement in its raw scores (C, n), or (C, k, n) of k models."""
    rows = torch.from_numpy(np.moveaxis(outputs, 0, -1).copy())
    return np.moveaxis(test.slopes(rows).numpy(), -1, 0)
