"""Grad-Dot and EK-FAC on networks of sentences beside kronfluence: seconds and peak memory.

    FIMODA_DATA=path/to/data python benchmarks/sequence_peers.py
    python benchmarks/sequence_peers.py --data path/to/data --networks bert --rows 200 --test 10

Sentences of SST-2 of at most 32 tokens, padded to the longest. Two networks: MiniLM with a linear head
(22.7 M parameters; see `minilm.py`), and a BERT of two layers of width 64. Kronfluence has their linear
layers, fimoda all parameters. Each side runs in a process of its own, on one thread, from the arrays to the
scores, the two in turn; the ratio is of the medians of the seconds, memory is the peak above what was there
before.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import minilm
import numpy as np
import torch
from torch import nn

from fimoda import EKFACInfluence, GradDot

LENGTH = 32

#: Damping of both sides, so that the same systems are solved.
DAMPING = 1e-4

#: Rows of a batch of kronfluence.
BATCH = 100


class SmallBert(nn.Module):
    """A BERT of two layers of width 64, with a linear layer on the mean of its token vectors."""

    forward = minilm.Sentences.forward

    def __init__(self) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        config = BertConfig(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256,
            max_position_embeddings=LENGTH, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.head = nn.Linear(64, 2)


def network(name: str, args: argparse.Namespace) -> nn.Module:
    """Return a network with a head that is not trained."""
    torch.manual_seed(0)
    if name == "bert":
        return SmallBert().eval()
    return minilm.Sentences(minilm.encoder_folder(args.output)).eval()


def fimoda_scores(net: nn.Module, method: str, split: tuple[Any, ...]) -> np.ndarray:
    X, y, X_test, y_test = split
    criterion = nn.CrossEntropyLoss()
    made = (
        GradDot(net, criterion=criterion, reweight_others=False)
        if method == "Grad-Dot"
        else EKFACInfluence(net, criterion=criterion, damping=DAMPING, reweight_others=False)
    )
    return made.fit(X, y).transform(X_test, y_test)


def kronfluence_scores(net: nn.Module, method: str, split: tuple[Any, ...]) -> np.ndarray:
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task
    from torch.utils.data import Dataset

    class Encoded(Dataset):
        def __init__(self, X: dict[str, np.ndarray], y: np.ndarray) -> None:
            self.X, self.y = {name: torch.as_tensor(part) for name, part in X.items()}, y

        def __len__(self) -> int:
            return len(self.y)

        def __getitem__(self, i: int) -> dict[str, Any]:
            return {name: part[i] for name, part in self.X.items()} | {"labels": int(self.y[i])}

    class Classification(Task):
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Any:
            outputs = model(batch["input_ids"], batch["attention_mask"])
            labels = batch["labels"]
            if sample:
                with torch.no_grad():
                    labels = torch.multinomial(outputs.softmax(-1), 1).flatten()
            return nn.functional.cross_entropy(outputs, labels, reduction="sum")

        def compute_measurement(self, batch: Any, model: nn.Module) -> Any:
            return self.compute_train_loss(batch, model)

    X, y, X_test, y_test = split
    task = Classification()
    strategy = "identity" if method == "Grad-Dot" else "ekfac"
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer(
            "sentences", prepare_model(net, task), task, cpu=True, disable_tqdm=True,
            output_dir=folder, log_level=logging.ERROR,
        )  # fmt: skip
        train = Encoded(X, y)
        analyzer.fit_all_factors(
            "factors", train, per_device_batch_size=BATCH,
            factor_args=FactorArguments(strategy=strategy),
        )  # fmt: skip
        analyzer.compute_pairwise_scores(
            "scores", "factors", Encoded(X_test, y_test), train,
            per_device_query_batch_size=len(y_test), per_device_train_batch_size=BATCH,
            score_args=ScoreArguments(damping_factor=DAMPING),
        )  # fmt: skip
        return analyzer.load_pairwise_scores("scores")["all_modules"].numpy()


SIDES = {"fimoda": fimoda_scores, "kronfluence": kronfluence_scores}


def run(side: str, name: str, method: str, args: argparse.Namespace, pipe: Any) -> None:
    """Send the seconds of one side, its peak of memory in MiB, and its scores."""
    torch.set_num_threads(1)
    split = minilm.prepared(args, length=LENGTH)
    net = network(name, args)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    scores = SIDES[side](net, method, split)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pipe.send((seconds, (peak - before) / 1024, scores))


def measured(side: str, name: str, method: str, args: argparse.Namespace) -> tuple[Any, ...]:
    """Return seconds, MiB and scores of one side in a process of its own."""
    receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
    worker = multiprocessing.get_context("spawn").Process(
        target=run, args=(side, name, method, args, sender)
    )
    worker.start()
    sender.close()
    found = receiver.recv()
    worker.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default=None, help="the folder of the files, or FIMODA_DATA")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--test", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--networks", nargs="*", default=["bert", "minilm"])
    parser.add_argument("--methods", nargs="*", default=["Grad-Dot", "EK-FAC"])
    parser.add_argument("--output", type=Path, default=Path("minilm"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    print("| network | method | fimoda | kronfluence | ratio | MiB | correlation |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in args.networks:
        for method in args.methods:
            runs: dict[str, list[Any]] = {side: [] for side in SIDES}
            for _ in range(args.repeats):
                for side, own in runs.items():
                    own.append(measured(side, name, method, args))
            ours, theirs = (float(np.median([one[0] for one in own])) for own in runs.values())
            peaks = ", ".join(f"{max(one[1] for one in own):.0f}" for own in runs.values())
            a, b = (own[0][2] for own in runs.values())
            alike = np.corrcoef(a.ravel(), b.ravel())[0, 1]
            print(
                f"| {name} | {method} | {ours:.2f} s | {theirs:.2f} s | {theirs / ours:.1f}x | {peaks} "
                f"| {alike:.4f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
