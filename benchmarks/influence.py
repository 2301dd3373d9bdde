"""Influence functions on Concrete: agreement with further training, and seconds on one thread.

    python benchmarks/influence.py path/to/concrete.csv path/to/concrete_gold.npz

The final model and the gold standard (5 seeds, 100 left-out rows, mean-corrected) come from a file; all
927 training rows are scored for 103 test rows. Dampings are multiples of the mean squared entry of
the training rows' gradients. Seconds are those of ``fit`` and ``transform`` together.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from fimoda import (
    TRAK,
    ArnoldiInfluence,
    BaseAttributor,
    CGInfluence,
    DataInf,
    EKFACInfluence,
    ExactInfluence,
    FurtherTrainingCurve,
    GradCos,
    GradDot,
    LiSSAInfluence,
    agreement_curve,
)
from fimoda.datasets import split_concrete
from fimoda.training.outcomes import Outcomes

Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def read(path: str, unit: type[nn.Module] = nn.ReLU) -> tuple[nn.Sequential, FurtherTrainingCurve]:
    """The final model and its further training."""
    gold = np.load(path)
    net = nn.Sequential(nn.Linear(8, 128), unit(), nn.Linear(128, 128), unit(), nn.Linear(128, 1))
    net.load_state_dict(
        {k: torch.from_numpy(gold["final_" + k.replace(".", "_")]) for k in net.state_dict()}
    )
    losses = gold["test_loss"].astype(float)
    n_test, n_seeds = losses.shape[1], losses.shape[-1]
    outcomes = Outcomes(losses[:, :, :100], losses[:, :, 100], np.zeros(n_test))
    seeds = list(range(n_seeds))
    return net, FurtherTrainingCurve(gold["epochs"], gold["left_out"], seeds, outcomes, "mean")


def timed(make: Callable[[], BaseAttributor], split: Split) -> tuple[float, np.ndarray]:
    """Seconds of fit and transform, and the scores."""
    X, X_test, y, y_test = split
    start = time.perf_counter()
    scores = make().fit(X, y).transform(X_test, y_test)
    return time.perf_counter() - start, scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("concrete", help="path of concrete.csv, or the directory that holds it")
    parser.add_argument("gold", help="path of the gold standard (npz)")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    split = split_concrete(arguments.concrete)
    net, curve = read(arguments.gold)
    given = {"criterion": nn.MSELoss()}
    unit = ExactInfluence(net, **given).fit(split[0], split[2]).damping_ / 1000

    methods: dict[str, Callable[[], BaseAttributor]] = {
        "Grad-Dot": lambda: GradDot(net, **given),
        "Grad-Cos": lambda: GradCos(net, **given),
        "DataInf": lambda: DataInf(net, **given),
        "TRAK, 512": lambda: TRAK(
            net, n_components=512, measurement="loss", random_state=0, **given
        ),
    }
    for factor in (10, 100, 1000, 10_000):
        damping = factor * unit
        methods |= {
            f"exact, {factor}": lambda d=damping: ExactInfluence(net, damping=d, **given),
            f"EK-FAC, {factor}": lambda d=damping: EKFACInfluence(
                net, damping=d, random_state=0, **given
            ),
        }
    damping = 1000 * unit
    methods |= {
        "CG, 1000": lambda: CGInfluence(net, damping=damping, **given),
        "LiSSA, 1000": lambda: LiSSAInfluence(net, damping=damping, random_state=0, **given),
        "LiSSA, Hessian, 10000": lambda: LiSSAInfluence(
            net, damping=10 * damping, curvature="hessian", random_state=0, **given
        ),
        "Arnoldi 100, 1000": lambda: ArnoldiInfluence(
            net, damping=damping, n_components=100, random_state=0, **given
        ),
    }
    exact = None
    print("| method, damping | " + " | ".join(str(int(e)) for e in curve.epochs) + " | seconds |")
    print("| --- |" + " --- |" * (len(curve.epochs) + 1))
    for name, make in methods.items():
        try:
            seconds, scores = timed(make, split)
        except (ValueError, FloatingPointError) as error:
            print(f"| {name} | {str(error)[:120]} |")
            continue
        cosines = agreement_curve({name: scores}, curve).mean("cosine")[0]
        cells = " | ".join(f"{c:.2f}".replace("0.", ".", 1) for c in cosines)
        print(f"| {name} | {cells} | {seconds:.2f} |", flush=True)
        if name == "exact, 1000":
            exact = scores
        if name == "CG, 1000" and exact is not None:
            lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(scores, axis=1)
            cg_cosine = ((exact * scores).sum(1) / lengths).min()
    print(f"\nlowest cosine of CG's scores with the exact ones: {cg_cosine:.6f}")


if __name__ == "__main__":
    main()
