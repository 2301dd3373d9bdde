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

from fimoda import GradDot
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
