"""Networks before training: the initial parameters of a seed, and for how long to train."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import skorch
import torch
from sklearn.base import clone
from sklearn.neural_network import MLPClassifier, MLPRegressor
from torch import Tensor, nn

from ..model import FinalModel, unwrapped
from .mlp import from_mlp
from .randomness import global_generators
from .wrappers import last_step, obstacle

#: Steps of this size change no parameter.
_NO_STEP = 1e-300


def is_network(estimator: Any) -> bool:
    """Whether the model is trained by gradient steps in batches, as a stack can be."""
    if obstacle(estimator):  # other rows than those given
        return False
    model = last_step(estimator)
    if isinstance(model, MLPClassifier | MLPRegressor):
        return model.solver != "lbfgs" and not _overrides_predictions(model)
    return isinstance(model, nn.Module | skorch.NeuralNet)


def _overrides_predictions(model: MLPClassifier | MLPRegressor) -> bool:
    base = MLPClassifier if isinstance(model, MLPClassifier) else MLPRegressor
    names = ("predict", "predict_proba")
    return any(getattr(type(model), n, None) is not getattr(base, n, None) for n in names)


def training_epochs(estimator: Any, n_epochs: int | None) -> int:
    """Epochs to train: as given, or those of the network's own training.

    Raises
    ------
    ValueError
        If neither is known.
    """
    model = last_step(estimator)
    if n_epochs is not None:
        return n_epochs
    if isinstance(model, skorch.NeuralNet):
        return model.max_epochs
    if isinstance(model, MLPClassifier | MLPRegressor):
        return model.n_iter_
    raise ValueError(
        "n_epochs must be given for a bare torch.nn.Module, which does not say for how long it was "
        "trained; got None."
    )


def initial_parameters(
    estimator: Any, model: FinalModel, seed: int, init: Callable[[], nn.Module] | None = None
) -> Tensor:
    """Parameters (p,) that a network has before training with this seed.

    Parameters
    ----------
    estimator : object
        A fitted network (`is_network`).
    model : FinalModel
        Its frozen view; parameters that are constants there are not drawn.
    seed : int
        A scikit-learn MLP takes it as its ``random_state``; for others it is torch's seed.
    init : callable, default=None
        Makes a new module of the same architecture. By default a skorch net is cloned and
        initialised, and a bare module's parts draw their parameters by ``reset_parameters``.

    Returns
    -------
    Tensor of shape (p,)

    Raises
    ------
    ValueError
        If a parameter cannot be drawn again, or `init` makes another architecture.
    """
    network = last_step(estimator)
    if isinstance(network, MLPClassifier | MLPRegressor) and init is None:
        return _of_mlp(network, seed).to(model.theta)
    with global_generators(seed):
        module = _fresh(network) if init is None else init()
    found = dict(unwrapped(module).named_parameters())
    shapes = {name: found[name].shape for name in model.shapes if name in found}
    if shapes != model.shapes:
        wrong = next(name for name in model.shapes if shapes.get(name) != model.shapes[name])
        raise ValueError(
            f"init must make a module of the estimator's architecture: parameter {wrong!r} should "
            f"have shape {tuple(model.shapes[wrong])}, got {shapes.get(wrong) and tuple(shapes[wrong])}."
        )
    return torch.cat([found[name].detach().reshape(-1) for name in model.shapes]).to(model.theta)


def _of_mlp(network: MLPClassifier | MLPRegressor, seed: int) -> Tensor:
    """What scikit-learn draws, seen after a step of no length on one row of zeros."""
    fresh = clone(network).set_params(
        random_state=seed, learning_rate_init=_NO_STEP, batch_size=1, early_stopping=False
    )
    row = np.zeros((1, network.n_features_in_), dtype=network.coefs_[0].dtype)
    if isinstance(network, MLPClassifier):
        fresh.partial_fit(row, network.classes_[:1], classes=network.classes_)
    else:
        target = np.zeros((1, network.n_outputs_))
        fresh.partial_fit(row, target if network.n_outputs_ > 1 else target[0])
    return from_mlp(fresh, np.ones(1)).theta


def _fresh(network: nn.Module | skorch.NeuralNet) -> nn.Module:
    if isinstance(network, nn.Module):
        return _reset(copy.deepcopy(network).cpu())
    net = clone(network).set_params(device="cpu", verbose=0).initialize()
    # skorch uses a module that it was given as an instance as it stands
    return _reset(net.module_) if isinstance(network.module, nn.Module) else net.module_


def _reset(module: nn.Module) -> nn.Module:
    """Draw all trainable parameters again, children first, as their constructors do."""
    left: list[str] = []

    def reset(part: nn.Module) -> None:
        draw = getattr(part, "reset_parameters", getattr(part, "_reset_parameters", None))
        if callable(draw):
            draw()
        elif any(p.requires_grad for p in part.parameters(recurse=False)):
            left.extend(name for name, _ in part.named_parameters(recurse=False))

    with torch.no_grad():
        module.apply(reset)
    if left:
        raise ValueError(
            f"estimator has parameters that no reset_parameters draws again ({', '.join(left)}), so "
            "it cannot be trained from scratch. Give the module that owns them a method "
            "reset_parameters, or pass init, a callable that makes a new module."
        )
    return module
