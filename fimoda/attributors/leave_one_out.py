"""Leave-one-out retraining."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .._validation import POSITIVE_INTEGER, check_leave_out, check_random_state
from ..batch_statistics import BatchStatistics
from ..measured import Measured
from ..measurements import Measurement, values
from ..training.optimizers import LearningRate
from ..training.run import Way
from ..training.subset_outcomes import SubsetOutcomes, mean_and_error
from ..training.subsets import SubsetUnit
from .families.subsets import SubsetsMixin
from .families.trained_again import BaseTrainedAgain

#: Measurements that differ by less than this part of the largest are alike.
_ALIKE = 1e-3


class LeaveOneOut(SubsetsMixin, BaseTrainedAgain):
    r"""Train the model from scratch with and without each row, and compare.

    .. math:: S_{z,i} = \frac1R \sum_{r=1}^R
              \left[ m_z(\theta(D \setminus i; \xi_r)) - m_z(\theta(D; \xi_r)) \right]

    :math:`\theta(D; \xi)` are the parameters after training on the rows D, with randomness
    :math:`\xi` (initial parameters, batch order, dropout) the same in both trainings; the order of
    the rows is that of all rows with row i deleted. With one seed it is leave-one-out at a fixed
    seed, with several its expectation. The unit is that of the measurement.

    Networks (skorch nets, ``nn.Module``, scikit-learn's MLP with a solver by gradient steps) are
    trained from scratch as stacks of models.
    Every epoch goes through all rows, in a new random order or, where the model's own training does
    not shuffle (skorch's default, ``shuffle=False``), in their own; also where that dropped the last
    rows (``drop_last``). There are as many epochs as it had, or `n_epochs`: a tolerance (``tol``) ends
    none of them. scikit-learn's MLPs
    with ``early_stopping`` or a ``learning_rate`` that is not constant are fitted by their own ``fit``.
    Any other scikit-learn estimator, differentiable or not, is cloned and fitted, with rows of
    whatever it takes: missing values, categories, sparse matrices, texts. Where fimoda does not know
    its loss, the loss is the log-loss of ``predict_proba``; without it the hinge loss of
    ``decision_function``, or 0 or 1 for the right or wrong ``predict`` of a classifier without both; or the
    squared error, summed over the outputs. Probabilities that are
    counts, as those of forests and neighbours, are smoothed by one row (see the user guide). Of a
    Pipeline all steps are fitted again, unless `refit` says otherwise.

    Parameters
    ----------
    estimator : object, default=None
        Fitted model; an unfitted scikit-learn or skorch estimator is cloned and fitted. None is a
        small MLP. Its parameters are not where training starts.
    leave_out : None, int or list of int, default=None
        Rows to leave out, one at a time: all, a random number of them, or these.
    n_epochs : int, default=None
        Epochs of training of a network; those of its own training by default.
    n_seeds : int or list of int, default=5
        Number of trainings of each subset (drawn from `random_state`) or their seeds. A seed fixes
        initial parameters, batch order and dropout; other estimators take it as ``random_state``. One whose
        fit draws no random numbers is fitted once for all seeds.
    optimizer : str or type, default=None
        Networks only: a ``torch.optim`` class that updates every coordinate on its own, or its
        name; the model's own by default, SGD if it has none.
    lr : float or callable, default=None
        Networks only: learning rate, or a function of the epoch (from 0) giving it; the model's own
        by default, 0.01 if it has none.
    batch_size : int, default=None
        Networks only: the model's own by default, 128 if it has none.
    optimizer_params : dict, default=None
        Networks only: other settings of the optimiser (momentum, weight_decay, betas, ...);
        `max_grad_norm` or `max_grad_value`, at which gradients are clipped; `param_groups`, a list of
        patterns of names with their own `lr` and `weight_decay`.
    init : callable, default=None
        Makes a new module of the network's architecture, with random initial parameters. By default
        a skorch net is initialised again, and a bare module's parts ``reset_parameters``.
    refit : {"all", "last", "search"}, default="all"
        What is trained again: the whole estimator, with the parameters that a search has chosen; the
        last step of a Pipeline, behind its earlier steps as they are; or the whole estimator and its
        search. A network behind steps that learn is fitted by the Pipeline's own ``fit``, one at a
        time, unless the last step alone is trained.
    measurement : str or callable, default="loss"
        What is attributed: ``"loss"``, ``"margin"``, ``"log_prob"``, ``"output"`` or a callable
        ``m(outputs, targets)`` giving one number per row.
    criterion : nn.Module, default=None
        Training criterion of a bare ``nn.Module``.
    batch_statistics : {"update", "frozen"}, default="update"
        Batch normalisation in training: "update" takes the mean and variance of the rows that a model
        has in a batch (a left-out row, or one of weight zero, is not among them) and updates running
        statistics of each model, which is measured with them; "frozen" takes the final model's.
    compile : bool or "auto", default="auto"
        Whether gradients go through ``torch.compile``; "auto" does for long runs that gain from it.
    engine : {"auto", "layers", "vmap", "loop"}, default="auto"
        How many models are trained: layer by layer as one stack, which chains of linear layers can;
        by ``torch.vmap`` as one stack; or one after the other. "auto" is "layers" where it can be,
        otherwise "loop" in short runs, and in long ones the faster of "vmap" and "loop", timed on a
        few steps. Results differ by rounding.
    chunk_size : int, default=None
        Models in a stack; by default as many as stay in the processor's cache.
    checkpoint_dir : path, default=None
        Directory that keeps what is finished, for a call with the same arguments and for other
        methods with the same subsets and seeds: of networks the trained models, of estimators that
        are fitted again their measurements, so that `transform` trains, once for each set of test
        rows.
    memory_budget : int, default=2 GiB
        Bytes that trained models may take in memory when there is no `checkpoint_dir`.
    max_seconds : float, default=None
        Seconds of training in `fit`, after which none begins. Rows are taken in a random order, all
        of them with the first seed before the second. Rows without a training have no column. Which
        are done in time depends on the machine.
    random_state : int, RandomState or None, default=None
        Used to fit an unfitted `estimator` and to draw the seeds and a random number of left-out
        rows.
    n_jobs : int, default=None
        joblib workers, of one thread each. Scores are the same bits for every value.
    verbose : int, default=0
        Show progress if positive.

    Attributes
    ----------
    estimator_ : object
        The final model.
    model_ : FinalModel
        Its frozen functional view.
    subsets_ : ndarray of bool of shape (M, n_train)
        Rows of each training; fewer than asked for if `max_seconds` were over.
    seeds_ : list of int
        Seeds of each subset's trainings.
    train_indices_ : ndarray of shape (n_columns,)
        Training row of each column.
    scores_sem_ : ndarray of shape (n_test, n_columns)
        Standard error over seeds of the scores last returned by `transform`; NaN for one seed, 0 where
        training draws no random numbers.
    failed_ : list of tuple
        Number of the subset, seed and reason of each training that failed; scores are of the rest.
        A row without which none succeeds, such as the only one of its class, scores NaN, with a
        warning.

    Raises
    ------
    FloatingPointError
        If the trainings on all rows fail, or all others do.
    ValueError
        If a parameter for networks is given for an estimator that is not one.
    MemoryError
        Before training, if the models fit neither `memory_budget` nor a `checkpoint_dir` is given.

    References
    ----------
    Koh and Liang, "Understanding Black-box Predictions via Influence Functions", ICML 2017: the
    quantity that influence functions approximate.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from fimoda import LeaveOneOut
    >>> X, y = load_diabetes(return_X_y=True)
    >>> exact = LeaveOneOut(Ridge().fit(X, y), n_seeds=1, leave_out=[0, 7]).fit(X, y)
    >>> exact.transform(X[:4], y[:4]).shape
    (4, 2)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseTrainedAgain._parameter_constraints,
        "leave_out": [POSITIVE_INTEGER, "array-like", range, None],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        leave_out: int | Iterable[int] | None = None,
        n_epochs: int | None = None,
        n_seeds: int | Iterable[int] = 5,
        optimizer: str | type[torch.optim.Optimizer] | None = None,
        lr: LearningRate | None = None,
        batch_size: int | None = None,
        optimizer_params: dict[str, Any] | None = None,
        init: Callable[[], nn.Module] | None = None,
        refit: str = "all",
        measurement: Measurement = "loss",
        criterion: nn.Module | None = None,
        batch_statistics: BatchStatistics = "update",
        compile: bool | str = "auto",
        engine: Way = "auto",
        chunk_size: int | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        memory_budget: int = 2 * 2**30,
        max_seconds: float | None = None,
        random_state: Any = None,
        n_jobs: int | None = None,
        verbose: int = 0,
    ):
        self.estimator = estimator
        self.leave_out = leave_out
        self.n_epochs = n_epochs
        self.n_seeds = n_seeds
        self.optimizer = optimizer
        self.lr = lr
        self.batch_size = batch_size
        self.optimizer_params = optimizer_params
        self.init = init
        self.refit = refit
        self.measurement = measurement
        self.criterion = criterion
        self.batch_statistics = batch_statistics
        self.compile = compile
        self.engine = engine
        self.chunk_size = chunk_size
        self.checkpoint_dir = checkpoint_dir
        self.memory_budget = memory_budget
        self.max_seconds = max_seconds
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.verbose = verbose

    def _subsets(self, random_state: np.random.RandomState) -> NDArray[np.bool_]:
        n = len(self._objective)
        if n < 2:
            raise ValueError("X must have at least 2 rows to leave one out, got n_samples = 1.")
        self.train_indices_ = check_leave_out(self.leave_out, n, random_state)
        subsets = np.ones((len(self.train_indices_) + 1, n), dtype=bool)  # the first is all rows
        subsets[np.arange(1, len(subsets)), self.train_indices_] = False
        return subsets

    def _order(self, subsets: NDArray[np.bool_]) -> tuple[NDArray[np.int64], int]:
        rows = check_random_state(0).permutation(np.arange(1, len(subsets)))
        return np.append(0, rows), 2

    def _keep(self, trained: NDArray[np.int64]) -> None:
        super()._keep(trained)
        self.train_indices_ = self.train_indices_[trained[1:] - 1]

    def _outcomes(self, measurer: Measured) -> SubsetOutcomes:
        outcomes = super()._outcomes(measurer)
        if not self._in_stacks:
            self._compare_with_the_model(outcomes.measured[0], measurer)
        return outcomes

    def _compare_with_the_model(self, again: NDArray[np.float64], measurer: Measured) -> None:
        """Warn if the fit on all rows is no other by its seed, and is not the model given.

        `again` is what the fits on all rows measured, (n_test, n_seeds).
        """
        self._seen["is_another"] = False
        outputs = self.model_.outputs(measurer.inputs)
        given = values(measurer.measure, outputs, measurer.targets).cpu().numpy()

        def differ(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
            return bool(np.abs(one - other).max() > _ALIKE * np.abs(given).max())

        again = again[:, np.isfinite(again).all(0)]
        if not again.shape[1] or not differ(again[:, 0], given):
            return
        if again.shape[1] > 1:
            second = again[:, 1]
        else:
            everything = np.ones((1, len(self._objective)), dtype=bool)
            way = self._retraining.way
            unit = SubsetUnit(self.seeds_[0] + 1, np.array([0]), everything)
            second = way.measure(way.train(unit), measurer)["measured"][0]
        if not differ(again[:, 0], second):
            self._seen["is_another"] = True
            warnings.warn(
                f"estimator {type(self.estimator_).__name__} predicts otherwise than it does when it is "
                "fitted again on all rows, and not for its seed: the scores are of the latter. Pass the "
                "rows, targets and sample_weight that it was fitted with.",
                UserWarning,
                stacklevel=2,
            )

    def _known_error(self, scores: NDArray[np.float64]) -> list[str]:
        if len(self.seeds_) > 1 and not self._retraining.way.is_random:
            return ["training draws no random numbers: scores have no error over seeds"]
        return super()._known_error(scores)

    def _caveats(self) -> list[str]:
        another = (
            "the model given is another than the one that fitting it again on these rows gives"
        )
        return super()._caveats() + [another] * self._seen.get("is_another", False)

    def _require_scores(self, scores: NDArray[np.float64], outcomes: SubsetOutcomes) -> None:
        """Warn of rows without which no training succeeded: their scores are NaN."""
        known: NDArray[np.bool_] = np.any(np.isfinite(outcomes.measured), axis=(1, 2))
        reasons = {subset: reason for subset, _, reason in outcomes.failed if not known[subset]}
        missing = np.isin(np.arange(1, len(known)), list(reasons))
        self._seen["missing"] = missing
        super()._require_scores(scores[:, ~missing], outcomes)
        if missing.any():
            rows = self.train_indices_[missing]
            named = ", ".join(map(str, rows[:5])) + ", ..." * (len(rows) > 5)
            warnings.warn(
                f"the model cannot be trained without row {named} ({reasons[max(reasons)]}): its score "
                "is NaN. Name other rows by leave_out.",
                UserWarning,
                stacklevel=2,
            )

    def _finite(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        super()._finite(scores[..., ~self._seen["missing"]])
        return scores

    def _coupled(self, test: Measured) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        outcomes = self._outcomes(test)
        measured = outcomes.measured
        if outcomes.failed and not np.isfinite(measured).all((0, 1)).any():
            subset, _, reason = outcomes.failed[0]
            but = f" but row {self.train_indices_[subset - 1]}" if subset else ""
            raise FloatingPointError(
                f"method cannot train on all rows{but} ({reason}). Name other rows by its leave_out."
            )
        measured = measured[:, :, np.isfinite(measured).all((0, 1))]  # seeds without a failure
        return measured[0].T, (measured[1:] - measured[:1]).transpose(2, 1, 0)

    def _scores_of(
        self, outcomes: SubsetOutcomes
    ) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
        change = outcomes.measured[1:] - outcomes.measured[:1]
        scores, errors = mean_and_error(change)
        return scores.T, {"scores_sem_": errors.T}
