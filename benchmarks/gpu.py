"""Every attributor on a GPU against the CPU, and the speed of the engine, Grad-Dot and EK-FAC there.

    python benchmarks/gpu.py [--seconds 240]

The networks are those of tests/networks.py, without dropout, whose random numbers are others on another
device. A cell of the table has the largest difference from the scores of the CPU, relative to the largest;
what differs by more than 1e-2 is in bold, which small networks in float32 need not be. When the seconds are
over the rest of the table is left out. Its rows are computed by `--jobs` processes, one thread each. Without
CUDA there is nothing to do.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from joblib import Parallel, delayed
from sklearn.datasets import load_digits
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import networks
from cells import ATTRIBUTORS, run_cell, trained

from fimoda import EKFACInfluence, GradDot, further_training_curve

#: Relative difference above which a cell is in bold.
TOLERANCE = 1e-2


# ---- the table ------------------------------------------------------------------------------


def on_device(case: networks.Case, device: str) -> networks.Case:
    """Return the same trained network on a device."""
    net = copy.deepcopy(case.model)
    net.device = device
    net.module_.to(device)
    return networks.Case(net, case.X, case.y, case.X_test, case.y_test, case.params)


def compared(network: str, attributor: str, device: str) -> str:
    """Return what stands in a cell of the table."""
    case = trained(network, dropout=False)
    here = run_cell(network, attributor, case)
    there = run_cell(network, attributor, on_device(case, device))
    if here.outcome != there.outcome or there.outcome == "raw":
        print(f"{attributor} on {network}: {here.outcome} here ({here.message}), there {there}")
        return f"**{there.outcome}**"
    if there.outcome == "refused":
        return "refused"
    difference = np.abs(here.scores - there.scores).max() / np.abs(here.scores).max()
    return f"{difference:.0e}" if difference <= TOLERANCE else f"**{difference:.0e}**"


def row_of(network: str, device: str, until: float) -> tuple[str, list[str]]:
    """Return a network with its cells; there are none if time is over."""
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    if time.time() > until:
        return network, []
    return network, [compared(network, attributor, device) for attributor in ATTRIBUTORS]


def table(device: str, until: float, chosen: list[str], n_jobs: int) -> None:
    """Print the table, as far as time allows."""
    print("| | " + " | ".join(ATTRIBUTORS) + " |")
    print("|" + " --- |" * (len(ATTRIBUTORS) + 1), flush=True)
    bold = cells = 0
    late = []
    jobs = [delayed(row_of)(network, device, until) for network in chosen]
    for network, row in Parallel(n_jobs=n_jobs, return_as="generator")(jobs):
        if not row:
            late.append(network)
            continue
        print(f"| {network} | " + " | ".join(row) + " |", flush=True)
        bold, cells = bold + sum("**" in text for text in row), cells + len(row)
    print(f"\n{cells} cells, {bold} of them in bold.")
    if late:
        print(f"No time for: {', '.join(late)}.")


# ---- speed ----------------------------------------------------------------------------------


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    body = [
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
    ]
    return nn.Sequential(*body, nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU()]
    return nn.Sequential(*body, nn.Linear(256, 10))


def seconds(work: Callable[[], object]) -> float:
    """Return the seconds of a second call, which ends when the device has ended."""
    work()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def engine(device: str, scale: float) -> tuple[float, float]:
    """Return seconds per model and epoch of a plain loop and of stacks of the engine, on digits."""
    digits = load_digits()
    X = (digits.images[:600, None] / 16).astype(np.float32)
    y, n_models = digits.target[:600], max(2, int(200 * scale))
    settings = {
        "lr": 0.02,
        "batch_size": 64,
        "optimizer": "SGD",
        "criterion": nn.CrossEntropyLoss(),
    }
    given = {"epochs": 1, "n_seeds": 1, "random_state": 0, "engine": "vmap", "compile": False}
    given |= settings
    network = convolutions().to(device)

    def loop() -> None:
        module = copy.deepcopy(network)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.02)
        inputs, targets = torch.from_numpy(X).to(device), torch.from_numpy(y).to(device)
        for at in torch.randperm(len(y), device=device).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(inputs[at]), targets[at]).backward()
            optimizer.step()

    def stack() -> None:
        further_training_curve(network, X, y, X[:1], y[:1], leave_out=n_models - 1, **given)

    return seconds(loop), seconds(stack) / n_models


def scores(cls: type, device: str, scale: float) -> float:
    """Return the seconds of scores of 10,000 rows x 100, fit and transform."""
    rng, n = np.random.default_rng(0), max(200, int(10_000 * scale))
    X = rng.standard_normal((n + 100, 784), dtype=np.float32)
    y = rng.integers(10, size=n + 100)
    attributor = cls(perceptron().to(device), criterion=nn.CrossEntropyLoss())
    return seconds(lambda: attributor.fit(X[:n], y[:n]).transform(X[n:], y[n:]))


def speed(device: str, scale: float) -> None:
    """Print seconds on the CPU and on the device."""
    print("| | CPU | device | times faster |\n| --- | --- | --- | --- |")
    (loop, stack), (loop_there, stack_there) = engine("cpu", scale), engine(device, scale)
    timed = {
        "plain loop, a model and epoch of digits": (loop, loop_there),
        "stack, a model and epoch of digits": (stack, stack_there),
    }
    for cls in (GradDot, EKFACInfluence):
        timed[f"{cls.__name__}, 10,000 x 100"] = (
            scores(cls, "cpu", scale),
            scores(cls, device, scale),
        )
    for name, (here, there) in timed.items():
        print(f"| {name} | {here:.4f} s | {there:.4f} s | {here / there:.1f} |")
    print(
        f"\nStack against loop: {loop / stack:.1f} times on the CPU, {loop_there / stack_there:.1f} there.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--jobs", type=int, default=8, help="processes of the table")
    parser.add_argument("--networks", help="names, by semicolons; all by default")
    # for trying the script where there is no GPU
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--scale", type=float, default=1.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    start = time.time()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        print("CUDA is not available on this machine: nothing to compare.")
        return
    torch.backends.cudnn.allow_tf32 = False
    if arguments.device.startswith("cuda"):
        print(f"{torch.cuda.get_device_name(arguments.device)}, torch {torch.__version__}\n")
    speed(arguments.device, arguments.scale)
    chosen = arguments.networks.split(";") if arguments.networks else list(networks.NETWORKS)
    table(arguments.device, start + arguments.seconds, chosen, arguments.jobs)


if __name__ == "__main__":
    import gpu  # so that workers find the functions by the name of this file

    gpu.main()
