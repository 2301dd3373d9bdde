"""SOURCE: unrolled differentiation of the whole training run, segment by segment."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .._validation import MAX_SEED, POSITIVE_INTEGER, POSITIVE_REAL, StrOptions, check_random_state
from ..curvature.ekfac import fisher_of
from ..curvature.projection import KINDS, Projection
from ..curvature.recorded_steps import segment_of
from ..curvature.segmentation import Cut, auto_cut, cut_run
from ..curvature.stationary import ExactStationary, Segment, Stationary
from ..curvature.stationary_ekfac import EKFACStationary
from ..curvature.stationary_projected import ProjectedStationary
from ..measured import Measured
from ..measurements import Measurement
from ..recipe import in_words
from ..training.optimizers import DEFAULT_BATCH_SIZE
from ..trajectory import Trajectory
from ..trials import Trial
from .families.along_the_run import BaseAlongTheRun


class SOURCE(BaseAlongTheRun):
    r"""Segmented stationary unrolling: the effect of a row on the whole training run.

    .. math:: S_{z,i} = \nabla_\theta m_z^\top \sum_l \Bigl( \prod_{l' > l} \bar S_{l'} \Bigr)
              \frac{w_i}{\sum_j w_j} \, \bar R_l \, \bar g_{l,i}, \qquad
              \bar S_l = e^{-\eta_l K_l H_l}, \qquad
              \bar R_l = \bigl( I - e^{-\eta_l K_l H_l} \bigr) H_l^{-1}

    The run is cut into segments of :math:`K_l` steps. In each, the gradient
    :math:`\bar g_{l,i}` of a row and the curvature :math:`H_l` (Gauss-Newton, with the weight decay)
    are taken to stand still, and are averaged over the segment's checkpoints; :math:`\eta_l` is the
    mean learning rate, divided by one minus the momentum. Unlike an influence function the score does
    not suppose that training has converged: directions in which the run has not settled count as
    much as it has moved in them. One segment of many steps is an influence function, few steps are
    `GradDot`.

    For Adam, AdamW, RMSprop and Adagrad the curvature is preconditioned, :math:`M_l = P_l^{1/2} H_l
    P_l^{1/2}`, with the mean of the checkpoints' preconditioners:

    .. math:: \bar S_l = P_l^{1/2} e^{-\eta_l K_l M_l} P_l^{-1/2}, \qquad
              \bar R_l = P_l^{1/2} \bigl( I - e^{-\eta_l K_l M_l} \bigr) M_l^{-1} P_l^{1/2}.

    Where their state was not recorded, second moments are estimated from the rows' gradients.

    Parameters
    ----------
    estimator : object, default=None
        Fitted model; an unfitted scikit-learn or skorch estimator is cloned and fitted. None is a
        small MLP.
    trajectory : Trajectory, "final" or None, default=None
        The training run; by default the one that the net's `TrajectoryRecorder` has recorded, and
        an estimator that is fitted here and has none stands for itself. "final" lets the final
        model stand for all of it, in one segment: an influence function that knows for how long the
        model was trained.
    segments : int, "auto" or list of int, default=3
        Number of segments, with nearly equal numbers of checkpoints; or cut where gradients change;
        or numbers of steps at which segments end. A new stage is a new segment in any case.
    stage : int, str or None, default=None
        Attribute to the rows of one stage only: its number or name. The curvature of later stages is
        that of their own rows, so that X holds the rows of all stages (see `Stage`).
    curvature : {"ekfac", "exact", "projected"}, default="ekfac"
        EK-FAC of linear and convolutional layers; the dense matrix, for small models; or that of
        projected gradients, as in `TRAK`, where a test row costs little.
    averaging : {"curvature", "parameters"}, default="curvature"
        What is averaged over the checkpoints of a segment: gradients and curvature, or, at the price
        of one checkpoint, the parameters (Fast-SOURCE).
    fisher : {"auto", "expected", "sampled"}, default="auto"
        How EK-FAC takes the mean over the model's own targets, see `EKFACInfluence`.
    curvature_scale : float or "matched", default="matched"
        Factor of EK-FAC's curvature, see Notes; 1.0 is the paper's method.
    n_components : int, default=2048
        Components of ``curvature="projected"``.
    projection : {"rademacher", "gaussian", "sparse", "product"}, default="sparse"
        Their distribution, see `TRAK`.
    n_epochs : float, default=None
        With "final": length of the training; the network's own by default.
    lr : float, default=None
        With "final": learning rate; the model's own by default, 0.01 if it has none.
    batch_size : int, default=None
        With "final": batch size; the model's own by default, 128 if it has none. It is also that of
        the estimate of second moments.
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
        Bytes for gradients, and for the matrices of ``curvature="exact"``.
    random_state : int, RandomState or None, default=None
        Used to fit an unfitted `estimator`, to sample targets and to draw the projection.

    Attributes
    ----------
    estimator_ : object
        The final model.
    model_ : FinalModel
        Its frozen functional view.
    trajectory_ : Trajectory
        The training run.
    segments_ : list of tuple of int
        First step, end and number of checkpoints of each segment.
    train_indices_ : ndarray of shape (n_columns,)
        Training row of each column.

    Raises
    ------
    ValueError
        If there are fewer checkpoints than segments, they are of another architecture or other rows,
        or the optimiser has no such form.
    MemoryError
        If dense matrices do not fit `memory_budget`.

    Notes
    -----
    With EK-FAC the preconditioner enters by its inverse in the eigenbasis of H, so that all
    functions are of numbers. (The paper takes the exponentials of the diagonal curvature instead.)

    EK-FAC sees each layer alone. What a prediction learns it learns in all layers at once, so that
    residuals decay faster than the curvature of any one layer says, and ``curvature_scale=1``
    takes training for less converged than it is. "matched" multiplies the curvature of each segment
    by :math:`\|H\|_F / \|\hat H\|_F`, so that it has the size of the whole Gauss-Newton matrix
    (from the inner products of up to 512 rows' gradients): about the square root of the number of
    layers. An influence function does not change with such a factor.

    References
    ----------
    Bae et al., "Training Data Attribution via Approximate Unrolled Differentiation", NeurIPS 2024,
    arXiv 2405.12186.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from skorch import NeuralNetRegressor
    >>> from fimoda import SOURCE, TrajectoryRecorder
    >>> X = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
    >>> net = NeuralNetRegressor(
    ...     torch.nn.Linear(3, 1),
    ...     max_epochs=4,
    ...     batch_size=5,
    ...     verbose=0,
    ...     train_split=None,
    ...     callbacks=[TrajectoryRecorder()],
    ... ).fit(X, X[:, :1])
    >>> source = SOURCE(net).fit(X, X[:, :1])
    >>> source.segments_
    [(0, 5, 2), (5, 11, 2), (11, 16, 2)]
    >>> source.transform(X[:4], X[:4, :1]).shape
    (4, 20)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseAlongTheRun._parameter_constraints,
        "segments": [POSITIVE_INTEGER, StrOptions({"auto"}), list, tuple, np.ndarray],
        "curvature": [StrOptions({"ekfac", "exact", "projected"})],
        "averaging": [StrOptions({"curvature", "parameters"})],
        "fisher": [StrOptions({"auto", "expected", "sampled"})],
        "curvature_scale": [POSITIVE_REAL, StrOptions({"matched"})],
        "n_components": [POSITIVE_INTEGER],
        "projection": [StrOptions(set(KINDS))],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        trajectory: Trajectory | str | None = None,
        segments: int | str | Sequence[int] = 3,
        stage: int | str | None = None,
        curvature: str = "ekfac",
        averaging: str = "curvature",
        fisher: str = "auto",
        curvature_scale: float | str = "matched",
        n_components: int = 2048,
        projection: str = "sparse",
        n_epochs: float | None = None,
        lr: float | None = None,
        batch_size: int | None = None,
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
        self.trajectory = trajectory
        self.segments = segments
        self.stage = stage
        self.curvature = curvature
        self.averaging = averaging
        self.fisher = fisher
        self.curvature_scale = curvature_scale
        self.n_components = n_components
        self.projection = projection
        self.n_epochs = n_epochs
        self.lr = lr
        self.batch_size = batch_size
        self.reweight_others = reweight_others
        self.chunk_size = chunk_size
        self.memory_budget = memory_budget

    def _process(self) -> str:
        if not self._alone:
            return super()._process()
        run = self.trajectory_
        return (
            f"{run.n_steps} steps of {run.optimizer}, learning rate {run.learning_rates[0]:g}, in one "
            "segment with the curvature of the final model"
        )

    def _expected_seconds(self, trial: Trial) -> float:
        return trial.by_rows(self)

    # ---- fit --------------------------------------------------------------------------------

    def _fit(self) -> None:
        super()._fit()
        unseen = self.model_.recipe.unseen or in_words(self.trajectory_.optimizer_params)
        if unseen is not None:
            warnings.warn(
                f"SOURCE does not see all of this training: {unseen}. Scores are "
                "those of the same steps without it.",
                UserWarning,
                stacklevel=2,
            )
        if self.trajectory_.lr_factors:
            raise ValueError(
                "SOURCE takes one learning rate for all parameters, and the run has parameter groups with "
                "their own. Use TracIn or Hydra, which follow them."
            )
        cuts = self._cuts()
        first = next(k for k, cut in enumerate(cuts) if cut.stage in self._attributed)
        self._used = cuts[first:]  # what is before has no part in the scores
        self.segments_ = [(cut.start, cut.stop, len(cut.checkpoints)) for cut in self._used]
        self._walk = self._stationary([self._segment(cut) for cut in self._used])

    def _cuts(self) -> list[Cut]:
        if self._alone:
            return cut_run(self.trajectory_, 1)
        if isinstance(self.segments, str):
            return auto_cut(self.trajectory_, [stage.objective for stage in self._stages])
        return cut_run(self.trajectory_, self.segments)

    def _segment(self, cut: Cut) -> Segment:
        batch = self.batch_size or self.model_.recipe.batch_size or DEFAULT_BATCH_SIZE
        objective, mean = self._stages[cut.stage].objective, self.averaging == "parameters"
        return segment_of(self.trajectory_, cut, objective, batch, mean)

    def _stationary(self, segments: list[Segment]) -> Stationary:
        if self.curvature == "exact":
            return ExactStationary(self._objective, segments)
        seed = int(check_random_state(self.random_state).randint(MAX_SEED))
        if self.curvature == "projected":
            p = self.model_.n_parameters
            project = Projection(p, self.n_components, self.projection, seed=seed)
            return ProjectedStationary(self._objective, segments, project)
        fisher = fisher_of(self._objective, self.fisher)
        return EKFACStationary(
            self._objective, segments, fisher=fisher, scale=self.curvature_scale, seed=seed
        )

    # ---- transform --------------------------------------------------------------------------

    def _scores(self, test: Measured) -> NDArray[np.float64]:
        scores = np.zeros((len(test), len(self._objective)))
        for at in self._chunks(len(test)):
            for k, adjoint in self._walk.back(test[at]):
                if self._used[k].stage in self._attributed:
                    stage = self._stages[self._used[k].stage]
                    found = self._walk.products(k, self._walk.respond(k, adjoint)).cpu().numpy()
                    scores[at, stage.rows] += stage.removal(found * stage.shares)
        return self._columns(scores)

    def _relabelled(
        self, test: Measured, rows: NDArray[np.int64], targets: NDArray[Any]
    ) -> NDArray[np.float64]:
        known, changed = self._with_targets(rows, targets)
        ratio, found = self._weight_ratio(known, changed), np.zeros((len(test), len(rows)))
        walks = [self._walk.with_rows(one.rows) for one in (known, changed)]
        for at in self._chunks(len(test)):
            for k, adjoint in self._walk.back(test[at]):
                if self._used[k].stage in self._attributed:
                    shares = self._shares_in(self._stages[self._used[k].stage], rows)
                    response = self._walk.respond(k, adjoint)
                    before, after = (walk.products(k, response).cpu().numpy() for walk in walks)
                    found[at] += shares * (before - ratio * after)
        return found

    def _own_products(self) -> NDArray[np.float64]:
        scores = np.zeros(len(self._objective))
        place = np.full((len(self._stages), len(self._objective)), -1)
        for s, stage in enumerate(self._stages):
            place[s, stage.rows] = np.arange(len(stage.rows))
        for test in self._chunks(len(self._objective)):
            for k, adjoint in self._walk.back(self._own[test]):
                if self._used[k].stage in self._attributed:
                    stage, own = self._stages[self._used[k].stage], place[self._used[k].stage, test]
                    at = np.maximum(own, 0)
                    response = self._walk.respond(k, adjoint)
                    found = self._walk.rowwise(k, response, torch.from_numpy(at)).cpu().numpy()
                    scores[test] += found * np.where(own < 0, 0, stage.shares[at])
        return self._columns(scores)

    def _chunks(self, n_rows: int) -> list[slice]:
        """Return slices of rows whose adjoints fit the memory budget."""
        size = 4 * self.model_.n_parameters * (8 if self.curvature == "exact" else 4)
        step = int(max(1, self.memory_budget // size))
        return [slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]
