"""A training run on an objective: what is trained and by which steps, many models at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import cached_property
from math import ceil, sqrt
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..batch_statistics import BatchStatistics, statistics_in
from ..model import FinalModel
from ..objective import Objective
from ..recipe import Recipe
from ..rows import Rows
from .batches import FULL_DATA, Batch, LeaveOutMode, Plan, all_but
from .chains import read_chain
from .differentiable import n_parts
from .examination import examine
from .gradients import (
    Stack,
    StackedGradient,
    compiled_gradient,
    expanded,
    looped_gradient,
    stacked_gradient,
)
from .groups import Groups, check_groups
from .learners import Alone, Learner, Together
from .noise import seeded
from .optimizers import DEFAULT_BATCH_SIZE, LearningRate, OptimizerSpec, resolve_optimizer
from .products import fast_float32_products

#: Working set of a stack that still trains fast: what measured best on processors with 1 to 2 MiB
#: of second-level cache a core (see benchmarks/README.md). Fewer models than the smallest stack do
#: not share enough of what a step costs beside its products.
STACK_BYTES = 8 * 2**20
MIN_STACK, MAX_STACK = 4, 32

#: The same on an accelerator, which is the busier the more there is to do at a time.
STACK_BYTES_OF_ACCELERATOR = 16 * 2**30
MAX_STACK_OF_ACCELERATOR = 256

#: Parameters of a single chain of layers from which on its products gain from torch's other library; those
#: of an encoder lose.
LARGE_PRODUCTS = 500_000

#: Operations of a run from which compiling pays for itself (about a minute of training).
COMPILE_FROM = 3e12


#: Ways to train many models: layer by layer, by ``vmap``, or one after the other. With
#: "auto" a chain of layers is taken layer by layer and any other network by ``vmap``.
Way = Literal["auto", "layers", "vmap", "loop"]
WAYS = get_args(Way)


class Engine(NamedTuple):
    """The gradient of a stack and the optimiser, as they are right for the network.

    `alone` says that models are trained one after the other, as modules of their own.
    """

    gradient: StackedGradient
    optimizer: OptimizerSpec
    alone: bool


@dataclass(frozen=True, eq=False)
class Run:
    """A training run on an objective; seeds and horizons are arguments of its methods.

    Many models are trained as one stack by `train`; `RecordedRun` is the training of one model on
    all rows, which can be walked forwards and backwards. Training begins at `start`, (p,) for all
    models or (L, p) for each, or at the final model. With `shuffle` the order of the rows is drawn;
    otherwise each epoch has their own.
    """

    objective: Objective
    optimizer: OptimizerSpec
    batch_size: int
    start: Tensor | None = None
    compile: bool = False
    shuffle: bool = True
    way: Way = "auto"

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields: what is found again from them stays out of copies and pickles."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def model(self) -> FinalModel:
        """The final model: architecture and loss."""
        return self.objective.model

    @property
    def rows(self) -> Rows:
        """The training rows."""
        return self.objective.rows

    @cached_property
    def weights(self) -> Tensor:
        """Weights (n,) of the rows in the objective, where batches are made: on the CPU."""
        if self.rows.weights is None:
            return torch.ones(len(self.rows), dtype=self.model.dtype)
        return self.rows.weights.cpu()

    @property
    def first(self) -> Tensor:
        """The initial parameters, with statistics where these are trained."""
        return self.model.state if self.start is None else self.start

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of all rows."""
        return ceil(len(self.rows) / self.batch_size)

    def n_steps(self, n_epochs: float) -> int:
        """Return the number of steps of so many epochs, a whole one."""
        return round(n_epochs * self.steps_per_epoch)

    def n_epochs(self, n_steps: int) -> float:
        """Return the number of epochs of so many steps; an integer where they are whole."""
        whole, rest = divmod(n_steps, self.steps_per_epoch)
        return n_steps / self.steps_per_epoch if rest else whole

    def bytes_of(self, n_vectors: int) -> int:
        """Return the bytes of so many vectors of parameters."""
        return n_vectors * self.first.shape[-1] * self.model.theta.element_size()

    def state_bytes(self, n_steps: int) -> int:
        """Return the bytes of a recorded run's states that are alive at a time."""
        return self.bytes_of(2 * ceil(sqrt(n_steps)) * n_parts(self.optimizer))

    def plan(
        self, seed: int, left_out: Sequence[int] = (FULL_DATA,), mode: LeaveOutMode = "mask"
    ) -> Plan:
        """Return the batches of models that each leave out one row, or none where it is `FULL_DATA`."""
        return self.plan_of(seed, all_but(left_out, len(self.rows)), mode)

    def plan_of(self, seed: int, inside: Tensor, mode: LeaveOutMode = "drop") -> Plan:
        """Return the batches of models that are each trained on a subset (L, n) of the rows."""
        return Plan(seed, inside, self.weights, self.batch_size, mode, self.shuffle)

    def identity(self, horizons: Sequence[int], mode: LeaveOutMode = "mask") -> dict[str, Any]:
        """Return what the run is, read after these steps, for the directory that keeps what comes of it."""
        epochs = [self.n_epochs(n_steps) for n_steps in horizons]
        return {
            "model": self.model.fingerprint,
            **self.rows.identity(),
            "batch_size": self.batch_size,
            "epochs": epochs,
            "leave_out_mode": mode,
            "dtype": str(self.model.dtype),
            "device": self.model.device.type,
            **self.optimizer.describe(ceil(epochs[-1])),
        }

    @property
    def variant(self) -> str:
        """Name of the way of computing, which may differ in the last bits from another."""
        if self.compile:
            return "compiled"
        return self.way if self.way in ("vmap", "loop") else ""

    def stack_size(self) -> int:
        """Return how many models to train as one stack, so that it stays in the processor's cache.

        On an accelerator there are as many as its memory has room for.
        """
        if self.way == "loop":
            return 1
        model = self.model
        on_cpu = model.device.type == "cpu"
        room = STACK_BYTES if on_cpu else STACK_BYTES_OF_ACCELERATOR
        widths = sum(shape[0] for shape in model.shapes.values() if len(shape) > 1)
        numbers = 3 * model.n_parameters + 2 * self.batch_size * widths
        fitting = room // (numbers * model.theta.element_size())
        return int(min(max(fitting, MIN_STACK), MAX_STACK if on_cpu else MAX_STACK_OF_ACCELERATOR))

    def compiles(self, asked: bool | str, n_models: int, n_steps: int) -> bool:
        """Return what ``compile="auto"`` means for so many models: long runs that gain from it.

        The amount of work decides, whoever does it, since the bits depend on it.
        """
        if isinstance(asked, bool):
            return asked
        each = 6.0 * self.model.n_parameters * len(self.rows)
        operations = each * self.n_epochs(n_steps) * n_models
        chain = not self.model.is_stochastic and read_chain(self.model) is not None
        return chain and operations > COMPILE_FROM

    # ---- steps ------------------------------------------------------------------------------

    @cached_property
    def engine(self) -> Engine:
        """The fast ways of this network, or slower ones where those are not right (`examine`)."""
        verdict = examine(self.objective, self.optimizer, self.way)
        gradient: StackedGradient
        if not verdict.stacked:
            gradient = looped_gradient(self.model)
        elif self.compile:
            gradient = compiled_gradient(self.model)
        else:
            gradient = stacked_gradient(self.model, by_layers=self.way != "vmap")
        optimizer = self.optimizer if verdict.as_built else self.optimizer.plain()
        return Engine(gradient, optimizer, not verdict.stacked)

    def learner(self, starts: Tensor) -> Learner:
        """Return models that begin at parameters (L, p), as one stack or as a module of its own."""
        if self.engine.alone:
            return Alone(self.model, self.rows, starts)
        return Together(self.model, self.gradient, starts)

    def gradient(self, theta: Stack, batch: Batch, out: Stack | None = None) -> Stack:
        """Return the gradient of each model's objective on its batch, as the stacked parameters.

        It may be written to `out`.
        """
        index = batch.rows.to(self.rows.device)
        x = self.model.cut(self.rows.inputs[index], training=True)
        y = self.rows.targets[index]
        weights = batch.weights.to(self.model.device, self.model.dtype)
        if batch.rows.dim() == 1:
            x, y = expanded(x, len(weights)), expanded(y, len(weights))
        with torch.no_grad():
            return self.engine.gradient(theta, x, y, weights, out)

    def train(
        self,
        plan: Plan,
        horizons: Sequence[int],
        look: Callable[[int, Tensor], None] = lambda *_: None,
        require_finite: bool = True,
    ) -> Tensor:
        """Train the models of `plan` as one stack, and return their parameters (L, p) at the end.

        `look` is called at each of the increasing `horizons`, in steps of training on all rows, with it
        and the parameters, which it must not change. A model that has diverged there raises
        FloatingPointError, unless that is not required: then the others of its stack go on undisturbed.
        """
        self.optimizer.check_epochs(ceil(horizons[-1] / self.steps_per_epoch))
        starts = self.first.detach().expand(plan.n_models, -1)
        if not self.engine.alone or plan.n_models == 1:
            return self._train(plan, starts, horizons, look, require_finite)
        reached: dict[int, list[Tensor]] = {horizon: [] for horizon in horizons}
        for one, start in zip(plan.apart(), starts.split(1), strict=True):
            self._train(
                one, start, horizons, lambda e, theta: reached[e].append(theta), require_finite
            )
        for horizon, parts in reached.items():
            look(horizon, torch.cat(parts))
        return torch.cat(reached[horizons[-1]])

    def _train(
        self,
        plan: Plan,
        starts: Tensor,
        horizons: Sequence[int],
        look: Callable[[int, Tensor], None],
        require_finite: bool,
    ) -> Tensor:
        """Train models that learn together."""
        model, spec = self.model, self.engine.optimizer
        marks = [plan.own_steps(step, self.steps_per_epoch) for step in horizons]
        per_epoch, reached_after = plan.steps_per_epoch, set(marks)
        learner = self.learner(starts)
        groups = Groups(spec, model)
        optimizer = groups.of_stack(learner.parameters)

        def trial() -> Tensor:
            with seeded(model, plan.seed):
                return learner.gradient(next(plan.batches(1)))

        key = (model.key, self.batch_size, self.engine.alone)
        large = not self.engine.alone or (
            model.n_parameters >= LARGE_PRODUCTS and read_chain(model) is not None
        )
        products = fast_float32_products(trial, key) if large else nullcontext()
        with products, seeded(model, plan.seed):
            for done, batch in enumerate(plan.batches(marks[-1]), start=1):
                if (done - 1) % per_epoch == 0:
                    groups.set_rates(optimizer, (done - 1) // per_epoch)
                learner.differentiate(batch)
                if spec.clipping:
                    spec.clipping.clip(learner.gradients())
                optimizer.step()
                if done in reached_after:
                    reached = learner.reached()
                    if require_finite:
                        check_finite(reached, done / per_epoch, plan.seed)
                    for step, mark in zip(horizons, marks, strict=True):
                        if mark == done:
                            look(step, reached)
        return reached


def resolve_run(
    objective: Objective,
    recipe: Recipe,
    optimizer: str | type[torch.optim.Optimizer] | None,
    lr: LearningRate | None,
    optimizer_params: dict[str, Any] | None,
    batch_size: int | None,
    batch_statistics: BatchStatistics = "frozen",
) -> Run:
    """Return the run that parameters ask for; what is None is the recipe's (`resolve_optimizer`)."""
    if batch_statistics == "update" and statistics_in(objective.model.module):
        objective = objective.at(replace(objective.model, batch_statistics="update"))
    spec = resolve_optimizer(optimizer, lr, optimizer_params, recipe)
    check_groups(spec, objective.model.shapes)
    size = batch_size or recipe.batch_size or DEFAULT_BATCH_SIZE
    return Run(objective, spec, min(size, len(objective)))


def check_finite(theta: Tensor, epochs: float, seed: int) -> None:
    """Raise FloatingPointError if parameters are NaN or infinite."""
    if not bool(torch.isfinite(theta).all()):
        raise FloatingPointError(
            f"training diverged: parameters are NaN or infinite after {epochs:g} epochs with seed "
            f"{seed}. Lower lr, or train for fewer epochs."
        )
