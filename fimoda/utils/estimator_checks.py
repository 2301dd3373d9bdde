"""Checks that every attributor passes, beside scikit-learn's own; for attributors from anywhere."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.datasets import make_classification, make_regression
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from ..adapters import is_fitted
from ..base import BaseAttributor
from ..views import TreeView

Rows = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]

_N_TEST = 7


def check_attributor(attributor: BaseAttributor, on_fail: str = "raise") -> list[dict[str, Any]]:
    """Check that an attributor keeps the contract of scores.

    They have the shape (n_test, n_columns), are float64 and finite, are the same from ``fit`` and
    ``transform`` as from ``fit_transform``, do not depend on the other test rows, and have
    ``self_influence`` as their diagonal; the model is never changed nor fitted again; ``clone``,
    ``pickle`` and a second ``fit`` keep what they must and forget what they must.

    Parameters
    ----------
    attributor : BaseAttributor
        Unfitted and without an ``estimator``, with parameters that make it quick.
    on_fail : {"raise", None}, default="raise"
        Whether the first failure is raised, or all are reported.

    Returns
    -------
    results : list of dict
        One for each check: ``check_name``, ``status`` ("passed" or "failed") and ``exception``.

    Raises
    ------
    AssertionError
        Or whatever a check raises, with ``on_fail="raise"``.

    Examples
    --------
    >>> from fimoda import GradDot
    >>> from fimoda.utils.estimator_checks import check_attributor
    >>> {result["status"] for result in check_attributor(GradDot())}
    {'passed'}
    """
    results = []
    for name, check in attributor_checks(attributor):
        result: dict[str, Any] = {"check_name": name, "status": "passed", "exception": None}
        try:
            check()
        except Exception as error:
            if on_fail == "raise":
                raise
            result |= {"status": "failed", "exception": error}
        results.append(result)
    return results


def attributor_checks(attributor: BaseAttributor) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the checks by name, each ready to be called.

    Parameters
    ----------
    attributor : BaseAttributor
        As in `check_attributor`.

    Yields
    ------
    name : str
    check : callable
    """
    for check in _CHECKS:
        if attributor._sees is TreeView and check is check_module_is_not_changed:
            continue
        if not attributor._of_test_rows and check is check_without_targets:
            continue
        for kind, model, rows in _problems(attributor):
            yield f"{check.__name__} ({kind})", partial(check, attributor, model, rows)


def _problems(attributor: BaseAttributor) -> Iterator[tuple[str, Any, Rows]]:
    """Yield kinds of fitted models, with training rows and test rows."""

    def model_for(y: NDArray[Any], usual: Any) -> Any:
        return attributor._default(y) if attributor._sees is TreeView else usual

    X, y = make_regression(30, 4, noise=5, random_state=0)
    rows = X, y, X[:_N_TEST] + 0.1, y[:_N_TEST]
    model = model_for(y, Ridge())
    yield type(model).__name__, model.fit(X, y), rows
    pipeline = make_pipeline(StandardScaler(), model_for(y, Ridge()))
    yield "Pipeline", pipeline.fit(X, y), rows
    X, y = make_classification(36, 4, n_informative=3, n_redundant=0, n_classes=3, random_state=0)
    rows = X, y, X[:_N_TEST] + 0.1, y[:_N_TEST]
    model = model_for(y, LogisticRegression())
    yield type(model).__name__, model.fit(X, y), rows


def _with(attributor: BaseAttributor, model: Any, **params: Any) -> BaseAttributor:
    return clone(attributor).set_params(estimator=model, **params)


def _close(found: NDArray[Any], expected: NDArray[Any]) -> None:
    assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def check_scores(attributor: BaseAttributor, model: Any, rows: Rows) -> None:
    """Check shape, type and columns."""
    X, y, X_test, y_test = rows
    made = _with(attributor, model)
    assert made.fit(X, y) is made, "fit must return self"
    scores = made.transform(X_test, y_test)
    columns = made.train_indices_
    assert scores.shape == (_N_TEST, len(columns)), "scores must be (n_test, n_columns)"
    assert scores.dtype == np.float64, "scores must be float64"
    assert np.isfinite(scores).all(), "scores must be finite"
    assert np.abs(scores).max() > 0, "some score must differ from zero"
    assert set(columns) <= set(range(len(X))), "train_indices_ must be training rows"
    names = made.get_feature_names_out()
    assert list(names) == [f"row{i}" for i in columns], "columns must be named by training rows"


def check_fit_transform(attributor: BaseAttributor, model: Any, rows: Rows) -> None:
    """Check that ``fit_transform`` is ``fit``, then ``transform``."""
    X, y, *_ = rows
    expected = _with(attributor, model).fit(X, y).transform(X)
    assert_array_equal(_with(attributor, model).fit_transform(X, y), expected)


def check_without_targets(attributor: BaseAttributor, model: Any, rows: Rows) -> None:
    """Check that without targets the prediction, or the predicted class, is measured."""
    X, y, X_test, _ = rows
    made = _with(attributor, model).fit(X, y)
    if hasattr(model, "predict_proba"):
        expected = made.transform(X_test, model.predict(X_test))
    else:
        output = _with(attributor, model, measurement="output").fit(X, y)
        expected = output.transform(X_test, np.zeros(_N_TEST))
    assert_array_equal(made.transform(X_test), expected)


def check_self_influence(attributor: BaseAttributor, model: Any, rows: Rows) -> None:
    """Check that self-influence is the diagonal."""
    X, y, *_ = rows
    made = _with(attributor, model).fit(X, y)
    columns = made.train_indices_
    _close(made.self_influence(), np.diag(made.transform(X[columns], y[columns])))


def check_top(attributor: BaseAttributor, model: Any, rows: Rows) -> None:
    """Check the largest and smallest scores, by training row."""
    X, y, X_test, y_test = rows
    made = _with(attributor, model).fit(X, y)
    scores, top = made.transform(X_test, y_test), made.top(X_test, y_test, k=2)
    column = {int(row): k for k, row in enumerate(made.train_indices_)}
    places = [column[int(row)] for row in top.helpful[:, 0]]
    assert_array_equal(scores[np.arange(_N_TEST), places], scores.max(1))
    assert_array_equal(top.helpful_scores[:, 0], scores.max(1))
    assert_array_equal(top.harmful_scores[:, 0], scores.min(1))


def check_company_of_test_rows(attributor: BaseAttributor, model: Any, rows: Rows) -> None:
    """Check that a test row's scores do not depend on the others, nor on their order."""
    X, y, X_test, y_test = rows
    made = _with(attributor, model).fit(X, y)
    order = np.random.default_rng(0).permutation(_N_TEST)
    scores = made.transform(X_test, y_test)
    _close(made.transform(X_test[order], y_test[order]), scores[order])
    _close(made.transform(X_test[2:3], y_test[2:3]), scores[2:3])


def check_model_is_not_changed(attributor: BaseAttributor, model: Any, rows: Rows) -> None:
    """Check that the model stays as it is, whatever is asked, also when the question is wrong."""
    X, y, X_test, y_test = rows
    before = pickle.dumps(model)
    made = _with(attributor, model).fit(X, y)
    made.transform(X_test, y_test)
    made.self_influence()
    try:
        made.transform(X_test[:, :2], y_test)
    except ValueError:
        pass
    else:
        raise AssertionError("rows with too few features must be a ValueError")
    assert made.estimator_ is model, "a fitted model must be used as it stands"
    assert pickle.dumps(model) == before, "the model must not be changed"


def check_module_is_not_changed(attributor: BaseAttributor, model: Any, rows: Rows) -> None:
    """Check that parameters, gradients and mode of a network stay as they are."""
    X, y, X_test, y_test = rows
    torch.manual_seed(0)
    classes = hasattr(model, "predict_proba")
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3 if classes else 1)).double()
    criterion = nn.CrossEntropyLoss() if classes else nn.MSELoss()
    before = copy.deepcopy(net.state_dict())
    own = {"n_epochs": 1} if "n_epochs" in attributor.get_params(deep=False) else {}
    made = _with(attributor, net, criterion=criterion, **own).fit(X, y)
    assert made.transform(X_test, y_test).shape == (_N_TEST, len(made.train_indices_))
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} of the network must not be changed"
    assert net.training, "the network's mode must not be changed"
    assert all(p.grad is None for p in net.parameters()), "no gradient may be left behind"


def check_clone(attributor: BaseAttributor, model: Any, rows: Rows) -> None:
    """Check that a clone is not fitted, has the parameters, and shares a fitted model."""
    X, y, *_ = rows
    made = _with(attributor, model).fit(X, y)
    copied = clone(made)
    assert not is_fitted(copied), "a clone must not be fitted"
    assert copied.estimator is model, "clone must share a fitted model"
    assert copied.get_params(deep=False).keys() == made.get_params(deep=False).keys()
    assert clone(Pipeline([("scores", made)]))[-1].estimator is model


def check_unfitted_model(attributor: BaseAttributor, model: Any, rows: Rows) -> None:
    """Check that an unfitted model is cloned, and its clone fitted."""
    X, y, X_test, y_test = rows
    unfitted = clone(model)
    scores = _with(attributor, unfitted).fit(X, y).transform(X_test, y_test)
    assert not is_fitted(unfitted), "an unfitted model must stay as it is"
    expected = _with(attributor, clone(model).fit(X, y)).fit(X, y).transform(X_test, y_test)
    assert_array_equal(scores, expected)


def check_fit_again(attributor: BaseAttributor, model: Any, rows: Rows) -> None:
    """Check that a second ``fit`` forgets the first."""
    X, y, X_test, y_test = rows
    first = clone(model) if attributor._sees is TreeView else model  # whose leaves know their rows
    made = _with(attributor, first).fit(X[:-4] + 1, y[:-4])
    made.transform(X_test, y_test)
    expected = _with(attributor, model).fit(X, y).transform(X_test, y_test)
    assert_array_equal(
        made.set_params(estimator=model).fit(X, y).transform(X_test, y_test), expected
    )


def check_pickle(attributor: BaseAttributor, model: Any, rows: Rows) -> None:
    """Check that pickles keep the scores, fitted and not."""
    X, y, X_test, y_test = rows
    made = _with(attributor, model)
    loaded = pickle.loads(pickle.dumps(made)).fit(X, y)
    scores = made.fit(X, y).transform(X_test, y_test)
    assert_array_equal(loaded.transform(X_test, y_test), scores)
    loaded = pickle.loads(pickle.dumps(made))
    assert_array_equal(loaded.transform(X_test, y_test), scores)
    assert_array_equal(loaded.self_influence(), made.self_influence())


_CHECKS = [
    check_scores,
    check_fit_transform,
    check_without_targets,
    check_self_influence,
    check_top,
    check_company_of_test_rows,
    check_model_is_not_changed,
    check_module_is_not_changed,
    check_clone,
    check_unfitted_model,
    check_fit_again,
    check_pickle,
]
