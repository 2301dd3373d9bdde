"""Networks and criteria that gave wrong numbers or raw errors, against plain autograd."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.testing import assert_allclose
from sklearn.datasets import make_classification
from sklearn.linear_model import SGDClassifier
from sklearn.neural_network import MLPClassifier
from skorch import NeuralNetClassifier
from skorch.callbacks import Checkpoint
from torch import nn
from torch.utils.data import WeightedRandomSampler

from fimoda import FurtherTraining, GradDot, LeaveOneOut, TracIn, TrajectoryRecorder, as_final_model

N, D, C = 12, 4, 3


def rows(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(N, D, generator=generator, dtype=torch.float64)
    y = torch.arange(N) % C
    return X.numpy(), y.numpy()


def net(*parts: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, 5), nn.Tanh(), *parts, nn.Linear(5, C)).double().eval()


def gradients(module, losses) -> np.ndarray:
    """Gradient of each row's loss, by plain autograd."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return np.stack(
        [
            torch.cat(
                [g.reshape(-1) for g in torch.autograd.grad(loss, parameters, retain_graph=True)]
            )
            for loss in losses
        ]
    )


# ---- criteria -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "criterion",
    [
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0, 0.5]), label_smoothing=0.2),
        nn.CrossEntropyLoss(label_smoothing=0.2),
        nn.CrossEntropyLoss(ignore_index=1),
        nn.CrossEntropyLoss(ignore_index=1, label_smoothing=0.1),
        nn.CrossEntropyLoss(
            weight=torch.tensor([1.0, 3.0, 0.5]), ignore_index=2, label_smoothing=0.1
        ),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0, 0.5]), ignore_index=2),
    ],
    ids=str,
)
def test_the_objective_is_that_of_torch(criterion):
    """The weighted mean of the rows' losses, and its gradient, are those of the criterion."""
    X, y = rows()
    module = net()
    criterion = criterion.double()
    model = as_final_model(module, X, y, criterion=criterion)
    weights = model.row_weights(torch.from_numpy(y))
    outputs = module(torch.from_numpy(X))
    wanted = criterion(outputs, torch.from_numpy(y))
    found = (weights * model.loss(outputs, torch.from_numpy(y))).sum() / weights.sum()
    assert_allclose(found.item(), wanted.item(), rtol=1e-12)
    assert_allclose(gradients(module, [found]), gradients(module, [wanted]), atol=1e-14)


# ---- modules that do something unusual ----------------------------------------------------------


class InPlace(nn.Module):
    """Normalises its rows in place."""

    def __init__(self):
        super().__init__()
        self.inner = net()

    def forward(self, x):
        return self.inner(x.sub_(1).mul_(0.5))


def test_a_module_that_changes_its_rows_is_given_copies():
    X, y = rows()
    module, criterion = InPlace(), nn.CrossEntropyLoss()
    losses = [
        criterion(module(torch.from_numpy(X[i : i + 1]).clone()), torch.from_numpy(y[i : i + 1]))
        for i in range(N)
    ]
    g = gradients(module, losses)
    kept = X.copy()
    found = GradDot(module, criterion=criterion, lr=0.1, batch_size=N).fit(X, y)
    once, twice = found.transform(X, y), found.transform(X, y)
    assert_allclose(once, twice, rtol=1e-14)
    assert_allclose(once, 0.1 / (N - 1) * g @ (g - g.mean(0)).T, rtol=1e-10, atol=1e-14)
    assert_allclose(X, kept, rtol=0)
    inner = FurtherTraining(
        module.inner, criterion=criterion, n_epochs=2, n_seeds=1, leave_out=[0, 5], random_state=0
    )
    outer = FurtherTraining(
        module, criterion=criterion, n_epochs=2, n_seeds=1, leave_out=[0, 5], random_state=0
    )
    assert_allclose(
        outer.fit(X, y).transform(X, y),
        inner.fit((X - 1) / 2, y).transform((X - 1) / 2, y),
        rtol=1e-9,
    )


def test_hooks_of_the_user_are_not_called():
    X, y = rows()
    module, seen = net(), []
    module[0].register_forward_hook(
        lambda part, inputs, output: seen.append(output.detach().numpy())
    )
    FurtherTraining(
        module, criterion=nn.CrossEntropyLoss(), n_epochs=1, n_seeds=1, leave_out=[0]
    ).fit(X, y)
    assert len(seen) <= 1  # once, to see whether it changes the outputs
    assert len(module[0]._forward_hooks) == 1


def test_hooks_that_change_the_outputs_are_part_of_the_model():
    X, y = rows()
    module = net()
    module.register_forward_hook(lambda part, inputs, output: 2 * output)
    model = as_final_model(module, X, y, criterion=nn.CrossEntropyLoss())
    with torch.no_grad():
        assert_allclose(model.outputs(model.encode_X(X)), module(torch.from_numpy(X)), rtol=1e-14)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weight_norm():
    X, y = rows()
    module = net()
    nn.utils.weight_norm(module[0])  # holds a weight that cannot be copied
    module.kept = module[0].weight * 2
    with pytest.raises(ValueError, match=r"estimator cannot be copied.*must not keep tensors"):
        as_final_model(module, X, y, criterion=nn.CrossEntropyLoss())
    module = net()
    nn.utils.parametrizations.weight_norm(module[0])
    model = as_final_model(module, X, y, criterion=nn.CrossEntropyLoss())
    with torch.no_grad():
        assert_allclose(model.outputs(model.encode_X(X)), module(torch.from_numpy(X)), rtol=1e-14)


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.inner = net()
        self.function = function

    def forward(self, x):
        return self.function(self.inner, x)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda inner, x: F.dropout(inner(x), 0.5), "random outputs in evaluation mode"),
        (lambda inner, x: inner(x + torch.randn_like(x)), "random outputs in evaluation mode"),
        (lambda inner, x: inner(x - x.mean(0)), "depend on the other rows"),
    ],
    ids=["dropout", "noise", "mean"],
)
def test_rows_must_have_outputs_of_their_own(function, message):
    X, y = rows()
    with pytest.raises(ValueError, match=message):
        as_final_model(Function(function), X, y, criterion=nn.CrossEntropyLoss())


def test_batch_norm_without_running_statistics():
    X, y = rows()
    module = net(nn.BatchNorm1d(5, track_running_stats=False))
    with pytest.raises(ValueError, match=r"BatchNorm.*depend on the other rows"):
        as_final_model(module, X, y, criterion=nn.CrossEntropyLoss())


class Indices(nn.Module):
    """Takes integers without an embedding layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(7, C, dtype=torch.float64))

    def forward(self, x):
        return F.one_hot(x, 7).to(self.table.dtype).mean(1) @ self.table


def test_integers_stay_integers_where_the_module_needs_them():
    ids = np.random.default_rng(0).integers(7, size=(N, 5))
    y = np.arange(N) % C
    module = Indices()
    model = as_final_model(module, ids, y, criterion=nn.CrossEntropyLoss())
    assert model.encode_X(ids).dtype == torch.long
    with torch.no_grad():
        assert_allclose(model.outputs(model.encode_X(ids)), module(torch.from_numpy(ids)))


def test_integers_become_numbers_for_a_linear_layer():
    X = np.random.default_rng(0).integers(7, size=(N, D))
    model = as_final_model(net(), X, np.arange(N) % C, criterion=nn.CrossEntropyLoss())
    assert model.encode_X(X).dtype == torch.float64


class Bag(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.e = nn.Embedding(7, 5, **settings)
        self.out = nn.Linear(5, C)

    def forward(self, x):
        return self.out(self.e(x).mean(1))


class FunctionalBag(Bag):
    """Settings are where nothing but the gradients shows them."""

    def __init__(self, **settings):
        super().__init__()
        self.settings, self.e = settings, nn.Parameter(self.e.weight.detach())

    def forward(self, x):
        return self.out(F.embedding(x, self.e, **self.settings).mean(1))


def test_sparse_embeddings_are_dense_ones():
    ids = np.random.default_rng(0).integers(7, size=(N, 5))
    y = np.arange(N) % C
    scores = [
        GradDot(Bag(sparse=sparse), criterion=nn.CrossEntropyLoss()).fit(ids, y).transform(ids, y)
        for sparse in (False, True)
    ]
    assert_allclose(*scores, rtol=1e-6)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda: Bag(max_norm=1.0), "max_norm"),
        (lambda: Bag(scale_grad_by_freq=True), r"depend on the other rows.*scale_grad_by_freq"),
        (lambda: FunctionalBag(scale_grad_by_freq=True), "scale_grad_by_freq"),
        (lambda: FunctionalBag(sparse=True), r"gradients are sparse \(e\).*sparse=False"),
        (lambda: torch.jit.script(net()), "torch.jit"),
    ],
    ids=["max_norm", "frequencies", "functional", "sparse", "script"],
)
def test_modules_that_cannot_be_taken_row_by_row(module, message):
    made = module()
    X, y = rows()
    if isinstance(made, Bag):
        X = np.random.default_rng(0).integers(7, size=(N, 5))
    with pytest.raises(ValueError, match=message):
        as_final_model(made, X, y, criterion=nn.CrossEntropyLoss())
    if not isinstance(made, torch.jit.ScriptModule):
        with pytest.raises(ValueError, match=message):
            LeaveOneOut(made, criterion=nn.CrossEntropyLoss(), n_epochs=1).fit(X, y)


@pytest.mark.parametrize("kind", [{}, {"padding_idx": 0}, {"sparse": True}])
@pytest.mark.parametrize("bag", [False, True])
def test_other_embeddings_are_taken(kind, bag):
    """Their gradients are those of the rows apart, also where a word comes up twice."""
    ids = np.random.default_rng(0).integers(7, size=(N, 5))
    made = Bag(**kind)
    if bag:
        made = nn.Sequential(nn.EmbeddingBag(7, 4, **kind), nn.Linear(4, C))
    as_final_model(made, ids, np.arange(N) % C, criterion=nn.CrossEntropyLoss())


# ---- rows that were held out, or drawn unevenly -------------------------------------------------


def skorch_net(**settings) -> NeuralNetClassifier:
    torch.manual_seed(0)
    return NeuralNetClassifier(
        nn.Linear(D, C), criterion=nn.CrossEntropyLoss, max_epochs=2, verbose=0, **settings
    )


def many_rows():
    X, y = make_classification(100, D, n_informative=3, n_redundant=0, n_classes=C, random_state=0)
    return X.astype(np.float32), y


@pytest.mark.parametrize(
    ("model", "n_seen"),
    [
        (skorch_net(), 80),
        (MLPClassifier((3,), early_stopping=True, max_iter=5, random_state=0), 90),
        (SGDClassifier(loss="log_loss", early_stopping=True, random_state=0), 90),
    ],
    ids=["skorch", "mlp", "sgd"],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_rows_that_were_held_out(model, n_seen):
    X, y = many_rows()
    model.fit(X, y)
    with pytest.warns(UserWarning, match=f"was trained on {n_seen} rows and is given 100"):
        GradDot(model).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GradDot(model).fit(X[:n_seen], y[:n_seen])


def test_a_net_that_saw_all_rows_is_not_warned_of():
    X, y = many_rows()
    net = skorch_net(train_split=None).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GradDot(net).fit(X, y)


def test_a_sampler_weighs_the_rows():
    X, y = many_rows()
    weights = np.where(y == 0, 3.0, 1.0)
    sampler = WeightedRandomSampler(weights, len(X))
    net = skorch_net(train_split=None, iterator_train__sampler=sampler).fit(X, y)
    with pytest.warns(UserWarning, match=r"sampler of its own.*sample_weight"):
        GradDot(net).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GradDot(net).fit(X, y, sample_weight=weights)


# ---- runs, criteria and targets that do not fit -------------------------------------------------


def test_a_run_that_does_not_end_at_the_model(tmp_path):
    X, y = many_rows()
    best = Checkpoint(monitor="valid_loss_best", load_best=True, dirname=str(tmp_path))
    recorder = TrajectoryRecorder(checkpoints=[2, 4, 6, 8, 10, 12])
    net = skorch_net(callbacks=[recorder, best], lr=100.0, batch_size=40)
    net.set_params(max_epochs=6).fit(X, y)
    changed = not torch.equal(recorder_of(net).state(5)["weight"], net.module_.weight.detach())
    assert changed  # a learning rate of 100: the first epochs are the best
    with pytest.raises(ValueError, match=r"does not end at the model.*load_best"):
        TracIn(net).fit(X, y)


def recorder_of(net):
    return next(c.trajectory_ for _, c in net.callbacks_ if isinstance(c, TrajectoryRecorder))


@pytest.mark.parametrize("criterion", [nn.TripletMarginLoss(), nn.CTCLoss()], ids=str)
def test_criteria_of_more_than_outputs_and_targets(criterion):
    with pytest.raises(TypeError, match="must be a function of outputs and targets"):
        as_final_model(net(), *rows(), criterion=criterion)


@pytest.mark.parametrize("dtype", ["datetime64[D]", "timedelta64[s]", "complex128"])
def test_targets_that_are_neither_labels_nor_numbers(dtype):
    X, y = rows()
    with pytest.raises(ValueError, match=r"y must hold (class )?labels or real numbers"):
        GradDot(nn.Linear(D, 1).double(), criterion=nn.MSELoss()).fit(X, y.astype(dtype))


def test_a_module_that_holds_what_cannot_be_compared(tmp_path):
    """Only a directory has to know one run from another."""
    X, y = rows()
    module = net()
    settings = {"n_epochs": 2, "n_seeds": 1, "leave_out": [0, 5], "random_state": 0}
    gold = FurtherTraining(module, criterion=nn.CrossEntropyLoss(), **settings)
    expected = gold.fit(X, y).transform(X, y)
    module[0].held = Incomparable()
    gold = FurtherTraining(module, criterion=nn.CrossEntropyLoss(), **settings)
    assert_allclose(gold.fit(X, y).transform(X, y), expected, rtol=0)
    with pytest.raises(ValueError, match="leave checkpoint_dir out"):
        gold.set_params(checkpoint_dir=str(tmp_path / "run")).fit(X, y)


class Incomparable:
    """Can be copied, and says nothing of itself."""

    def __deepcopy__(self, memo):
        return self

    def __reduce_ex__(self, protocol):
        raise TypeError("no")
