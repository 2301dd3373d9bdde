"""The way in which many models are trained: chosen once for a run, by the network and a timed trial."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .batches import FULL_DATA
from .chains import read_chain
from .examination import examine
from .noise import seeded
from .run import Run, Way
from .workers import one_thread

#: Steps of single models from which on a trial takes less than a twentieth of the run.
TRIAL_FROM = 5000

#: Parameters of a network from which on a stack gains nothing on a CPU: its products are large enough alone.
LARGE = 2_000_000

#: Rounds of a trial, and what a step in a stack may take of the time of a step alone.
ROUNDS, GAIN = 3, 0.95

#: Keeps a choice by a name, and returns the one that was kept.
Agreed = Callable[[str, Callable[[], str]], str]

#: The ways that trials of this process have found, by network and batch.
_FOUND: dict[object, Way] = {}


def decided(
    run: Run,
    compile: bool | str,
    engine: Way,
    n_models: int,
    n_steps: int,
    agreed: Agreed | None = None,
) -> Run:
    """Return the run with its way of computing, for so many models: it is part of what the run is.

    With ``engine="auto"`` a chain of layers is trained layer by layer. Other networks are trained one
    model after the other in short runs, and in the faster of the ways that are right for them in long
    ones. `agreed` keeps that choice by a name, and returns the one that was kept.

    Raises ValueError if the way that is asked for is not one for the network.
    """
    by_layers = read_chain(run.model) is not None
    if engine == "layers" and not by_layers:
        raise ValueError(
            "engine='layers' is for chains of linear layers and functions of each number, which this "
            "network is not. Use 'auto', 'vmap' or 'loop'."
        )
    if engine == "loop" and compile is True:
        raise ValueError("compile=True is for stacks of models: set engine to 'auto' or 'vmap'.")
    if by_layers and engine in ("auto", "layers"):
        return replace(run, way="layers", compile=run.compiles(compile, n_models, n_steps))
    if compile is True:
        return replace(run, way="vmap", compile=True)
    if engine != "auto":
        return replace(run, way=engine)

    def choose() -> str:
        large = run.model.n_parameters > LARGE and run.model.device.type == "cpu"
        if large or n_models * n_steps < TRIAL_FROM:
            return "loop"
        key = (run.model.key, run.batch_size, str(run.model.device))
        if key not in _FOUND:
            _FOUND[key] = faster(run)
        return _FOUND[key]

    found = choose() if agreed is None else agreed("engine", choose)
    return replace(run, way="vmap" if found == "vmap" else "loop")


def faster(run: Run) -> Way:
    """Measure the time of steps of a stack and of one model, and return the way that takes less a model.

    A stack that is not right for the network, draws other dropout (`examine`), or is slow at its first
    step, has lost.
    """
    stacked, alone = replace(run, way="vmap"), replace(run, way="loop")
    with one_thread():
        verdict = examine(run.objective, run.optimizer, "vmap")
        if not (verdict.stacked and verdict.same_draws):
            return "loop"
        size = stacked.stack_size()
        stack, single = _step(stacked, size), _step(alone, 1)
        # the first steps of both prepare what later ones find
        single()
        device = run.model.device
        of_single, of_stack = [_seconds(single, device)], [_seconds(stack, device) / size]
        if of_stack[0] > 2 * of_single[0]:
            return "loop"
        for _ in range(ROUNDS):
            of_single += [_seconds(single, device) for _ in range(3)]
            of_stack.append(_seconds(stack, device) / size)
    return "vmap" if min(of_stack) < GAIN * min(of_single) else "loop"


def _step(run: Run, n_models: int) -> Callable[[], None]:
    """Return a function that takes a step with models, each time on the same batch."""
    starts: Tensor = run.model.state.expand(n_models, -1)
    learner = run.learner(starts)
    optimizer = run.engine.optimizer.build(learner.parameters.values())
    batch = next(run.plan(0, (FULL_DATA,) * n_models).batches(1))

    def step() -> None:
        with seeded(run.model, 0):
            learner.differentiate(batch)
            optimizer.step()

    return step


def _seconds(step: Callable[[], None], device: torch.device) -> float:
    """Return the seconds that a step takes: of this process alone, where it computes itself."""
    if device.type == "cpu":
        begin = time.process_time()
        step()
        return time.process_time() - begin
    begin = time.perf_counter()
    step()
    torch.get_device_module(device).synchronize(device)
    return time.perf_counter() - begin
