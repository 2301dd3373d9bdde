"""Columns in another order, with other names or of another number are refused as by scikit-learn."""

from __future__ import annotations

import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.ensemble import RandomForestRegressor
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from fimoda import (
    ExactInfluence,
    FurtherTraining,
    GradDot,
    LeaveOneOut,
    attribute,
    compare_methods,
    further_training_curve,
)
from fimoda.cli import main

RNG = np.random.default_rng(0)
FRAME = pd.DataFrame(RNG.normal(size=(40, 3)) * [1, 10, 100], columns=list("abc"))
Y = FRAME.to_numpy() @ [1.0, 0.1, -0.01] + 0.1 * RNG.normal(size=40)
LABELS = (Y > 0).astype(int)
TEST = FRAME[:4] + 0.5

WRONG = {
    "reordered": (FRAME[["c", "a", "b"]], "must be in the same order"),
    "renamed": (FRAME.rename(columns={"a": "z"}), "names unseen at fit time:\n- z"),
    "missing": (FRAME[["a", "b"]], "yet now missing:\n- c"),
    "additional": (FRAME.assign(d=1.0), "names unseen at fit time:\n- d"),
}
MODELS = {
    "ridge": Ridge(),
    "logistic": LogisticRegression(),
    "mlp": MLPRegressor(hidden_layer_sizes=(3,), max_iter=5, random_state=0),
    "pipeline": make_pipeline(StandardScaler(), Ridge()),
    # this step lets all columns pass, so that the last one is the first to look at their names
    "pipeline that passes all": make_pipeline(FunctionTransformer(), Ridge()),
    "search": GridSearchCV(Ridge(), {"alpha": [0.1, 1.0]}, cv=2),
    "targets": TransformedTargetRegressor(Ridge(), transformer=StandardScaler()),
}


def fitted(name, X=FRAME):
    model = MODELS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(X, LABELS if name == "logistic" else Y)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", MODELS)
def test_fit_and_transform_refuse_what_the_model_refuses(name, wrong):
    model, (X, message) = fitted(name), WRONG[wrong]
    y = LABELS if name == "logistic" else Y
    with pytest.raises(ValueError, match=message):
        model.predict(X)
    with pytest.raises(ValueError, match=message):
        GradDot(model).fit(X, y)
    with pytest.raises(ValueError, match=message):
        GradDot(model).fit(FRAME, y).transform(X, y)
    frozen = FrozenEstimator(model)
    with pytest.raises(ValueError, match=message):
        GradDot(frozen).fit(X, y)


@pytest.mark.parametrize("name", ["ridge", "pipeline that passes all"])
def test_test_rows_are_compared_with_the_model(name):
    """Training rows without names are let pass, with scikit-learn's warning; test rows are not."""
    model = fitted(name)
    with pytest.warns(UserWarning, match="X does not have valid feature names, but Ridge was"):
        attributor = GradDot(model).fit(FRAME.to_numpy(), Y)
    with pytest.raises(ValueError, match="must be in the same order"):
        attributor.transform(FRAME[["c", "a", "b"]], Y)
    assert attributor.transform(TEST, Y[:4]).shape == (4, 40)


def test_number_of_columns():
    model = Ridge().fit(FRAME.to_numpy(), Y)
    for attributor in (GradDot(model), LeaveOneOut(model), FurtherTraining(model)):
        with pytest.raises(ValueError, match="X has 2 features, but Ridge is expecting 3 features"):
            attributor.fit(FRAME.to_numpy()[:, :2], Y)


def test_names_for_a_model_without_names():
    """scikit-learn warns, and so does fimoda; the scores are those without names."""
    model = Ridge().fit(FRAME.to_numpy(), Y)
    expected = GradDot(model).fit(FRAME.to_numpy(), Y).transform(TEST.to_numpy(), Y[:4])
    with pytest.warns(UserWarning, match="X has feature names, but Ridge was fitted without"):
        scores = GradDot(model).fit(FRAME, Y).transform(TEST, Y[:4])
    np.testing.assert_array_equal(scores, expected)


def test_columns_picked_by_name_may_come_in_any_order():
    """A ColumnTransformer asks for names only: what scikit-learn takes is taken."""
    columns = ColumnTransformer([("scale", StandardScaler(), ["c", "a"])])
    model = make_pipeline(columns, Ridge()).fit(FRAME, Y)
    expected = GradDot(model).fit(FRAME, Y).transform(TEST, Y[:4])
    other = FRAME[["c", "b", "a"]]
    scores = GradDot(model).fit(other, Y).transform(TEST[["c", "b", "a"]], Y[:4])
    np.testing.assert_allclose(scores, expected, rtol=1e-12)
    with pytest.raises(ValueError, match=r"columns are missing: \{'c'\}"):
        GradDot(model).fit(FRAME[["a", "b"]], Y)


REORDERED = FRAME[["c", "a", "b"]]
CALLS = {
    "attribute": lambda model, X: attribute(model, X, Y, TEST, Y[:4]),
    "compare_methods": lambda model, X: compare_methods(
        model, X, Y, TEST, Y[:4], methods={"a": GradDot()}, epochs=[1], n_seeds=1
    ),
    "curve": lambda model, X: further_training_curve(
        model, X, Y, TEST, Y[:4], epochs=[1], n_seeds=1, leave_out=2
    ),
    "influence": lambda model, X: ExactInfluence(model).fit(X, Y),
    "retraining": lambda model, X: LeaveOneOut(model).fit(X, Y),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_way_in(call):
    model = fitted("ridge")
    with pytest.raises(ValueError, match="must be in the same order"):
        CALLS[call](model, REORDERED)


def test_attribute_refuses_test_rows_in_another_order():
    with pytest.raises(ValueError, match="must be in the same order"):
        attribute(fitted("ridge"), FRAME, Y, TEST[["c", "a", "b"]], Y[:4])


def test_a_model_without_gradients():
    forest = RandomForestRegressor(3, random_state=0).fit(FRAME, Y)
    with pytest.raises(ValueError, match="must be in the same order"):
        LeaveOneOut(forest, n_seeds=1).fit(REORDERED, Y)


def test_the_calibrated_model_looks_at_its_columns():
    inner = LogisticRegression().fit(FRAME, LABELS)
    model = CalibratedClassifierCV(FrozenEstimator(inner), cv=2).fit(FRAME, LABELS)
    with pytest.raises(ValueError, match="must be in the same order"):
        GradDot(model).fit(REORDERED, LABELS)


def test_the_index_of_targets_is_ignored():
    """As scikit-learn does: targets belong to rows by their place."""
    model = fitted("ridge")
    shuffled = pd.Series(Y, index=RNG.permutation(40))
    expected = GradDot(model).fit(FRAME, Y).transform(TEST, Y[:4])
    scores = GradDot(model).fit(FRAME, shuffled).transform(TEST, shuffled[:4])
    np.testing.assert_array_equal(scores, expected)
    weights = np.linspace(1, 2, 40)
    model = Ridge().fit(FRAME, Y, weights)
    weighted = GradDot(model).fit(FRAME, Y, weights).transform(TEST, Y[:4])
    series = pd.Series(weights, index=RNG.permutation(40))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # memory of a Series is not to be written to
        scores = GradDot(model).fit(FRAME, Y, series).transform(TEST, Y[:4])
    np.testing.assert_array_equal(scores, weighted)


def test_command_line(tmp_path, capsys):
    """Columns of a file go by their names; those that the model does not know are refused."""
    joblib.dump(fitted("ridge"), tmp_path / "model.pkl")
    TEST.assign(y=Y[:4]).to_csv(tmp_path / "test.csv", index=False)
    call = ["attribute", f"--model={tmp_path}/model.pkl", "--target=y", "--trust"]
    call += [f"--train={tmp_path}/train.csv", f"--test={tmp_path}/test.csv"]
    REORDERED.assign(y=Y).to_csv(tmp_path / "train.csv", index=False)
    assert main([*call, f"--out={tmp_path}/out.npy"]) == 0
    expected = attribute(fitted("ridge"), FRAME, Y, TEST, Y[:4], random_state=0).scores
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, rtol=1e-6)
    REORDERED.rename(columns={"a": "z"}).assign(y=Y).to_csv(tmp_path / "train.csv", index=False)
    capsys.readouterr()
    assert main(call) == 2
    assert "a" in capsys.readouterr().err
