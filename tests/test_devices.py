"""Every attributor on another device than the CPU: nothing mixes, and the scores are those of the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from other_device import Remote, other_device
from torch import nn

import fimoda

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 5)).astype(np.float32)
LABELS, NUMBERS = RNG.integers(3, size=40), RNG.normal(size=(40, 2)).astype(np.float32)
IMAGES = RNG.normal(size=(40, 1, 5, 5)).astype(np.float32)
STEPS = {"n_epochs": 2, "optimizer": "SGD", "lr": 0.05, "batch_size": 8}
RUN = {**STEPS, "n_seeds": [0]}
RECIPE = {"n_epochs": 3, "lr": 0.05, "batch_size": 8, "trajectory": "final"}


def chain(n_outputs):
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, n_outputs))


NETWORKS = {
    "classes": (lambda: chain(3), nn.CrossEntropyLoss(), X, LABELS),
    "numbers": (lambda: chain(2), nn.MSELoss(), X, NUMBERS),
    "images": (
        # a bias before batch statistics has no gradient but rounding, of which Adam makes full steps
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3, bias=False),
            nn.BatchNorm2d(2),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(18, 3),
        ),
        nn.CrossEntropyLoss(),
        IMAGES,
        LABELS,
    ),
}

ATTRIBUTORS = {
    "GradDot": (fimoda.GradDot, {}),
    "GradCos": (fimoda.GradCos, {}),
    "exact": (fimoda.ExactInfluence, {}),
    "exact, tuned": (
        fimoda.ExactInfluence,
        {"damping": "tuned", "tuning": {**RUN, "leave_out": 5}, "random_state": 0},
    ),
    "Hessian": (fimoda.ExactInfluence, {"curvature": "hessian", "damping": 3.0}),
    "Newton": (fimoda.ExactInfluence, {"newton_step": True}),
    "CG": (fimoda.CGInfluence, {}),
    "CG, EK-FAC": (fimoda.CGInfluence, {"preconditioner": "ekfac"}),
    "LiSSA": (fimoda.LiSSAInfluence, {}),
    "LiSSA, batches": (fimoda.LiSSAInfluence, {"batch_size": 8, "depth": 50}),
    "Arnoldi": (fimoda.ArnoldiInfluence, {}),
    "EK-FAC": (fimoda.EKFACInfluence, {}),
    "EK-FAC, sampled": (fimoda.EKFACInfluence, {"fisher": "sampled"}),
    "DataInf": (fimoda.DataInf, {}),
    "TRAK": (fimoda.TRAK, {"n_components": 20}),
    "RepSim": (fimoda.RepSim, {}),
    "further training": (
        fimoda.FurtherTraining,
        {"leave_out": 4, "compile": False, **RUN},
    ),
    "Adam": (
        fimoda.FurtherTraining,
        {"leave_out": 4, "compile": False, **RUN, "optimizer": "Adam"},
    ),
    "kernel": (fimoda.OnceLinearizedFurtherTraining, RUN),
    "segments": (fimoda.LinearizedFurtherTraining, {"n_segments": 2, **RUN}),
    "steps": (fimoda.OnceLinearizedFurtherTraining, {"solver": "steps", **RUN}),
    "adjoint": (fimoda.UnrolledDifferentiation, {"mode": "adjoint", "order": "own", **RUN}),
    "expected order": (fimoda.UnrolledDifferentiation, RUN),
    "expected order, Adam": (fimoda.UnrolledDifferentiation, {**RUN, "optimizer": "Adam"}),
    "forward": (
        fimoda.UnrolledDifferentiation,
        {"mode": "forward", "order": "own", "leave_out": 4, "batch_statistics": "frozen", **RUN},
    ),
    "SOURCE": (fimoda.SOURCE, RECIPE),
    "SOURCE, exact": (fimoda.SOURCE, {**RECIPE, "curvature": "exact"}),
    "SOURCE, projected": (
        fimoda.SOURCE,
        {**RECIPE, "curvature": "projected", "n_components": 20},
    ),
    "TracIn": (fimoda.TracIn, RECIPE),
    "leave one out": (fimoda.LeaveOneOut, {"leave_out": 3, "compile": False, **RUN}),
    "DataShapley": (fimoda.DataShapley, {"n_samples": 1, "compile": False, **RUN}),
    "DataOOB": (fimoda.DataOOB, {"n_samples": 24, "compile": False, **RUN}),
    "KNNShapley": (fimoda.KNNShapley, {}),
    "Downsampling": (fimoda.Downsampling, {"n_subsets": 8, "compile": False, **RUN}),
    "Datamodel": (
        fimoda.Datamodel,
        {"n_subsets": 12, "regression": "ridge", "compile": False, **RUN},
    ),
}


def scores(name, network, device):
    make, criterion, rows, targets = NETWORKS[network]
    cls, params = ATTRIBUTORS[name]
    if "random_state" in cls._parameter_constraints:
        params = {"random_state": 0, **params}
    torch.manual_seed(0)
    net = make().to(device).eval()
    attributor = cls(net, criterion=criterion, **params).fit(rows, targets)
    assert isinstance(attributor.model_.theta, Remote) == (device.type != "cpu")
    return attributor.transform(rows[:6], targets[:6]), attributor.self_influence()


@pytest.mark.parametrize("name", ATTRIBUTORS)
@pytest.mark.parametrize("network", NETWORKS)
def test_same_scores_on_another_device(name, network, monkeypatch):
    expected = scores(name, network, torch.device("cpu"))
    with other_device(monkeypatch) as device:
        found = scores(name, network, device)
    for one, other in zip(found, expected, strict=True):
        assert np.abs(other).max() > 0
        assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())


ALONG_THE_RUN = {
    "SOURCE": (fimoda.SOURCE, {}, {}),
    "Fast-SOURCE, AdamW": (
        fimoda.SOURCE,
        {"averaging": "parameters"},
        {"optimizer": "AdamW", "optimizer_params": {"weight_decay": 0.1}},
    ),
    "segments": (fimoda.SOURCE, {"segments": "auto"}, {"optimizer_params": {"momentum": 0.5}}),
    "TracIn": (fimoda.TracIn, {}, {}),
    "TracIn, projected": (fimoda.TracIn, {"n_components": 20, "random_state": 0}, {}),
    "Hydra": (fimoda.Hydra, {}, {"optimizer_params": {"weight_decay": 0.1}}),
}


def ensemble_scores(name, device):
    cls, params, training = ALONG_THE_RUN[name]
    make, criterion, rows, targets = NETWORKS["classes"]
    torch.manual_seed(0)
    net = make().to(device)
    models = fimoda.train_ensemble(
        net,
        rows,
        targets,
        n_seeds=[0, 1],
        checkpoints="all" if cls is fimoda.Hydra else 4,
        criterion=criterion,
        **{**STEPS, **training},
    )
    many = fimoda.EnsembleAttributor(
        net, attributor=cls(**params), models=models, criterion=criterion
    )
    return many.fit(rows, targets).transform(rows[:6], targets[:6])


@pytest.mark.parametrize("name", ALONG_THE_RUN)
def test_recorded_runs_on_another_device(name, monkeypatch):
    expected = ensemble_scores(name, torch.device("cpu"))
    with other_device(monkeypatch) as device:
        found = ensemble_scores(name, device)
    assert np.abs(expected).max() > 0
    assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def distributional_scores(device):
    make, criterion, rows, targets = NETWORKS["numbers"]
    torch.manual_seed(0)
    nets = [make().to(device) for _ in range(3)]
    method = fimoda.DistributionalInfluence(
        nets[0], criterion=criterion, method=fimoda.ExactInfluence(), models=nets, distance="w2"
    )
    return method.fit(rows, targets).transform(rows[:6], targets[:6])


def test_distributions_on_another_device(monkeypatch):
    expected = distributional_scores(torch.device("cpu"))
    with other_device(monkeypatch) as device:
        found = distributional_scores(device)
    assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def curve_scores(device):
    make, criterion, rows, targets = NETWORKS["classes"]
    torch.manual_seed(0)
    net = make().to(device)
    given = {"criterion": criterion, **STEPS}
    curve = fimoda.further_training_curve(
        net, rows, targets, rows[:6], targets[:6], epochs=[1, 2], leave_out=5, n_seeds=[0, 1],
        random_state=0, compile=False, **{k: v for k, v in given.items() if k != "n_epochs"},
    )  # fmt: skip
    method = fimoda.LinearizedFurtherTraining(net, random_state=0, **{**given, "n_epochs": [1, 2]})
    method.fit(rows, targets)
    agreement = fimoda.agreement_curve({"m": method}, curve, rows[:6], targets[:6])
    return curve.scores, method.transform_horizons(rows[:6], targets[:6]), agreement.mean()


def test_curves_on_another_device(monkeypatch):
    expected = curve_scores(torch.device("cpu"))
    with other_device(monkeypatch) as device:
        found = curve_scores(device)
    for one, other in zip(found, expected, strict=True):
        assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())


def test_mixing_devices_is_an_error(monkeypatch):
    with other_device(monkeypatch) as device:
        there, here = torch.ones(2, 2, device=device), torch.ones(2, 2)
        for mixed in (lambda: there + here, lambda: here @ there, lambda: there.add_(here)):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        assert (there + here.to(device)).cpu().tolist() == [[2, 2], [2, 2]]
