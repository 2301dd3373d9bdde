"""One call for attribution: `attribute`."""

from __future__ import annotations

import inspect
import time
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .._validation import Interval, checks_arguments
from ..base import BaseAttributor
from ..measurements import Measurement
from ..training.optimizers import LearningRate
from .choice import ladder_for
from .ladder import Step
from .result import Attribution


@checks_arguments(budget=[Interval(Real, 0, None, closed="right")])
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
    n_epochs: float = 10,
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
    they take is estimated from short trials on some rows and the sizes of everything.

    - Networks: `FurtherTraining` (the definition; 2 seeds that leave rows out in expectation for SGD,
      5 seeds that mask them for other optimisers and batch normalisation), `UnrolledDifferentiation`,
      `LinearizedFurtherTraining` (unless a seed of further training takes less),
      `OnceLinearizedFurtherTraining`, `SOURCE` with the final model alone (influence by EK-FAC that knows
      for how long training goes on), `CGInfluence`, `EKFACInfluence`, `GradDot`.
    - Boosted trees: `LeafInfluence` over up to 16 models grown anew, or of the final one; forests: `TREX`,
      `LeafKernel`. If their training cannot be followed, as models without gradients.
    - Linear models: `LeaveOneOut` (fitted again without each row), a Newton step (`ExactInfluence`).
    - Models without gradients, or with rows that only they take (missing values, categories, sparse
      matrices, texts): `LeaveOneOut`, `Downsampling`.

    A method that fails on a model (too little memory, layers that torch cannot differentiate twice, an
    optimiser that is refused, divergence) is followed by the next, and ``reason`` says so. What is wrong with
    rows or parameters is raised at once.

    What is fitted again is the whole estimator, with 5 seeds if it is fitted twice with different
    seeds and predicts otherwise. Training of `LeaveOneOut`, `Downsampling` and `FurtherTraining` ends
    when the budget is spent: the scores are of what there is then, with its errors, and ``trust``
    says how much that was. Which trainings these are depends on the machine.

    Where a network has another method than `FurtherTraining`, and there is time left, the model is trained
    further without ten rows, of large and small scores, and ``trust`` says how well the scores agree. Below
    .8 the next methods are compared as well, and the best is taken.

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
        Seconds that everything may take, the trial among it. It is spent by more where one training
        takes as long, or what every row needs: four trainings. For ``method="auto"``, as are all
        parameters below but `sample_weight`: an attributor has its own.
    sample_weight : array-like of shape (n_train,), default=None
        Weights of the training rows, if the model was trained with them.
    n_epochs : float, default=10
        Epochs of further training that a score looks ahead (networks).
    optimizer, lr, batch_size, optimizer_params : default=None
        Of further training, as in `FurtherTraining`: the model's own by default; if it has none, SGD
        with a learning rate of 0.01 and batches of 128.
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
        If `method` or `budget` is none of those above, or a parameter is given beside an attributor.
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
    start = time.perf_counter()
    rows = (X_train, y_train, sample_weight)
    settings: dict[str, Any] = {"n_epochs": n_epochs, "optimizer": optimizer, "lr": lr}
    settings |= {"batch_size": batch_size, "optimizer_params": optimizer_params}
    settings |= {"measurement": measurement, "criterion": criterion, "random_state": random_state}
    speed = {"n_jobs": n_jobs, "verbose": verbose}

    def scores_of(one: BaseAttributor) -> NDArray[np.float64]:
        one.fit(*rows)
        return np.asarray(one.transform(X_test, y_test), dtype=np.float64)

    if isinstance(method, BaseAttributor):
        _check_untouched(method, settings)
        if method.estimator is not None and method.estimator is not model:
            raise ValueError(
                "method must be an attributor of `model`, but has another estimator. Leave it out: "
                f"{type(method).__name__}(...)."
            )
        attributor = method.__sklearn_clone__().set_params(estimator=model)
        step = Step(attributor, f"{type(method).__name__}, as asked for.", [], [])
        scores = scores_of(attributor)
    elif method == "auto":
        ladder = ladder_for(model, rows, (X_test, y_test), budget, settings | speed)
        step, scores = ladder.climb(scores_of)
    else:
        raise ValueError(
            f"method must be 'auto' or an attributor, for example GradDot(), got {method!r}."
        )
    attributor, reason, known, checked = step
    errors = attributor._standard_errors()
    if errors is not None and not np.isfinite(errors).any():
        errors = None
    unknown = ["the method does not know its error: compare_methods measures it"]
    trust = [*checked, *(known or attributor._known_error(scores))] or unknown
    return Attribution(
        scores,
        attributor,
        reason,
        seconds=time.perf_counter() - start,
        behaviour=_behaviour(attributor, y_test),
        intervention=attributor.intervention,
        process=attributor._process(),
        errors=errors,
        trust="; ".join([*trust, *attributor._caveats()]),
        test_names=np.asarray(X_test.index if hasattr(X_test, "iloc") else range(len(scores))),
        data={"X_train": X_train, "y_train": y_train, "X_test": X_test, "y_test": y_test},
    )


def _check_untouched(method: BaseAttributor, settings: dict[str, Any]) -> None:
    """Raise if something is asked for that the attributor would not do."""
    defaults = inspect.signature(attribute).parameters
    for name, value in settings.items():
        if value is not defaults[name].default and value != defaults[name].default:
            raise ValueError(
                f"{name} is for method='auto', and an attributor was given: set it there, as in "
                f"{type(method).__name__}({name}=...)."
            )


def _behaviour(attributor: BaseAttributor, y_test: Any) -> str:
    asked, loss = attributor.measurement, attributor.model_.loss
    name = (
        asked if isinstance(asked, str) else getattr(asked, "__name__", "a function of the outputs")
    )
    if asked in ("loss", "log_prob", "margin") and loss.detail:
        name = f"{name} ({loss.detail})"
    if y_test is None and loss.is_classifier:
        return f"{name} of each test row at its predicted class"
    return f"{'prediction' if y_test is None and asked == 'loss' else name} of each test row"
