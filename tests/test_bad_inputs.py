"""The page of bad inputs: each is refused with a message that says what is wrong."""

from __future__ import annotations

import copy
import inspect

import numpy as np
import pandas as pd
import pytest
import skorch
import torch
from numpy.testing import assert_allclose, assert_array_equal
from problems import tanh_network
from scipy import sparse
from sklearn.datasets import make_classification, make_regression
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR
from sklearn.utils._param_validation import Interval
from skorch import NeuralNet
from test_common import ATTRIBUTORS
from torch import nn

import fimoda
from fimoda import (
    FurtherTraining,
    GradCos,
    GradDot,
    LinearizedFurtherTraining,
    UnrolledDifferentiation,
    further_training_curve,
)
from fimoda.measurements import Output

X, Y = make_regression(20, 4, random_state=0)
XC, YC = make_classification(30, 4, n_informative=3, n_redundant=0, n_classes=3, random_state=0)
RIDGE = Ridge().fit(X, Y)
LOGISTIC = LogisticRegression().fit(XC, YC)

QUICK = {"n_epochs": 1, "n_seeds": 1, "compile": False, "random_state": 0}


def further_training(estimator, **params) -> FurtherTraining:
    return FurtherTraining(estimator, **{**QUICK, **params})


def curve(estimator=RIDGE, X=X, y=Y, X_test=X, y_test=Y, **params):
    settings = {"epochs": 1, "n_seeds": 1, "compile": False, "random_state": 0, **params}
    return further_training_curve(estimator, X, y, X_test, y_test, **settings)


each_attributor = pytest.mark.parametrize("make", [GradDot, GradCos, further_training])


def with_value(array, value):
    array = array.astype(float).copy()
    array.flat[3] = value
    return array


# ---- X and y --------------------------------------------------------------------------------


@each_attributor
@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_nan_and_infinity(make, value, word):
    bad_X, bad_y = with_value(X, value), with_value(Y, value)
    attributor = make(RIDGE).fit(X, Y)
    with pytest.raises(ValueError, match=rf"Input X contains {word}"):
        attributor.transform(bad_X, Y)
    with pytest.raises(ValueError, match=rf"Input y contains {word}"):
        attributor.transform(X, bad_y)
    with pytest.raises(ValueError, match=rf"Input X contains {word}"):
        make(RIDGE).fit(bad_X, Y)
    with pytest.raises(ValueError, match=rf"Input y contains {word}"):
        make(RIDGE).fit(X, bad_y)
    with pytest.raises(ValueError, match=rf"Input sample_weight contains {word}"):
        make(RIDGE).fit(X, Y, sample_weight=bad_y)
    with pytest.raises(ValueError, match=rf"Input y contains {word}"):
        make(RIDGE).fit(X, bad_y.astype(object))


@each_attributor
def test_nan_after_the_earlier_steps_of_a_pipeline(make):
    """Rows for a Pipeline are checked by its steps, and again as the model sees them."""
    scaler = StandardScaler().fit(X)
    bad = with_value(X, np.nan)
    with pytest.raises(
        ValueError, match=r"Input X after the Pipeline's earlier steps contains NaN"
    ):
        make(make_pipeline(scaler, RIDGE)).fit(bad, Y)


def test_nan_in_the_curve():
    for arrays in ({"X": with_value(X, np.nan)}, {"X_test": with_value(X, np.nan)}):
        with pytest.raises(ValueError, match="Input X contains NaN"):
            curve(**arrays)
    for arrays in ({"y": with_value(Y, np.nan)}, {"y_test": with_value(Y, np.nan)}):
        with pytest.raises(ValueError, match="Input y contains NaN"):
            curve(**arrays)


@each_attributor
def test_wrong_number_of_features(make):
    attributor = make(RIDGE).fit(X, Y)
    with pytest.raises(ValueError, match=r"X has 3 features, but \w+ is expecting 4 features"):
        attributor.transform(X[:, :3], Y)
    with pytest.raises(ValueError, match=r"X has 3 features, but \w+ is expecting 4 features"):
        attributor.top(X[:, :3], Y)
    with pytest.raises(ValueError, match=r"X has 3 features, but Ridge is expecting 4 features"):
        make(RIDGE).fit(X[:, :3], Y)


@each_attributor
def test_mismatched_lengths(make):
    message = r"y must have one entry per row of X: .*inconsistent numbers of samples: \[20, 19\]"
    with pytest.raises(ValueError, match=message):
        make(RIDGE).fit(X, Y[:19])
    with pytest.raises(ValueError, match=message):
        make(RIDGE).fit(X, Y).transform(X, Y[:19])
    with pytest.raises(ValueError, match=r"sample_weight.shape == \(19,\), expected \(20,\)"):
        make(RIDGE).fit(X, Y, sample_weight=np.ones(19))
    with pytest.raises(ValueError, match=r"y must have one entry per row of X, got the scalar 3"):
        make(RIDGE).fit(X, 3)


@each_attributor
def test_missing_targets(make):
    with pytest.raises(ValueError, match="requires y to be passed, but the target y is None"):
        make(RIDGE).fit(X, None)


@each_attributor
def test_bad_weights(make):
    with pytest.raises(ValueError, match="Negative values in data passed to `sample_weight`"):
        make(RIDGE).fit(X, Y, sample_weight=-np.ones(20))
    with pytest.raises(ValueError, match=r"(?i)sample weights? .*zero"):
        make(RIDGE).fit(X, Y, sample_weight=np.zeros(20))


@each_attributor
def test_unseen_labels(make):
    attributor = make(LOGISTIC).fit(XC, YC)
    message = r"y contains labels that the model was not trained on: 5, 7\. Its classes are 0, 1, 2"
    with pytest.raises(ValueError, match=message):
        attributor.transform(XC[:3], [5, 0, 7])
    with pytest.raises(ValueError, match=message):
        make(LOGISTIC).fit(XC, [5, 7] * 15)
    with pytest.raises(ValueError, match="labels that the model was not trained on: 'cat'"):
        attributor.transform(XC[:2], ["cat", "cat"])
    named = LogisticRegression().fit(XC, np.array(["a", "b", "c"])[YC])
    with pytest.raises(
        ValueError, match=r"not trained on: 0, 1, 2\. Its classes are 'a', 'b', 'c'"
    ):
        make(named).fit(XC, YC)
    with pytest.raises(
        ValueError, match=r"y must be a vector of class labels, got shape \(30, 3\)"
    ):
        make(LOGISTIC).fit(XC, np.eye(3)[YC])


@each_attributor
def test_wrong_number_of_targets(make):
    message = r"one column per output of the model \(1\), got shape \(20, 3\).*Pass y of shape"
    with pytest.raises(ValueError, match=message):
        make(RIDGE).fit(X, np.ones((20, 3)))
    with pytest.raises(ValueError, match=message):
        make(RIDGE).fit(X, Y).transform(X, np.ones((20, 3)))


@each_attributor
def test_strings_for_numbers(make):
    module = nn.Linear(4, 1)
    with pytest.raises(ValueError, match=r"y must be numbers for this model.*'yes'"):
        make(module, criterion=nn.MSELoss()).fit(X, np.array(["yes", "no"] * 10))
    with pytest.raises(ValueError, match=r"y must be numbers for this model.*'yes'"):
        make(RIDGE).fit(X, Y).transform(X[:2], ["yes", "no"])
    with pytest.raises(ValueError, match="labels that the model was not trained on: 'no', 'yes'"):
        make(nn.Linear(4, 2), criterion=nn.CrossEntropyLoss()).fit(X, ["yes", "no"] * 10)


@each_attributor
def test_sparse_rows(make):
    net = make(nn.Linear(4, 1), criterion=nn.MSELoss())
    with pytest.raises(TypeError, match="Sparse data was passed for X, but dense data is required"):
        net.fit(sparse.csr_array(X), Y)
    with pytest.raises(TypeError, match="Sparse data was passed for X, but dense data is required"):
        net.fit(X, Y).transform(sparse.csr_matrix(X), Y)


@each_attributor
def test_empty_and_non_numeric_rows(make):
    with pytest.raises(ValueError, match=r"Found array with 0 sample\(s\)"):
        make(RIDGE).fit(X[:0], Y[:0])
    with pytest.raises(ValueError, match="dtype='numeric' is not compatible with arrays of"):
        make(RIDGE).fit(np.full((20, 4), "red"), Y)
    with pytest.raises(ValueError, match="Reshape your data"):
        make(RIDGE).fit(X, Y).transform(X[0])


@each_attributor
@pytest.mark.parametrize("kind", [np.longdouble, ">f8", ">f4", ">i8", np.float16])
def test_numbers_of_any_type(make, kind):
    rows, targets = (10 * X).round().astype(kind), Y.round().astype(kind)
    found = make(RIDGE).fit(rows, targets).transform(rows[:3], targets[:3])
    plain = [part.astype(float) for part in (rows, targets)]
    expected = make(RIDGE).fit(*plain).transform(plain[0][:3], plain[1][:3])
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@each_attributor
def test_numbers_whose_squares_overflow(make):
    message = r"X holds 1e\+300 in row 0, whose square is more than torch.float64 can hold"
    with pytest.raises(ValueError, match=message):
        make(RIDGE).fit(np.where(np.arange(80).reshape(20, 4) == 3, 1e300, X), Y)
    with pytest.raises(ValueError, match=message):
        make(RIDGE).fit(X, Y).transform(np.full((2, 4), 1e300), Y[:2])
    with pytest.raises(ValueError, match=r"more than torch.float32 can hold.*Scale the features"):
        make(nn.Linear(4, 1), criterion=nn.MSELoss()).fit(1e30 * X, Y)


@each_attributor
def test_rows_of_another_shape(make):
    net = make(nn.Linear(4, 1), criterion=nn.MSELoss()).fit(X, Y)
    for shape in ((5, 4, 4), (5, 4, 1)):
        with pytest.raises(ValueError, match=r"rows of shape \(4,\), as in fit, got .*\(4, [14]\)"):
            net.transform(np.ones(shape), Y[:5])


@each_attributor
@pytest.mark.parametrize("rows", [{"a": X[:, 0]}, {1, 2}, "rows", iter(X)], ids=type)
def test_what_is_no_table(make, rows):
    for call in (make(RIDGE).fit, make(RIDGE).fit(X, Y).transform):
        with pytest.raises(
            TypeError, match=r"^X must be an array, a DataFrame or a list.*got a"
        ) as e:
            call(rows, Y)
        assert len(str(e.value)) < 200


def test_one_training_row():
    one = further_training(RIDGE)
    with pytest.raises(ValueError, match="X must have at least 2 rows to leave one out"):
        one.fit(X[:1], Y[:1])
    with pytest.raises(ValueError, match="X must have at least 2 rows to leave one out"):
        curve(X=X[:1], y=Y[:1])


@each_attributor
def test_feature_names(make):
    frame = pd.DataFrame(X, columns=list("abcd"))
    attributor = make(Ridge().fit(frame, Y)).fit(frame, Y)
    with pytest.raises(ValueError, match="feature names should match those that were passed"):
        attributor.transform(frame.rename(columns={"a": "z"}), Y)


# ---- fitting --------------------------------------------------------------------------------


@each_attributor
def test_before_fit(make):
    attributor = make(RIDGE)
    for call in (
        lambda: attributor.transform(X, Y),
        lambda: attributor.self_influence(),
        lambda: attributor.top(X, Y),
        lambda: attributor.get_feature_names_out(),
    ):
        with pytest.raises(NotFittedError, match=r"This \w+ instance is not fitted yet"):
            call()


@each_attributor
def test_unfitted_pipeline(make):
    pipeline = make_pipeline(StandardScaler(), Ridge())
    attributor = make(pipeline).fit(X, Y)  # cloned and fitted, as by any meta-estimator
    assert not hasattr(pipeline[-1], "coef_")
    assert hasattr(attributor.estimator_[-1], "coef_")
    with pytest.raises(
        NotFittedError, match=r"Pipeline is not fitted\. Attribution starts from a final"
    ):
        curve(pipeline)
    with pytest.raises(NotFittedError, match="Ridge is not fitted"):
        curve(Ridge())
    halfway = make_pipeline(StandardScaler(), RIDGE)
    message = "last step is fitted but whose step 'standardscaler' is not. Fit the whole Pipeline"
    with pytest.raises(NotFittedError, match=message):
        make(halfway).fit(X, Y)
    with pytest.raises(NotFittedError, match=message):
        curve(halfway)


@each_attributor
def test_text_among_the_numbers(make):
    frame = pd.DataFrame(X).astype(object)
    frame.iloc[2, 1] = "green"
    with pytest.raises(ValueError, match=r"X must hold numbers.*'green'.*Pipeline that encodes"):
        make(RIDGE).fit(frame, Y)


@each_attributor
@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
def test_missing_labels(make, missing):
    labels = np.array(["a", "b", "c"], dtype=object)[YC]
    model = LogisticRegression().fit(XC, labels.astype(str))
    labels[4] = missing
    with pytest.raises(ValueError, match="Input y contains NaN or None: a target is missing"):
        make(model).fit(XC, labels)


@each_attributor
def test_labels_that_have_no_order(make):
    labels = np.array(["a", "b", "c"])[YC].astype(object)
    model = LogisticRegression().fit(XC, labels.astype(str))
    labels[4] = 7
    with pytest.raises(ValueError, match=r"not trained on: 7\. Its classes are 'a', 'b', 'c'"):
        make(model).fit(XC, labels)


@each_attributor
def test_a_class_in_place_of_a_model(make):
    with pytest.raises(TypeError, match=r"got the class Ridge\. Pass a fitted instance"):
        make(Ridge).fit(X, Y)


@each_attributor
def test_a_model_without_gradients(make):
    with pytest.raises(TypeError, match=r"got SVR\. Methods that train again \(LeaveOneOut"):
        make(SVR().fit(X, Y)).fit(X, Y)


@each_attributor
@pytest.mark.parametrize("estimator", ["net", 3, object()])
def test_what_is_no_estimator(make, estimator):
    with pytest.raises(TypeError, match=r"estimator must be a fitted skorch net.*; got "):
        make(estimator).fit(X, Y)


@each_attributor
def test_weights_for_a_net_that_takes_none(make):
    """An unfitted net is fitted by its own rules; weights that it does not take are not dropped."""
    net = skorch.NeuralNetRegressor(nn.Linear(4, 1), max_epochs=1, train_split=None, verbose=0)
    with pytest.raises(TypeError, match="sample_weight"):
        make(net).fit(X.astype(np.float32), Y[:, None].astype(np.float32), np.ones(20))


# ---- rows to leave out, epochs, seeds -------------------------------------------------------


def fit_and_curve(params, error, message):
    with pytest.raises(error, match=message):
        further_training(RIDGE, **params).fit(X, Y)
    with pytest.raises(error, match=message):
        curve(**params)


@pytest.mark.parametrize(
    ("leave_out", "message"),
    [
        ([], "leave_out must name at least one training row, got an empty list"),
        (range(0), "leave_out must name at least one training row, got an empty list"),
        ([0, 20], r"leave_out must hold indices in \[0, 20\), the training rows; got 20"),
        ([3, -1], r"leave_out must hold indices in \[0, 20\), the training rows; got -1"),
        ([4, 2, 4], r"leave_out must not repeat a row; 4 appears 2 times. Pass np.unique"),
        (21, r"between 1 and the number of training rows \(20\), got 21"),
        (0, "'leave_out' parameter of FurtherTraining must be"),
        (-3, "'leave_out' parameter of FurtherTraining must be"),
        ([0.5], "a list of row indices"),
        ([[0, 1]], "a list of row indices"),
        (np.array([True, False]), "a list of row indices"),
        ("all", "'leave_out' parameter of FurtherTraining must be"),
    ],
)
def test_leave_out(leave_out, message):
    fit_and_curve({"leave_out": leave_out}, ValueError, message)


@pytest.mark.parametrize("n_epochs", [-1, 0, float("nan"), "many", True])
def test_epochs(n_epochs):
    with pytest.raises(ValueError, match="'n_epochs' parameter of FurtherTraining must be a float"):
        further_training(RIDGE, n_epochs=n_epochs).fit(X, Y)
    with pytest.raises(ValueError, match="'n_epochs' parameter of GradDot must be a float"):
        GradDot(RIDGE, n_epochs=n_epochs).fit(X, Y)
    with pytest.raises(ValueError, match="epochs must be positive numbers of epochs, got"):
        curve(epochs=[n_epochs])


def test_horizons():
    for epochs in ([], [-5], [0, 1]):
        with pytest.raises(ValueError, match="epochs must be positive numbers of epochs"):
            curve(epochs=epochs)
    for epochs in ([5, 1], [2, 2]):
        with pytest.raises(ValueError, match="epochs must increase without repeats"):
            curve(epochs=epochs)


@pytest.mark.parametrize(
    ("n_seeds", "message"),
    [
        (0, "'n_seeds' parameter of FurtherTraining must be"),
        (-2, "'n_seeds' parameter of FurtherTraining must be"),
        ("many", "'n_seeds' parameter of FurtherTraining must be"),
        ([], "n_seeds as a list must hold non-negative integers"),
        ([1, -1], "n_seeds as a list must hold non-negative integers"),
        ([0.5], "n_seeds as a list must hold non-negative integers"),
        ([3, 1, 3], "n_seeds must not repeat a seed: repeats would count as independent runs"),
        ([2**70], r"n_seeds as a list must hold non-negative integers below 2\*\*32"),
        ([2**32], r"n_seeds as a list must hold non-negative integers below 2\*\*32"),
        ([True], "n_seeds as a list must hold non-negative integers"),
        (True, "'n_seeds' parameter of FurtherTraining must be"),
    ],
)
def test_seeds(n_seeds, message):
    fit_and_curve({"n_seeds": n_seeds}, ValueError, message)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"correction": "median"}, "'correction' parameter of FurtherTraining must be"),
        ({"leave_out_mode": "skip"}, "'leave_out_mode' parameter of FurtherTraining must be"),
        ({"batch_size": 0}, "'batch_size' parameter of FurtherTraining must be"),
        ({"batch_size": True}, "'batch_size' parameter of FurtherTraining must be"),
        ({"leave_out": True}, "'leave_out' parameter of FurtherTraining must be"),
        ({"lr": True}, "'lr' parameter of FurtherTraining must be"),
        ({"checkpoint_dir": ""}, "checkpoint_dir must be the path of a directory, got ''"),
        ({"chunk_size": 0}, "'chunk_size' parameter of FurtherTraining must be"),
        ({"memory_budget": -1}, "'memory_budget' parameter of FurtherTraining must be"),
        ({"compile": "never"}, "'compile' parameter of FurtherTraining must be"),
        ({"random_state": "x"}, "'random_state' parameter of FurtherTraining must be"),
    ],
)
def test_other_settings(params, message):
    fit_and_curve(params, ValueError, message)


def test_correction_of_a_curve():
    with pytest.raises(ValueError, match="correction must be 'full', 'mean' or None, got 'median'"):
        curve().corrected("median")


# ---- optimisers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (
            {"optimizer": torch.optim.LBFGS},
            ValueError,
            "LBFGS mixes coordinates, so models trained as one stack would disturb each other. Use",
        ),
        ({"optimizer": "LBFGS"}, ValueError, "LBFGS mixes coordinates"),
        (
            {"optimizer": "Adma"},
            ValueError,
            r"must be a torch.optim class or its name \('SGD', 'Adam', ...\), got 'Adma'",
        ),
        ({"optimizer": "lr_scheduler"}, ValueError, "got 'lr_scheduler'"),
        ({"optimizer": nn.Linear}, ValueError, "must be a torch.optim class or its name"),
        (
            {"optimizer": "SGD", "optimizer_params": {"beta": 0.9}},
            ValueError,
            r"optimizer_params has \['beta'\], which SGD does not take; it takes .*'momentum'",
        ),
        (
            {"optimizer": "SGD", "optimizer_params": {"momentum": -1}},
            ValueError,
            "momentum value: -1",
        ),
        ({"lr": -0.1}, ValueError, "'lr' parameter of FurtherTraining must be"),
        ({"lr": 0}, ValueError, "'lr' parameter of FurtherTraining must be"),
        ({"lr": lambda epoch: -0.1}, ValueError, "lr must be positive, got -0.1 for epoch 0"),
        ({"lr": lambda epoch: "0.1"}, ValueError, "lr must be positive, got '0.1' for epoch 0"),
        ({"lr": lambda epoch: True}, ValueError, "lr must be positive, got True for epoch 0"),
        ({"lr": lambda epoch: None}, ValueError, "lr must be positive, got None for epoch 0"),
        (
            {"lr": lambda epoch: float("nan")},
            ValueError,
            "lr must be positive, got nan for epoch 0",
        ),
        (
            {"lr": lambda epoch: float("inf")},
            ValueError,
            "lr must be positive, got inf for epoch 0",
        ),
    ],
)
def test_optimizers(params, error, message):
    fit_and_curve(params, error, message)


@pytest.mark.parametrize(
    "cls", [FurtherTraining, UnrolledDifferentiation, LinearizedFurtherTraining]
)
@pytest.mark.parametrize("bad", ["x", float("nan"), -0.1, 0])
def test_a_schedule_that_ends_badly(cls, bad):
    """It is looked at as a whole before training."""
    method = cls(RIDGE, n_epochs=3, n_seeds=1, lr=lambda epoch: bad if epoch == 2 else 0.01)
    with pytest.raises(ValueError, match=f"lr must be positive, got {bad!r} for epoch 2"):
        method.fit(X, Y).transform(X, Y)


def test_schedules_may_give_numbers_of_any_kind():
    expected = curve(lr=0.01).scores
    for number in (np.float32, np.float64, torch.tensor):
        assert_allclose(curve(lr=lambda epoch, number=number: number(0.01)).scores, expected, 1e-6)


def test_learning_rate_of_grad_dot():
    for lr in (0, -1, "big"):
        with pytest.raises(ValueError, match="'lr' parameter of GradDot must be a float in"):
            GradDot(RIDGE, lr=lr).fit(X, Y)


def test_divergence():
    with pytest.raises(FloatingPointError, match=r"training diverged.*Lower lr"):
        further_training(RIDGE, n_epochs=60, optimizer="SGD", lr=1e9).fit(X, Y)


# ---- measurements and criteria --------------------------------------------------------------


@each_attributor
def test_unknown_measurement(make):
    with pytest.raises(ValueError, match=r"must be one of 'loss', 'margin'.*got 'accuracy'"):
        make(RIDGE, measurement="accuracy").fit(X, Y)
    with pytest.raises(ValueError, match=r"'measurement' parameter of .* must be"):
        make(RIDGE, measurement=3).fit(X, Y)
    with pytest.raises(ValueError, match="measurement='margin' needs a classifier"):
        make(RIDGE, measurement="margin").fit(X, Y)


@each_attributor
@pytest.mark.parametrize(
    ("measurement", "got"),
    [
        (lambda outputs, targets: outputs, r"got \(2, 3\)"),
        (lambda outputs, targets: outputs[:, :1], r"got \(2, 1\)"),
        (lambda outputs, targets: outputs.mean(), r"got \(\)"),
        (lambda outputs, targets: 1.0, "got float"),
    ],
)
def test_measurement_of_a_bad_shape(make, measurement, got):
    with pytest.raises(ValueError, match=f"measurement must give one number per row.*{got}"):
        make(LOGISTIC, measurement=measurement).fit(XC, YC)


@each_attributor
def test_output_that_does_not_exist(make):
    with pytest.raises(ValueError, match=r"Output\(index\) must be in \[0, 3\).*got 3"):
        make(LOGISTIC, measurement=Output(3)).fit(XC, YC)
    two = Ridge().fit(X, np.column_stack([Y, Y]))
    with pytest.raises(ValueError, match=r"needs a model with one output.*Output\(index\)"):
        make(two, measurement="output").fit(X, np.column_stack([Y, Y]))


class NoMean(nn.Module):
    def forward(self, outputs, targets):
        return (outputs - targets).square().mean().sqrt()


class IgnoresReduction(NoMean):
    reduction = "mean"


@each_attributor
@pytest.mark.parametrize(
    ("criterion", "error", "message"),
    [
        (None, ValueError, "criterion must be given with a bare torch.nn.Module, for example"),
        (
            NoMean(),
            TypeError,
            r"NoMean must be a mean over rows: .*Give it a `reduction` attribute",
        ),
        (IgnoresReduction(), TypeError, "IgnoresReduction must be a mean over rows"),
        (nn.MSELoss(reduction="sum"), ValueError, r"got 'sum'.*Use reduction='mean' and scale lr"),
        ("mse", ValueError, "'criterion' parameter of .* must be"),
        (nn.MSELoss, ValueError, "'criterion' parameter of .* must be"),
    ],
)
def test_criteria(make, criterion, error, message):
    with pytest.raises(error, match=message):
        make(nn.Linear(4, 1), criterion=criterion).fit(X, Y[:, None])


@each_attributor
def test_scalar_criterion_shows_whatever_is_measured(make):
    """The training loss is needed per row also where another thing is attributed."""
    with pytest.raises(TypeError, match="IgnoresReduction must be a mean over rows"):
        make(nn.Linear(4, 1), criterion=IgnoresReduction(), measurement=Output(0)).fit(
            X, Y[:, None]
        )


@each_attributor
def test_criterion_of_a_net(make):
    data = X.astype(np.float32), Y[:, None].astype(np.float32)
    net = skorch.NeuralNetRegressor(nn.Linear(4, 1), max_epochs=1, train_split=None, verbose=0)
    net.fit(*data)
    with pytest.raises(ValueError, match=r"criterion is for a bare torch.nn.Module; NeuralNetReg"):
        make(net, criterion=nn.MSELoss()).fit(*data)


@each_attributor
def test_custom_criterion_needs_targets(make):
    class Own(nn.Module):
        reduction = "mean"

        def forward(self, outputs, targets):
            rows = (outputs - targets).square().sum(1)
            return rows.mean() if self.reduction == "mean" else rows

    attributor = make(nn.Linear(4, 1), criterion=Own()).fit(X, Y[:, None])
    with pytest.raises(ValueError, match="y must be given to transform: the meaning of this model"):
        attributor.transform(X)


@each_attributor
def test_batch_norm_in_training_mode(make):
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    with pytest.raises(
        ValueError, match=r"BatchNorm layer \(1\) in training mode.*call estimator.eval"
    ):
        make(module, criterion=nn.MSELoss()).fit(X, Y)
    make(module.eval(), criterion=nn.MSELoss()).fit(X, Y)


# ---- booleans are no numbers ----------------------------------------------------------------


def numbers_of(cls):
    """Parameters that take a number and no boolean."""
    for name, constraints in cls._parameter_constraints.items():
        if any(isinstance(one, Interval) for one in constraints) and "boolean" not in constraints:
            yield name


@pytest.mark.parametrize("cls", ATTRIBUTORS, ids=lambda cls: cls.__name__)
def test_booleans_are_no_numbers(cls):
    for name in numbers_of(cls):
        for value in (True, np.True_):
            made = cls(**{name: value})
            with pytest.raises(ValueError, match=f"'{name}' parameter of {cls.__name__} must be"):
                made.fit(X, Y)


def test_booleans_are_no_numbers_in_functions():
    with pytest.raises(ValueError, match="n_epochs"):
        fimoda.train_ensemble(net(), X, Y, n_epochs=True, n_seeds=1)
    with pytest.raises(ValueError, match="'checkpoints' parameter"):
        fimoda.train_ensemble(net(), X, Y, n_seeds=1, checkpoints=True)
    with pytest.raises(ValueError, match=r"checkpoints must be a number.*got True"):
        net(callbacks=[fimoda.TrajectoryRecorder(checkpoints=True)])
    with pytest.raises(ValueError, match="n_subsets must be a whole number, got True"):
        fimoda.random_subsets(len(X), True)
    with pytest.raises(ValueError, match="k must be a whole number, got True"):
        GradDot(RIDGE).fit(X, Y).top(X, Y, k=True)
    masks = fimoda.random_subsets(len(X), 4, random_state=0)
    for params in ({"n_epochs": True}, {"batch_size": True}, {"n_seeds": [True]}):
        with pytest.raises(ValueError, match=next(iter(params))):
            fimoda.train_on_subsets(net(), X, Y, masks, X, Y, **params)
    with pytest.raises(ValueError, match="epochs must be positive numbers"):
        curve(epochs=[True])
    with pytest.raises(ValueError, match="directory must be the path of a directory, got ''"):
        fimoda.train_ensemble(net(), X, Y, n_epochs=1, n_seeds=1, directory="")


@pytest.mark.parametrize("n_epochs", [-1, 0, True, float("nan")])
@pytest.mark.parametrize("cls", [fimoda.Hydra, fimoda.TracIn, fimoda.SOURCE])
def test_epochs_along_the_run(cls, n_epochs):
    with pytest.raises(ValueError, match=f"'n_epochs' parameter of {cls.__name__} must be a float"):
        cls(net(), trajectory="final", n_epochs=n_epochs).fit(X, Y)


# ---- networks as they come ------------------------------------------------------------------


def net(**settings):
    module = tanh_network(X.shape[1], 3, 1)
    made = NeuralNet(
        module, criterion=nn.MSELoss, max_epochs=1, lr=0.01, verbose=0, train_split=None, **settings
    )
    return made.fit(X, Y[:, None])


def test_data_parallel():
    """What spreads a network over devices is taken off, alone and in a skorch net."""
    inner = net()
    spread = nn.DataParallel(inner.module_)
    settings = {"criterion": nn.MSELoss(), "n_epochs": 1, "n_seeds": 1, "random_state": 0}
    for cls in (fimoda.FurtherTraining, fimoda.LeaveOneOut):
        found, expected = (
            cls(module, leave_out=[0, 1], **settings).fit(X, Y).transform(X, Y)
            for module in (spread, inner.module_)
        )
        assert_array_equal(found, expected)
    outer = NeuralNet(
        spread, criterion=nn.MSELoss, max_epochs=1, lr=0.01, verbose=0, train_split=None
    )
    recorder = fimoda.TrajectoryRecorder(checkpoints=2)
    outer.set_params(callbacks=[recorder]).fit(X, Y[:, None])
    assert_array_equal(
        GradDot(outer).fit(X, Y).transform(X, Y),
        GradDot(outer.module_.module, criterion=nn.MSELoss(), lr=0.01).fit(X, Y).transform(X, Y),
    )
    run = fimoda.Trajectory.from_checkpoints([spread.state_dict()], [5], 0.1)
    with pytest.raises(ValueError, match=r"checkpoints of a wrapped model.*'module.0.weight' in"):
        fimoda.TracIn(spread, trajectory=run, criterion=nn.MSELoss()).fit(X, Y)
    assert fimoda.TracIn(outer).fit(X, Y).transform(X, Y).shape == (len(X), len(X))
    assert fimoda.LeaveOneOut(outer, leave_out=[0]).fit(X, Y).transform(X, Y).shape == (len(X), 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """A network of half precision is attributed in single precision."""
    module = net().module_.to(dtype)
    found, expected = (
        FurtherTraining(
            own, criterion=nn.MSELoss(), n_epochs=1, n_seeds=1, leave_out=[0, 1], random_state=0
        )
        .fit(X, Y)
        .transform(X, Y)
        for own in (module, copy.deepcopy(module).float())
    )
    assert_array_equal(found, expected)
    assert next(module.parameters()).dtype == dtype
    assert np.isfinite(
        fimoda.ExactInfluence(module, criterion=nn.MSELoss()).fit_transform(X, Y)
    ).all()


# ---- measurements of one's own --------------------------------------------------------------

DIFFERENTIATE = [
    GradDot, fimoda.GradCos, fimoda.ExactInfluence, fimoda.CGInfluence, fimoda.LiSSAInfluence,
    fimoda.EKFACInfluence, fimoda.DataInf, fimoda.TRAK, UnrolledDifferentiation,
    fimoda.ArnoldiInfluence,
]  # fmt: skip


def in_place(outputs, targets):
    outputs -= targets
    targets.zero_()
    return outputs.mul_(3)[:, 0].tanh()


def written_out(outputs, targets):
    return (3 * (outputs - targets))[:, 0].tanh()


@pytest.mark.parametrize("cls", [*DIFFERENTIATE, FurtherTraining], ids=lambda cls: cls.__name__)
def test_measurements_in_place(cls):
    found, expected = (
        cls(RIDGE, measurement=measure, random_state=0).fit(X, Y).transform(X, Y)
        if "random_state" in inspect.signature(cls).parameters
        else cls(RIDGE, measurement=measure).fit(X, Y).transform(X, Y)
        for measure in (in_place, written_out)
    )
    assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("cls", DIFFERENTIATE, ids=lambda cls: cls.__name__)
def test_measurements_without_gradient(cls):
    for measure in (
        lambda outputs, targets: torch.ones(len(outputs), dtype=outputs.dtype),
        lambda outputs, targets: (outputs > targets)[:, 0].to(outputs.dtype),
        lambda outputs, targets: outputs.detach()[:, 0],
    ):
        with pytest.raises(ValueError, match="measurement has no gradient in the outputs"):
            cls(RIDGE, measurement=measure).fit(X, Y).transform(X, Y)


def test_measurements_without_gradient_where_none_is_taken():
    """Who trains again needs none."""

    def above(outputs, targets):
        return (outputs > targets)[:, 0].double()

    scores = (
        FurtherTraining(RIDGE, measurement=above, n_epochs=1, n_seeds=1, leave_out=[0, 1], lr=0.5)
        .fit(X, Y)
        .transform(X, Y)
    )
    assert set(np.unique(scores)) <= {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("cls", [*DIFFERENTIATE, FurtherTraining], ids=lambda cls: cls.__name__)
def test_measurements_that_are_nan(cls):
    with pytest.raises(ValueError, match="measurement must be a number for every row, but is NaN"):
        cls(RIDGE, measurement=lambda outputs, targets: outputs[:, 0] * torch.nan).fit(X, Y)
