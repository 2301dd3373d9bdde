"""Any method, averaged over models trained with different seeds."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .._validation import POSITIVE_INTEGER, POSITIVE_REAL, check_random_state, check_seeds
from ..adapters import (
    initial_parameters,
    is_network,
    last_step,
    own_training,
    refit,
    training_epochs,
    transforms,
)
from ..base import BaseAttributor
from ..last_call import of_last_call
from ..measured import Measured
from ..measurements import Measurement
from ..model import FinalModel
from ..training.ensemble import Ensemble, train_members
from ..training.optimizers import LearningRate
from ..training.outcomes import standard_error
from ..training.recording import Checkpoints
from ..training.run import resolve_run
from ..trajectory import Trajectory
from .families.around import AroundMixin, models_and_runs
from .grad_dot import GradDot
from .of_trees import method_of_trees


class EnsembleAttributor(AroundMixin, BaseAttributor):
    r"""Mean of a method's scores over models trained with different seeds.

    .. math:: S_{z,i} = \frac1R \sum_{r=1}^R S_{z,i}(\theta(D; \xi_r))

    with :math:`\xi_r` the randomness of training (initial parameters, batch order, dropout). Scores
    of a single model are those of this model; their mean is closer to the effect on a model that is
    trained again. `TRAK` averages its two factors separately instead.

    Without `models`, networks are trained through the stack engine as `estimator` was, with their
    trajectories recorded for `SOURCE`, `TracIn` and `Hydra`; other estimators are cloned and fitted.
    Methods of boosting take such a mean themselves with ``n_models``, also over models grown on parts of
    the rows.

    Parameters
    ----------
    estimator : object, default=None
        Fitted model; an unfitted scikit-learn or skorch estimator is cloned and fitted. None is a
        small MLP, or the first of `models`. It says what is trained and measured, and need not be one of the
        models.
    attributor : attributor, default=None
        The method, unfitted; `GradDot` by default, `LeafInfluence` for boosted trees and `LeafKernel` for
        forests. Its ``estimator``, ``measurement``, ``criterion``
        and ``trajectory`` are set by the ensemble.
    models : Ensemble or list of fitted models, default=None
        The models; what `train_ensemble` returns, or models that take the rows that `estimator` (for
        a Pipeline: its last step) takes. Skorch nets bring their recorded trajectories along.
    n_seeds : int or list of int, default=5
        Number of models to train (seeds drawn from `random_state`) or their seeds.
    checkpoints : int, list of int or "all", default=6
        What to record of their training, see `TrajectoryRecorder`.
    n_epochs : int, default=None
        Epochs of training of a network; those of its own training by default.
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
    measurement : str or callable, default="loss"
        What is attributed: ``"loss"``, ``"margin"``, ``"log_prob"``, ``"output"`` or a callable
        ``m(outputs, targets)`` giving one number per row.
    criterion : nn.Module, default=None
        Training criterion of a bare ``nn.Module``.
    random_state : int, RandomState or None, default=None
        Used to fit an unfitted `estimator` and to draw the seeds.
    n_jobs : int, default=None
        joblib workers, of one thread each, that train models.

    Attributes
    ----------
    estimator_ : object
        The final model.
    model_ : FinalModel
        Its frozen functional view.
    members_ : list of attributors
        The method fitted to each model (for `TRAK`, to all of them).
    seeds_ : list of int
        Seeds of the models that were trained here.
    train_indices_ : ndarray of shape (n_columns,)
        Training row of each column.
    scores_sem_ : ndarray of shape (n_test, n_columns)
        Standard error over models of the scores last returned by `transform`; NaN for one model and
        for `TRAK`.

    Raises
    ------
    ValueError
        If there are no models, or a trained network cannot be drawn again.

    References
    ----------
    Bae et al., arXiv 2405.12186, and Park et al., arXiv 2303.14186, judge methods with one model and
    with several.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from fimoda import EnsembleAttributor, GradDot
    >>> X = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
    >>> nets = [torch.nn.Linear(3, 1) for _ in range(3)]
    >>> ensemble = EnsembleAttributor(
    ...     nets[0], attributor=GradDot(), models=nets, criterion=torch.nn.MSELoss()
    ... )
    >>> ensemble.fit(X, X[:, :1]).transform(X[:4], X[:4, :1]).shape
    (4, 20)
    """

    process = "that of the method, in the mean over models"

    _shared = ("models",)

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseAttributor._parameter_constraints,
        "attributor": [BaseAttributor, None],
        "models": [Ensemble, list, tuple, None],
        "n_seeds": [POSITIVE_INTEGER, "array-like"],
        "checkpoints": [POSITIVE_INTEGER, str, "array-like"],
        "n_epochs": [POSITIVE_INTEGER, None],
        "optimizer": [str, type, None],
        "lr": [POSITIVE_REAL, callable, None],
        "batch_size": [POSITIVE_INTEGER, None],
        "optimizer_params": [dict, None],
        "init": [callable, None],
        "n_jobs": [Integral, None],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        attributor: BaseAttributor | None = None,
        models: Any = None,
        n_seeds: int | Iterable[int] = 5,
        checkpoints: Checkpoints = 6,
        n_epochs: int | None = None,
        optimizer: str | type[torch.optim.Optimizer] | None = None,
        lr: LearningRate | None = None,
        batch_size: int | None = None,
        optimizer_params: dict[str, Any] | None = None,
        init: Callable[[], nn.Module] | None = None,
        measurement: Measurement = "loss",
        criterion: nn.Module | None = None,
        random_state: Any = None,
        n_jobs: int | None = None,
    ):
        self.estimator = estimator
        self.attributor = attributor
        self.models = models
        self.n_seeds = n_seeds
        self.checkpoints = checkpoints
        self.n_epochs = n_epochs
        self.optimizer = optimizer
        self.lr = lr
        self.batch_size = batch_size
        self.optimizer_params = optimizer_params
        self.init = init
        self.measurement = measurement
        self.criterion = criterion
        self.random_state = random_state
        self.n_jobs = n_jobs

    # ---- fit --------------------------------------------------------------------------------

    def _inner(self, estimator: Any) -> BaseAttributor:
        return self.attributor or method_of_trees(estimator) or GradDot()

    def _trained(
        self, start: Ensemble | None, directory: str | os.PathLike[str] | None = None
    ) -> Ensemble:
        """Return models trained from scratch, or from those of `start` as a stage that comes next."""
        if directory is not None and not os.fspath(directory):
            raise ValueError("directory must be the path of a directory, got ''.")
        if start is None:
            seeds = check_seeds(self.n_seeds, check_random_state(self.random_state))
        else:
            seeds = start.seeds
        model = last_step(self.estimator_)
        if not is_network(self.estimator_):
            X, y, weights = self._rows_of_last_step
            return Ensemble([refit(model, X, y, weights, seed) for seed in seeds], [], seeds)
        if setting := own_training(model):
            warnings.warn(
                f"{type(model).__name__} has {setting}, which the recorded trainings "
                "do not repeat: they go through all rows, with one learning rate (lr) and for a fixed "
                "number of epochs (n_epochs).",
                UserWarning,
                stacklevel=3,
            )
        recipe = self.model_.recipe
        run = resolve_run(
            self._objective, recipe, self.optimizer, self.lr, self.optimizer_params, self.batch_size
        )
        if start is None:
            points = [
                initial_parameters(self.estimator_, self.model_, seed, self.init) for seed in seeds
            ]
        else:
            points = [model.theta for model in start.models]
        return train_members(
            replace(run, shuffle=recipe.shuffle),
            seeds,
            points,
            None if start is None else start.trajectories,
            training_epochs(self.estimator_, self.n_epochs),
            self.checkpoints,
            None if directory is None else Path(directory),
            self.n_jobs,
        )

    def _fit(self) -> None:
        template = self._inner(self.estimator_)
        given = self.models
        if given is None:
            given = self._trained(None)
            self.seeds_ = given.seeds
        models, runs = models_and_runs(given)
        if template._averages_models:
            self.members_ = [fit_member(self, template, models[0], models=models[1:])]
        else:
            pairs = zip(models, runs, strict=True)
            self.members_ = [fit_member(self, template, model, run) for model, run in pairs]
        self.train_indices_ = self.members_[0].train_indices_

    # ---- transform --------------------------------------------------------------------------

    def _scores(self, test: Measured) -> NDArray[np.float64]:
        each = np.stack([member._scores(test) for member in self.members_], -1)
        self._seen["scores_sem_"] = standard_error(each)
        return each.mean(-1)

    def _coupled(self, test: Measured) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        measured, scores = zip(*(one._coupled(test) for one in self.members_), strict=True)
        return np.concatenate(measured), np.concatenate(scores)

    def _relabelled(
        self, test: Measured, rows: NDArray[np.int64], targets: NDArray[Any]
    ) -> NDArray[np.float64]:
        return np.mean([one._relabelled(test, rows, targets) for one in self.members_], axis=0)

    scores_sem_ = of_last_call(
        "scores_sem_",
        "Standard error over models of the scores last returned, (n_test, n_columns).",
    )

    def _n_runs(self) -> int:
        return len(self.members_)

    def _self_influence(self) -> NDArray[np.float64]:
        return np.mean([member._self_influence() for member in self.members_], axis=0)


def fit_member(
    owner: Any,
    template: BaseAttributor,
    model: Any,
    run: Trajectory | None = None,
    **params: Any,
) -> BaseAttributor:
    """Return the method, fitted to one model on the rows that `owner` has seen.

    It has the owner's measurement, and the criterion where the model does not know its own.
    """
    if transforms(model):  # the rows that the owner has seen are transformed already
        raise ValueError(
            f"models must hold the models themselves, got a {type(model).__name__} whose rows or targets "
            "are transformed on their way in, perhaps otherwise than estimator's. Pass the fitted last "
            "steps of Pipelines that share their earlier ones."
        )
    member = template.__sklearn_clone__()
    known = member.get_params(deep=False)
    criterion = None if isinstance(model, FinalModel) else owner.criterion
    params = {
        "measurement": owner.measurement,
        **params,
        "estimator": model,
        "criterion": criterion,
    }
    if run is not None and "trajectory" in known:
        params["trajectory"] = run
    X, y, weights = owner._rows_of_last_step
    return member.set_params(**params).fit(X, y, weights)
