"""Images: bytes with channels first, last or none, through a Pipeline and as they are."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from skorch import NeuralNetClassifier
from test_common import ATTRIBUTORS, make
from torch import Tensor, nn

import fimoda
from fimoda import GradDot, LeaveOneOut, TrajectoryRecorder

N, N_TEST, SIZE = 14, 3, 5

#: Scores are equal up to rounding: the same numbers go through the same operations.
SAME = {"rtol": 1e-9, "atol": 1e-12}

rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (N + N_TEST, 2, SIZE, SIZE), dtype=np.uint8)
Y = np.arange(N + N_TEST) % 2
TRAIN, TEST = slice(N), slice(N, None)


def scaled(X: Any) -> Any:
    """Return bytes as numbers from 0 to 1."""
    return np.asarray(X) / 255.0


class Conv(nn.Module):
    """A convolution over images of numbers, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3)
        self.out = nn.Linear(2, 2)
        self.double()

    def forward(self, X: Tensor) -> Tensor:
        return self.out(torch.tanh(self.conv(X)).mean((2, 3)))


class OfBytes(Conv):
    """The same, over bytes."""

    def forward(self, X):
        return super().forward(X.to(self.out.weight) / 255)


class ChannelsLast(OfBytes):
    def forward(self, X):
        return super().forward(X.permute(0, 3, 1, 2))


class Grey(OfBytes):
    """Over images without channels; both are the same."""

    def forward(self, X):
        return super().forward(X.unsqueeze(1).expand(-1, 2, -1, -1))


def a_net(module: type[nn.Module]) -> NeuralNetClassifier:
    torch.manual_seed(0)
    recorder = TrajectoryRecorder(checkpoints="all", batches=True)
    common = {"max_epochs": 2, "lr": 0.1, "batch_size": 5, "train_split": None, "verbose": 0}
    criterion = nn.CrossEntropyLoss
    return NeuralNetClassifier(module, criterion=criterion, callbacks=[("run", recorder)], **common)


def fitted(model: Any, X: Any) -> Any:
    with torch.random.fork_rng():
        return model.fit(X, Y[TRAIN])


#: Images in other forms, the model that takes them, and the numbers that the network sees.
FORMS: dict[str, tuple[Any, Any]] = {
    "pipeline": (
        lambda: Pipeline([("scaled", FunctionTransformer(scaled)), ("net", a_net(Conv))]),
        IMAGES,
    ),
    "bytes": (lambda: a_net(OfBytes), IMAGES),
    "channels last": (lambda: a_net(ChannelsLast), np.moveaxis(IMAGES, 1, 3)),
    "grey": (lambda: a_net(Grey), IMAGES[:, 0]),
}


def numbers_of(form: str) -> np.ndarray:
    if form == "grey":
        return scaled(np.repeat(IMAGES[:, :1], 2, axis=1))
    return scaled(IMAGES)


def scores_of(attributor: Any, X: Any) -> list[np.ndarray]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nets of two epochs are far from their minimum
        attributor.fit(X[TRAIN], Y[TRAIN])
        return [
            attributor.transform(X[TEST], Y[TEST]),
            attributor.transform(X[TEST]),
            attributor.self_influence(),
        ]


def assert_same(got: list[Any], expected: list[Any]) -> None:
    assert np.abs(expected[0]).max() > 0
    for one, other in zip(got, expected, strict=True):
        assert_allclose(one, other, **SAME)


@pytest.mark.parametrize("cls", ATTRIBUTORS, ids=lambda cls: cls.__name__)
def test_bytes_score_as_numbers(cls):
    numbers = numbers_of("bytes")
    expected = scores_of(make(cls, fitted(a_net(Conv), numbers[TRAIN])), numbers)
    for form in ("pipeline", "bytes"):
        made, X = FORMS[form]
        assert_same(scores_of(make(cls, fitted(made(), X[TRAIN])), X), expected)


@pytest.mark.parametrize("form", ["channels last", "grey"])
@pytest.mark.parametrize("name", ["GradDot", "ExactInfluence", "FurtherTraining", "EKFACInfluence"])
def test_channels(name, form):
    made, X = FORMS[form]
    numbers, cls = numbers_of(form), getattr(fimoda, name)
    expected = scores_of(make(cls, fitted(a_net(Conv), numbers[TRAIN])), numbers)
    assert_same(scores_of(make(cls, fitted(made(), X[TRAIN])), X), expected)


@pytest.mark.parametrize("refit", ["all", "last"])
def test_a_pipeline_that_is_fitted_again(refit):
    made, X = FORMS["pipeline"]
    numbers = numbers_of("pipeline")
    settings = {"leave_out": [2], "n_seeds": 1, "random_state": 0}
    expected = scores_of(LeaveOneOut(fitted(a_net(Conv), numbers[TRAIN]), **settings), numbers)
    again = LeaveOneOut(fitted(made(), X[TRAIN]), refit=refit, **settings)
    assert_same(scores_of(again, X), expected)


def test_lists_of_images():
    image = pytest.importorskip("PIL.Image")
    made, _ = FORMS["channels last"]
    pixels = np.moveaxis(np.concatenate([IMAGES, IMAGES[:, :1]], axis=1), 1, 3)
    pictures = [image.fromarray(one) for one in pixels]

    def two(X: Any) -> Any:
        return np.stack([np.asarray(one) for one in X])[..., :2]

    bare = fitted(made(), pixels[TRAIN, ..., :2])
    pipeline = Pipeline([("two", FunctionTransformer(two)), ("net", bare)])
    expected = scores_of(GradDot(bare), pixels[..., :2])
    assert_same(scores_of(GradDot(pipeline), pictures), expected)
    message = (
        r"X must have rows of one shape, got \(5, 4, 3\), \(5, 5, 3\)\. Bring them to one size"
    )
    with pytest.raises(ValueError, match=message):
        GradDot(bare).fit([*pictures[:3], pictures[3].crop((0, 0, 4, 5))], Y[:4])
    with pytest.raises(
        ValueError, match=r"X must have rows of one shape, got \(2, 5, 4\), \(2, 5, 5\)"
    ):
        GradDot(bare).fit([IMAGES[0], IMAGES[1, :, :, :4]], Y[:2])


@pytest.mark.parametrize("form", FORMS)
def test_the_wrong_rank(form):
    made, X = FORMS[form]
    model = fitted(made(), X[TRAIN])
    for wrong in (X[TRAIN, ..., 0], X[TRAIN, None]):
        shape = re.escape(str(wrong.shape[1:]))
        with pytest.raises(ValueError, match=f"row of X of shape {shape}: "):
            GradDot(model).fit(wrong, Y[TRAIN])
        attributor = GradDot(model).fit(X[TRAIN], Y[TRAIN])
        known = re.escape(str(X.shape[1:]))
        with pytest.raises(ValueError, match=f"X must have rows of shape {known}, as in fit"):
            attributor.transform(wrong)


def test_images_of_a_display():
    made, X = FORMS["pipeline"]
    model = fitted(made(), X[TRAIN])
    found = fimoda.attribute(model, X[TRAIN], Y[TRAIN], X[TEST], Y[TEST], method=GradDot())
    assert found.top(2).helpful.shape == (N_TEST, 2)
    detector = fimoda.MislabelDetector(model, random_state=0).fit(X[TRAIN], Y[TRAIN])
    assert np.isfinite(detector.scores_).all()
