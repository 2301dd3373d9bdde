"""Losses of classifiers: targets are indices of classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .base import RowLoss, by_rows


def _hits(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return one at the target class, else zero (``F.one_hot`` fails under vmap on some devices)."""
    classes = torch.arange(outputs.shape[-1], device=outputs.device)
    return (targets.unsqueeze(-1) == classes).to(outputs.dtype)


def _at(values: Tensor, targets: Tensor) -> Tensor:
    """Return the value of each row's target class."""
    return values.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


class Classification(RowLoss):
    """A loss of one output per class."""

    is_classifier = True

    def n_classes(self, n_outputs: int) -> int:
        return n_outputs

    def encode(self, y: NDArray[Any], n_outputs: int, classes: NDArray[Any] | None) -> NDArray[Any]:
        if classes is None:
            raise RuntimeError("a classifier's FinalModel needs `classes`")
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if y.ndim != 1:
            raise ValueError(f"y must be a vector of class labels, got shape {y.shape}.")
        order = np.argsort(classes)
        try:
            position = np.searchsorted(classes, y, sorter=order)
        except TypeError:  # they have no order: None among strings
            position = (y[:, None] == classes[order]).argmax(1)
        indices = order[np.minimum(position, len(order) - 1)]
        unseen = np.asarray(classes[indices] != y)
        if unseen.any():
            found = sorted({repr(label) for label in y[unseen].tolist()})[:5]
            raise ValueError(
                f"y contains labels that the model was not trained on: {', '.join(found)}. "
                f"Its classes are {', '.join(map(repr, classes[:10].tolist()))}."
            )
        return indices.astype(np.int64)

    def predicted_targets(self, outputs: Tensor, threshold: float = 0.5) -> Tensor:
        return outputs.argmax(-1)

    def target_output(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _at(outputs, targets)


class OneVsRestCrossEntropy(Classification):
    """Sum over the classes of independent logistic losses."""

    outputs_are = "one vs rest logits"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.softplus((1 - 2 * _hits(outputs, targets)) * outputs).sum(-1)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.sigmoid() - _hits(outputs, targets)

    def output_hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.diag_embed(outputs.sigmoid() * (-outputs).sigmoid())

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return each class's probability over their sum, as scikit-learn's ``predict_proba`` does."""
        each = outputs.sigmoid()
        total = each.sum(-1, keepdim=True)
        return torch.where(total > 0, each / total, 1 / each.shape[-1])


class ClassProbabilities(Classification):
    """A loss of the probabilities of the classes, which the outputs are here."""

    outputs_are = "probabilities"
    has_probabilities = True
    #: True if the mean of the gradients over the classes, by their probabilities, is zero.
    is_centred = False

    def probabilities(self, outputs: Tensor) -> Tensor:
        return outputs

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _at(self.probabilities(outputs), targets).log()

    def margin(self, outputs: Tensor, targets: Tensor) -> Tensor:
        log_p = self.log_prob(outputs, targets)
        return log_p - torch.log1p(-log_p.exp())

    def sample_targets(
        self, outputs: Tensor, generator: torch.Generator, own: Tensor | None = None
    ) -> Tensor:
        p = self.probabilities(outputs.double().cpu())
        return torch.multinomial(p, 1, generator=generator)[:, 0].to(outputs.device)

    def fisher_cotangents(self, outputs: Tensor, targets: Tensor) -> list[Tensor]:
        roots = self.probabilities(outputs).sqrt().unsqueeze(-1).unbind(-2)
        found = [
            root * self.gradient(outputs, torch.full_like(targets, c))
            for c, root in enumerate(roots)
        ]
        if not self.is_centred:
            return found
        # their sum by these roots is zero, so that a reflection can leave nothing in the last one
        last = found[-1] / (1 + roots[-1])
        return [v - root * last for v, root in zip(found[:-1], roots, strict=False)]

    def curvature_cotangents(self, outputs: Tensor, targets: Tensor) -> list[Tensor] | None:
        # log-likelihoods in the logits, of which the Fisher matrix is the second derivative
        return self.fisher_cotangents(outputs, targets) if self.is_centred else None


class ProbabilityNLL(ClassProbabilities):
    """Negative log-likelihood of probabilities, ``-log(p_y + eps)`` (skorch's classifier).

    Probabilities p of K classes that are counts of `n_rows` training rows may be 0. The loss,
    ``log_prob`` and ``margin`` are then of ``(n_rows p + 1/K) / (n_rows + 1)``, as if one more row
    had been shared by the classes.
    """

    def __init__(self, eps: float, n_rows: int | None = None):
        self.eps = eps
        self.n_rows = n_rows
        if n_rows is not None:
            self.detail = "of probabilities that are smoothed, as counts of rows with one more"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return -torch.log(_at(self._smoothed(outputs), targets) + self.eps)

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().log_prob(self._smoothed(outputs), targets)

    def _smoothed(self, outputs: Tensor) -> Tensor:
        if self.n_rows is None:
            return outputs
        return (self.n_rows * outputs + 1 / outputs.shape[-1]) / (self.n_rows + 1)


class ZeroOneLoss(ClassProbabilities):
    """One where the target class is not the predicted one, whose output is one, else zero."""

    only_classes = True
    detail = "1 for a wrong prediction, else 0"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 1 - _at(outputs, targets)


class HingeLoss(Classification):
    """The hinge loss of values of a decision function, one for each class.

    Of two classes, with values -f and f, it is ``max(0, 1 - f_y)``; of more the sum over the classes, each
    against the rest, of ``max(0, 1 - f_y)`` and ``max(0, 1 + f_c)``.
    """

    outputs_are = "values of a decision function"
    detail = "hinge loss"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.shape[-1] == 2:
            return F.relu(1 - _at(outputs, targets))
        return F.relu(1 + (1 - 2 * _hits(outputs, targets)) * outputs).sum(-1)


class LogProbabilityNLL(ClassProbabilities):
    """Negative log-likelihood of log-probabilities."""

    outputs_are = "log probabilities"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return -_at(outputs, targets)

    def probabilities(self, outputs: Tensor) -> Tensor:
        return outputs.exp()

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _at(outputs, targets)


class CrossEntropy(ClassProbabilities):
    """Softmax cross-entropy on logits."""

    outputs_are = "logits"
    is_centred = True

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return by_rows(lambda o, y: F.cross_entropy(o, y, reduction="none"), outputs, targets)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.softmax(-1) - _hits(outputs, targets)

    def output_hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        p = outputs.softmax(-1)
        return p.unsqueeze(-1) * (
            torch.eye(p.shape[-1], dtype=p.dtype, device=p.device) - p.unsqueeze(-2)
        )

    def curved(self, outputs: Tensor, targets: Tensor, vectors: Tensor) -> Tensor:
        along = outputs.softmax(-1).unsqueeze(-2) * vectors
        return along - along.sum(-1, keepdim=True) * outputs.softmax(-1).unsqueeze(-2)

    def root(self, outputs: Tensor, targets: Tensor, vectors: Tensor) -> Tensor:
        p = outputs.softmax(-1).unsqueeze(-2)
        along = p.sqrt() * vectors
        return along - p * along.sum(-1, keepdim=True)

    def probabilities(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(-1)

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _at(outputs.log_softmax(-1), targets)

    def margin(self, outputs: Tensor, targets: Tensor) -> Tensor:
        # log p_y - log sum_{k != y} p_k, without forming 1 - p_y
        others = outputs.scatter(-1, targets.unsqueeze(-1), float("-inf"))
        return _at(outputs, targets) - others.logsumexp(-1)


class SmoothedCrossEntropy(CrossEntropy):
    r"""Cross-entropy with label smoothing, :math:`-\sum_c q_c \log p_c`.

    torch's loss of a row with class weights is :math:`(1 - \epsilon) w_y (-\log p_y) +
    \frac{\epsilon}{C} \sum_c w_c (-\log p_c)`, and its mean divides by the sum of the rows'
    :math:`w_y`. Here it is divided by the row's own. Rows of weight zero keep the first term only.
    `smoothing` is :math:`\epsilon`; `weight` (C,) are the weights, the same for all if None.
    """

    is_centred = False

    def __init__(self, smoothing: float, weight: Tensor | None = None):
        self.smoothing = smoothing
        self.weight = weight

    def _wanted(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the q of the formula, (..., C)."""
        weight = torch.ones(outputs.shape[-1]) if self.weight is None else self.weight
        weight = weight.to(outputs)
        of_row = weight[targets].unsqueeze(-1)
        spread = weight / torch.where(of_row > 0, of_row, torch.inf) / len(weight)
        return (1 - self.smoothing) * _hits(outputs, targets) + self.smoothing * spread

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return -(self._wanted(outputs, targets) * outputs.log_softmax(-1)).sum(-1)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        q = self._wanted(outputs, targets)
        return q.sum(-1, keepdim=True) * outputs.softmax(-1) - q

    def output_hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._total(outputs, targets).unsqueeze(-1) * super().output_hessian(
            outputs, targets
        )

    def curved(self, outputs: Tensor, targets: Tensor, vectors: Tensor) -> Tensor:
        return self._total(outputs, targets).unsqueeze(-1) * super().curved(
            outputs, targets, vectors
        )

    def root(self, outputs: Tensor, targets: Tensor, vectors: Tensor) -> Tensor:
        total = self._total(outputs, targets).unsqueeze(-1)
        return total.sqrt() * super().root(outputs, targets, vectors)

    def _total(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of q (..., 1)."""
        return self._wanted(outputs, targets).sum(-1, keepdim=True)


class BinaryProbabilityNLL(ClassProbabilities):
    """Negative log-likelihood of the probability of the second class, the only output."""

    outputs_are = "binary probability"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        p = outputs.squeeze(-1)
        return F.binary_cross_entropy(p, targets.to(p.dtype), reduction="none")

    def n_classes(self, n_outputs: int) -> int:
        return 2

    def predicted_targets(self, outputs: Tensor, threshold: float = 0.5) -> Tensor:
        return (self.probabilities(outputs)[..., 1] > threshold).long()

    def target_output(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.squeeze(-1)

    def probabilities(self, outputs: Tensor) -> Tensor:
        return torch.cat([1 - outputs, outputs], -1)

    def sample_targets(
        self, outputs: Tensor, generator: torch.Generator, own: Tensor | None = None
    ) -> Tensor:
        p = self.probabilities(outputs.double().cpu())[:, 1]
        return torch.bernoulli(p, generator=generator).long().to(outputs.device)


class BinaryCrossEntropy(BinaryProbabilityNLL):
    """Logistic loss on one logit, that of the second class, whose rows have `pos_weight`."""

    outputs_are = "binary logit"

    def __init__(self, pos_weight: Tensor | None = None):
        self.pos_weight = pos_weight
        self.is_centred = pos_weight is None

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._weighted(-self.log_prob(outputs, targets), targets)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        slope = outputs.squeeze(-1).sigmoid() - targets.to(outputs.dtype)
        return self._weighted(slope, targets).unsqueeze(-1)

    def output_hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        logit = outputs.squeeze(-1)
        return self._weighted(logit.sigmoid() * (-logit).sigmoid(), targets)[..., None, None]

    def probabilities(self, outputs: Tensor) -> Tensor:
        return super().probabilities(outputs.sigmoid())

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return -F.softplus(-self.margin(outputs, targets))

    def margin(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (2 * targets.to(outputs.dtype) - 1) * outputs.squeeze(-1)

    def _weighted(self, of_rows: Tensor, targets: Tensor) -> Tensor:
        if self.pos_weight is None:
            return of_rows
        return torch.where(targets == 1, self.pos_weight.to(of_rows).squeeze(), 1) * of_rows
