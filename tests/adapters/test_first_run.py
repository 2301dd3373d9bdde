"""Rows that a network cannot take: the message names X, the row, and the layer that refuses it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from networks import NETWORKS, N, _Recipe
from torch import nn

from fimoda import FurtherTraining, GradDot, LeaveOneOut
from fimoda.adapters import as_final_model


class Words(nn.Module):
    """Token ids with a mask, and segments whose ids are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 3)
        self.segments = nn.Embedding(3, 3)
        self.out = nn.Linear(3, 2)

    def forward(self, ids, attention_mask, segment):
        seen = self.words(ids) + self.segments(segment.long() + 1).unsqueeze(1)
        mask = attention_mask.unsqueeze(-1).to(seen)
        return self.out((seen * mask).sum(1) / mask.sum(1))


def rows(n: int = 300) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    mask = (np.arange(5) < rng.integers(1, 6, size=(n, 1))).astype(np.int64)
    ids = rng.integers(1, 7, size=(n, 5)) * mask
    return {"ids": ids, "attention_mask": mask, "segment": rng.integers(0, 2, n).astype(np.int32)}


def fitted(X: Any, module: nn.Module | None = None) -> GradDot:
    torch.manual_seed(0)
    y = np.arange(len(X["ids"])) % 2
    return GradDot(module or Words(), criterion=nn.CrossEntropyLoss()).fit(X, y)


def with_one(name: str, row: int, value: Any, n: int = 300) -> dict[str, Any]:
    X = rows(n)
    X[name][row] = value
    return X


@pytest.mark.parametrize("row", [0, 2, 299])
@pytest.mark.parametrize("value", [7, -1])
def test_ids_that_an_embedding_lacks(row, value):
    message = rf"X\[\"ids\"\] must hold ids from 0 to 6, .* 'words' .*, got {value} in row {row}\."
    with pytest.raises(ValueError, match=message):
        fitted(with_one("ids", row, value))
    test = with_one("ids", row, value)
    with pytest.raises(ValueError, match=message):
        fitted(rows(20)).transform(test)


@pytest.mark.parametrize("row", [0, 3, 270])
def test_ids_that_are_computed_from_rows(row):
    message = rf"X must hold ids from 0 to 2, .* 'segments' .*, got 10 in row {row}\."
    with pytest.raises(ValueError, match=message):
        fitted(with_one("segment", row, 9))
    with pytest.raises(ValueError, match=message):
        fitted(rows(20)).transform(with_one("segment", row, 9))


def test_a_frozen_model_and_training_again_know_ids_too():
    torch.manual_seed(0)
    model = as_final_model(Words(), rows(20), criterion=nn.CrossEntropyLoss())
    X, y = with_one("ids", 9, 7, n=20), np.arange(20) % 2
    for method in (GradDot(model), LeaveOneOut(Words(), criterion=nn.CrossEntropyLoss())):
        with pytest.raises(ValueError, match="got 7 in row 9"):
            method.fit(X, y)


def test_numbers_where_ids_are_needed():
    X = rows(20)
    X["ids"] = X["ids"] + 0.5
    with pytest.raises(ValueError, match=r"X\[\"ids\"\] must hold integers, which .* 'words'"):
        fitted(X)


def test_rows_without_tokens():
    X = rows(20)
    X["attention_mask"][[4, 8]] = 0
    refused = r"X\[\"attention_mask\"\] has no token in row 4 and 1 more, .* NaN\. Drop such rows"
    with pytest.raises(ValueError, match=refused):
        fitted(X)

    class Finite(Words):
        def forward(self, ids, attention_mask, segment):
            return torch.nan_to_num(super().forward(ids, attention_mask, segment))

    with pytest.warns(UserWarning, match="has no token in row 4 and 1 more: an empty text"):
        fitted(X, Finite())


def test_padding_without_a_mask():
    class Unmasked(nn.Module):
        def __init__(self, padding: int | None) -> None:
            super().__init__()
            self.words = nn.Embedding(7, 3, padding_idx=padding)
            self.out = nn.Linear(3, 2)

        def forward(self, ids):
            mask = (ids > 0).unsqueeze(-1).to(self.out.weight)
            return self.out((self.words(ids) * mask).sum(1) / mask.sum(1))

    X = {"ids": np.maximum(rows(20)["ids"], 1)}
    fitted(X, Unmasked(0))
    X["ids"][3] = 0
    with pytest.raises(ValueError, match=r"X\[\"ids\"\] has no token in row 3, .* NaN"):
        fitted(X, Unmasked(0))


def test_an_embedding_whose_padding_is_a_value_is_let_alone():
    module = nn.Sequential(nn.Embedding(7, 3, padding_idx=0), nn.Flatten(), nn.Linear(6, 2))
    X, y = np.array([[0, 0], [1, 2], [3, 0], [0, 4]]), np.arange(4) % 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = GradDot(module, criterion=nn.CrossEntropyLoss()).fit(X, y).transform(X)
    assert np.isfinite(scores).all()


# ---- shapes ---------------------------------------------------------------------------------


def rows_of(name: str) -> tuple[nn.Module, nn.Module, Any, np.ndarray]:
    recipe: _Recipe = NETWORKS[name]
    rng = np.random.default_rng(0)
    X = recipe.rows(rng, N)
    torch.manual_seed(0)
    return recipe.made().eval(), recipe.criterion(), X, recipe.targets(rng, N, X)


WRONG = {
    "an image without channels": (
        "conv",
        lambda X: X[:, 0],
        r"row of X of shape \(8, 8\): .*its layer first, Conv2d\(3, 4, .*given shape \(1, 8, 8\)",
        r"X must have rows of shape \(3, 8, 8\), as in fit, got rows of shape \(8, 8\)\.",
    ),
    "an image with another axis": (
        "resnet9, group norm",
        lambda X: X[:, :, None],
        r"row of X of shape \(3, 1, 8, 8\): .*its layer stem.0.0, Conv2d",
        r"X must have rows of shape \(3, 8, 8\), as in fit, got rows of shape \(3, 1, 8, 8\)",
    ),
    "channels last": (
        "conv",
        lambda X: np.moveaxis(X, 1, 3),
        r"row of X of shape \(8, 8, 3\): .*its layer first, Conv2d",
        r"as in fit, a row of X of shape \(3, 8, 8\); .* of shape \(8, 8, 3\): .*its layer first",
    ),
    "channels": (
        "conv",
        lambda X: X[:, :2],
        r"row of X of shape \(2, 8, 8\): .*its layer first, Conv2d",
        r"a row of X of shape \(3, 8, 8\); .* a row of X of shape \(2, 8, 8\): .*its layer first",
    ),
    "a sequence of other width": (
        "lstm",
        lambda X: X[:, :, :2],
        r"row of X of shape \(6, 2\): .*its layer recurrent, LSTM",
        r"a row of X of shape \(6, 4\); .* a row of X of shape \(6, 2\): .*its layer recurrent",
    ),
    "a token too many": (
        "encoder",
        lambda X: np.hstack([X, X]),
        r"row of X of shape \(12,\): .*its layer tokens, Embedding",
        "X has 12 features, but GradDot is expecting 6",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_shapes(case):
    name, change, refused, later = WRONG[case]
    module, criterion, X, y = rows_of(name)
    with pytest.raises(ValueError, match=refused):
        GradDot(module, criterion=criterion).fit(change(X), y)
    attributor = GradDot(module, criterion=criterion).fit(X, y)
    with pytest.raises(ValueError, match=later):
        attributor.transform(change(X))


def test_images_of_another_size_where_the_network_takes_them():
    module, criterion, X, y = rows_of("conv")
    larger = np.kron(X[:3], np.ones((1, 1, 2, 2), dtype=np.float32))
    scores = GradDot(module, criterion=criterion).fit(X, y).transform(larger, y[:3])
    assert scores.shape == (3, N)


def test_token_ids_of_unequal_length_and_missing_inputs():
    X = rows(20)
    short = {**X, "attention_mask": X["attention_mask"][:, :3]}
    shapes = r'X\["ids"\] of shape \(5,\), X\["attention_mask"\] of shape \(3,\)'
    with pytest.raises(ValueError, match=shapes):
        fitted(short)
    with pytest.raises(ValueError, match=rf"a row of {shapes}"):
        fitted(X).transform(short)
    with pytest.raises(ValueError, match=r"X\['segment'\] is missing"):
        fitted(X).transform({key: X[key] for key in ("ids", "attention_mask")})


def test_further_training_says_the_same():
    module, criterion, X, y = rows_of("encoder")
    method = FurtherTraining(
        module, criterion=criterion, n_epochs=1, lr=0.1, batch_size=8, optimizer="SGD"
    )
    X[9, 1] = 99
    with pytest.raises(ValueError, match=r"X must hold ids from 0 to 19, .*got 99 in row 9"):
        method.fit(X, y)
