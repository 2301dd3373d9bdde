"""Fine-tuning as it is done on text, less than an epoch of it: against a plain loop in float64."""

from __future__ import annotations

import copy

import networks
import numpy as np
import pytest
import skorch
import torch
from naive import close
from skorch.callbacks import GradientNormClipping, LRScheduler
from torch import nn
from torch.nn.utils import clip_grad_norm_

from fimoda import FurtherTraining, UnrolledDifferentiation, attribute

pytest.importorskip("transformers")

N, BATCH, SEED, STEPS = 16, 4, 3, 2
LEFT_OUT = [0, 5]
LR, HEAD, NOW = 1e-2, 5e-2, 0.5  # what is left of the learning rates after an epoch


def rows(n: int = N + 2):
    rng = np.random.default_rng(0)
    X, y = networks._padded(rng, n), rng.integers(3, size=n)
    parts = [({k: v[s] for k, v in X.items()}, y[s]) for s in (slice(N), slice(N, None))]
    return *parts[0], *parts[1]


@pytest.fixture(scope="module")
def net() -> skorch.NeuralNet:
    """AdamW without decay of biases, a fast head, clipping, and a rate that falls with every step."""
    X, y, *_ = rows()
    torch.manual_seed(0)
    module = networks.hugging_face(lambda: networks.bert(dropout=0.0))().double()
    return skorch.NeuralNetClassifier(
        module,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        optimizer__weight_decay=0.1,
        optimizer__param_groups=[
            ("*.bias", {"weight_decay": 0.0}),
            ("*classifier*", {"lr": HEAD}),
        ],
        lr=LR,
        batch_size=BATCH,
        max_epochs=1,
        train_split=None,
        verbose=0,
        callbacks=[
            GradientNormClipping(1.0),
            LRScheduler(
                torch.optim.lr_scheduler.LambdaLR,
                lr_lambda=lambda step: 1 - step * NOW * BATCH / N,
                step_every="batch",
            ),
        ],
    ).fit(X, y)


def losses(net: skorch.NeuralNet, row: int | None) -> np.ndarray:
    """Losses of the test rows after some more steps, without a row."""
    X, y, X_test, y_test = rows()
    module = copy.deepcopy(net.module_).train()
    named = dict(module.named_parameters())
    biases = [name for name in named if name.endswith(".bias")]
    head = [name for name in named if "classifier" in name and name not in biases]
    others = [name for name in named if name not in biases + head]
    groups = [
        {"params": [named[name] for name in biases], "weight_decay": 0.0},
        {"params": [named[name] for name in head], "lr": HEAD * NOW},
        {"params": [named[name] for name in others]},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR * NOW, weight_decay=0.1)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(SEED))
    for batch in order.split(BATCH)[:STEPS]:
        kept = batch[batch != row] if row is not None else batch
        outputs = module(**{k: torch.from_numpy(v[kept]) for k, v in X.items()})
        optimizer.zero_grad()
        nn.functional.cross_entropy(outputs, torch.from_numpy(y[kept])).backward()
        clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        outputs = module.eval()(**{k: torch.from_numpy(v) for k, v in X_test.items()})
    return nn.functional.cross_entropy(outputs, torch.from_numpy(y_test), reduction="none").numpy()


def test_half_an_epoch_of_fine_tuning(net):
    X, y, X_test, y_test = rows()
    gold = FurtherTraining(net, n_epochs=0.5, n_seeds=[SEED], leave_out=LEFT_OUT).fit(X, y)
    scores = gold.transform(X_test, y_test)
    full = losses(net, None)
    close(scores, np.stack([losses(net, row) - full for row in LEFT_OUT], 1), 1e-8)
    text = attribute(net, *rows(), method=gold).process
    assert "0.5 epochs of AdamW, learning rate 0.005" in text
    assert "2 parameter groups, max_grad_norm 1" in text


def test_unrolled_through_half_an_epoch(net):
    """Forwards and backwards."""
    X, y, X_test, y_test = rows()
    shared = {"n_epochs": 0.5, "n_seeds": [SEED], "leave_out": LEFT_OUT}
    backwards, forwards = (
        UnrolledDifferentiation(net, mode=mode, **shared, order="own")
        .fit(X, y)
        .transform(X_test, y_test)
        for mode in ("adjoint", "forward")
    )
    close(forwards, backwards, 1e-8)
