"""Further training and retraining of networks of every kind against a plain loop in float64."""

from __future__ import annotations

import copy
import warnings

import networks
import numpy as np
import pytest
import skorch
import torch
import torch.nn.functional as F
from naive import relative
from torch import nn

from fimoda import FurtherTraining, LeaveOneOut

LR, MOMENTUM, BATCH, EPOCHS, SEEDS, ROWS = 0.05, 0.9, 6, 2, [1, 4], [3, 10]

#: Networks, and what batch normalisation does in them.
CASES = [
    ("conv", "update"),
    ("resnet9, batch norm", "update"),
    ("resnet9, batch norm", "frozen"),
    ("resnet9, group norm", "update"),
    ("encoder", "update"),
    ("decoder, tied", "update"),
    ("bert", "update"),
    ("lstm", "update"),
    ("two inputs", "update"),
]


def taken(inputs, rows):
    if isinstance(inputs, dict):
        return {name: taken(part, rows) for name, part in inputs.items()}
    part = torch.as_tensor(inputs[rows])
    return part.double() if part.is_floating_point() else part


def outputs_of(module, x):
    return module(**x) if isinstance(x, dict) else module(x)


def has_batch_norm(module):
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())


def trained(case, seed, left_out, mode, statistics):
    """A copy of the module after training without a row, by a loop of torch's own."""
    module = copy.deepcopy(case.model).train()
    for part in module.modules() if statistics == "frozen" else ():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()
    optimizer = torch.optim.SGD(module.parameters(), lr=LR, momentum=MOMENTUM)
    order_of = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    for _ in range(EPOCHS):
        order = torch.randperm(len(case.y), generator=order_of)
        if mode == "drop":
            order = order[order != left_out]
        for rows in order.split(BATCH):
            kept = rows != left_out
            if has_batch_norm(module) and statistics == "update":
                # the row is not in the batch at all: none of these networks has dropout, too
                rows, kept = rows[kept], kept[kept]
            outputs = outputs_of(module, taken(case.X, rows))[kept]
            optimizer.zero_grad()
            F.cross_entropy(outputs, torch.as_tensor(case.y)[rows[kept]]).backward()
            optimizer.step()
    return module.eval()


def losses(module, case):
    x = taken(case.X_test, np.arange(len(case.y_test)))
    with torch.no_grad():
        found = outputs_of(module, x)
    return F.cross_entropy(found, torch.as_tensor(case.y_test), reduction="none").numpy()


@pytest.fixture(scope="module")
def zoo():
    known = {}

    def found(name):
        if name in networks.NEEDS:
            pytest.importorskip(networks.NEEDS[name])
        if name not in known:
            known[name] = networks.bare(name, torch.float64)
        return known[name]

    return found


@pytest.mark.parametrize("engine", ["vmap", "loop"])
@pytest.mark.parametrize("mode", ["mask", "drop"])
@pytest.mark.parametrize(("name", "statistics"), CASES)
@pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:Before training")
def test_further_training_is_a_plain_loop(zoo, name, statistics, mode, engine):
    if (name, engine) == ("encoder", "vmap"):
        pytest.skip("vmap draws the dropout of nn.MultiheadAttention in another order")
    case = zoo(name)
    gold = FurtherTraining(
        case.model, n_epochs=EPOCHS, n_seeds=SEEDS, leave_out=ROWS, leave_out_mode=mode, lr=LR,
        optimizer="SGD", optimizer_params={"momentum": MOMENTUM}, batch_size=BATCH, engine=engine,
        batch_statistics=statistics, **case.params,
    )  # fmt: skip
    found = gold.fit(case.X, case.y).transform(case.X_test, case.y_test)
    expected = np.zeros((len(case.y_test), len(ROWS)))
    with torch.random.fork_rng():
        for seed in SEEDS:
            full = losses(trained(case, seed, -1, "mask", statistics), case)
            for k, row in enumerate(ROWS):
                without = losses(trained(case, seed, row, mode, statistics), case)
                expected[:, k] += (without - full) / len(SEEDS)
    assert relative(found, expected) < 1e-8


def test_retraining_with_batch_normalisation_is_the_net_s_own_fit():
    """In the order of the rows, with the same initial parameters; running statistics included."""
    case = networks.case("resnet9, batch norm", epochs=1)
    settings = {
        "criterion": nn.CrossEntropyLoss, "optimizer": torch.optim.SGD, "lr": LR, "batch_size": BATCH,
        "max_epochs": 3, "train_split": None, "verbose": 0, "iterator_train__shuffle": False,
    }  # fmt: skip
    net = skorch.NeuralNetClassifier(networks.ResNet9, **settings).fit(case.X, case.y)
    method = LeaveOneOut(net, n_seeds=[5], leave_out=ROWS)
    found = method.fit(case.X, case.y).transform(case.X_test, case.y_test)

    def own(kept):
        torch.manual_seed(5)
        again = skorch.NeuralNetClassifier(networks.ResNet9, **settings)
        again.fit(case.X[kept], case.y[kept])
        outputs = torch.from_numpy(again.forward(case.X_test).numpy())
        return F.cross_entropy(outputs, torch.from_numpy(case.y_test), reduction="none").numpy()

    with torch.random.fork_rng():
        everything = np.arange(len(case.y))
        full = own(everything)
        expected = np.stack([own(np.delete(everything, row)) - full for row in ROWS], 1)
    assert relative(found, expected) < 1e-3


def test_frozen_statistics_that_diverge_are_told(zoo):
    case = zoo("resnet9, batch norm")
    settings = {
        "n_epochs": 1, "n_seeds": [1], "leave_out": [2], "optimizer": "SGD", "optimizer_params": {},
        "batch_size": BATCH, "batch_statistics": "frozen", **case.params,
    }  # fmt: skip
    with pytest.warns(
        RuntimeWarning, match="'frozen' lets further training diverge: its first epoch"
    ):
        FurtherTraining(case.model, lr=3.0, **settings).fit(case.X, case.y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FurtherTraining(case.model, lr=0.001, **settings).fit(case.X, case.y)
