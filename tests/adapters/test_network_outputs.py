"""What modules return: tuples, lists, dicts and outputs of `transformers`, against plain autograd."""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace

import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fimoda import DataInf, GradDot
from fimoda.adapters import as_final_model

rng = np.random.default_rng(0)
X = rng.normal(size=(7, 4))
Y = np.arange(7) % 3

Named = namedtuple("Named", "loss logits")


class Returns(nn.Module):
    """A linear classifier, whose outputs lie somewhere in what it returns."""

    def __init__(self, returned):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 3)
        self.returned = returned

    def forward(self, x):
        return self.returned(self.linear(x), x)


RETURNED = {
    "tensor": lambda o, x: o,
    "tuple": lambda o, x: (o, x),
    "list": lambda o, x: [o, x],
    "dict": lambda o, x: {"hidden": x, "logits": o},
    "named tuple": lambda o, x: Named(x.sum(), o),
    "object": lambda o, x: SimpleNamespace(logits=o, hidden=x),
    "only fitting": lambda o, x: {"loss": x.sum(), "ids": o.argmax(1), "scores": o},
    "tuple with None": lambda o, x: (None, o),
}


def plain_gradients(module, X, y):
    """Gradients of each row's cross-entropy, row by row."""
    found = []
    for x, label in zip(torch.as_tensor(X), y, strict=True):
        loss = F.cross_entropy(module(x[None]), torch.tensor([label]))
        parts = torch.autograd.grad(loss, list(module.parameters()))
        found.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(found)


@pytest.mark.parametrize("name", RETURNED)
def test_outputs_are_found(name):
    module = Returns(RETURNED[name]).double()
    method = GradDot(module, criterion=nn.CrossEntropyLoss(), lr=1.0, reweight_others=False)
    gradients = plain_gradients(module.linear, X, Y)
    expected = gradients @ gradients.mT / len(X)
    np.testing.assert_allclose(method.fit(X, Y).transform(X, Y), expected, rtol=1e-9)


@pytest.mark.parametrize(
    "returned",
    [
        lambda o, x: {"first": o, "second": x},
        lambda o, x: {"ids": o.argmax(1)},
        lambda o, x: (),
        lambda o, x: None,
    ],
    ids=["two that fit", "no numbers", "empty", "nothing"],
)
def test_what_was_returned_is_told(returned):
    with pytest.raises(ValueError, match=r"^estimator must return its outputs .* returned \w+"):
        as_final_model(Returns(returned), X.astype(np.float32), criterion=nn.CrossEntropyLoss())


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_models_of_transformers_as_they_come(name):
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    module = getattr(networks, name)().double().eval()
    rows = networks._padded(np.random.default_rng(0), 5)
    model = as_final_model(module, rows, criterion=nn.CrossEntropyLoss())
    tensors = {key: torch.as_tensor(part) for key, part in rows.items()}
    with torch.no_grad():
        expected = module(**tensors).logits
    torch.testing.assert_close(model.outputs(model.encode_X(rows)), expected, rtol=1e-9, atol=1e-12)


def test_caches_are_switched_off_in_the_copy_alone():
    pytest.importorskip("transformers")
    module = networks.gpt2().eval()
    assert module.config.use_cache
    rows = networks._padded(np.random.default_rng(0), 5)
    model = as_final_model(module, rows, criterion=nn.CrossEntropyLoss())
    assert module.config.use_cache
    assert not model.module.config.use_cache


def test_a_model_that_takes_one_row_alone_says_so():
    pytest.importorskip("transformers")
    module = networks.gpt2().eval()
    module.config.pad_token_id = None
    rows = {"input_ids": networks._tokens(np.random.default_rng(0), 5)}
    with pytest.raises(ValueError, match=r"on one row of X, but not on 4 at a time: .*padding"):
        as_final_model(module, rows, criterion=nn.CrossEntropyLoss())


class Gaussian(nn.Module):
    """A mean and a variance, as a tuple or side by side."""

    def __init__(self, apart: bool, flat: bool):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 2)
        self.apart, self.flat = apart, flat

    def forward(self, x):
        mean, variance = self.linear(x).split(1, 1)
        variance = F.softplus(variance)
        if self.flat:
            mean, variance = mean[:, 0], variance[:, 0]
        return (mean, variance) if self.apart else torch.cat([mean, variance], 1)


@pytest.mark.parametrize(("apart", "flat"), [(True, True), (True, False), (False, False)])
def test_a_mean_and_a_variance(apart, flat):
    module, criterion = Gaussian(apart, flat).double(), nn.GaussianNLLLoss()
    y = rng.normal(size=7)
    method = GradDot(module, criterion=criterion, lr=1.0, reweight_others=False).fit(X, y)
    found = []
    for x, target in zip(torch.as_tensor(X), torch.as_tensor(y), strict=True):
        mean, variance = Gaussian.forward(module, x[None]) if apart else module(x[None]).split(1, 1)
        loss = criterion(mean.reshape(-1), target[None], variance.reshape(-1))
        parts = torch.autograd.grad(loss, list(module.parameters()))
        found.append(torch.cat([part.reshape(-1) for part in parts]))
    gradients = torch.stack(found)
    np.testing.assert_allclose(method.transform(X, y), gradients @ gradients.mT / 7, rtol=1e-9)


def test_a_criterion_that_gives_one_number():
    class Mine(nn.Module):
        def forward(self, outputs, targets):
            return F.cross_entropy(outputs, targets)

    module = nn.Linear(4, 3).double()
    settings = {"lr": 1.0, "reweight_others": False}
    own, known = (
        GradDot(module, criterion=criterion, **settings).fit(X, Y).transform(X, Y)
        for criterion in (Mine(), nn.CrossEntropyLoss())
    )
    np.testing.assert_allclose(own, known, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_with_a_warning(dtype):
    module = nn.Linear(4, 3).to(dtype)
    rows = X.astype(np.float32)
    with pytest.warns(UserWarning, match=rf"{dtype}, whose rounding .* float32") as told:
        model = as_final_model(module, rows, Y, criterion=nn.CrossEntropyLoss())
    assert len(told) == 1
    assert model.dtype == torch.float32
    assert module.weight.dtype == dtype
    same = as_final_model(module.float(), rows, Y, criterion=nn.CrossEntropyLoss())
    assert torch.equal(model.outputs(model.encode_X(rows)), same.outputs(same.encode_X(rows)))


def test_adapters_in_float32_on_a_base_in_half_precision():
    pytest.importorskip("peft")
    module = networks.lora()
    for p in module.parameters():
        if not p.requires_grad:
            p.data = p.data.bfloat16()
    rows = networks._padded(np.random.default_rng(0), 5)
    with pytest.warns(UserWarning, match="computed in float32"):
        model = as_final_model(module.eval(), rows, criterion=nn.CrossEntropyLoss())
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    assert torch.isfinite(model.outputs(model.encode_X(rows))).all()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_that_hooks_compute():
    """The old weight norm holds a weight of its last call, which no copy may keep."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.utils.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)
    ).double()
    module(torch.as_tensor(X)).sum().backward()
    method = GradDot(module, criterion=nn.CrossEntropyLoss(), lr=1.0, reweight_others=False)
    gradients = plain_gradients(module, X, Y)
    expected = gradients @ gradients.mT / len(X)
    np.testing.assert_allclose(method.fit(X, Y).transform(X, Y), expected, rtol=1e-9)
    method.model_.at(method.model_.theta)  # copied after calls with gradients
    own = [p.numel() for p in module[0].parameters()]
    expected = 0.0
    for G in gradients.split([sum(own), gradients.shape[1] - sum(own)], 1):
        by_row = [torch.outer(g, g) + 0.1 * torch.eye(len(g), dtype=g.dtype) for g in G]
        mean = torch.stack([torch.linalg.inv(matrix) for matrix in by_row]).mean(0)
        expected = expected + G @ mean @ G.mT / len(X)
    found = DataInf(module, criterion=nn.CrossEntropyLoss(), damping=0.1, reweight_others=False)
    np.testing.assert_allclose(found.fit(X, Y).transform(X, Y), expected, rtol=1e-9)
