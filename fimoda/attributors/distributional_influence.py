"""Distributional influence: how a row changes the law of what training gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from .. import measurements
from .._validation import check_is_fitted
from ..adapters import last_step, trees_of
from ..base import BaseAttributor
from ..distances import Distance, SlicedWasserstein, resolve_distance
from ..measured import Measured
from ..measurements import Measurement
from ..training.ensemble import Ensemble
from ..training.joint_distance import joint_distance
from ..training.outcome_samples import BLOCK, OutcomeSamples
from .ensemble import fit_member
from .families.around import AroundMixin, models_and_runs
from .leaf_influence import LeafInfluence
from .of_trees import method_of_trees
from .unrolled_differentiation import UnrolledDifferentiation


class DistributionalInfluence(AroundMixin, BaseAttributor):
    r"""Distance between the laws of a measurement with all rows and without each.

    .. math:: S_{z,i} = \Delta\bigl( \{ m_z(\theta_r) + s_{z,i}(\theta_r) \}_r
              \;\|\; \{ m_z(\theta_r) \}_r \bigr), \qquad r = 1..R

    Training is random, so that :math:`m_z(\theta)` has a distribution. The :math:`\theta_r` are
    samples of trained parameters, and :math:`s_{z,i}(\theta_r)` is the score by `method` at that very
    sample: its prediction of what the same training, with the same randomness, would give without
    row i (1/n included: a row is removed, not its weight differentiated). So one training gives a
    coupled pair of samples for every row, without training again. :math:`\Delta` is any distance of
    two samples; with the difference of the means the score is the mean of the method's scores.

    The samples are the seeds of the method (for `UnrolledDifferentiation` and
    `LinearizedFurtherTraining` runs of further training from the final model, for `FurtherTraining`
    and `LeaveOneOut` real ones, with and without each row; the models of ``LeafInfluence(n_models=10,
    share=1)`` and its kin), or `models` trained with different seeds, at each of which the method is
    fitted.

    Parameters
    ----------
    estimator : object, default=None
        Fitted model; an unfitted scikit-learn or skorch estimator is cloned and fitted. None is a
        small MLP, or the first of `models`.
    method : attributor or list of attributors, default=None
        What predicts, unfitted; its ``estimator``, ``measurement`` and ``criterion`` are set here.
        A list has one method a model, for example `UnrolledDifferentiation` from the initial
        parameters of each. By default 10 runs of `UnrolledDifferentiation` over 5 epochs; for boosted
        trees `LeafInfluence` of 10 models grown anew. With `models` of trees it is `LeafInfluence` or
        `LeafKernel` of each.
    models : Ensemble or list of fitted models, default=None
        Models trained alike with different seeds, for example by `train_ensemble`; they take the
        rows that `estimator` (for a Pipeline: its last step) takes. `estimator` alone by default.
    distance : str, Distance or callable, default="mean"
        ``"mean"``, ``"variance"``, ``"std"``, ``"w1"``, ``"w2"`` (Wasserstein), ``"energy"``,
        ``"ks"`` (Kolmogorov-Smirnov), ``"kl"`` (Kullback-Leibler, histograms), one of
        `fimoda.distances` such as ``Quantile(0.9)``, or a function ``f(left_out, full)`` of two
        vectors. Differences are left-out minus full; distances have no sign.
    joint : list of str or callable, default=None
        Several measurements of one unit (for example one an output) whose joint law is compared, by
        the sliced Wasserstein-2 distance; `measurement` and `distance` are not used then.
    measurement : str or callable, default="loss"
        What is attributed: ``"loss"``, ``"margin"``, ``"log_prob"``, ``"output"`` or a callable
        ``m(outputs, targets)`` giving one number per row.
    criterion : nn.Module, default=None
        Training criterion of a bare ``nn.Module``.
    random_state : int, RandomState or None, default=None
        Used to fit an unfitted `estimator` and to draw the seeds of the default method.

    Attributes
    ----------
    estimator_ : object
        The final model.
    model_ : FinalModel
        Its frozen functional view.
    members_ : list of attributors
        The method fitted to each model.
    train_indices_ : ndarray of shape (n_columns,)
        Training row of each column.

    Raises
    ------
    ValueError
        If there are too few samples for the distance, or `models` and a list of methods do not match.

    See Also
    --------
    OutcomeSamples : Measured samples, their intervals and tests.
    distributional_agreement : Predicted against measured distances.

    References
    ----------
    Mlodozeniec et al., "Distributional Training Data Attribution: What do Influence Functions
    Sample?", NeurIPS 2025, arXiv 2506.12965.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from fimoda import DistributionalInfluence, ExactInfluence
    >>> X = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
    >>> nets = [torch.nn.Linear(3, 1) for _ in range(5)]
    >>> influence = DistributionalInfluence(
    ...     nets[0],
    ...     method=ExactInfluence(),
    ...     models=nets,
    ...     distance="w2",
    ...     criterion=torch.nn.MSELoss(),
    ... ).fit(X, X[:, :1])
    >>> influence.transform(X[:4], X[:4, :1]).shape
    (4, 20)
    >>> samples = influence.outcome_samples(X[:4], X[:4, :1])
    >>> samples.full.shape, samples.left_out.shape
    ((5, 4), (5, 4, 20))
    """

    process = "that of the method, over many seeds"

    _shared = ("models",)

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseAttributor._parameter_constraints,
        "method": [BaseAttributor, list, tuple, None],
        "models": [Ensemble, list, tuple, None],
        "distance": [str, Distance, callable],
        "joint": [list, tuple, None],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        method: BaseAttributor | Sequence[BaseAttributor] | None = None,
        models: Any = None,
        distance: Any = "mean",
        joint: Sequence[Measurement] | None = None,
        measurement: Measurement = "loss",
        criterion: nn.Module | None = None,
        random_state: Any = None,
    ):
        super().__init__(
            estimator, measurement=measurement, criterion=criterion, random_state=random_state
        )
        self.method = method
        self.models = models
        self.distance = distance
        self.joint = joint

    # ---- fit --------------------------------------------------------------------------------

    def _inner(self, estimator: Any) -> BaseAttributor:
        if isinstance(self.method, BaseAttributor):
            return self.method
        if self.method:
            return self.method[0]
        if trees_of(estimator) is None or self.models is not None:
            return method_of_trees(estimator) or UnrolledDifferentiation(
                n_epochs=5, n_seeds=10, order="own", random_state=self.random_state
            )
        if trees_of(estimator) == "apart":
            raise ValueError(
                f"models must be given for a {type(estimator).__name__}, which is one sample of the forests "
                "that could be grown: train_ensemble(...) makes them. Or set method=LeaveOneOut(n_seeds=10)."
            )
        return LeafInfluence(n_models=10, share=1, random_state=self.random_state)

    def _fit(self) -> None:
        self._distance = resolve_distance(self.distance)
        self._joint = [measurements.resolve(m, self.model_) for m in self.joint or []]
        method = self.method
        if method is None:
            method = self._inner(last_step(self.estimator_))
        if isinstance(method, BaseAttributor):
            given = [last_step(self.estimator_)] if self.models is None else self.models
            models, runs = models_and_runs(given)
            methods = [method] * len(models)
        else:
            methods = list(method)
            if self.models is None:
                models, runs = [last_step(self.estimator_)] * len(methods), [None] * len(methods)
            else:
                models, runs = models_and_runs(self.models)
        if not methods or len(methods) != len(models):
            raise ValueError(
                f"method as a list must have one attributor for each of the {len(models)} models, got "
                f"{len(methods)}."
            )
        triples = zip(methods, models, runs, strict=True)
        self.members_ = [fit_member(self, one, model, run) for one, model, run in triples]
        self.train_indices_ = self.members_[0].train_indices_
        if any(
            not np.array_equal(one.train_indices_, self.train_indices_) for one in self.members_
        ):
            raise ValueError(
                "method must score the same rows at every model. Give leave_out as a list of rows, or "
                "set its random_state."
            )

    # ---- transform --------------------------------------------------------------------------

    def outcome_samples(self, X: Any, y: Any = None) -> OutcomeSamples:
        """Return samples of the measurement with all rows, and predicted ones without each.

        Parameters
        ----------
        X : array-like of shape (n_test, n_features)
            Test rows.
        y : array-like of shape (n_test,), default=None
            Their targets, as in `transform`.

        Returns
        -------
        OutcomeSamples
            Paired, with a left-out row for each of ``train_indices_``.
        """
        check_is_fitted(self, "model_")
        return self._samples(self._test(X, y))

    def _samples(self, test: Measured) -> OutcomeSamples:
        pairs = [member._coupled(test) for member in self.members_]
        full, scores = (np.concatenate(part) for part in zip(*pairs, strict=True))
        self._finite(scores)
        name = self.measurement if test.measure is self._measure else "output"
        return OutcomeSamples(
            full,
            full[..., None] + scores,
            self.train_indices_,
            measurement=name if isinstance(name, str) else repr(name),
        )

    @property
    def _in_unit(self) -> bool:  # type: ignore[override]
        return self.distance == "mean" and self.joint is None  # other distances do not add up

    def _scores(self, test: Measured) -> NDArray[np.float64]:
        size = max(1, 8 * BLOCK // (len(self.train_indices_) * len(self.members_)))
        found = []
        for some in test.split(size):
            if self._joint:
                each = [self._samples(Measured(some.rows, one)) for one in self._joint]
                found.append(joint_distance(each, SlicedWasserstein()))
            else:
                found.append(self._samples(some).distance(self._distance))
        return np.concatenate(found)

    def _relabelled(
        self, test: Measured, rows: NDArray[np.int64], targets: NDArray[Any]
    ) -> NDArray[np.float64]:
        if not self._in_unit:
            return super()._relabelled(test, rows, targets)
        effects = [one._relabelled(test, rows, targets) for one in self.members_]
        return np.average(effects, axis=0, weights=[one._n_runs() for one in self.members_])
