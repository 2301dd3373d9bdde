"""Agreement of gradient methods with further training on Concrete, by the papers' protocol.

    python benchmarks/agreement.py path/to/concrete.csv [--gold path/to/concrete_gold.npz]

Final model: 8-128-128-1, ReLU, squared error, SGD 0.3, batch 128, 1,000 epochs. Further training: SGD
0.03, batch 128, 100 left-out rows, seeds 0 to 4, mean-corrected. With ``--gold`` the final model and
an independent gold standard are read from a file, and the measurements are compared with it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from fimoda import (
    FurtherTrainingCurve,
    GradCos,
    GradDot,
    agreement_curve,
    as_final_model,
    further_training_curve,
)
from fimoda.datasets import split_concrete
from fimoda.objective import Objective
from fimoda.rows import Rows
from fimoda.training.optimizers import OptimizerSpec
from fimoda.training.run import Run

EPOCHS = [1, 2, 5, 10, 20, 50, 100, 200, 500]


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1)
    )


def trained(X: np.ndarray, y: np.ndarray) -> dict[str, nn.Sequential]:
    """Final models of seed 0: after the last epoch, and the quietest of the last 20 epochs.

    With learning rate 0.3 the training loss jumps by a factor of 3 to 5 from epoch to epoch, so
    that where training happens to stop decides how far from stationary the final model is.
    """
    torch.manual_seed(0)
    net = network()
    model = as_final_model(net, X, criterion=nn.MSELoss())
    rows, targets = model.encode_X(X), model.encode_y(y, 1)
    objective = Objective(model, Rows(rows, targets))
    run = Run(objective, OptimizerSpec(torch.optim.SGD, 0.3), batch_size=128)
    late: dict[int, tuple[float, torch.Tensor]] = {}

    def keep(step: int, stack: torch.Tensor) -> None:
        loss = float(model.loss(model.outputs(rows, stack[0]), targets).mean())
        late[step // run.steps_per_epoch] = (loss, stack[0].clone())

    per_epoch = run.steps_per_epoch
    run.train(run.plan(0), [epoch * per_epoch for epoch in range(981, 1001)], keep)
    quietest = min(late, key=lambda epoch: late[epoch][0])
    models = {}
    for epoch in (1000, quietest):
        loss, theta = late[epoch]
        chosen = network()
        nn.utils.vector_to_parameters(theta, chosen.parameters())
        models[f"trained here, epoch {epoch}, training loss {loss:.4f}"] = chosen
    return models


def loaded(gold: Mapping[str, np.ndarray]) -> nn.Sequential:
    """The final model that comes with an independent gold standard."""
    net = network()
    net.load_state_dict(
        {k: torch.from_numpy(gold["final_" + k.replace(".", "_")]) for k in net.state_dict()}
    )
    return net


def compare(curve: FurtherTrainingCurve, gold: Mapping[str, np.ndarray]) -> None:
    """Print how the measurements differ from an independent gold standard."""
    print("\nagainst the independent gold standard (relative differences of 51,500 losses):")
    print("epochs   median  99.9 percent  largest  cosine of mean-corrected mean scores")
    for k, epoch in enumerate(curve.epochs):
        theirs = gold["test_loss"][k, :, :100].astype(float)
        difference = np.abs(curve.outcomes.left_out[k] - theirs) / theirs
        scores = theirs.mean(-1)
        scores = scores - scores.mean(1, keepdims=True)
        lengths = np.linalg.norm(scores, axis=1) * np.linalg.norm(curve.scores[k], axis=1)
        cosine = ((scores * curve.scores[k]).sum(1) / lengths).mean()
        high = np.quantile(difference, 0.999)
        print(
            f"{epoch:6d}  {np.median(difference):.1e}  {high:12.1e}  {difference.max():.1e}  {cosine:.4f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("concrete", help="path of concrete.csv, or the directory that holds it")
    parser.add_argument("--gold", help="path of an independent gold standard (npz)")
    parser.add_argument("--epochs", type=int, default=500, help="longest horizon")
    arguments = parser.parse_args()
    X, X_test, y, y_test = split_concrete(arguments.concrete)
    gold = np.load(arguments.gold) if arguments.gold else None
    nets = trained(X, y) if gold is None else {"final model from the file": loaded(gold)}
    epochs = EPOCHS if gold is None else [int(e) for e in gold["epochs"]]
    epochs = [e for e in epochs if e <= arguments.epochs]
    for name, net in nets.items():
        start = time.perf_counter()
        curve = further_training_curve(
            net, X, y, X_test, y_test, criterion=nn.MSELoss(), epochs=epochs, n_seeds=range(5),
            leave_out=range(0, 900, 9), correction="mean", optimizer="SGD", lr=0.03, batch_size=128,
            n_jobs=2, verbose=1,
        )  # fmt: skip
        print(f"\n## {name}\nfurther training: {time.perf_counter() - start:.0f} s")
        methods = {
            "Grad-Dot": GradDot(net, criterion=nn.MSELoss(), lr=0.03, batch_size=128).fit(X, y),
            "Grad-Cos": GradCos(net, criterion=nn.MSELoss()).fit(X, y),
        }
        result = agreement_curve(methods, curve, X_test, y_test)
        for metric in ("cosine", "cosine_centred", "spearman"):
            print(f"\n{metric}\n{result.table(metric)}")
        if gold is not None:
            compare(curve, gold)


if __name__ == "__main__":
    main()
