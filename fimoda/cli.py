"""The command ``fimoda``: attribution of a saved model from tables on disk."""

from __future__ import annotations

import argparse
import inspect
import sys
import warnings
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fimoda

from ._files import (
    WRITERS,
    UsageError,
    check_out,
    load_model,
    note,
    suffix,
    without_formulas,
    write_whole,
)
from ._tables import (
    as_fitted,
    check_dtypes,
    check_target,
    columns_of,
    naming_text,
    read_tables,
    separated,
    with_labels,
)
from .adapters import default_estimator
from .attribution.call import attribute
from .evaluation.comparison import compare_methods
from .report.cells import Cells
from .report.page import require_libraries
from .top_rows import distinct

#: Errors that the user can mend; ImportError is a library missing for a kind of table.
_MENDABLE = (
    UsageError, ValueError, TypeError, MemoryError, OSError, FloatingPointError, ImportError,
)  # fmt: skip


def number(text: str) -> float:
    """Return the number that a text stands for, a whole one as an integer."""
    found = float(text)
    return int(found) if found.is_integer() else found


#: Options of both `attribute` and `compare`.
_OPTIONS: dict[str, dict[str, Any]] = {
    "model": {"required": True, "help": "fitted model: .skops, or a pickle (.pkl, .joblib)"},
    "trust": {
        "nargs": "?",
        "const": "",
        "metavar": "TYPE,...",
        "help": "load the model although that may run code; of a .skops file, only these types",
    },
    "train": {"required": True, "help": "its training rows: .csv, .parquet, .feather"},
    "test": {"required": True, "help": "rows to explain, with the same columns"},
    "target": {"required": True, "help": "column to predict; the test table may lack it"},
    "index": {"help": "column that names the rows"},
    "dtype": {
        "action": "append",
        "default": [],
        "metavar": "COLUMN=TYPE",
        "help": "type of a column of .csv tables, such as zip=str; may be repeated",
    },
    "measurement": {"default": "loss", "help": "loss, margin, log_prob, output"},
    "budget": {"type": float, "default": 60, "help": "seconds (60)"},
    "n-epochs": {"type": number, "help": "epochs to look ahead (10), or rounds of boosting"},
    "jobs": {"type": int, "default": 1, "help": "processes (1); -1: all cores"},
    "seed": {"type": int, "default": 0, "help": "of everything random (0)"},
    "overwrite": {"action": "store_true", "help": "replace an older file of --out"},
    "safe-csv": {
        "action": "store_true",
        "help": "put ' before names that a spreadsheet would take for formulas",
    },
}


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
        ("report", "what drives each test row, as one page of HTML"),
        (
            "compare",
            "how well each method agrees with training this model further (forests: again)",
        ),
    ):
        about = f"{name.capitalize()}: {what}. Model and tables stay as they are."
        add = commands.add_parser(name, help=what, description=about).add_argument
        for option, settings in _OPTIONS.items():
            add(f"--{option}", **settings)
        kinds = ".csv, .parquet" + ", .npz, .npy" * (name == "attribute")
        kinds = ".html" if name == "report" else kinds
        add("--out", required=name == "report", help=f"where to: {kinds}")
        if name != "compare":
            add("--method", default="auto", help='"auto", or a class of fimoda')
            shown, k = ("show", 5) if name == "report" else ("print", 3)
            add("--top", type=int, default=k, help=f"rows to {shown} of each kind ({k})")
        if name == "report":
            add("--title", help="heading of the page")
            add("--image-shape", metavar="H,W", help="rows are images: height and width, channels")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, that of the process by default, and return the status.

    It is 0 if all went well, 2 if the user has something to mend, and 130 after an interruption.
    """
    given = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a name that it cannot print must not end it
            stream.reconfigure(errors="backslashreplace")
    try:
        _COMMANDS[given.command](given)
    except _MENDABLE as error:
        note(f"fimoda {given.command}: {error}")
        return 2
    except KeyboardInterrupt:
        note(f"fimoda {given.command}: interrupted")
        return 130
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
    print(f"\n{found.top(3)}")


def _attribute(given: argparse.Namespace) -> None:
    _check(given, [*WRITERS, ".npz", ".npy"])
    found = _found(given)
    try:
        _write(found, given)
    finally:  # what was computed is not lost with a full disk, nor with a closed pipe
        print(found)
        print(f"\n{found.top(min(given.top, found.scores.shape[1]))}")


def _report(given: argparse.Namespace) -> None:
    _check(given, [".html"])
    require_libraries()
    options: dict[str, Any] = {} if given.title is None else {"title": given.title}
    if given.image_shape is not None:
        try:
            options["image_shape"] = [int(size) for size in given.image_shape.split(",")]
        except ValueError:
            raise UsageError(
                f"--image-shape must be numbers such as 28,28, got {given.image_shape!r}."
            ) from None
    found = _found(given, options.get("image_shape"))
    try:
        write_whole(given.out, lambda part: found.report(part, k=given.top, **options))
    finally:
        print(found)


def _found(given: argparse.Namespace, image_shape: Any = None) -> fimoda.Attribution:
    """Return the attribution that was asked for, of rows that are images if they have a shape."""
    if given.top < 1:
        raise UsageError(f"--top must be 1 or more, got {given.top}.")
    asked = _asked(given)
    if given.n_epochs is not None:
        asked["n_epochs"] = given.n_epochs
    if given.method == "auto":
        asked["budget"] = given.budget
    else:
        asked = {"method": _method(given.method, asked)}
    model, *rows = _read(given)
    if image_shape is not None:
        Cells(rows[0], rows[2], image_shape, 1)  # raises where they have not
    with naming_text(rows[0], given.train):
        return attribute(model, *rows, **asked)


def _asked(given: argparse.Namespace) -> dict[str, Any]:
    """Return the parameters that both commands and all methods share."""
    asked = {"measurement": given.measurement, "random_state": given.seed}
    return asked | {"n_jobs": given.jobs, "verbose": 1}


def _check(given: argparse.Namespace, kinds: list[str]) -> None:
    """Raise for options that cannot be meant, and for results that could not be written."""
    if given.jobs == 0:
        raise UsageError("--jobs must be a number of processes, or -1 for all cores; got 0.")
    for name, value in {"budget": given.budget, "n-epochs": given.n_epochs}.items():
        if value is not None and not value > 0:
            raise UsageError(f"--{name} must be a number above 0, got {value}.")
    if not 0 <= given.seed < 2**32:
        raise UsageError(f"--seed must be from 0 to {2**32 - 1}, got {given.seed}.")
    if given.index == given.target:
        raise UsageError(f"--index and --target must be two columns, got {given.index!r} for both.")
    if given.out is not None:
        read = {f"--{name}": getattr(given, name) for name in ("model", "train", "test")}
        check_out(given.out, kinds, read, given.overwrite)
    if given.safe_csv and suffix(given.out or "") != ".csv":
        raise UsageError(f"--safe-csv is for a --out that ends in .csv, got {given.out!r}.")


def _write(found: Any, given: argparse.Namespace) -> None:
    """Write the scores of an attribution, with the names of rows and columns (but for .npy)."""
    if given.out is None:
        return
    frame = found.to_frame()
    names = found.attributor.get_feature_names_out()
    if suffix(given.out) == ".npy":
        write_whole(given.out, lambda part: np.save(part, found.scores))
    elif suffix(given.out) == ".npz":
        known = {} if found.errors is None else {"errors": found.errors}
        known |= {"test": np.array(frame.index, dtype=str), "train": np.array(names, dtype=str)}
        write_whole(given.out, lambda part: np.savez(part, scores=found.scores, **known))
    else:
        frame.columns = distinct(names, found.attributor.train_indices_)
        frame.index = frame.index.map(str).rename(frame.index.name or "test row")
        _write_table(frame, given)


def _write_table(frame: Any, given: argparse.Namespace) -> None:
    if given.safe_csv:
        frame = frame.rename(index=without_formulas, columns=without_formulas)
        frame = frame.rename_axis(index=without_formulas(frame.index.name))
    write_whole(given.out, getattr(frame, WRITERS[suffix(given.out)]))


def _compare(given: argparse.Namespace) -> None:
    _check(given, list(WRITERS))
    model, *rows = _read(given)
    with naming_text(rows[0], given.train):
        epochs = sorted({1, 10 if given.n_epochs is None else given.n_epochs})
        found = compare_methods(model, *rows, budget=given.budget, epochs=epochs, **_asked(given))
    try:
        if given.out is not None:
            _write_table(found.to_frame(), given)
    finally:
        print(found)


_COMMANDS = {"demo": _demo, "attribute": _attribute, "report": _report, "compare": _compare}


def _method(name: str, asked: dict[str, Any]) -> fimoda.BaseAttributor:
    """Return the attributor of that name with those of the parameters that it has."""
    classes = {
        one.__name__: one
        for one in map(vars(fimoda).get, fimoda.__all__)
        if isinstance(one, type) and issubclass(one, fimoda.BaseAttributor)
        if not inspect.isabstract(one)
    }
    if name not in classes:
        raise UsageError(f'--method must be "auto" or one of {", ".join(classes)}; got {name!r}.')
    known = classes[name]._known_parameters()
    if "n_epochs" in asked and "n_rounds" in known:
        asked["n_rounds"] = asked.pop("n_epochs")
    if "n_epochs" in asked and "n_epochs" not in known:
        raise UsageError(f"--n-epochs: {name} does not look ahead. Leave it out.")
    return classes[name](**{k: v for k, v in asked.items() if k in known})


def _read(given: argparse.Namespace) -> tuple[Any, Any, Any, Any, Any]:
    """Return the model, and rows and targets of both tables."""
    dtypes = check_dtypes(given.dtype)
    model = load_model(given.model, given.trust)
    train, test = read_tables(given.train, given.test, given.index, dtypes)
    train = with_labels(train, given.target, given.train, model)
    check_target(train, given.target, given.train)
    X, y = as_fitted(model, train.drop(columns=given.target), given.train), train[given.target]
    missing = [column for column in X if column not in test]
    if missing:
        raise UsageError(
            f"--test: {given.test} lacks the columns {', '.join(map(str, missing))}.{separated(test)}"
        )
    y_test = None
    if given.target in test:
        test = with_labels(test, given.target, given.test, model)
        check_target(test, given.target, given.test)
        y_test = test[given.target]
    columns = columns_of(model, X)
    return model, X[columns], y, test[columns], y_test


if __name__ == "__main__":
    sys.exit(main())
