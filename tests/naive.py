"""Further training and refitting the plain way: one model, one left-out row, one seed at a time, float64.

Nothing here comes from fimoda: torch's own DataLoader, autograd and optimisers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

#: (outputs, targets, indices of the rows) -> scalar objective of a batch
Objective = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class Naive:
    """A run of further training.

    Parameters
    ----------
    module : nn.Module
        The final model; a copy is trained for each run.
    X, y : Tensor
        Training rows and targets, as `objective` takes them.
    objective : callable
    measure : callable
        (outputs, targets) -> one number per row, taken in evaluation mode.
    l2 : callable, default=None
        Penalty of a module, added to the objective of each batch.
    batch_statistics : {"update", "frozen"}
        What batch normalisation does.
    clip : callable, default=None
        Changes the gradients of a module before each step.
    groups : callable, default=None
        Parameter groups of a module; their learning rates follow that of the others.
    row_weights : Tensor of shape (n,), default=None
        Weights of the rows in the objective, all the same by default.
    """

    module: nn.Module
    X: Tensor
    y: Tensor
    objective: Objective
    measure: Callable[[Tensor, Tensor], Tensor]
    optimizer: type[torch.optim.Optimizer] = torch.optim.SGD
    lr: float | Callable[[int], float] = 0.1
    params: dict = field(default_factory=dict)
    batch_size: int = 16
    l2: Callable[[nn.Module], Tensor] | None = None
    batch_statistics: str = "update"
    clip: Callable[[nn.Module], object] | None = None
    groups: Callable[[nn.Module], list[dict]] | None = None
    row_weights: Tensor | None = None

    def _without(self, loss: Tensor, module: nn.Module, row: int) -> Tensor:
        """Return the objective of a batch, without the share of a row in all rows."""
        weights = torch.ones(len(self.X)).double() if self.row_weights is None else self.row_weights
        own = weights[row] / (weights.sum() - weights[row])
        if not own:
            return loss
        one = torch.tensor([row])
        return loss * (1 + own) - own * self.objective(module(self.X[one]), self.y[one], one)

    def _batches(self, order: Tensor, left_out: int | None, mode: str) -> list[list[int]]:
        if mode == "drop" and left_out is not None:
            order = order[order != left_out]
        return [rows.tolist() for rows in order.split(self.batch_size)]

    def _in_training(self, module: nn.Module) -> nn.Module:
        module.train()
        for part in module.modules() if self.batch_statistics == "frozen" else ():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()
        return module

    def _is_normalised(self) -> bool:
        """Whether outputs of a row in training depend on the other rows of its batch."""
        norms = (nn.modules.batchnorm._BatchNorm,)
        own = any(isinstance(part, norms) for part in self.module.modules())
        return own and self.batch_statistics == "update"

    def train(
        self, seed: int, left_out: int | None, mode: str, n_epochs: int
    ) -> Iterator[nn.Module]:
        """The model after each epoch."""
        for module, ends in self.steps(seed, left_out, mode, n_epochs):
            if ends:
                yield module

    def steps(
        self, seed: int, left_out: int | None, mode: str, n_epochs: int
    ) -> Iterator[tuple[nn.Module, bool]]:
        """The model after each step, and whether an epoch ends there."""
        module = self._in_training(copy.deepcopy(self.module))
        lr = self.lr if callable(self.lr) else lambda _: self.lr
        trainable = [p for p in module.parameters() if p.requires_grad]
        parts = trainable if self.groups is None else self.groups(module)
        optimizer = self.optimizer(parts, lr=lr(0), **self.params)
        begun = [group["lr"] for group in optimizer.param_groups]
        data = TensorDataset(self.X, self.y, torch.arange(len(self.X)))
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)  # dropout
        for epoch in range(n_epochs):
            for group, first in zip(optimizer.param_groups, begun, strict=True):
                group["lr"] = first * (lr(epoch) / lr(0))
            order = torch.randperm(len(self.X), generator=generator)
            batches = self._batches(order, left_out, mode)
            # a generator of its own: the loader must not draw from dropout's stream
            loader = DataLoader(data, batch_sampler=batches, generator=torch.Generator())
            for number, (x, y, rows) in enumerate(loader, start=1):
                beside = mode == "expected" and left_out is not None
                whole = beside or left_out is None
                kept = torch.ones(len(rows), dtype=bool) if whole else rows != left_out
                if self._is_normalised() and kept.sum() > 1:  # the row is not there at all
                    x, y, rows, kept = x[kept], y[kept], rows[kept], kept[kept]
                outputs = module(x)
                loss = outputs.sum() * 0  # a batch of the left-out row alone is a step, too
                if kept.any():
                    loss = self.objective(outputs[kept], y[kept], rows[kept])
                if beside:
                    loss = self._without(loss, module, left_out)
                if self.l2 is not None:
                    loss = loss + self.l2(module)
                optimizer.zero_grad(set_to_none=False)
                loss.backward()
                if self.clip is not None:
                    self.clip(module)
                optimizer.step()
                yield module, number == len(batches)

    def measured(self, module: nn.Module, X: Tensor, y: Tensor) -> np.ndarray:
        module.eval()
        with torch.no_grad():
            values = self.measure(module(X), y)
        self._in_training(module)
        return values.numpy()

    def run(
        self,
        X_test: Tensor,
        y_test: Tensor,
        *,
        marks: Sequence[int],
        seeds: Sequence[int],
        leave_out: Sequence[int],
        mode: str = "mask",
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Measurements without each row (n_marks, n_test, n_left_out, n_seeds), with all rows
        (n_marks, n_test, n_seeds), and of the final model (n_test,)."""

        def along(seed: int, row: int | None) -> np.ndarray:
            models = enumerate(self.train(seed, row, mode, marks[-1]), start=1)
            return np.stack([self.measured(m, X_test, y_test) for e, m in models if e in marks])

        with torch.random.fork_rng():
            without = [[along(seed, row) for seed in seeds] for row in leave_out]
            full = [along(seed, None) for seed in seeds]
            final = self.measured(copy.deepcopy(self.module), X_test, y_test)
        return np.transpose(without, (2, 3, 0, 1)), np.transpose(full, (1, 2, 0)), final


def relative(found, expected) -> float:
    """Norm of the difference, relative to that of what is expected."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.linalg.norm(expected) > 0
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def close(found, expected, rtol: float = 1e-10) -> None:
    """Check that nothing differs by more than this part of the largest number expected."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * np.abs(expected).max())


def refits(
    model: BaseEstimator,
    X: np.ndarray,
    y: np.ndarray,
    measure: Callable[[BaseEstimator], np.ndarray],
    rows: Iterable[int] | None = None,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Return the change (n_test, n_rows) of what is measured when the model is fitted without each row."""

    def measured(rest: np.ndarray) -> np.ndarray:
        given = {} if weights is None else {"sample_weight": weights[rest]}
        return measure(clone(model).fit(X[rest], y[rest], **given))

    every = np.arange(len(X))
    full = measured(every)
    left_out = every if rows is None else rows
    return np.stack([measured(np.delete(every, i)) - full for i in left_out], axis=-1)
