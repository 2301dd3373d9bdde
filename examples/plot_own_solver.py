"""
A solver of one's own
=====================

Most methods multiply gradients by the inverse of a curvature, and differ in how they solve for it.
This one leaves that to MINRES of scipy, in float64: the training objective gives the products.
"""

# %%
# The class
# ---------
# ``__init__`` only stores, and ``_parameter_constraints`` say what is allowed; ``fit`` checks them.
# ``_objective`` is the model on its training rows, here in float64: it gives gradients of rows, their
# shares in the mean, products of all gradients with vectors, and, in a ``GaussNewton``, those that the
# solver asks for.

import warnings
from numbers import Real

import numpy as np
import torch
from scipy.sparse.linalg import minres
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils._param_validation import Interval
from sklearn.utils.estimator_checks import check_estimator

from fimoda import BaseAttributor, ExactInfluence
from fimoda.curvature.operators import GaussNewton
from fimoda.row_gradients import RowGradients
from fimoda.utils.estimator_checks import check_attributor


class MinresInfluence(BaseAttributor):
    r"""Influence function, :math:`S_{zi} = s_i \nabla m_z^\top (C + \lambda I)^{-1} \nabla\ell_i`.

    C is the Gauss-Newton matrix, and a test row's product with its inverse is one call of MINRES.
    """

    process = "the optimum moves"

    _parameter_constraints = {
        **BaseAttributor._parameter_constraints,
        "damping": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self, estimator=None, *, damping=0.1, measurement="loss", criterion=None, random_state=None
    ):
        super().__init__(
            estimator, measurement=measurement, criterion=criterion, random_state=random_state
        )
        self.damping = damping

    def _fit(self):
        self._curvature = GaussNewton(self._objective.double, penalty=True)

    def _scores(self, test):
        objective, curvature = self._curvature.objective, self._curvature.linear_operator()
        gradients = objective.mapped(RowGradients.dense, test.double).cpu().numpy()
        solved = [minres(curvature, g, shift=-self.damping, rtol=1e-9)[0] for g in gradients]
        products = objective.along(torch.tensor(np.array(solved), device=self.model_.device))
        return (objective.rows.shares * products.mT).cpu().numpy()


# %%
# The checks
# ----------
# fimoda's and scikit-learn's. One of the latter compares a row of weight two with the row given
# twice, whose scores have one more column: it cannot hold.

warnings.simplefilter("ignore", ConvergenceWarning)  # the checks' small models stop early
results = check_attributor(MinresInfluence())
print(f"{len(results)} checks of the contract passed")
expected = {"check_sample_weight_equivalence_on_dense_data": "one column for each row"}
results = check_estimator(MinresInfluence(), expected_failed_checks=expected)
print(f"{sum(r['status'] == 'passed' for r in results)} checks of scikit-learn passed")

# %%
# Against a dense solution
# ------------------------

X, y = load_breast_cancer(return_X_y=True)
model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y)
ours = MinresInfluence(model, damping=0.01).fit(X, y).transform(X[:20], y[:20])
exact = ExactInfluence(model, damping=0.01, reweight_others=False)
dense = exact.fit(X, y).transform(X[:20], y[:20])
print(f"largest difference, of the largest score: {abs(ours - dense).max() / abs(dense).max():.1e}")
