"""The side of an attributor that scikit-learn sees: clones, tags, names of columns and HTML."""

from __future__ import annotations

import copy
from html import escape
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags, get_tags
from sklearn.utils._set_output import _get_output_config

from ._validation import check_is_fitted, may_miss_values
from .adapters import is_fitted, takes_sparse_rows
from .preparation import Preparation
from .top_rows import as_text, distinct
from .views import TreeView


class AsEstimator(Preparation, TransformerMixin, BaseEstimator):
    """The part of an attributor that is an estimator and a transformer of scikit-learn."""

    #: Parameters that hold fitted models: a clone shares them, as it does a fitted estimator.
    _shared: ClassVar[tuple[str, ...]] = ()

    # y of transform can be routed like any other metadata
    __metadata_request__transform: ClassVar[dict[str, None]] = {"y": None}

    process: ClassVar[str]
    train_indices_: NDArray[np.int64]

    # ---- clones and tags --------------------------------------------------------------------

    def __sklearn_clone__(self) -> Self:
        """Return a new attributor with the same parameters; a fitted model is shared, never refitted."""
        fitted = self.estimator is not None and is_fitted(self.estimator)
        shared = ("estimator", *self._shared) if fitted else self._shared
        bare = copy.copy(self)
        for name in shared:
            setattr(bare, name, None)
        new = super(AsEstimator, bare).__sklearn_clone__()
        for name in shared:
            setattr(new, name, getattr(self, name))
        return new

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        model = self._model_given
        knows_rows = hasattr(model, "__sklearn_tags__")  # boosters are no estimators
        if knows_rows and self._view(model).leaves_rows:
            tags.input_tags = get_tags(model).input_tags
        else:
            tags.input_tags.sparse = takes_sparse_rows(model)
            trees = model is None and self._sees is TreeView
            tags.input_tags.allow_nan = trees and may_miss_values(self._default(np.zeros(2)))
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    # ---- names of columns -------------------------------------------------------------------

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Return the names of the columns.

        Parameters
        ----------
        input_features : None
            Ignored; scikit-learn's convention.

        Returns
        -------
        names : ndarray of str objects of shape (n_columns,)
            The index of the training frame as text, or ``row0``, ``row1``, ... without a frame. An
            index with duplicates gives duplicates, but for ``set_output(transform="polars")``, whose
            columns must differ: there a repeated name is followed by its position, as in ``a (row 7)``.
        """
        check_is_fitted(self, "model_")
        names = [as_text(label) for label in self._row_labels()]
        if _get_output_config("transform", self)["dense"] == "polars":
            names = distinct(names, self.train_indices_)
        return np.array(names, dtype=object)

    def _row_labels(self) -> Any:
        """Return the labels of the columns: a pandas index, or ``row0``, ``row1``, ..."""
        if self._row_names is None:
            return [f"row{i}" for i in self.train_indices_]
        return self._row_names[self.train_indices_]

    def _told_labels(self) -> Any:
        """Return what people know the columns by: the rows themselves, if they are texts, or the labels."""
        if self._row_texts is None:
            return self._row_labels()
        return [self._row_texts[i] for i in self.train_indices_]

    # ---- HTML -------------------------------------------------------------------------------

    def _meaning(self) -> str:
        """Return what a score says, for the HTML representation."""
        name = self.measurement if isinstance(self.measurement, str) else "measurement"
        sign = "the row helps" if name == "loss" else f"the {name} would be higher"
        return (
            f"<p>A score: {escape(name)} of a test row without a training row, minus with all "
            f"(positive: {escape(sign)}). Without it: {escape(self.process)}.</p>"
        )

    def _repr_html_inner(self) -> str:
        return super()._repr_html_inner() + self._meaning()

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        bundle = super()._repr_mimebundle_(**kwargs)
        if "text/html" in bundle:
            bundle["text/html"] += self._meaning()
        return bundle
