"""Logistic regression of many subsets of the rows at once, by Newton's method."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from .closed_fits import NUMBERS, Floats, LinearFits, with_ones

#: Steps, halvings of a step, and the largest entry of a gradient at which a fit is done.
_STEPS, _HALVINGS, _TOLERANCE = 100, 20, 1e-8


@dataclass(frozen=True)
class LogisticFits(LinearFits):
    r"""Fits of logistic regression to many subsets, to convergence.

    They minimise :math:`\sum_{i \in S} w_i \ell_i + \frac{1}{2C} \lVert W \rVert^2`, the intercepts without
    penalty; of two classes with one logit, of more with the softmax. A subset that has not every class has
    no fit.
    """

    C: float = 1.0
    intercept: bool = True

    def _fits(self, masks: NDArray[np.bool_]) -> Floats:
        classes = np.asarray(self.model.classes)
        X, codes = with_ones(self.X.values), np.searchsorted(classes, np.ravel(self.y))
        X = X if self.intercept else X * np.append(np.ones(X.shape[1] - 1), 0.0)
        n_classes = len(classes)
        hot = np.eye(n_classes)[codes]
        weights = self._weighted(masks)
        n_logits = 1 if n_classes == 2 else n_classes
        found = np.full((len(masks), n_logits, X.shape[1]), np.nan)
        whole = np.flatnonzero((weights @ hot > 0).all(1))
        each = max(len(X) * n_classes, (n_logits * X.shape[1]) ** 2)
        for part in np.array_split(whole, -(-max(len(whole), 1) * each // NUMBERS)):
            if len(part):
                found[part] = self._minima(X, hot, weights[part])
        return found

    def _minima(self, X: Floats, hot: Floats, weights: Floats) -> Floats:
        """Return the coefficients (L, C, p) where the objective of each subset is smallest."""
        binary = hot.shape[1] == 2
        n_logits, p = (1 if binary else hot.shape[1]), X.shape[1]
        theta = np.zeros((len(weights), n_logits, p))
        penalty = np.append(np.full(p - 1, 1 / self.C), 0.0)
        # directions that change nothing: a constant of all logits, and an intercept that is not there
        fixed = np.zeros((n_logits * p, n_logits * p))
        ends = np.arange(n_logits) * p + p - 1
        fixed[np.ix_(ends, ends)] = 0.0 if binary else 1.0
        if not self.intercept:
            fixed[ends, ends] += 1.0
        pairs = (X[:, :, None] * X[:, None]).reshape(len(X), -1)
        value = self._objective(theta, X, hot, weights, penalty)
        active = np.arange(len(weights))
        for _ in range(_STEPS):
            now, own = theta[active], weights[active]
            shares = np.exp(self._log_shares(now, X))[:, :, -n_logits:]
            slopes = own[:, :, None] * (shares - hot[:, -n_logits:])
            gradient = np.einsum("lnc,np->lcp", slopes, X, optimize=True) + penalty * now
            open_ = np.abs(gradient).max((1, 2)) > _TOLERANCE * np.maximum(1.0, own.sum(1))
            if not open_.any():
                break
            active, now, own = active[open_], now[open_], own[open_]
            gradient, shares = gradient[open_].reshape(len(active), -1), shares[open_]
            curvature = self._curvature(shares, own, pairs, p) + fixed
            curvature += np.diag(np.tile(penalty, n_logits))
            step = np.linalg.solve(curvature, gradient[:, :, None]).reshape(now.shape)
            size = np.ones(len(active))
            for _ in range(_HALVINGS):
                tried = now - size[:, None, None] * step
                new = self._objective(tried, X, hot, own, penalty)
                rises = new > value[active] + 1e-12 * np.abs(value[active])
                if not rises.any():
                    break
                size[rises] /= 2
            theta[active], value[active] = tried, new
        return theta

    def _log_shares(self, theta: Floats, X: Floats) -> Floats:
        """Return the logarithms of the classes' probabilities (L, n, K)."""
        logits = np.einsum("np,lcp->lnc", X, theta, optimize=True)
        if logits.shape[2] == 1:
            logits = np.concatenate([np.zeros_like(logits), logits], axis=2)
        return np.asarray(log_softmax(logits, axis=2))

    def _objective(
        self, theta: Floats, X: Floats, hot: Floats, weights: Floats, penalty: Floats
    ) -> Floats:
        losses = -(self._log_shares(theta, X) * hot).sum(2)
        return np.asarray((weights * losses).sum(1) + 0.5 * (penalty * theta**2).sum((1, 2)))

    def _curvature(self, shares: Floats, weights: Floats, pairs: Floats, p: int) -> Floats:
        """Return the second derivative (L, C p, C p) of the loss."""
        n_logits = shares.shape[2]
        blocks = np.empty((len(shares), n_logits, p, n_logits, p))
        for a in range(n_logits):
            for b in range(a, n_logits):
                slope = weights * shares[:, :, a] * ((a == b) - shares[:, :, b])
                block = (slope @ pairs).reshape(-1, p, p)
                blocks[:, a, :, b] = blocks[:, b, :, a] = block
        return blocks.reshape(len(shares), n_logits * p, -1)
