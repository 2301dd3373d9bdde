"""Models inside wrappers: the rows and targets that reach them, and what is said of the rest."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import skorch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.ensemble import RandomForestRegressor
from sklearn.exceptions import NotFittedError
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    TunedThresholdClassifierCV,
)
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, QuantileTransformer, StandardScaler
from torch import nn

from fimoda import (
    DistributionalInfluence,
    EnsembleAttributor,
    FurtherTraining,
    GradDot,
    LeaveOneOut,
    attribute,
)
from fimoda.adapters import (
    caveats,
    has_earlier_steps,
    is_fitted,
    is_network,
    last_step,
    transform_rows,
    transform_targets,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore::sklearn.exceptions.ConvergenceWarning", "ignore:n_quantiles:UserWarning"
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4))
Y = np.exp(0.3 * X @ [1.0, -1.0, 0.5, 0.0] + 0.1 * RNG.normal(size=60))
LABELS = np.array(["no", "yes"])[(Y > 1).astype(int)]
MLP = MLPRegressor(hidden_layer_sizes=(5,), max_iter=30, random_state=0)
SHORT = {"n_epochs": 2, "n_seeds": 1, "leave_out": [0, 5], "compile": False, "random_state": 0}


def scores(attributor, rows, targets):
    return attributor.fit(rows, targets).transform(rows[:6], targets[:6])


# ---- transformed targets --------------------------------------------------------------------

TRANSFORMS = {
    "scaler": {"transformer": StandardScaler()},
    "quantiles": {"transformer": QuantileTransformer(n_quantiles=20)},
    "functions": {"func": np.log, "inverse_func": np.exp},
    "none": {},
}


@pytest.mark.parametrize("way", TRANSFORMS)
@pytest.mark.parametrize("inner", [MLP, Ridge(), make_pipeline(StandardScaler(), MLP)], ids=repr)
def test_transformed_targets(inner, way):
    model = TransformedTargetRegressor(inner, **TRANSFORMS[way]).fit(X, Y)
    column = Y[:, None]
    targets = {
        "scaler": lambda: StandardScaler().fit_transform(column),
        "quantiles": lambda: QuantileTransformer(n_quantiles=20).fit_transform(column),
        "functions": lambda: np.log(column),
        "none": lambda: column,
    }[way]()[:, 0]
    plain = clone(inner).fit(X, targets)
    assert_array_equal(plain.predict(X), model.regressor_.predict(X))
    expected = scores(GradDot(plain), X, targets)
    assert_allclose(scores(GradDot(model), X, Y), expected, rtol=1e-12, atol=0)
    assert np.abs(expected).max() > 0


@pytest.mark.parametrize("shape", [(60, 1), (60, 2)])
def test_transformed_targets_with_columns(shape):
    targets = np.stack([Y, 100 * X[:, 0]], -1)[:, : shape[1]]
    model = TransformedTargetRegressor(Ridge(), transformer=StandardScaler()).fit(X, targets)
    scaled = StandardScaler().fit_transform(targets)
    expected = scores(GradDot(Ridge().fit(X, scaled)), X, scaled)
    assert_allclose(scores(GradDot(model), X, targets), expected, rtol=1e-9)


def nested():
    inner = make_pipeline(StandardScaler(), MLP)
    inside = TransformedTargetRegressor(inner, transformer=StandardScaler())
    outside = TransformedTargetRegressor(inside, func=np.log, inverse_func=np.exp)
    grid = {"regressor__regressor__mlpregressor__alpha": [0.0001, 0.1]}
    return GridSearchCV(outside, grid, cv=2)


def unwrapped(search):
    """The MLP inside of `nested`, with rows and targets made by hand."""
    inner = search.best_estimator_.regressor_.regressor_
    rows = inner[0].transform(X)
    targets = StandardScaler().fit_transform(np.log(Y)[:, None])[:, 0]
    return inner[-1], rows, targets


def test_search_around_transformed_targets_around_a_pipeline():
    search = nested().fit(X, Y)
    mlp, rows, targets = unwrapped(search)
    assert last_step(search) is mlp
    assert_array_equal(transform_rows(search, X), rows)
    assert_allclose(transform_targets(search, Y), targets, rtol=1e-12)
    assert is_fitted(search)
    assert is_network(search)
    expected = scores(GradDot(mlp), rows, targets)
    assert_allclose(scores(GradDot(search), X, Y), expected, rtol=1e-12, atol=1e-15)
    expected = scores(FurtherTraining(mlp, **SHORT), rows, targets)
    assert_allclose(scores(FurtherTraining(search, **SHORT), X, Y), expected, rtol=1e-9)
    expected = scores(LeaveOneOut(mlp, refit="last", **SHORT), rows, targets)
    assert_allclose(scores(LeaveOneOut(search, refit="last", **SHORT), X, Y), expected, rtol=1e-9)


def test_attribute_unwraps():
    search = nested().fit(X, Y)
    mlp, rows, targets = unwrapped(search)
    settings = {"method": GradDot()}
    found = attribute(search, X, Y, X[:6], Y[:6], **settings)
    expected = attribute(mlp, rows, targets, rows[:6], targets[:6], **settings)
    assert_allclose(found.scores, expected.scores, rtol=1e-12, atol=1e-15)
    said = "scores are in the unit of the transformed target"
    assert all(said in caveat for caveat in found.attributor._caveats())
    assert len(found.attributor._caveats()) == 2
    assert not expected.attributor._caveats()


def test_without_targets_the_prediction_is_that_of_the_transformed_unit():
    model = TransformedTargetRegressor(Ridge(), func=np.log, inverse_func=np.exp).fit(X, Y)
    plain = Ridge().fit(X, np.log(Y))
    expected = GradDot(plain).fit(X, np.log(Y)).transform(X[:3])
    assert_allclose(GradDot(model).fit(X, Y).transform(X[:3]), expected, rtol=1e-12)


def test_unfitted_wrappers_are_fitted_and_stay_unfitted():
    model = TransformedTargetRegressor(Ridge().fit(X, Y), func=np.log, inverse_func=np.exp)
    assert not is_fitted(model)  # although the regressor is
    attributor = GradDot(model).fit(X, Y)
    assert not hasattr(model, "regressor_")
    expected = scores(GradDot(Ridge().fit(X, np.log(Y))), X, np.log(Y))
    assert_allclose(attributor.transform(X[:6], Y[:6]), expected, rtol=1e-12)
    search = GridSearchCV(Ridge().fit(X, Y), {"alpha": [0.1]}, cv=2)
    assert not is_fitted(search)
    assert GradDot(search).fit(X, Y).estimator_.best_estimator_.alpha == 0.1


def test_targets_that_the_transformation_does_not_take():
    model = TransformedTargetRegressor(Ridge(), transformer=StandardScaler()).fit(X, Y)
    with pytest.raises(ValueError, match="Input y contains NaN"):
        GradDot(model).fit(X, Y).transform(X[:2], [1.0, np.nan])


# ---- searches -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda model, grid: GridSearchCV(model, grid, cv=2),
        lambda model, grid: RandomizedSearchCV(model, grid, n_iter=2, cv=2, random_state=0),
        lambda model, grid: HalvingGridSearchCV(model, grid, cv=2, random_state=0),
    ],
)
def test_searches(make):
    search = make(Ridge(), {"alpha": [0.1, 1.0, 10.0]}).fit(X, Y)
    expected = scores(GradDot(search.best_estimator_), X, Y)
    assert_array_equal(scores(GradDot(search), X, Y), expected)
    assert_array_equal(scores(GradDot(FrozenEstimator(search)), X, Y), expected)


def test_search_of_a_skorch_net():
    rows, targets = X.astype(np.float32), Y.astype(np.float32)[:, None]
    net = skorch.NeuralNetRegressor(
        nn.Linear, module__in_features=4, module__out_features=1, max_epochs=2, verbose=0,
        train_split=None,
    )  # fmt: skip
    search = GridSearchCV(net, {"lr": [0.01, 0.1]}, cv=2).fit(rows, targets)
    expected = scores(GradDot(search.best_estimator_), rows, targets)
    assert_array_equal(scores(GradDot(search), rows, targets), expected)
    assert is_network(search)
    assert (
        FurtherTraining(search, **SHORT).fit(rows, targets).model_.recipe.lr
        == search.best_params_["lr"]
    )


@pytest.mark.parametrize("attributor", [GradDot(), LeaveOneOut(), FurtherTraining()], ids=repr)
def test_a_search_that_kept_no_model(attributor):
    search = GridSearchCV(Ridge(), {"alpha": [0.1, 1.0]}, refit=False, cv=2).fit(X, Y)
    message = "GridSearchCV with refit=False, which kept no fitted model. Fit it with refit=True"
    with pytest.raises(NotFittedError, match=message):
        attributor.set_params(estimator=search).fit(X, Y)
    with pytest.raises(NotFittedError, match=message):
        attribute(search, X, Y, X[:2], Y[:2])


# ---- classifiers ----------------------------------------------------------------------------


@pytest.mark.parametrize("ensemble", [False, True])
def test_calibration_of_a_frozen_model(ensemble):
    inner = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, LABELS)
    model = CalibratedClassifierCV(FrozenEstimator(inner), cv=3, ensemble=ensemble).fit(X, LABELS)
    assert_array_equal(scores(GradDot(model), X, LABELS), scores(GradDot(inner), X, LABELS))
    assert caveats(model) == ["scores are of the classifier before its calibration"]
    assert has_earlier_steps(model)


def test_calibration_that_fits_models_is_not_one_model():
    model = CalibratedClassifierCV(LogisticRegression(), cv=3).fit(X, LABELS)
    with pytest.raises(TypeError, match=r"estimator must be .*; got CalibratedClassifierCV"):
        GradDot(model).fit(X, LABELS)
    assert not is_fitted(
        CalibratedClassifierCV(FrozenEstimator(LogisticRegression().fit(X, LABELS)))
    )


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: FixedThresholdClassifier(model, threshold=0.3, pos_label="yes"),
        lambda model: TunedThresholdClassifierCV(model, cv=2, scoring="balanced_accuracy"),
    ],
)
@pytest.mark.parametrize(
    "inner", [LogisticRegression(), MLPClassifier((3,), max_iter=20, random_state=0)]
)
def test_other_thresholds(wrap, inner):
    model = wrap(inner).fit(X, LABELS)
    plain = clone(inner).fit(X, LABELS)
    assert_array_equal(scores(GradDot(model), X, LABELS), scores(GradDot(plain), X, LABELS))
    assert "the threshold is not attributed to" in caveats(model)[0]
    assert is_fitted(model)
    assert not is_fitted(wrap(clone(inner)))


def test_a_fixed_threshold_takes_a_fitted_model_as_it_is():
    inner = LogisticRegression(C=0.1).fit(X, LABELS)
    model = FixedThresholdClassifier(inner, threshold=0.3, pos_label="yes")
    assert set(model.predict(X)) == {"no", "yes"}
    assert is_fitted(model)
    assert last_step(model) is inner
    assert not is_fitted(TunedThresholdClassifierCV(inner))


# ---- frames ---------------------------------------------------------------------------------

FRAME = pd.DataFrame(X[:, :2], columns=["size", "weight"]).assign(
    colour=np.where(X[:, 2] > 0, "red", "blue")
)


def by_name(model):
    columns = [("one_hot", OneHotEncoder(sparse_output=False), ["colour"])]
    columns += [("scale", StandardScaler(), ["size", "weight"])]
    return make_pipeline(ColumnTransformer(columns), model)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: TransformedTargetRegressor(model, transformer=StandardScaler()),
        lambda model: GridSearchCV(model, {"ridge__alpha": [0.1, 1.0]}, cv=2),
        lambda model: GridSearchCV(
            TransformedTargetRegressor(model), {"regressor__ridge__alpha": [0.1, 1.0]}, cv=2
        ),
    ],
)
@pytest.mark.parametrize("fitted", [True, False])
def test_wrappers_around_pipelines_that_pick_columns_by_name(wrap, fitted):
    model = wrap(by_name(Ridge()))
    whole = clone(model).fit(FRAME, Y)
    rows, targets = transform_rows(whole, FRAME), transform_targets(whole, Y)
    expected = scores(GradDot(last_step(whole)), rows, targets)
    found = scores(GradDot(model.fit(FRAME, Y) if fitted else model), FRAME, Y)
    assert_allclose(found, expected, rtol=1e-12)


def test_frozen_calibration_around_such_a_pipeline():
    inner = by_name(LogisticRegression()).fit(FRAME, LABELS)
    model = CalibratedClassifierCV(FrozenEstimator(inner), cv=2)
    expected = scores(GradDot(inner), FRAME, LABELS)
    assert_array_equal(scores(GradDot(model), FRAME, LABELS), expected)


def test_models_without_gradients_are_named():
    model = TransformedTargetRegressor(
        by_name(RandomForestRegressor(2, random_state=0)), transformer=StandardScaler()
    ).fit(FRAME, Y)
    with pytest.raises(
        TypeError, match=r"got RandomForestRegressor\. Methods of trees .* train again"
    ):
        GradDot(model).fit(FRAME, Y)


def test_samplers_of_imbalanced_learn():
    pipeline = pytest.importorskip("imblearn.pipeline")
    over_sampling = pytest.importorskip("imblearn.over_sampling")
    for inner in (LogisticRegression(), MLPClassifier((3,), max_iter=5, random_state=0)):
        model = pipeline.make_pipeline(
            StandardScaler(), over_sampling.RandomOverSampler(random_state=0), inner
        ).fit(X, LABELS)
        assert is_fitted(model)
        assert not is_network(model)
        for attributor in (GradDot(model), FurtherTraining(model)):
            with pytest.raises(
                TypeError, match="step 'randomoversampler' resamples the training rows"
            ):
                attributor.fit(X, LABELS)
    plain = pipeline.make_pipeline(StandardScaler(), LogisticRegression()).fit(X, LABELS)
    same = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, LABELS)
    assert_array_equal(scores(GradDot(plain), X, LABELS), scores(GradDot(same), X, LABELS))


@pytest.mark.parametrize("owner", [EnsembleAttributor, DistributionalInfluence])
def test_members_are_not_transformed_twice(owner):
    """The rows of an ensemble have passed the Pipeline of its estimator already."""
    whole = make_pipeline(StandardScaler(), Ridge()).fit(3 * X + 1, Y)
    name = "attributor" if owner is EnsembleAttributor else "method"
    method = owner(whole, **{name: GradDot()}, models=[whole, whole])
    with pytest.raises(ValueError, match="models must hold the models themselves, got a Pipeline"):
        method.fit(3 * X + 1, Y)
    member = {name: GradDot(), "models": [whole[-1]]}
    if owner is EnsembleAttributor:
        expected = scores(GradDot(whole), 3 * X + 1, Y)
        assert_allclose(scores(owner(whole, **member), 3 * X + 1, Y), expected, rtol=1e-12)
