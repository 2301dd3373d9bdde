"""The base of all losses: what every caller may ask of one, with answers that fit any loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import hessian, vmap


class RowLoss(ABC):
    """A loss that gives one number per row, whatever the leading axes.

    The answers here are those of a loss that knows nothing of its outputs and targets: a user's own.
    """

    #: What the outputs are, in the words of error messages.
    outputs_are: str = "custom"

    #: True if targets are indices of classes.
    is_classifier: bool = False

    #: True if the outputs are one distribution over the classes.
    has_probabilities: bool = False

    #: True if the outputs say which class is predicted, and no more.
    only_classes: bool = False

    #: True if it is a criterion of the user's own, which is tried on a few rows.
    is_own: bool = False

    #: What is special about it, in a few words for `attribute`.
    detail: str = ""

    @abstractmethod
    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each row, of shape ``outputs.shape[:-1]``."""

    def tried(self, outputs: Tensor, targets: Tensor) -> RowLoss:
        """Return this loss, or another way to compute it, after a trial on a few rows."""
        return self

    # ---- derivatives ------------------------------------------------------------------------

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the gradient of each row's loss in its outputs, of the shape of `outputs`."""
        return torch.func.grad(lambda o: self(o, targets).sum())(outputs)

    def output_hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the second derivative of each row's loss in its outputs, (..., C, C)."""
        try:
            return by_rows(vmap(hessian(self)), outputs, targets)
        except NotImplementedError as error:
            raise TypeError(
                f"criterion must have a second derivative for this method, but torch has none of this one "
                f"({(str(error).splitlines() or ['not implemented'])[0]}). Use a method that needs the first "
                "alone (GradDot, DataInf, TRAK, FurtherTraining), or write the criterion in differentiable "
                "functions of torch."
            ) from error

    def curved(self, outputs: Tensor, targets: Tensor, vectors: Tensor) -> Tensor:
        """Return the products (..., k, C) of each row's second derivative with its vectors (..., k, C)."""
        return vectors @ self.output_hessian(outputs, targets)

    def root(self, outputs: Tensor, targets: Tensor, vectors: Tensor) -> Tensor:
        r"""Return the products (..., k, C) of a root B of the second derivative with vectors (k, C).

        It is :math:`B B^\top`. Directions in which the loss is not convex count as flat.
        """
        values, modes = torch.linalg.eigh(self.output_hessian(outputs, targets))
        return vectors @ (modes * values.clamp_min(0).sqrt().unsqueeze(-2)) @ modes.mT

    def constant_curvature(self, n_outputs: int) -> float | None:
        """Return h if each row's second derivative is h times the identity, always; else None."""
        return None

    def curvature_cotangents(self, outputs: Tensor, targets: Tensor) -> list[Tensor] | None:
        r"""Return vectors :math:`v_c`, :math:`\sum_c v_c v_c^\top` each row's second derivative, or None.

        None where no formula has them.
        """
        h = self.constant_curvature(outputs.shape[-1])
        if h is None:
            return None
        each = h**0.5 * torch.eye(outputs.shape[-1]).to(outputs)
        return list(each.unsqueeze(1).expand(-1, len(outputs), -1))

    def fisher_cotangents(self, outputs: Tensor, targets: Tensor) -> list[Tensor]:
        r"""Return vectors :math:`v_c` with :math:`\sum_c v_c v_c^\top` the Fisher matrix of the outputs."""
        values, vectors = torch.linalg.eigh(self.output_hessian(outputs.double(), targets))
        if bool((values < -1e-10 * values.abs().amax(-1, keepdim=True)).any()):
            raise ValueError("the loss is not convex in the outputs: EK-FAC needs one that is.")
        columns = vectors * values.clamp_min(0).sqrt().unsqueeze(-2)
        return list(columns.to(outputs).unbind(-1))

    # ---- targets ----------------------------------------------------------------------------

    def n_classes(self, n_outputs: int) -> int:
        """Return the number of classes of a model with so many outputs; 0 if targets are none."""
        return 0

    def encode(self, y: NDArray[Any], n_outputs: int, classes: NDArray[Any] | None) -> NDArray[Any]:
        """Return targets as the loss takes them; ValueError if they do not fit it."""
        if y.dtype.kind in "OSU":
            raise ValueError(f"y must be numbers for this model, got {y.ravel()[:1].tolist()}.")
        return y

    def predicted_targets(self, outputs: Tensor, threshold: float = 0.5) -> Tensor:
        """Return the targets that a model with these outputs predicts, encoded.

        With one output for two classes, the second is predicted above the probability `threshold`.
        """
        raise ValueError(
            "y must be given to transform: the meaning of this model's outputs is known to its "
            "own criterion only."
        )

    @property
    def likelihood(self) -> RowLoss:
        """The loss whose gradients at sampled targets have the Fisher matrix as their second moment."""
        return self

    def row_weights(self, targets: Tensor, like: Tensor) -> Tensor | None:
        """Return what the loss weighs rows with in a mean over all, in the type of `like`; None for ones."""
        return None

    def sample_targets(
        self, outputs: Tensor, generator: torch.Generator, own: Tensor | None = None
    ) -> Tensor:
        """Return targets drawn from the distribution that the outputs (n, C) predict.

        Where a row's `own` targets are not looked at by the loss, they stay as they are.
        """
        raise ValueError(
            "targets cannot be sampled for this loss: curvature='sampled-fisher' and EK-FAC need squared "
            "error or a classifier with class probabilities. Use curvature='gauss-newton'."
        )

    # ---- measurements -----------------------------------------------------------------------

    def target_output(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the only output of each row or, of one output per class, that of its target."""
        if outputs.shape[-1] != 1:
            raise ValueError(
                "measurement='output' needs a model with one output, or a classifier; this one has "
                f"{outputs.shape[-1]}. Choose one with measurement=fimoda.measurements.Output(index)."
            )
        return outputs.squeeze(-1)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the probability of each class, (..., n_classes)."""
        raise NotImplementedError(self._NO_CLASSES)

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return log p of each row's target class."""
        raise NotImplementedError(self._NO_CLASSES)

    def margin(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return log p - log(1 - p) of each row's target class."""
        raise NotImplementedError(self._NO_CLASSES)

    _NO_CLASSES = "the outputs are no probabilities of classes"


def by_rows(
    of_rows: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor
) -> Tensor:
    """Return a function of N rows, of outputs and targets with any leading axes."""
    lead = outputs.shape[:-1]
    if len(lead) == 1:
        return of_rows(outputs, targets)
    found = of_rows(
        outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1, *targets.shape[len(lead) :])
    )
    return found.reshape((*lead, *found.shape[1:]))
