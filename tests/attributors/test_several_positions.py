"""Networks with several positions a row, against plain loops with the user's own criterion, in float64."""

from __future__ import annotations

import functools

import networks
import numpy as np
import pytest
import skorch
import torch
from naive import Naive
from torch import nn

from fimoda import CGInfluence, ExactInfluence, FurtherTraining, GradDot

N, T, C, M = 9, 4, 5, 2
CRITERION = nn.CrossEntropyLoss()


class Words(nn.Module):
    """A small model of the next word, whose classes are on the axis that is asked for."""

    def __init__(self, second: bool = False):
        super().__init__()
        self.tokens = nn.Embedding(C, 3)
        self.mix = nn.Conv1d(3, 3, 2, padding=1)
        self.head = nn.Linear(3, C)
        self.second = second

    def forward(self, ids):
        hidden = torch.tanh(self.mix(self.tokens(ids).mT)[..., :-1]).mT
        outputs = self.head(hidden)
        return outputs.mT if self.second else outputs


def words(second: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return Words(second).double()


rng = np.random.default_rng(0)
X, X_TEST = rng.integers(C, size=(N, T)), rng.integers(C, size=(M, T))


def following(ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    y = np.full_like(ids, -100)
    y[:, :-1] = ids[:, 1:]
    y[np.arange(T) >= lengths[:, None]] = -100
    return y


Y = following(X, rng.integers(1, T + 1, size=N))
Y_TEST = following(X_TEST, np.array([3, 2]))
COUNTS = torch.as_tensor((Y != -100).sum(1)).double()


def row_losses(module: nn.Module, X, y) -> list[torch.Tensor]:
    """The user's criterion of each row alone, by torch's order of axes."""
    found = []
    for ids, target in zip(torch.as_tensor(X), torch.as_tensor(y), strict=True):
        outputs = module(ids[None])
        outputs = outputs if module.second else outputs.mT
        found.append(CRITERION(outputs, target[None]))
    return found


def flat(parts) -> torch.Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def gradients(module: nn.Module, X, y) -> torch.Tensor:
    parameters = list(module.parameters())
    return torch.stack([flat(torch.autograd.grad(v, parameters)) for v in row_losses(module, X, y)])


@pytest.mark.parametrize("second", [False, True])
def test_grad_dot(second):
    module = words(second)
    method = GradDot(module, criterion=CRITERION, lr=1.0, reweight_others=False).fit(X, Y)
    share = COUNTS / COUNTS.sum()
    expected = gradients(module, X_TEST, Y_TEST) @ gradients(module, X, Y).mT * share
    np.testing.assert_allclose(method.transform(X_TEST, Y_TEST), expected, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(method._objective.value(), float(whole(module)), rtol=1e-12)


def whole(module: nn.Module) -> torch.Tensor:
    """The criterion on all rows as one batch: what it was made for."""
    outputs = module(torch.as_tensor(X))
    return CRITERION(outputs if module.second else outputs.mT, torch.as_tensor(Y))


def gauss_newton(module: nn.Module) -> torch.Tensor:
    """The matrix, position by position: J' (diag(p) - p p') J over the number of all positions."""
    parameters = list(module.parameters())
    total = 0.0
    for ids, target in zip(torch.as_tensor(X), torch.as_tensor(Y), strict=True):
        for outputs, label in zip(module(ids[None])[0], target, strict=True):
            if label == -100:
                continue
            rows = [
                flat(torch.autograd.grad(f, parameters, retain_graph=True, materialize_grads=True))
                for f in outputs
            ]
            J, p = torch.stack(rows), outputs.softmax(0).detach()
            total = total + J.mT @ (torch.diag(p) - torch.outer(p, p)) @ J
    return total / int(COUNTS.sum())


@pytest.mark.parametrize(
    ("method", "budget"), [(ExactInfluence, 2**29), (CGInfluence, 2**29), (CGInfluence, 2**16)]
)
def test_influence(method, budget):
    module, damping = words(), 0.1
    settings = {"criterion": CRITERION, "damping": damping, "reweight_others": False}
    if method is CGInfluence:
        settings |= {"tol": 1e-12, "memory_budget": budget}
    found = method(module, **settings).fit(X, Y).transform(X_TEST, Y_TEST)
    matrix = gauss_newton(module)
    matrix = matrix + damping * torch.eye(len(matrix), dtype=torch.float64)
    solved = torch.linalg.solve(matrix, gradients(module, X_TEST, Y_TEST).mT)
    expected = (gradients(module, X, Y) @ solved).mT * COUNTS / COUNTS.sum()
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("second", [False, True])
def test_further_training_is_that_of_torchs_criterion(second):
    module = words(second)
    ids, y = torch.as_tensor(X), torch.as_tensor(Y)

    def objective(outputs, targets, rows):
        return CRITERION(outputs if second else outputs.mT, targets)

    def measure(outputs, targets):
        ordered = outputs if second else outputs.mT
        return torch.stack(
            [CRITERION(f[None], t[None]) for f, t in zip(ordered, targets, strict=True)]
        )

    naive = Naive(module, ids, y, objective, measure, lr=0.3, batch_size=4)
    rows = [0, 5]
    method = FurtherTraining(
        module, criterion=CRITERION, n_epochs=2, lr=0.3, batch_size=4, optimizer="SGD", n_seeds=1,
        leave_out=rows, random_state=0,
    )  # fmt: skip
    found = method.fit(X, Y).transform(X_TEST, Y_TEST)
    seed = int(method.seeds_[0])
    ends = []
    for left_out in (None, *rows):
        *_, trained = naive.train(seed, left_out, "mask", 2)
        ends.append(naive.measured(trained, torch.as_tensor(X_TEST), torch.as_tensor(Y_TEST)))
    expected = np.stack([end - ends[0] for end in ends[1:]], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-10)


def test_a_net_trained_with_torchs_criterion():
    """Its classes are on the second axis, whatever the number of positions."""
    kind = functools.partial(Words, second=True)
    net = skorch.NeuralNet(
        kind, criterion=nn.CrossEntropyLoss, max_epochs=1, lr=0.1, train_split=None, verbose=0
    )
    ids = rng.integers(C, size=(N, C))  # as many positions as classes
    y = np.where(rng.random((N, C)) < 0.3, -100, np.roll(ids, -1, 1))
    y[:, 0] = ids[:, 1]
    net.fit(ids, y)
    net.module_.double()
    counts = torch.as_tensor((y != -100).sum(1)).double()
    expected = gradients(net.module_.eval(), ids, y)
    expected = expected @ expected.mT * counts / counts.sum()
    method = GradDot(net, lr=1.0, batch_size=N, reweight_others=False)
    np.testing.assert_allclose(
        method.fit(ids, y).transform(ids, y), expected, rtol=1e-9, atol=1e-13
    )


def test_as_many_positions_as_classes_in_a_bare_module():
    ids = rng.integers(C, size=(N, C))
    with pytest.warns(UserWarning, match="the last axis is taken for the classes"):
        method = GradDot(words(), criterion=CRITERION, lr=1.0, reweight_others=False).fit(ids, ids)
    expected = gradients(words(), ids, ids)
    np.testing.assert_allclose(method.transform(ids, ids), expected @ expected.mT / N, rtol=1e-9)


def test_targets_that_fit_no_axis():
    with pytest.raises(
        ValueError, match=r"y of shape \(n_rows, 4\) .*, or \(n_rows, 5\) .*\(9, 3\)"
    ):
        GradDot(words(), criterion=CRITERION).fit(X, Y[:, :3])


def test_predicted_words_stand_for_targets():
    method = GradDot(words(), criterion=CRITERION, lr=1.0, reweight_others=False).fit(X, Y)
    predicted = words()(torch.as_tensor(X_TEST)).argmax(-1).numpy()
    np.testing.assert_array_equal(method.transform(X_TEST), method.transform(X_TEST, predicted))


def test_causal_models_of_transformers_as_they_come():
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    module = networks.gpt2(causal=True).double().eval()
    rows = networks._padded(np.random.default_rng(0), 5)
    y = networks._next_tokens(rng, 5, rows)
    assert len({*(y != -100).sum(1)}) > 1
    method = GradDot(module, criterion=CRITERION, lr=1.0, reweight_others=False).fit(rows, y)
    found, counts = [], torch.as_tensor((y != -100).sum(1)).double()
    for i in range(5):
        one = {name: torch.as_tensor(part[i : i + 1]) for name, part in rows.items()}
        labels = torch.as_tensor(np.where(rows["attention_mask"], rows["input_ids"], -100))[
            i : i + 1
        ]
        loss = module(**one, labels=labels, num_items_in_batch=None).loss  # shifted inside
        found.append(flat(torch.autograd.grad(loss, list(module.parameters()))))
    expected = torch.stack(found)
    expected = expected @ expected.mT * counts / counts.sum()
    # its own loss is computed in float32
    np.testing.assert_allclose(method.transform(rows, y), expected, rtol=1e-5, atol=1e-6)


def test_rows_go_through_a_few_at_a_time_where_outputs_are_many():
    settings = {"criterion": CRITERION, "lr": 1.0}
    whole, parts = (
        GradDot(words(), memory_budget=budget, **settings).fit(X, Y) for budget in (2**29, 2**9)
    )
    assert parts._objective.together == 1
    np.testing.assert_allclose(whole.transform(X, Y), parts.transform(X, Y), rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(parts._objective.value(), whole._objective.value(), rtol=1e-12)
