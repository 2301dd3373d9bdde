"""What all tests share."""

from __future__ import annotations

import random

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seed the generators that estimators without a ``random_state`` draw from."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
