"""Datamodels: a linear model of what is measured, in which rows were trained on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .._validation import POSITIVE_INTEGER, StrOptions, check_random_state
from ..base import BaseAttributor
from ..batch_statistics import BatchStatistics
from ..last_call import of_last_call
from ..measured import Measured
from ..measurements import Measurement
from ..training.datamodels import Datamodels, datamodels, scores_to_start_from
from ..training.optimizers import LearningRate
from ..training.random_subsets import require_both
from ..training.run import Way
from ..training.subset_outcomes import SubsetOutcomes
from ..training.subset_regression import FOLDS
from .families.subsets import OF_SUBSETS, SubsetsMixin
from .families.trained_again import BaseTrainedAgain

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Started(Measured):
    """Rows with what is measured of them, and the scores (n, n_train) that a regression starts from."""

    prior: Array

    def __getitem__(self, key: Any) -> Started:
        return Started(self.rows[key], self.measure, self.prior[key])


class Datamodel(SubsetsMixin, BaseTrainedAgain):
    r"""Regress what models of random subsets measure on the rows that they were trained on.

    .. math:: m_z(S_k) \approx b_z + \sum_i w_{z,i}\, 1[i \in S_k], \qquad S_{z,i} = -w_{z,i}

    :math:`m_z(S)` is the measurement after training on the rows S, averaged over seeds. The weights
    are estimated for each test row with an L1 penalty (few rows matter) or an L2 penalty, whose
    strength is chosen by cross-validation over the subsets. The unit is that of the measurement; the
    penalty shrinks scores towards zero.

    With a `prior`, it shrinks them towards scores :math:`P_{z,i}` that another method has of the model given:

    .. math:: S_{z,i} = a_z P_{z,i} - w_{z,i}

    The factor :math:`a_z` of a test row is that of least squares over the subsets, without a penalty, and the
    regression is of what it leaves. Few subsets are enough then for what the method misses.

    Models are trained again as `LeaveOneOut` trains them: networks in stacks, other estimators by their
    own ``fit``.

    Parameters
    ----------
    estimator : object, default=None
        Fitted model; an unfitted scikit-learn or skorch estimator is cloned and fitted. None is a
        small MLP. Its parameters are not where training starts.
    regression : {"lasso", "ridge"}, default="lasso"
        scikit-learn's ``LassoCV``, for each test row, or ``RidgeCV``, for all at once, which is
        far faster with a thousand subsets.
    prior : attributor, default=None
        Method whose scores the regression starts from, such as ``LeafInfluence(n_models=16)`` for boosting or
        `SOURCE` for networks. It is cloned and fitted with this `estimator`, `measurement` and `criterion`.
    n_bootstrap : int, default=10
        Samples of subsets, with replacement, on which the weights are estimated again with the same
        penalty, for standard errors and stability.
    n_subsets : int, default=100
        Number M of random subsets.
    ratio : float, default=0.5
        Part of the rows that is in a subset.
    subsets : ndarray of bool of shape (M, n_train) or list of arrays of int, default=None
        Subsets to train on instead of random ones: a mask, or the rows of each.
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
        Seconds of training in `fit`, after which none begins. Each row is twice in a subset and
        twice out of one all the same (and five are trained). Which are done in time depends on the
        machine.
    random_state : int, RandomState or None, default=None
        Used to fit an unfitted `estimator` and to draw the seeds, subsets and bootstrap samples.
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
    prior_ : attributor
        The fitted `prior`, if one is given.
    prior_scale_ : ndarray of shape (n_test,)
        Factor of the prior's scores in the scores last returned; NaN without a prior.
    subsets_ : ndarray of bool of shape (M, n_train)
        Rows of each training; fewer than asked for if `max_seconds` were over.
    seeds_ : list of int
        Seeds of each subset's trainings.
    train_indices_ : ndarray of shape (n_columns,)
        Training row of each column.
    scores_sem_ : ndarray of shape (n_test, n_columns)
        Standard deviation over bootstrap samples of the scores last returned.
    stability_ : ndarray of shape (n_test,)
        Mean correlation between the scores last returned and those of the bootstrap samples; NaN
        where scores are constant. Close to 1 the subsets suffice.
    failed_ : list of tuple
        Number of the subset, seed and reason of each training that failed; scores are of the rest.

    Raises
    ------
    FloatingPointError
        If so many trainings fail that a row has no score.
    ValueError
        If a parameter for networks is given for an estimator that is not one.
    MemoryError
        Before training, if the models fit neither `memory_budget` nor a `checkpoint_dir` is given.

    References
    ----------
    Ilyas et al., "Datamodels: Predicting Predictions from Training Data", ICML 2022.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from fimoda import Datamodel
    >>> X, y = load_diabetes(return_X_y=True)
    >>> X, y = X[:50], y[:50]
    >>> method = Datamodel(
    ...     Ridge().fit(X, y), n_subsets=40, n_seeds=1, regression="ridge", random_state=0
    ... )
    >>> method.fit(X, y).transform(X[:4], y[:4]).shape
    (4, 50)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseTrainedAgain._parameter_constraints,
        **OF_SUBSETS,
        "prior": [BaseAttributor, None],
        "regression": [StrOptions({"lasso", "ridge"})],
        "n_bootstrap": [POSITIVE_INTEGER],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        regression: str = "lasso",
        prior: BaseAttributor | None = None,
        n_bootstrap: int = 10,
        n_subsets: int = 100,
        ratio: float = 0.5,
        subsets: Any = None,
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
        self.regression = regression
        self.prior = prior
        self.n_bootstrap = n_bootstrap
        self.n_subsets = n_subsets
        self.ratio = ratio
        self.subsets = subsets
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

    stability_ = of_last_call(
        "stability_",
        "Mean correlation of the scores last returned with bootstrap samples', (n_test,).",
    )

    prior_scale_ = of_last_call(
        "prior_scale_", "Factor of the prior's scores in the scores last returned, (n_test,)."
    )

    def score_outcomes(self, outcomes: SubsetOutcomes, prior: Any = None) -> NDArray[np.float64]:
        """Return scores from models that were trained elsewhere; needs no `fit`.

        Parameters
        ----------
        outcomes : SubsetOutcomes
            Of `train_on_subsets`.
        prior : array-like of shape (n_test, n_train), default=None
            Scores to start from.

        Returns
        -------
        S : ndarray of shape (n_test, n_train)
            Scores in the unit of what was measured.
        """
        self._validate_params()
        require_both(outcomes.subsets)
        start = None if prior is None else scores_to_start_from(prior, outcomes)
        return self._finite(self._regressed(outcomes, start).scores)

    # ---- the scores to start from -----------------------------------------------------------

    def _prepare(self, X: Any, y: Any, sample_weight: Any) -> None:
        super()._prepare(X, y, sample_weight)
        self._given = X, y, sample_weight

    def _fit(self) -> None:
        if self.prior is not None:  # what it refuses, it refuses before anything is trained
            prior = self.prior.__sklearn_clone__()
            names = {"estimator", "measurement", "criterion"} & set(prior.get_params(deep=False))
            settings = dict(self.get_params(deep=False), estimator=self.estimator_)
            prior.set_params(**{name: settings[name] for name in names})
            self.prior_ = prior.fit(*self._given)
            if len(prior.train_indices_) < len(self._objective):
                raise ValueError(
                    f"prior must score every training row, but {type(prior).__name__} scores "
                    f"{len(prior.train_indices_)} of {len(self._objective)}. Leave its leave_out=None."
                )
        super()._fit()

    def _test(self, X: Any, y: Any) -> Measured:
        test = super()._test(X, y)
        if self.prior is None or not hasattr(self, "prior_"):
            return test
        return Started(test.rows, test.measure, self.prior_.transform(X, y))

    @property
    def _own(self) -> Measured:
        if self.prior is None:
            return super()._own
        X, y, _ = self._given
        return Started(self._objective.rows, self._measure, self.prior_.transform(X, y))

    def _scores(self, test: Measured) -> Array:
        self._seen["start"] = test.prior if isinstance(test, Started) else None
        return super()._scores(test)

    # ---- the regression ---------------------------------------------------------------------

    def _order(self, subsets: NDArray[np.bool_]) -> tuple[NDArray[np.int64], int]:
        order, n_needed = super()._order(subsets)
        return order, max(n_needed, FOLDS)

    def _scores_of(self, outcomes: SubsetOutcomes) -> tuple[Array, dict[str, Array]]:
        found = self._regressed(outcomes, self._seen["start"])
        return found.scores, {
            "scores_sem_": found.sem,
            "stability_": found.stability,
            "prior_scale_": found.factor,
        }

    def _regressed(self, outcomes: SubsetOutcomes, start: Array | None) -> Datamodels:
        rng, sparse = check_random_state(self.random_state), self.regression == "lasso"
        return datamodels(outcomes, start, sparse, self.n_bootstrap, rng, self.n_jobs)
