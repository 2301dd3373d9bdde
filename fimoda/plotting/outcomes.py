"""Distributions of outcomes, drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import gaussian_kde

from ..top_rows import shortened
from ..training.outcome_samples import OutcomeSamples
from ._base import LITERAL, Display, legend, line_at_zero, upright_at_zero

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class OutcomeDensityDisplay(Display):
    """Densities of a measurement over trainings, with all rows and without one.

    Parameters
    ----------
    samples : OutcomeSamples or dict of str to OutcomeSamples
        For example ``{"measured": ..., "predicted": ...}``; all rows are drawn from the first.
    row : int
        The left-out row, one of ``samples.rows``.
    test_row : int, default=0
        Number of the test row.

    Examples
    --------
    >>> import numpy as np
    >>> from fimoda import OutcomeDensityDisplay, OutcomeSamples
    >>> full = np.random.default_rng(0).normal(size=(50, 1))
    >>> samples = OutcomeSamples(full, 2 * full[..., None])
    >>> OutcomeDensityDisplay({"predicted": samples}, row=0).plot().ax_.get_ylabel()
    'density over trainings'
    """

    def __init__(
        self, samples: OutcomeSamples | Mapping[str, OutcomeSamples], row: int, test_row: int = 0
    ):
        self.samples = {"": samples} if isinstance(samples, OutcomeSamples) else dict(samples)
        if not self.samples:
            raise ValueError("samples must hold at least one OutcomeSamples, got none.")
        self.row = row
        self.test_row = test_row

    def plot(self, ax: Axes | None = None, bandwidth: float | None = None) -> Self:
        """Draw a filled density for all rows, and a line for each kind of samples without the row.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; new ones by default.
        bandwidth : float, default=None
            Width of the kernels, in standard deviations of the samples; Scott's rule by default,
            which is too wide for several peaks.
        """
        ax = self._on(ax)
        first = next(iter(self.samples.values()))
        full = first.full[:, self.test_row]
        curves = {
            name: one.of_rows([self.row]).left_out[:, self.test_row, 0]
            for name, one in self.samples.items()
        }
        every = np.concatenate([full, *curves.values()])
        margin = 0.15 * np.ptp(every) or 1.0
        grid = np.linspace(every.min() - margin, every.max() + margin, 400)
        shade = _density(full, grid, bandwidth)
        drawn: list[Any] = [ax.fill_between(grid, shade, color="0.85", label="all rows")]
        top = shade.max()
        for name, sample in curves.items():
            line = _density(sample, grid, bandwidth)
            drawn += ax.plot(grid, line, label=f"without row {self.row}" + f", {name}" * bool(name))
            top = max(top, line.max())
        ax.set_xlabel(shortened(first.measurement or "measurement"), **LITERAL)
        ax.set_ylabel("density over trainings")
        ax.set_ylim(0, top * (1.1 + 0.08 * (1 + len(curves))))  # room for the legend
        names = [one.get_label() for one in drawn]
        legend(ax, drawn, names, frameon=False, loc="upper left", fontsize="small")
        return self


class MeanVarianceDisplay(Display):
    """Effect of each row on the mean of a measurement against its effect on the variance.

    Parameters
    ----------
    samples : OutcomeSamples
        Measured or predicted.
    test_row : int, default=0
        Number of the test row.

    Examples
    --------
    >>> import numpy as np
    >>> from fimoda import MeanVarianceDisplay, OutcomeSamples
    >>> full = np.random.default_rng(0).normal(size=(50, 1))
    >>> samples = OutcomeSamples(full, np.stack([full + 1, 2 * full], -1))
    >>> MeanVarianceDisplay(samples).plot().ax_.get_xlabel()
    'effect on the mean'
    """

    def __init__(self, samples: OutcomeSamples, test_row: int = 0):
        self.samples = samples
        self.test_row = test_row

    def plot(self, ax: Axes | None = None, n_named: int = 3) -> Self:
        """Draw a point for each row.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; new ones by default.
        n_named : int, default=3
            How many rows with the largest effect on each are named.
        """
        ax = self._on(ax)
        mean = self.samples.distance("mean")[self.test_row]
        variance = self.samples.distance("variance")[self.test_row]
        line_at_zero(ax)
        upright_at_zero(ax)
        ax.scatter(mean, variance, s=12)
        named = {int(k) for one in (mean, variance) for k in np.argsort(-np.abs(one))[:n_named]}
        aside: dict[str, Any] = {"xytext": (4, 4), "textcoords": "offset points"}
        for k in sorted(named):
            ax.annotate(str(self.samples.rows[k]), (mean[k], variance[k]), **aside)
        ax.set(xlabel="effect on the mean", ylabel="effect on the variance")
        return self


def _density(
    sample: NDArray[np.float64], grid: NDArray[np.float64], bandwidth: float | None
) -> NDArray[np.float64]:
    """Return the kernel density; of samples that are all alike, a narrow peak."""
    if np.ptp(sample) > 0:
        return np.asarray(gaussian_kde(sample, bandwidth)(grid))
    width = 2 * (grid[1] - grid[0])
    return np.exp(-0.5 * ((grid - sample[0]) / width) ** 2) / (width * np.sqrt(2 * np.pi))
