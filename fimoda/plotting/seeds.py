"""How many seeds further training needs, drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from ..attributors.further_training_curve import FurtherTrainingCurve
from ._base import Display

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class SeedsNeededDisplay(Display):
    """Noise of the mean of so many seeds, beside the size of the scores.

    Parameters
    ----------
    seeds : ndarray of shape (n_numbers,)
        Numbers of seeds.
    noise : ndarray of shape (n_epochs, n_numbers)
        Standard error of the mean of so many seeds, as part of the scores' size (root mean squares
        over test rows and left-out rows).
    epochs : ndarray of shape (n_epochs,)
        Horizons.

    Examples
    --------
    >>> import numpy as np
    >>> from fimoda import SeedsNeededDisplay
    >>> seeds = np.array([1, 4])
    >>> display = SeedsNeededDisplay(seeds, np.array([[0.4, 0.2]]), np.array([10])).plot()
    >>> display.ax_.get_xlabel()
    'seeds'
    """

    def __init__(
        self, seeds: NDArray[np.int64], noise: NDArray[np.float64], epochs: NDArray[np.int64]
    ):
        self.seeds = seeds
        self.noise = noise
        self.epochs = epochs

    @classmethod
    def from_curve(cls, curve: FurtherTrainingCurve, max_seeds: int = 50) -> Self:
        """Take the spread over the seeds of a curve, as :math:`\\sigma / \\sqrt{R}` for R seeds.

        Parameters
        ----------
        curve : FurtherTrainingCurve
            With 2 seeds or more.
        max_seeds : int, default=50
            Largest number of seeds to show.
        """
        per_seed = curve.per_seed
        n_seeds = per_seed.shape[-1]
        if n_seeds < 2:
            raise ValueError("curve must have 2 seeds or more to tell their spread, got 1.")
        variance = per_seed.var(-1, ddof=1).mean((1, 2))
        # the mean's own noise is part of its size
        size = np.maximum((per_seed.mean(-1) ** 2).mean((1, 2)) - variance / n_seeds, 0)
        seeds = np.arange(1, max_seeds + 1)
        part = variance[:, None] / np.where(size > 0, size, np.nan)[:, None]
        return cls(seeds, np.sqrt(part / seeds), np.asarray(curve.epochs))

    def plot(self, ax: Axes | None = None) -> Self:
        """Draw one line a horizon, both axes logarithmic.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; new ones by default.
        """
        ax = self._on(ax)
        for epoch, line in zip(self.epochs, self.noise, strict=True):
            ax.plot(self.seeds, line, label=f"{int(epoch)} epochs")
        ax.set(xlabel="seeds", ylabel="standard error / size of the scores")
        ax.set(xscale="log", yscale="log")
        ax.legend()
        return self
