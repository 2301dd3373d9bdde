"""skorch nets: criterion and way of training come with them."""

from __future__ import annotations

import fnmatch
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import skorch
from sklearn.base import clone
from torch import nn
from torch.utils.data import DataLoader

from .._arrays import n_rows, take_rows
from ..losses import is_torchs_own, pairs_all_rows
from ..model import FinalModel
from ..recipe import Recipe
from .fresh_parameters import drawn_again, kept_beside
from .kinds import Kind
from .modules import Module, freeze
from .own_predictions import check_net
from .pickles import let_be_pickled
from .weight_decay import penalty_of_optimizer

#: Methods that make the training objective another than the mean of the criterion.
_HOOKS = ("get_loss", "infer", "train_step", "train_step_single")


def _shuffles(net: skorch.NeuralNet, iterator: dict[str, Any]) -> bool:
    """Return whether the order of the rows changes; a loader that is not torch's is taken to do so."""
    own = net.iterator_train is not DataLoader
    return (
        own
        or bool(iterator.get("shuffle"))
        or not {"sampler", "batch_sampler"}.isdisjoint(iterator)
    )


def _last_rate(
    net: skorch.NeuralNet, first: float, of_groups: list[float]
) -> tuple[float | None, str]:
    """Return the learning rate that training has ended with, if not the first, and who knows it.

    That is what the optimiser would go on with. One that has taken no step (in a net whose weights
    were loaded) or that has come to rest at zero does not say, and the history is asked. Parameter
    groups began with rates `of_groups` of their own, and are taken to have followed the same schedule.
    """
    groups = getattr(getattr(net, "optimizer_", None), "param_groups", [])
    begun = [*of_groups, first]

    def of_others(rate: float, began: float) -> float:
        return rate if began == first else rate / began * first

    held = [of_others(float(group["lr"]), rate) for group, rate in zip(groups, begun, strict=False)]
    scheduled = any("initial_lr" in group for group in groups)
    alike = bool(held) and np.allclose(held, held[-1], rtol=1e-9, atol=0)
    if alike and held[-1] > 0 and (scheduled or held[-1] != first):
        return (None, "") if held[-1] == first else (held[-1], "its optimiser's last")
    # the history has the rates of the first group
    recorded = [rate for rate in _recorded_rates(net) if rate > 0]
    if recorded and recorded[-1] != begun[0]:
        return of_others(recorded[-1], begun[0]), "the last in its history"
    return None, ""


def _groups(net: skorch.NeuralNet, given: Any) -> list[tuple[str, dict[str, Any], bool]]:
    """Return the parameter groups that the optimiser has, and whether each has a trained parameter.

    skorch puts a parameter into the first group whose pattern its name fits.
    """
    left, found = dict(net.module_.named_parameters()), []
    for pattern, settings in given:
        own = [left.pop(name) for name in fnmatch.filter(list(left), pattern)]
        if own:
            found.append((pattern, dict(settings), any(part.requires_grad for part in own)))
    return found


def _recorded_rates(net: skorch.NeuralNet) -> list[float]:
    """Return the learning rates that a scheduler has written to the history, the last one last."""
    callbacks = [callback for _, callback in getattr(net, "callbacks_", [])]
    names = ["event_lr"] + [
        c.event_name for c in callbacks if isinstance(c, skorch.callbacks.LRScheduler)
    ]
    return [
        float(record[name])
        for epoch in getattr(net, "history_", [])
        for record in (*epoch.get("batches", []), epoch)
        for name in dict.fromkeys(names)
        if name in record
    ]


def _check_pairing(net: skorch.NeuralNet, model: FinalModel, X: Any, y: Any) -> None:
    """Warn if the net's own loss has paired every output with every other row's target, too."""
    shape, flat = np.shape(y)[1:], model.output_ndim == 1
    if (
        shape != ((1,) if flat else ())
        or model.outputs(model.encode_X(take_rows(X, np.arange(1)))).shape[1] != 1
    ):
        return
    n = 3
    if not pairs_all_rows(net.criterion_, (n,) if flat else (n, 1), (n, *shape)):
        return
    made, targets = ("(n,)", "(n, 1)") if flat else ("(n, 1)", "(n,)")
    cure = "y.ravel()" if flat else "y.reshape(-1, 1)"
    warnings.warn(
        f"the outputs of the net have shape {made} and y has shape {targets}: with such targets "
        f"{type(net.criterion_).__name__} compares every output with the targets of all rows of its "
        "batch (n x n), so the net has not learnt what y says of each row. Scores are of the loss of "
        f"each row with its own target. Train the net again with {cure}; if it was trained with that, "
        "pass it here too.",
        UserWarning,
        stacklevel=4,
    )


class Net(Module):
    """A skorch net."""

    types = (skorch.NeuralNet,)
    takes_criterion = False

    def is_fitted(self) -> bool:
        return Kind.is_fitted(self)

    def n_epochs(self) -> int | None:
        return self.model.max_epochs

    def own_training(self) -> str | None:
        """Return the buffer that parameters start with, beside themselves."""
        module = getattr(self.model, "module_", None)
        name = None if module is None else kept_beside(module)
        return None if name is None else f"a parametrisation with a buffer ({name})"

    def rows_seen(self) -> int | None:
        """Return how many rows the last epochs in its history had."""
        settings = self.model.get_params_for("iterator_train")
        if settings.get("drop_last") or settings.get("batch_sampler") is not None:
            return None
        epochs = (self.model.history_ or [])[-2:]  # the last may have been interrupted
        sizes = [
            sum(batch.get("train_batch_size", 0) for batch in epoch.get("batches", []))
            for epoch in epochs
        ]
        return max(sizes, default=0) or None

    def warn_of_batches(self, weighted: bool) -> None:
        """Warn of a collate_fn, an iterator or a sampler of its own."""
        name, settings = type(self.model).__name__, self.model.get_params_for("iterator_train")
        if self._makes_other_rows(settings.get("collate_fn")):
            warnings.warn(
                f"{name} makes its batches by a collate_fn or an iterator of its own in training "
                "(iterator_train) and otherwise without: what it does to the rows is not known. Scores "
                "are those of the rows as they are given, each once an epoch.",
                UserWarning,
                stacklevel=3,
            )
        drawn = {settings.get("sampler"), settings.get("batch_sampler")} != {None}
        if drawn and not weighted:
            warnings.warn(
                f"{name} draws its rows with a sampler of its own (iterator_train), and scores are those "
                "of rows that come up once an epoch. Where the sampler draws some rows more often, give "
                "their weights as sample_weight.",
                UserWarning,
                stacklevel=3,
            )

    def _makes_other_rows(self, collate: Any) -> bool:
        """Return whether batches are made otherwise than for predictions, which are checked."""
        own = self.model.get_params_for("iterator_valid").get("collate_fn")
        if collate is not None and collate is not own:
            return True
        return self.model.iterator_train not in (DataLoader, self.model.iterator_valid)

    def frozen(self, X: Any, y: Any, weights: Any, criterion: Any) -> FinalModel:
        net = self.model
        for hook in _HOOKS:
            owner = next(c for c in type(net).__mro__ if hook in vars(c))
            if not owner.__module__.startswith("skorch."):
                raise TypeError(
                    f"estimator {type(net).__name__} overrides {hook}, so its training objective cannot "
                    "be read from its criterion. Pass net.module_ with criterion=... instead."
                )
        params = dict(net.get_params_for("optimizer"))
        obstacle = None
        beside: dict[str, Any] = {}
        groups = _groups(net, params.pop("param_groups", None) or ())
        if any(set(settings) - {"lr", "weight_decay"} for _, settings, _ in groups):
            obstacle = "its parameter groups have other settings than lr and weight_decay"
        elif own := [(pattern, settings) for pattern, settings, trained in groups if trained]:
            beside["param_groups"] = own
        callbacks = [callback for _, callback in getattr(net, "callbacks_", [])]
        for callback in callbacks:
            if isinstance(callback, skorch.callbacks.GradientNormClipping):
                if callback.gradient_clip_value is None:
                    continue
                if float(callback.gradient_clip_norm_type) != 2 or "max_grad_norm" in beside:
                    obstacle = "its gradients were clipped twice, or by another norm than L2"
                beside["max_grad_norm"] = float(callback.gradient_clip_value)
            elif type(callback).on_grad_computed is not skorch.callbacks.Callback.on_grad_computed:
                obstacle = (
                    f"its callback {type(callback).__name__} sees the gradients before each step"
                )
        iterator = net.get_params_for("iterator_train")
        batch_size = iterator.get("batch_size", net.batch_size)
        lr: Any = params.pop("lr", net.lr)
        last_lr, source = _last_rate(net, lr, [float(own.get("lr", lr)) for _, own, _ in groups])
        recipe = Recipe(
            optimizer=net.optimizer,
            lr=lr,
            batch_size=n_rows(X) if batch_size == -1 else batch_size,
            params=params,
            beside=beside,
            shuffle=_shuffles(net, iterator),
            obstacle=obstacle,
            last_lr=last_lr,
            last_lr_from=source,
        )
        probabilities = isinstance(net, skorch.NeuralNetClassifier) and isinstance(
            net.criterion_, nn.NLLLoss
        )
        binary = isinstance(net, skorch.NeuralNetBinaryClassifier)
        # torch's own criteria find the classes of positions on the second axis
        module, criterion = net.module_, net.criterion_
        second = True if is_torchs_own(criterion) else None
        model = freeze(module, X, y, criterion, recipe, second, probabilities, binary)
        if y is not None:
            _check_pairing(net, model, X, y)
        decay = penalty_of_optimizer(getattr(net, "optimizer_", None), net.module_)
        model = replace(model, decay=decay)
        return replace(model, threshold=net.threshold) if binary else model

    def check_predictions(self, view: FinalModel, X: Any) -> None:
        check_net(view, self.model, X)

    def let_be_pickled(self) -> None:
        let_be_pickled(self.model.module_)

    def fresh(self, seed: int) -> nn.Module:
        """Return the module of a clone, initialised."""
        net = clone(self.model).set_params(device="cpu", verbose=0).initialize()
        # skorch uses a module that it was given as an instance as it stands
        given = isinstance(self.model.module, nn.Module)
        return drawn_again(net.module_) if given else net.module_
