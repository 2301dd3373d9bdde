"""Attribution of image networks on CIFAR-10: every method beside a gold standard of many seeds.

    FIMODA_DATA=path/to/data python benchmarks/images.py --output images --small
    FIMODA_DATA=path/to/data python benchmarks/images.py --output images
    python benchmarks/images.py --data path --output images --gold benchmarks/gold/transformer-AdamW.npz \
        --cases transformer --further AdamW

A narrow ResNet-9 with batch normalisation (38,930 parameters) and a vision transformer (81,754), on 5,000
images, trained by skorch and trained further by SGD and by AdamW; see `removal_protocol.py` for the protocol
and what is kept. In the case "resnet9, frozen" further training leaves the statistics of batch normalisation
as they are. Images and networks are kept in
`--output`, after which the data are not needed.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import removal_protocol
import skorch
import torch
from engine import ResNet9
from removal_protocol import Case, Rows
from torch import Tensor, nn

from fimoda.datasets import load_cifar10

BATCH = 64


class VisionTransformer(nn.Module):
    """Patches of 4 x 4, four layers of width 48."""

    def __init__(self, width: int = 48):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.places = nn.Parameter(0.02 * torch.randn(64, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, X: Tensor) -> Tensor:
        hidden = self.patches(X).flatten(2).mT + self.places
        return self.head(self.layers(hidden).mean(1))


def resnet9(args: argparse.Namespace) -> nn.Module:
    torch.manual_seed(0)
    return ResNet9(nn.BatchNorm2d)


def transformer(args: argparse.Namespace) -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer()


def images(args: argparse.Namespace) -> Rows:
    """Return the images, from the disk if they are there."""
    args.rows = args.rows or 5000
    path = args.output / f"images-{args.rows}-{args.test}.npz"
    if not path.exists():
        X, y = load_cifar10(args.data, n_rows=args.rows, return_X_y=True)
        X_test, y_test = load_cifar10(args.data, subset="test", n_rows=args.test, return_X_y=True)
        np.savez_compressed(path, X=X, y=y, X_test=X_test, y_test=y_test)
    with np.load(path) as file:
        return Rows(*(file[name] for name in ("X", "y", "X_test", "y_test")))


def trainer(n_epochs: int, **settings: Any) -> Any:
    """Return a function that trains a network of its own with skorch."""

    def train(args: argparse.Namespace, module: nn.Module, rows: Rows) -> None:
        net = skorch.NeuralNetClassifier(
            module, criterion=nn.CrossEntropyLoss, batch_size=BATCH, max_epochs=n_epochs,
            train_split=None, iterator_train__shuffle=True, device=args.device, **settings,
        )  # fmt: skip
        torch.manual_seed(0)
        net.fit(rows.X, rows.y)
        module.load_state_dict(net.module_.state_dict())

    return train


SGD = {"optimizer": "SGD", "lr": 0.01, "batch_size": BATCH}
ADAMW = {"optimizer": "AdamW", "lr": 1e-4, "batch_size": BATCH}
FROZEN = {"batch_statistics": "frozen"}

by_momentum = trainer(15, optimizer=torch.optim.SGD, lr=0.05, optimizer__momentum=0.9)
by_adamw = trainer(20, optimizer=torch.optim.AdamW, lr=1e-3)

#: SOURCE has the final model for the whole run.
OF_MOMENTUM = {"SOURCE": {"n_epochs": 15, "lr": 0.5, "batch_size": BATCH}}
OF_ADAMW = {"SOURCE": {"n_epochs": 20, "lr": 1e-3, "batch_size": BATCH}}

#: On a CPU.
FEW = {"own order, a run": 12, "expected order, a run": 12}

BOTH, STAYS = {"SGD": SGD, "AdamW": ADAMW}, {"SGD": SGD | FROZEN, "AdamW": ADAMW | FROZEN}

CASES = {
    "resnet9": Case(images, resnet9, by_momentum, BOTH, OF_MOMENTUM, FEW),
    "resnet9, frozen": Case(images, resnet9, by_momentum, STAYS, OF_MOMENTUM, FEW),
    "transformer": Case(images, transformer, by_adamw, BOTH, OF_ADAMW),
}

if __name__ == "__main__":
    import images as this  # so that workers find the networks' classes by the name of this file

    removal_protocol.main(__doc__, this.CASES)
