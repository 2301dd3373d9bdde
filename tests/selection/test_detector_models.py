"""Wrong labels and rows to drop, with models that have no gradients and rows that are no numbers."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import Perceptron, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold, cross_val_predict
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from fimoda import (
    InfluencePruner,
    LeaveOneOut,
    MislabelDetector,
    PrunedClassifier,
    PrunedRegressor,
    flip_labels,
)
from fimoda._validation import MAX_SEED
from fimoda.selection.held_out import N_REPEATS, held_out_losses


def cancer(fraction: float):
    X, y = load_breast_cancer(return_X_y=True)
    names = np.array(["malignant", "benign"], dtype=object)[y]
    return X, *flip_labels(names, fraction, random_state=1)


def digits(n: int = 600):
    X, y = load_digits(return_X_y=True)
    return X[:n], *flip_labels(y[:n], 0.1, random_state=1)


def diabetes():
    X, y = load_diabetes(return_X_y=True)
    y = (y - y.mean()) / y.std()
    rng = np.random.default_rng(0)
    bad = np.isin(np.arange(len(y)), rng.choice(len(y), 44, replace=False))
    return X, y + 3 * bad * rng.choice([-1, 1], len(y)), bad


def found(model, X, y, bad, **given):
    scores = MislabelDetector(model, random_state=0, **given).fit(X, y).scores_
    return roc_auc_score(bad, scores)


# ---- wrong labels are found -----------------------------------------------------------------

MODELS = [
    (RandomForestClassifier(30, random_state=0), 0.97),
    (HistGradientBoostingClassifier(max_iter=20), 0.98),
    (make_pipeline(StandardScaler(), SVC()), 0.98),  # no probabilities
    (make_pipeline(StandardScaler(), LinearSVC()), 0.96),
    (GaussianNB(), 0.95),
]


@pytest.mark.parametrize("fraction", [0.1, 0.2])
@pytest.mark.parametrize(("model", "auc"), MODELS)
def test_wrong_labels_of_two_classes_are_found(model, auc, fraction):
    X, y, bad = cancer(fraction)
    assert found(model, X, y, bad) > auc


@pytest.mark.parametrize("model", [RandomForestClassifier(30, random_state=0), SVC()])
def test_wrong_labels_of_ten_classes_are_found(model):
    assert found(model, *digits()) > 0.99


def test_wrong_targets_are_found():
    for model in (RandomForestRegressor(20, random_state=0), HistGradientBoostingRegressor()):
        assert found(model, *diabetes()) > 0.97


def test_it_beats_the_cross_validated_probability_of_the_label():
    X, y = load_breast_cancer(return_X_y=True)
    model = HistGradientBoostingClassifier(max_iter=20)
    aucs = []
    for seed in range(3):
        noisy, bad = flip_labels(y, 0.2, random_state=seed)
        folds = StratifiedKFold(5, shuffle=True, random_state=seed)
        p = cross_val_predict(model, X, noisy, cv=folds, method="predict_proba")
        aucs.append((found(model, X, noisy, bad), roc_auc_score(bad, -p[np.arange(len(y)), noisy])))
    ours, theirs = np.mean(aucs, axis=0)
    assert ours > theirs + 0.002


def test_frame_with_missing_values_and_categories():
    X, y, bad = cancer(0.1)
    frame = pd.DataFrame(X[:, :20], columns=[f"f{i}" for i in range(20)])
    frame.index = [f"row {i}" for i in range(len(X))]
    frame.iloc[::7, 3] = np.nan
    frame["size"] = pd.Categorical(np.where(X[:, 20] > 15, "large", "small"))
    frame.loc[frame.index[::11], "size"] = None
    detector = MislabelDetector(HistGradientBoostingClassifier(max_iter=20), random_state=0)
    labels = detector.fit_predict(frame, y)
    assert roc_auc_score(bad, detector.scores_) > 0.97
    assert (labels == -1).sum() == 57
    assert bad[labels == -1].mean() > 0.75
    assert list(detector.feature_names_in_) == list(frame.columns)


# ---- the scores, by hand --------------------------------------------------------------------


def halves(y, stratified):
    """The same cuts, from the same random state."""
    rng = np.random.RandomState(0)
    kind = StratifiedKFold if stratified else KFold
    for _ in range(N_REPEATS):
        yield from kind(2, shuffle=True, random_state=rng.randint(MAX_SEED)).split(y, y)


def test_scores_of_probabilities():
    X, y, _ = digits(200)
    expected = np.zeros(len(y))
    for train, test in halves(y, True):
        p = GaussianNB().fit(X[train], y[train]).predict_proba(X[test])
        for row, values in zip(test, p, strict=True):
            expected[row] += max(np.delete(values, y[row])) - values[y[row]]
    scores = MislabelDetector(GaussianNB(), random_state=0).fit(X, y).scores_
    np.testing.assert_allclose(scores, expected / N_REPEATS, atol=1e-12)


def test_scores_of_decisions_predictions_and_targets():
    X, y, _ = cancer(0.1)
    X = StandardScaler().fit_transform(X)[:, :5]
    sign = np.where(y == "malignant", -1.0, 1.0)  # of how far the model is behind
    wide, narrow = np.zeros(len(y)), np.zeros(len(y))
    for train, test in halves(y, True):
        wide[test] += sign[test] * LinearSVC(random_state=0).fit(
            X[train], y[train]
        ).decision_function(X[test])
    scores = MislabelDetector(LinearSVC(random_state=0), random_state=0).fit(X, y).scores_
    np.testing.assert_allclose(scores, wide / N_REPEATS, atol=1e-8)

    class Plain(DecisionTreeClassifier):
        predict_proba = property()  # has none

    for train, test in halves(y, True):
        plain = DecisionTreeClassifier(max_depth=2).fit(X[train], y[train])
        narrow[test] += plain.predict(X[test]) != y[test]
    losses = held_out_losses(Plain(max_depth=2), X, y, None, 0)
    np.testing.assert_allclose(losses, narrow / N_REPEATS)

    X, y, _ = diabetes()
    forest, squares = RandomForestRegressor(3, random_state=0), np.zeros(len(y))
    for train, test in halves(y, False):
        squares[test] += (clone(forest).fit(X[train], y[train]).predict(X[test]) - y[test]) ** 2
    scores = MislabelDetector(forest, random_state=0).fit(X, y).scores_
    np.testing.assert_allclose(scores, squares / N_REPEATS)


def test_weights_are_those_of_the_fits():
    """Rows of weight zero teach nothing."""
    X, y, _ = diabetes()
    weights = np.ones(len(y))
    weights[:100] = 0
    changed = y.copy()
    changed[:100] += 1000.0
    first, second = (held_out_losses(Ridge(), X, targets, weights, 0) for targets in (y, changed))
    np.testing.assert_allclose(second[100:], first[100:], rtol=1e-8)
    assert (second[:100] > 1000).all()


def test_weights_reach_the_last_step_of_a_pipeline():
    X, y, _ = cancer(0.1)
    weights = np.linspace(0.1, 2, len(y))
    model = make_pipeline("passthrough", GaussianNB())
    scores = MislabelDetector(model, random_state=0).fit(X, y, weights).scores_
    alone = MislabelDetector(GaussianNB(), random_state=0).fit(X, y, weights).scores_
    np.testing.assert_array_equal(scores, alone)
    unweighted = MislabelDetector(GaussianNB(), random_state=0).fit(X, y).scores_
    assert np.abs(scores - unweighted).max() > 0.01
    with pytest.raises(ValueError, match=r"KNeighborsClassifier.fit takes none"):
        MislabelDetector(KNeighborsClassifier()).fit(X, y, weights)


def test_sparse_rows_and_texts():
    X, y, bad = cancer(0.1)
    sparse = csr_array(StandardScaler().fit_transform(X))
    forest = RandomForestClassifier(10, random_state=0)
    dense = MislabelDetector(forest, random_state=0).fit(sparse.toarray(), y).scores_
    scores = MislabelDetector(forest, random_state=0).fit(sparse, y).scores_
    np.testing.assert_allclose(scores, dense, atol=0.3)
    assert roc_auc_score(bad, scores) > 0.97
    words = np.array(["ant", "bee", "cow", "dog", "eel", "fox"])
    texts = [" ".join(words[:6][row[:6] > 0]) + " end" for row in sparse.toarray()]
    reader = make_pipeline(CountVectorizer(), SVC())
    assert found(reader, texts, y, bad) > 0.85
    kept, labels = InfluencePruner(reader, by="self", random_state=0).fit_resample(texts, y)
    assert len(kept) == len(labels) == 513


def test_row_of_a_class_of_its_own_is_the_most_suspicious():
    X, y, _ = digits(200)
    y = np.where(y == 9, 8, y)
    y[17] = 9
    for model in (GaussianNB(), LinearSVC(), SVC()):
        scores = MislabelDetector(model, random_state=0).fit(X, y).scores_
        assert np.isfinite(scores).all()
    assert found(RandomForestClassifier(30, random_state=0), X, y, np.arange(200) == 17) > 0.95


def test_attributor_that_is_given_scores():
    X, y, _ = cancer(0.1)
    X, y = StandardScaler().fit_transform(X[:40, :5]), y[:40]
    given = LeaveOneOut(n_seeds=1)
    scores = MislabelDetector(GaussianNB(), attributor=given).fit(X, y).scores_
    expected = LeaveOneOut(GaussianNB().fit(X, y), n_seeds=1).fit(X, y).self_influence()
    np.testing.assert_allclose(scores, expected)


def test_attributor_in_place_of_the_model():
    X, y, _ = cancer(0.1)
    with pytest.raises(TypeError, match=r"got the attributor LeaveOneOut.*attributor=LeaveOneOut"):
        MislabelDetector(LeaveOneOut(GaussianNB())).fit(X, y)


def test_frozen_models_are_not_judged_on_their_own_rows():
    X, y, _ = cancer(0.1)
    forest = FrozenEstimator(RandomForestClassifier(5).fit(X, y))
    with pytest.raises(TypeError, match="RandomForestClassifier"):
        MislabelDetector(forest).fit(X, y)


def test_errors_of_the_model_are_raised():
    X, y, _ = cancer(0.1)
    X = X.copy()
    X[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        MislabelDetector(Perceptron()).fit(X, y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        MislabelDetector(GaussianNB()).fit(X, y[:-1])


# ---- which rows to drop ---------------------------------------------------------------------


def test_pruners_take_models_without_gradients():
    X, y, bad = digits(300)
    model = RandomForestClassifier(20, random_state=0)
    pruned = PrunedClassifier(model, by="self", random_state=0).fit(X, y)
    assert bad[~pruned.support_].mean() > 0.8
    expected = clone(model).fit(X[pruned.support_], y[pruned.support_])
    np.testing.assert_array_equal(pruned.predict(X), expected.predict(X))
    scores = -MislabelDetector(model, random_state=0).fit(X, y).scores_
    np.testing.assert_array_equal(pruned.scores_, scores)


def test_effects_on_held_out_rows_without_gradients():
    """A large group of wrong labels hurts held-out rows, and a mean over refits shows it."""
    X, y = load_breast_cancer(return_X_y=True)
    X, y = X[:200, :4], np.where(X[:200, 0] > 14, "large", "small").astype(object)
    bad = np.zeros(200, dtype=bool)
    bad[::10] = True
    wrong = np.where(bad, np.where(y == "large", "small", "large"), y)
    pruner = InfluencePruner(GaussianNB(), cv=3, random_state=0).fit(X, wrong)
    assert np.isfinite(pruner.scores_).all()
    assert pruner.support_.sum() >= 180


def test_finished_search_stands_for_its_model():
    X, y, bad = diabetes()
    forest = RandomForestRegressor(10, random_state=0)
    search = GridSearchCV(forest, {"max_depth": [3, None]}, cv=2).fit(X, y)
    alone = MislabelDetector(clone(search.best_estimator_), random_state=0).fit(X, y)
    detector = MislabelDetector(search, random_state=0).fit(X, y)
    np.testing.assert_array_equal(detector.scores_, alone.scores_)
    assert roc_auc_score(bad, detector.scores_) > 0.95


def test_network_in_a_target_transform_in_a_search_from_disk():
    """Planted rows are found by the gradients of the network inside."""
    X, y, bad = diabetes()
    y = 150 + 70 * y
    network = MLPRegressor(hidden_layer_sizes=(16,), max_iter=150, random_state=0)
    model = TransformedTargetRegressor(
        make_pipeline(StandardScaler(), network), transformer=StandardScaler()
    )
    grid = {"regressor__mlpregressor__alpha": [1e-3, 1.0]}
    search = GridSearchCV(model, grid, cv=2)
    with pytest.warns(ConvergenceWarning):
        search.fit(X, y)
    pruned = PrunedRegressor(pickle.loads(pickle.dumps(search)), by="self", fraction=0.1)
    with pytest.warns(ConvergenceWarning):
        pruned.fit(X, y)
    assert bad[~pruned.support_].mean() > 0.7
    assert roc_auc_score(bad, -pruned.scores_) > 0.95
    assert pruned.predict(X[:3]).shape == (3,)
