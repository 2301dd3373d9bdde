"""Around the methods of trees: ensembles, distributions, comparisons, selection, plots, commands."""

from __future__ import annotations

import joblib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.ensemble import (
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.svm import SVC

from fimoda import (
    TREX,
    AgreementCurve,
    BoostIn,
    DistributionalInfluence,
    EnsembleAttributor,
    FurtherTraining,
    GradDot,
    InfluencePruner,
    LeafInfluence,
    LeafKernel,
    LeafRefit,
    LeaveOneOut,
    LinearDatamodelingScore,
    MislabelDetector,
    PrunedClassifier,
    PrunedRegressor,
    ScoreMapDisplay,
    SelfInfluenceDisplay,
    compare_methods,
    flip_labels,
    linear_datamodeling_score,
    mislabel_detection,
    random_subsets,
    significant_scores,
    subset_removal_curve,
    train_ensemble,
    train_on_subsets,
)
from fimoda.attributors.of_trees import method_of_trees
from fimoda.cli import main

lgb = pytest.importorskip("lightgbm")
xgb = pytest.importorskip("xgboost")

rng = np.random.default_rng(0)
N = 70
X = rng.normal(size=(N, 3))
Y = X[:, 0] + X[:, 1] ** 2 + 0.3 * rng.normal(size=N)
LABELS = np.where(Y > 0.8, "yes", "no")
XT, YT = X[:5] + 0.05, Y[:5]

FRAME = pd.DataFrame(X, columns=["age", "pay", "debt"])
FRAME["town"] = rng.choice(["Bern", "Basel", "Chur"], N)
FRAME.loc[::9, "pay"] = np.nan
FRAME.loc[::11, "town"] = None
FRAME.index = [f"p{i}" for i in range(N)]

HIST = HistGradientBoostingRegressor(max_iter=6, min_samples_leaf=5, early_stopping=False)
HIST_LABELS = HistGradientBoostingClassifier(max_iter=6, min_samples_leaf=5, early_stopping=False)
EXACT = GradientBoostingRegressor(n_estimators=6, max_depth=2, subsample=0.7, random_state=0)
FOREST = RandomForestRegressor(8, max_depth=4, random_state=0)
FOREST_LABELS = RandomForestClassifier(8, random_state=0)


def mixed(model):
    encode = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["town"]), remainder="passthrough"
    )
    return make_pipeline(encode, model)


def searched(model):
    return GridSearchCV(
        mixed(model), {f"{type(model).__name__.lower()}__random_state": [0, 1]}, cv=2
    )


# ---- the method for a model ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "method"),
    [
        (HIST, LeafInfluence),
        (mixed(EXACT), LeafInfluence),
        (lgb.LGBMClassifier(), LeafInfluence),
        (xgb.XGBRegressor(), LeafInfluence),
        (FOREST, LeafKernel),
        (mixed(FOREST_LABELS), LeafKernel),
        (SVC(), type(None)),
        (None, type(None)),
    ],
)
def test_the_method_for_a_model(model, method):
    assert type(method_of_trees(model)) is method


@pytest.mark.parametrize("model", [mixed(FOREST_LABELS), mixed(HIST_LABELS)])
def test_methods_of_gradients_name_those_of_trees(model):
    model = clone(model).fit(FRAME, LABELS)
    with pytest.raises(TypeError, match=r"Methods of trees \(Leaf\w+, .*\) take it; methods that"):
        GradDot(model).fit(FRAME, LABELS)


# ---- several models --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "method"), [(EXACT, LeafInfluence()), (FOREST, LeafKernel()), (FOREST, TREX())]
)
def test_an_ensemble_is_the_mean_over_its_models(model, method):
    model = clone(model).fit(FRAME.iloc[:, [0, 2]], Y)
    rows = FRAME.iloc[:, [0, 2]]
    models = train_ensemble(model, rows, Y, n_seeds=[1, 2, 3])
    found = EnsembleAttributor(model, attributor=method, models=models).fit(rows, Y)
    each = [
        clone(method).set_params(estimator=one).fit(rows, Y).transform(rows[:4], Y[:4])
        for one in models.models
    ]
    assert_allclose(found.transform(rows[:4], Y[:4]), np.mean(each, 0))
    assert_allclose(found.scores_sem_, np.std(each, 0, ddof=1) / np.sqrt(3))
    drawn = EnsembleAttributor(model, attributor=method, n_seeds=[1, 2, 3]).fit(rows, Y)
    assert_allclose(drawn.transform(rows[:4], Y[:4]), found.transform(rows[:4], Y[:4]))
    mask = significant_scores(found, rows[:4], Y[:4]).mask
    assert mask.shape == (4, N)


def test_defaults_of_an_ensemble():
    for model, method in ((HIST, LeafInfluence), (FOREST, LeafKernel)):
        found = EnsembleAttributor(clone(model), n_seeds=2).fit(X, Y)
        assert [type(one) for one in found.members_] == [method, method]
    made = EnsembleAttributor(attributor=BoostIn(), n_seeds=2).fit(X, LABELS)
    assert isinstance(made.estimator_, HistGradientBoostingClassifier)
    with pytest.raises(TypeError, match="Methods of trees"):
        EnsembleAttributor(FOREST, attributor=GradDot()).fit(X, Y)


def test_distributions_of_boosting():
    model = mixed(HistGradientBoostingRegressor(max_iter=6, max_features=0.5, min_samples_leaf=5))
    model.fit(FRAME, Y)
    test = FRAME[:4], Y[:4]
    method = LeafInfluence(n_models=4, share=1, random_state=0)
    found = DistributionalInfluence(model, method=method).fit(FRAME, Y)
    samples = found.outcome_samples(*test)
    assert samples.full.shape == (4, 4)
    assert np.std(samples.full, 0).min() > 0
    alone = clone(method).set_params(estimator=model).fit(FRAME, Y)
    assert_allclose(found.transform(*test), alone.transform(*test))  # of means
    far = DistributionalInfluence(model, method=method, distance="w2").fit(FRAME, Y)
    assert (far.transform(*test) >= 0).all()
    default = DistributionalInfluence(model, random_state=0).fit(FRAME, Y)
    assert default.outcome_samples(*test).full.shape == (10, 4)
    with pytest.raises(ValueError, match="share must be 1 where models are looked at one by one"):
        DistributionalInfluence(model, method=LeafInfluence(n_models=3)).fit(FRAME, Y).transform(
            *test
        )


def test_distributions_of_real_trainings():
    model = clone(EXACT).fit(X, Y)
    for method in (
        FurtherTraining(n_epochs=2, n_seeds=3, leave_out=[0, 7], random_state=0),
        LeaveOneOut(n_seeds=3, leave_out=[0, 7], random_state=0),
    ):
        found = DistributionalInfluence(model, method=method).fit(X, Y).transform(XT, YT)
        alone = clone(method).set_params(estimator=model).fit(X, Y)
        assert_allclose(found, alone.transform(XT, YT))


def test_distributions_of_forests():
    model = clone(FOREST).fit(X, Y)
    with pytest.raises(ValueError, match="models must be given for a RandomForestRegressor"):
        DistributionalInfluence(model).fit(X, Y)
    with pytest.raises(TypeError, match="has no further training"):
        DistributionalInfluence(model, method=FurtherTraining()).fit(X, Y)
    models = train_ensemble(model, X, Y, n_seeds=3)
    found = DistributionalInfluence(model, models=models, distance="variance").fit(X, Y)
    assert [type(one) for one in found.members_] == [LeafKernel] * 3
    assert found.transform(XT, YT).shape == (5, N)


# ---- comparisons -----------------------------------------------------------------------------


def test_boosted_trees_are_compared_with_further_boosting():
    model = mixed(HIST_LABELS).fit(FRAME, LABELS)
    settings = {"epochs": [1, 4], "leave_out": 10, "n_seeds": 1, "random_state": 0}
    found = compare_methods(model, FRAME, LABELS, FRAME[:6], LABELS[:6], **settings)
    assert isinstance(found.agreement, AgreementCurve)
    assert found.agreement.methods[0] == "TREX"
    assert not found.skipped
    assert list(found.to_frame()) == ["1 round", "4 rounds", "seconds", "not_run"]
    slow = compare_methods(model, FRAME, LABELS, FRAME[:6], LABELS[:6], budget=1e-3, **settings)
    assert "it would take about" in slow.skipped["LeafRefit"]


def test_looking_ahead_is_further_boosting_where_splits_stay():
    x = rng.integers(0, 2, size=(60, 2)).astype(float)
    y = 5 * x[:, 0] + rng.normal(size=60)
    model = HistGradientBoostingRegressor(max_iter=2, max_leaf_nodes=2, min_samples_leaf=5).fit(
        x, y
    )
    settings = {"epochs": [1, 3], "leave_out": 30, "n_seeds": 1, "random_state": 0}
    found = compare_methods(model, x, y, x[:6], y[:6], **settings)
    ahead = found.agreement.mean("cosine_centred")[found.agreement.methods.index("LeafRefit ahead")]
    assert ahead[-1] > 0.999


def test_forests_are_compared_with_fitting_them_again():
    model = mixed(FOREST_LABELS).fit(FRAME, LABELS)
    rows = (model, FRAME, LABELS, FRAME[:6], LABELS[:6])
    found = compare_methods(*rows, leave_out=12, n_seeds=2, random_state=0)
    assert isinstance(found.agreement, LinearDatamodelingScore)
    assert found.curve.measured.shape == (12, 6, 2)
    expected = {"AXIL", "LeafKernel", "TREX"}
    assert set(found.agreement.methods) == expected
    again = linear_datamodeling_score(
        {"TREX": TREX(model).fit(FRAME, LABELS)}, found.curve, FRAME[:6], LABELS[:6]
    )
    assert_allclose(again.values[0], found.agreement.values[-1])
    assert list(found.to_frame()) == ["50% of the rows", "seconds", "not_run"]
    assert "ceiling of its noise" in repr(found)
    with pytest.raises(ValueError, match="leave_out must be a number for a forest"):
        compare_methods(*rows, leave_out=[1, 2])


def test_removal_and_datamodels():
    model = mixed(lgb.LGBMClassifier(n_estimators=6, min_child_samples=5, verbose=-1, n_jobs=1))
    model.fit(FRAME, LABELS)
    test = FRAME[:6], LABELS[:6]
    methods = {"influence": LeafInfluence(model).fit(FRAME, LABELS)}
    settings = {"X_train": FRAME, "k": [1, 5], "random_state": 0}
    curve = subset_removal_curve(methods, LeaveOneOut(model, n_seeds=1), LABELS, *test, **settings)
    assert curve.mean().shape == (2, 2)
    subsets = random_subsets(N, 10, ratio=0.8, random_state=0)
    outcomes = train_on_subsets(model, FRAME, LABELS, subsets, *test, n_seeds=1)
    assert linear_datamodeling_score(methods, outcomes, *test).mean()[0, 0] > 0


# ---- wrong labels and rows to drop -----------------------------------------------------------


def noisy():
    x = np.random.default_rng(1).normal(size=(200, 3))
    x = x[np.abs(x[:, 0] + x[:, 1]) > 0.3]
    y, bad = flip_labels(np.where(x[:, 0] + x[:, 1] > 0, "a", "b"), 0.1, random_state=0)
    return x, y, bad


@pytest.mark.parametrize("method", [None, LeafInfluence(), BoostIn(n_models=3), TREX()])
def test_wrong_labels_are_found_with_boosting(method):
    x, y, bad = noisy()
    detector = MislabelDetector(HIST_LABELS, attributor=method, random_state=0).fit(x, y)
    assert roc_auc_score(bad, detector.scores_) > 0.9


@pytest.mark.parametrize("method", [None, LeafKernel(), TREX()])
def test_wrong_labels_are_found_with_forests(method):
    x, y, bad = noisy()
    model = RandomForestClassifier(30, max_depth=4, random_state=0)
    detector = MislabelDetector(model, attributor=method, random_state=0).fit(x, y)
    assert roc_auc_score(bad, detector.scores_) > 0.9


def test_self_influence_judged_by_wrong_labels():
    x, y, bad = noisy()
    method = LeafRefit(clone(HIST_LABELS).fit(x, y)).fit(x, y)
    assert mislabel_detection(method, bad).roc_auc > 0.9


@pytest.mark.parametrize(
    ("model", "method"),
    [
        (HIST_LABELS, LeafInfluence),
        (mixed(HIST_LABELS), LeafInfluence),
        (mixed(FOREST_LABELS), LeafKernel),
        (searched(FOREST_LABELS), LeafKernel),
        (searched(HIST_LABELS), LeafInfluence),
    ],
)
def test_pruning_by_the_method_of_trees(model, method):
    rows = FRAME if hasattr(model, "steps") or hasattr(model, "param_grid") else X
    model = clone(model)
    if hasattr(model, "param_grid"):
        model.fit(rows, LABELS)  # a finished search stands for the model that it found
    pruned = PrunedClassifier(model, cv=3, random_state=0).fit(rows, LABELS)
    expected = PrunedClassifier(model, attributor=method(), cv=3, random_state=0).fit(rows, LABELS)
    assert_array_equal(pruned.scores_, expected.scores_)
    assert pruned.support_.sum() == N - 7
    assert pruned.predict(rows).shape == (N,)
    kept, targets = InfluencePruner(model, cv=3, random_state=0).fit_resample(rows, LABELS)
    assert len(kept) == len(targets) == N - 7


def test_pruning_where_no_method_of_trees_applies():
    """Medians in the leaves: rows are judged by fitting again without them."""
    model = HistGradientBoostingRegressor(loss="absolute_error", max_iter=2, min_samples_leaf=5)
    pruned = PrunedRegressor(model, cv=2, random_state=0).fit(X, Y)
    assert np.isfinite(pruned.scores_).all()


def test_probabilities_that_would_fall_below_zero():
    """A forest that is sure of training rows, and wrong on others."""
    x, y, _ = noisy()
    model = RandomForestClassifier(30, random_state=0).fit(x, y)
    others = rng.normal(size=(200, 3))
    wrong = np.where(model.predict(others) == "a", "b", "a")
    for method in (LeafKernel(model), LeafKernel(model, bags="held"), TREX(model)):
        assert np.isfinite(method.fit(x, y).transform(others, wrong)).all()


# ---- plots and the command line --------------------------------------------------------------


def test_plots():
    model = mixed(FOREST_LABELS).fit(FRAME, LABELS)
    method = LeafKernel(model).fit(FRAME, LABELS)
    display = ScoreMapDisplay.from_estimator(method, FRAME[:6], LABELS[:6]).plot()
    assert_array_equal(display.ax_.images[0].get_array(), method.transform(FRAME[:6], LABELS[:6]))
    marked = np.arange(N) < 5
    bars = SelfInfluenceDisplay.from_estimator(method, marked).plot(bins=10).ax_.containers[1]
    assert sum(bar.get_height() for bar in bars) == 5
    plt.close("all")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("trees")
    table = FRAME.assign(label=LABELS)
    table[:60].to_csv(path / "train.csv", index_label="name")
    table[60:].to_csv(path / "test.csv", index_label="name")
    train = pd.read_csv(path / "train.csv", index_col="name")
    rows = train.drop(columns="label"), train["label"]
    joblib.dump(mixed(HIST_LABELS).fit(*rows), path / "boosted.joblib")
    joblib.dump(mixed(FOREST_LABELS).fit(*rows), path / "forest.joblib")
    return path


def command(folder, name, model, **options):
    given = {"model": folder / model, "train": folder / "train.csv", "test": folder / "test.csv"}
    given |= {"target": "label", "index": "name", **options}
    parts = [part for key, value in given.items() for part in (f"--{key}", str(value))]
    return main([name, "--trust", *parts])


def test_attribute_on_the_command_line(folder):
    train, test = (
        pd.read_csv(folder / f"{name}.csv", index_col="name") for name in ("train", "test")
    )
    X, y = train.drop(columns="label"), train["label"]
    for model, name, own in (
        ("boosted", "LeafInfluence", {}),
        ("boosted", "LeafRefit", {"n-epochs": 2}),
        ("forest", "TREX", {}),
    ):
        out = folder / f"{model}_{name}.npy"
        assert command(folder, "attribute", f"{model}.joblib", method=name, out=out, **own) == 0
        settings = {"n_rounds": 2, "random_state": 0} if own else {}
        method = {"LeafInfluence": LeafInfluence, "LeafRefit": LeafRefit, "TREX": TREX}[name]
        made = method(joblib.load(folder / f"{model}.joblib"), **settings).fit(X, y)
        assert_allclose(np.load(out), made.transform(test[list(X)], test["label"]))


def test_compare_on_the_command_line(folder, capsys):
    assert command(folder, "compare", "boosted.joblib", **{"n-epochs": 2}) == 0
    assert "recommended: " in capsys.readouterr().out


def test_mistakes_on_the_command_line(folder, capsys):
    assert command(folder, "attribute", "forest.joblib", method="LeafInfluence") == 2
    assert "Use LeafKernel, TREX or LeaveOneOut" in capsys.readouterr().err
    assert command(folder, "attribute", "forest.joblib", method="GradDot") == 2
    assert "Methods of trees (LeafKernel, TREX) take it" in capsys.readouterr().err
    options = {"train": folder / "test.csv", "method": "LeafInfluence"}
    assert command(folder, "attribute", "boosted.joblib", **options) == 2
    assert "X must be all rows that the model was trained on" in capsys.readouterr().err
