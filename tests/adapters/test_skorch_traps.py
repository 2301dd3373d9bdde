"""What a skorch net does to its own training: targets that broadcast, learning rates that change."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest
import skorch
import torch
from naive import Naive, relative
from sklearn.base import clone
from sklearn.neural_network import MLPClassifier, MLPRegressor
from skorch.callbacks import LRScheduler
from torch import nn

from fimoda import (
    FurtherTraining,
    GradDot,
    LeaveOneOut,
    as_final_model,
    attribute,
    train_ensemble,
    train_on_subsets,
)

N = 24


class Flat(nn.Module):
    """One output of shape (n,)."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 1)

    def forward(self, X):
        return self.inner(X).squeeze(-1)


def rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, 3)).astype(np.float32)
    return X, (X[:, 0] - X[:, 1] + 0.1 * rng.normal(size=N)).astype(np.float32)


def net_of(module=None, criterion=nn.MSELoss, cls=skorch.NeuralNet, **settings):
    torch.manual_seed(0)
    defaults = {"max_epochs": 4, "batch_size": 8, "lr": 0.1, "verbose": 0, "train_split": None}
    return cls(
        nn.Linear(3, 1) if module is None else module,
        criterion=criterion,
        **{**defaults, **settings},
    )


def fitted(net, X, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says it, too
        return net.fit(X, y)


# ---- targets that broadcast -----------------------------------------------------------------


@pytest.mark.parametrize("criterion", [nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss])
@pytest.mark.parametrize("flat", [False, True])
def test_broadcast_targets_are_told(criterion, flat):
    """The net's own loss is of n x n pairs; fimoda's is of the rows."""
    X, y = rows()
    paired, apart = (y[:, None], y) if flat else (y, y[:, None])
    net = fitted(net_of(Flat() if flat else None, criterion), X, paired)
    cure = r"y\.ravel\(\)" if flat else r"y\.reshape\(-1, 1\)"
    with pytest.warns(UserWarning, match=rf"all rows of its batch \(n x n\).*{cure}"):
        model = as_final_model(net, X, paired)
    assert nn.MSELoss()(torch.zeros(3, 1), torch.zeros(3)).shape == ()  # torch lets it pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = as_final_model(net, X, apart)
    for own, target in ((model, paired), (same, apart)):
        losses = own.losses(own.encode_X(X), own.encode_y(target, 1))
        by_hand = criterion(reduction="none")(torch.tensor(net.predict(X).ravel()), torch.tensor(y))
        np.testing.assert_allclose(losses, by_hand, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_attributors_tell_once():
    X, y = rows()
    net = fitted(net_of(), X, y)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        GradDot(net).fit(X, y).transform(X[:3], y[:3])
    assert len([w for w in caught if "n x n" in str(w.message)]) == 1


def test_nothing_is_told_where_nothing_broadcasts():
    X, y = rows()
    labels = (y > 0).astype(np.int64)
    two = np.stack([y, y], 1)
    softmax = nn.Sequential(nn.Linear(3, 2), nn.Softmax(-1))
    cases = [
        (net_of(), y[:, None]),
        (net_of(Flat()), y),
        (net_of(nn.Linear(3, 2)), two),
        (net_of(nn.Linear(3, 2), nn.CrossEntropyLoss), labels),
        (net_of(softmax, nn.NLLLoss, skorch.NeuralNetClassifier), labels),
        (
            net_of(Flat(), nn.BCEWithLogitsLoss, skorch.NeuralNetBinaryClassifier),
            labels.astype(np.float32),
        ),
    ]
    for net, target in cases:
        net.fit(X, target)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            as_final_model(net, X, target)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "error"
        )  # a bare module was trained by fimoda's loss as far as one knows
        for module, target in ((nn.Linear(3, 1), y), (Flat(), y[:, None])):
            GradDot(module, criterion=nn.MSELoss()).fit(X, target)


# ---- learning rates that change -------------------------------------------------------------


def scheduled(policy, module=None, **settings):
    own = {key: settings.pop(key) for key in ("step_every", "event_name") if key in settings}
    callbacks = [("schedule", LRScheduler(policy, **own, **settings.pop("of_policy", {})))]
    return net_of(module, callbacks=callbacks, **settings)


STEP = {"of_policy": {"step_size": 1, "gamma": 0.5}}


@pytest.mark.parametrize("step_every", ["epoch", "batch"])
def test_the_last_rate_of_a_schedule(step_every):
    X, y = rows()
    net = scheduled(torch.optim.lr_scheduler.StepLR, step_every=step_every, **STEP)
    net.fit(X, y[:, None])
    steps = 4 if step_every == "epoch" else 12
    recipe = as_final_model(net, X).recipe
    assert recipe.lr == 0.1
    assert recipe.last_lr == pytest.approx(0.1 * 0.5**steps)
    assert recipe.last_lr_from == "its optimiser's last"
    assert recipe.continued.lr == recipe.last_lr


def test_further_training_goes_on_with_it():
    """Against a loop that takes the rate from the optimiser; training anew begins with the first."""
    X, y = rows()
    net = scheduled(torch.optim.lr_scheduler.StepLR, nn.Linear(3, 1).double(), **STEP)
    X, y = X.astype(float), y[:, None].astype(float)
    net.fit(X, y)
    gold = FurtherTraining(net, n_epochs=2, n_seeds=[5], leave_out=[0, 3]).fit(X, y)
    X_, y_ = torch.from_numpy(X), torch.from_numpy(y)
    loop = Naive(
        net.module_, X_, y_, lambda outputs, targets, _: nn.functional.mse_loss(outputs, targets),
        lambda outputs, targets: (outputs - targets).square()[:, 0],
        lr=net.optimizer_.param_groups[0]["lr"], batch_size=8,
    )  # fmt: skip
    without, full, _ = loop.run(X_[:4], y_[:4], marks=[2], seeds=[5], leave_out=[0, 3])
    assert relative(gold.transform(X[:4], y[:4]), (without - full[:, :, None]).mean(-1)[0]) < 1e-9
    anew = LeaveOneOut(net, n_epochs=1, leave_out=[0], n_seeds=1).fit(X, y)
    assert anew._retrained_with([0]).way.run.optimizer.lr == 0.1
    assert GradDot(net).fit(X, y).fit_transform(X, y) == pytest.approx(
        GradDot(net, lr=0.1).fit(X, y).fit_transform(X, y) / 16
    )


def test_a_schedule_that_ends_at_zero():
    """The optimiser would not move: the last rate that moved it is that of the last epoch."""
    X, y = rows()
    net = scheduled(torch.optim.lr_scheduler.CosineAnnealingLR, of_policy={"T_max": 4})
    net.fit(X, y[:, None])
    assert net.optimizer_.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
    recipe = as_final_model(net, X).recipe
    assert recipe.last_lr == net.history[-1, "event_lr"] > 0.01
    assert recipe.last_lr_from == "the last in its history"


def test_nets_that_were_saved_and_trained_on(tmp_path):
    X, y = rows()
    net = scheduled(torch.optim.lr_scheduler.StepLR, **STEP).fit(X, y[:, None])
    last = as_final_model(net, X).recipe.last_lr
    assert as_final_model(pickle.loads(pickle.dumps(net)), X).recipe.last_lr == last
    assert as_final_model(copy.deepcopy(net), X).recipe.last_lr == last
    files = {"f_params": tmp_path / "p.pt", "f_history": tmp_path / "h.json"}
    net.save_params(f_optimizer=tmp_path / "o.pt", **files)
    loaded = net_of().initialize()
    loaded.load_params(f_optimizer=tmp_path / "o.pt", **files)
    assert as_final_model(loaded, X).recipe.last_lr == last
    weights = net_of().initialize()  # its optimiser is new, its history says
    weights.load_params(**files)
    recipe = as_final_model(weights, X).recipe
    assert (recipe.last_lr, recipe.last_lr_from) == (0.1 * 0.5**3, "the last in its history")
    net.partial_fit(X, y[:, None])
    assert as_final_model(net, X).recipe.last_lr == net.optimizer_.param_groups[0]["lr"] < last


def test_rates_that_were_set_by_hand():
    X, y = rows()
    net = net_of().fit(X, y[:, None])
    assert as_final_model(net, X).recipe.last_lr is None
    net.optimizer_.param_groups[0]["lr"] = 0.02
    assert as_final_model(net, X).recipe.continued.lr == 0.02
    assert as_final_model(net_of(optimizer__lr=0.3).fit(X, y[:, None]), X).recipe.last_lr is None


def test_attribute_says_which():
    X, y = rows()
    net = scheduled(torch.optim.lr_scheduler.StepLR, **STEP).fit(X, y[:, None])
    method = FurtherTraining(n_epochs=1, n_seeds=2)
    told = attribute(net, X, y[:, None], X[:3], y[:3, None], method=method)
    assert (
        "learning rate 0.00625 (its optimiser's last; its training began with 0.1)" in told.process
    )


@pytest.mark.parametrize("schedule", ["constant", "invscaling", "adaptive"])
def test_mlps_of_scikit_learn(schedule):
    X, y = rows()
    mlp = MLPClassifier(
        (4,), solver="sgd", learning_rate=schedule, learning_rate_init=0.1, max_iter=30, tol=0.1,
        n_iter_no_change=2, random_state=0,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlp.fit(X, y > 0)
    recipe = as_final_model(mlp, X).recipe
    assert recipe.lr == 0.1
    assert (recipe.last_lr is None) == (schedule == "constant")
    assert recipe.continued.lr == mlp._optimizer.learning_rate


# ---- the order of the rows ------------------------------------------------------------------


def small():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def by_skorch(net, X, y, seed):
    torch.manual_seed(seed)
    return clone(net).fit(X, y)


def in_order(**settings):
    X, y = rows()
    net = skorch.NeuralNetRegressor(
        small, max_epochs=4, batch_size=5, lr=0.1, verbose=0, train_split=None, **settings
    )
    return net.fit(X, y[:, None]), X, y[:, None]


def by_sklearn(X, y):
    settings = {"solver": "sgd", "shuffle": False, "batch_size": 5, "max_iter": 4, "tol": 0}
    return MLPRegressor(hidden_layer_sizes=(4,), alpha=0, momentum=0, **settings).fit(X, y)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("kind", ["skorch", "scikit-learn"])
def test_what_does_not_shuffle_is_trained_again_in_the_order_of_its_rows(kind):
    """The very models of the estimator's own ``fit`` without a row."""
    net, X, y = in_order()
    if kind == "scikit-learn":
        y = y.ravel().astype(float)
        X = X.astype(float)
        net = by_sklearn(X, y)

    def outputs(kept, seed):
        if kind == "skorch":
            return by_skorch(net, X[kept], y[kept], seed).predict(X[:3]).ravel()
        return clone(net).set_params(random_state=seed).fit(X[kept], y[kept]).predict(X[:3])

    left_out, every = [0, 7, 23], np.arange(N)
    for seed in (0, 5):
        expected = [outputs(np.delete(every, i), seed) - outputs(every, seed) for i in left_out]
        method = LeaveOneOut(net, measurement="output", n_seeds=[seed], leave_out=left_out)
        found = method.fit(X, y).transform(X[:3])
        assert relative(found.T, np.array(expected)) < (1e-4 if kind == "skorch" else 1e-8)
    subsets = [np.arange(0, 24, 2), np.arange(3, 20)]
    measured = train_on_subsets(
        net, X, y, subsets, X[:3], measurement="output", n_seeds=[5]
    ).measured
    expected = [outputs(kept, 5) for kept in subsets]
    assert relative(np.squeeze(measured), np.array(expected)) < 1e-5


def test_recorded_trainings_keep_the_order_too():
    net, X, y = in_order()
    ensemble = train_ensemble(net, X, y, n_seeds=[5])
    expected = by_skorch(net, X, y, 5).predict(X)
    model = ensemble.models[0]
    assert relative(model.outputs(model.encode_X(X)).numpy(), expected) < 1e-5
    run = ensemble.trajectories[0]
    assert np.concatenate(run.batches).tolist() == 4 * list(range(N))


@pytest.mark.filterwarnings("ignore:.*with a sampler of its own")
def test_shuffled_nets_are_trained_again_in_a_new_order_and_further_training_always_is():
    net, X, y = in_order()
    sampled = {"iterator_train__sampler": torch.utils.data.RandomSampler(range(N))}
    for settings in ({"iterator_train__shuffle": True}, sampled):
        shuffled, _, _ = in_order(**settings)
        assert as_final_model(shuffled, X, y).recipe.shuffle
        run = train_ensemble(shuffled, X, y, n_seeds=[5]).trajectories[0]
        assert not np.array_equal(np.concatenate(run.batches)[:N], np.arange(N))
    assert not as_final_model(net, X, y).recipe.shuffle
    bare = {"criterion": nn.MSELoss(), "optimizer": "SGD", "lr": 0.1, "batch_size": 5}
    further = [
        FurtherTraining(one, n_epochs=2, n_seeds=[1], leave_out=[0, 7], **given).fit(X, y)
        for one, given in ((net, {}), (net.module_, bare))
    ]
    assert np.array_equal(*(method.transform(X, y) for method in further))
