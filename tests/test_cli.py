"""The command line, run for real on files."""

from __future__ import annotations

import re
import subprocess
import sys

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import fimoda
from fimoda import GradDot
from fimoda.cli import main


@pytest.fixture(scope="module")
def tables():
    """Mixed columns with missing values; the test table without its target, columns reordered."""
    X, y = load_breast_cancer(return_X_y=True)
    frame = pd.DataFrame(X[:80, :4], columns=list("abcd"))
    frame.loc[3, "a"] = np.nan
    frame["kind"] = np.where(X[:80, 5] > 0.1, "high", "low")
    frame["label"] = np.where(y[:80] > 0, "benign", "malignant")
    frame["id"] = [f"patient {i}" for i in range(80)]
    return frame[:70], frame[70:][["kind", "id", "d", "c", "b", "a"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tables):
    """Model and tables on disk."""
    path = tmp_path_factory.mktemp("cli")
    train, test = tables
    model = make_pipeline(
        make_column_transformer(
            (make_pipeline(SimpleImputer(), StandardScaler()), list("abcd")),
            (OneHotEncoder(), ["kind"]),
        ),
        MLPClassifier((4,), max_iter=20, random_state=0),
    )
    with pytest.warns(Warning, match="Maximum iterations"):
        model.fit(train.set_index("id").drop(columns="label"), train["label"])
    joblib.dump(model, path / "net.pkl")
    train.to_csv(path / "train.csv", index=False)
    test.to_csv(path / "test.csv", index=False)
    return path


def given(folder, command="attribute", **changes):
    options = {
        "model": folder / "net.pkl", "train": folder / "train.csv", "test": folder / "test.csv",
        "target": "label", "index": "id", "jobs": 1, **changes,
    }  # fmt: skip
    return [command, *(str(part) for k, v in options.items() for part in (f"--{k}", v))]


def test_attribute(folder, tables, capsys):
    out = folder / "scores.csv"
    assert main(given(folder, method="GradDot", out=out)) == 0
    said = capsys.readouterr()
    assert "is a pickle: loading it runs code" in said.err
    assert "behaviour:    loss of each test row at its predicted class" in said.out
    assert "test row patient 70\n  helpful: patient " in said.out
    train, test = (frame.set_index("id") for frame in tables)
    X, y = train.drop(columns="label"), train["label"]
    model = joblib.load(folder / "net.pkl")
    expected = GradDot(model).fit(X, y).transform(test[list(X)])
    found = pd.read_csv(out, index_col=0)
    np.testing.assert_allclose(found, expected)
    assert list(found.columns) == list(train.index)
    assert list(found.index) == list(test.index)


def test_array_and_automatic_choice(folder, capsys):
    out = folder / "scores.npy"
    assert main(given(folder, budget=1e-9, out=out)) == 0
    assert "method:       GradDot" in capsys.readouterr().out
    assert np.load(out).shape == (10, 70)


def test_settings_of_a_named_method(folder, tables):
    out = folder / "scores.npy"
    for name, own in (("GradDot", {}), ("FurtherTraining", {"n-epochs": 2})):
        assert main(given(folder, method=name, measurement="margin", out=out, **own)) == 0
        train, test = (frame.set_index("id") for frame in tables)
        X, y = train.drop(columns="label"), train["label"]
        settings = {"n_epochs": 2, "random_state": 0} if own else {}
        method = getattr(fimoda, name)(joblib.load(folder / "net.pkl"), **settings)
        expected = method.set_params(measurement="margin").fit(X, y).transform(test[list(X)])
        np.testing.assert_allclose(np.load(out), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["train.csv", "data.pkl", "text.skops"])
def test_what_is_no_model(folder, capsys, name):
    joblib.dump({"weights": [1, 2]}, folder / "data.pkl")
    (folder / "text.skops").write_text("no archive")
    if name == "text.skops":
        pytest.importorskip("skops")
    assert main(given(folder, model=folder / name)) == 2
    said = capsys.readouterr().err
    expected = "got dict" if name == "data.pkl" else r"cannot be loaded .* saved by joblib.dump"
    assert re.search(expected, said)
    assert "Traceback" not in said


def test_archive(folder, tables):
    """Scores with names, without pickles."""
    out = folder / "scores.npz"
    assert main(given(folder, method="GradDot", out=out)) == 0
    with np.load(out) as found:
        assert found["scores"].shape == (10, 70)
        assert list(found["train"]) == list(tables[0]["id"])
        assert list(found["test"]) == list(tables[1]["id"])


def test_parquet(folder, tables):
    """Tables in and out."""
    pytest.importorskip("pyarrow")
    for table, name in zip(tables, ("train", "test"), strict=True):
        table.to_parquet(folder / f"{name}.parquet")
        table.reset_index(drop=True).to_feather(folder / f"{name}.feather")
    expected = folder / "expected.csv"
    assert main(given(folder, method="GradDot", out=expected)) == 0
    out = folder / "scores.parquet"
    for kind in ("parquet", "feather"):
        files = {"train": folder / f"train.{kind}", "test": folder / f"test.{kind}"}
        assert main(given(folder, method="GradDot", out=out, **files)) == 0
        found = pd.read_parquet(out)
        pd.testing.assert_frame_equal(found, pd.read_csv(expected, index_col=0))
        out.unlink()


def test_skops(folder, capsys):
    io = pytest.importorskip("skops.io")
    io.dump(joblib.load(folder / "net.pkl"), folder / "net.skops")
    scores = []
    for name in ("net.pkl", "net.skops"):
        out = folder / f"{name}.npy"
        assert main(given(folder, model=folder / name, method="GradDot", out=out)) == 0
        scores.append(np.load(out))
    np.testing.assert_array_equal(*scores)
    assert "net.skops holds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "path", "library"),
    [
        ("out", "scores.parquet", "pyarrow"),
        ("train", "train.feather", "pyarrow"),
        ("model", "net.skops", "skops"),
    ],
)
def test_without_the_library(folder, capsys, monkeypatch, option, path, library):
    """What is missing is said before anything is computed."""
    for name in ("pyarrow", "fastparquet", "skops"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.chdir(folder)
    (folder / "net.skops").touch()
    assert main(given(folder, method="GradDot", **{option: path})) == 2
    kind = path.split(".")[1]
    assert f".{kind} files need {library}: pip install {library}." in capsys.readouterr().err


def test_compare(folder, capsys):
    out = folder / "compared.csv"
    options = {"n-epochs": 2, "budget": 2, "out": out}
    assert main(given(folder, "compare", **options)) == 0
    assert "recommended: " in capsys.readouterr().out
    assert list(pd.read_csv(out).columns) == ["method", "1 epochs", "2 epochs", "seconds"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "none.pkl"}, r"--model: there is no file none.pkl"),
        ({"target": "size"}, r"--target must be a column of .*; got 'size'"),
        ({"index": "name"}, r"--index must be a column of .*, got 'name'"),
        ({"train": "rows.txt"}, r"rows.txt: tables must be .csv, .parquet, .feather, got '.txt'"),
        ({"out": "scores.xls"}, r"--out must end in .csv, .parquet, .npz, .npy, got 'scores.xls'"),
        ({"out": "nowhere/scores.csv"}, r"--out: there is no directory .*nowhere"),
        ({"method": "Best"}, r"--method must be .*, GradDot, .*; got 'Best'"),
        ({"method": "DataInf", "n-epochs": 3}, r"--n-epochs: DataInf does not look ahead"),
        ({"train": "none.csv"}, r"there is no file none.csv"),
        ({"budget": -1}, r"budget must be a positive number of seconds, got -1"),
    ],
)
def test_errors(folder, capsys, changes, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(given(folder, **changes)) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert re.search(message, said)


def test_missing_columns(folder, tables, capsys):
    path = folder / "short.csv"
    tables[1].drop(columns=["a", "kind"]).to_csv(path, index=False)
    assert main(given(folder, test=path)) == 2
    assert "short.csv lacks the columns a, kind" in capsys.readouterr().err


def test_demo_as_a_command():
    """In a process of its own."""
    command = [sys.executable, "-m", "fimoda.cli", "demo", "--budget", "0.01"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "test row 0\n  helpful: row" in done.stdout


@pytest.mark.parametrize("command", [[], ["attribute"], ["compare"]])
def test_help(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--help"])
    said = capsys.readouterr().out
    assert "usage: fimoda" in said
    for word in ["--target", "epochs to look ahead"] if command else ["demo", "attribute"]:
        assert word in said


def test_linear_model(folder, tables, capsys):
    train, _ = tables
    X, y = train[list("bcd")], train["label"]
    joblib.dump(LogisticRegression(max_iter=1000).fit(X, y), folder / "linear.pkl")
    train[[*"bcd", "label"]].to_csv(folder / "numbers.csv", index=False)
    changes = {"model": folder / "linear.pkl", "train": folder / "numbers.csv"}
    arguments = given(folder, **changes, test=folder / "numbers.csv")
    place = arguments.index("--index")
    assert main(arguments[:place] + arguments[place + 2 :]) == 0
    assert "training anew" in capsys.readouterr().out
