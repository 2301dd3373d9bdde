"""Optimisers as linear recursions: one learning rate, a momentum, a diagonal preconditioner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from .differentiable import Buffers
from .optimizers import OptimizerSpec

Number = TypeVar("Number", Tensor, float)

#: Growth of a stable mode's unit that is none.
_BLOWN_UP = 100.0


@dataclass(frozen=True)
class LinearSteps:
    r"""The steps of an optimiser whose preconditioner stands still.

    .. math:: v \leftarrow \mu v + \gamma g, \quad
              \theta \leftarrow (1 - \eta_t d) \theta - \eta'_t P (a g + c v)

    with g the gradient plus :math:`\lambda \theta`, :math:`\eta_t` the learning rate and
    :math:`\eta'_t` the same with Adam's correction of the first steps. (The very first step with
    momentum is not dampened in torch; here it is.)

    `momentum` is :math:`\mu`, `intake` :math:`\gamma`, `of_gradient` a and `of_velocity` c;
    `coupled_decay` is :math:`\lambda` and `decoupled_decay` d; `preconditioner` (p,) is P, or None for
    the identity.
    """

    momentum: float = 0.0
    intake: float = 1.0
    of_gradient: float = 1.0
    of_velocity: float = 0.0
    coupled_decay: float = 0.0
    decoupled_decay: float = 0.0
    preconditioner: Tensor | None = None

    @property
    def gain(self) -> float:
        """Sum of what a gradient does to the parameters in this step and all later ones, by its rate."""
        return self.of_gradient + self.of_velocity * self.intake / (1 - self.momentum)

    def pull(
        self, rates: Sequence[float], X: Tensor, V: Tensor, curved: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take one step backwards in modes of the preconditioned curvature.

        Of adjoints X and V of parameters and velocity after the step, and the modes' eigenvalues
        `curved` along the last axis, come those before it, and that of the gradient.
        """
        rate, plain = rates
        s = -rate * X
        V = V + self.of_velocity * s
        G = self.of_gradient * s + self.intake * V
        return (1 - plain * self.decoupled_decay) * X + curved * G, self.momentum * V, G

    def push(
        self, rates: Sequence[float], x: Number, v: Number, gradient: Number
    ) -> tuple[Number, Number]:
        """Return preconditioned changes of parameters, and the velocity, after one step forwards."""
        rate, plain = rates
        v = self.momentum * v + self.intake * gradient
        move = self.of_gradient * gradient + self.of_velocity * v
        return (1 - plain * self.decoupled_decay) * x - rate * move, v

    def check_stable(self, curved: float, rates: Tensor) -> None:
        """Raise FloatingPointError if these steps blow up a mode of eigenvalue `curved`."""
        x, v = 1.0, 0.0
        for rate in rates.tolist():
            x, v = self.push(rate, x, v, curved * x)
            if not abs(x) < _BLOWN_UP:
                raise FloatingPointError(
                    f"with lr={rate[1]:g} and a (preconditioned) curvature of up to {curved:.3g} the "
                    f"linearised run is unstable: their product, {rate[0] * curved:.2g}, is above "
                    f"{2 * (1 + self.momentum) / self.intake:.2g}. Lower lr, scale the features, or, "
                    "since real training may saturate there, use UnrolledDifferentiation or "
                    "FurtherTraining."
                )

    def velocity(self, buffers: Buffers) -> Tensor | None:
        """Return v as the optimiser's buffers hold it, in units of the gradient, if they do."""
        if not self.of_velocity:
            return None
        if "momentum_buffer" not in buffers:
            return buffers.get("exp_avg")
        buffer = buffers["momentum_buffer"]
        # RMSprop's has been preconditioned already
        return buffer if self.preconditioner is None else buffer / self.preconditioner


def _sgd(options: dict[str, Any], buffers: Buffers) -> LinearSteps:
    mu, decay = float(options["momentum"]), float(options["weight_decay"])
    if mu == 0:
        return LinearSteps(coupled_decay=decay)
    a, c = (1.0, mu) if options["nesterov"] else (0.0, 1.0)
    return LinearSteps(mu, 1 - float(options["dampening"]), a, c, coupled_decay=decay)


def _adam(options: dict[str, Any], buffers: Buffers, decoupled: bool = False) -> LinearSteps:
    beta1, beta2 = (float(b) for b in options["betas"])
    square = buffers["exp_avg_sq"] / (1 - beta2 ** float(buffers["step"]))
    decay = float(options["weight_decay"])
    decoupled = bool(options.get("decoupled_weight_decay", decoupled))
    return LinearSteps(
        momentum=beta1,
        intake=1 - beta1,
        of_gradient=0.0,
        of_velocity=1.0,
        coupled_decay=0.0 if decoupled else decay,
        decoupled_decay=decay if decoupled else 0.0,
        preconditioner=1 / (square.sqrt() + float(options["eps"])),
    )


def _rmsprop(options: dict[str, Any], buffers: Buffers) -> LinearSteps:
    mu = float(options["momentum"])
    a, c = (1.0, 0.0) if mu == 0 else (0.0, 1.0)
    preconditioner = 1 / (buffers["square_avg"].sqrt() + float(options["eps"]))
    return LinearSteps(mu, 1.0, a, c, float(options["weight_decay"]), 0.0, preconditioner)


def _adagrad(options: dict[str, Any], buffers: Buffers) -> LinearSteps:
    preconditioner = 1 / (buffers["sum"].sqrt() + float(options["eps"]))
    return LinearSteps(coupled_decay=float(options["weight_decay"]), preconditioner=preconditioner)


class _Form(NamedTuple):
    """The linear form of an optimiser, made of its settings and buffers."""

    steps: Callable[[dict[str, Any], Buffers], LinearSteps]
    second_moment: str | None = None  # its buffer of squared gradients
    excluded: str = ""  # a setting that has no such form
    corrects: bool = False  # the first steps, as the average of gradients has only begun


_FORMS: dict[type, _Form] = {
    torch.optim.SGD: _Form(_sgd),
    torch.optim.Adam: _Form(_adam, "exp_avg_sq", "amsgrad", corrects=True),
    # a class with a step of its own in older versions of torch
    torch.optim.AdamW: _Form(
        partial(_adam, decoupled=True), "exp_avg_sq", "amsgrad", corrects=True
    ),
    torch.optim.RMSprop: _Form(_rmsprop, "square_avg", "centered"),
    torch.optim.Adagrad: _Form(_adagrad, "sum", "lr_decay"),
}


def linear_steps(spec: OptimizerSpec, buffers: Buffers) -> LinearSteps:
    """Return the optimiser as a linear recursion, preconditioned as its buffers say.

    Raises ValueError if it has no such form, or uses an option that has none.
    """
    if spec.clipping:
        raise ValueError(
            f"optimizer {spec.name} with {', '.join(spec.clipping.settings)} cannot be linearised: what is "
            "left of a clipped gradient is not linear in it. Use UnrolledDifferentiation or "
            "OnceLinearizedFurtherTraining(solver='steps'), or lift it: "
            f"optimizer_params={dict.fromkeys(spec.clipping.settings)}."
        )
    if spec.groups:
        raise ValueError(
            f"optimizer {spec.name} with param_groups cannot be linearised: parameters differ in their "
            "learning rate or weight decay. Use UnrolledDifferentiation or "
            "OnceLinearizedFurtherTraining(solver='steps')."
        )
    options = spec.defaults()
    if options.get("maximize"):
        raise ValueError(f"optimizer {spec.name} with maximize=True is not supported.")
    form = _FORMS.get(spec.step_of)
    if form is None or options.get(form.excluded):
        raise ValueError(
            f"optimizer {spec.name} with these settings cannot be linearised; supported are SGD, Adam, "
            "AdamW, RMSprop and Adagrad (without amsgrad, centered or lr_decay). Use "
            "UnrolledDifferentiation, which takes every optimiser of torch that can be differentiated."
        )
    return form.steps(options, buffers)


def second_moment_name(spec: OptimizerSpec) -> str | None:
    """Return the buffer in which the optimiser keeps second moments of gradients, if it does."""
    form = _FORMS.get(spec.step_of)
    return None if form is None else form.second_moment


def rates(spec: OptimizerSpec, n_steps: int, steps_per_epoch: int) -> Tensor:
    """Return the rates of each step (n_steps, 2), with Adam's correction of the first and without."""
    plain = torch.tensor(
        [spec.lr_at(step // steps_per_epoch) for step in range(n_steps)], dtype=torch.float64
    )
    rate, form = plain, _FORMS.get(spec.step_of)
    if form is not None and form.corrects:
        beta1 = float(spec.defaults()["betas"][0])
        rate = plain / (1 - beta1 ** torch.arange(1, n_steps + 1, dtype=torch.float64))
    return torch.stack([rate, plain], dim=1)
