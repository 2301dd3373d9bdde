"""TREX: a ridge regression on the leaves that rows share, in place of the trees."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array
from torch import nn

from .._validation import POSITIVE_INTEGER, POSITIVE_REAL, StrOptions, check_random_state
from ..measured import Measured
from ..measurements import Measurement
from ..model import DEFAULT_BUDGET
from ..trees import Boosting, FirstOrder, Forest, Landmarks, LeafRidge, differences, modes_of
from ..trees.ensemble import Leaves
from ..trials import Trial
from .families.trees import BaseTrees, Floats

#: The constant's product with itself, in the same parts: so large that the ridge hardly weighs on it.
_CONSTANT = 1e3

#: Landmarks below which a kernel is not approximated.
_FEWEST = 32

#: Least second derivative of a row's loss, in parts of the mean.
_FLAT = 1e-6


class TREX(BaseTrees):
    r"""Put a ridge regression on shared leaves in place of the trees, and leave each row out of that.

    .. math:: S_{z,i} = m_z\Big(f(z) - \big(k_z^\top M\big)_i \frac{c_i}{M_{ii}}\Big) - m_z(f(z)), \qquad
              M = (K + \alpha D^{-1})^{-1}, \quad c = M r

    with :math:`K_{ij}` the mean over the trees of one over the number of training rows in the leaf that i and
    j share, 0 where they share none; f are the trees' own raw scores. The regression is fitted to
    :math:`r = f - g / h` by weights :math:`D = \mathrm{diag}(w h)`, with g and h the first and second
    derivatives of a row's loss: the least squares that a step of Newton's method solves. For the squared
    error, and for forests, r are the targets. The change is exact for this regression, and so is that of
    another :math:`r_i` by another weight, where row i gets another target (`relabel`).

    Parameters
    ----------
    estimator : object, default=None
        Fitted trees, alone or at the end of a Pipeline; unfitted ones are cloned and fitted. They may be
        boosted, a random forest, extremely randomised trees, a bag of trees or a single tree; None is a
        small HistGradientBoosting model.
    measurement : str or callable, default="loss"
        What is attributed: ``"loss"``, ``"margin"``, ``"log_prob"``, ``"output"`` or a callable
        ``m(outputs, targets)`` giving one number per row. Outputs are the trees' raw scores.
    alpha : {"model", "leave-one-out"} or float, default="model"
        The ridge. ``"model"`` takes the one whose regression is closest to the raw scores of the trees on the
        training rows, ``"leave-one-out"`` the one that predicts rows best that were left out.
    n_landmarks : int, default=None
        Rows, drawn at random, by which the kernel is approximated (Nystroem). None takes the whole kernel, or
        as many landmarks as fit the memory budget if the whole does not. All rows are scored.
    criterion : nn.Module, default=None
        Training criterion of a bare ``nn.Module``. Trees have their own: leave it None.
    memory_budget : int, default=512 MiB
        Bytes that the decomposition of the kernel and the changed outputs of a block of test rows may take.
    random_state : int, RandomState or None, default=None
        Used to fit an unfitted `estimator`.

    Attributes
    ----------
    estimator_ : object
        The final model.
    model_ : TreeModel
        Its frozen functional view.
    alpha_ : ndarray of shape (n_outputs,)
        The ridge for each output.
    fidelity_ : float
        Correlation of the regression with the trees' raw scores on training rows.
    n_landmarks_ : int or None
        Landmarks of the kernel, None for the whole.
    kernel_error_ : float
        The part of the kernel's trace that landmarks leave out, apart from its constant; 0 for the whole.
    train_indices_ : ndarray of shape (n_train,)
        Training row of each column: all rows, in order.

    Raises
    ------
    MemoryError
        If the kernel does not fit the memory budget, neither by rows nor by leaves nor by a few landmarks.
    ValueError
        If the values of the leaves do not come from the rows given.

    Notes
    -----
    The leaves were found with all rows: they fit the targets of the training rows too well, so that
    predicting rows left out asks for too small a ridge. For 100 rounds of boosting on 200 rows of the
    diabetes data, the correlation with the scores of `LeafRefit` over rows was .78 with ``"model"`` and .44
    with ``"leave-one-out"``; .20 with the trees' raw scores in place of r, .74 where shared leaves count 1
    whatever their number of rows. Losses without a second derivative have r = y and h = 1.

    The decomposition takes the cube of the number of rows, or of leaves if those are fewer.

    References
    ----------
    Brophy and Lowd, "TREX: Tree-Ensemble Representer-Point Explanations", arXiv 2009.05530, 2020.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.ensemble import HistGradientBoostingRegressor
    >>> from fimoda import TREX
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = HistGradientBoostingRegressor(max_iter=20).fit(X, y)
    >>> trex = TREX(model).fit(X, y)
    >>> trex.transform(X[:4], y[:4]).shape, bool(trex.fidelity_ > 0.9)
    ((4, 442), True)
    """

    process = "a ridge regression on the leaves without the row, with the splits of the trees held"

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseTrees._parameter_constraints,
        "n_landmarks": [POSITIVE_INTEGER, None],
        "alpha": [POSITIVE_REAL, StrOptions({"model", "leave-one-out"})],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        measurement: Measurement = "loss",
        alpha: float | Literal["model", "leave-one-out"] = "model",
        n_landmarks: int | None = None,
        criterion: nn.Module | None = None,
        memory_budget: int = DEFAULT_BUDGET,
        random_state: Any = None,
    ):
        super().__init__(
            estimator, measurement=measurement, criterion=criterion, random_state=random_state
        )
        self.alpha = alpha
        self.n_landmarks = n_landmarks
        self.memory_budget = memory_budget

    def _expected_seconds(self, trial: Trial) -> float:
        own = trial.prepared(self)
        side = min(trial.n_rows, int(own.model_.ensemble.firsts[-1]) + 1)
        return float(own.n_outputs_ * side**3 / trial.eigen_rate)

    def _fit(self) -> None:
        ensemble, leaves = self.model_.ensemble, self.model_.leaves(self._objective.rows.inputs)
        outputs = ensemble.outputs(leaves)
        self._check_rows()
        wanted, curvatures = self._wanted(outputs, self._objective.rows.targets.cpu().numpy())
        weights = self._row_weights * curvatures
        shared = ensemble.indicators(leaves)
        sizes = shared.sum(0)
        shares = np.divide(
            1, sizes * len(ensemble.trees), out=np.zeros(len(sizes)), where=sizes > 0
        )
        self._shares = np.sqrt(shares)
        # a row shares a leaf with itself in each tree
        self._constant = float(_CONSTANT * shares[leaves + ensemble.firsts[:-1]].sum(1).mean())
        features = self._of_leaves(leaves)
        used = int((sizes > 0).sum()) + 1
        self.n_landmarks_ = self._check_memory(len(leaves), used, len(np.unique(weights, axis=0)))
        self.kernel_error_, self._landmarks, mapped = 0.0, None, None
        if self.n_landmarks_ is not None:
            rng = check_random_state(self.random_state)
            rows = np.sort(rng.choice(len(leaves), self.n_landmarks_, replace=False))
            self._landmarks = Landmarks.of(features, self._constant, rows)
            self.kernel_error_ = self._landmarks.error(features)
            mapped = self._landmarks(features)
        self._features: csr_array | Floats = features if mapped is None else mapped
        self._ridges: list[LeafRidge] = []
        for k, (h, r, f) in enumerate(zip(weights, wanted, outputs, strict=True)):
            same = k > 0 and np.array_equal(h, weights[k - 1])
            known = self._ridges[-1].modes if same else modes_of(self._features, self._constant, h)
            self._ridges.append(LeafRidge.of(known, h, r, f, self.alpha))
        self.alpha_ = np.array([ridge.alpha for ridge in self._ridges])
        self.fidelity_ = _correlation(np.stack([ridge.fitted for ridge in self._ridges]), outputs)

    def _check_rows(self) -> None:
        """Raise ValueError if the leaves do not come from the rows given, as far as that can be followed."""
        ensemble, rows = self.model_.ensemble, self._objective.rows
        if isinstance(ensemble, Boosting) and ensemble.loss.is_smooth:
            with suppress(TypeError):  # a training that cannot be followed
                self.model_.run(rows)
        elif isinstance(ensemble, Forest) and ensemble.leaves_are_means:
            self.model_.forest_rows(rows)

    def _wanted(self, outputs: Floats, targets: NDArray[Any]) -> tuple[Floats, Floats]:
        """Return what the regression is fitted to, of encoded targets, and the curvatures, both (C, n)."""
        ensemble = self.model_.ensemble
        if not (isinstance(ensemble, Boosting) and ensemble.loss.is_smooth):
            return self.model_.averaged(targets).T, np.ones_like(outputs)
        loss = ensemble.loss.loss if isinstance(ensemble.loss, FirstOrder) else ensemble.loss
        g, h = loss.derivatives(outputs, loss.encoded(targets, len(outputs)))
        if loss.is_coupled:  # outputs are fitted one by one
            h = np.moveaxis(np.diagonal(h), -1, 0)
        h = np.maximum(h, _FLAT * h.mean(1, keepdims=True))
        return outputs - g / h, h

    def _check_memory(self, n: int, used: int, n_weights: int) -> int | None:
        """Return the number of landmarks, or None if the whole kernel of n rows in so many leaves fits.

        Raises MemoryError if not even a few landmarks fit.
        """

        def needed(rank: int) -> int:
            return 8 * (n_weights * n * rank + n * rank + 3 * rank**2)

        rank = min(n, used)
        if self.n_landmarks is None and needed(rank) <= self.memory_budget:
            return None
        wanted = min(self.n_landmarks or rank - 1, n)
        if self.n_landmarks is None:
            per_row = n * (n_weights + 1)
            fits = (np.sqrt(per_row**2 + 12 * (self.memory_budget / 8)) - per_row) / 6
            wanted = min(int(fits), wanted)
        if needed(wanted) > self.memory_budget or (self.n_landmarks is None and wanted < _FEWEST):
            raise MemoryError(
                f"the kernel of {n} rows in {used - 1} leaves takes {needed(rank) / 2**20:.0f} MiB, and "
                f"{max(wanted, _FEWEST)} landmarks {needed(max(wanted, _FEWEST)) / 2**20:.0f} MiB, more than "
                f"memory_budget={self.memory_budget / 2**20:.0f} MiB. Raise memory_budget to {needed(rank)}, "
                "grow fewer or smaller trees, or use LeafInfluence (boosting) or LeafKernel (forests)."
            )
        return wanted

    def _known_error(self, scores: Floats) -> list[str]:
        if self.n_landmarks_ is None:
            return super()._known_error(scores)
        told = f"{self.n_landmarks_} landmarks leave out {self.kernel_error_:.0%} of the kernel"
        return [*super()._known_error(scores), told]

    def _of_leaves(self, leaves: Leaves) -> csr_array:
        """Return features (m, n_leaves) whose products are the kernel, but for its constant."""
        return csr_array(self.model_.ensemble.indicators(leaves) @ diags_array(self._shares))

    def _scores(self, test: Measured) -> Floats:
        all_rows = np.arange(len(self.train_indices_))
        return self._changed(test, all_rows, [-ridge.left for ridge in self._ridges])

    def _relabelled(self, test: Measured, rows: NDArray[np.int64], targets: NDArray[Any]) -> Floats:
        new, factors = self._relabels(rows, targets)
        known = self._objective.rows
        all_targets = known.targets.cpu().numpy().copy()
        all_targets[rows] = new
        outputs = self.model_.ensemble.outputs(self.model_.leaves(known.inputs))
        weights = self._row_weights[rows] * factors
        asked = zip(self._ridges, *self._wanted(outputs, all_targets), strict=True)
        numbers = [ridge.relabelled(rows, r[rows], weights * h[rows]) for ridge, r, h in asked]
        return self._changed(test, rows, numbers)

    @property
    def _row_weights(self) -> Floats:
        """Weights (n,) of the training rows, with those of their classes."""
        rows = self._objective.rows
        return np.ones(len(rows)) if rows.weights is None else rows.weights.double().cpu().numpy()

    def _changed(self, test: Measured, rows: NDArray[np.int64], numbers: list[Floats]) -> Floats:
        """Return the effects (n_test, k) of rows that are changed by these numbers (k,) for each output."""
        bytes_of_row = 8 * self._features.shape[0] * (3 * self.n_outputs_ + 3)
        found = []
        for block in test.blocks(self.memory_budget, bytes_of_row):
            leaves = self.model_.leaves(block.inputs)
            features = self._of_leaves(leaves)
            if self._landmarks is None:
                kernel = (features @ self._features.T).toarray() + self._constant
            else:
                kernel = self._landmarks(features) @ self._features.T
            each = zip(self._ridges, numbers, strict=True)
            moved = np.stack([ridge.changes(kernel, rows, own) for ridge, own in each])
            found.append(differences(block, self.model_.ensemble.outputs(leaves), moved))
        return np.concatenate(found)


def _correlation(one: Floats, other: Floats) -> float:
    """Return the correlation of numbers (C, n), each output about its mean; 1 if neither varies."""
    a, b = (x - x.mean(1, keepdims=True) for x in (one, other))
    size = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / size) if size > 1e-12 * max(1, len(a)) else 1.0
