"""Measurements: values against probabilities written out, gradients against finite differences."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fimoda import losses, measurements
from fimoda.measurements import Output, resolve

N = 6
LOSSES = {
    "regression": losses.SquaredError(),
    "logits": losses.CrossEntropy(),
    "log probabilities": losses.row_loss(torch.nn.NLLLoss(), (3,)),
    "probabilities": losses.ProbabilityNLL(1e-12),
    "binary logit": losses.BinaryCrossEntropy(),
    "binary probability": losses.row_loss(torch.nn.BCELoss(), (1,)),
    "one vs rest logits": losses.OneVsRestCrossEntropy(),
    "custom": losses.row_loss(torch.nn.PoissonNLLLoss(), (1,)),
}
WITH_PROBABILITIES = [
    "logits",
    "log probabilities",
    "probabilities",
    "binary logit",
    "binary probability",
]


def model_of(kind: str) -> SimpleNamespace:
    return SimpleNamespace(loss=LOSSES[kind])


def draw(kind: str):
    """Outputs (N, C), targets, and the probability of each row's target."""
    g = torch.Generator().manual_seed(1)
    raw = torch.randn(N, 3, generator=g, dtype=torch.float64)
    if kind.startswith("binary"):
        y = torch.tensor([0, 1, 1, 0, 1, 0])
        second = raw[:, 0].sigmoid()
        p = torch.where(y == 1, second, 1 - second)
        return (raw[:, :1] if kind == "binary logit" else second[:, None]), y, p
    y = torch.tensor([0, 2, 1, 1, 0, 2])
    p = raw.softmax(1)[torch.arange(N), y]
    if kind == "log probabilities":
        return raw.log_softmax(1), y, p
    return (raw.softmax(1) if kind == "probabilities" else raw), y, p


@pytest.mark.parametrize("kind", WITH_PROBABILITIES)
def test_log_prob_and_margin(kind):
    outputs, y, p = draw(kind)
    log_prob, margin = (resolve(name, model_of(kind)) for name in ("log_prob", "margin"))
    torch.testing.assert_close(log_prob(outputs, y), p.log(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(margin(outputs, y), p.log() - (1 - p).log(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", LOSSES)
def test_loss_is_the_criterion(kind):
    assert resolve("loss", model_of(kind)) is LOSSES[kind]


@pytest.mark.parametrize("kind", WITH_PROBABILITIES)
@pytest.mark.parametrize("name", ["loss", "log_prob", "margin", "output"])
def test_gradients_against_finite_differences(name, kind):
    outputs, y, _ = draw(kind)
    measure = resolve(name, model_of(kind))
    leaf = outputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(measure(leaf, y).sum(), leaf)
    assert torch.isfinite(gradient).all()
    step = 1e-6
    for c in range(outputs.shape[1]):
        move = torch.zeros(outputs.shape[1], dtype=torch.float64)
        move[c] = step
        slope = (measure(outputs + move, y) - measure(outputs - move, y)) / (2 * step)
        torch.testing.assert_close(gradient[:, c], slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["logits", "binary logit"])
def test_margin_of_confident_rows(kind):
    """1 - p is zero in floating point; the margin and its gradient are not lost."""
    if kind == "logits":
        outputs = torch.tensor([[100.0, 0.0, 1.0]], dtype=torch.float64)
        y, expected = torch.tensor([0]), 100 - np.log(1 + np.e)
    else:
        outputs, y, expected = torch.tensor([[-90.0]], dtype=torch.float64), torch.tensor([0]), 90
    leaf = outputs.requires_grad_()
    value = resolve("margin", model_of(kind))(leaf, y)
    np.testing.assert_allclose(value.detach(), [expected], rtol=1e-12)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    np.testing.assert_allclose(abs(gradient[0, 0]), 1.0, rtol=1e-12)


def test_log_prob_of_confident_rows():
    outputs = torch.tensor([[800.0], [-800.0]], dtype=torch.float64)
    log_prob = resolve("log_prob", model_of("binary logit"))
    np.testing.assert_allclose(log_prob(outputs, torch.tensor([0, 1])), [-800.0, -800.0])


def test_margin_of_two_classes_is_the_difference_of_logits():
    outputs, y = torch.tensor([[0.3, -1.2], [2.0, 2.5]]), torch.tensor([0, 1])
    torch.testing.assert_close(
        resolve("margin", model_of("logits"))(outputs, y), torch.tensor([1.5, 0.5])
    )


def test_output():
    one, many = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    y = torch.tensor([1, 0])
    for kind in ("regression", "binary logit", "binary probability"):
        assert resolve("output", model_of(kind))(one, y).tolist() == [1.0, 2.0]
    for kind in ("logits", "log probabilities", "probabilities", "one vs rest logits"):
        assert resolve("output", model_of(kind))(many, y).tolist() == [2.0, 3.0]
    with pytest.raises(ValueError, match=r"needs a model with one output.*Output\(index\)"):
        resolve("output", model_of("regression"))(many, y)


def test_output_by_index():
    outputs = torch.arange(12.0).reshape(2, 2, 3)
    assert Output(2)(outputs, None).tolist() == [[2.0, 5.0], [8.0, 11.0]]
    assert repr(Output(2)) == "Output(2)"
    for index in (3, -1):
        with pytest.raises(ValueError, match=rf"must be in \[0, 3\) for this model, got {index}"):
            Output(index)(outputs, None)


def test_callable_is_used_on_copies():
    """It may write to what it is given; its values and its gradient are its own."""

    def own(outputs, targets):
        targets *= 2
        return F.relu(outputs[..., 0]) * targets

    outputs = torch.tensor([[1.0], [-2.0], [3.0]], requires_grad=True)
    targets = torch.tensor([4.0, 5.0, 6.0])
    found = resolve(own, model_of("regression"))(outputs, targets)
    assert found.tolist() == [8.0, 0.0, 36.0]
    assert torch.autograd.grad(found.sum(), outputs)[0].tolist() == [[8.0], [0.0], [12.0]]
    assert targets.tolist() == [4.0, 5.0, 6.0]


@pytest.mark.parametrize("kind", ["regression", "one vs rest logits", "custom"])
@pytest.mark.parametrize("name", ["margin", "log_prob"])
def test_needs_probabilities(name, kind):
    message = f"measurement='{name}' needs a classifier with class probabilities"
    with pytest.raises(ValueError, match=message):
        resolve(name, model_of(kind))


def test_unknown_name():
    with pytest.raises(ValueError, match=r"must be one of 'loss', 'margin'.* got 'logits'"):
        resolve("logits", model_of("logits"))


def test_values_are_float64_and_one_per_row():
    outputs, y = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    found = measurements.values(LOSSES["regression"], outputs, y)
    assert found.dtype == torch.float64
    assert found.tolist() == [2.5, 17.0]


@pytest.mark.parametrize(
    ("bad", "got"),
    [
        (lambda o, y: o, r"got \(2, 3\)"),
        (lambda o, y: o[:, :1], r"got \(2, 1\)"),
        (lambda o, y: o.mean(), r"got \(\)"),
        (lambda o, y: o.sum(1).tolist(), "got list"),
    ],
)
def test_values_of_a_bad_shape(bad, got):
    with pytest.raises(ValueError, match=f"must give one number per row.*{got}"):
        measurements.values(bad, torch.ones(2, 3), torch.zeros(2))


def test_stacked_values():
    outputs = torch.arange(24.0).reshape(4, 3, 2)
    y = torch.tensor([0, 1, 1])
    found = measurements.stacked_values(LOSSES["logits"], outputs, y)
    assert found.shape == (4, 3)
    for model in range(4):
        torch.testing.assert_close(
            found[model], F.cross_entropy(outputs[model].double(), y, reduction="none")
        )
