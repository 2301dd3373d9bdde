"""Speed of training many networks against a plain loop of torch, as ratios in one run on one thread.

    python benchmarks/engine.py [--seconds 5] [--data path/to/data] [NAME ...]

The plain loop trains one model: rows of a batch, forward, ``backward``, ``step``. fimoda's sides are a run
that trains models one after the other (``engine="loop"``) and as a stack (``engine="vmap"``, as many as its
stack has). Seconds are those of the process, without what others take of the machine; every round times all
three in turn, and ratios of the fastest rounds are printed, with the way that ``engine="auto"`` takes in a
long run. A round of a single model is as many epochs as make 40 steps, 4 of MiniLM. CIFAR-10 and SST-2 come
from `--data` or FIMODA_DATA; without them such cases are left out. In the plain loop, too, sentences are cut
to the longest of a batch.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import minilm
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fimoda import as_final_model
from fimoda.datasets import load_cifar10
from fimoda.objective import Objective
from fimoda.rows import Rows
from fimoda.training.batches import FULL_DATA
from fimoda.training.choice import decided
from fimoda.training.optimizers import OptimizerSpec
from fimoda.training.run import Run, resolve_run

LR = 0.02

#: Where MiniLM is unpacked.
MINILM = Path("minilm")


@dataclass(frozen=True)
class Case:
    network: Callable[[], nn.Module]
    rows: Callable[[str | None], tuple[Any, np.ndarray]]
    batch: int
    steps: int = 40


def digits(data: str | None) -> tuple[np.ndarray, np.ndarray]:
    known = load_digits()
    return (known.images[:600, None] / 16).astype(np.float32), known.target[:600]


def colours(data: str | None) -> tuple[np.ndarray, np.ndarray]:
    return load_cifar10(data, n_rows=128, return_X_y=True)


def sentences(data: str | None) -> tuple[dict[str, np.ndarray], np.ndarray]:
    args = argparse.Namespace(data=data, rows=64, test=1, output=MINILM)
    return minilm.prepared(args)[:2]


def words(data: str | None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(1, 500, size=(320, 16)), np.arange(320) % 3


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


class ResNet9(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module], w: int = 8):
        super().__init__()

        def block(a: int, b: int, pool: bool = False) -> nn.Sequential:
            parts = [nn.Conv2d(a, b, 3, padding=1, bias=False), norm(b), nn.ReLU()]
            return nn.Sequential(*parts, *([nn.MaxPool2d(2)] if pool else []))

        self.stem = nn.Sequential(block(3, w), block(w, 2 * w, pool=True))
        self.first = nn.Sequential(block(2 * w, 2 * w), block(2 * w, 2 * w))
        self.middle = nn.Sequential(block(2 * w, 4 * w, pool=True), block(4 * w, 4 * w, pool=True))
        self.second = nn.Sequential(block(4 * w, 4 * w), block(4 * w, 4 * w))
        self.head = nn.Linear(4 * w, 10)

    def forward(self, X: Tensor) -> Tensor:
        hidden = self.stem(X)
        hidden = self.middle(hidden + self.first(hidden))
        return self.head((hidden + self.second(hidden)).amax((2, 3)))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(500, 32)
        layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 3)

    def forward(self, X: Tensor) -> Tensor:
        return self.head(self.layers(self.tokens(X)).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.recurrent = nn.Embedding(500, 16), nn.LSTM(16, 24, batch_first=True)
        self.head = nn.Linear(24, 3)

    def forward(self, X: Tensor) -> Tensor:
        return self.head(self.recurrent(self.tokens(X))[0][:, -1])


CASES = {
    "digits, convolutions": Case(convolutional, digits, 64),
    "ResNet-9, width 8, batch norm": Case(lambda: ResNet9(nn.BatchNorm2d), colours, 64),
    "ResNet-9, width 8, group norm": Case(
        lambda: ResNet9(lambda width: nn.GroupNorm(4, width)), colours, 64
    ),
    "encoder, width 32": Case(Encoder, words, 32),
    "LSTM, width 24": Case(Recurrent, words, 32),
    "MiniLM": Case(lambda: minilm.Sentences(minilm.encoder_folder(MINILM)), sentences, 32, 4),
}


def outputs(module: nn.Module, X: Any, at: Tensor) -> Tensor:
    """Return a module's outputs for rows, sentences cut to the longest."""
    if isinstance(X, Tensor):
        return module(X[at])
    longest = int(X.given["attention_mask"][at].sum(1).max())
    return module(**{name: part[at, :longest] for name, part in X.given.items()})


def plain(module: nn.Module, X: Any, y: Tensor, batch: int, n_epochs: int) -> Callable[[], int]:
    """Return some epochs of a plain loop, which say how many they were."""
    module = copy.deepcopy(module).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=LR)

    def steps() -> int:
        generator = torch.Generator().manual_seed(0)
        for _ in range(n_epochs):
            for at in torch.randperm(len(y), generator=generator).split(batch):
                optimizer.zero_grad()
                F.cross_entropy(outputs(module, X, at), y[at]).backward()
                optimizer.step()
        return n_epochs

    return steps


def own(run: Run, n_steps: int) -> Callable[[], int]:
    """Return some epochs of a run, which say how many they were in all models."""
    n_models = run.stack_size()
    plan = run.plan(0, (FULL_DATA, *range(n_models - 1)))

    n_epochs = epochs_of(run, n_steps) if n_models == 1 else 1

    def steps() -> int:
        run.train(plan, [n_epochs * run.steps_per_epoch], require_finite=False)
        return n_models * n_epochs

    return steps


def epochs_of(run: Run, n_steps: int) -> int:
    """Return the epochs that make so many steps."""
    return max(n_steps // run.steps_per_epoch, 1)


def measured(ways: dict[str, Callable[[], int]], seconds: float) -> dict[str, float]:
    """Return the seconds of an epoch of a model in each way, of the fastest round."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for epoch in ways.values():
        epoch()
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or len(found["plain"]) < 3:
        for name, epoch in ways.items():
            start = time.process_time()
            n_models = epoch()
            found[name].append((time.process_time() - start) / n_models)
    return {name: min(times) for name, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=", ".join(CASES))
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--data", default=None, help="the folder of the files, or FIMODA_DATA")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':32} {'plain':>10} {'loop':>7} {'stack':>7} {'models':>7}  auto")
    for name in given.names or CASES:
        case = CASES[name]
        torch.manual_seed(0)
        try:
            X, y = case.rows(given.data)
        except (FileNotFoundError, ValueError, SystemExit) as error:
            print(f"{name:32} left out: {str(error).splitlines()[0]}")
            continue
        module = case.network().eval()
        model = as_final_model(module, X, criterion=nn.CrossEntropyLoss())
        rows = Rows(model.encode_X(X), model.encode_y(y, y.max() + 1))
        spec = OptimizerSpec(torch.optim.SGD, LR)
        run = resolve_run(
            Objective(model, rows), model.recipe, spec.cls, LR, {}, case.batch, "update"
        )
        ways = {way: replace(run, way=way) for way in ("loop", "vmap")}
        n_epochs = epochs_of(run, case.steps)
        loops = {"plain": plain(module, rows.inputs, rows.targets, case.batch, n_epochs)}
        ours = {way: own(one, case.steps) for way, one in ways.items()}
        times = measured(loops | ours, given.seconds)
        auto = decided(run, False, "auto", 10**6, 10**3).way
        ratios = " ".join(f"{times['plain'] / times[way]:7.2f}" for way in ways)
        print(
            f"{name:32} {1e3 * times['plain'] / run.steps_per_epoch:7.2f} ms {ratios} "
            f"{ways['vmap'].stack_size():7d}  {auto}",
            flush=True,
        )


if __name__ == "__main__":
    main()
