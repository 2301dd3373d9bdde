"""Boosting with the splits held, the plain way: one tree, one leaf, one left-out row at a time, float64.

Nothing here comes from fimoda: the leaves are the library's own, the formulas are written out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


#: Rows, and test rows, which are the last of them.
N, N_TEST = 60, 5


def problem(kind: str) -> tuple[Floats, Floats, Floats]:
    """Return rows with missing values, targets, and weights of which two are zero."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, 4))
    signal = X[:, 0] + 0.5 * X[:, 1] + 0.3 * rng.normal(size=N)
    X[rng.random(X.shape) < 0.1] = np.nan
    y = {
        "real": signal,
        "two": np.stack([signal, 1 - 2 * signal**2], 1),
        "binary": (signal > 0.3).astype(float),
        "classes": np.digitize(signal, [-0.5, 0.6]).astype(float),
        "count": rng.poisson(np.exp(signal)).astype(float),
        "positive": np.exp(signal),
    }[kind]
    w = rng.uniform(0.5, 2, N)
    w[:2] = 0
    return X, y, w


def mean(w: Floats, y: Floats) -> Floats:
    return np.average(y, weights=w, axis=0)


def logit(p: Floats) -> Floats:
    return np.log(p / (1 - p))


def assert_close(found: Floats, expected: Floats, tolerance: float) -> None:
    """Compare arrays by the largest number of the expected one."""
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def softmax(f: Floats) -> Floats:
    powers = np.exp(f - f.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def sigmoid(f: Floats) -> Floats:
    return 1 / (1 + np.exp(-f))


def hits(y: Floats, n_classes: int) -> Floats:
    return (np.asarray(y)[:, None] == np.arange(n_classes)).astype(float)


@dataclass
class Loss:
    """First and second derivatives (n, C) of scores f (n, C), and the loss (n,)."""

    g: Callable[[Floats, Floats], Floats]
    h: Callable[[Floats, Floats], Floats]
    loss: Callable[[Floats, Floats], Floats]


squared = Loss(
    lambda f, y: f - y.reshape(f.shape),
    lambda f, y: np.ones_like(f),
    lambda f, y: ((f - y.reshape(f.shape)) ** 2).sum(1),
)
logistic = Loss(
    lambda f, y: sigmoid(f) - y[:, None],
    lambda f, y: sigmoid(f) * (1 - sigmoid(f)),
    lambda f, y: np.log1p(np.exp(np.where(y == 1, -1, 1) * f[:, 0])),
)


def multiclass(factor: float) -> Loss:
    return Loss(
        lambda f, y: softmax(f) - hits(y, f.shape[1]),
        lambda f, y: factor * softmax(f) * (1 - softmax(f)),
        lambda f, y: -np.log(softmax(f)[np.arange(len(f)), y.astype(int)]),
    )


def poisson(step: float) -> Loss:
    return Loss(
        lambda f, y: np.exp(f) - y[:, None],
        lambda f, y: np.exp(f + step),
        lambda f, y: np.exp(f[:, 0]) - y * f[:, 0],
    )


gamma = Loss(
    lambda f, y: 1 - y[:, None] * np.exp(-f),
    lambda f, y: y[:, None] * np.exp(-f),
    lambda f, y: f[:, 0] + y * np.exp(-f[:, 0]),
)


def tweedie(p: float) -> Loss:
    return Loss(
        lambda f, y: np.exp((2 - p) * f) - y[:, None] * np.exp((1 - p) * f),
        lambda f, y: (2 - p) * np.exp((2 - p) * f) - (1 - p) * y[:, None] * np.exp((1 - p) * f),
        lambda f, y: np.exp((2 - p) * f[:, 0]) / (2 - p) - y * np.exp((1 - p) * f[:, 0]) / (1 - p),
    )


@dataclass
class ByHand:
    """A run of boosting on rows whose leaves (n, n_trees) are known.

    Parameters
    ----------
    start : callable
        From weights (n,) and targets to the score before the first tree, (C,).
    factors : ndarray of shape (n,)
        Weights of the rows by their class, of which the start knows what it wants.
    """

    leaves: NDArray[np.int64]
    test: NDArray[np.int64]
    y: Floats
    w: Floats
    loss: Loss
    start: Callable[[Floats, Floats], Floats]
    eta: float
    l2: float = 0.0
    l1: float = 0.0
    max_step: float = np.inf
    factors: Floats | float = 1.0

    def run(self, w: Floats) -> tuple[list[Floats], list[Floats]]:
        """Return the scores before each round and after the last, of training and of test rows."""
        start = np.atleast_1d(self.start(w, self.y))
        C = len(start)
        f, F = np.tile(start, (len(self.y), 1)), np.tile(start, (len(self.test), 1))
        kept, kept_test = [f], [F]
        for first in range(0, self.leaves.shape[1], C):
            f, F = f.copy(), F.copy()
            g, h = (part(kept[-1], self.y) for part in (self.loss.g, self.loss.h))
            for k in range(C):
                leaves, test = self.leaves[:, first + k], self.test[:, first + k]
                for leaf in np.unique(leaves):
                    u = self.value(w, g[:, k], h[:, k], leaves == leaf)[0]
                    f[leaves == leaf, k] += self.eta * u
                    F[test == leaf, k] += self.eta * u
            kept.append(f)
            kept_test.append(F)
        return kept, kept_test

    def value(self, w: Floats, g: Floats, h: Floats, here: NDArray[np.bool_]) -> tuple:
        """Return the value u of a leaf and its H + lambda."""
        weights = (w * self.factors)[here]
        G, H = (weights * g[here]).sum(), (weights * h[here]).sum() + self.l2
        G = np.sign(G) * max(abs(G) - self.l1, 0)
        return (float(np.clip(-G / H, -self.max_step, self.max_step)) if H > 0 else 0.0), H

    def measured(self, w: Floats, y_test: Floats) -> Floats:
        return self.loss.loss(self.run(w)[1][-1], y_test)

    def refits(self, y_test: Floats) -> Floats:
        """Return the change of the loss of test rows without each training row."""
        found = []
        for i in range(len(self.y)):
            w = self.w.copy()
            w[i] = 0
            found.append(self.measured(w, y_test) - self.measured(self.w, y_test))
        return np.stack(found, 1)

    def slopes(self, y_test: Floats, step: float = 1e-4) -> Floats:
        """Return the same to first order, by central differences in the weight of each row."""
        found = []
        for i in range(len(self.y)):
            ends = []
            for sign in (1, -1):
                w = self.w.copy()
                w[i] *= 1 + sign * step
                ends.append(self.measured(w, y_test))
            found.append(-(ends[0] - ends[1]) / (2 * step))
        return np.stack(found, 1)

    def with_copy(self, row: int, target: Floats, factor: float = 1.0) -> ByHand:
        """Return the same with one more row, of weight zero: a copy with another target."""
        factors = self.factors
        if isinstance(factors, np.ndarray):
            factors = np.append(factors, factor)
        return replace(
            self,
            leaves=np.concatenate([self.leaves, self.leaves[row : row + 1]]),
            y=np.concatenate([self.y, [target]]),
            w=np.append(self.w, 0.0),
            factors=factors,
        )

    def relabelled(self, y_test: Floats, row: int, part: float) -> Floats:
        """Return the loss of test rows if the last row, a copy, has a part of the weight of another."""
        w = self.w.copy()
        w[row], w[-1] = (1 - part) * w[row], part * w[row]
        return self.measured(w, y_test)

    def relabels(
        self, y_test: Floats, rows: list[int], targets: Floats, positive: float = 1.0
    ) -> dict[str, Floats]:
        """Return what other targets do: exactly, to first order, and by the formula of BoostIn.

        Rows of the class 1 have a weight by it.
        """
        found: dict[str, list[Floats]] = {"exact": [], "derivative": [], "boost_in": []}
        for row, target in zip(rows, targets, strict=True):
            is_positive = np.ndim(target) == 0 and target == 1
            own = self.with_copy(row, target, positive if is_positive else 1.0)
            before, after, up, down = (
                own.relabelled(y_test, row, part) for part in (0, 1, 1e-4, -1e-4)
            )
            found["exact"].append(after - before)
            found["derivative"].append((up - down) / 2e-4)
            weights = np.append(self.w, self.w[row])
            each = own.boost_in(y_test, weights)
            found["boost_in"].append(each[:, row] - each[:, -1])
        return {name: np.stack(one, 1) for name, one in found.items()}

    def boost_in(self, y_test: Floats, weights: Floats | None = None) -> Floats:
        """Return the sum over trees that BoostIn is; values at the largest step or zero by l1 stay.

        `weights` are those that the rows have in it, their own by default.
        """
        weights = self.w if weights is None else weights
        f, F = self.run(self.w)
        C = f[0].shape[1]
        found = np.zeros((len(self.test), len(self.y)))
        for t in range(self.leaves.shape[1]):
            before, before_test, k = f[t // C], F[t // C], t % C
            g, h = self.loss.g(before, self.y)[:, k], self.loss.h(before, self.y)[:, k]
            moved = np.eye(C)[k] * 1e-5
            up, down = (self.loss.loss(before_test + s * moved, y_test) for s in (1, -1))
            slope = (up - down) / 2e-5
            for leaf in np.unique(self.leaves[:, t]):
                here = self.leaves[:, t] == leaf
                u, total = self.value(self.w, g, h, here)
                if abs(u) == self.max_step or (self.l1 and u == 0):
                    continue
                change = here * self.eta * (weights * self.factors) * (g + u * h) / total
                found += np.outer(slope * (self.test[:, t] == leaf), change)
        return found
