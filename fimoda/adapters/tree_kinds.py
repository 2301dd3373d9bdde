"""Common parts of the libraries of trees: classes and their weights, and predictions to compare."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import is_classifier
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from .._arrays import n_rows
from ..losses import RowLoss
from ..recipe import Weighting
from ..trees import TreeEnsemble, TreeModel
from ..trees.ensemble import Leaves, LeavesOf
from ..trees.losses import BoostingLoss
from .kinds import Kind

#: Largest difference from a model's own predictions that counts as rounding, beside that of its sums.
_ROUNDING = 1e-6


#: Names of the errors of libraries of boosting.
_OF_LIBRARIES = ("CatBoostError", "LightGBMError", "XGBoostError")


class TreesKind(Kind):
    """An ensemble of trees, by its library: `ensemble` and `predictions` are the library's own."""

    knows_columns: ClassVar[bool] = True

    #: The type in which the library adds up the trees.
    adds_in: ClassVar[type] = np.float64

    @abstractmethod
    def ensemble(self, X: Any, y: Any, weights: NDArray[np.float64]) -> TreeEnsemble:
        """Return the trees, from training rows as the model sees them; `weights` include those of classes."""

    @abstractmethod
    def row_loss(self, ensemble: TreeEnsemble, n: int) -> RowLoss:
        """Return the loss of a row of raw scores; the model has n training rows."""

    @abstractmethod
    def raw_scores(self, X: Any) -> NDArray[np.float64]:
        """Return the library's own raw scores (n, C) of rows."""

    def class_weight(self, y: NDArray[Any]) -> NDArray[np.float64] | None:
        """Return the weight of each class in the training, if classes have weights."""
        given = getattr(self.model, "class_weight", None)
        if given is None or not is_classifier(self.model):
            return None
        found: NDArray[np.float64] = compute_class_weight(
            given, classes=self.classes, y=np.asarray(y)
        )
        return found

    @property
    def balances(self) -> str | None:
        """The weight or the number of rows, by which classes are balanced, as `Weighting` has it, or None."""
        return "rows" if isinstance(getattr(self.model, "class_weight", None), str) else None

    @property
    def classes(self) -> NDArray[Any] | None:
        """The labels of a classifier, in the order of its outputs."""
        return getattr(self.model, "classes_", None) if is_classifier(self.model) else None

    def trees(self, X: Any, y: Any, weights: Any) -> TreeModel:
        """Return its view as trees."""
        y, n = np.asarray(y), n_rows(X)
        by_class, classes = self.class_weight(y), self.classes
        total = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
        if by_class is not None and classes is not None:
            total = total * by_class[positions(classes, y)]
        ensemble = self.ensemble(X, y, total)
        leaves_of = partial(_leaves, type(self.model).__name__, ensemble.leaves_of)
        ensemble = replace(ensemble, leaves_of=leaves_of)
        return TreeModel.of(
            ensemble,
            loss=self.row_loss(ensemble, n),
            classes=classes,
            class_weight=None if by_class is None else torch.from_numpy(by_class),
            weighting=Weighting("rows", self.balances),
        )

    def check_predictions(self, view: Any, X: Any) -> None:
        """Raise TypeError unless the trees of the view add up to the model's own raw scores."""
        found: Tensor = view.outputs(view.encode_X(X))
        own = np.asarray(self.raw_scores(X), dtype=np.float64).reshape(found.shape)
        rounding = _ROUNDING + len(view.ensemble.trees) * np.finfo(self.adds_in).eps
        size = np.abs(own).max(initial=1.0)
        if not np.allclose(found.numpy(), own, rtol=rounding, atol=rounding * size):
            off = float(np.abs(found.numpy() - own).max())
            raise TypeError(
                f"estimator {type(self.model).__name__} must predict the sum of its trees, and differs from "
                f"it by up to {off:.2g} on training rows. Methods that fit it again (LeaveOneOut, "
                "Downsampling, Datamodel) take it as it is."
            )


class BoostingKind(TreesKind):
    """Boosted trees: the loss of a row is that of the boosting."""

    trees_are = "boosted"

    def row_loss(self, ensemble: Any, n: int) -> RowLoss:
        loss: BoostingLoss = ensemble.loss
        return loss.row_loss

    def unknown_loss(self, name: str) -> TypeError:
        """Return the error for a loss that there are no formulas of."""
        return TypeError(
            f"estimator {type(self.model).__name__} is trained with {name}, which is not supported for "
            "methods of trees. Use squared error, log-loss, Poisson, gamma, Tweedie, absolute error or "
            "quantiles, or methods that fit it again (LeaveOneOut, Downsampling, Datamodel)."
        )


class BoosterKind(BoostingKind):
    """A booster of a library that fimoda does not need, bare or in the library's estimators."""

    #: The library's module, and the classes of it and those derived from them that are taken.
    library: ClassVar[str]
    names: ClassVar[frozenset[str]]

    def __init__(self, model: Any):
        super().__init__(model)
        self.fits_itself = not self.is_bare

    @classmethod
    def takes(cls, model: Any) -> bool:
        return any(
            base.__name__ in cls.names and base.__module__.split(".")[0] == cls.library
            for base in type(model).__mro__
        )

    @property
    def is_bare(self) -> bool:
        """True if it is a booster itself, and no estimator of scikit-learn's."""
        return not hasattr(self.model, "get_params")

    @property
    @abstractmethod
    def n_classes(self) -> int | None:
        """The number of classes that it was trained on, if it was trained on classes."""

    @property
    def classes(self) -> NDArray[Any] | None:
        if self.n_classes is None:
            return None
        own = getattr(self.model, "classes_", None)
        return np.arange(self.n_classes) if own is None else np.asarray(own)

    def targets(self, y: NDArray[Any], loss: BoostingLoss, n_outputs: int) -> NDArray[np.float64]:
        """Return the targets (C, n) of a loss."""
        return loss.encoded(y if self.classes is None else positions(self.classes, y), n_outputs)

    def unsupported(self) -> TypeError:
        if not self.is_bare:
            return super().unsupported()
        return TypeError(
            f"estimator must be an estimator of scikit-learn's interface for this method, such as "
            f"XGBClassifier or LGBMClassifier; got a bare Booster of {self.library}, which only methods "
            "of trees take (LeafInfluence, LeafRefit, BoostIn)."
        )

    def not_supported(self, what: str, instead: str) -> TypeError:
        """Return the error for an option with which the run cannot be followed."""
        return TypeError(
            f"estimator {type(self.model).__name__} is trained with {what}, with which methods of trees "
            f"cannot follow its training. Train it with {instead}, or use methods that fit it again "
            "(LeaveOneOut, Downsampling, Datamodel)."
        )


@contextmanager
def told_otherwise(name: str) -> Iterator[None]:
    """Tell errors of a model's library as errors of its rows, without a stack of calls."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ not in _OF_LIBRARIES:
            raise
        reason = str(error).split("Stack trace")[0].strip()
        raise ValueError(
            f"X must be rows like those that {name} was fitted on, which does not take these: {reason}"
        ) from error


def _leaves(name: str, leaves_of: LeavesOf, X: Any) -> Leaves:
    """Return the leaves of rows, by the model's library."""
    with told_otherwise(name):
        return leaves_of(X)


def positions(classes: NDArray[Any], y: NDArray[Any]) -> NDArray[np.int64]:
    """Return the place of each label among the classes; those that are none are found out elsewhere."""
    return np.argmax(np.asarray(y)[:, None] == classes, axis=1)


def own_leaves(values: NDArray[np.float64], output: int) -> slice:
    """Return the outputs that a tree adds to: none if it has but one leaf, which the library left at zero."""
    return slice(0, 0) if len(values) == 1 and values[0] == 0 else slice(output, output + 1)
