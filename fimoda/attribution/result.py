"""The result of `attribute`: scores, what they mean, and the rows behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arrays import row_names
from ..base import BaseAttributor
from ..evaluation.failures import FAILURES
from ..plotting.top_rows import TopRowsDisplay
from ..report.page import report_page
from ..top_rows import TopRows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..evaluation.agreement import AgreementCurve

#: What a notebook shows of a report, and characters of it at most.
_IN_NOTEBOOKS: dict[str, Any] = {"max_test_rows": 10, "max_train_rows": 500, "max_features": 20}
_LONGEST = 1_000_000


@dataclass(frozen=True, repr=False)
class Attribution:
    """Scores, what they mean, and how far to trust them.

    Attributes
    ----------
    scores : ndarray of shape (n_test, n_columns)
        How the behaviour of the model on each test row changes when a training row is left out.
        With the loss as behaviour a positive score says that the training row helps.
    attributor : BaseAttributor
        The fitted attributor.
    reason : str
        The method, and why it was taken.
    seconds : float
        What everything took.
    behaviour, intervention, process : str
        The three facts that define a score: what is measured, what is done to the training rows,
        and what happens to the model then.
    errors : ndarray of shape (n_test, n_columns) or None
        Standard errors over seeds, for methods that have them; NaN where there was one seed, or where a
        row has no score (NaN, too).
    trust : str
        What the method knows about its own error.
    test_names : ndarray of shape (n_test,)
        Index of the test frame, or positions.
    data : dict of str to object
        ``X_train``, ``y_train``, ``X_test`` and ``y_test`` as they were given.
    """

    scores: NDArray[np.float64]
    attributor: BaseAttributor
    reason: str
    seconds: float
    behaviour: str
    intervention: str
    process: str
    errors: NDArray[np.float64] | None
    trust: str
    test_names: NDArray[Any]
    data: dict[str, Any] = field(repr=False)

    def top(self, k: int = 5) -> TopRows:
        """Return the k most helpful and most harmful training rows of each test row.

        Parameters
        ----------
        k : int, default=5
            Rows of each kind.

        Returns
        -------
        TopRows
            With the names of both kinds of rows; printed, it is a table.
        """
        labels, given = self.attributor._told_labels(), row_names(self.data["X_test"])
        names: Any = self.test_names if given is None else given
        columns = self.attributor.train_indices_
        return TopRows.of(self.scores, columns, k, self.errors, labels, names)

    def to_frame(self) -> Any:
        """Return the scores as a pandas DataFrame (n_test, n_columns): test rows by training rows.

        Its index is that of the test frame, its columns are the index of the training frame, with
        labels and level names as they are; without frames, positions and ``row0``, ``row1``, ...
        """
        import pandas as pd

        columns = self.attributor._row_labels()
        return pd.DataFrame(self.scores, index=self._test_labels, columns=columns)

    @property
    def _test_labels(self) -> Any:
        """Return the index of the test frame, with all it knows, or the names."""
        given = self.data["X_test"]
        return given.index if hasattr(given, "iloc") else self.test_names

    def plot(
        self,
        row: Any = 0,
        k: int = 5,
        ax: Axes | None = None,
        *,
        image_shape: Sequence[int] | None = None,
    ) -> TopRowsDisplay:
        """Draw the most helpful and most harmful training rows of one test row; return the display.

        Parameters
        ----------
        row : int or object, default=0
            The test row: an integer is its position, anything else its name.
        k : int, default=5
            Rows of each kind.
        ax : matplotlib Axes, default=None
            Axes to draw on; new ones by default.
        image_shape : tuple of int, default=None
            Draw the rows themselves, as images of (height, width), with 1 or 3 channels before or
            after; by default their scores.
        """
        if image_shape is None:
            return self._display(k).plot(row, ax)
        return self._display(k).plot_images(row, ax, image_shape=image_shape)

    def table(self, row: Any = 0, k: int = 5) -> Any:
        """Return the most helpful and most harmful training rows of one test row, beside it.

        It is a pandas Styler with their scores, targets and values, and how these differ from the test
        row's; `row` and `k` are as in `plot`.
        """
        return self._display(k).style(row)

    def report(
        self,
        path: str | PathLike[str],
        *,
        title: str = "What the training rows did",
        k: int = 5,
        self_influence: ArrayLike | bool = True,
        contamination: float = 0.05,
        agreement: AgreementCurve | None = None,
        groups: Any = None,
        image_shape: Sequence[int] | None = None,
        max_test_rows: int = 50,
        max_train_rows: int = 20_000,
        max_features: int = 50,
    ) -> Path:
        """Write one page of HTML that can be mailed: facts, rows, charts and tables; return its path.

        The page loads nothing and sends nothing; tables are sorted, searched and exported in it. It needs
        Jinja2, matplotlib and pandas (the extra "report": ``pip install ".[report]"`` in the checkout).
        Whatever the data hold is text to it.

        Parameters
        ----------
        path : str or path-like
            File to write, such as ``"report.html"``; an older one is replaced.
        title : str, default="What the training rows did"
            Heading of the page.
        k : int, default=5
            Rows of each kind beside a test row; at most half of the scored rows.
        self_influence : bool or array-like of shape (n_columns,), default=True
            The self-influence of the training rows. True asks the attributor, which some methods train
            again for; False leaves it out.
        contamination : float, default=0.05
            Share of the training rows to look at first, in (0, 0.5]: those of largest self-influence.
        agreement : AgreementCurve, default=None
            Result of `agreement_curve`, to be shown under trust.
        groups : dict or object, default=None
            Effects of groups of training rows by their names; or an object with ``names`` and ``effects``
            (n_groups,) or (n_test, n_groups). Means over test rows are shown.
        image_shape : tuple of int, default=None
            Show the rows as images of (height, width), with 1 or 3 channels before or after; by default only
            rows of three axes, the first or last of 1 or 3, are images.
        max_test_rows, max_train_rows, max_features : int, default=50, 20_000, 50
            The first test rows that are shown; the training rows, those of test rows first, then those to
            look at, repeated ones, and those of large mean scores; and the first features. Of all training
            rows the features are shown as long as they are 200,000 cells at most, else of the first of these.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        FileNotFoundError
            If the folder of `path` does not exist.
        IsADirectoryError
            If `path` is a folder.
        ValueError, TypeError
            If a parameter is none of those above.

        Examples
        --------
        >>> import tempfile
        >>> from sklearn.datasets import load_diabetes
        >>> from sklearn.linear_model import Ridge
        >>> from fimoda import attribute
        >>> X, y = load_diabetes(return_X_y=True)
        >>> found = attribute(Ridge().fit(X[:400], y[:400]), X[:400], y[:400], X[400:], y[400:])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found.report(f"{folder}/report.html", title="Diabetes").name
        'report.html'
        """
        out = Path(path)
        if not out.parent.is_dir():
            raise FileNotFoundError(
                f"path must be in a folder that exists, and there is no {str(out.parent)!r}."
            )
        if out.is_dir():
            raise IsADirectoryError(f"path must be a file, and {str(out)!r} is a folder.")
        page = report_page(
            self,
            title=title,
            k=k,
            self_influence=self_influence,
            contamination=contamination,
            agreement=agreement,
            groups=groups,
            image_shape=image_shape,
            max_test_rows=max_test_rows,
            max_train_rows=max_train_rows,
            max_features=max_features,
        )
        out.write_text(page, encoding="utf-8")
        return out

    def _display(self, k: int) -> TopRowsDisplay:
        return TopRowsDisplay(self.top(k), **self.data)

    @property
    def _facts(self) -> list[tuple[str, str]]:
        shape = f"{self.scores.shape[0]} test rows x {self.scores.shape[1]} training rows"
        return [
            ("scores", f"{shape}, in {self.seconds:.1f} s"),
            ("behaviour", self.behaviour),
            ("intervention", self.intervention),
            ("process", self.process),
            ("method", self.reason),
            ("trust", self.trust),
        ]

    def __repr__(self) -> str:
        return "\n".join(f"{name + ':':14}{text}" for name, text in self._facts)

    def _repr_html_(self) -> str:
        """Return the report in a frame of its own, of few rows; the facts alone where there can be none."""
        try:
            page = report_page(self, self_influence=False, **_IN_NOTEBOOKS)
        except (ImportError, *FAILURES):
            page = ""
        if 0 < len(page) < _LONGEST:
            look = 'title="report of fimoda" style="width:100%;height:36rem;border:0"'
            allowed = "allow-scripts allow-downloads"  # not of the notebook's origin
            return f'<iframe {look} sandbox="{allowed}" srcdoc="{escape(page)}"></iframe>'
        rows = (
            f"<tr><th style='text-align:left'>{name}</th>"
            f"<td style='text-align:left'>{escape(text)}</td></tr>"
            for name, text in self._facts
        )
        return f"<table>{''.join(rows)}</table>"
