"""DataInf: closed-form influence from the mean of rank-one inverses."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .._validation import POSITIVE_REAL, StrOptions
from ..base import BaseAttributor
from ..curvature.checks import check_gradients
from ..curvature.datainf import DataInfSolver
from ..curvature.removal import Removal
from ..measured import Measured
from ..measurements import Measurement
from ..trials import Trial

#: ``damping="auto"`` is this many times the mean squared entry of the gradients in a layer.
DAMPING_FACTOR = 0.1


class DataInf(BaseAttributor):
    r"""Influence function with the mean of inverses in place of the inverse of the mean.

    .. math:: S_{z,i} = \tilde w_i \sum_l \frac{1}{\lambda_l} \sum_j \tilde w_j \Big[
        \nabla m_{z,l}^\top g_{il} - \frac{(g_{jl}^\top \nabla m_{z,l})(g_{jl}^\top g_{il})}
        {\lambda_l + \|g_{jl}\|^2}\Big],

    over the layers l (modules that own parameters), with :math:`\tilde w_i = w_i / \sum_j w_j` (1/n
    without weights). Each row's rank-one matrix :math:`g_{jl} g_{jl}^\top + \lambda_l I` is inverted
    in closed form and the inverses are averaged, over all training rows whatever the chunk size. An
    L2 penalty is left out of the curvature.

    Parameters
    ----------
    estimator : object, default=None
        Fitted model; an unfitted scikit-learn or skorch estimator is cloned and fitted. None is a
        small MLP.
    damping : float or "auto", default="auto"
        :math:`\lambda_l`, positive; "auto" is 0.1 times the mean squared entry of the rows'
        gradients in the layer (1 where all are zero: such a layer gives nothing).
    reweight_others : bool, default=False
        Score the removal of a row as fitting without it does it: the other rows get its part of a mean,
        so that it is compared with their mean gradient, and balanced class weights change. False is
        the field's formula, in which the others keep their weights.
    measurement : str or callable, default="loss"
        What is attributed: ``"loss"``, ``"margin"``, ``"log_prob"``, ``"output"`` or a callable
        ``m(outputs, targets)`` giving one number per row.
    criterion : nn.Module, default=None
        Training criterion of a bare ``nn.Module``.
    chunk_size : int, default=None
        Rows whose gradients are held at a time; from `memory_budget` by default.
    memory_budget : int, default=1 GiB
        Bytes for gradients and their products. Scores are the same for every value.
    random_state : int, RandomState or None, default=None
        Used to fit an unfitted `estimator`.

    Attributes
    ----------
    estimator_ : object
        The final model.
    model_ : FinalModel
        Its frozen functional view.
    damping_ : dict of str to float
        The damping used; may be changed after ``fit`` at no cost. It has a number for each layer.
    train_indices_ : ndarray of shape (n_train,)
        Training row of each column.

    References
    ----------
    Kwon et al., "DataInf: Efficiently Estimating Data Influence in LoRA-tuned LLMs and Diffusion
    Models", ICLR 2024, arXiv 2310.00902.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from fimoda import DataInf
    >>> X, y = load_diabetes(return_X_y=True)
    >>> DataInf(Ridge().fit(X, y)).fit(X, y).transform(X[:4], y[:4]).shape
    (4, 442)
    """

    process = "training to convergence near the final model"

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseAttributor._parameter_constraints,
        **BaseAttributor._BUDGET_CONSTRAINTS,
        "damping": [POSITIVE_REAL, StrOptions({"auto"})],
        "reweight_others": ["boolean"],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        damping: float | str = "auto",
        reweight_others: bool = False,
        measurement: Measurement = "loss",
        criterion: nn.Module | None = None,
        chunk_size: int | None = None,
        memory_budget: int = 2**30,
        random_state: Any = None,
    ):
        super().__init__(
            estimator, measurement=measurement, criterion=criterion, random_state=random_state
        )
        self.damping = damping
        self.reweight_others = reweight_others
        self.chunk_size = chunk_size
        self.memory_budget = memory_budget

    def _expected_seconds(self, trial: Trial) -> float:
        return trial.by_rows(self)

    def _fit(self) -> None:
        check_gradients(self._objective)
        self._solver = DataInfSolver(self._objective)
        self._share = self._objective.rows.shares.cpu().numpy()
        self._removal = Removal.of(self._objective, self.reweight_others)
        if not isinstance(self.damping, str):
            self.damping_ = dict.fromkeys(self._solver.layers, float(self.damping))
            return
        squares = dict(zip(self._solver.layers, self._solver.mean_squares.tolist(), strict=True))
        # a layer in which no row has a gradient gives nothing, whatever its damping
        self.damping_ = {name: DAMPING_FACTOR * s if s > 0 else 1.0 for name, s in squares.items()}

    def _damping(self) -> Tensor:
        """Return `damping_` as a vector (n_layers,)."""
        values = [self.damping_[name] for name in self._solver.layers]
        damping = torch.tensor(values, dtype=torch.float64, device=self.model_.device)
        lost = damping < torch.finfo(torch.float64).eps * self._solver.largest_squares
        if bool(lost.any()):
            k = int(lost.nonzero()[0, 0])
            raise ValueError(
                f"damping={values[k]:g} of the layer {list(self._solver.layers)[k]!r} is lost in rounding "
                f"beside gradients of squared length {float(self._solver.largest_squares[k]):.1e}. Raise "
                "damping, or leave it to 'auto'."
            )
        return damping

    def _scores(self, test: Measured) -> NDArray[np.float64]:
        found = self._solver.scores(test, self._damping()).cpu().numpy()
        return self._removal(found * self._share)

    def _self_influence(self) -> NDArray[np.float64]:
        if self._removal.changes_others:
            return super()._self_influence()
        return self._solver.diagonal(self._own, self._damping()).cpu().numpy() * self._share

    def _relabelled(
        self, test: Measured, rows: NDArray[np.int64], targets: NDArray[Any]
    ) -> NDArray[np.float64]:
        before, after = (
            self._solver.scores_of(one, test, self._damping()) * one.rows.shares
            for one in self._with_targets(rows, targets)
        )
        return (before - after).cpu().numpy()
