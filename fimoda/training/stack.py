"""Train many models at once, as one stack of parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..model import FinalModel
from .batches import Batch
from .chains import read_chain
from .examination import examine
from .gradients import Parameters, compiled_gradient, dense, looped_gradient, stacked_gradient
from .noise import seeded
from .optimizers import OptimizerSpec
from .products import fast_float32_products

#: Working set of a stack that still trains fast: what measured best on processors with 1 to 2 MiB
#: of second-level cache a core (see benchmarks/README.md). Fewer models than the smallest stack do
#: not share enough of what a step costs beside its products.
STACK_BYTES = 8 * 2**20
MIN_STACK, MAX_STACK = 4, 32

#: Operations of a run from which compiling pays for itself (about a minute of training).
COMPILE_FROM = 3e12


class Plan(Protocol):
    """Batches of a stack of models, and the seed of everything else that is random."""

    @property
    def seed(self) -> int: ...
    @property
    def n_models(self) -> int: ...
    def epochs(self, n_epochs: int) -> Iterator[Iterator[Batch]]: ...


def stack_size(model: FinalModel, batch_size: int) -> int:
    """How many models to train as one stack, so that it stays in the processor's cache."""
    widths = sum(shape[0] for shape in model.shapes.values() if len(shape) > 1)
    numbers = 3 * model.n_parameters + 2 * batch_size * widths
    fitting = STACK_BYTES // (numbers * model.theta.element_size())
    return int(min(max(fitting, MIN_STACK), MAX_STACK))


def should_compile(model: FinalModel, operations: float) -> bool:
    """Whether ``compile="auto"`` compiles: for long runs of networks that gain from it."""
    return operations > COMPILE_FROM and not model.is_stochastic and read_chain(model) is not None


def check_finite(theta: Tensor, epochs: float, seed: int) -> None:
    """Raise FloatingPointError if parameters are NaN or infinite."""
    if not bool(torch.isfinite(theta).all()):
        raise FloatingPointError(
            f"training diverged: parameters are NaN or infinite after {epochs:g} epochs with seed "
            f"{seed}. Lower lr, or train for fewer epochs."
        )


class StackTrainer:
    """Trains stacks of models that share an architecture and training rows.

    Parameters
    ----------
    model : FinalModel
        Architecture, loss and (unless given to `run`) the initial parameters.
    X, y : Tensor
        Training rows and encoded targets.
    optimizer : OptimizerSpec
    compile : bool, default=False
        Whether the gradient goes through ``torch.compile``.
    """

    def __init__(
        self,
        model: FinalModel,
        X: Tensor,
        y: Tensor,
        optimizer: OptimizerSpec,
        compile: bool = False,
    ):
        self.model = model
        self.X = X
        self.y = y
        self.optimizer = optimizer
        self._gradient = compiled_gradient(model) if compile else stacked_gradient(model)

    def examine(self) -> None:
        """Take the slower ways where the fast ones are not right for this network (`examine`)."""
        verdict = examine(self.model, self.X, self.y, self.optimizer)
        if not verdict.stacked:
            self._gradient = looped_gradient(self.model)
        if not verdict.as_built:
            self.optimizer = self.optimizer.plain()

    def gradient(
        self, theta: Parameters, batch: Batch, out: Parameters | None = None
    ) -> Parameters:
        """Gradient of each model's objective on its batch, as the stacked parameters.

        It may be written to `out`.
        """
        rows = batch.rows.to(self.X.device)
        x, y = self.X[rows], self.y[rows]
        weights = batch.weights.to(self.model.device, self.model.dtype)
        if batch.rows.dim() == 1:
            x, y = x.expand(len(weights), *x.shape), y.expand(len(weights), *y.shape)
        with torch.no_grad():
            return self._gradient(theta, x, y, weights, out)

    def run(
        self,
        plan: Plan,
        marks: Sequence[int],
        on_mark: Callable[[int, Tensor], None],
        theta: Tensor | None = None,
        require_finite: bool = True,
    ) -> Tensor:
        """Train the models of `plan` and show the stack to `on_mark` at the marks.

        Parameters
        ----------
        plan : Plan
            Batches and weights, e.g. `LeaveOutPlan`.
        marks : sequence of int
            Increasing numbers of epochs; training ends at the last.
        on_mark : callable
            Called with the epoch and the parameters (L, p) after it; must not change them.
        theta : Tensor of shape (L, p), default=None
            Initial parameters; those of the final model by default.
        require_finite : bool, default=True
            False lets a diverged model be: the others of its stack go on undisturbed.

        Returns
        -------
        Tensor of shape (L, p)
            Parameters at the end.

        Raises
        ------
        FloatingPointError
            If a model has diverged at a mark, unless `require_finite` is False.
        """
        self.optimizer.check_epochs(marks[-1])
        self.examine()
        start = self.model.theta.expand(plan.n_models, -1) if theta is None else theta
        # a tensor of its own for each parameter: products want them contiguous
        views = self.model.views(start.detach())
        stack = {
            name: view.clone(memory_format=torch.contiguous_format) for name, view in views.items()
        }
        room = {name: torch.empty_like(part) for name, part in stack.items()}
        optimizer = self.optimizer.build(part.requires_grad_() for part in stack.values())
        shown = set(marks)

        def trial() -> Tensor:
            first = next(next(plan.epochs(1)))
            with seeded(self.model, plan.seed):
                return self.model.flatten(self.gradient(stack, first))

        with fast_float32_products(trial), seeded(self.model, plan.seed):
            for epoch, batches in enumerate(plan.epochs(marks[-1])):
                for group in optimizer.param_groups:
                    group["lr"] = self.optimizer.lr_at(epoch)
                for batch in batches:
                    gradients = self.gradient(stack, batch, room)
                    for name, gradient in dense(gradients, stack).items():
                        stack[name].grad = gradient
                    optimizer.step()
                if epoch + 1 in shown:
                    reached = self.model.flatten(stack).detach()
                    if require_finite:
                        check_finite(reached, epoch + 1, plan.seed)
                    on_mark(epoch + 1, reached)
        return reached
