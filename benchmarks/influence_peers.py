"""Influence functions side by side with other libraries: seconds, memory, correlation of scores.

    pip install -r benchmarks/requirements.txt
    python benchmarks/influence_peers.py path/to/concrete.csv path/to/concrete_gold.npz

Both sides score 927 training rows for 103 test rows of Concrete with the same final model, damping
and batch of all rows; seconds are those of everything from the model to the scores. Both run in
turn in one process, and medians over rounds are printed. Peak memory is that of a process
of its own, above what it held before. A library that is not installed is skipped.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import importlib.metadata
import io
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from influence import read
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import DataLoader, TensorDataset

from fimoda import TRAK, BaseAttributor, CGInfluence, DataInf, EKFACInfluence, GradDot
from fimoda.datasets import split_concrete

Scores = np.ndarray
K = 2048
TOL = 1e-6


def mean_square(net: nn.Module, X: Tensor, of: Callable[[Tensor, Tensor], Tensor], y: Tensor):
    """Mean squared entry of the rows' gradients of a function of outputs and targets."""
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def value(p: dict[str, Tensor], x: Tensor, t: Tensor) -> Tensor:
        return of(functional_call(net, p, (x[None],)), t[None]).sum()

    rows = vmap(grad(value), in_dims=(None, 0, 0))
    total = sum(
        float(g.double().square().sum())
        for x, t in zip(X.split(64), y.split(64), strict=True)
        for g in rows(parameters, x, t).values()
    )
    return total / (len(X) * sum(p.numel() for p in parameters.values()))


class Peers:
    """Scores (103, 927) by each library."""

    def __init__(self, net: nn.Sequential, split: tuple[Any, Any, Any, Any]):
        self.net = net.eval()
        self.split = split
        self.X, self.X_test, self.y, self.y_test = map(torch.as_tensor, split)
        unit = mean_square(net, self.X, lambda f, t: (f - t) ** 2, self.y)
        self.damping = 1000 * unit
        self.output_damping = 1000 * mean_square(net, self.X, lambda f, t: f, self.y)

    def fimoda(self, attributor: Callable[..., BaseAttributor], **options: Any) -> Scores:
        X, X_test, y, y_test = self.split
        made = attributor(self.net, criterion=nn.MSELoss(), **options)
        return made.fit(X, y).transform(X_test, y_test)

    def loaders(self) -> tuple[DataLoader, DataLoader]:
        """One batch each."""
        train, test = TensorDataset(self.X, self.y), TensorDataset(self.X_test, self.y_test)
        return DataLoader(train, batch_size=len(train)), DataLoader(test, batch_size=len(test))

    def kronfluence(self, two_points: bool) -> Scores:
        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.arguments import FactorArguments, ScoreArguments
        from kronfluence.task import Task

        class Regression(Task):
            def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False):
                x, target = batch
                outputs = model(x)
                if sample:  # targets whose variance makes the squared error a log-likelihood
                    with torch.no_grad():
                        draw = torch.randn_like(outputs)
                        target = outputs + 0.5**0.5 * (draw.sign() if two_points else draw)
                return (outputs - target).square().sum()

            def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
                return self.compute_train_loss(batch, model)

        train, test = (loader.dataset for loader in self.loaders())
        task = Regression()
        model = prepare_model(copy.deepcopy(self.net), task)
        with tempfile.TemporaryDirectory() as folder:
            analyzer = Analyzer(
                "concrete", model, task, cpu=True, disable_tqdm=True, output_dir=folder,
                log_level=logging.ERROR,
            )  # fmt: skip
            analyzer.fit_all_factors(
                "factors", train, per_device_batch_size=len(train), factor_args=FactorArguments()
            )
            analyzer.compute_pairwise_scores(
                "scores", "factors", test, train, per_device_query_batch_size=len(test),
                per_device_train_batch_size=len(train),
                score_args=ScoreArguments(damping_factor=self.damping),
            )  # fmt: skip
            return analyzer.load_pairwise_scores("scores")["all_modules"].numpy()

    def traker(self, seed: int) -> Scores:
        from trak import TRAKer
        from trak.modelout_functions import AbstractModelOutput

        class Output(AbstractModelOutput):
            def __init__(self) -> None:
                pass

            @staticmethod
            def get_output(model: nn.Module, weights: Any, buffers: Any, x: Tensor, t: Tensor):
                return functional_call(model, (weights, buffers), (x[None],)).squeeze()

            @staticmethod
            def get_out_to_loss_grad(model: nn.Module, weights: Any, buffers: Any, batch: Any):
                x, target = batch
                return 2 * (functional_call(model, (weights, buffers), (x,)) - target).detach()

        n, n_test, p = len(self.X), len(self.X_test), sum(q.numel() for q in self.net.parameters())
        state = self.net.state_dict()
        with tempfile.TemporaryDirectory() as folder:
            traker = TRAKer(
                model=copy.deepcopy(self.net), task=Output(), train_set_size=n, save_dir=folder,
                device="cpu", proj_dim=K, use_half_precision=False, logging_level=logging.ERROR,
                projector_seed=seed, lambda_reg=n * K / p * self.output_damping,
            )  # fmt: skip
            traker.load_checkpoint(state, model_id=0)
            traker.featurize((self.X, self.y), num_samples=n)
            traker.finalize_features()
            traker.start_scoring_checkpoint("test", state, model_id=0, num_targets=n_test)
            traker.score((self.X_test, self.y_test), num_samples=n_test)
            return np.array(traker.finalize_scores("test")).T

    def curvlinops(self, max_iter: int) -> Scores:
        from curvlinops import CGInverseLinearOperator, GGNLinearOperator
        from curvlinops.examples import IdentityLinearOperator

        net = copy.deepcopy(self.net)
        parameters = dict(net.named_parameters())
        tensors = list(parameters.values())
        matrix = GGNLinearOperator(net, nn.MSELoss(), tensors, [(self.X, self.y)])
        shapes = [p.shape for p in tensors]
        eye = IdentityLinearOperator(shapes, self.X.device, self.X.dtype)
        inverse = CGInverseLinearOperator(
            matrix + 10 * self.damping * eye, tolerance=TOL, max_iter=max_iter, max_tridiag_iter=0
        )
        start = {name: p.detach() for name, p in parameters.items()}

        def loss(p: dict[str, Tensor], x: Tensor, t: Tensor) -> Tensor:
            return nn.functional.mse_loss(functional_call(net, p, (x[None],)), t[None])

        rows = vmap(grad(loss), in_dims=(None, 0, 0))

        def gradients(x: Tensor, t: Tensor) -> Tensor:
            return torch.cat([g.flatten(1) for g in rows(start, x, t).values()], 1)

        solved = inverse @ gradients(self.X_test, self.y_test).T
        return (gradients(self.X, self.y) @ solved.detach()).T.numpy()

    def dattri(self, kind: str, **options: Any) -> Scores:
        from dattri import algorithm
        from dattri.task import AttributionTask

        net = copy.deepcopy(self.net)

        def loss(parameters: Any, batch: Any) -> Tensor:
            x, target = batch
            return nn.functional.mse_loss(functional_call(net, parameters, (x,)), target)

        task = AttributionTask(loss_func=loss, model=net, checkpoints=net.state_dict())
        attributor = getattr(algorithm, kind)(task=task, **options)
        train, test = self.loaders()
        attributor.cache(train)
        return attributor.attribute(train, test).detach().T.numpy()

    def captum(self) -> Scores:
        from captum.influence import TracInCP

        tracin = TracInCP(
            copy.deepcopy(self.net), TensorDataset(self.X, self.y), ["final"],
            checkpoints_load_func=lambda model, checkpoint: 1.0, batch_size=len(self.X),
            loss_fn=nn.MSELoss(reduction="sum"), sample_wise_grads_per_batch=True,
        )  # fmt: skip
        return tracin.influence((self.X_test, self.y_test)).detach().numpy()


@dataclass(frozen=True)
class Pair:
    name: str
    package: str
    ours: Callable[[], Scores]
    theirs: Callable[[], Scores]


def pairs(peers: Peers, n_iter: int) -> list[Pair]:
    d = peers.damping

    def ekfac() -> Scores:
        return peers.fimoda(EKFACInfluence, damping=d)

    return [
        Pair("EK-FAC", "kronfluence", ekfac, lambda: peers.kronfluence(two_points=False)),
        Pair(
            "EK-FAC, its targets on two points",
            "kronfluence",
            ekfac,
            lambda: peers.kronfluence(two_points=True),
        ),
        Pair(
            f"TRAK, {K}",
            "traker",
            lambda: peers.fimoda(
                TRAK, n_components=K, damping=peers.output_damping, measurement="output",
                random_state=0,
            ),
            lambda: peers.traker(seed=0),
        ),
        Pair(
            f'TRAK, {K}, projection="product"',
            "traker",
            lambda: peers.fimoda(
                TRAK, n_components=K, damping=peers.output_damping, measurement="output",
                projection="product", random_state=0,
            ),
            lambda: peers.traker(seed=0),
        ),
        Pair(
            "CG, Gauss-Newton",
            "curvlinops-for-pytorch",
            lambda: peers.fimoda(CGInfluence, damping=10 * d, tol=TOL),
            lambda: peers.curvlinops(n_iter),
        ),
        Pair(
            "CG, Hessian",
            "dattri",
            lambda: peers.fimoda(CGInfluence, curvature="hessian", damping=10 * d, tol=TOL),
            lambda: peers.dattri("IFAttributorCG", max_iter=n_iter, regularization=10 * d),
        ),
        Pair(
            "DataInf",
            "dattri",
            lambda: peers.fimoda(DataInf, damping=d),
            lambda: peers.dattri("IFAttributorDataInf", regularization=d),
        ),
        Pair("Grad-Dot", "captum", lambda: peers.fimoda(GradDot), peers.captum),
    ]  # fmt: skip


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and warnings of either side."""
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def timed(side: Callable[[], Scores]) -> tuple[float, Scores]:
    gc.collect()  # some sides leave gigabytes in cycles
    with quiet():
        start = time.perf_counter()
        scores = side()
        return time.perf_counter() - start, scores


def correlations(a: Scores, b: Scores) -> np.ndarray:
    """Pearson correlation of the scores of each test row."""
    a, b = (s - s.mean(1, keepdims=True) for s in (a, b))
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def run(pair: Pair, rounds: int, seconds: float) -> tuple[list[str], np.ndarray]:
    """Cells of the table. A first round is not counted unless it alone took all the seconds."""
    times: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(times) <= rounds and (not times or time.perf_counter() - start < seconds):
        (ours, a), (theirs, b) = timed(pair.ours), timed(pair.theirs)
        times.append((ours, theirs))
    times = times[1:] or times
    ours, theirs = (median(side) for side in zip(*times, strict=True))
    ratio = median(b / a for a, b in times)
    return [f"{ours:.3f} s", f"{theirs:.3f} s", f"{ratio:.1f}x", str(len(times))], correlations(
        a, b
    )


def peak() -> int:
    """Peak memory of this process in KiB, on Linux (``ru_maxrss`` starts at that of the parent)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def memory(arguments: argparse.Namespace, threads: int, number: int, side: str) -> str:
    """Peak memory of one side in a process of its own."""
    command = [sys.executable, __file__, arguments.concrete, arguments.gold]
    command += ["--threads", str(threads), "--side", str(number), side]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("concrete", help="path of concrete.csv, or the directory that holds it")
    parser.add_argument("gold", help="path of the gold standard (npz)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10, help="no further round after these")
    parser.add_argument("--iterations", type=int, default=18, help="most of the peers' CG")
    parser.add_argument("--only", default="", help="methods whose name contains this")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    net, _ = read(arguments.gold)
    peers = Peers(net, split_concrete(arguments.concrete))
    table = pairs(peers, arguments.iterations)
    if arguments.side:
        torch.set_num_threads(arguments.threads[0])
        pair = table[int(arguments.side[0])]
        with open("/proc/self/clear_refs", "w") as reset:
            reset.write("5")  # the peak becomes what the process holds now
        before = peak()
        timed(getattr(pair, arguments.side[1]))
        after = peak()
        print((after - before) // 1024)
        return
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        print(f"\n{threads} thread{'s' * (threads > 1)}\n")
        print(
            "| method | peer | fimoda | peer | peer / fimoda | rounds | correlation: median, lowest "
            f"{'' if arguments.no_memory else '| MiB: fimoda, peer '}|"
        )
        print("| --- |" + " --- |" * (6 if arguments.no_memory else 7))
        for number, pair in enumerate(table):
            if arguments.only not in pair.name:
                continue
            installed = version(pair.package)
            if installed is None:
                print(f"| {pair.name} | {pair.package} is not installed: skipped |")
                continue
            try:
                cells, found = run(pair, arguments.rounds, arguments.seconds)
            except Exception as error:  # a peer that fails must not end the run
                print(f"| {pair.name} | {pair.package} {installed} | {error!r:.300} |")
                continue
            cells.append(f"{np.median(found):.4f}, {found.min():.4f}")
            if not arguments.no_memory:
                sides = (memory(arguments, threads, number, s) for s in ("ours", "theirs"))
                cells.append(", ".join(sides))
            row = [pair.name, f"{pair.package} {installed}", *cells]
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
