"""The way of the rows through ``fit`` and ``transform`` is short; test_layering sees that it goes down."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from types import FrameType

import numpy as np
import pytest
from problems import tanh_network
from test_layering import FILES, GUIDE, layer
from torch import nn

import fimoda
from fimoda.views import TreeView

METHODS = {
    "FurtherTraining": {"n_epochs": 1, "n_seeds": 2, "leave_out": 3, "compile": False},
    "GradDot": {},
    "EKFACInfluence": {},
    "SOURCE": {"trajectory": "final", "n_epochs": 2},
    "LinearizedFurtherTraining": {"n_epochs": 1},
    "OnceLinearizedFurtherTraining": {"n_epochs": 1},
    "UnrolledDifferentiation": {"n_epochs": 1},
    "LeafInfluence": {},
}


def ways(call: Callable[[], object]) -> set[tuple[str, ...]]:
    """Return the files that are open at any moment of a call, from the first to the innermost."""
    names = {str(path): name for name, path in FILES.items()}
    found: set[tuple[str, ...]] = set()
    way: list[str] = []

    def watch(frame: FrameType, event: str, argument: object) -> None:
        name = names.get(frame.f_code.co_filename)
        if name is not None and event == "call":
            way.append(name)
            found.add(tuple(way))
        elif name is not None and event == "return":
            way.pop()

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


def written(name: str) -> dict[str, list[str]]:
    """Return the ways of ``fit`` and ``transform`` as the developer guide has them."""
    block = re.search(rf"^   {name}\n     \.fit (.*)\n     \.transform (.*)$", GUIDE, re.MULTILINE)
    assert block, f"the developer guide has no way of {name}"
    steps = zip(("fit", "transform"), block.groups(), strict=True)
    return {step: [file.strip() for file in way.split(">")] for step, way in steps}


def is_part(way: list[str], of: tuple[str, ...]) -> bool:
    files = iter(of)
    return all(file in files for file in way)


@pytest.mark.parametrize("name", METHODS)
def test_at_most_eight_files_below_the_method(name):
    """From the hook that the base class calls, to the innermost; as the developer guide says."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(24, 4)), rng.integers(3, size=24)
    method, model = getattr(fimoda, name), {}
    if method._sees is not TreeView:  # which grow some by default
        model = {"estimator": tanh_network(4, 6, 3), "criterion": nn.CrossEntropyLoss()}
    attributor = method(random_state=0, **model, **METHODS[name])
    attributor.fit(X, y)  # imports what torch imports late
    traced = {
        "fit": ways(lambda: attributor.fit(X, y)),
        "transform": ways(lambda: attributor.transform(X[:3], y[:3])),
    }
    longest: list[str] = []
    for way in traced["fit"] | traced["transform"]:
        start = max((k + 1 for k, file in enumerate(way) if layer(file) == "base"), default=0)
        longest = max(longest, list(dict.fromkeys(way[start:])), key=len)
    assert 1 < len(longest) <= 8, " > ".join(longest)
    for step, way in written(name).items():
        assert any(is_part(way, found) for found in traced[step]), f"{step} does not go {way}"
