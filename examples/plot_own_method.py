"""
A method of one's own
=====================

An attributor is one class with one or two hooks. This one scores by the product of the gradients'
signs, which nobody has asked for; whatever else an attributor does, from Pipelines to pandas output
and ``clone``, it inherits. The checks that every attributor passes say whether it keeps the contract.
"""

# %%
# The class
# ---------
# Two hooks: ``_fit`` computes what depends on training rows only, of which there is nothing here;
# ``_scores`` gets test rows with what is measured of them, and returns one column for each training
# row. Both find the training objective in ``_objective``, the model on its training rows: it goes
# through pairs of rows in chunks that fit the memory. A method with a parameter and a solver is
# :ref:`sphx_glr_auto_examples_plot_own_solver.py`.

import warnings

from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from fimoda import BaseAttributor, GradDot, agreement_curve, further_training_curve
from fimoda.utils.estimator_checks import check_attributor


def agreement(test, train):
    """Return in how many parameters two gradients pull the same way, less in how many they do not."""
    return test.dense().sign() @ train.dense().sign().mT


class SignProduct(BaseAttributor):
    """Share of the parameters in which two rows pull the same way, less the share of the others."""

    process = "none: directions are compared"

    def _fit(self):
        pass

    def _scores(self, test):
        return self._objective.pairs(test, product=agreement) / self.model_.n_parameters


# %%
# The checks
# ----------
# fimoda's and scikit-learn's. One of the latter compares a row of weight two with the row given
# twice, whose scores have one more column: it cannot hold.

warnings.simplefilter("ignore", ConvergenceWarning)  # the checks' small models stop early
results = check_attributor(SignProduct())
print(f"{len(results)} checks of the contract passed")
expected = {"check_sample_weight_equivalence_on_dense_data": "one column for each row"}
results = check_estimator(SignProduct(), expected_failed_checks=expected)
print(f"{sum(r['status'] == 'passed' for r in results)} checks of scikit-learn passed")

# %%
# Is it any good?
# ---------------

X, y = load_breast_cancer(return_X_y=True)
model = make_pipeline(StandardScaler(), MLPClassifier((16,), max_iter=400, random_state=0)).fit(
    X, y
)
X_test, y_test = X[:20], y[:20]
curve = further_training_curve(
    model, X, y, X_test, y_test, epochs=[1, 5], n_seeds=3, leave_out=40, random_state=0
)
methods = {cls.__name__: cls(model).fit(X, y) for cls in (GradDot, SignProduct)}
print(agreement_curve(methods, curve, X_test, y_test).table())
