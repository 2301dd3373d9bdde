"""Per-row losses: the training criterion, one value per row, and its gradient in the outputs.

Outputs always have a last axis of length C (one number per output) and any leading axes, and targets
have the same leading axes. A stack of L models on B rows is therefore just outputs of shape
(L, B, C) with targets of shape (L, B) or (L, B, C), expanded where the models share their rows.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: What the outputs of a model are, and so how targets are encoded.
OutputKind = Literal[
    "regression",  # real values; targets (n, C) float
    "logits",  # one per class; targets (n,) long
    "log_probabilities",  # log p, one per class; targets (n,) long
    "probabilities",  # p, one per class; targets (n,) long
    "binary_logit",  # one logit of the second class; targets (n,) long
    "binary_probability",  # p of the second class; targets (n,) long
    "one_vs_rest_logits",  # one independent logit per class; targets (n,) long
    "custom",  # anything: targets as given by the user
]

CLASS_KINDS = frozenset(
    {
        "logits",
        "log_probabilities",
        "probabilities",
        "binary_logit",
        "binary_probability",
        "one_vs_rest_logits",
    }
)


def _hits(outputs: Tensor, targets: Tensor) -> Tensor:
    """One at the target class and zero elsewhere (``F.one_hot`` fails under vmap on some devices)."""
    classes = torch.arange(outputs.shape[-1], device=outputs.device)
    return (targets.unsqueeze(-1) == classes).to(outputs.dtype)


class RowLoss(ABC):
    """A loss that gives one number per row, whatever the leading axes. Subclasses set `kind`."""

    kind: OutputKind = "regression"

    @property
    def detail(self) -> str:
        """What is special about it, in a few words for `attribute`."""
        return ""

    @abstractmethod
    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each row, of shape ``outputs.shape[:-1]``."""

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Gradient of each row's loss in its outputs, of the shape of `outputs`."""
        return torch.func.grad(lambda o: self(o, targets).sum())(outputs)


class FlatRowLoss(RowLoss):
    """A loss that is written for a single leading axis; here it takes any."""

    @abstractmethod
    def _rows(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses (N,) of outputs (N, C) and targets with N leading rows."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        lead = outputs.shape[:-1]
        per_row = targets.shape[len(lead) :]
        rows = self._rows(outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1, *per_row))
        return rows.reshape(lead)


class SquaredError(RowLoss):
    """``scale * (f - y)**2``, averaged (or summed) over the outputs."""

    def __init__(self, scale: float = 1.0, over_outputs: Literal["mean", "sum"] = "mean"):
        self.scale = scale
        self.over_outputs = over_outputs

    def factor(self, outputs: Tensor) -> float:
        """What the sum of squared differences over the outputs is multiplied by."""
        return self.scale / (outputs.shape[-1] if self.over_outputs == "mean" else 1)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.factor(outputs) * (outputs - targets).square().sum(-1)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (2 * self.factor(outputs)) * (outputs - targets)


class CrossEntropy(FlatRowLoss):
    """Softmax cross-entropy on logits."""

    kind: OutputKind = "logits"

    def _rows(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none")

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.softmax(-1) - _hits(outputs, targets)


class WeightedSmoothing(RowLoss):
    r"""Cross-entropy with class weights and label smoothing, divided by the weight of the row.

    torch's loss of a row is :math:`(1 - \epsilon) w_y (-\log p_y) + \frac{\epsilon}{C} \sum_c w_c
    (-\log p_c)`, and its mean divides by the sum of the rows' :math:`w_y`. Rows of weight zero keep
    the first term only.

    Parameters
    ----------
    weight : Tensor of shape (C,)
        Weight of each class.
    smoothing : float
        The :math:`\epsilon` of the formula.
    """

    kind: OutputKind = "logits"

    def __init__(self, weight: Tensor, smoothing: float):
        self.weight = weight
        self.smoothing = smoothing

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        surprise = -outputs.log_softmax(-1)
        own = surprise.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        weight = self.weight.to(outputs)
        of_row = weight[targets]
        spread = (weight * surprise).mean(-1) / torch.where(of_row > 0, of_row, torch.inf)
        return (1 - self.smoothing) * own + self.smoothing * spread


class BinaryCrossEntropy(RowLoss):
    """Logistic loss on one logit, that of the second class."""

    kind: OutputKind = "binary_logit"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.softplus((1 - 2 * targets.to(outputs.dtype)) * outputs.squeeze(-1))

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.sigmoid() - targets.unsqueeze(-1).to(outputs.dtype)


class OneVsRestCrossEntropy(RowLoss):
    """Sum over the classes of independent logistic losses."""

    kind: OutputKind = "one_vs_rest_logits"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.softplus((1 - 2 * _hits(outputs, targets)) * outputs).sum(-1)


class ProbabilityNLL(FlatRowLoss):
    """Negative log-likelihood of probabilities, ``-log(p_y + eps)`` (skorch's classifier).

    Parameters
    ----------
    eps : float
    n_rows : int, default=None
        Smooths probabilities p of K classes that are counts of so many training rows, and so may be
        0: ``(n_rows p + 1/K) / (n_rows + 1)``, as if one more row had been shared by the classes.
    """

    kind: OutputKind = "probabilities"

    def __init__(self, eps: float, n_rows: int | None = None):
        self.eps = eps
        self.n_rows = n_rows

    @property
    def detail(self) -> str:
        """What is special about it."""
        if self.n_rows is None:
            return ""
        return "of probabilities that are smoothed, as counts of rows with one more"

    def smoothed(self, outputs: Tensor) -> Tensor:
        """Return the probabilities that the loss, ``log_prob`` and ``margin`` are of."""
        if self.n_rows is None:
            return outputs
        return (self.n_rows * outputs + 1 / outputs.shape[-1]) / (self.n_rows + 1)

    def _rows(self, outputs: Tensor, targets: Tensor) -> Tensor:
        log_p = torch.log(self.smoothed(outputs) + self.eps)
        return F.nll_loss(log_p, targets, reduction="none")


class TorchCriterion(FlatRowLoss):
    """Any torch criterion that knows ``reduction="none"``.

    Parameters
    ----------
    criterion : nn.Module
        The criterion; a copy with ``reduction="none"`` is kept.
    kind : str
        What the outputs are (see `OutputKind`).
    output_ndim : int
        Number of axes of the module's own outputs, 1 for ``(n,)``.
    """

    def __init__(self, criterion: nn.Module, kind: OutputKind, output_ndim: int = 2):
        self.criterion = _copy(criterion, reduction="none")
        self.kind = kind
        self.output_ndim = output_ndim

    def _rows(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.kind in ("binary_logit", "binary_probability"):
            return self.criterion(outputs.squeeze(-1), targets.to(outputs.dtype))
        if self.kind == "custom" and self.output_ndim == 1:
            outputs = outputs.squeeze(-1)
        if targets.is_floating_point():
            targets = targets.to(outputs.dtype)
        values = self.criterion.to(outputs.dtype)(outputs, targets)
        if values.dim() == 0 or values.shape[0] != outputs.shape[0]:
            raise ValueError(
                "criterion must give one loss per row when its reduction is 'none'; "
                f"{type(self.criterion).__name__} gave shape {tuple(values.shape)} for "
                f"{outputs.shape[0]} rows. Write the criterion so that reduction='none' "
                "returns a tensor whose first axis is the rows."
            )
        return values.flatten(1).mean(1) if values.dim() > 1 else values


def row_loss(criterion: nn.Module, output_ndim: int, n_outputs: int) -> RowLoss:
    """Turn a torch criterion into its per-row loss.

    Raises
    ------
    TypeError
        If the criterion is not an ``nn.Module`` or cannot give one loss per row.
    ValueError
        If its reduction is a sum, or it uses options that mix rows.
    """
    name = type(criterion).__name__
    if not isinstance(criterion, nn.Module):
        raise TypeError(
            f"criterion must be an instance of torch.nn.Module, got {criterion!r}. "
            "Pass for example criterion=torch.nn.CrossEntropyLoss()."
        )
    given = [
        p.name
        for p in inspect.signature(criterion.forward).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(given) > 2:
        raise TypeError(
            f"criterion {name} takes {', '.join(given)}: it must be a function of outputs and targets. "
            "Write a module whose forward(outputs, targets) splits them and calls it."
        )
    reduction = getattr(criterion, "reduction", None)
    if reduction is None:
        raise TypeError(
            f"criterion {name} reduces to a scalar only: it has no `reduction` attribute, so the "
            "loss of one row cannot be told from the others. Give it a `reduction` attribute and "
            "return one value per row when it is 'none'."
        )
    if reduction not in ("mean", "none"):
        raise ValueError(
            f"criterion {name} must have reduction 'mean' or 'none', got {reduction!r}: scores are "
            "defined for an objective that averages over rows. Use reduction='mean' and scale lr."
        )
    if isinstance(criterion, nn.MSELoss):
        return SquaredError()
    if isinstance(criterion, nn.CrossEntropyLoss):
        if criterion.label_smoothing > 0 and criterion.weight is not None:
            return WeightedSmoothing(criterion.weight.detach().clone(), criterion.label_smoothing)
        if criterion.label_smoothing == 0:
            return CrossEntropy()
        return TorchCriterion(_copy(criterion, weight=None, ignore_index=-100), "logits")
    if isinstance(criterion, nn.NLLLoss):
        return TorchCriterion(_copy(criterion, weight=None, ignore_index=-100), "log_probabilities")
    if isinstance(criterion, nn.BCEWithLogitsLoss | nn.BCELoss):
        if criterion.weight is not None:
            raise ValueError(
                f"criterion {name} has a `weight`, which torch ties to positions in the batch; "
                "use sample_weight in fit instead."
            )
        if n_outputs > 1:
            return TorchCriterion(criterion, "custom")
        if isinstance(criterion, nn.BCELoss):
            return TorchCriterion(criterion, "binary_probability")
        if criterion.pos_weight is None:
            return BinaryCrossEntropy()
        return TorchCriterion(criterion, "binary_logit")
    if isinstance(criterion, nn.L1Loss | nn.SmoothL1Loss | nn.HuberLoss):
        return TorchCriterion(criterion, "regression")
    return TorchCriterion(criterion, "custom", output_ndim)


def pairs_all_rows(
    criterion: nn.Module, outputs: tuple[int, ...], targets: tuple[int, ...]
) -> bool:
    """Return whether torch spreads outputs and targets of these shapes to every pair of rows."""
    n = outputs[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = _copy(criterion, reduction="none")(torch.zeros(outputs), torch.zeros(targets))
    except (TimeoutError, MemoryError):
        raise
    except Exception:  # a criterion that refuses them raises what it likes
        return False
    return isinstance(values, Tensor) and values.shape == (n, n)


def class_weight_of(criterion: nn.Module, n_outputs: int) -> Tensor | None:
    """Return the class weights that the criterion averages with (n_outputs,), or None.

    The rows of an ignored class have no part in torch's mean: their weight is zero.
    """
    if not isinstance(criterion, nn.CrossEntropyLoss | nn.NLLLoss):
        return None
    weight = None if criterion.weight is None else criterion.weight.detach().clone()
    if 0 <= criterion.ignore_index < n_outputs:
        weight = torch.ones(n_outputs) if weight is None else weight
        weight[criterion.ignore_index] = 0
    return weight


def _copy(criterion: nn.Module, **changes: Any) -> nn.Module:
    """A copy with some attributes changed."""
    criterion = copy.deepcopy(criterion)
    for name, value in changes.items():
        setattr(criterion, name, value)
    return criterion
