"""Searches over the parameters of attributors find what is known to be better."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.datasets import load_diabetes
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV
from sklearn.preprocessing import scale

from fimoda import (
    TRAK,
    AgreementScorer,
    AllRows,
    ExactInfluence,
    GradDot,
    LinearDatamodelingScorer,
    MislabelScorer,
    agreement_curve,
    flip_labels,
    further_training_curve,
    linear_datamodeling_score,
    mislabel_detection,
    random_subsets,
    train_on_subsets,
)

DAMPINGS = [1e-2, 1.0, 1e3]


@pytest.fixture(scope="module")
def rows():
    X, y = load_diabetes(return_X_y=True)
    X, y = scale(X)[:90], scale(y)[:90]
    return X[:80], y[:80], X[80:], y[80:]


@pytest.fixture(scope="module")
def ridge(rows):
    return Ridge(alpha=1.0).fit(*rows[:2])


@pytest.fixture(scope="module")
def curve(rows, ridge):
    steps = {"optimizer": "SGD", "lr": 0.05, "batch_size": 80, "random_state": 0}
    return further_training_curve(
        ridge, *rows, epochs=[1, 500], n_seeds=1, leave_out=30, correction="mean", **steps
    )


def search(estimator, grid, scorer, rows, **params):
    given = {"scoring": scorer, "cv": AllRows(), "error_score": "raise", **params}
    return GridSearchCV(estimator, grid, **given).fit(*rows[:2])


def test_agreement(rows, ridge, curve):
    """After one step further training is Grad-Dot, after many it is the influence function."""
    attributor = ExactInfluence(ridge)
    for epochs, best in ((1, 1e3), (500, 1e-2), (None, 1e-2)):
        scorer = AgreementScorer(curve, *rows[2:], epochs=epochs, metric="cosine_centred")
        found = search(attributor, {"damping": DAMPINGS}, scorer, rows)
        assert found.best_params_ == {"damping": best}
        assert found.best_estimator_.estimator is ridge
        place = 0 if epochs == 1 else 1
        for damping, score in zip(DAMPINGS, found.cv_results_["mean_test_score"], strict=True):
            alone = ExactInfluence(ridge, damping=damping).fit(*rows[:2])
            agreement = agreement_curve({"": alone}, curve, *rows[2:])
            assert_allclose(score, agreement.mean("cosine_centred")[0, place], rtol=1e-12)
    with pytest.raises(
        ValueError, match=r"epochs must be a horizon of the curve, \[1, 500\], got 2"
    ):
        AgreementScorer(curve, *rows[2:], epochs=2)(alone)


def test_datamodeling(rows, ridge):
    """A linear model that is fitted again moves as its undamped influence function says."""
    subsets = random_subsets(80, 40, ratio=0.95, random_state=0)
    outcomes = train_on_subsets(ridge, *rows[:2], subsets, *rows[2:], n_seeds=1)
    scorer = LinearDatamodelingScorer(outcomes, *rows[2:])
    found = search(ExactInfluence(ridge), {"damping": DAMPINGS}, scorer, rows)
    assert found.best_params_["damping"] < 1
    best = found.best_estimator_
    score = linear_datamodeling_score({"": best}, outcomes, *rows[2:]).mean()[0, 0]
    assert found.best_score_ == score > 0.9
    assert found.cv_results_["mean_test_score"][-1] < score - 0.02


def test_mislabels():
    """Self-influence sees through columns of other units, the product of gradients does not."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 5)) * [1, 1, 1, 1, 30]
    y, flipped = flip_labels((X[:, 0] + X[:, 1] > 0).astype(int), 0.1, random_state=0)
    model = LogisticRegression(C=100.0, max_iter=1000).fit(X, y)
    for metric in ("roc_auc", "average_precision"):
        scorer = MislabelScorer(flipped, metric)
        found = search(ExactInfluence(model), {"damping": DAMPINGS}, scorer, (X, y))
        assert found.best_params_["damping"] < 1
        detection = mislabel_detection(found.best_estimator_, flipped)
        assert found.best_score_ == getattr(detection, metric)
        assert found.cv_results_["mean_test_score"][-1] < found.best_score_ - 0.05
    with pytest.raises(ValueError, match=r"metric must be 'roc_auc' or .*, got 'auc'"):
        MislabelScorer(flipped, "auc")(found.best_estimator_)


def test_several_scorers_at_once(rows, ridge, curve):
    scorers = {
        "soon": AgreementScorer(curve, *rows[2:], epochs=1),
        "late": AgreementScorer(curve, *rows[2:]),
    }
    grid = {"damping": DAMPINGS}
    found = search(ExactInfluence(ridge), grid, scorers, rows, refit="late")
    assert found.best_params_ == {"damping": 1e-2}
    assert found.cv_results_["rank_test_soon"][-1] == 1


def test_successive_halving(rows, ridge, curve):
    """With a parameter of the method as what halving gives out."""
    found = HalvingGridSearchCV(
        TRAK(ridge, random_state=0),
        {"damping": [*DAMPINGS, 1e4]},
        resource="n_components",
        max_resources=32,
        min_resources=8,
        factor=2,
        scoring=AgreementScorer(curve, *rows[2:]),
        cv=AllRows(),
        error_score="raise",
    ).fit(*rows[:2])
    assert found.n_iterations_ == 3
    assert found.best_estimator_.n_components == 32
    alone = TRAK(ridge, random_state=0, n_components=32, damping=1e4).fit(*rows[:2])
    assert found.best_score_ > AgreementScorer(curve, *rows[2:])(alone)


@pytest.mark.parametrize("kind", ["folds", "n_samples"])
def test_attributors_of_other_rows_are_refused(rows, ridge, curve, kind):
    """The columns of a fold are other rows than those of the gold standard."""
    grid, scorer = {"damping": np.logspace(-3, 3, 9)}, AgreementScorer(curve, *rows[2:])
    given = {"scoring": scorer, "error_score": "raise"}
    if kind == "folds":
        halving = GridSearchCV(ExactInfluence(ridge), grid, cv=2, **given)
    else:
        halving = HalvingGridSearchCV(ExactInfluence(ridge), grid, cv=AllRows(), **given)
    with pytest.raises(ValueError, match=r"fitted on the 80 training rows .* cv=AllRows\(\)"):
        halving.fit(*rows[:2])


def test_scorers_of_other_rows_are_refused(rows, ridge):
    X, y, X_test, y_test = rows
    some = GradDot(ridge).fit(X[:50], y[:50])
    subsets = random_subsets(80, 3, ratio=0.95, random_state=0)
    outcomes = train_on_subsets(ridge, X, y, subsets, X_test, y_test, n_seeds=1)
    for scorer in (
        LinearDatamodelingScorer(outcomes, X_test, y_test),
        MislabelScorer(np.arange(80) < 8),
    ):
        with pytest.raises(ValueError, match=r"fitted on the 80 training rows .* fitted on 50"):
            scorer(some)


def test_scorers_can_be_sent_to_workers(rows, ridge, curve):
    attributor = GradDot(ridge).fit(*rows[:2])
    scorer = AgreementScorer(curve, *rows[2:])
    assert pickle.loads(pickle.dumps(scorer))(attributor) == scorer(attributor)
