"""Whether gradients at the final model say anything: looked at once, when a method is fitted."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ..measured import Measured
from ..model import FinalModel
from ..row_gradients import RowDifferentiator
from ..rows import Rows
from ..training.chains import Affine, read_chain

#: Rows that are looked at together.
_ROWS = 1024

#: A gradient counts if it is this many times what rounding the parameters makes of it.
_ABOVE_ROUNDING = 10.0

#: The objective's gradient at a minimum, in parts of what leaving out random rows would make of it.
_AT_MINIMUM = 0.1


def check_gradients(model: FinalModel, X: Tensor, y: Tensor, weights: Tensor) -> None:
    """Warn if no training row has a gradient left, or if the model is not a minimum on these rows.

    Parameters
    ----------
    model : FinalModel
    X, y : Tensor
        Encoded training rows and targets.
    weights : Tensor of shape (n,)
        Weights of the rows in the objective.

    Warns
    -----
    UserWarning
        If all gradients are rounding; or if a solver has fitted the model and its objective on the
        rows, targets and weights given has another minimum.
    """
    if not _a_gradient_is_left(model, X, y):
        warnings.warn(
            "no training row has a gradient left: the model fits all its rows to rounding, so that what "
            "gradients say of them is rounding too. Score a model that was regularised, or methods that "
            "train again (LeaveOneOut, Downsampling).",
            UserWarning,
            stacklevel=2,
        )
    elif model.recipe.solved and (
        model.recipe.stopped_early or not _is_minimum(model, X, y, weights)
    ):
        warnings.warn(
            "the model is not at the minimum of its objective on these rows: its solver stopped early, or "
            "left out directions because columns of X differ much in size (put a StandardScaler before the "
            "model), or fit was given other rows, targets or sample weights than the model was trained on "
            "(pass those, sample_weight included, or fit the model again).",
            UserWarning,
            stacklevel=2,
        )


def is_solved(model: FinalModel, X: Tensor, y: Tensor, weights: Tensor) -> bool:
    """Return whether it is a linear model at the minimum of its objective.

    A solver has found it, or training of one linear layer has ended there. Parameters as in
    `check_gradients`.
    """
    if model.recipe.solved:
        return True
    links = read_chain(model)
    one = links is not None and len(links) == 1 and isinstance(links[0], Affine)
    return one and _is_minimum(model, X, y, weights)


def check_curvature(model: FinalModel, X: Tensor, y: Tensor) -> None:
    """Warn if the loss has no curvature in the outputs at any training row.

    Parameters
    ----------
    model : FinalModel
    X, y : Tensor
        Encoded training rows and targets.

    Warns
    -----
    UserWarning
        If it has none: what is solved with then is the damping alone.
    """
    for start in range(0, len(X), _ROWS):
        rows = slice(start, start + _ROWS)
        if model.loss.output_hessian(model.outputs(X[rows]).double(), y[rows]).any():
            return
    warnings.warn(
        "the loss has no curvature at any training row (its second derivative in the outputs is zero, as "
        "that of L1Loss is), so that the damping alone stands for it: scores rank rows as Grad-Dot does, and "
        "their size means nothing. Use GradDot, or a method that trains (FurtherTraining, LeaveOneOut).",
        UserWarning,
        stacklevel=2,
    )


def _a_gradient_is_left(model: FinalModel, X: Tensor, y: Tensor) -> bool:
    """Whether some row's gradient in the outputs is more than rounding of the parameters makes of it."""
    theta = model.theta
    signs = torch.randint(0, 2, theta.shape, generator=torch.Generator().manual_seed(0))
    rounded = theta * (1 + 2 * torch.finfo(theta.dtype).eps * (2 * signs - 1).to(theta))
    for start in range(0, len(X), _ROWS):
        rows = slice(start, start + _ROWS)
        slopes, others = (
            model.loss.gradient(model.outputs(X[rows], at).double(), y[rows])
            for at in (theta, rounded)
        )
        if float(slopes.norm()) > _ABOVE_ROUNDING * float((others - slopes).norm()):
            return True
    return False


def _is_minimum(model: FinalModel, X: Tensor, y: Tensor, weights: Tensor) -> bool:
    """Whether the objective's gradient is what a solver leaves, beside the rows' shares of it.

    Each parameter of the linear model has a scale of its own, that of its column and its output, so
    that columns of very different size are looked at alike. The penalty counts as the column does: it
    holds parameters of small columns where they are.
    """
    share = weights.double() / weights.double().sum()
    penalty = torch.zeros_like(model.theta) if model.penalty is None else model.penalty
    total = (penalty * model.theta).double()
    squares = torch.zeros_like(total)
    slopes: Tensor | float = 0.0
    gradients = RowDifferentiator(model, X[:2])
    for rows, g in gradients.chunks(Measured(Rows(X, y), model.loss), _ROWS):
        total += g.combine(share[rows, None].to(model.theta))[0]
        columns = gradients(Measured(Rows(X[rows], y[rows]), _sum_of_outputs)).squared()
        squares += columns.combine(share[rows, None])[0]
        slope = model.loss.gradient(model.outputs(X[rows]).double(), y[rows])
        slopes = slopes + share[rows] @ slope**2
    if float(total.abs().max()) <= 2 * model.recipe.tolerance:
        return True
    typical = torch.as_tensor(slopes).sqrt().to(model.theta)
    one = Rows(torch.ones_like(X[:1]), y[:1])
    of_output = gradients(Measured(one, lambda outputs, _: (outputs * typical).sum(1))).dense()[0]
    spread = of_output.double() * ((share**2).sum() * (squares + penalty)).sqrt()
    return bool((total.abs() <= _AT_MINIMUM * spread).all())


def _sum_of_outputs(outputs: Tensor, y: Tensor) -> Tensor:
    return outputs.sum(1)
