"""Pruning and mislabel detection: scikit-learn's checks, references by hand, no leaks."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, KFold, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

from fimoda import (
    EKFACInfluence,
    ExactInfluence,
    GradDot,
    InfluencePruner,
    LeaveOneOut,
    MislabelDetector,
    PrunedClassifier,
    PrunedRegressor,
    flip_labels,
    metric_influence,
)

ALL = [InfluencePruner(), PrunedClassifier(), PrunedRegressor(), MislabelDetector()]


def expected_failures(estimator) -> dict[str, str]:
    if not isinstance(estimator, PrunedClassifier | PrunedRegressor):
        return {}
    return {
        "check_sample_weight_equivalence_on_dense_data": (
            "rows are held out in folds, and removing or repeating rows changes the folds"
        )
    }


@parametrize_with_checks(ALL, expected_failed_checks=expected_failures)
def test_sklearn(estimator, check):
    check(estimator)


def regression(n=60):
    X, y = load_diabetes(return_X_y=True)
    return StandardScaler().fit_transform(X[:n]), (y[:n] - y.mean()) / y.std()


def classification(n=120):
    X, y = load_breast_cancer(return_X_y=True)
    return StandardScaler().fit_transform(X[:n]), y[:n]


def test_scores_are_held_out_effects():
    """With leave-one-out as attributor: the mean change of the held-out error of true refits."""
    X, y = regression(24)
    cv = KFold(3)
    pruner = InfluencePruner(Ridge(), attributor=LeaveOneOut(n_seeds=1), cv=cv).fit(X, y)
    expected = np.zeros((2, len(X)))
    for train, held_out in cv.split(X):
        error = [(Ridge().fit(X[train], y[train]).predict(X[held_out]) - y[held_out]) ** 2]
        for row in train:
            rest = train[train != row]
            without = (Ridge().fit(X[rest], y[rest]).predict(X[held_out]) - y[held_out]) ** 2
            expected[:, row] += (without - error[0]).mean(), 1
    np.testing.assert_allclose(pruner.scores_, expected[0] / expected[1], rtol=1e-8)


def test_lowest_negative_scores_go():
    X, y = regression()
    pruner = InfluencePruner(fraction=0.2).fit(X, y)
    gone = np.flatnonzero(~pruner.support_)
    assert len(gone) == 12
    assert pruner.scores_[gone].max() <= np.sort(pruner.scores_)[11]
    assert pruner.scores_[gone].max() < 0
    kept, targets = pruner.fit_resample(X, y)
    np.testing.assert_array_equal(kept, X[pruner.support_])
    np.testing.assert_array_equal(targets, y[pruner.support_])
    assert InfluencePruner(fraction=0.0).fit(X, y).support_.all()
    # never more than hurt
    many = InfluencePruner(fraction=0.95).fit(X, y)
    np.testing.assert_array_equal(many.support_, many.scores_ >= 0)


def test_held_out_rows_are_not_scored_by_themselves():
    """Rows that every split holds out are not scored, and what they are changes no fit."""
    X, y = regression()
    split = PredefinedSplit(np.r_[np.full(40, -1), np.zeros(20)])
    pruner = InfluencePruner(cv=split, fraction=0.3).fit(X, y)
    assert np.isnan(pruner.scores_[40:]).all()
    assert pruner.support_[40:].all()
    assert np.isfinite(pruner.scores_[:40]).all()
    alone = EKFACInfluence(Ridge().fit(X[:40], y[:40])).fit(X[:40], y[:40])
    np.testing.assert_allclose(pruner.scores_[:40], alone.transform(X[40:], y[40:]).mean(0))


def test_no_class_is_lost():
    X, y = classification(60)
    y = np.r_[np.full(4, 2), y[4:]]
    pruner = InfluencePruner(by="self", fraction=0.9).fit(X, y)
    assert set(y[pruner.support_]) == set(y)


@pytest.mark.parametrize("model", [PrunedRegressor(Ridge(2.0)), PrunedClassifier()])
def test_model_is_that_of_the_kept_rows(model):
    X, y = regression() if isinstance(model, PrunedRegressor) else classification()
    inner = LogisticRegression() if model.estimator is None else model.estimator
    fitted = clone(model).fit(X, y)
    expected = clone(inner).fit(X[fitted.support_], y[fitted.support_])
    np.testing.assert_array_equal(fitted.predict(X), expected.predict(X))
    assert 0 < (~fitted.support_).sum() <= 0.1 * len(X)
    weights = np.linspace(0.5, 2, len(X))
    weighted = clone(model).fit(X, y, weights)
    kept = weighted.support_
    expected = clone(inner).fit(X[kept], y[kept], weights[kept])
    np.testing.assert_array_equal(weighted.predict(X), expected.predict(X))


def test_noisy_labels():
    """By self-influence, wrong labels are found and the model gets better."""
    X, y = load_digits(return_X_y=True)
    X = X / 16
    noisy, flipped = flip_labels(y[:700], 0.2, random_state=0)
    model = LogisticRegression(C=10.0, max_iter=200)
    plain = clone(model).fit(X[:700], noisy).score(X[700:], y[700:])
    pruned = PrunedClassifier(model, by="self", fraction=0.2).fit(X[:700], noisy)
    assert flipped[~pruned.support_].mean() > 0.85
    assert pruned.score(X[700:], y[700:]) > plain + 0.02
    labels = MislabelDetector(model, contamination=0.2).fit_predict(X[:700], noisy)
    assert (labels == -1).sum() == 140
    np.testing.assert_array_equal(labels == 1, pruned.support_)


def test_mislabel_detector_scores():
    X, y = classification()
    detector = MislabelDetector(attributor=ExactInfluence(damping=0.1)).fit(X, y)
    model = LogisticRegression().fit(X, y)
    expected = ExactInfluence(model, damping=0.1).fit(X, y).self_influence()
    np.testing.assert_allclose(detector.scores_, expected)
    assert (detector.scores_[detector.labels_ == -1] > detector.threshold_).all()


def test_search_over_everything():
    X, y = classification(80)
    grid = {"fraction": [0.0, 0.1], "estimator__C": [0.1, 1.0], "attributor__damping": [1e-3, 1.0]}
    model = PrunedClassifier(LogisticRegression(), attributor=ExactInfluence(), cv=2)
    search = GridSearchCV(model, grid, cv=2).fit(X, y)
    assert set(search.best_params_) == set(grid)
    assert search.predict_proba(X).shape == (80, 2)


def test_frames_in_a_pipeline():
    """Categorical columns and missing values go through the model's own Pipeline."""
    X, y = classification()
    frame = pd.DataFrame(X[:, :4], columns=list("abcd"), index=[f"r{i}" for i in range(len(X))])
    frame.loc["r3", "a"] = np.nan
    frame["kind"] = np.where(X[:, 5] > 0, "high", "low")
    model = make_pipeline(
        make_column_transformer(
            (make_pipeline(SimpleImputer(), StandardScaler()), list("abcd")),
            (OneHotEncoder(), ["kind"]),
        ),
        LogisticRegression(),
    )
    pruned = PrunedClassifier(model, fraction=0.1).fit(frame, y)
    assert pruned.predict(frame).shape == (len(X),)
    kept, targets = InfluencePruner(model, fraction=0.1).fit_resample(frame, y)
    assert list(kept.index) == list(frame.index[pruned.support_])
    assert len(targets) == len(kept) < len(X)
    assert (MislabelDetector(model).fit_predict(frame, y) == -1).sum() == 12


def test_inside_an_imblearn_pipeline():
    """Rows go before the model is fitted, and none when it predicts; searched over like any step."""
    Pipeline = pytest.importorskip("imblearn.pipeline").Pipeline
    X, y = load_digits(return_X_y=True)
    noisy, _ = flip_labels(y[:300], 0.2, random_state=0)
    steps = StandardScaler(), InfluencePruner(by="self", fraction=0.2), LogisticRegression()
    pipeline = Pipeline(list(zip(["scale", "prune", "model"], steps, strict=True)))
    fitted = clone(pipeline).fit(X[:300], noisy)
    scaled = StandardScaler().fit_transform(X[:300])
    kept, labels = clone(steps[1]).fit_resample(scaled, noisy)
    assert len(kept) == 240
    by_hand = LogisticRegression().fit(kept, labels)
    np.testing.assert_array_equal(fitted[-1].coef_, by_hand.coef_)
    assert fitted.predict(X[300:]).shape == (len(X) - 300,)
    search = GridSearchCV(pipeline, {"prune__fraction": [0.0, 0.2]}, cv=2).fit(X[:300], noisy)
    assert search.best_params_ == {"prune__fraction": 0.2}
    frame = pd.DataFrame(X[:300]).assign(kind=np.where(X[:300, 20] > 8, "dark", "light"))
    frame.columns = frame.columns.map(str)
    model = make_pipeline(
        make_column_transformer((OneHotEncoder(), ["kind"]), remainder=StandardScaler()),
        LogisticRegression(),
    )
    whole = Pipeline([("prune", InfluencePruner(model, by="self")), ("model", model)])
    assert whole.fit(frame, noisy).predict(frame).shape == (300,)


def test_methods_of_the_model():
    X, y = classification()
    assert not hasattr(PrunedClassifier(DecisionTreeClassifier()), "decision_function")
    fitted = PrunedClassifier().fit(X, y)
    assert fitted.decision_function(X).shape == (len(X),)
    assert list(fitted.classes_) == [0, 1]


@pytest.mark.parametrize(
    ("estimator", "error", "message"),
    [
        (
            PrunedClassifier(DecisionTreeClassifier(), attributor=ExactInfluence()),
            TypeError,
            r"got DecisionTreeClassifier",
        ),
        (InfluencePruner(fraction=1.0), ValueError, r"'fraction' .* must be a float in .* \[0.0, 1.0\)"),
        (MislabelDetector(contamination=0.6), ValueError, r"'contamination' .* \(0.0, 0.5\]"),
        (InfluencePruner(attributor=GradDot), ValueError, r"'attributor' .* must be an instance"),
    ],
)  # fmt: skip
def test_errors(estimator, error, message):
    X, y = classification(40)
    with pytest.raises(error, match=message):
        estimator.fit(X, y)


# ---- by a metric ----------------------------------------------------------------------------


def two_groups(n=300):
    """Return rows of two groups, the labels of one of which are pushed to the first class."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 4))
    X[:, 3] = rng.random(n) < 0.4
    y = (X[:, 0] + X[:, 1] - 0.3 * X[:, 3] + rng.normal(size=n) > 0).astype(int)
    y[(X[:, 3] == 1) & (rng.random(n) < 0.3)] = 0
    return X, y


def test_scores_are_those_of_the_metric():
    """With one split: derivatives of a score of held-out rows, with the sign of a loss."""
    X, y = two_groups(120)
    split = PredefinedSplit(np.r_[np.full(80, -1), np.zeros(40)])
    given = {"attributor": ExactInfluence(), "cv": split}
    influence = ExactInfluence(LogisticRegression().fit(X[:80], y[:80])).fit(X[:80], y[:80])
    held_out = influence, X[80:], y[80:]
    by = X[:, 3]

    pruner = InfluencePruner(scoring="roc_auc", **given).fit(X, y)
    expected = metric_influence(*held_out, "roc_auc", how="derivative")
    np.testing.assert_allclose(pruner.scores_[:80], -expected.scores)
    assert np.isnan(pruner.scores_[80:]).all()
    assert pruner.gap_ is None

    for sensitive in (3, by):
        pruner = InfluencePruner(scoring="selection_rate", sensitive=sensitive, **given).fit(X, y)
        expected = metric_influence(
            *held_out, "selection_rate", sensitive=by[80:], how="derivative"
        )
        np.testing.assert_allclose(pruner.scores_[:80], expected.scores)
        assert pruner.gap_ == expected.value


def test_rows_that_would_close_the_gap_and_no_more():
    X, y = two_groups()
    given = {"scoring": "selection_rate", "sensitive": 3}
    pruner = InfluencePruner(fraction=0.99, **given).fit(X, y)
    gone = ~pruner.support_
    assert pruner.gap_ > 0.05
    assert 3 < gone.sum() < 150
    order = np.sort(pruner.scores_[gone])[::-1]
    assert -pruner.scores_[gone].sum() >= pruner.gap_ > -order[1:].sum()
    few = InfluencePruner(fraction=0.01, **given).fit(X, y)
    np.testing.assert_array_equal(
        np.flatnonzero(~few.support_), np.sort(np.argsort(few.scores_)[:3])
    )


def test_a_model_becomes_fairer():
    """Measured anew, on rows that were not looked at, and beside as many random rows."""
    X, y = two_groups(2000)
    train, test = slice(0, 600), slice(600, None)

    def gap(model):
        selected = model.predict(X[test])
        return np.ptp([selected[X[test, 3] == group].mean() for group in (0, 1)])

    plain = LogisticRegression().fit(X[train], y[train])
    pruned = PrunedClassifier(fraction=0.1, scoring="selection_rate", sensitive=3)
    pruned.fit(X[train], y[train])
    kept = np.random.default_rng(0).permutation(600)[: pruned.support_.sum()]
    random = LogisticRegression().fit(X[train][kept], y[train][kept])
    assert gap(pruned) < gap(plain) - 0.05
    assert gap(pruned) < gap(random) - 0.05
    assert pruned.score(X[test], y[test]) > plain.score(X[test], y[test]) - 0.05


def test_regressions_by_a_metric():
    X, y = regression()
    by = X[:, 1] > 0
    pruned = PrunedRegressor(scoring="neg_mean_absolute_error", sensitive=by).fit(X, y)
    assert pruned.gap_ > 0
    assert PrunedRegressor(scoring="r2").fit(X, y).predict(X).shape == (60,)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"by": "self", "scoring": "accuracy"}, "by must be 'held-out'"),
        ({"by": "self", "sensitive": 3}, "by must be 'held-out'"),
        ({"scoring": "selection_rate"}, "sensitive must be given"),
        ({"scoring": "calibration"}, "sensitive must be given"),
        ({"sensitive": np.zeros(300)}, "two groups or more"),
        ({"sensitive": np.zeros(299)}, "sensitive must have one entry per row"),
        ({"sensitive": "age"}, "sensitive must be a column"),
        ({"scoring": "acuracy"}, "scoring must be one of"),
    ],
)
def test_bad_metrics(settings, match):
    with pytest.raises(ValueError, match=match):
        InfluencePruner(**settings).fit(*two_groups())


def test_a_column_of_a_frame_in_a_search():
    X, y = two_groups()
    frame = pd.DataFrame(X, columns=["a", "b", "c", "old"])
    pruned = PrunedClassifier(scoring="accuracy", sensitive="old", cv=2)
    search = GridSearchCV(pruned, {"fraction": [0.0, 0.1]}, cv=2).fit(frame, y)
    assert search.best_score_ > 0.6
