"""Small networks of every kind, each trained on a few rows of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import skorch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fimoda import TrajectoryRecorder

#: Rows to train on and rows to look at.
N, N_TEST = 16, 3

#: Token ids, positions of a sentence, and width of its vectors.
VOCABULARY, LENGTH, WIDTH = 20, 6, 8

CLASSES = 3


@dataclass
class Case:
    """A trained model with its rows, and the parameters that an attributor needs beside it."""

    model: Any
    X: Any
    y: np.ndarray
    X_test: Any
    y_test: np.ndarray
    params: dict[str, Any] = field(default_factory=dict)


# ---- rows -----------------------------------------------------------------------------------


def _images(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(size=(n, 3, 8, 8)).astype(np.float32)


def _tokens(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.integers(1, VOCABULARY, size=(n, LENGTH))


def _padded(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    """Return token ids of rows of different lengths, with the mask that says where they end."""
    ids = _tokens(rng, n)
    mask = (np.arange(LENGTH) < rng.integers(2, LENGTH + 1, size=(n, 1))).astype(np.int64)
    return {"input_ids": ids * mask, "attention_mask": mask}


def _sequences(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(size=(n, LENGTH, 4)).astype(np.float32)


def _two(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    return {"ids": _tokens(rng, n)[:, 0], "numbers": rng.normal(size=(n, 4)).astype(np.float32)}


def _classes(rng: np.random.Generator, n: int, X: Any) -> np.ndarray:
    return np.arange(n) % CLASSES


def _several_labels(rng: np.random.Generator, n: int, X: Any) -> np.ndarray:
    return rng.integers(0, 2, size=(n, 4)).astype(np.float32)


def _several_numbers(rng: np.random.Generator, n: int, X: Any) -> np.ndarray:
    return rng.normal(size=(n, 2)).astype(np.float32)


def _next_tokens(rng: np.random.Generator, n: int, X: Any) -> np.ndarray:
    """Return the token that follows at each position; -100 at the last and behind the end."""
    ids = X["input_ids"] if isinstance(X, dict) else X
    following = np.full_like(ids, -100)
    following[:, :-1] = np.where(ids[:, 1:] > 0, ids[:, 1:], -100)
    return following


# ---- networks -------------------------------------------------------------------------------


class Conv(nn.Module):
    """Two convolutions, the second in groups, with pooling and a kink."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(3, 4, 3, padding=1),
            nn.Conv2d(4, 8, 3, stride=2, groups=2),
        )
        self.head = nn.Linear(8, CLASSES)

    def forward(self, X):
        hidden = F.max_pool2d(F.relu(self.first(X)), 2)
        return self.head(F.gelu(self.second(hidden)).mean((2, 3)))


class ResNet9(nn.Module):
    """The nine layers that are trained on CIFAR-10, narrow."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d, width: int = 4):
        super().__init__()

        def block(a: int, b: int, pool: bool = False) -> nn.Sequential:
            parts = [nn.Conv2d(a, b, 3, padding=1, bias=False), norm(b), nn.ReLU()]
            return nn.Sequential(*parts, *([nn.MaxPool2d(2)] if pool else []))

        w = width
        self.stem = nn.Sequential(block(3, w), block(w, 2 * w, pool=True))
        self.first = nn.Sequential(block(2 * w, 2 * w), block(2 * w, 2 * w))
        self.middle = nn.Sequential(block(2 * w, 4 * w, pool=True), block(4 * w, 4 * w))
        self.second = nn.Sequential(block(4 * w, 4 * w), block(4 * w, 4 * w))
        self.head = nn.Linear(4 * w, CLASSES)

    def forward(self, X):
        hidden = self.stem(X)
        hidden = self.middle(hidden + self.first(hidden))
        hidden = hidden + self.second(hidden)
        return self.head(hidden.amax((2, 3)))


def group_norm(width: int) -> nn.Module:
    return nn.GroupNorm(2, width)


class Encoder(nn.Module):
    """A transformer encoder with learned positions and dropout."""

    def __init__(self, dropout: float = 0.1):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Parameter(0.1 * torch.randn(LENGTH, WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH, 2, 2 * WIDTH, dropout=dropout, activation="gelu", batch_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, X):
        hidden = self.layers(self.tokens(X) + self.positions[: X.shape[1]])
        return self.head(hidden.mean(1))


class Decoder(nn.Module):
    """A causal transformer whose last layer is its embedding; the class is read at the last position."""

    def __init__(self, n_outputs: int | None = CLASSES):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.norm = nn.LayerNorm(WIDTH)
        self.mixed = nn.Linear(WIDTH, WIDTH)
        self.last = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.last.weight = self.tokens.weight
        self.n_outputs = n_outputs

    def forward(self, X):
        hidden = self.tokens(X)
        mask = nn.Transformer.generate_square_subsequent_mask(X.shape[1], device=X.device)
        attended, _ = self.attention(
            hidden, hidden, hidden, attn_mask=mask.to(hidden), need_weights=False
        )
        hidden = self.norm(hidden + attended)
        outputs = self.last(hidden + F.silu(self.mixed(hidden)))
        return outputs if self.n_outputs is None else outputs[:, -1, : self.n_outputs]


class Recurrent(nn.Module):
    """A recurrent network, in two directions and layers."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, bidirectional: bool = True):
        super().__init__()
        self.recurrent = kind(4, 5, num_layers=2, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(5 * (1 + bidirectional), CLASSES)

    def forward(self, X):
        return self.head(self.recurrent(X)[0][:, -1])


class TwoInputs(nn.Module):
    """A category and numbers."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 3)
        self.body = nn.Sequential(nn.Linear(7, 6), nn.BatchNorm1d(6), nn.ELU())
        self.head = nn.Linear(6, CLASSES)

    def forward(self, ids, numbers):
        return self.head(self.body(torch.cat([self.embedding(ids), numbers], dim=1)))


class Frozen(nn.Module):
    """A body whose first layer is frozen, and half a layer of the rest."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(4, 5, 2), nn.GroupNorm(1, 5), nn.Softplus())
        self.middle = nn.Linear(5, 5)
        self.head = nn.Linear(5, CLASSES)
        self.body[0].requires_grad_(False)
        self.middle.weight.requires_grad_(False)

    def forward(self, X):
        return self.head(F.leaky_relu(self.middle(self.body(X.mT).mean(2))))


class Logits(nn.Module):
    """A model of `transformers`, as skorch wants one: its logits alone."""

    def __init__(self, made: Callable[[], nn.Module]):
        super().__init__()
        self.model = made()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def bert(attention: str = "sdpa", dropout: float = 0.1) -> nn.Module:
    """Return a small BERT with a head for classes, drawn at random."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=LENGTH + 2,
        num_labels=CLASSES,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        attn_implementation=attention,
    )
    return BertForSequenceClassification(config)


def gpt2(causal: bool = False) -> nn.Module:
    """Return a small GPT-2, with a head for classes or for the next token, drawn at random."""
    from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=LENGTH + 2,
        n_embd=WIDTH,
        n_layer=2,
        n_head=2,
        num_labels=CLASSES,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    return (GPT2LMHeadModel if causal else GPT2ForSequenceClassification)(config)


def lora() -> nn.Module:
    """Return a small BERT that is trained by low-rank changes of its attention alone."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=2, lora_alpha=4, target_modules=["query", "value"], modules_to_save=["classifier"]
    )
    return get_peft_model(bert(dropout=0.0), config)


def hugging_face(made: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Return a function that makes the logits of a model of `transformers`."""
    return lambda: Logits(made)


def _compiled() -> nn.Module:
    return torch.compile(
        nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, CLASSES)), backend="eager"
    )


def _multi_label() -> nn.Module:
    return nn.Sequential(nn.Conv1d(LENGTH, 5, 2), nn.SiLU(), nn.Flatten(), nn.Linear(15, 4))


def _multi_output() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4 * LENGTH, 6), nn.Hardswish(), nn.Linear(6, 2))


def _numbers(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(size=(n, 4)).astype(np.float32)


class OfTokens(nn.CrossEntropyLoss):
    """Cross-entropy of the next token: outputs (n, T, C) and targets (n, T), all positions alike."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().forward(outputs.flatten(0, 1), targets.flatten())


@dataclass
class _Recipe:
    made: Callable[[], nn.Module]
    rows: Callable[[np.random.Generator, int], Any]
    targets: Callable[[np.random.Generator, int, Any], np.ndarray] = _classes
    criterion: type[nn.Module] = nn.CrossEntropyLoss
    dtype: torch.dtype = torch.float32


NETWORKS: dict[str, _Recipe] = {
    "conv": _Recipe(Conv, _images),
    "resnet9, batch norm": _Recipe(ResNet9, _images),
    "resnet9, group norm": _Recipe(lambda: ResNet9(group_norm), _images),
    "encoder": _Recipe(Encoder, _tokens),
    "decoder, tied": _Recipe(Decoder, _tokens),
    "bert": _Recipe(hugging_face(bert), _padded),
    "gpt2": _Recipe(hugging_face(gpt2), _padded),
    "lstm": _Recipe(Recurrent, _sequences),
    "gru": _Recipe(lambda: Recurrent(nn.GRU, bidirectional=False), _sequences),
    "lora": _Recipe(hugging_face(lora), _padded),
    "two inputs": _Recipe(TwoInputs, _two),
    "multi-label": _Recipe(_multi_label, _sequences, _several_labels, nn.BCEWithLogitsLoss),
    "multi-output": _Recipe(_multi_output, _sequences, _several_numbers, nn.MSELoss),
    "language model": _Recipe(lambda: Decoder(None), _tokens, _next_tokens, OfTokens),
    "frozen parts": _Recipe(Frozen, _sequences),
    "compiled": _Recipe(_compiled, _numbers),
    "bfloat16": _Recipe(Encoder, _tokens, dtype=torch.bfloat16),
}

#: Those that need a library that is not installed with the package.
NEEDS = {"bert": "transformers", "gpt2": "transformers", "lora": "peft"}


def _without_dropout(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif isinstance(part, nn.MultiheadAttention):
            part.dropout = 0.0
    return module


def case(
    name: str, dtype: torch.dtype | None = None, epochs: int = 3, dropout: bool = True
) -> Case:
    """Return a network of `NETWORKS`, trained by skorch with SGD and recorded, and its rows.

    It is made and trained in float32, and then put into its own type or the one asked for.
    """
    recipe = NETWORKS[name]
    rng = np.random.default_rng(0)
    X, X_test = recipe.rows(rng, N), recipe.rows(rng, N_TEST)
    y, y_test = recipe.targets(rng, N, X), recipe.targets(rng, N_TEST, X_test)
    torch.manual_seed(0)
    classifies = recipe.criterion is nn.CrossEntropyLoss
    net = (skorch.NeuralNetClassifier if classifies else skorch.NeuralNet)(
        recipe.made if dropout else lambda: _without_dropout(recipe.made()),
        criterion=recipe.criterion,
        optimizer=torch.optim.SGD,
        lr=0.05,
        batch_size=8,
        max_epochs=epochs,
        train_split=None,
        verbose=0,
        callbacks=[TrajectoryRecorder(checkpoints="all", batches=True)],
    )
    net.fit(X, y)
    wanted = dtype or recipe.dtype
    if wanted != torch.float32:
        net.module_.to(wanted)
    return Case(net, X, y, X_test, y_test)


def bare(name: str, dtype: torch.dtype | None = None) -> Case:
    """Return the same network as a module in evaluation mode, with its criterion."""
    trained = case(name, dtype)
    criterion = NETWORKS[name].criterion
    trained.params = {"criterion": nn.CrossEntropyLoss() if criterion is OfTokens else criterion()}
    trained.model = copy.deepcopy(trained.model.module_).eval()
    return trained
