"""What users of other projects have reported, tried here."""

import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
import skorch
import torch
from naive import refits
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics.pairwise import euclidean_distances, rbf_kernel
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import KernelCenterer, StandardScaler, TargetEncoder
from torch import nn

from fimoda import (
    TRAK,
    ArnoldiInfluence,
    CGInfluence,
    DataInf,
    Downsampling,
    EKFACInfluence,
    ExactInfluence,
    FurtherTraining,
    GradDot,
    LeaveOneOut,
    LiSSAInfluence,
    MislabelDetector,
    train_ensemble,
)
from fimoda.adapters import as_final_model
from fimoda.cli import main

rng = np.random.default_rng(0)
X = rng.normal(size=(40, 3))
y = X @ [1.0, -2.0, 0.5] + rng.normal(size=40)
labels = (y > 0).astype(int)


# ---- rows that an earlier step cross-fits -----------------------------------------------------


def encoded_pipeline(random_state, model=None):
    """A Pipeline whose model is trained on other rows than its encoder gives later."""
    encoder = TargetEncoder(random_state=random_state, smooth=1.0)
    steps = ColumnTransformer([("t", encoder, ["c"])], remainder="passthrough")
    return make_pipeline(steps, LogisticRegression(C=10.0) if model is None else model)


frame = pd.DataFrame({"c": rng.integers(0, 12, 40).astype(str), "x": X[:, 0]})


@pytest.mark.parametrize("refit", [None, "last"])
def test_rows_of_fit_transform(refit):
    pipeline = encoded_pipeline(0).fit(frame, labels)
    trained = clone(pipeline[0]).fit_transform(frame, labels)
    seen = pipeline[0].transform(frame)
    assert not np.allclose(trained, seen)

    def scores(model, rows, test_rows):
        method = (
            ExactInfluence(model)
            if refit is None
            else LeaveOneOut(model, n_seeds=1, leave_out=[0, 3], refit=refit)
        )
        return method.fit(rows, labels).transform(test_rows[:5], labels[:5])

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = scores(pipeline, frame, frame)
    np.testing.assert_allclose(found, scores(pipeline[-1], trained, seen), rtol=1e-9)


def test_rows_of_fit_transform_that_cannot_be_made_again():
    pipeline = encoded_pipeline(None).fit(frame, labels)
    with pytest.warns(UserWarning, match="draws anew each time"):
        GradDot(pipeline).fit(frame, labels)
    pipeline = encoded_pipeline(0).fit(frame, labels)
    with pytest.warns(UserWarning, match="other rows or targets"):
        GradDot(pipeline).fit(frame, 1 - labels)


def test_rows_of_fit_transform_behind_another_pipeline():
    inner = encoded_pipeline(0, model=StandardScaler())
    pipeline = make_pipeline(inner, Ridge()).fit(frame, labels)
    trained = clone(inner).fit_transform(frame, labels)
    found = ExactInfluence(pipeline).fit(frame, labels).transform(frame[:5], labels[:5])
    model = ExactInfluence(pipeline[-1]).fit(trained, labels)
    want = model.transform(pipeline[0].transform(frame[:5]), labels[:5])
    np.testing.assert_allclose(found, want, rtol=1e-9)


def test_steps_of_equal_rows_are_not_fitted_again():
    class Counted(PCA):
        fits = 0

        def fit_transform(self, X, y=None):
            Counted.fits += 1
            return super().fit_transform(X, y)

    pipeline = make_pipeline(Counted(2), Ridge()).fit(X, y)
    before = Counted.fits
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        GradDot(pipeline).fit(X, y)
    assert Counted.fits == before


# ---- steps of a Pipeline that have nothing to learn -------------------------------------------


class Doubled(TransformerMixin, BaseEstimator):
    """Keeps nothing of what it is fitted to, and does not say so by its tags."""

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return 2 * np.asarray(X)


@pytest.mark.parametrize(
    ("step", "transform"),
    [
        (Doubled(), lambda X: 2 * X),
        (
            Pipeline([("a", StandardScaler()), ("b", "passthrough")]),
            StandardScaler().fit(X).transform,
        ),
        (Pipeline([("a", StandardScaler()), ("b", None)]), StandardScaler().fit(X).transform),
        ("passthrough", lambda X: X),
    ],
    ids=["stateless", "nested", "nested None", "passthrough"],
)
@pytest.mark.parametrize("method", [ExactInfluence, LeaveOneOut])
def test_steps_without_a_state(step, transform, method):
    options = {} if method is ExactInfluence else {"n_seeds": 1, "leave_out": [0], "refit": "last"}
    pipeline = Pipeline([("first", step), ("model", Ridge())]).fit(X, y)
    found = method(pipeline, **options).fit(X, y).transform(X[:4], y[:4])
    seen = transform(X)
    want = method(Ridge().fit(seen, y), **options).fit(seen, y).transform(seen[:4], y[:4])
    np.testing.assert_allclose(found, want, rtol=1e-8)


# ---- networks with a training of their own ----------------------------------------------------

SETTINGS = {
    "early_stopping": {"early_stopping": True},
    "invscaling": {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.3},
    "adaptive": {"solver": "sgd", "learning_rate": "adaptive", "learning_rate_init": 0.5},
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("setting", list(SETTINGS))
@pytest.mark.parametrize("alone", [True, False])
def test_training_of_its_own_is_repeated(setting, alone):
    net = MLPClassifier((4,), max_iter=20, random_state=3, **SETTINGS[setting])
    model = net if alone else make_pipeline(StandardScaler(), net)
    model.fit(X, labels)
    refit = "all" if alone else "last"
    method = LeaveOneOut(model, n_seeds=[3], leave_out=[0, 1], refit=refit).fit(X, labels)
    assert "by its own fit (" in method.process
    found = method.transform(X[:4], labels[:4])
    seen = X if alone else model[0].transform(X)

    def losses(fitted):
        return -np.log(fitted.predict_proba(seen[:4])[np.arange(4), labels[:4]])

    expected = refits(net, seen, labels, losses, [0, 1])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match="is trained by nothing else"):
        LeaveOneOut(model, n_epochs=3, refit=refit).fit(X, labels)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_recorded_trainings_say_what_they_do_not_repeat():
    model = MLPClassifier((4,), max_iter=5, random_state=0, **SETTINGS["invscaling"]).fit(X, labels)
    with pytest.warns(UserWarning, match="learning_rate='invscaling', which the recorded"):
        train_ensemble(model, X, labels, n_seeds=1, n_epochs=2)


class Clip(skorch.callbacks.Callback):
    """Clips gradients by value."""

    def on_grad_computed(self, net, named_parameters, **kwargs):
        for _, parameter in named_parameters:
            parameter.grad.clamp_(-1e-3, 1e-3)


def test_callbacks_that_see_gradients_are_an_obstacle():
    rows, targets = X.astype(np.float32), labels.astype(np.int64)
    net = skorch.NeuralNetClassifier(
        nn.Linear(3, 2),
        criterion=nn.CrossEntropyLoss,
        max_epochs=1,
        train_split=None,
        verbose=0,
        callbacks=[Clip()],
    ).fit(rows, targets)
    assert (
        "its callback Clip sees the gradients" in as_final_model(net, rows, targets).recipe.obstacle
    )
    with pytest.raises(ValueError, match="its callback Clip sees the gradients"):
        FurtherTraining(net, n_epochs=1, n_seeds=1).fit(rows, targets)
    net.set_params(callbacks=None).initialize()
    assert as_final_model(net, rows, targets).recipe.obstacle is None


# ---- a column for each training row -----------------------------------------------------------


@pytest.mark.parametrize("kind", ["array", "frame", "list"])
@pytest.mark.parametrize("centred", [False, True])
def test_left_out_rows_lose_their_column(kind, centred):
    kernel, test_kernel = rbf_kernel(X[:30]), rbf_kernel(X[30:], X[:30])
    model = KernelRidge(alpha=0.1, kernel="precomputed")
    if centred:
        model = make_pipeline(KernelCenterer(), model)
    model.fit(kernel, y[:30])
    give = {"array": np.asarray, "frame": pd.DataFrame, "list": np.ndarray.tolist}[kind]
    method = LeaveOneOut(model, n_seeds=1, leave_out=[0, 7]).fit(give(kernel), y[:30])
    found = method.transform(give(test_kernel), y[30:])

    def errors(rows):
        fitted = clone(model).fit(kernel[np.ix_(rows, rows)], y[rows])
        return (fitted.predict(test_kernel[:, rows]) - y[30:]) ** 2

    everything = np.arange(30)
    want = [errors(np.delete(everything, i)) - errors(everything) for i in (0, 7)]
    np.testing.assert_allclose(found, np.transpose(want), rtol=1e-8, atol=1e-10)


def test_random_subsets_of_a_precomputed_metric():
    distances, to_test = euclidean_distances(X[:30]), euclidean_distances(X[30:], X[:30])
    model = KNeighborsClassifier(3, metric="precomputed").fit(distances, labels[:30])
    plain = KNeighborsClassifier(3).fit(X[:30], labels[:30])
    options = {"n_subsets": 20, "n_seeds": 1, "random_state": 0}
    found = (
        Downsampling(model, **options).fit(distances, labels[:30]).transform(to_test, labels[30:])
    )
    want = Downsampling(plain, **options).fit(X[:30], labels[:30]).transform(X[30:], labels[30:])
    np.testing.assert_allclose(found, want, rtol=1e-10)
    with pytest.raises(ValueError, match="a precomputed kernel or metric"):
        MislabelDetector(model).fit(distances, labels[:30])


# ---- rows that are no array -------------------------------------------------------------------

rows32, classes = torch.tensor(X, dtype=torch.float32), torch.tensor(labels)


@pytest.mark.parametrize(
    "data",
    [
        torch.utils.data.TensorDataset(rows32, classes),
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(rows32, classes)),
        skorch.dataset.Dataset(rows32.numpy(), labels),
        torch.utils.data.Subset(torch.utils.data.TensorDataset(rows32, classes), range(40)),
    ],
    ids=["dataset", "loader", "skorch", "subset"],
)
@pytest.mark.parametrize("method", [GradDot, LeaveOneOut])
def test_data_sets_of_torch_are_named(data, method):
    net = skorch.NeuralNetClassifier(
        nn.Linear(3, 2), criterion=nn.CrossEntropyLoss, max_epochs=1, train_split=None, verbose=0
    ).fit(rows32.numpy(), labels)
    with pytest.raises(TypeError, match=r"Stack its rows and its targets: X = numpy\.stack"):
        method(net).fit(data, labels)


@pytest.mark.parametrize(
    "dates",
    [
        pd.DataFrame(X, columns=list("abc")).assign(a=pd.date_range("2020", periods=40)),
        pd.DataFrame(X, columns=list("abc")).assign(a=pd.date_range("2020", periods=40, tz="UTC")),
        pd.DataFrame(X, columns=list("abc")).assign(a=pd.to_timedelta(np.arange(40), "D")),
        np.arange(120).astype("M8[D]").reshape(40, 3),
    ],
    ids=["dates", "time zone", "durations", "array"],
)
def test_dates_among_the_rows_are_named(dates):
    where = "it" if isinstance(dates, np.ndarray) else "column 'a'"
    with pytest.raises(TypeError, match=f"X must hold numbers, but {where} is"):
        GradDot(Ridge().fit(X, y)).fit(dates, y)


class Tripled(torch.utils.data.Dataset):
    """Rows times three, whatever is asked for."""

    def __init__(self, X, y=None):
        self.X, self.y = X, np.zeros(len(X), dtype=int) if y is None else y

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        return 3 * self.X[i], self.y[i]


def tripled(batch):
    rows, targets = torch.utils.data.default_collate(batch)
    return 3 * rows, targets


def trained_net(**settings):
    torch.manual_seed(0)
    options = {"criterion": nn.CrossEntropyLoss, "max_epochs": 2, "train_split": None, "verbose": 0}
    net = skorch.NeuralNetClassifier(nn.Linear(3, 2), **options, **settings)
    return net.fit(rows32.numpy(), labels)


@pytest.mark.parametrize(
    "settings",
    [
        {"dataset": Tripled},
        {f"iterator_{kind}__collate_fn": tripled for kind in ("train", "valid")},
    ],
    ids=["dataset", "collate_fn"],
)
def test_nets_that_change_rows_by_themselves_are_refused(settings):
    with pytest.raises(TypeError, match="must predict by its parameters"):
        GradDot(trained_net(**settings)).fit(rows32.numpy(), labels)


class OwnLoader(torch.utils.data.DataLoader):
    """Could do anything."""


@pytest.mark.parametrize(
    "settings", [{"iterator_train__collate_fn": tripled}, {"iterator_train": OwnLoader}]
)
def test_rows_changed_in_training_alone_are_told(settings):
    with pytest.warns(UserWarning, match="a collate_fn or an iterator of its own"):
        GradDot(trained_net(**settings)).fit(rows32.numpy(), labels)


# ---- what torch cannot differentiate ----------------------------------------------------------

INFLUENCE = [ExactInfluence, CGInfluence, EKFACInfluence, LiSSAInfluence, ArnoldiInfluence]


@pytest.mark.parametrize("method", INFLUENCE)
def test_a_loss_without_curvature_is_told(method):
    torch.manual_seed(0)
    net = nn.Linear(3, 1)
    targets = y[:, None]
    with pytest.warns(UserWarning, match="the loss has no curvature at any training row"):
        found = method(net, criterion=nn.L1Loss()).fit(X, targets)
    scores = found.transform(X[:3], targets[:3])
    plain = GradDot(net, criterion=nn.L1Loss()).fit(X, targets).transform(X[:3], targets[:3])
    np.testing.assert_allclose(
        scores / np.abs(scores).max(), plain / np.abs(plain).max(), atol=1e-4
    )


@pytest.mark.parametrize("method", INFLUENCE)
def test_a_loss_of_which_torch_knows_no_second_derivative(method):
    with pytest.raises(TypeError, match="criterion must have a second derivative for this method"):
        method(nn.Linear(3, 2), criterion=nn.MultiMarginLoss()).fit(X, labels)


@pytest.mark.parametrize("method", [GradDot, DataInf, TRAK])
def test_first_derivatives_are_enough_for_others(method):
    model = method(nn.Linear(3, 2), criterion=nn.MultiMarginLoss()).fit(X, labels)
    assert np.abs(model.transform(X[:3], labels[:3])).max() > 0


class Recurrent(nn.Module):
    """Reads the columns of a row one after the other."""

    def __init__(self, kind):
        super().__init__()
        self.cell, self.out = kind(1, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.cell(x.unsqueeze(-1))[0][:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_gradients_of_layers_that_vmap_does_not_know(kind):
    torch.manual_seed(0)
    net, criterion = Recurrent(kind), nn.CrossEntropyLoss()
    method = GradDot(net, criterion=criterion, lr=1.0, reweight_others=False).fit(X, labels)
    found = method.transform(X[:4], labels[:4])

    def gradient(i):
        loss = criterion(net(rows32[i : i + 1]), classes[i : i + 1])
        return torch.cat([g.ravel() for g in torch.autograd.grad(loss, list(net.parameters()))])

    rows = torch.stack([gradient(i) for i in range(40)]).double()
    np.testing.assert_allclose(found, rows[:4] @ rows.T / 40, rtol=1e-4, atol=1e-6)


class Encoded(nn.Module):
    """Encodes categories by itself, in float32 whatever its parameters are."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(12, 2)

    def forward(self, x):
        return self.out(nn.functional.one_hot(x, 4).float().flatten(1))


@pytest.mark.filterwarnings("ignore:Before training:RuntimeWarning")
def test_a_forward_that_names_its_type():
    torch.manual_seed(0)
    net = Encoded()
    categories = rng.integers(0, 4, (40, 3))
    plain = np.eye(4, dtype=np.float32)[categories].reshape(40, 12)
    options = {"n_epochs": 2, "n_seeds": 1, "lr": 0.1, "batch_size": 20, "leave_out": [0, 1]}
    options |= {"criterion": nn.CrossEntropyLoss(), "random_state": 0}
    found = FurtherTraining(net, **options).fit(categories, labels).transform(categories, labels)
    want = FurtherTraining(net.out, **options).fit(plain, labels).transform(plain, labels)
    np.testing.assert_allclose(found, want, rtol=1e-2, atol=1e-6)


class RunningMean(nn.Module):
    """Replaces a buffer of its own whenever it is trained."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("mean", torch.full((3,), 0.5))

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return self.layer(x - self.mean)


@pytest.mark.filterwarnings("ignore:Before training:RuntimeWarning")
def test_a_buffer_that_is_replaced_in_training():
    torch.manual_seed(0)
    net = RunningMean()
    options = {"n_epochs": 2, "n_seeds": 1, "lr": 0.1, "batch_size": 40, "leave_out": [0, 1]}
    method = FurtherTraining(net, criterion=nn.CrossEntropyLoss(), **options)
    found = method.fit(X, labels).transform(X[:4], labels[:4])
    torch.testing.assert_close(net.mean, torch.full((3,), 0.5))

    def losses(left_out):
        """Gradient descent with the buffer as it was in every step, which is further training's."""
        kept = [i for i in range(40) if i != left_out]
        trained = nn.Linear(3, 2)
        trained.load_state_dict(net.layer.state_dict())
        for _ in range(2):
            mean = 0.45 + 0.1 * rows32.mean(0)  # rows left out have weight zero
            loss = nn.functional.cross_entropy(trained(rows32[kept] - mean), classes[kept])
            for p, g in zip(
                trained.parameters(),
                torch.autograd.grad(loss, list(trained.parameters())),
                strict=True,
            ):
                p.data -= 0.1 * g
        outputs = trained(rows32[:4] - 0.5)
        return nn.functional.cross_entropy(outputs, classes[:4], reduction="none").detach()

    want = torch.stack([losses(i) - losses(None) for i in (0, 1)], 1)
    np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-6)


# ---- tables -----------------------------------------------------------------------------------


def on_disk(folder, model, table):
    """Files of a model and a table, and the arguments that name them."""
    joblib.dump(model, folder / "model.joblib")
    table.to_csv(folder / "table.csv", index=table.index.name is not None)
    names = {
        "--model": "model.joblib",
        "--train": "table.csv",
        "--test": "table.csv",
        "--out": "out.csv",
    }
    paths = [part for name, file in names.items() for part in (name, str(folder / file))]
    return ["attribute", "--trust", "--target", "label", *paths]


def test_labels_that_look_missing(tmp_path):
    words = np.where(labels == 1, "NA", np.where(X[:, 1] > 0, "None", "yes"))
    table = pd.DataFrame(X, columns=list("abc")).assign(label=words)
    model = LogisticRegression().fit(table[list("abc")], words)
    assert main(on_disk(tmp_path, model, table)) == 0
    found = pd.read_csv(tmp_path / "out.csv", index_col=0).to_numpy()
    other = np.char.add("label ", words)
    plain = LogisticRegression().fit(table[list("abc")], other)
    assert main([*on_disk(tmp_path, plain, table.assign(label=other)), "--overwrite"]) == 0
    want = pd.read_csv(tmp_path / "out.csv", index_col=0).to_numpy()
    np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-7)


def test_missing_labels_stay_missing(tmp_path, capsys):
    words = np.where(labels == 1, "no", "yes").astype(object)
    table = pd.DataFrame(X, columns=list("abc")).assign(label=words)
    model = LogisticRegression().fit(table[list("abc")], words)
    table.loc[[3, 5], "label"] = ["NA", ""]
    assert main(on_disk(tmp_path, model, table)) == 2
    assert "2 rows of" in capsys.readouterr().err


def test_an_index_that_was_saved_is_named(tmp_path, capsys):
    table = pd.DataFrame(X, columns=list("abc")).assign(label=labels)
    table.insert(0, "Unnamed: 0", np.arange(40))
    arguments = on_disk(tmp_path, LogisticRegression().fit(X, labels), table)
    assert main(arguments) == 2
    assert "Add --index 'Unnamed: 0'" in capsys.readouterr().err
    assert main([*arguments, "--index", "Unnamed: 0"]) == 0
