"""Per-row losses against torch and scikit-learn, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import log_loss
from torch import nn

from fimoda import losses
from fimoda.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    OneVsRestCrossEntropy,
    ProbabilityNLL,
    SquaredError,
    row_loss,
)

N, C = 7, 4


def draw(kind: str, n_outputs: int = C, lead: tuple[int, ...] = (N,)):
    """Outputs and targets of a kind, in float64."""
    g = torch.Generator().manual_seed(0)
    outputs = 2 * torch.randn(*lead, n_outputs, generator=g, dtype=torch.float64)
    labels = torch.randint(n_outputs, lead, generator=g)
    if kind == "regression":
        return outputs, torch.randn(*lead, n_outputs, generator=g, dtype=torch.float64)
    if kind == "log probabilities":
        return outputs.log_softmax(-1), labels
    if kind == "probabilities":
        return outputs.softmax(-1), labels
    if kind.startswith("binary"):
        outputs = outputs[..., :1]
        targets = torch.randint(2, lead, generator=g)
        return (outputs.sigmoid() if kind == "binary probability" else outputs), targets
    return outputs, labels


# name: (loss, kind, number of outputs, reference on outputs (n, C) and targets)
CASES = {
    "squared": (SquaredError(), "regression", C, lambda o, y: ((o - y) ** 2).mean(1)),
    "squared, one output": (SquaredError(), "regression", 1, lambda o, y: ((o - y) ** 2)[:, 0]),
    "half squared": (SquaredError(0.5), "regression", C, lambda o, y: 0.5 * ((o - y) ** 2).mean(1)),
    "squared, summed": (
        SquaredError(over_outputs="sum"),
        "regression",
        C,
        lambda o, y: ((o - y) ** 2).sum(1),
    ),
    "cross-entropy": (
        CrossEntropy(),
        "logits",
        C,
        lambda o, y: F.cross_entropy(o, y, reduction="none"),
    ),
    "binary cross-entropy": (
        BinaryCrossEntropy(),
        "binary logit",
        1,
        lambda o, y: F.binary_cross_entropy_with_logits(o[:, 0], y.double(), reduction="none"),
    ),
    "one-vs-rest": (
        OneVsRestCrossEntropy(),
        "one vs rest logits",
        C,
        lambda o, y: F.binary_cross_entropy_with_logits(
            o, F.one_hot(y, C).double(), reduction="none"
        ).sum(1),
    ),
    "NLL on probabilities": (
        ProbabilityNLL(eps=1e-3),
        "probabilities",
        C,
        lambda o, y: -torch.log(o[torch.arange(N), y] + 1e-3),
    ),
}
CRITERIA = {
    "MSE": (nn.MSELoss(), "regression", C),
    "L1": (nn.L1Loss(), "regression", C),
    "smooth L1": (nn.SmoothL1Loss(beta=0.5), "regression", C),
    "Huber": (nn.HuberLoss(delta=0.3), "regression", C),
    "cross-entropy": (nn.CrossEntropyLoss(), "logits", C),
    "label smoothing": (nn.CrossEntropyLoss(label_smoothing=0.1), "logits", C),
    "NLL": (nn.NLLLoss(), "log probabilities", C),
    "BCE with logits": (nn.BCEWithLogitsLoss(), "binary logit", 1),
    "BCE with pos_weight": (
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0, dtype=torch.float64)),
        "binary logit",
        1,
    ),
    "BCE": (nn.BCELoss(), "binary probability", 1),
}


def as_criterion_wants(kind: str, outputs: torch.Tensor, targets: torch.Tensor):
    if kind.startswith("binary"):
        return outputs[..., 0], targets.double()
    return outputs, targets


@pytest.mark.parametrize("name", CASES)
def test_values(name):
    loss, kind, n_outputs, reference = CASES[name]
    outputs, targets = draw(kind, n_outputs)
    assert loss.outputs_are == kind
    torch.testing.assert_close(
        loss(outputs, targets), reference(outputs, targets), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("name", CRITERIA)
def test_criterion_mean_is_mean_of_rows(name):
    criterion, kind, n_outputs = CRITERIA[name]
    outputs, targets = draw(kind, n_outputs)
    loss = row_loss(criterion, (n_outputs,))
    assert loss.outputs_are == kind
    rows = loss(outputs, targets)
    assert rows.shape == (N,)
    torch.testing.assert_close(
        rows.mean(), criterion(*as_criterion_wants(kind, outputs, targets)), rtol=1e-12, atol=1e-12
    )
    for i in range(N):  # each row's own loss, not only their mean
        own = criterion(*as_criterion_wants(kind, outputs[i : i + 1], targets[i : i + 1]))
        torch.testing.assert_close(rows[i], own, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [*CASES, *(f"criterion {name}" for name in CRITERIA)])
def test_gradient_equals_autograd_and_finite_differences(name):
    if name in CASES:
        loss, kind, n_outputs, _ = CASES[name]
    else:
        criterion, kind, n_outputs = CRITERIA[name.removeprefix("criterion ")]
        loss = row_loss(criterion, (n_outputs,))
    outputs, targets = draw(kind, n_outputs)
    gradient = loss.gradient(outputs, targets)
    assert gradient.shape == outputs.shape
    leaf = outputs.clone().requires_grad_()
    (autograd,) = torch.autograd.grad(loss(leaf, targets).sum(), leaf)
    torch.testing.assert_close(gradient, autograd, rtol=1e-10, atol=1e-12)
    step = 1e-6
    for c in range(n_outputs):
        move = torch.zeros(n_outputs, dtype=torch.float64)
        move[c] = step
        slope = (loss(outputs + move, targets) - loss(outputs - move, targets)) / (2 * step)
        torch.testing.assert_close(gradient[:, c], slope, rtol=1e-6, atol=1e-7)


def loss_of(name: str):
    """Loss, kind of outputs and their number."""
    if name in CASES:
        return CASES[name][:3]
    criterion, kind, n_outputs = CRITERIA[name.removeprefix("criterion ")]
    return row_loss(criterion, (n_outputs,)), kind, n_outputs


ALL = [*CASES, *(f"criterion {name}" for name in CRITERIA)]


@pytest.mark.parametrize("name", ALL)
def test_second_derivative_equals_autograd(name):
    loss, kind, n_outputs = loss_of(name)
    outputs, targets = draw(kind, n_outputs, lead=(2, N))
    found = loss.output_hessian(outputs, targets)
    assert found.shape == (2, N, n_outputs, n_outputs)
    for model in range(2):
        for i in range(N):
            y = targets[model, i : i + 1]
            own = torch.func.hessian(lambda o, y=y: loss(o[None], y)[0])(outputs[model, i])
            torch.testing.assert_close(found[model, i], own, rtol=1e-10, atol=1e-13)
    h = loss.constant_curvature(n_outputs)
    assert (h is not None) == ("quared" in name or name == "criterion MSE")
    if h is not None:
        torch.testing.assert_close(found, h * torch.eye(n_outputs).double().expand_as(found))


@pytest.mark.parametrize("name", ALL)
def test_products_with_the_second_derivative_and_its_root(name):
    loss, kind, n_outputs = loss_of(name)
    outputs, targets = draw(kind, n_outputs, lead=(2, N))
    matrix = loss.output_hessian(outputs, targets)
    vectors = torch.randn(2, N, 5, n_outputs, dtype=torch.float64)
    torch.testing.assert_close(loss.curved(outputs, targets, vectors), vectors @ matrix)
    roots = loss.root(outputs, targets, torch.eye(n_outputs, dtype=torch.float64))
    torch.testing.assert_close(roots.mT @ roots, matrix)


@pytest.mark.parametrize("name", ALL)
def test_fisher_matrix_is_the_expected_square_of_the_gradient(name):
    """For a log-likelihood it is the second derivative, too; of other losses that is what is meant."""
    loss, kind, n_outputs = loss_of(name)
    outputs, targets = draw(kind, n_outputs)
    vectors = torch.stack(loss.fisher_cotangents(outputs, targets))
    found = torch.einsum("cna,cnb->nab", vectors, vectors)
    expected = loss.output_hessian(outputs, targets)
    if loss.has_probabilities:
        p = loss.probabilities(outputs)
        torch.testing.assert_close(p.sum(-1), torch.ones(N).double())
        assert p.shape == (N, loss.n_classes(n_outputs))
        expected = torch.zeros_like(expected)
        for c in range(p.shape[1]):
            g = loss.gradient(outputs, torch.full((N,), c))
            expected += p[:, c, None, None] * g[:, :, None] * g[:, None, :]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_vectors_of_the_second_derivative(name):
    loss, kind, n_outputs = loss_of(name)
    outputs, targets = draw(kind, n_outputs)
    vectors = loss.curvature_cotangents(outputs, targets)
    formulas = (CrossEntropy, BinaryCrossEntropy, SquaredError)
    assert (vectors is not None) == (type(loss) in formulas and not name.endswith("pos_weight"))
    if vectors is not None:
        found = torch.einsum("cna,cnb->nab", torch.stack(vectors), torch.stack(vectors))
        torch.testing.assert_close(found, loss.output_hessian(outputs, targets))


@pytest.mark.parametrize("name", [n for n in ALL if loss_of(n)[0].has_probabilities])
def test_sampled_classes_have_their_probabilities(name):
    loss, kind, n_outputs = loss_of(name)
    row, _ = draw(kind, n_outputs, lead=(1,))
    drawn = loss.sample_targets(row.expand(20_000, -1), torch.Generator().manual_seed(0))
    share = torch.bincount(drawn, minlength=loss.n_classes(n_outputs)) / len(drawn)
    torch.testing.assert_close(share.double(), loss.probabilities(row)[0], rtol=0, atol=0.015)
    log_prob = [loss.log_prob(row, torch.tensor([c])).exp() for c in range(len(share))]
    torch.testing.assert_close(torch.cat(log_prob), loss.probabilities(row)[0])


@pytest.mark.parametrize("loss", [SquaredError(), SquaredError(0.5, "sum")])
def test_sampled_numbers_have_the_variance_that_the_loss_stands_for(loss):
    """exp(-loss) is proportional to their density: the mean loss of C outputs is C/2."""
    outputs, _ = draw("regression", lead=(20_000,))
    drawn = loss.sample_targets(outputs, torch.Generator().manual_seed(0))
    assert abs(float((drawn - outputs).mean())) < 0.03
    np.testing.assert_allclose(loss(outputs, drawn).mean(), C / 2, rtol=0.02)


def test_targets_that_cannot_be_sampled_or_predicted():
    outputs, _ = draw("regression")
    for loss in (row_loss(nn.L1Loss(), (C,)), OneVsRestCrossEntropy(), row_loss(PerRow(), (C,))):
        with pytest.raises(ValueError, match="targets cannot be sampled for this loss"):
            loss.sample_targets(outputs, torch.Generator())
    with pytest.raises(ValueError, match="y must be given to transform"):
        row_loss(PerRow(), (C,)).predicted_targets(outputs)


@pytest.mark.parametrize("name", CASES)
def test_leading_axes(name):
    """A stack of models is outputs with one axis more."""
    loss, kind, n_outputs, _ = CASES[name]
    outputs, targets = draw(kind, n_outputs, lead=(3, N))
    rows, gradient = loss(outputs, targets), loss.gradient(outputs, targets)
    assert rows.shape == (3, N)
    for model in range(3):
        torch.testing.assert_close(rows[model], loss(outputs[model], targets[model]))
        torch.testing.assert_close(gradient[model], loss.gradient(outputs[model], targets[model]))


def test_cross_entropies_equal_sklearn():
    outputs, y = draw("logits")
    expected = log_loss(y, outputs.softmax(1).numpy(), labels=range(C))
    np.testing.assert_allclose(CrossEntropy()(outputs, y).mean(), expected, rtol=1e-12)
    logit, y = draw("binary logit")
    expected = log_loss(y, logit.sigmoid().numpy().ravel(), labels=[0, 1])
    np.testing.assert_allclose(BinaryCrossEntropy()(logit, y).mean(), expected, rtol=1e-12)


def test_binary_cross_entropy_does_not_overflow():
    logit = torch.tensor([[800.0], [-800.0], [-40.0]], dtype=torch.float64)
    loss = BinaryCrossEntropy()(logit, torch.tensor([0, 1, 0]))
    np.testing.assert_allclose(loss, [800.0, 800.0, np.exp(-40.0)], rtol=1e-6)


@pytest.mark.parametrize("loss", [BinaryCrossEntropy(), OneVsRestCrossEntropy()])
def test_small_losses_of_confident_rows_are_kept(loss):
    logit = torch.tensor([[40.0], [21.0]], dtype=torch.float64)
    y = torch.tensor([1, 1]) if loss.outputs_are == "binary logit" else torch.tensor([0, 0])
    np.testing.assert_allclose(loss(logit, y), np.exp([-40.0, -21.0]), rtol=1e-6)


def test_class_weight_is_kept_apart():
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    criterion = nn.CrossEntropyLoss(weight=weight)
    outputs, y = draw("logits")
    rows = row_loss(criterion, (C,))(outputs, y)
    torch.testing.assert_close(rows, F.cross_entropy(outputs, y, reduction="none"))
    torch.testing.assert_close((weight[y] * rows).sum() / weight[y].sum(), criterion(outputs, y))
    torch.testing.assert_close(losses.class_weight_of(criterion, C), weight)
    assert losses.class_weight_of(nn.MSELoss(), C) is None


def test_criterion_is_copied():
    criterion = nn.L1Loss()
    row_loss(criterion, (C,))
    assert criterion.reduction == "mean"


class PerRow(nn.Module):
    """A user's criterion that keeps to torch's convention."""

    reduction = "mean"

    def forward(self, outputs, targets):
        rows = (outputs - targets).abs().sqrt()
        return rows.mean() if self.reduction == "mean" else rows


@pytest.mark.parametrize("output_ndim", [1, 2])
def test_custom_criterion(output_ndim):
    outputs, targets = draw("regression", 1 if output_ndim == 1 else C)
    if output_ndim == 1:
        targets = targets[:, 0]
    loss = row_loss(PerRow(), (C,)[: output_ndim - 1])
    assert loss.outputs_are == "custom"
    shaped = outputs[:, 0] if output_ndim == 1 else outputs
    expected = (shaped - targets).abs().sqrt().reshape(N, -1).mean(1)
    torch.testing.assert_close(loss(outputs, targets), expected)


def bent(base: type) -> nn.Module:
    """A criterion that is derived from one of torch and is another function of the same outputs."""

    class Bent(base):
        def forward(self, outputs, targets):
            rows = super().forward(outputs, targets)
            return rows + 0.1 * rows**2

    return Bent()


@pytest.mark.parametrize("name", [n for n in CRITERIA if "L1" not in n and n != "Huber"])
def test_a_derived_criterion_is_its_own_function(name):
    criterion, kind, n_outputs = CRITERIA[name]
    outputs, targets = draw(kind, n_outputs)
    loss, exact = (
        row_loss(one, (n_outputs,)) for one in (bent(type(criterion)), type(criterion)())
    )
    assert loss.outputs_are == exact.outputs_are
    assert loss.is_classifier == exact.is_classifier
    assert loss.has_probabilities == exact.has_probabilities
    assert loss.constant_curvature(n_outputs) is None
    of_output = type(criterion)(reduction="none")(*as_criterion_wants(kind, outputs, targets))
    expected = (of_output + 0.1 * of_output**2).reshape(N, -1).mean(1)
    torch.testing.assert_close(loss(outputs, targets), expected)
    leaf = outputs.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(loss(leaf, targets).sum(), leaf, create_graph=True)
    torch.testing.assert_close(loss.gradient(outputs, targets), slopes.detach())
    curved = torch.stack(
        [
            torch.autograd.grad(slopes[:, c].sum(), leaf, retain_graph=True)[0]
            for c in range(n_outputs)
        ],
        dim=1,
    )
    torch.testing.assert_close(loss.output_hessian(outputs, targets), curved)


@pytest.mark.parametrize("criterion_class", [nn.BCEWithLogitsLoss, nn.BCELoss])
def test_multilabel_targets(criterion_class):
    outputs, _ = draw("logits")
    outputs = outputs.sigmoid()
    targets = (outputs > 0.5).double()
    loss = row_loss(criterion_class(), (C,))
    expected = criterion_class(reduction="none")(outputs, targets).mean(1)
    torch.testing.assert_close(loss(outputs, targets), expected)


class ScalarOnly(nn.Module):
    def forward(self, outputs, targets):
        return (outputs - targets).square().mean()


class IgnoresReduction(ScalarOnly):
    reduction = "mean"


@pytest.mark.parametrize(
    ("criterion", "error", "message"),
    [
        (F.mse_loss, TypeError, "must be an instance of torch.nn.Module"),
        (
            nn.MSELoss(reduction="sum"),
            ValueError,
            "must have reduction 'mean' or 'none', got 'sum'",
        ),
        (nn.BCELoss(weight=torch.ones(3)), ValueError, "use sample_weight in fit instead"),
    ],
)
def test_bad_criteria(criterion, error, message):
    with pytest.raises(error, match=message):
        row_loss(criterion, (1,))


def test_criterion_that_ignores_its_reduction():
    outputs, targets = draw("regression")
    loss = row_loss(IgnoresReduction(), (C,))
    with pytest.raises(ValueError, match="must give one loss per row when its reduction is 'none'"):
        loss(outputs, targets)


class Logcosh(nn.CrossEntropyLoss):
    """A mean of the user's own, of a criterion whose outputs are logits."""

    def forward(self, outputs, targets):
        return F.cross_entropy(outputs, targets, reduction="none").cosh().log().mean()


@pytest.mark.parametrize("criterion", [ScalarOnly(), IgnoresReduction(), Logcosh()], ids=str)
def test_a_criterion_that_gives_one_number_is_given_rows_alone(criterion):
    kind = "logits" if isinstance(criterion, Logcosh) else "regression"
    outputs, targets = draw(kind)
    loss = row_loss(criterion, (C,)).tried(outputs[:4], targets[:4])
    assert loss.is_classifier == (kind == "logits")
    expected = [criterion(outputs[i : i + 1], targets[i : i + 1]) for i in range(N)]
    torch.testing.assert_close(loss(outputs, targets), torch.stack(expected))
    for i in range(N):
        leaf = outputs[i : i + 1].clone().requires_grad_()
        (slope,) = torch.autograd.grad(criterion(leaf, targets[i : i + 1]), leaf)
        torch.testing.assert_close(loss.gradient(outputs, targets)[i : i + 1], slope)


class OfBatch(nn.Module):
    """No mean over rows: the root of one."""

    def forward(self, outputs, targets):
        return (outputs - targets).square().mean().sqrt()


class Branches(nn.Module):
    def forward(self, outputs, targets):
        return outputs.sum() if outputs.sum() > 0 else targets.sum()


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (OfBatch(), "OfBatch must be a mean over rows: it gives .* together, and .* alone"),
        (
            Branches(),
            "Branches must give a number for a row alone, in functions of torch that vmap",
        ),
    ],
)
def test_criteria_that_are_no_mean_over_rows(criterion, message):
    outputs, targets = draw("regression")
    with pytest.raises(TypeError, match=message):
        row_loss(criterion, (C,)).tried(outputs[:4], targets[:4])
