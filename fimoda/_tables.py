"""Tables of training and test rows on disk, for the command line."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ._files import UsageError, check_engine, note, suffix

#: Kinds of tables, and what reads them.
READERS = {".csv": "read_csv", ".parquet": "read_parquet", ".feather": "read_feather"}

#: What to do about a table that cannot be read.
_ADVICE = {
    "ParserError": "Every line must have as many cells as the first, and every quote its partner.",
    "EmptyDataError": "It must begin with a line of column names.",
    "UnicodeDecodeError": "Save it as UTF-8.",
}

#: Lines of a .csv that are searched for numbers that begin with zeros.
_SEARCHED = 10_000


def check_dtypes(asked: Collection[str]) -> dict[str, Any]:
    """Return the types of columns from texts such as ``zip=str``."""
    try:
        import pandas as pd
    except ImportError:
        raise UsageError("reading tables needs pandas: pip install pandas.") from None
    found = {}
    for one in asked:
        column, _, name = one.rpartition("=")
        try:
            found[column] = pd.api.types.pandas_dtype(name)
        except TypeError:
            found.pop(column, None)
        if not column or column not in found:
            raise UsageError(
                f"--dtype must be a column and a type of pandas, such as zip=str, got {one!r}."
            )
    return found


def read_table(path: str, index: str | None, dtypes: Mapping[str, Any]) -> Any:
    """Read a table, whose rows the column `index` names.

    `dtypes` are types of columns of a .csv file; those of others pandas finds.
    """
    import pandas as pd

    if suffix(path) not in READERS:
        raise UsageError(f"{path}: tables must be {', '.join(READERS)}, got {Path(path).suffix!r}.")
    check_engine(path)
    if not Path(path).is_file():
        raise UsageError(f"there is no file {path}.")
    # columns are not read in parts, whose types could differ
    options = {"dtype": dict(dtypes), "low_memory": False} if suffix(path) == ".csv" else {}
    try:
        table = getattr(pd, READERS[suffix(path)])(path, **options)
    except (ValueError, TypeError, OSError, ImportError, MemoryError, OverflowError) as error:
        kind, said = type(error).__name__, " ".join(str(error).split())
        advice = f" {_ADVICE[kind]}" if kind in _ADVICE else ""
        raise UsageError(f"{path} cannot be read ({kind}: {said}).{advice}") from error
    if not len(table):
        raise UsageError(f"{path} has no rows.")
    if index is None:
        return table
    if index not in table:
        raise UsageError(f"--index must be a column of {path}, got {index!r}.{separated(table)}")
    return table.set_index(index)


def read_tables(
    train_path: str, test_path: str, index: str | None, dtypes: Mapping[str, Any]
) -> tuple[Any, Any]:
    """Read training and test rows; a column has one type in both, where its values allow it."""
    import pandas as pd

    train = read_table(train_path, index, dtypes)
    columns = train.reset_index() if index else train
    if dtypes:
        if suffix(train_path) != ".csv":
            raise UsageError(
                f"--dtype is for .csv files; {train_path} holds the types of its columns."
            )
        unknown = [column for column in dtypes if column not in columns]
        if unknown:
            raise UsageError(
                f"--dtype: {train_path} has no column {unknown[0]!r}, only {_listed(columns)}."
            )
    if suffix(train_path) == ".csv":
        _tell_of_zeros(train_path, columns)
    text = {
        column: columns[column].dtype
        for column in columns
        if pd.api.types.infer_dtype(columns[column], skipna=True) == "string"
    }
    test = read_table(test_path, index, {**text, **dtypes})
    for column in test.columns.intersection(train.columns):
        test[column] = _as_in(train[column], test[column], train_path, test_path)
    return train, test


def _as_in(train: Any, test: Any, train_path: str, test_path: str) -> Any:
    """Return a column of the test table in the type of the training table, if that keeps its values."""
    import pandas as pd

    if train.dtype == test.dtype:
        return test
    if isinstance(train.dtype, pd.CategoricalDtype):  # codes must mean the same in both
        known = train.cat.categories
        new = [one for one in pd.unique(test.dropna()) if one not in known]
        if new:
            note(
                f"--test: column {test.name!r} of {test_path} holds categories that {train_path} lacks: "
                f"{', '.join(map(str, new))}."
            )
        return test.astype(pd.CategoricalDtype([*known, *new], train.cat.ordered))
    try:
        same = test.astype(train.dtype)
        known = test.notna()
        if same.notna().equals(known) and (same[known].astype(object) == test[known]).all():
            return same
    except (ValueError, TypeError):
        pass
    note(
        f"--test: column {test.name!r} is {train.dtype} in {train_path} and {test.dtype} in {test_path}, "
        "with values that do not allow a change of type."
    )
    return test


def _tell_of_zeros(path: str, table: Any) -> None:
    """Say which numbers of a .csv begin with zeros, as zip codes do."""
    import pandas as pd

    numbers = [one for one in table if pd.api.types.is_numeric_dtype(table[one])]
    as_text = pd.read_csv(path, dtype=str, nrows=_SEARCHED)
    for column in as_text.columns.intersection(numbers):
        if as_text[column].str.fullmatch(r"0\d+").any():
            note(
                f"{path}: numbers in column {column!r} begin with zeros, which are lost. If they are "
                f"codes, add --dtype {column}=str."
            )


def with_labels(table: Any, target: str, path: str, model: Any) -> Any:
    """Return a table whose target has the labels again that pandas takes for missing values.

    Only text (.csv) has such labels: "NA", "None" and "null" may be some, as the model's ``classes_`` tell.
    """
    import numpy as np
    import pandas as pd

    labels = [one for one in getattr(model, "classes_", ()) if isinstance(one, str)]
    if suffix(path) != ".csv" or target not in table or not labels:
        return table
    missing = table[target].isna().to_numpy()
    if not missing.any():
        return table
    words = pd.read_csv(path, usecols=[target], dtype=str, keep_default_na=False)[target].to_numpy()
    values = table[target].astype(object).to_numpy(copy=True)
    found = missing & np.isin(words.astype(str), labels)
    values[found] = words[found]
    return table.assign(**{target: values})


def check_target(table: Any, target: str, path: str) -> None:
    """Raise unless a table that was read from `path` has the target, with a value in each row."""
    if target not in table:
        raise UsageError(
            f"--target must be a column of {path}, one of {_listed(table)}; got {target!r}."
            f"{separated(table)}"
        )
    missing = int(table[target].isna().sum())
    if missing:
        raise UsageError(f"--target: {missing} rows of {path} have no value in column {target!r}.")


def _listed(table: Any) -> str:
    return ", ".join(map(str, table))


def as_fitted(model: Any, X: Any, path: str) -> Any:
    """Return the columns that a model was fitted on, in its order, where it knows their names."""
    known = getattr(model, "feature_names_in_", None)
    if known is None:
        unnamed = [column for column in X if str(column).startswith("Unnamed:")]
        if unnamed and getattr(model, "n_features_in_", X.shape[1]) == X.shape[1] - len(unnamed):
            raise UsageError(
                f"--train: {path} has a column {unnamed[0]!r} that the model was not fitted on; it looks "
                f"like an index that was saved beside the columns. Add --index {str(unnamed[0])!r}."
            )
        return X
    lacking = [column for column in known if column not in X]
    if lacking:
        raise UsageError(
            f"--train: {path} lacks columns that the model was fitted on: {', '.join(lacking)}. It has "
            f"{_listed(X)}.{separated(X)}"
        )
    besides = [column for column in X if column not in known]
    if besides:
        note(
            f"{path}: left out are columns that the model was not fitted on: {', '.join(besides)}."
        )
    return X[list(known)]


def columns_of(model: Any, X: Any) -> Any:
    """Return the columns that a model takes: a list of all, or the only one, if it takes rows of text."""
    from pandas.api import types

    knows_columns = hasattr(model, "feature_names_in_") or hasattr(model, "n_features_in_")
    if knows_columns or X.shape[1] != 1 or types.infer_dtype(X.iloc[:, 0]) != "string":
        return list(X)
    return X.columns[0]


@contextmanager
def naming_text(X: Any, path: str) -> Iterator[None]:
    """Add the columns that hold text to an error about text where numbers are needed."""
    from pandas.api import types

    try:
        yield
    except ValueError as error:
        frame = X.to_frame() if X.ndim == 1 else X
        text = [one for one in frame if not types.is_numeric_dtype(frame[one])]
        if "could not convert string" not in str(error) or not text:
            raise
        raise UsageError(
            f"{error}. Columns of {path} that are no numbers: {', '.join(map(str, text))}. Numbers must "
            "be written as 1234.5 is, and a model must encode text itself, in a Pipeline."
        ) from error


def separated(table: Any) -> str:
    """Return a hint for a table of one column that seems to be separated by another sign, or nothing."""
    found = [sign for sign in (";", "\t", "|") if all(sign in str(column) for column in table)]
    return (
        f" Its cells seem to be separated by {found[0]!r}; they must be by commas." if found else ""
    )
