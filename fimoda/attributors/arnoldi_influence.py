"""Influence functions in the span of the leading eigenvectors."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from .._validation import MAX_SEED, POSITIVE_INTEGER, StrOptions, check_random_state
from ..curvature.lanczos import TopEigenpairs
from ..measurements import Measurement
from .families.influence import BaseInfluence


class ArnoldiInfluence(BaseInfluence):
    r"""Influence function in the span of the curvature's leading eigenvectors.

    .. math:: S_{z,i} = \frac{s_i}{1 - s_i} \sum_{a=1}^k
              \frac{(q_a^\top \nabla_\theta m_z)(q_a^\top (g_i - \bar g))}{\sigma_a + \lambda}

    with :math:`\sigma_a, q_a` the k largest eigenpairs of C (largest in magnitude for the true
    Hessian), found in ``fit`` by Lanczos iteration on products over the whole training set.
    :math:`g_i` is the gradient of the row's loss, C the curvature of the weighted mean loss (and of
    the L2 penalty, if the model has one). The score estimates the change of the measurement when
    row i is removed and the model is trained to convergence near the final model.

    What lies outside the span is dropped, as by Schioppa et al.; it is most of the score where
    :math:`\lambda` is not small against :math:`\sigma_k`. ``complement="damping"`` keeps it, as
    if C were zero there. Both tend to the exact score as k grows.

    :math:`s_i = w_i / \sum_j w_j` is the row's share of the objective (1/n) and :math:`\bar g = \sum_j
    s_j g_j`. With ``reweight_others=False``, and for linear models that a solver has fitted (there
    :math:`\bar g` and the penalty cancel), :math:`s_i g_i` stands in its place.

    Parameters
    ----------
    estimator : object, default=None
        Fitted model; an unfitted scikit-learn or skorch estimator is cloned and fitted. None is a
        small MLP.
    curvature : str, default="gauss-newton"
        The matrix C: "gauss-newton", "hessian", "empirical-fisher", or "sampled-fisher".
    curvature_rows : int, default=None
        Training rows, drawn at random, that C is the mean over; all by default. Products cost as
        many times less, and scores vary from draw to draw.
    n_components : int, default=100
        Number k of eigenpairs, at most the number of rows times outputs if C can have no more. From
        p - 1 on (p parameters), and for models of at most 1,024 parameters, C is decomposed as a
        dense matrix.
    damping : float, "auto" or "tuned", default="auto"
        :math:`\lambda`; "auto" is 1,000 times the mean squared entry of the rows' gradients, at most
        0.05 of the trace of the curvature (but for the Hessian), and 1e-12 of it for a linear model
        at its minimum; "tuned" agrees best with a small gold standard, see `tuning`.
    tuning : dict, default=None
        For ``damping="tuned"``: parameters of `FurtherTraining` (its ``n_epochs`` is the horizon to
        agree with) that differ from 10 epochs, 5 seeds and 30 left-out rows. Candidates are 0.1 to
        100,000 times the mean squared entry of the rows' gradients.
    complement : {"drop", "damping"}, default="drop"
        Outside the span: nothing, or the gradient divided by :math:`\lambda`.
    reweight_others : bool, default=True
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
    memory_budget : int, default=4 GiB
        Bytes for eigenvectors and gradients.
    random_state : int, RandomState or None, default=None
        Used to fit an unfitted `estimator`, to sample targets, to draw `curvature_rows` and to start the
        iteration.

    Attributes
    ----------
    estimator_ : object
        The final model.
    model_ : FinalModel
        Its frozen functional view.
    damping_ : float
        The damping used; may be changed after ``fit`` at no cost.
    damping_agreement_ : dict of float to float
        Agreement by candidate (cosine, both centred); only with ``damping="tuned"``.
    eigenvalues_ : ndarray of shape (k,)
        The eigenvalues, in ascending order.
    train_indices_ : ndarray of shape (n_train,)
        Training row of each column.

    Raises
    ------
    MemoryError
        If the eigenvectors do not fit `memory_budget`.
    ValueError
        If the damped curvature is not positive on the span.

    References
    ----------
    Schioppa et al., "Scaling Up Influence Functions", AAAI 2022, arXiv 2112.03052.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from fimoda import ArnoldiInfluence
    >>> X, y = load_diabetes(return_X_y=True)
    >>> influence = ArnoldiInfluence(Ridge().fit(X, y), n_components=5, damping=0.01).fit(X, y)
    >>> influence.transform(X[:4], y[:4]).shape
    (4, 442)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseInfluence._parameter_constraints,
        **BaseInfluence._CURVATURE_CONSTRAINTS,
        **BaseInfluence._SUBSAMPLE_CONSTRAINTS,
        "n_components": [POSITIVE_INTEGER],
        "complement": [StrOptions({"drop", "damping"})],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        curvature: str = "gauss-newton",
        curvature_rows: int | None = None,
        n_components: int = 100,
        damping: float | str = "auto",
        tuning: dict[str, Any] | None = None,
        complement: str = "drop",
        reweight_others: bool = True,
        measurement: Measurement = "loss",
        criterion: nn.Module | None = None,
        chunk_size: int | None = None,
        memory_budget: int = 4 * 2**30,
        random_state: Any = None,
    ):
        super().__init__(
            estimator, measurement=measurement, criterion=criterion, random_state=random_state
        )
        self.damping = damping
        self.tuning = tuning
        self.reweight_others = reweight_others
        self.chunk_size = chunk_size
        self.memory_budget = memory_budget
        self.curvature = curvature
        self.curvature_rows = curvature_rows
        self.n_components = n_components
        self.complement = complement

    def _prepare_solver(self) -> None:
        seed = int(check_random_state(self.random_state).randint(MAX_SEED))
        self._top = TopEigenpairs(self._curvature(), self.n_components, seed)
        self.eigenvalues_ = self._top.eigenvalues.cpu().numpy()

    def _solve(self, V: Tensor) -> Tensor:
        return self._top.solve(V, self.damping_, self.complement == "damping")
