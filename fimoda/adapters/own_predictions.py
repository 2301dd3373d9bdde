"""The frozen view of a model beside the model's own predictions."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import skorch
import torch
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.base import is_classifier

from ..model import FinalModel
from ..rows import mapped
from .private_copy import called

#: Rows that are compared.
N_ROWS = 32

#: Largest difference that counts as rounding, by the largest prediction: scikit-learn predicts in
#: float64 here, nets in their own type.
_ROUNDING, _ROUNDING_OF_NETS = 1e-5, 1e-3

#: Classes whose probabilities are closer than this are taken for equally likely.
_TIE = 1e-9


def some_rows(n_rows: int) -> NDArray[np.int64]:
    """Return the rows that are compared, spread over all."""
    return np.unique(np.linspace(0, n_rows - 1, min(n_rows, N_ROWS)).astype(np.int64))


def check_predictions(model: FinalModel, estimator: Any, X: Any) -> None:
    """Raise TypeError unless a model of scikit-learn predicts rows as its frozen view does."""
    X = np.asarray(X.toarray() if issparse(X) else X, dtype=np.float64)
    bare = copy.copy(estimator)  # the names of columns were compared before
    vars(bare).pop("feature_names_in_", None)
    outputs = model.double.outputs(model.double.encode_X(X)).cpu().numpy()
    if not is_classifier(estimator):
        _require_same(estimator, "predict", bare.predict(X), outputs, _ROUNDING)
        return
    own = bare.predict_proba(X)
    probabilities = model.loss.probabilities(torch.from_numpy(outputs)).numpy()
    _require_same(estimator, "predict_proba", own, probabilities, _ROUNDING)
    _check_labels(estimator, bare.predict(X), own, estimator.classes_)


def check_net(model: FinalModel, net: skorch.NeuralNet, X: Any) -> None:
    """Raise TypeError unless a net predicts rows as its frozen view does."""
    own_type = next(net.module_.parameters()).dtype
    if own_type != model.dtype:  # half precision: its view is another, and numpy may not know it
        return
    rows = model.encode_X(X)
    with torch.no_grad():
        raw = called(model.module, rows)
    expected = net._get_predict_nonlinearity()(raw)
    with _as_it_was(net):
        arrays = mapped(lambda part: part.cpu().numpy(), rows)
        given = getattr(arrays, "given", arrays)
        own, predicted = net.predict_proba(given), net.predict(given)
    rounding = max(_ROUNDING_OF_NETS, 8 * torch.finfo(model.dtype).eps)
    _require_same(net, "predict_proba", own, expected.double().cpu().numpy(), rounding)
    if model.output_ndim > 2:  # skorch takes the likeliest along an axis of its own choice
        return
    if isinstance(net, skorch.NeuralNetBinaryClassifier):
        own = np.stack([own[:, 1] <= net.threshold, own[:, 1] > net.threshold], -1)
        _check_labels(net, predicted, own, np.arange(2))
    elif isinstance(net, skorch.NeuralNetClassifier):
        _check_labels(net, predicted, own, np.arange(own.shape[1]))
    else:
        _require_same(net, "predict", predicted, own, rounding)


@contextmanager
def _as_it_was(net: skorch.NeuralNet) -> Iterator[None]:
    """Keep the modes of a net's modules, and torch's generator, which a data loader draws from."""
    modes = {part: part.training for part in net.module_.modules()}
    with torch.random.fork_rng([]):
        yield
    for part, training in modes.items():
        part.training = training


def _check_labels(
    estimator: Any, predicted: Any, probabilities: NDArray[Any], classes: NDArray[Any]
) -> None:
    """Raise unless the predicted labels are the likeliest, where one is."""
    first, second = np.sort(probabilities.astype(float), 1)[:, -2:].T[::-1]
    clear = first - second > _TIE
    labels = np.asarray(predicted).reshape(-1)
    if len(labels) != len(probabilities) or np.any(
        (labels != classes[probabilities.argmax(1)])[clear]
    ):
        raise TypeError(
            _message(estimator, "predict", "its predicted classes are not the likeliest")
        )


def _require_same(
    estimator: Any, method: str, own: Any, expected: NDArray[Any], rounding: float
) -> None:
    own = np.asarray(own, dtype=float)
    if own.size != expected.size:
        raise TypeError(_message(estimator, method, f"its shape is {own.shape}"))
    own = own.reshape(expected.shape)
    finite = own[np.isfinite(own)]
    size = rounding * (1 if method == "predict_proba" else np.abs(finite).max(initial=0.0))
    if not np.isclose(own, expected, rtol=rounding, atol=size, equal_nan=True).all():
        off = np.abs(own - expected).max()
        raise TypeError(_message(estimator, method, f"it differs by up to {off:.2g}"))


def _message(estimator: Any, method: str, what: str) -> str:
    name = type(estimator).__name__
    instead = (
        "Pass net.module_ with criterion=... to attribute to the module."
        if isinstance(estimator, skorch.NeuralNet)
        else "Methods that fit it again (LeaveOneOut, Downsampling, Datamodel) take it as it is."
    )
    return (
        f"estimator {name} must predict by its parameters, as the class that it is derived from does; "
        f"its own {method} gives something else on training rows ({what}). {instead}"
    )
