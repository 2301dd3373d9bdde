"""The command ``fimoda``: attribution of a saved model from tables on disk."""

from __future__ import annotations

import argparse
import inspect
import sys
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fimoda

from .adapters import default_estimator
from .attribution import attribute
from .attribution.choice import parameters
from .evaluation.comparison import compare_methods

_READERS = {".csv": "read_csv", ".parquet": "read_parquet", ".feather": "read_feather"}

#: Extension of the results, and what writes them.
_WRITERS = {".csv": "to_csv", ".parquet": "to_parquet"}

#: Libraries one of which a kind of file needs.
_ENGINES = {
    ".parquet": ("pyarrow", "fastparquet"), ".feather": ("pyarrow",), ".skops": ("skops",),
}  # fmt: skip


class _UsageError(Exception):
    """Something the user can mend; printed without a traceback."""


#: So are these; ImportError is a library missing for a kind of table.
_MENDABLE = (
    _UsageError, ValueError, TypeError, MemoryError, OSError, FloatingPointError, ImportError,
)  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fimoda",
        description="Which training rows drive which predictions of a model, and how far to trust that.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    demo = commands.add_parser("demo", help="attribute a small network on built-in data")
    demo.add_argument("--budget", type=float, default=20, help="seconds (20)")
    for name, what in (
        ("attribute", "scores of all training rows for all test rows"),
        ("compare", "how well each method agrees with further training on this model"),
    ):
        one = commands.add_parser(
            name,
            help=what,
            description=f"{name.capitalize()}: {what}. Model and tables stay as they are.",
        )
        one.add_argument(
            "--model", required=True, help="fitted model: .skops, or a pickle (.pkl, .joblib)"
        )
        one.add_argument(
            "--train", required=True, help="its training rows: .csv, .parquet, .feather"
        )
        one.add_argument("--test", required=True, help="rows to explain, with the same columns")
        one.add_argument(
            "--target", required=True, help="column to predict; the test table may lack it"
        )
        one.add_argument("--index", help="column that names the rows")
        one.add_argument("--measurement", default="loss", help="loss, margin, log_prob, output")
        one.add_argument("--budget", type=float, default=60, help="seconds (60)")
        one.add_argument("--n-epochs", type=int, help="epochs to look ahead (10)")
        one.add_argument("--jobs", type=int, default=1, help="processes (1); -1: all cores")
        one.add_argument("--seed", type=int, default=0, help="of everything random (0)")
        one.add_argument(
            "--out", help="where to: .csv, .parquet" + ", .npz, .npy" * (name == "attribute")
        )
        if name == "attribute":
            one.add_argument("--method", default="auto", help='"auto", or a class of fimoda')
            one.add_argument("--top", type=int, default=3, help="rows to print of each kind (3)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if all went well, 2 if the user has something to mend.

    Parameters
    ----------
    arguments : sequence of str, default=None
        Those of the process by default.

    Returns
    -------
    status : int
    """
    given = _parser().parse_args(arguments)
    try:
        {"demo": _demo, "attribute": _attribute, "compare": _compare}[given.command](given)
    except _MENDABLE as error:
        print(f"fimoda {given.command}: {error}", file=sys.stderr)
        return 2
    return 0


def _demo(given: argparse.Namespace) -> None:
    X, y = load_breast_cancer(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.1, random_state=0, stratify=y)
    model = make_pipeline(StandardScaler(), default_estimator(y, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it stops before it has converged, as most do
        model.fit(X, y)
    print(f"an MLP on the breast cancer data, accuracy {model.score(X_test, y_test):.3f}\n")
    found = attribute(model, X, y, X_test, y_test, budget=given.budget, random_state=0)
    print(found)
    _print_top(found, 3, range(3))


def _attribute(given: argparse.Namespace) -> None:
    if given.out:
        _check_out(given.out, [*_WRITERS, ".npz", ".npy"])
    asked = {"measurement": given.measurement, "random_state": given.seed}
    asked |= {"n_jobs": given.jobs, "verbose": 1}
    if given.n_epochs is not None:
        asked["n_epochs"] = given.n_epochs
    if given.method == "auto":
        found = attribute(*_read(given), budget=given.budget, **asked)
    else:
        method = _method(given.method, asked)
        found = attribute(*_read(given), method=method)
    print(found)
    _print_top(found, given.top, range(min(5, len(found.scores))))
    if given.out:
        _write(found, given.out)


def _write(found: Any, path: str) -> None:
    """Scores of an attribution, with the names of rows and columns (but for .npy)."""
    frame = found.to_frame()
    frame.columns = frame.columns.map(str)
    suffix = Path(path).suffix
    if suffix == ".npy":
        np.save(path, found.scores)
    elif suffix == ".npz":
        known = {} if found.errors is None else {"errors": found.errors}
        test, train = (np.array(names, dtype=str) for names in (frame.index, frame.columns))
        np.savez(path, scores=found.scores, test=test, train=train, **known)
    else:
        getattr(frame, _WRITERS[suffix])(path)


def _compare(given: argparse.Namespace) -> None:
    if given.out:
        _check_out(given.out, list(_WRITERS))
    model, X, y, X_test, y_test = _read(given)
    found = compare_methods(
        model,
        X,
        y,
        X_test,
        y_test,
        budget=given.budget,
        epochs=sorted({1, 10 if given.n_epochs is None else given.n_epochs}),
        measurement=given.measurement,
        random_state=given.seed,
        n_jobs=given.jobs,
        verbose=1,
    )
    print(found)
    if given.out:
        getattr(found.to_frame(), _WRITERS[Path(given.out).suffix])(given.out)


def _print_top(found: Any, k: int, tests: Sequence[int]) -> None:
    top = found.top(min(k, found.scores.shape[1]))
    names = found.attributor.get_feature_names_out()
    place = {int(row): j for j, row in enumerate(found.attributor.train_indices_)}
    for z in tests:
        print(f"\ntest row {found.test_names[z]}")
        for kind, rows, scores in (
            ("helpful", top.helpful[z], top.helpful_scores[z]),
            ("harmful", top.harmful[z], top.harmful_scores[z]),
        ):
            shown = (
                f"{names[place[int(i)]]} ({s:+.3g})" for i, s in zip(rows, scores, strict=True)
            )
            print(f"  {kind}: {', '.join(shown)}")


def _method(name: str, asked: dict[str, Any]) -> fimoda.BaseAttributor:
    """The attributor of that name with those of the parameters that it has."""
    classes = {
        one.__name__: one
        for one in map(vars(fimoda).get, fimoda.__all__)
        if isinstance(one, type) and issubclass(one, fimoda.BaseAttributor)
        if not inspect.isabstract(one)
    }
    if name not in classes:
        raise _UsageError(f'--method must be "auto" or one of {", ".join(classes)}; got {name!r}.')
    known = parameters(classes[name])
    if "n_epochs" in asked and "n_epochs" not in known:
        raise _UsageError(f"--n-epochs: {name} does not look ahead. Leave it out.")
    return classes[name](**{k: v for k, v in asked.items() if k in known})


def _read(given: argparse.Namespace) -> tuple[Any, Any, Any, Any, Any]:
    """The model, and rows and targets of both tables."""
    model = _load(given.model)
    train, test = (_table(path, given.index) for path in (given.train, given.test))
    if given.target not in train:
        raise _UsageError(
            f"--target must be a column of {given.train}, one of {', '.join(map(str, train))}; got "
            f"{given.target!r}."
        )
    X, y = train.drop(columns=given.target), train[given.target]
    missing = [column for column in X if column not in test]
    if missing:
        raise _UsageError(f"--test: {given.test} lacks the columns {', '.join(map(str, missing))}.")
    y_test = test[given.target] if given.target in test else None
    return model, X, y, test[list(X)], y_test


def _table(path: str, index: str | None) -> Any:
    try:
        import pandas as pd
    except ImportError:
        raise _UsageError('reading tables needs pandas: pip install "fimoda[pandas]".') from None
    suffix = Path(path).suffix
    if suffix not in _READERS:
        raise _UsageError(f"{path}: tables must be {', '.join(_READERS)}, got {suffix!r}.")
    _check_engine(path)
    if not Path(path).is_file():
        raise _UsageError(f"there is no file {path}.")
    table = getattr(pd, _READERS[suffix])(path)
    if index is None:
        return table
    if index not in table:
        raise _UsageError(f"--index must be a column of {path}, got {index!r}.")
    return table.set_index(index)


def _load(path: str) -> Any:
    if not Path(path).is_file():
        raise _UsageError(f"--model: there is no file {path}.")
    _check_engine(path)
    load = _load_skops if path.endswith(".skops") else _load_pickle
    try:
        return load(path)
    except Exception as error:  # an unpickler raises whatever it meets
        raise _UsageError(
            f"--model: {path} cannot be loaded ({type(error).__name__}: {error}). It must hold a fitted "
            "model, saved by joblib.dump, pickle.dump or skops, and be loaded with the libraries "
            "that it was saved with."
        ) from error


def _load_skops(path: str) -> Any:
    from skops import io

    unknown = io.get_untrusted_types(file=path)
    if unknown:
        _warn(f"{path} holds {', '.join(unknown)}")
    return io.load(path, trusted=unknown)


def _load_pickle(path: str) -> Any:
    _warn(f"{path} is a pickle")
    return joblib.load(path)


def _warn(what: str) -> None:
    print(f"{what}: loading it runs code. Load only what you trust.", file=sys.stderr)


def _check_out(path: str, known: list[str]) -> None:
    if Path(path).suffix not in known:
        raise _UsageError(f"--out must end in {', '.join(known)}, got {path!r}.")
    if not Path(path).resolve().parent.is_dir():
        raise _UsageError(f"--out: there is no directory {Path(path).resolve().parent}.")
    _check_engine(path)


def _check_engine(path: str) -> None:
    needed = _ENGINES.get(Path(path).suffix, ())
    if needed and not any(map(find_spec, needed)):
        raise _UsageError(
            f"{path}: {Path(path).suffix} files need {needed[0]}: pip install {needed[0]}."
        )


if __name__ == "__main__":
    sys.exit(main())
