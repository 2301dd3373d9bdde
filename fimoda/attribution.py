"""One call for attribution: `attribute`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ._choice import choose
from .attributors._further_training import BaseFurtherTraining
from .attributors._retraining import BaseRetraining
from .base import BaseAttributor, TopRows
from .measurements import Measurement
from .plotting.top_rows import TopRowsDisplay
from .training.optimizers import LearningRate

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Attribution:
    """Scores, what they mean, and how far to trust them.

    Attributes
    ----------
    scores : ndarray of shape (n_test, n_columns)
        How the behaviour of the model on each test row changes when a training row is left out.
        With the loss as behaviour a positive score says that the training row helps.
    attributor : BaseAttributor
        The fitted attributor.
    reason : str
        The method, and why it was taken.
    seconds : float
        What everything took.
    behaviour, intervention, process : str
        The three facts that define a score: what is measured, what is done to the training rows,
        and what happens to the model then.
    errors : ndarray of shape (n_test, n_columns) or None
        Standard errors over seeds, for methods that have them.
    trust : str
        What the method knows about its own error.
    test_names : ndarray of shape (n_test,)
        Index of the test frame, or positions.
    data : dict of str to object
        ``X_train``, ``y_train``, ``X_test`` and ``y_test`` as they were given.
    """

    scores: NDArray[np.float64]
    attributor: BaseAttributor
    reason: str
    seconds: float
    behaviour: str
    intervention: str
    process: str
    errors: NDArray[np.float64] | None
    trust: str
    test_names: NDArray[Any]
    data: dict[str, Any] = field(repr=False)

    def top(self, k: int = 5) -> TopRows:
        """The k most helpful and most harmful training rows of each test row.

        Parameters
        ----------
        k : int, default=5

        Returns
        -------
        TopRows
        """
        return TopRows.of(self.scores, self.attributor.train_indices_, k, self.errors)

    def to_frame(self) -> Any:
        """The scores as a pandas DataFrame: test rows by training rows."""
        import pandas as pd

        columns = self.attributor.get_feature_names_out()
        return pd.DataFrame(self.scores, index=self.test_names, columns=columns)

    def plot(
        self,
        row: int = 0,
        k: int = 5,
        ax: Axes | None = None,
        *,
        image_shape: Sequence[int] | None = None,
    ) -> TopRowsDisplay:
        """Draw the most helpful and most harmful training rows of one test row.

        Parameters
        ----------
        row : int, default=0
            The test row, by its position.
        k : int, default=5
            Rows of each kind.
        ax : matplotlib Axes, default=None
            Axes to draw on; new ones by default.
        image_shape : tuple of int, default=None
            Draw the rows themselves, as images of (height, width), with 1 or 3 channels before or
            after; by default their scores.

        Returns
        -------
        TopRowsDisplay
        """
        if image_shape is None:
            return self._display(k).plot(row, ax)
        return self._display(k).plot_images(row, ax, image_shape=image_shape)

    def table(self, row: int = 0, k: int = 5) -> Any:
        """The most helpful and most harmful training rows of one test row, beside it.

        Parameters
        ----------
        row : int, default=0
            The test row, by its position.
        k : int, default=5
            Rows of each kind.

        Returns
        -------
        pandas Styler
            Their scores, targets and values, and how these differ from the test row's.
        """
        return self._display(k).style(row)

    def _display(self, k: int) -> TopRowsDisplay:
        columns = self.attributor.train_indices_.tolist()
        names = dict(zip(columns, self.attributor.get_feature_names_out(), strict=True))
        return TopRowsDisplay(self.top(k), names, **self.data)

    @property
    def _facts(self) -> list[tuple[str, str]]:
        shape = f"{self.scores.shape[0]} test rows x {self.scores.shape[1]} training rows"
        return [
            ("scores", f"{shape}, in {self.seconds:.1f} s"),
            ("behaviour", self.behaviour),
            ("intervention", self.intervention),
            ("process", self.process),
            ("method", self.reason),
            ("trust", self.trust),
        ]

    def __str__(self) -> str:
        return "\n".join(f"{name + ':':14}{text}" for name, text in self._facts)

    def _repr_html_(self) -> str:
        rows = (
            f"<tr><th style='text-align:left'>{name}</th>"
            f"<td style='text-align:left'>{escape(text)}</td></tr>"
            for name, text in self._facts
        )
        return f"<table>{''.join(rows)}</table>"


def attribute(
    model: Any,
    X_train: Any,
    y_train: Any,
    X_test: Any,
    y_test: Any = None,
    *,
    method: str | BaseAttributor = "auto",
    budget: float = 60.0,
    sample_weight: Any = None,
    n_epochs: int = 10,
    optimizer: str | type[torch.optim.Optimizer] | None = None,
    lr: LearningRate | None = None,
    batch_size: int | None = None,
    optimizer_params: dict[str, Any] | None = None,
    measurement: Measurement = "loss",
    criterion: nn.Module | None = None,
    random_state: Any = None,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> Attribution:
    """Say how each test row depends on each training row.

    With ``method="auto"`` the method is the first of these that is thought to fit the budget; what
    they take is estimated from a short trial and the sizes of everything.

    - Networks: `FurtherTraining` with 5 seeds (the definition), `UnrolledDifferentiation`,
      `LinearizedFurtherTraining` with segments, the same with one, `GradDot`.
    - Linear models: `LeaveOneOut` (fitted again without each row), a Newton step (`ExactInfluence`).
    - Models without gradients: `LeaveOneOut` with 5 seeds, `Downsampling`.

    Parameters
    ----------
    model : object
        Fitted model; an unfitted scikit-learn or skorch estimator is fitted.
    X_train, y_train : array-like of shape (n_train, ...)
        The rows it was trained on, and their targets.
    X_test, y_test : array-like of shape (n_test, ...)
        Rows to explain. Without `y_test` what is measured is the prediction (regression), or is
        taken at the predicted class.
    method : "auto" or attributor, default="auto"
        An attributor is used with its own parameters; its ``estimator`` may be left out.
    budget : float, default=60
        Seconds that the scores may take, roughly.
    sample_weight : array-like of shape (n_train,), default=None
        Weights of the training rows, if the model was trained with them.
    n_epochs : int, default=10
        Epochs of further training that a score looks ahead (networks).
    optimizer : str or type, default=None
        Optimiser of further training; the model's own by default, SGD if it has none.
    lr : float or callable, default=None
        Its learning rate; the model's own by default, 0.01 if it has none.
    batch_size : int, default=None
        The model's own by default, 128 if it has none.
    optimizer_params : dict, default=None
        Its other settings.
    measurement : str or callable, default="loss"
        What is attributed: ``"loss"``, ``"margin"``, ``"log_prob"``, ``"output"`` or a callable.
    criterion : nn.Module, default=None
        Training criterion of a bare ``nn.Module``.
    random_state : int, RandomState or None, default=None
        For everything random.
    n_jobs : int, default=None
        joblib workers.
    verbose : int, default=0
        Show progress if positive.

    Returns
    -------
    Attribution
        With ``scores``, ``top()``, ``plot()``, ``to_frame()``; printed, it says what was done.

    Raises
    ------
    ValueError
        If `method` or `budget` is none of those above.
    TypeError
        If the model is not of a kind that can be attributed to.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from fimoda import attribute
    >>> X, y = load_diabetes(return_X_y=True)
    >>> found = attribute(Ridge().fit(X[:400], y[:400]), X[:400], y[:400], X[400:], y[400:])
    >>> found.scores.shape
    (42, 400)
    >>> print(found.process)
    training anew
    """
    if not budget > 0:
        raise ValueError(f"budget must be a positive number of seconds, got {budget!r}.")
    start = time.perf_counter()
    rows = (X_train, y_train, sample_weight)
    if isinstance(method, BaseAttributor):
        attributor = method.__sklearn_clone__()
        if attributor.estimator is None:
            attributor.set_params(estimator=model)
        reason = f"{type(method).__name__}, as asked for."
    elif method == "auto":
        settings = {
            "n_epochs": n_epochs,
            "optimizer": optimizer,
            "lr": lr,
            "batch_size": batch_size,
            "optimizer_params": optimizer_params,
            "measurement": measurement,
            "criterion": criterion,
            "random_state": random_state,
            "n_jobs": n_jobs,
            "verbose": verbose,
        }
        attributor, reason = choose(model, rows, len(X_test), budget, settings)
    else:
        raise ValueError(f"method must be 'auto' or an attributor, got {method!r}.")
    attributor.fit(*rows)
    scores = np.asarray(attributor.transform(X_test, y_test), dtype=np.float64)
    errors = attributor._standard_errors()
    if errors is not None and not np.isfinite(errors).all():
        errors = None
    return Attribution(
        scores,
        attributor,
        reason,
        time.perf_counter() - start,
        _behaviour(attributor, y_test),
        "each training row left out, alone",
        _process(attributor),
        errors,
        _trust(attributor, scores, errors),
        np.asarray(X_test.index if hasattr(X_test, "iloc") else range(len(scores))),
        {"X_train": X_train, "y_train": y_train, "X_test": X_test, "y_test": y_test},
    )


def _behaviour(attributor: BaseAttributor, y_test: Any) -> str:
    asked = attributor.measurement
    name = (
        asked if isinstance(asked, str) else getattr(asked, "__name__", "a function of the outputs")
    )
    if y_test is not None or attributor.model_.loss.kind == "custom":
        return f"{name} of each test row"
    if attributor.model_.loss.kind == "regression":
        return f"{'prediction' if name == 'loss' else name} of each test row"
    return f"{name} of each test row at its predicted class"


def _process(attributor: BaseAttributor) -> str:
    if not isinstance(attributor, BaseFurtherTraining) or isinstance(attributor, BaseRetraining):
        return attributor.process
    steps = attributor._steps(1, 0)
    spec = steps.optimizer
    return (
        f"{attributor.process}: {attributor.n_epochs} epochs of {spec.cls.__name__}, learning rate "
        f"{spec.lr_at(0):g}, batches of {steps.batch_size}"
    )


def _trust(
    attributor: BaseAttributor, scores: NDArray[np.float64], errors: NDArray[np.float64] | None
) -> str:
    known = []
    if errors is not None:
        ratio = np.sqrt((errors**2).mean() / max((scores**2).mean(), 1e-300))
        known.append(f"standard errors are {ratio:.0%} of the scores (root mean squares)")
    if hasattr(attributor, "discrepancy_"):
        known.append(
            f"the linearised run misses {attributor.discrepancy_[-1]:.0%} of the outputs' change"
        )
    if hasattr(attributor, "growth_"):
        known.append(f"small changes grow {attributor.growth_:.2g}-fold at most")
    if errors is None and isinstance(attributor, BaseRetraining):
        known.append("exact if training is deterministic; if not, more seeds tell how random it is")
    return "; ".join(known) or "the method does not know its error: compare_methods measures it"
