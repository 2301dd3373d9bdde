"""Seconds that `attribute` thinks its methods take, and what they take; and their peak memory.

    python benchmarks/attribute_estimates.py [--case NAME] [--cap SECONDS]

Ten networks: tables, a convolution, an encoder, a recurrent one. All seconds are those of the processor, on
one thread, so that other work on the machine does not count. Further training leaves 20 rows out, with two
seeds. Methods that are thought to take more than the cap are not run. Memory is the peak above what the
process has before, in parts of the method's `memory_budget`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import skorch
import torch
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_digits,
    make_classification,
    make_regression,
)
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler
from torch import nn

from fimoda import FurtherTraining, trials
from fimoda.attribution.choice import ladder_for
from fimoda.trials import Trial

N_TEST = 30

#: Seconds that `attribute` is given.
BUDGET = 120.0


def mlp(*widths: int, unit: type[nn.Module] = nn.ReLU) -> nn.Module:
    """Return a chain of linear layers with units between them."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), unit()]
    return nn.Sequential(*layers[:-1])


class Encoder(nn.Module):
    """A transformer encoder with two layers."""

    def __init__(self, vocabulary: int = 500, width: int = 32):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 2)

    def forward(self, X: Any) -> Any:
        return self.head(self.layers(self.tokens(X)).mean(1))


class Recurrent(nn.Module):
    """A GRU with a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 24, batch_first=True)
        self.head = nn.Linear(24, 3)

    def forward(self, X: Any) -> Any:
        return self.head(self.gru(X)[0][:, -1])


def convolution() -> nn.Module:
    """Return the network of the digits."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


def table(X: Any, y: Any, n: int | None = None) -> tuple[Any, Any]:
    """Return standardised rows, in an order drawn once, at most n and some to test."""
    order = np.random.default_rng(0).permutation(len(X))[: None if n is None else n + N_TEST]
    return StandardScaler().fit_transform(X)[order].astype(np.float32), y[order]


def numbers(y: Any) -> Any:
    """Return targets of a regression, scaled."""
    return ((y - y.mean()) / y.std()).astype(np.float32)[:, None]


def digits(n: int) -> tuple[Any, Any]:
    """Return images of digits."""
    X, y = load_digits(return_X_y=True)
    return (X / 16).astype(np.float32).reshape(-1, 1, 8, 8)[: n + N_TEST], y[: n + N_TEST]


def net(module: nn.Module, X: Any, y: Any, epochs: int, **given: Any) -> Any:
    """Return a trained skorch net."""
    kind = skorch.NeuralNetRegressor if y.dtype == np.float32 else skorch.NeuralNetClassifier
    if y.dtype != np.float32:
        given = {"criterion": nn.CrossEntropyLoss, **given}
    own = {"lr": 0.05, "batch_size": 64, "max_epochs": epochs, "train_split": None, "verbose": 0}
    return kind(module, **own | given).fit(X[:-N_TEST], y[:-N_TEST])


def case(name: str) -> tuple[Any, Any, Any]:
    """Return a trained model with its rows; the last are for tests."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    adam = {"optimizer": torch.optim.Adam, "lr": 1e-3}
    if name == "breast cancer, 30-64-64-2":
        X, y = table(*load_breast_cancer(return_X_y=True))
        return net(mlp(30, 64, 64, 2), X, y, 10), X, y
    if name == "diabetes, 10-32-1, tanh":
        X, y = load_diabetes(return_X_y=True)
        X, y = table(X, numbers(y))
        return net(mlp(10, 32, 1, unit=nn.Tanh), X, y, 10), X, y
    if name == "regression, 2,000 rows, 8-128-128-1":
        X, y = make_regression(2000 + N_TEST, 8, noise=5.0, random_state=0)
        X, y = table(X, numbers(y))
        return net(mlp(8, 128, 128, 1), X, y, 10), X, y
    if name == "digits as rows, 1,000, 64-64-10":
        X, y = digits(1000)
        return net(mlp(64, 64, 10), X.reshape(len(X), -1), y, 10), X.reshape(len(X), -1), y
    if name == "19,800 rows, 16-128-64-26":
        own = {"n_features": 16, "n_informative": 12, "n_classes": 26, "class_sep": 2.0}
        X, y = table(*make_classification(19800 + N_TEST, **own, random_state=0))
        return net(mlp(16, 128, 64, 26), X, y, 4), X, y
    if name == "digits, 600, convolutions":
        X, y = digits(600)
        return net(convolution(), X, y, 15), X, y
    if name == "digits, 1,500, convolutions, Adam":
        X, y = digits(1500)
        return net(convolution(), X, y, 5, **adam), X, y
    if name == "encoder, 800 sentences":
        X = rng.integers(0, 500, size=(800 + N_TEST, 16))
        y = (X < 100).any(1).astype(np.int64)
        return net(Encoder(), X, y, 5), X, y
    if name == "GRU, 500 sequences":
        X = rng.normal(size=(500 + N_TEST, 10, 8)).astype(np.float32)
        y = np.digitize(X[:, :, 0].sum(1), [-2, 2])
        return net(Recurrent(), X, y, 5), X, y
    if name == "MLPClassifier, 5,000 rows, 20-50-50-1":
        X, y = make_classification(5000 + N_TEST, random_state=0)
        return MLPClassifier((50, 50), max_iter=10, random_state=0).fit(X, y), X, y
    raise ValueError(name)


CASES = (
    "breast cancer, 30-64-64-2", "diabetes, 10-32-1, tanh", "regression, 2,000 rows, 8-128-128-1",
    "digits as rows, 1,000, 64-64-10", "19,800 rows, 16-128-64-26", "digits, 600, convolutions",
    "digits, 1,500, convolutions, Adam", "encoder, 800 sentences", "GRU, 500 sequences",
    "MLPClassifier, 5,000 rows, 20-50-50-1",
)  # fmt: skip


def peak() -> int:
    """Return the bytes of the most memory since `forget_peak`, or since the beginning."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def forget_peak() -> int:
    """Start to look for the peak of memory again; return what is taken now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def measured(name: str, cap: float) -> list[dict[str, Any]]:
    """Return for each method its estimate, what it takes, and its memory."""
    torch.set_num_threads(1)
    trials.clock = time.process_time
    model, X, y = case(name)
    rows, test = (X[:-N_TEST], y[:-N_TEST], None), (X[-N_TEST:], y[-N_TEST:])
    settings = {"random_state": 0, "n_epochs": 5}
    ladder = ladder_for(model, rows, test, BUDGET, settings)
    trial = Trial(*rows, test, len(y) - N_TEST, N_TEST, lambda: BUDGET)
    found = []
    for candidate in ladder.candidates:
        method = candidate.attributor
        if isinstance(method, FurtherTraining):
            method = FurtherTraining(model, leave_out=20, n_seeds=2, **settings)
        line: dict[str, Any] = {"case": name, "method": candidate.name}
        begun = time.process_time()
        try:
            line["estimate"] = method._expected_seconds(trial)
            line["trial"] = time.process_time() - begun
            if line["estimate"] < cap:
                before, begun = forget_peak(), time.process_time()
                method.fit(rows[0], rows[1]).transform(*test)
                line["seconds"] = time.process_time() - begun
                line["memory"] = (peak() - before) / getattr(method, "memory_budget", 2**29)
        except Exception as error:
            line["failed"] = f"{type(error).__name__}: {error}"
        found.append(line)
        print(json.dumps(line), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", default=None)
    parser.add_argument("--cap", type=float, default=60.0)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.case is not None:
        measured(given.case, given.cap)
        return
    lines = []
    for name in CASES:
        call = [sys.executable, __file__, "--case", name, "--cap", str(given.cap)]
        out = subprocess.run(call, capture_output=True, text=True, check=False).stdout
        lines += [json.loads(line) for line in out.splitlines()]
    print("| case | method | estimate | seconds | ratio | memory / budget |")
    print("| --- | --- | --- | --- | --- | --- |")
    for line in lines:
        taken, estimate = line.get("seconds"), line.get("estimate", float("nan"))
        told = line.get("failed", "") if taken is None else f"{estimate / taken:.2f}"
        memory = f"{line['memory']:.2f}" if "memory" in line else ""
        seconds = "" if taken is None else f"{taken:.2f}"
        print(
            f"| {line['case']} | {line['method']} | {estimate:.2f} | {seconds} | {told} | {memory} |"
        )


if __name__ == "__main__":
    main()
