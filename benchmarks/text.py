"""Attribution of a pretrained sentence encoder on SST-2: every method beside a gold standard of many seeds.

    FIMODA_DATA=path/to/data python benchmarks/text.py --output text --small
    FIMODA_DATA=path/to/data python benchmarks/text.py --output text

MiniLM with a linear head (see `minilm.py`), fine-tuned on 2,000 sentences and trained further by AdamW
without weight decay and by SGD; see `removal_protocol.py` for the protocol and what is kept. Tokens that
occur in no sentence are left out of the embedding, which changes no output: 12 M parameters remain. The
network and its token ids are kept in `--output`, after which neither the data nor the encoder are needed.
"""

from __future__ import annotations

import argparse
from typing import Any

import minilm
import numpy as np
import removal_protocol
import torch
from removal_protocol import Case, Rows
from torch import Tensor, nn

#: Tokens of a sentence at most.
LENGTH = 48

SPECIAL = 0  # padding


class Encoder(nn.Module):
    """MiniLM of some tokens, with a linear layer on the mean of its token vectors."""

    def __init__(self, config: dict[str, Any], n_tokens: int):
        from transformers import BertConfig, BertModel

        super().__init__()
        given = {**config, "vocab_size": n_tokens}
        given |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        self.encoder = BertModel(BertConfig(**given), add_pooling_layer=False)
        self.head = nn.Linear(given["hidden_size"], 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        mask = attention_mask.unsqueeze(-1).to(hidden)
        return self.head((hidden * mask).sum(1) / mask.sum(1))


def sentences(args: argparse.Namespace) -> Rows:
    """Return token ids of the sentences, numbered without gaps, from the disk if they are there."""
    args.rows = args.rows or 2000
    path = args.output / f"text-{args.rows}-{args.test}.npz"
    if not path.exists():
        X, y, X_test, y_test = minilm.prepared(args, LENGTH)
        ids = np.concatenate([X["input_ids"].ravel(), X_test["input_ids"].ravel()])
        tokens = np.unique(np.append(ids, SPECIAL))
        parts = {"tokens": tokens, "y": y, "y_test": y_test}
        for name, part in (("X", X), ("X_test", X_test)):
            parts[f"{name}_ids"] = np.searchsorted(tokens, part["input_ids"])
            parts[f"{name}_mask"] = part["attention_mask"]
        np.savez_compressed(path, **parts)
    with np.load(path) as file:
        X, X_test = (
            {"input_ids": file[f"{name}_ids"], "attention_mask": file[f"{name}_mask"]}
            for name in ("X", "X_test")
        )
        return Rows(X, file["y"], X_test, file["y_test"])


def encoder(args: argparse.Namespace) -> nn.Module:
    """Return the network, not yet with the parameters of the pretrained one."""
    rows = sentences(args)
    n_tokens = 1 + max(int(X["input_ids"].max()) for X in (rows.X, rows.X_test))
    config = {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    }
    torch.manual_seed(0)
    return Encoder(config, n_tokens)


def fine_tune(args: argparse.Namespace, module: nn.Module, rows: Rows) -> None:
    """Fine-tune the pretrained network as `minilm.py` does, and keep it for the tokens that occur."""
    with np.load(args.output / f"text-{args.rows}-{args.test}.npz") as file:
        tokens = file["tokens"]
    X = {"input_ids": tokens[rows.X["input_ids"]], "attention_mask": rows.X["attention_mask"]}
    state = minilm.fine_tuned(args, X, rows.y).state_dict()
    name = "encoder.embeddings.word_embeddings.weight"
    module.load_state_dict({**state, name: state[name][torch.from_numpy(tokens)]})


ADAMW = {
    "optimizer": "AdamW",
    "lr": 1e-6,
    "batch_size": 32,
    "optimizer_params": {"weight_decay": 0.0},
}
SGD = {"optimizer": "SGD", "lr": 1e-3, "batch_size": 32}

PARAMS: dict[str, dict[str, Any]] = {
    "TRAK": {"n_components": 512},
    "CG with EK-FAC": {"curvature_rows": 200, "max_iter": 8, "random_state": 0},
    "SOURCE": {"n_epochs": 2, "lr": 2e-5, "batch_size": 32},
}

#: On a CPU.
FEW = {"CG with EK-FAC": 2, "own order, a run": 5, "expected order, a run": 5}

SLOW = removal_protocol.SLOW | {"CG with EK-FAC"}

CASES = {
    "text": Case(sentences, encoder, fine_tune, {"AdamW": ADAMW, "SGD": SGD}, PARAMS, FEW, SLOW)
}

if __name__ == "__main__":
    import text as this  # so that workers find the networks' classes by the name of this file

    removal_protocol.main(__doc__, this.CASES)
