"""The way in which many models are trained: what is chosen, kept and refused, and the same result in each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from naive import relative
from torch import nn

from fimoda import FurtherTraining, LeaveOneOut, as_final_model, further_training_curve
from fimoda.objective import Objective
from fimoda.rows import Rows
from fimoda.training import choice
from fimoda.training.batches import FULL_DATA
from fimoda.training.choice import TRIAL_FROM, decided
from fimoda.training.optimizers import OptimizerSpec
from fimoda.training.run import Run
from fimoda.training.store import UnitStore

N = 12


def chain():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def other():
    return nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Dropout(0.3), nn.Linear(4, 2))


def case(made, dtype=torch.float64):
    torch.manual_seed(0)
    module = made().to(dtype).eval()
    X = torch.randn(N, 3, dtype=dtype)
    return module, X, torch.arange(N) % 2


def described(made):
    module, X, y = case(made)
    model = as_final_model(module, X, criterion=nn.CrossEntropyLoss())
    rows = Rows(model.encode_X(X), model.encode_y(y, 2))
    return Run(Objective(model, rows), OptimizerSpec(torch.optim.SGD, 0.1, {"momentum": 0.9}), 5)


LONG = TRIAL_FROM


def test_a_chain_is_trained_by_layers_whatever_its_length(monkeypatch):
    monkeypatch.setattr(choice, "faster", lambda run: pytest.fail("no trial is needed"))
    run = described(chain)
    for n_models in (1, LONG):
        assert decided(run, False, "auto", n_models, 1).way == "layers"
    assert decided(run, False, "layers", 1, 1).variant == ""


@pytest.mark.parametrize("found", ["vmap", "loop"])
def test_long_runs_of_other_networks_are_tried_once(monkeypatch, found):
    tried = []
    monkeypatch.setattr(choice, "_FOUND", {})
    monkeypatch.setattr(choice, "faster", lambda run: tried.append(run) or found)
    run = described(other)
    assert decided(run, False, "auto", 5, 1).way == "loop"
    assert not tried
    for _ in range(2):
        assert decided(run, False, "auto", LONG, 1).way == found
        assert decided(described(other), False, "auto", LONG, 1).way == found
    assert decided(run, False, "auto", 5, 1).way == "loop"
    assert len(tried) == 1


def test_a_trial_chooses_one_and_leaves_the_generators_alone():
    before = torch.get_rng_state()
    assert choice.faster(described(other)) in ("vmap", "loop")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_directory_remembers_the_choice(monkeypatch, tmp_path):
    """Whatever another process would find, and however long its run is."""
    run = described(other)
    for n_models, found in ((LONG, "vmap"), (LONG, "loop"), (1, "loop")):
        monkeypatch.setattr(choice, "_FOUND", {})
        monkeypatch.setattr(choice, "faster", lambda run, found=found: found)
        store = UnitStore(tmp_path, {"run": 1})
        assert decided(run, False, "auto", n_models, 1, store.agreed).way == "vmap"


def test_ways_that_are_none_for_the_network():
    with pytest.raises(ValueError, match="engine='layers' is for chains"):
        decided(described(other), False, "layers", 1, 1)
    with pytest.raises(ValueError, match="compile=True is for stacks"):
        decided(described(chain), True, "loop", 1, 1)
    module, X, y = case(chain)
    with pytest.raises(ValueError, match="'engine' parameter of FurtherTraining must be"):
        FurtherTraining(module, criterion=nn.CrossEntropyLoss(), engine="fast").fit(X, y)


@pytest.mark.parametrize("made", [chain, other])
@pytest.mark.parametrize("mode", ["mask", "drop", "expected"])
def test_every_way_gives_the_same(made, mode, tmp_path):
    """Dropout too, on disk and in parallel; the way is part of the name of what is kept."""
    module, X, y = case(made)
    settings = {
        "epochs": [1, 3], "n_seeds": [1, 2], "leave_out": [0, 4, 7], "leave_out_mode": mode,
        "optimizer": "Adam", "lr": 0.05, "batch_size": 5, "criterion": nn.CrossEntropyLoss(),
    }  # fmt: skip
    scores = {}
    for engine in ("auto", "vmap", "loop"):
        curve = further_training_curve(
            module,
            X,
            y,
            X[:4],
            y[:4],
            engine=engine,
            chunk_size=2,
            checkpoint_dir=tmp_path,
            **settings,
        )
        scores[engine] = curve.scores
        parallel = further_training_curve(
            module, X, y, X[:4], y[:4], engine=engine, chunk_size=2, n_jobs=2, **settings
        )
        np.testing.assert_array_equal(curve.scores, parallel.scores)
    assert relative(scores["vmap"], scores["loop"]) < 1e-9
    assert relative(scores["auto"], scores["loop"]) < 1e-9
    assert len(list(tmp_path.glob("seed-*-vmap.npy"))) == len(
        list(tmp_path.glob("seed-*-loop.npy"))
    )


def test_a_penalty_and_models_that_begin_apart():
    run = described(other)
    model = run.model
    torch.manual_seed(1)
    l2 = torch.rand(model.n_parameters, dtype=torch.float64)
    objective = run.objective.at(replace(model, l2=l2))
    starts = torch.stack([model.theta, 2 * model.theta, -model.theta])
    run = replace(run, objective=objective, start=starts)
    plan = run.plan(3, (FULL_DATA, 0, 4))
    looks = {"vmap": [], "loop": []}
    ends = {
        way: replace(run, way=way).train(
            plan, [1, 2], lambda e, theta, way=way: looks[way].append((e, theta))
        )
        for way in looks
    }
    assert relative(ends["loop"], ends["vmap"]) < 1e-10
    for (e, theta), (other_e, expected) in zip(looks["loop"], looks["vmap"], strict=True):
        assert e == other_e
        assert relative(theta, expected) < 1e-10


def test_retraining_in_every_way():
    module, X, y = case(other, torch.float32)
    scores = [
        LeaveOneOut(
            module, n_epochs=2, n_seeds=[0], leave_out=[1, 5], optimizer="SGD", lr=0.1, batch_size=4,
            criterion=nn.CrossEntropyLoss(), engine=engine,
        ).fit(X, y).transform(X[:3], y[:3])
        for engine in ("vmap", "loop")
    ]  # fmt: skip
    assert relative(*scores) < 1e-4
