"""Peak memory and seconds of gradients of rows: 5,000 sentences x 100, 10.6 M trainable parameters.

    FIMODA_DATA=path/to/data python benchmarks/sentences_memory.py [--methods NAME ...] [--rows 5000]

MiniLM with a linear head (see `minilm.py`), fine-tuned on 2,000 sentences of SST-2, with frozen embeddings.
One thread, each method in a process of its own; memory is the peak above what the process has with the data
and the model.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from pathlib import Path
from typing import Any

import minilm
import torch
from torch import nn

import fimoda

METHODS = ("GradDot", "GradCos", "TracIn", "TRAK")


def attributor(name: str, model: nn.Module) -> Any:
    """Return a method by its name; TracIn has one checkpoint, of 100 steps."""
    given: dict[str, Any] = {"criterion": nn.CrossEntropyLoss()}
    if name == "TRAK":
        given["n_components"] = 512
    if name == "TracIn":
        state = {key: value.clone() for key, value in model.state_dict().items()}
        given["trajectory"] = fimoda.Trajectory.from_checkpoints([state], [100], 1e-5)
    return getattr(fimoda, name)(model, **given)


def peak() -> float:
    """Return the most memory that the process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(name: str, args: argparse.Namespace) -> None:
    """Run one method and print a row of the table."""
    torch.set_num_threads(1)
    few = argparse.Namespace(**{**vars(args), "rows": 2000})
    model = minilm.fine_tuned(few, *minilm.prepared(few)[:2])
    for parameter in model.encoder.embeddings.parameters():
        parameter.requires_grad_(False)
    X, y, X_test, y_test = minilm.prepared(args)
    before, start = peak(), time.perf_counter()
    scores = attributor(name, model).fit(X, y).transform(X_test, y_test)
    seconds, more = time.perf_counter() - start, peak() - before
    print(f"| {name} | {scores.shape[1]} x {scores.shape[0]} | {seconds:.0f} | {more:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default=None, help="the folder of the files, or FIMODA_DATA")
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--test", type=int, default=100)
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--output", type=Path, default=Path("minilm"))
    args = parser.parse_args()
    print("| method | training x test rows | seconds | peak above the data, MiB |")
    print("| --- | --- | --- | --- |", flush=True)
    for name in args.methods:
        worker = multiprocessing.get_context("spawn").Process(target=run, args=(name, args))
        worker.start()
        worker.join()


if __name__ == "__main__":
    main()
