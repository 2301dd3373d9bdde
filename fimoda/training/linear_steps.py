"""Optimisers as linear recursions: one learning rate, a momentum, a diagonal preconditioner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from .differentiable import Buffers
from .optimizers import OptimizerSpec

_SUPPORTED = "SGD, Adam, AdamW, RMSprop and Adagrad"


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

    Parameters
    ----------
    momentum : float
        :math:`\mu`.
    intake : float
        :math:`\gamma`.
    of_gradient, of_velocity : float
        a and c.
    coupled_decay, decoupled_decay : float
        :math:`\lambda` and d.
    preconditioner : Tensor of shape (p,) or None
        P; None is the identity.
    """

    momentum: float = 0.0
    intake: float = 1.0
    of_gradient: float = 1.0
    of_velocity: float = 0.0
    coupled_decay: float = 0.0
    decoupled_decay: float = 0.0
    preconditioner: Tensor | None = None

    def pull(
        self, rates: Sequence[float], X: Tensor, V: Tensor, curved: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step backwards in modes of the preconditioned curvature.

        Parameters
        ----------
        rates : (float, float)
            Learning rates of the step, of `rates`.
        X, V : Tensor
            Adjoints of parameters and velocity after the step.
        curved : Tensor
            Eigenvalues of the modes, along the last axis.

        Returns
        -------
        X, V, G : Tensor
            Adjoints of parameters, velocity and gradient before the step.
        """
        rate, plain = rates
        s = -rate * X
        V = V + self.of_velocity * s
        G = self.of_gradient * s + self.intake * V
        return (1 - plain * self.decoupled_decay) * X + curved * G, self.momentum * V, G

    def push(
        self, rates: Sequence[float], x: Number, v: Number, gradient: Number
    ) -> tuple[Number, Number]:
        """One step forwards: preconditioned changes of parameters, and velocity, after it."""
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
        """What the optimiser's buffers hold of v, in units of the gradient."""
        if not self.of_velocity:
            return None
        if "momentum_buffer" not in buffers:
            return buffers.get("exp_avg")
        buffer = buffers["momentum_buffer"]
        # RMSprop's has been preconditioned already
        return buffer if self.preconditioner is None else buffer / self.preconditioner


def linear_steps(spec: OptimizerSpec, buffers: Buffers) -> LinearSteps:
    """The optimiser as a linear recursion, preconditioned as its buffers say.

    Raises
    ------
    ValueError
        If the optimiser has no such form, or uses an option that has none.
    """
    name = getattr(spec.cls, "__name__", str(spec.cls))
    options = spec.defaults()
    decay = float(options.get("weight_decay", 0.0))
    if options.get("maximize"):
        raise ValueError(f"optimizer {name} with maximize=True is not supported.")
    if name == "SGD":
        mu, damp = float(options["momentum"]), float(options["dampening"])
        if mu == 0:
            return LinearSteps(coupled_decay=decay)
        a, c = (1.0, mu) if options["nesterov"] else (0.0, 1.0)
        return LinearSteps(mu, 1 - damp, a, c, coupled_decay=decay)
    if name in ("Adam", "AdamW") and not options.get("amsgrad"):
        beta1, beta2 = (float(b) for b in options["betas"])
        square = buffers["exp_avg_sq"] / (1 - beta2 ** float(buffers["step"]))
        decoupled = name == "AdamW" or bool(options.get("decoupled_weight_decay"))
        return LinearSteps(
            momentum=beta1,
            intake=1 - beta1,
            of_gradient=0.0,
            of_velocity=1.0,
            coupled_decay=0.0 if decoupled else decay,
            decoupled_decay=decay if decoupled else 0.0,
            preconditioner=1 / (square.sqrt() + float(options["eps"])),
        )
    if name == "RMSprop" and not options.get("centered"):
        mu = float(options["momentum"])
        return LinearSteps(
            mu,
            1.0,
            *((1.0, 0.0) if mu == 0 else (0.0, 1.0)),
            coupled_decay=decay,
            preconditioner=1 / (buffers["square_avg"].sqrt() + float(options["eps"])),
        )
    if name == "Adagrad" and not options.get("lr_decay"):
        return LinearSteps(
            coupled_decay=decay,
            preconditioner=1 / (buffers["sum"].sqrt() + float(options["eps"])),
        )
    raise ValueError(
        f"optimizer {name} with these settings cannot be linearised; supported are {_SUPPORTED} "
        "(without amsgrad, centered or lr_decay). Use UnrolledDifferentiation, which takes every "
        "optimiser of torch that can be differentiated."
    )


def rates(spec: OptimizerSpec, n_steps: int, steps_per_epoch: int) -> Tensor:
    """Learning rates of each step (n_steps, 2): with Adam's correction of the first, and without."""
    plain = torch.tensor(
        [spec.lr_at(step // steps_per_epoch) for step in range(n_steps)], dtype=torch.float64
    )
    rate = plain
    if getattr(spec.cls, "__name__", "") in ("Adam", "AdamW"):
        beta1 = float(spec.defaults()["betas"][0])
        rate = plain / (1 - beta1 ** torch.arange(1, n_steps + 1, dtype=torch.float64))
    return torch.stack([rate, plain], dim=1)
