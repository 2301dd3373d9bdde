"""The command line, run for real on files."""

from __future__ import annotations

import io
import pickle
import re
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from cases_of_reports import data_of
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import fimoda
from fimoda import GradDot
from fimoda._tables import read_tables
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
        "target": "label", "index": "id", "jobs": 1, "trust": True, **changes,
    }  # fmt: skip
    parts = (
        [f"--{k}"] if v is True else [f"--{k}", str(v)]
        for k, v in options.items()
        if v is not False
    )
    return [command, *(part for one in parts for part in one)]


def test_attribute(folder, tables, capsys):
    out = folder / "scores.csv"
    assert main(given(folder, method="GradDot", out=out)) == 0
    said = capsys.readouterr()
    assert "behaviour:    loss of each test row at its predicted class" in said.out
    assert re.search(
        r"\ntest row +helpful +score +harmful +score\npatient 70 +patient \d+ +\+", said.out
    )
    train, test = (frame.set_index("id") for frame in tables)
    X, y = train.drop(columns="label"), train["label"]
    model = joblib.load(folder / "net.pkl")
    expected = GradDot(model).fit(X, y).transform(test[list(X)])
    found = pd.read_csv(out, index_col=0)
    np.testing.assert_allclose(found, expected)
    assert list(found.columns) == list(train.index)
    assert list(found.index) == list(test.index)


def test_array_and_automatic_choice(folder, capsys):
    out = folder / "automatic.npy"
    assert main(given(folder, budget=1e-9, out=out)) == 0
    assert "method:       GradDot" in capsys.readouterr().out
    assert np.load(out).shape == (10, 70)


def test_settings_of_a_named_method(folder, tables):
    for name, own in (("GradDot", {}), ("FurtherTraining", {"n-epochs": 2})):
        out = folder / f"{name}.npy"
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
    skops = pytest.importorskip("skops.io")
    skops.dump(joblib.load(folder / "net.pkl"), folder / "net.skops")
    scores = []
    for name in ("net.pkl", "net.skops"):
        out = folder / f"{name}.npy"
        assert main(given(folder, model=folder / name, method="GradDot", out=out)) == 0
        scores.append(np.load(out))
    np.testing.assert_array_equal(*scores)
    assert "net.skops: trusted as you said: " in capsys.readouterr().err


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
    assert list(pd.read_csv(out).columns) == [
        *("method", "1 epoch", "2 epochs", "seconds", "not_run")
    ]


def test_report(folder, tables, capsys):
    out = folder / "report.html"
    options = {"method": "GradDot", "out": out, "title": "Lumps & sizes", "top": 2}
    assert main(given(folder, "report", **options)) == 0
    assert "method:       GradDot" in capsys.readouterr().out
    page = out.read_text("utf-8")
    assert "<h1>Lumps &amp; sizes</h1>" in page
    data = data_of(page)
    assert [test["name"] for test in data["tests"]] == list(tables[1]["id"])
    assert [len(test["rows"]) for test in data["tests"]] == [4] * 10
    assert [one["name"] for one in data["features"]] == [*"abcd", "kind"]
    assert main(given(folder, "report", **options)) == 2
    assert "exists. Choose another name, or add --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": "report.csv"}, r"--out must end in .html, got 'report.csv'"),
        ({"top": 0}, r"--top must be 1 or more, got 0"),
        ({"image-shape": "8x8"}, r"--image-shape must be numbers such as 28,28, got '8x8'"),
        (
            {"image-shape": "2,2", "method": "GradDot"},
            r"image_shape must be left out for .* object",
        ),
        ({"seed": -1}, r"--seed must be from 0 to 4294967295, got -1"),
        ({"n-epochs": 0}, r"--n-epochs must be a number above 0, got 0"),
        ({"n-epochs": "nan"}, r"--n-epochs must be a number above 0, got nan"),
        ({"budget": "nan"}, r"--budget must be a number above 0, got nan"),
        ({"measurement": "losses"}, r"measurement must be .* got 'losses'"),
    ],
)
def test_no_report(folder, capsys, changes, message):
    """Nothing is trained first."""
    options = {"out": folder / "no_report.html", "method": "LeaveOneOut", **changes}
    assert main(given(folder, "report", **options)) == 2
    said = capsys.readouterr().err
    assert re.search(message, said)
    assert "retraining:" not in said
    assert not (folder / "no_report.html").exists()


def test_no_report_without_the_libraries(folder, capsys, monkeypatch):
    """Nothing is computed first."""
    monkeypatch.setattr("fimoda.report.page.find_spec", lambda name: None)
    assert main(given(folder, "report", model="none.pkl", out="none.html")) == 2
    assert 'pip install ".[report]"' in capsys.readouterr().err


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
        ({"budget": -1}, r"--budget must be a number above 0, got -1"),
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
    assert re.search(r"\n0 +row\d+ +\+", done.stdout)


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


# ---- files that are not overwritten ---------------------------------------------------------


@pytest.mark.parametrize("option", ["model", "train", "test"])
@pytest.mark.parametrize("way", ["name", "symlink", "hardlink"])
def test_inputs_are_never_overwritten(folder, tmp_path, capsys, option, way):
    path = tmp_path / "rows.csv"
    path.write_bytes((folder / "train.csv").read_bytes())
    before = path.read_bytes()
    out = path if way == "name" else tmp_path / "scores.csv"
    if way == "symlink":
        out.symlink_to(path)
    elif way == "hardlink":
        out.hardlink_to(path)
    assert main(given(folder, method="GradDot", out=out, overwrite=True, **{option: path})) == 2
    assert f"is the file of --{option}, which is never overwritten" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_other_files_are_replaced_when_asked(folder, tmp_path, capsys):
    out = tmp_path / "scores.npy"
    (tmp_path / "elsewhere.npy").write_text("old")
    out.symlink_to(tmp_path / "elsewhere.npy")
    (tmp_path / "elsewhere.npy").chmod(0o640)
    assert main(given(folder, method="GradDot", out=out)) == 2
    assert "scores.npy exists. Choose another name, or add --overwrite." in capsys.readouterr().err
    assert out.read_text() == "old"
    assert main(given(folder, method="GradDot", out=out, overwrite=True)) == 0
    assert np.load(tmp_path / "elsewhere.npy").shape == (10, 70)
    assert out.is_symlink()
    assert out.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere.npy", "scores.npy"]


@pytest.mark.parametrize("kind", ["csv", "npy"])
def test_full_disk_leaves_the_old_file(folder, tmp_path, kind):
    """A limit on the size of files stands for the disk; what was computed is printed all the same."""
    resource = pytest.importorskip("resource")
    out = tmp_path / f"scores.{kind}"
    out.write_text("old")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "fimoda.cli",
            *given(folder, method="GradDot", out=out, overwrite=True),
        ],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)),
        check=False,
    )
    assert done.returncode == 2
    said = rf"scores.{kind} cannot be written \(.+\). What was there is as it was."
    assert re.search(said, done.stderr)
    assert "Traceback" not in done.stderr
    assert "behaviour:" in done.stdout
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": "."}, r"--out must end in"),
        ({"out": "folder.csv"}, r"folder.csv is a directory"),
        ({"top": 0}, r"--top must be 1 or more, got 0"),
        ({"safe-csv": True}, r"--safe-csv is for a --out that ends in .csv, got None"),
        ({"dtype": "zip"}, r"--dtype must be a column and a type of pandas, .* got 'zip'"),
        ({"dtype": "a=number"}, r"--dtype must be .* got 'a=number'"),
        (
            {"dtype": "z=str"},
            r"--dtype: .*train.csv has no column 'z', only id, a, b, c, d, kind, l",
        ),
        ({"dtype": "kind=int"}, r"train.csv cannot be read \(ValueError: .*(high|low)"),
        ({"out": ""}, r"--out must end in .*, got ''"),
        ({"jobs": 0}, r"--jobs must be a number of processes, or -1 for all cores; got 0"),
        ({"index": "label"}, r"--index and --target must be two columns, got 'label' for both"),
        ({"target": "a"}, r"--target: 1 rows of .*train.csv have no value in column 'a'"),
    ],
)
def test_errors_before_anything_is_computed(
    folder, capsys, monkeypatch, tmp_path, changes, message
):
    monkeypatch.chdir(tmp_path)
    Path("folder.csv").mkdir()
    monkeypatch.setattr("fimoda.cli.attribute", None)
    assert main(given(folder, **changes)) == 2
    assert re.search(message, capsys.readouterr().err)


# ---- models that are not trusted ------------------------------------------------------------


class Planted:
    """Makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickles_are_refused(folder, tmp_path, capsys):
    path = tmp_path / "net.pkl"
    path.write_bytes(pickle.dumps(Planted(tmp_path / "ran")))
    for trust in (False, "sklearn.linear_model.Ridge"):
        assert main(given(folder, model=path, trust=trust)) == 2
        assert not (tmp_path / "ran").exists()
    said = capsys.readouterr().err
    assert "net.pkl is a pickle: loading it runs whatever code it holds." in said
    assert "trusted as a whole or not at all" in said
    assert main(given(folder, model=path)) == 2
    assert (tmp_path / "ran").exists()


def test_types_of_skops_are_listed_and_refused(folder, tmp_path, capsys):
    skops = pytest.importorskip("skops.io")
    path = tmp_path / "net.skops"
    skops.dump(joblib.load(folder / "net.pkl"), path)
    unknown = skops.get_untrusted_types(file=path)
    assert unknown
    for trust in (False, "builtins.print", ",".join(unknown[1:])):
        assert main(given(folder, model=path, trust=trust, method="GradDot")) == 2
        said = capsys.readouterr().err
        assert f"--trust {','.join(unknown)}." in said
        assert re.search(rf"does not know to be safe: {re.escape(unknown[0])}", said)
    assert main(given(folder, model=path, trust=",".join(unknown), method="GradDot")) == 0
    safe = tmp_path / "safe.skops"
    X, y = load_breast_cancer(return_X_y=True)
    skops.dump(LogisticRegression(max_iter=1000).fit(X[:70, :3] / X[:70, :3].std(0), y[:70]), safe)
    assert main(given(folder, model=safe, trust=False, target="none")) == 2
    assert "--target must be" in capsys.readouterr().err


# ---- types of columns -----------------------------------------------------------------------


@pytest.fixture
def zips(tmp_path):
    """Codes with leading zeros, in a model of codes; the test rows hold digits alone."""
    rng = np.random.default_rng(0)
    train = pd.DataFrame(
        {"zip": rng.choice(["01234", "04321", "98765"], 30), "x": rng.normal(size=30)}
    )
    train["y"] = train["x"] + (train["zip"] == "01234") + 0.1 * rng.normal(size=30)
    test = train[:6].drop(columns="y")
    encoder = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["zip"]), remainder="passthrough"
    )
    model = make_pipeline(encoder, Ridge()).fit(train[["zip", "x"]], train["y"])
    joblib.dump(model, tmp_path / "model.pkl")
    train.to_csv(tmp_path / "train.csv", index=False)
    test.to_csv(tmp_path / "test.csv", index=False)
    return tmp_path, GradDot(model).fit(train[["zip", "x"]], train["y"]).transform(test)


def arguments(path, **changes):
    files = {"model": path / "model.pkl", "train": path / "train.csv", "test": path / "test.csv"}
    found = given(path, **{**files, "target": "y", "method": "GradDot", **changes})
    place = found.index("--index")
    return found[:place] + found[place + 2 :]


def test_leading_zeros(zips, capsys):
    path, expected = zips
    out = path / "scores.npy"
    assert main(arguments(path, out=out)) == 2  # scikit-learn cannot compare numbers with codes
    said = capsys.readouterr().err
    assert re.search(r"train.csv: numbers in column 'zip' begin with zeros.*--dtype zip=str", said)
    assert main(arguments(path, out=out, dtype="zip=str")) == 0
    assert "zeros" not in capsys.readouterr().err
    np.testing.assert_allclose(np.load(out), expected, rtol=1e-12)


def test_test_rows_have_the_types_of_training_rows(zips, capsys):
    """A training column that is text makes text of the test column."""
    path, expected = zips
    train = pd.read_csv(path / "train.csv", dtype={"zip": str})
    train.loc[29, "zip"] = "A123"
    train.to_csv(path / "train.csv", index=False)
    model = joblib.load(path / "model.pkl").fit(train[["zip", "x"]], train["y"])
    joblib.dump(model, path / "model.pkl")
    test = train[:6][["zip", "x"]]
    expected = GradDot(model).fit(train[["zip", "x"]], train["y"]).transform(test)
    assert main(arguments(path, out=path / "scores.npy")) == 0
    np.testing.assert_allclose(np.load(path / "scores.npy"), expected, rtol=1e-12)
    assert not capsys.readouterr().err
    train.assign(zip=range(30), x=range(30)).to_csv(path / "train.csv", index=False)
    test.assign(zip=["1.5", "2", "3", "4", "5", "6"], x=list("abcdef")).to_csv(
        path / "test.csv", index=False
    )
    main(arguments(path))
    said = capsys.readouterr().err
    assert re.search(
        r"--test: column 'zip' is int64 in .*train.csv and float64 in .*test.csv", said
    )
    assert re.search(r"--test: column 'x' is int64 in .* and (str|object) in", said)


@pytest.mark.parametrize("values", ["AB", "CDA"])
def test_categories_have_the_same_codes(tmp_path, capsys, values):
    pd.DataFrame({"site": list("ABC")}).to_csv(tmp_path / "train.csv", index=False)
    pd.DataFrame({"site": list(values)}).to_csv(tmp_path / "test.csv", index=False)
    paths = (str(tmp_path / name) for name in ("train.csv", "test.csv"))
    _, test = read_tables(*paths, None, {"site": "category"})
    assert list(test["site"]) == list(values)
    assert list(test["site"].cat.codes) == ["ABCD".index(one) for one in values]
    assert ("holds categories that" in capsys.readouterr().err) == ("D" in values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"",
            r"train.csv cannot be read \(EmptyDataError: .*\)\. It must begin with a line of col",
        ),
        (
            b"a,b\n1,2\n1,2,3\n",
            r"train.csv cannot be read \(ParserError: .*\)\. Every line must have",
        ),
        (
            "a,b\n1,\xe9\n".encode("latin-1"),
            r"train.csv cannot be read \(UnicodeDecodeError: .*UTF-8",
        ),
        (b"a,y\n", r"train.csv has no rows\."),
        (
            b"a;y\n1;2\n",
            r"--target must be a column of .*train.csv.* separated by ';'; they must be",
        ),
    ],
)
@pytest.mark.parametrize("table", ["train", "test"])
def test_tables_that_cannot_be_read(zips, capsys, content, message, table):
    path, _ = zips
    (path / f"{table}.csv").write_bytes(content)
    assert main(arguments(path)) == 2
    said = capsys.readouterr().err
    if b";" in content and table == "test":
        message = r"--test: .*test.csv lacks the columns zip, x\. .*separated by ';'"
    assert re.search(message.replace("train.csv", f"{table}.csv"), said)


def test_columns_that_the_model_knows(zips, capsys):
    """Taken by their names: in the model's order, others left out."""
    path, expected = zips
    train = pd.read_csv(path / "train.csv", dtype=str)
    train[["y", "x", "zip"]].assign(who="me").to_csv(path / "train.csv", index=False)
    pd.read_csv(path / "test.csv", dtype=str).assign(who="me").to_csv(
        path / "test.csv", index=False
    )
    assert main(arguments(path, out=path / "scores.npy", dtype="zip=str")) == 0
    np.testing.assert_allclose(np.load(path / "scores.npy"), expected, rtol=1e-12)
    assert "columns that the model was not fitted on: who." in capsys.readouterr().err
    train[["zip", "y"]].to_csv(path / "train.csv", index=False)
    assert main(arguments(path, dtype="zip=str")) == 2
    said = capsys.readouterr().err
    assert re.search(
        r"train.csv lacks columns that the model was fitted on: x\. It has zip\.", said
    )


def test_text_for_a_model_of_numbers(tmp_path, capsys):
    rng = np.random.default_rng(0)
    train = pd.DataFrame(rng.normal(size=(20, 3)), columns=["a", "b", "y"])
    joblib.dump(Ridge().fit(train[["a", "b"]], train["y"]), tmp_path / "model.pkl")
    train.to_csv(tmp_path / "train.csv", index=False, decimal=",")
    train[:3].to_csv(tmp_path / "test.csv", index=False, decimal=",")
    assert main(arguments(tmp_path)) == 2
    said = capsys.readouterr().err
    assert re.search(
        r"could not convert string to float.*train.csv that are no numbers: a, b\.", said
    )


def test_a_bare_module(folder, tmp_path, capsys):
    joblib.dump(torch.nn.Linear(5, 1), tmp_path / "net.pkl")
    assert main(given(folder, model=tmp_path / "net.pkl")) == 2
    assert "Save a fitted skorch net of it" in capsys.readouterr().err


# ---- results to send ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "parquet", "npz"])
def test_results_are_complete(zips, kind):
    """Twice the same names, names that are numbers: all scores come back, under text."""
    path, expected = zips
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    train = pd.read_csv(path / "train.csv", dtype={"zip": str})
    train.assign(id=[5, 5, *range(28)]).to_csv(path / "train.csv", index=False)
    test = pd.read_csv(path / "test.csv", dtype={"zip": str}).assign(id=[7, 7, 8, 9, 10, 11])
    test.to_csv(path / "test.csv", index=False)
    out = path / f"scores.{kind}"
    assert main([*arguments(path, out=out, dtype="zip=str"), "--index", "id"]) == 0
    if kind == "npz":
        with np.load(out, allow_pickle=False) as found:
            np.testing.assert_allclose(found["scores"], expected)
            assert list(found["train"][:3]) == ["5", "5", "0"]
            assert list(found["test"][:3]) == ["7", "7", "8"]
        return
    found = pd.read_csv(out, index_col=0) if kind == "csv" else pd.read_parquet(out)
    np.testing.assert_allclose(found, expected)
    assert list(found.columns[:3]) == ["5", "5 (row 1)", "0"]
    assert list(found.index.astype(str)[:3]) == ["7", "7", "8"]
    assert found.index.name == "id"


def test_cells_that_are_no_formulas(folder, tables, tmp_path):
    names = ["=1+1", "+1 day", "-x", "@a", "\tq", "-5", "+2.5e3", "plain", "1=1"]
    train, test = tables
    train = train.assign(id=[*names, *train["id"][len(names) :]])
    test = test.assign(id=[*names, "last"])
    train.to_csv(tmp_path / "train.csv", index=False)
    test.to_csv(tmp_path / "test.csv", index=False)
    files = {"train": tmp_path / "train.csv", "test": tmp_path / "test.csv", "method": "GradDot"}
    plain, safe = tmp_path / "plain.csv", tmp_path / "safe.csv"
    assert main(given(folder, out=plain, **files)) == 0
    assert main(given(folder, out=safe, **{**files, "safe-csv": True})) == 0
    plain, safe = (pd.read_csv(path, index_col=0) for path in (plain, safe))
    assert list(plain.columns[:9]) == list(plain.index[:9]) == names
    defused = ["'=1+1", "'+1 day", "'-x", "'@a", "'\tq", *names[5:]]
    assert list(safe.columns[:9]) == list(safe.index[:9]) == defused
    np.testing.assert_array_equal(safe, plain)


def test_interrupted(folder, capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("fimoda.cli.attribute", stop)
    assert main(given(folder)) == 130
    assert "fimoda attribute: interrupted" in capsys.readouterr().err


def test_names_that_the_terminal_does_not_print(folder, tables, tmp_path, monkeypatch):
    """Neither signs that control it nor those that it lacks."""
    train, test = tables
    for name, table in (("train", train), ("test", test)):
        ids = [f"\x1b[2J\u540d{i}" for i in range(len(table))]
        table.assign(id=ids).to_csv(tmp_path / f"{name}.csv", index=False)
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", shown)
    files = {"train": tmp_path / "train.csv", "test": tmp_path / "test.csv"}
    assert main(given(folder, method="GradDot", **files)) == 0
    shown.flush()
    said = shown.buffer.getvalue()
    assert b"\x1b" not in said
    assert b"\\ufffd[2J\\u540d0" in said
