"""The page of bad inputs, second part: rows of tokens, images, sequences and several inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import networks
import numpy as np
import pytest
from cells import make, trained

from fimoda import attribute

#: By the way of their scores: gradients, a solver, runs, training again.
ATTRIBUTORS = ["GradDot", "ExactInfluence", "FurtherTraining", "LeaveOneOut"]


def changed(name: str, at: Any, value: Any) -> Callable[[Any], Any]:
    """Return a function that puts a value into one of several inputs."""

    def change(X: dict[str, Any]) -> dict[str, Any]:
        part = X[name].astype(np.result_type(X[name], type(value)))
        part[at] = value
        return {**X, name: part}

    return change


def without(name: str) -> Callable[[Any], Any]:
    return lambda X: {key: part for key, part in X.items() if key != name}


def with_id(value: int) -> Callable[[Any], Any]:
    def change(X: np.ndarray) -> np.ndarray:
        X = X.copy()
        X[2, 1] = value
        return X

    return change


def with_nan(X: np.ndarray) -> np.ndarray:
    X = X.copy()
    X.flat[7] = np.nan
    return X


IDS = r'X\["input_ids"\] must hold ids from 0 to 19, .*word_embeddings.*, got {} in row 2\.'
ROWS = "the entries of X must have as many rows as each other"

# name: (network, change of the rows, message in fit, message in transform)
ROWS_OF_NETWORKS = {
    "ids above the vocabulary": ("bert", changed("input_ids", (2, 1), 20), IDS.format(20), None),
    "negative ids": ("bert", changed("input_ids", (2, 1), -1), IDS.format(-1), None),
    "ids that are no integers": (
        "bert",
        changed("input_ids", (2, 1), 1.5),
        r'X\["input_ids"\] must hold integers, which .*word_embeddings',
        None,
    ),
    "ids of an array": ("encoder", with_id(20), r"^X must hold ids from 0 to 19, .*'tokens'", None),
    "a row longer than the positions": (
        "gpt2",
        lambda X: {name: np.tile(part, 2) for name, part in X.items()},
        r"X must hold ids from 0 to 7, .*wpe'.*got 8 in row 0\..*a row is too long",
        None,
    ),
    "a mask of another length": (
        "bert",
        lambda X: {**X, "attention_mask": X["attention_mask"][:, :3]},
        r'could not be run on a row of .*X\["attention_mask"\] of shape \(3,\)',
        None,
    ),
    "no ids": (
        "bert",
        without("input_ids"),
        r"could not be run on a row of .* missing 1 required positional argument: 'input_ids'",
        r"X\['input_ids'\] is missing",
    ),
    "no mask": ("bert", without("attention_mask"), None, r"X\['attention_mask'\] is missing"),
    "unequal lengths": (
        "bert",
        lambda X: {**X, "attention_mask": X["attention_mask"][:2]},
        rf'{ROWS}, but X\["input_ids"\] has \d+, X\["attention_mask"\] has 2',
        None,
    ),
    "an input that is not asked for": (
        "bert",
        lambda X: {**X, "other": X["input_ids"]},
        r"could not be run .*unexpected keyword argument 'other'",
        r"must have the inputs that it had in fit, .* got .*X\['other'\]",
    ),
    "an array in place of several": (
        "bert",
        lambda X: X["input_ids"],
        None,
        r"must have the inputs that it had in fit, X\['attention_mask'\], .* got one array",
    ),
    "images without channels": (
        "conv",
        lambda X: X[:, 0],
        r"row of X of shape \(8, 8\): .*to have 3 channels, but got 1.*its layer first, Conv2d",
        r"rows of shape \(3, 8, 8\), as in fit, got rows of shape \(8, 8\)",
    ),
    "images with their channels last": (
        "conv",
        lambda X: X.transpose(0, 2, 3, 1),
        r"could not be run on a row of X of shape \(8, 8, 3\): .*its layer first, Conv2d",
        None,
    ),
    "images as vectors": (
        "resnet9, batch norm",
        lambda X: X.reshape(len(X), -1),
        r"could not be run on a row of X of shape \(192,\): .*its layer stem",
        r"rows of shape \(3, 8, 8\), as in fit, got rows of shape \(192,\)",
    ),
    "images of another size": (
        "resnet9, group norm",
        lambda X: X[:, :, :2, :2],
        r"could not be run on a row of X of shape \(3, 2, 2\): .*MaxPool2d",
        None,
    ),
    "NaN in an image": ("conv", with_nan, "Input X contains NaN", None),
    "sequences without time": (
        "lstm",
        lambda X: X[:, 0],
        r"could not be run on a row of X of shape \(4,\)",
        r"rows of shape \(6, 4\), as in fit, got rows of shape \(4,\)",
    ),
    "sequences of other features": (
        "gru",
        lambda X: X[:, :, :3],
        r"could not be run on a row of X of shape \(6, 3\): .*its layer recurrent, GRU",
        None,
    ),
    "NaN in one input of two": (
        "two inputs",
        changed("numbers", (2, 1), np.nan),
        r'Input X\["numbers"\] contains NaN',
        None,
    ),
    "categories that are unknown": (
        "two inputs",
        changed("ids", 2, 20),
        r'X\["ids"\] must hold ids from 0 to 19, .*got 20 in row 2',
        None,
    ),
    "an input of another name": (
        "two inputs",
        lambda X: {"ids": X["ids"], "number": X["numbers"]},
        r"could not be run .*unexpected keyword argument 'number'",
        r"X\['numbers'\] is missing",
    ),
    "a dict without entries": ("two inputs", lambda X: {}, "X is a dict without entries", None),
}

POSITIONS = "y must have a class for each position of the outputs, whose shape is"

# name: (change of the targets of a language model, message in fit, message in transform)
TARGETS_OF_POSITIONS = {
    "one a row": (
        lambda y: y[:, 0],
        rf"{POSITIONS} \(n_rows, 6, 20\).*got shape \(16,\)",
        r"y must have an integer, .* for each position of a row",
    ),
    "too few": (
        lambda y: y[:, :4],
        rf"{POSITIONS}.*got shape \(16, 4\)",
        "a target for each of the 6 positions of a row's outputs, got 4",
    ),
    "numbers": (lambda y: y + 0.5, "y must have an integer, .*got float64", None),
    "unknown": (
        lambda y: np.where(y > 0, 25, y),
        r"y must be classes from 0 to 19, or -100 at .*got 25 in row 0",
        None,
    ),
    "none that counts": (
        lambda y: np.where(np.arange(len(y))[:, None] == 1, -100, y),
        "y must have a position that counts in every row: in row 1 all are -100",
        None,
    ),
}


def case(network: str) -> networks.Case:
    if network in networks.NEEDS:
        pytest.importorskip(networks.NEEDS[network])
    return trained(network)


@functools.cache
def fitted(attributor: str, network: str):
    given, some = case(network), {} if attributor in ATTRIBUTORS[:2] else {"leave_out": 2}
    return make(attributor, given.model, **some).fit(given.X, given.y)


@pytest.mark.parametrize("attributor", ATTRIBUTORS)
@pytest.mark.parametrize("name", [name for name, of in ROWS_OF_NETWORKS.items() if of[2]])
def test_rows_in_fit(name, attributor):
    network, change, message, _ = ROWS_OF_NETWORKS[name]
    given = case(network)
    with pytest.raises(ValueError, match=message):
        make(attributor, given.model).fit(change(given.X), given.y)


@pytest.mark.parametrize("attributor", ATTRIBUTORS)
@pytest.mark.parametrize("name", ROWS_OF_NETWORKS)
def test_rows_in_transform(name, attributor):
    network, change, in_fit, message = ROWS_OF_NETWORKS[name]
    given = case(network)
    with pytest.raises(ValueError, match=message or in_fit):
        fitted(attributor, network).transform(change(given.X_test), given.y_test)


@pytest.mark.parametrize("attributor", ATTRIBUTORS)
@pytest.mark.parametrize("name", TARGETS_OF_POSITIONS)
def test_targets_of_positions(name, attributor):
    change, in_fit, message = TARGETS_OF_POSITIONS[name]
    given = case("language model")
    with pytest.raises(ValueError, match=in_fit):
        make(attributor, given.model).fit(given.X, change(given.y))
    with pytest.raises(ValueError, match=message or in_fit):
        fitted(attributor, "language model").transform(given.X_test, change(given.y_test))


@pytest.mark.parametrize("attributor", ATTRIBUTORS)
def test_padding_alone(attributor):
    given, empty = case("bert"), changed("attention_mask", 2, 0)
    told = r'X\["attention_mask"\] has no token in row 2: an empty text'
    with pytest.warns(UserWarning, match=told):
        fitted(attributor, "bert").transform(empty(given.X_test), given.y_test)


def test_the_one_call():
    for name in ("ids of an array", "images without channels", "NaN in one input of two"):
        network, change, message, _ = ROWS_OF_NETWORKS[name]
        given = case(network)
        rows = (given.model, change(given.X), given.y, given.X_test, given.y_test)
        with pytest.raises(ValueError, match=message):
            attribute(*rows, budget=5)
