"""Trial by identity: no run is taken for another, and each is known again wherever it goes on."""

from __future__ import annotations

import copy
import functools
import json
import os
import pickle
import subprocess
import sys
import threading
import warnings

import identity_cases as cases
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import Ridge
from torch import nn

from fimoda import (
    DataBanzhaf,
    DataShapley,
    Downsampling,
    FurtherTraining,
    LeaveOneOut,
    further_training_curve,
    train_on_subsets,
)
from fimoda._identity import identity_of
from fimoda.store import MANIFEST
from fimoda.training.store import UnitStore


def curve(directory, *, net=None, X=None, y=None, **changes):
    """A curve with two epochs, in a directory."""
    known_X, known_y = cases.rows()
    X, y = known_X if X is None else X, known_y if y is None else y
    settings = {
        "epochs": [1, 2],
        "n_seeds": [0],
        "leave_out": [1, 4],
        "criterion": nn.MSELoss(),
        "optimizer": "SGD",
        "lr": 0.05,
        "batch_size": 8,
        "checkpoint_dir": directory,
    }
    net = cases.Network() if net is None else net
    return further_training_curve(net, X, y, X[:3], y[:3], **{**settings, **changes}).per_seed


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", cases.FURTHER)
def test_further_training_that_differs_is_refused(name, turned, tmp_path):
    first, second = cases.FURTHER[name][:: -1 if turned else 1]
    expected = curve(tmp_path, **first)
    with pytest.raises(ValueError, match=f"checkpoint_dir '{tmp_path}' belongs to another run"):
        curve(tmp_path, **second)
    np.testing.assert_array_equal(curve(tmp_path, **first), expected)  # and is known again


def refitted(directory, estimator):
    X, y = cases.rows()[0], cases.labels()
    subsets = np.random.default_rng(1).permuted(np.tile([True, False], (2, 8)), axis=1)
    return train_on_subsets(
        estimator, X, y, subsets, X[:3], y[:3], n_seeds=[0], checkpoint_dir=directory
    ).measured


@pytest.mark.parametrize("name", cases.ESTIMATORS)
def test_estimators_that_differ_are_refused(name, tmp_path):
    first, second = cases.ESTIMATORS[name]
    X, y = cases.rows()[0], cases.labels()
    refitted(tmp_path, clone(first).fit(X, y))
    with pytest.raises(ValueError, match=r"belongs to another run \(estimator: there"):
        refitted(tmp_path, clone(second).fit(X, y))
    refitted(tmp_path, clone(first).fit(X[2:], y[2:]))  # it is fitted again anyway


@pytest.mark.parametrize("name", cases.FOREIGN)
def test_estimators_with_other_code_differ(name):
    first, second = cases.FOREIGN[name]
    assert identity_of(first, fitted=False) != identity_of(second, fitted=False)
    assert identity_of(first, fitted=False) == identity_of(clone(first), fitted=False)


def test_what_was_learned_counts_where_it_is_used():
    X, y = cases.rows()[0], cases.labels()
    one, other = (cases.LogisticRegression().fit(X[:n], y[:n]) for n in (12, 13))
    assert identity_of(one, fitted=False) == identity_of(other, fitted=False)
    assert identity_of(one) != identity_of(other)
    by_model = [
        cases.made("def thing(o, t): return o * model.coef_[0, 0]", model=m) for m in (one, other)
    ]
    assert identity_of(by_model[0]) != identity_of(by_model[1])


@pytest.mark.parametrize(
    ("first", "second"),
    [({"init": cases.init_of(1.0)}, {"init": cases.init_of(0.5)}), ({}, {"n_epochs": 2})],
)
def test_retraining_that_differs_is_refused(first, second, tmp_path):
    X, y = cases.rows()

    def method(**changes):
        settings = {"n_epochs": 1, "n_seeds": [0], "leave_out": [1, 2], "lr": 0.1, "batch_size": 8}
        return LeaveOneOut(
            nn.Linear(cases.D, 1), criterion=nn.MSELoss(), optimizer="SGD",
            checkpoint_dir=tmp_path, **{**settings, **changes},
        )  # fmt: skip

    torch.manual_seed(0)
    one = method(**first)
    one.fit(X, y)
    other = copy.copy(one).set_params(**second)
    with pytest.raises(ValueError, match="belongs to another run"):
        other.fit(X, y)


def test_units_of_other_seeds_rows_and_test_rows_are_not_taken(tmp_path):
    """They may share a directory or be refused; they are not mixed."""
    X = cases.rows()[0]
    curve(tmp_path)
    for changes in ({"n_seeds": [1]}, {"leave_out": [2, 4]}, {"chunk_size": 1}):
        np.testing.assert_array_equal(curve(tmp_path, **changes), curve(None, **changes))
    estimator = cases.Majority().fit(X, cases.labels())
    for directory in (None, tmp_path / "refits"):
        found = [
            train_on_subsets(
                estimator, X, cases.labels(), [[0, 1, 2, 3, 4, 5]], X[:3], labels, n_seeds=[0],
                measurement=measurement, checkpoint_dir=directory,
            ).measured
            for labels in ([0, 0, 0], [1, 1, 1])
            for measurement in ("loss", "log_prob", cases.scaled_probability(2.0))
        ]  # fmt: skip
        assert len({one.tobytes() for one in found}) == 6


@pytest.mark.parametrize(
    ("package", "other"), [("fimoda", "0.0.9"), ("torch", "1.13.0"), ("numpy", "1.20.0")]
)
def test_another_version_is_refused(package, other, tmp_path, monkeypatch):
    curve(tmp_path)
    monkeypatch.setattr(sys.modules[package], "__version__", other)
    from fimoda import _identity

    _identity._version.cache_clear()
    try:
        with pytest.raises(ValueError, match=f"{package}: there '[^']*', now '{other}'"):
            curve(tmp_path)
    finally:
        monkeypatch.undo()
        _identity._version.cache_clear()
    curve(tmp_path)


def test_the_manifest_says_what_computed(tmp_path):
    curve(tmp_path)
    known = json.loads((tmp_path / MANIFEST).read_text())["run"]
    assert {"fimoda", "torch", "numpy", "dtype", "device"} <= set(known)
    assert known["optimizer"] == "SGD"  # readable where it can be


def test_units_of_another_variant_are_kept_apart(tmp_path):
    """As compiled ones, since "auto" compiles by the number of seeds that are asked for."""
    plain, compiled = (UnitStore(tmp_path, {"lr": 0.1}, variant) for variant in ("", "compiled"))
    plain.put("unit", np.zeros(2))
    assert compiled.get("unit") is None
    compiled.put("unit", np.ones(2))
    np.testing.assert_array_equal(plain.get("unit"), np.zeros(2))
    np.testing.assert_array_equal(compiled.get("unit"), np.ones(2))
    (tmp_path / "unit-compiled.npy").replace(tmp_path / "unit.npy")
    with pytest.warns(RuntimeWarning, match="damaged"):
        assert plain.get("unit") is None


# ---- the same run -----------------------------------------------------------------------------


def test_identities_are_the_same_in_every_process():
    """With other seeds of Python's hashes, other addresses and another order of imports."""
    here = cases.identities()
    code = (
        f"import sys, json; sys.path.insert(0, {os.path.dirname(__file__)!r}); import sklearn.svm, skorch\n"
        "import torch; [torch.nn.Linear(1, 1).register_forward_hook(print) for _ in range(7)]\n"
        "import identity_cases; print(json.dumps(identity_cases.identities()))"
    )
    for seed in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed},
        )  # fmt: skip
        assert json.loads(there.stdout) == here


def test_a_run_resumes_in_another_process(tmp_path):
    """All is there: nothing may be written, since the directory's files stay as they are."""
    changes = {"measurement": cases.Scaled(3.0), "criterion": cases.Loss(2.0)}
    curve(tmp_path, **changes)
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    code = (
        f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "import test_trials_identity as trial\n"
        "from identity_cases import Loss, Scaled\n"
        f"trial.curve({str(tmp_path)!r}, measurement=Scaled(3.0), criterion=Loss(2.0), n_jobs=2, verbose=1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", [n for n in cases.SAME if n not in ("closure", "hooks", "init")])
def test_copies_are_the_same(name):
    one = cases.SAME[name]()
    expected = identity_of(one)
    assert identity_of(copy.deepcopy(one)) == expected
    if name not in ("optimiser", "set in code"):  # of a module that cannot be imported
        assert identity_of(pickle.loads(pickle.dumps(one))) == expected


def test_what_a_model_has_computed_for_itself_makes_no_difference():
    """Cached properties follow from the rest, and are there or not."""
    X, y = cases.rows()
    model = LeaveOneOut(cases.Network(), criterion=nn.MSELoss(), n_epochs=1).fit(X, y).model_
    fresh = model.at(model.theta)
    before = identity_of(fresh)
    assert (fresh.is_stochastic, fresh.double.dtype) == (False, torch.float64)
    assert {"is_stochastic", "double"} <= set(vars(fresh))
    assert identity_of(fresh) == before
    assert identity_of(fresh.at(fresh.theta + 1)) != before


def test_what_makes_no_difference():
    forest = cases.RandomForestClassifier
    one, other = (forest(n_jobs=1), forest(n_jobs=2, verbose=3))
    assert identity_of(one, fitted=False) == identity_of(other, fitted=False)
    assert identity_of({"a": 1, "b": 2}) == identity_of({"b": 2, "a": 1})
    shared = [1.5]
    assert identity_of([shared, shared]) == identity_of([[1.5], [1.5]])
    circle: list = [1]
    circle.append(circle)
    other: list = [1]
    other.append(other)
    assert identity_of(circle) == identity_of(other)
    X = np.arange(6.0).reshape(2, 3)
    assert identity_of(X) == identity_of(np.asfortranarray(X))


PAIRS = [
    (1, True),
    (1, 1.0),
    (0.0, -0.0),
    ("a", b"a"),
    ([1], (1,)),
    ([1, 2], [2, 1]),
    ([[1], 2], [[1, 2]]),
    (["ab", "c"], ["a", "bc"]),
    ({"a": 1}, {"a": 2}),
    (np.zeros(3), np.zeros((3, 1))),
    (np.zeros(3), np.zeros(3, np.float32)),
    (np.zeros(3), torch.zeros(3, dtype=torch.float64)),
    (torch.zeros(3), torch.zeros(3, dtype=torch.int32)),
    (torch.ones(2, dtype=torch.bfloat16), torch.full((2,), 1.01, dtype=torch.bfloat16)),
    (np.array(["a", None], object), np.array(["a", "None"], object)),
    (np.ma.array([1, 2], mask=[0, 1]), np.ma.array([1, 2], mask=[1, 0])),
    (range(3), range(4)),
    (slice(0, 3), slice(0, 4)),
    (np.log1p, np.log),
    (torch.relu, torch.tanh),
    (nn.ReLU(), nn.ReLU6()),
    (torch.fx.symbolic_trace(nn.ReLU()), torch.fx.symbolic_trace(nn.Tanh())),
    (
        torch.fx.symbolic_trace(nn.Sequential(nn.Dropout(0.1))),
        torch.fx.symbolic_trace(nn.Sequential(nn.Dropout(0.2))),
    ),
    (nn.Sequential(nn.ReLU(), nn.Tanh()), nn.Sequential(nn.Tanh(), nn.ReLU())),
    (lambda x: x.a, lambda x: x.b),
    (lambda x: [y + 1 for y in x], lambda x: [y + 2 for y in x]),
    (lambda x: x in {"a", "b"}, lambda x: x in {"a", "c"}),
    (torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)),
]


@pytest.mark.parametrize("pair", PAIRS, ids=range(len(PAIRS)))
def test_values_that_differ(pair):
    assert identity_of(pair[0]) != identity_of(pair[1])


def test_decorators_with_settings():
    """Of the user's own: what they hold beside the function counts."""
    code = (
        "class D:\n def __init__(self, f, a):\n  update_wrapper(self, f)\n  self.a = a\n"
        " def __call__(self, o, t): return self.a * self.__wrapped__(o, t)\n"
        "thing = D(f, a)"
    )
    names = {"update_wrapper": functools.update_wrapper, "f": cases.scaled}
    one, other = (cases.made(code, a=a, **names) for a in (1.0, 2.0))
    assert identity_of(one) == identity_of(cases.made(code, a=1.0, **names)) != identity_of(other)


def test_frames_and_sparse_matrices():
    pd = pytest.importorskip("pandas")
    sparse = pytest.importorskip("scipy.sparse")
    frame = pd.DataFrame({"a": [1, 2], "b": pd.Categorical(["u", "v"])})
    assert identity_of(frame) == identity_of(frame.copy())
    for other in (
        frame.rename(columns={"a": "c"}),
        frame.assign(a=[1, 3]),
        frame.assign(a=[1.0, 2.0]),
        frame.assign(b=["u", "v"]),
        frame.set_axis([5, 6]),
    ):
        assert identity_of(frame) != identity_of(other)
    laid_out = pd.DataFrame({"a": [1.0, 2.0]})
    laid_out["b"] = [3.0, 4.0]  # a block of its own
    assert identity_of(laid_out) == identity_of(laid_out.copy())
    assert identity_of(laid_out["a"]) != identity_of(laid_out["b"])
    one, other = sparse.csr_matrix([[0, 1.0]]), sparse.csr_matrix([[0, 1.1]])
    before = identity_of(one)
    assert one.has_sorted_indices  # which the matrix remembers
    assert identity_of(one) == identity_of(one.copy()) == before != identity_of(other)
    assert identity_of(one) != identity_of(one.tocsc())


def test_what_cannot_be_compared_is_refused(tmp_path):
    """Before anything is trained, and only where a run has a directory."""
    measurement = cases.Scaled(1.0)
    measurement.lock = threading.Lock()
    with pytest.raises(ValueError, match=r"_thread\.lock has no value that would tell this run"):
        curve(tmp_path, measurement=measurement)
    curve(None, measurement=measurement)
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(ValueError, match="nested too deeply"):
        identity_of(deep)


def test_globals_that_cannot_be_compared_do_not_matter():
    """A lock beside a measurement is no reason to refuse it."""
    code = "def thing(outputs, targets):\n with LOCK:\n  return outputs.squeeze(-1)"
    one = cases.made(code, LOCK=threading.Lock())
    assert identity_of(one) == identity_of(cases.made(code, LOCK=threading.Lock()))


def test_a_class_keeps_to_its_own_directory(tmp_path):
    """Models and measurements are not taken for each other."""
    X, y = cases.rows()
    curve(tmp_path, epochs=[2])
    gold = FurtherTraining(
        cases.Network(), n_epochs=2, n_seeds=[0], leave_out=[1, 4], criterion=nn.MSELoss(),
        optimizer="SGD", lr=0.05, batch_size=8, checkpoint_dir=tmp_path,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"belongs to another run \(X_test: there"):
        gold.fit(X, y)


@pytest.mark.parametrize(
    ("method", "listed"),
    [
        (LeaveOneOut(Ridge(), leave_out=[0, 1], n_seeds=1), {"n_seeds": [0]}),
        (Downsampling(Ridge(), n_seeds=[0], n_subsets=20), None),
        (DataShapley(Ridge(), n_seeds=[0], n_samples=2), None),
        (DataBanzhaf(Ridge(), n_seeds=1, n_samples="exact"), {"n_seeds": [0]}),
        (FurtherTraining(cases.Network(), n_seeds=1, leave_out=[0], n_epochs=1), {"n_seeds": [0]}),
        (
            FurtherTraining(cases.Network(), n_seeds=[0], leave_out=1, n_epochs=1),
            {"leave_out": [0]},
        ),
    ],
)
def test_seeds_that_no_other_call_has_are_told(method, listed, tmp_path):
    """Nor does a call that draws find anything; one with all seeds and rows given finds all."""
    X, y = cases.rows()
    X, y = X[:6], y[:6]
    if isinstance(method.estimator, nn.Module):
        method = clone(method).set_params(criterion=nn.MSELoss())

    def kept(**params):
        again = clone(method).set_params(checkpoint_dir=tmp_path, **params)
        again.fit(X, y if isinstance(method.estimator, nn.Module) else y.ravel())
        again.transform(X[:2], y[:2] if isinstance(method.estimator, nn.Module) else y.ravel()[:2])
        return sorted(file.name for file in tmp_path.glob("*.npy"))

    words = r"with random_state=None another call draws others .* Set random_state to a number"
    with pytest.warns(UserWarning, match=words):
        first = kept()
    with pytest.warns(UserWarning, match=words):
        second = kept()
    if not isinstance(
        method, DataBanzhaf | DataShapley
    ):  # of so few rows, which have the sets of all
        assert len(second) > len(first)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert kept(random_state=0) == kept(random_state=0)
        if listed:
            assert kept(**listed) == kept(**listed)
