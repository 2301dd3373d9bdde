"""Representation similarity: how alike a layer sees the test row and the training row."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .._validation import StrOptions
from ..base import BaseAttributor
from ..measured import Measured
from ..measurements import Measurement
from ..model import DEFAULT_BUDGET
from ..padding import uncut
from ..trials import Trial

#: Rows whose representations are computed at a time.
_ROWS = 4096


class RepSim(BaseAttributor):
    r"""Similarity of the representations of the test row and the training row.

    .. math:: S_{z,i} = \frac{h_z^\top h_i}{\|h_z\| \, \|h_i\|}, \qquad h_z^\top h_i
              \qquad \text{or} \qquad -\|h_z - h_i\|

    with h what goes into the last layer that has parameters, or what a layer of choice gives. A
    baseline: scores have no unit, look at neither targets nor measurement, and only rank. Similar
    rows score high as if they helped.

    Parameters
    ----------
    estimator : object, default=None
        Fitted model; an unfitted scikit-learn or skorch estimator is cloned and fitted. None is a
        small MLP.
    metric : {"cosine", "dot", "euclidean"}, default="cosine"
        The similarity. The cosine with a representation of zero is zero.
    layer : str, default=None
        Name of the part of the module whose outputs are the representation (of
        ``module.named_modules()``); by default the inputs of the last linear or convolutional layer.
    measurement : str or callable, default="loss"
        Not used; there for the sake of the other methods' signature.
    criterion : nn.Module, default=None
        Training criterion of a bare ``nn.Module``.
    memory_budget : int, default=512 MiB
        Bytes that the representations of the training rows may take.
    random_state : int, RandomState or None, default=None
        Used to fit an unfitted `estimator`.

    Attributes
    ----------
    estimator_ : object
        The final model.
    model_ : FinalModel
        Its frozen functional view.
    train_indices_ : ndarray of shape (n_train,)
        Training row of each column.

    Raises
    ------
    ValueError
        If there is no such layer, or it is not used once on each row.

    References
    ----------
    Caruana et al., "Case-based Explanation of Non-case-based Learning Methods", AMIA 1999; Hanawa
    et al., "Evaluation of Similarity-based Explanations", ICLR 2021, arXiv 2006.04528.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.neural_network import MLPClassifier
    >>> from fimoda import RepSim
    >>> X, y = load_iris(return_X_y=True)
    >>> model = MLPClassifier((8,), max_iter=2000, random_state=0).fit(X, y)
    >>> RepSim(model).fit(X, y).transform(X[:4], y[:4]).shape
    (4, 150)
    """

    process = "none: rows are compared, not removed"
    _in_unit = False

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseAttributor._parameter_constraints,
        "memory_budget": BaseAttributor._BUDGET_CONSTRAINTS["memory_budget"],
        "metric": [StrOptions({"cosine", "dot", "euclidean"})],
        "layer": [str, None],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        metric: str = "cosine",
        layer: str | None = None,
        measurement: Measurement = "loss",
        criterion: nn.Module | None = None,
        memory_budget: int = DEFAULT_BUDGET,
        random_state: Any = None,
    ):
        super().__init__(
            estimator, measurement=measurement, criterion=criterion, random_state=random_state
        )
        self.metric = metric
        self.layer = layer
        self.memory_budget = memory_budget

    def _expected_seconds(self, trial: Trial) -> float:
        return trial.by_rows(self)

    def _fit(self) -> None:
        one = self._representations(self._objective.rows[:1].inputs)
        needed = len(self._objective) * one.numel() * one.element_size()
        if needed > self.memory_budget:
            raise MemoryError(
                f"representations of {one.shape[1]} numbers take {needed / 2**20:.0f} MiB for "
                f"{len(self._objective)} rows, more than memory_budget={self.memory_budget / 2**20:.0f} MiB. "
                "Choose a smaller layer, or raise memory_budget."
            )
        self._train = self._representations(self._objective.rows.inputs)

    def _module(self) -> tuple[nn.Module, bool]:
        """Return the layer, and whether its inputs are the representation instead of its outputs."""
        parts = dict(self.model_.module.named_modules())
        if self.layer is not None:
            if self.layer not in parts:
                raise ValueError(
                    f"layer must be the name of a part of the module ({', '.join(filter(None, parts))}), "
                    f"got {self.layer!r}."
                )
            return parts[self.layer], False
        layers = [part for part in parts.values() if isinstance(part, nn.Linear | nn.Conv2d)]
        if not layers:
            raise ValueError(
                "layer must be given: the module has no linear or convolutional layer, but "
                f"{', '.join(filter(None, parts))}."
            )
        return layers[-1], True

    def _representations(self, X: Tensor) -> Tensor:
        """Return the representations (n, k), those of one length for the cosine."""
        layer, takes_inputs = self._module()
        seen: list[Tensor] = []

        def see(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            seen.append(inputs[0] if takes_inputs else output)

        handle = layer.register_forward_hook(see)
        found = []
        try:
            for x in X.split(_ROWS):
                seen.clear()
                self.model_.outputs(uncut(x))
                if len(seen) != 1 or not isinstance(seen[0], Tensor) or len(seen[0]) != len(x):
                    raise ValueError(
                        f"layer {self.layer!r} must be used once and give one tensor with a row for "
                        "each row of X. Choose another."
                    )
                found.append(seen[0].detach().flatten(1))
        finally:
            handle.remove()
        h = torch.cat(found)
        if self.metric != "cosine":
            return h
        length = h.norm(dim=1, keepdim=True)
        return h / torch.where(length > 0, length, 1)

    def _scores(self, test: Measured) -> NDArray[np.float64]:
        X = test.inputs
        h = self._representations(X)
        if self.metric == "euclidean":
            return -_distances(h, self._train)
        return (h @ self._train.mT).double().cpu().numpy()

    def _self_influence(self) -> NDArray[np.float64]:
        if self.metric == "euclidean":
            return np.zeros(len(self._objective))
        return (self._train**2).sum(1).double().cpu().numpy()


def _distances(a: Tensor, b: Tensor) -> NDArray[np.float64]:
    mode = "donot_use_mm_for_euclid_dist"  # the other one does not give zero for the same row
    return torch.cdist(a.double(), b.double(), compute_mode=mode).cpu().numpy()
