"""Kinds of models, one class each: answers to all that the rest asks about a model, with defaults."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted
from torch import nn

from .._arrays import n_rows
from ..model import FinalModel
from ..trees import TreeModel
from .first_run import check_ids
from .own_predictions import check_predictions

#: What `as_final_model` takes, for messages.
SUPPORTED = (
    "a fitted skorch net, a torch.nn.Module with criterion=..., MLPClassifier, MLPRegressor, "
    "LogisticRegression, LinearRegression, Ridge, SGDClassifier or SGDRegressor with a smooth "
    "loss, alone or in a Pipeline, a search, a FrozenEstimator, a TransformedTargetRegressor, a "
    "classifier with another threshold, or a CalibratedClassifierCV of a FrozenEstimator"
)

#: What methods of trees take, for messages.
TREES = (
    "fitted trees: HistGradientBoosting*, GradientBoosting*, RandomForest*, ExtraTrees*, DecisionTree*, "
    "Bagging* of trees, XGBoost, LightGBM or CatBoost, alone or in a Pipeline, a search or a FrozenEstimator"
)


class Kind:
    """A model without its wrappers; of this kind are those that can only be fitted again.

    Parameters
    ----------
    model : object
    """

    #: Classes of such models, and those derived from them that are none.
    types: ClassVar[tuple[type, ...]] = (object,)
    but: ClassVar[tuple[type, ...]] = ()

    #: Whether it is an ensemble of trees: grown in rounds, or each on its own; None if it is neither.
    trees_are: ClassVar[Literal["boosted", "apart"] | None] = None

    #: Whether a criterion may be given with the model.
    takes_criterion: ClassVar[bool] = False

    #: Whether it has a ``fit`` of its own, and is no network of torch's.
    fits_itself: bool = True

    #: Whether it knows its columns by name and number.
    knows_columns: ClassVar[bool] = True

    #: Whether its rows may be sparse; gradients of a network are taken of dense ones.
    takes_sparse: ClassVar[bool] = True

    def __init__(self, model: Any):
        self.model = model

    @classmethod
    def takes(cls, model: Any) -> bool:
        """Return whether a model is of this kind."""
        return isinstance(model, cls.types) and not isinstance(model, cls.but)

    def is_fitted(self) -> bool:
        """Return whether the model can be used as it stands."""
        try:
            check_is_fitted(self.model)
        except NotFittedError:
            return False
        except TypeError as error:
            raise self.unsupported() from error
        return True

    def predict(self, X: Any) -> Any:
        """Return the model's own predictions of rows, which it looks at as it looks at all."""
        return self.model.predict(X)

    def is_network(self) -> bool:
        """Return whether it is trained by gradient steps in batches, as a stack can be."""
        return False

    def n_epochs(self) -> int | None:
        """Return the epochs of its training, where they are known."""
        return None

    def goes_on_in_steps(self) -> bool:
        """Return whether further training takes steps of an optimiser, and is not its own continuing."""
        return False

    def own_training(self) -> str | None:
        """Return what a stack cannot repeat of its training, if there is such a thing."""
        return None

    def rows_seen(self) -> int | None:
        """Return how many rows an epoch of its training had, where the model tells."""
        return None

    def warn_of_batches(self, weighted: bool) -> None:
        """Warn if its batches were made of other rows than those given, or not evenly of them."""

    def frozen(self, X: Any, y: Any, weights: Any, criterion: Any) -> FinalModel:
        """Return its frozen view, from training rows as it sees them, their targets and weights."""
        raise self.unsupported()

    def trees(self, X: Any, y: Any, weights: Any) -> TreeModel:
        """Return its view as trees, from training rows as it sees them, their targets and weights."""
        raise TypeError(f"estimator must be {TREES}; got {type(self.model).__name__}.")

    def check_predictions(self, view: FinalModel, X: Any) -> None:
        """Raise TypeError unless it predicts some rows as its frozen view does."""

    def let_be_pickled(self) -> None:
        """Let the model be sent to workers and stored, where that needs something to be done."""

    def fresh(self, seed: int) -> nn.Module:
        """Return its module before training; the global generators have the seed, too."""
        raise self.unsupported()

    def unsupported(self) -> TypeError:
        """Return the error that says which models there are."""
        if isinstance(self.model, type):
            got = f"the class {self.model.__name__}. Pass a fitted instance of it"
        else:
            of_trees = {
                "boosted": "Methods of trees (LeafInfluence, LeafRefit, BoostIn, TREX) take it; methods",
                "apart": "Methods of trees (LeafKernel, TREX) take it; methods",
                None: "Methods",
            }
            got = (
                f"{type(self.model).__name__}. {of_trees[self.trees_are]} that train again (LeaveOneOut, "
                "Downsampling, Datamodel) take other scikit-learn estimators too"
            )
        return TypeError(f"estimator must be {SUPPORTED}; got {got}.")


class Frozen(Kind):
    """A `FinalModel`, which is its own frozen view."""

    types = (FinalModel,)
    takes_criterion = True
    fits_itself = False
    knows_columns = False

    def is_fitted(self) -> bool:
        return True

    def goes_on_in_steps(self) -> bool:
        return True

    def frozen(self, X: Any, y: Any, weights: Any, criterion: Any) -> FinalModel:
        check_ids(self.model, X)
        return self.model


class ScikitLearn(Kind, ABC):
    """A model of scikit-learn's with coefficients."""

    def goes_on_in_steps(self) -> bool:
        return True

    @abstractmethod
    def view(self, estimator: Any, y: Any, weights: NDArray[Any]) -> FinalModel:
        """Return the frozen view of the model with dense coefficients, for targets and weights."""

    def frozen(self, X: Any, y: Any, weights: Any, criterion: Any) -> FinalModel:
        """Return its coefficients as a module, with its loss and penalty."""
        model = self.model
        n_features = getattr(model, "n_features_in_", None)
        if np.shape(X)[1:] != (n_features,) and n_features is not None:
            raise ValueError(
                f"X must have the {n_features} features that {type(model).__name__} was fitted on, "
                f"got rows of shape {np.shape(X)[1:]}."
            )
        if issparse(getattr(model, "coef_", None)):  # after sparsify()
            model = copy.copy(model).densify()
        given = np.ones(n_rows(X)) if weights is None else np.asarray(weights, dtype=float)
        return self.view(model, y, given)

    def check_predictions(self, view: FinalModel, X: Any) -> None:
        check_predictions(view, self.model, X)
