"""Checks that gradients at the final model say anything, once when a method is fitted."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ..measured import Measured
from ..objective import Objective
from ..rows import Rows, mapped
from ..training.chains import Affine, read_chain

#: Rows that are looked at first.
_FEW = 8

#: A gradient counts if it is this many times what rounding the parameters makes of it.
_ABOVE_ROUNDING = 10.0

#: The objective's gradient at a minimum, in parts of what leaving out random rows would make of it.
_AT_MINIMUM = 0.1


def check_gradients(objective: Objective) -> None:
    """Warn if no training row has a gradient left, or if a solver's model is not at its minimum."""
    if not _a_gradient_is_left(objective):
        warnings.warn(
            "no training row has a gradient left: the model fits all its rows to rounding, so that what "
            "gradients say of them is rounding too. Score a model that was regularised, or methods that "
            "train again (LeaveOneOut, Downsampling).",
            UserWarning,
            stacklevel=2,
        )
        return
    recipe = objective.model.recipe
    if recipe.solved and (recipe.stopped_early or not _is_minimum(objective)):
        warnings.warn(
            "the model is not at the minimum of its objective on these rows: its solver stopped early, or "
            "left out directions because columns of X differ much in size (put a StandardScaler before the "
            "model), or fit was given other rows, targets or sample weights than the model was trained on "
            "(pass those, sample_weight included, or fit the model again).",
            UserWarning,
            stacklevel=2,
        )


def is_solved(objective: Objective) -> bool:
    """Return whether it is a linear model at its minimum, by a solver or by training one layer."""
    if objective.model.recipe.solved:
        return True
    links = read_chain(objective.model)
    one = links is not None and len(links) == 1 and isinstance(links[0], Affine)
    return one and _is_minimum(objective)


def check_curvature(objective: Objective) -> None:
    """Warn if the loss has no curvature in the outputs, so that the damping alone is solved with."""
    loss = objective.model.loss
    for rows in objective.rows.split(objective.together):
        outputs = objective.model.outputs(rows.inputs).double()
        along = torch.cos(torch.arange(outputs.shape[1]).to(outputs)).expand(len(outputs), 1, -1)
        if loss.curved(outputs, rows.targets, along).any():
            return
    warnings.warn(
        "the loss has no curvature at any training row (its second derivative in the outputs is zero, as "
        "that of L1Loss is), so that the damping alone stands for it: scores rank rows as Grad-Dot does, and "
        "their size means nothing. Use GradDot, or a method that trains (FurtherTraining, LeaveOneOut).",
        UserWarning,
        stacklevel=2,
    )


def _a_gradient_is_left(objective: Objective) -> bool:
    """Return whether a row's gradient in the outputs is more than rounding of the parameters."""
    model, theta = objective.model, objective.model.theta
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, theta.shape, generator=generator, dtype=torch.int8)
    rounded = theta * (1 + 2 * torch.finfo(theta.dtype).eps * (2 * signs - 1).to(theta))
    # mostly a few rows tell
    for rows in (objective.rows[:_FEW], *objective.rows.split(objective.together)):
        slopes, others = (
            model.loss.gradient(model.outputs(rows.inputs, at).double(), rows.targets)
            for at in (theta, rounded)
        )
        if float(slopes.norm()) > _ABOVE_ROUNDING * float((others - slopes).norm()):
            return True
    return False


def _is_minimum(objective: Objective) -> bool:
    """Return whether the gradient is what a solver leaves, beside the rows' shares of it.

    Each parameter of the linear model has a scale of its own, that of its column and its output, so
    that columns of very different size are looked at alike. The penalty counts as the column does: it
    holds parameters of small columns where they are.
    """
    model, differentiate = objective.model, objective.differentiate
    share, total = objective.rows.shares, objective.gradient().double()
    if float(total.abs().max()) <= 2 * model.recipe.tolerance:
        return True
    squares = torch.zeros_like(total)
    slopes: Tensor | float = 0.0
    for rows in objective.rows.split(objective.together):
        columns = differentiate(Measured(rows, lambda outputs, _: outputs.sum(1)))
        squares += columns.second_moment(rows.shares)
        slope = model.loss.gradient(model.outputs(rows.inputs).double(), rows.targets)
        slopes = slopes + rows.shares @ slope**2
    typical = torch.as_tensor(slopes).sqrt().to(model.theta)
    first = objective.rows[:1]
    one = Rows(mapped(torch.ones_like, first.inputs), first.targets)
    of_output = differentiate(Measured(one, lambda outputs, _: (outputs * typical).sum(1))).dense()
    penalty = 0.0 if model.penalty is None else model.penalty
    spread = of_output[0].double() * ((share**2).sum() * (squares + penalty)).sqrt()
    return bool((total.abs() <= _AT_MINIMUM * spread).all())
