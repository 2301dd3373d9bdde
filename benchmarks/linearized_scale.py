"""Linearised further training at the scale of Fashion-MNIST, against further training itself.

    python benchmarks/linearized_scale.py [--gold directory] [--rows 6144] [--left-out 50] [--seeds 3]

The network (570k parameters) and the rows of influence_scale.py; further training for 20 epochs of
SGD with learning rate 0.01 and batches of 64; the first 100 rows of the test set. The gold standard
leaves out 50 rows, 3 seeds; its stacks are kept in the directory, if given, and read again from it.
Peak memory is that of the process and all its workers together, looked at twice a second (on Linux).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import threading
import time
from pathlib import Path

import numpy as np
import torch
from influence_scale import N_TEST, data, network
from torch import nn

from fimoda import (
    GradDot,
    LinearizedFurtherTraining,
    agreement_curve,
    further_training_curve,
)

EPOCHS = [1, 5, 20]
STEPS = {"optimizer": "SGD", "lr": 0.01, "batch_size": 64, "criterion": nn.CrossEntropyLoss()}


class Peak(threading.Thread):
    """Largest memory (GiB) of this process and of its descendants together."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.gib = 0.0

    def run(self) -> None:
        while True:
            self.gib = max(self.gib, sum(map(_kib, _family())) / 2**20)
            time.sleep(0.5)


def _family() -> list[int]:
    """This process and its descendants."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(status.parent.name)] = int(status.read_text().rsplit(")", 1)[1].split()[1])
    found = [os.getpid()]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def _kib(pid: int) -> int:
    """Resident memory, what is shared counted in proportion."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=6144)
    parser.add_argument("--left-out", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--segments", type=int, default=4)
    parser.add_argument("--components", type=int, default=128)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--gold", help="directory of the gold standard's stacks")
    parser.add_argument("--data", help="directory of Fashion-MNIST's files")
    arguments = parser.parse_args()
    split, real = data(arguments.rows, arguments.data)
    print("Fashion-MNIST" if real else "random data of Fashion-MNIST's shape", flush=True)
    X, X_test, y, y_test = split
    torch.set_num_threads(arguments.jobs)
    net = network(X, y)

    peak = Peak()
    peak.start()
    start = time.perf_counter()
    linearized = LinearizedFurtherTraining(
        net,
        n_epochs=EPOCHS,
        n_segments=arguments.segments,
        n_components=arguments.components,
        n_seeds=[0],
        memory_budget=3 * 2**30,
        n_jobs=arguments.jobs,
        **STEPS,
    ).fit(X, y)
    fitted = time.perf_counter()
    scores = linearized.transform_horizons(X_test, y_test)
    done = time.perf_counter()
    print(
        f"linearised, {linearized.n_segments_} segments: fit {fitted - start:.0f} s, scores of "
        f"{scores.shape[2]} x {N_TEST} at {len(EPOCHS)} horizons {done - fitted:.0f} s, peak "
        f"{peak.gib:.1f} GiB, discrepancy {np.round(linearized.discrepancy_, 2)}",
        flush=True,
    )

    start = time.perf_counter()
    curve = further_training_curve(
        net,
        X,
        y,
        X_test,
        y_test,
        epochs=EPOCHS,
        n_seeds=list(range(arguments.seeds)),
        leave_out=np.linspace(0, len(X) - 1, arguments.left_out).astype(int),
        correction="mean",
        checkpoint_dir=arguments.gold,
        n_jobs=arguments.jobs,
        **STEPS,
    )
    print(f"gold standard: {time.perf_counter() - start:.0f} s", flush=True)
    product = GradDot(net, criterion=STEPS["criterion"]).fit(X, y)
    methods = {"linearised": linearized, "Grad-Dot": product}
    agreement = agreement_curve(methods, curve, X_test, y_test)
    per_seed = curve.per_seed
    print("| " + " | ".join(["epochs", *map(str, EPOCHS)]) + " |")
    print("| " + " | ".join(["---"] * (len(EPOCHS) + 1)) + " |")
    for metric in ("cosine_centred", "spearman"):
        for name, row in zip(agreement.methods, agreement.mean(metric), strict=True):
            print(f"| {name}, {metric} | " + " | ".join(f"{value:.2f}" for value in row) + " |")
    one = [_one_seed(per_seed[k]) for k in range(len(EPOCHS))]
    print("| one seed against the others, cosine | " + " | ".join(f"{v:.2f}" for v in one) + " |")


def _one_seed(per_seed: np.ndarray) -> float:
    """Mean cosine of each seed's scores with the mean of the others, both centred."""
    found = []
    for seed in range(per_seed.shape[-1]):
        one, rest = per_seed[..., seed], np.delete(per_seed, seed, -1).mean(-1)
        one, rest = (s - s.mean(1, keepdims=True) for s in (one, rest))
        size = np.linalg.norm(one, axis=1) * np.linalg.norm(rest, axis=1)
        found.append(((one * rest).sum(1) / np.maximum(size, 1e-300)).mean())
    return float(np.mean(found))


if __name__ == "__main__":
    main()
