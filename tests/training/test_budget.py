"""Training that ends with the time there is: what is scored then, and with what errors."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from joblib import parallel_config
from numpy.testing import assert_allclose, assert_array_equal
from problems import tanh_network
from sklearn.ensemble import AdaBoostRegressor
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsRegressor
from sklearn.tree import DecisionTreeRegressor
from torch import nn

from fimoda import Datamodel, Downsampling, FurtherTraining, LeaveOneOut, attribute
from fimoda.attribution import choice
from fimoda.training import workers
from fimoda.training.random_subsets import covering_subsets
from fimoda.training.retraining import SubsetTrainer, Timing

N, D, N_TEST = 24, 3, 5
AT_ONCE, LATE = 1e-9, 1e9  # seconds that are over before anything begins, and that never are


def data():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(N + N_TEST, D))
    y = X @ [1.0, -2.0, 0.5] + 0.3 * rng.normal(size=len(X))
    return X[:N], y[:N], X[N:], y[N:]


class CountedBoosting(AdaBoostRegressor):
    """Random, of no kind that has methods of its own; counts how often one was fitted."""

    fits = 0

    def fit(self, X, y, sample_weight=None):
        CountedBoosting.fits += 1
        return super().fit(X, y, sample_weight)


NETWORK = {"criterion": nn.MSELoss(), "n_epochs": 2, "lr": 0.1, "batch_size": 8, "chunk_size": 5}


@pytest.fixture
def ticks(monkeypatch):
    """A clock that is a second later whenever somebody looks."""
    seconds = iter(range(10**6))
    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))


# ---- leave-one-out --------------------------------------------------------------------------


def test_leave_one_out_has_one_row_at_least():
    X, y, *test = data()
    some = LeaveOneOut(Ridge(), n_seeds=3, random_state=0, max_seconds=AT_ONCE).fit(X, y)
    assert some.subsets_.sum(1).tolist() == [N, N - 1]
    assert len(some.train_indices_) == 1
    whole = LeaveOneOut(Ridge(), n_seeds=1).fit(X, y).transform(*test)
    scores = some.transform(*test)
    assert_allclose(scores, whole[:, some.train_indices_], rtol=1e-10)
    assert_allclose(some.scores_sem_, 0, atol=1e-15)  # nothing is random
    assert some.get_feature_names_out().tolist() == [f"row{some.train_indices_[0]}"]


def test_leave_one_out_has_the_rows_that_there_was_time_for(ticks):
    """Ten refits: all rows, and nine of them left out in a random order."""
    X, y, *test = data()
    given = {"n_seeds": [5, 6], "random_state": 0}
    tree = DecisionTreeRegressor(max_depth=3, max_features=1)
    some = LeaveOneOut(tree, max_seconds=9, **given).fit(X, y)
    whole = LeaveOneOut(tree, **given).fit(X, y)
    assert len(some.train_indices_) == 9
    assert (np.diff(some.train_indices_) > 0).all()
    assert some.train_indices_[-1] > 9
    first = LeaveOneOut(tree, n_seeds=[5]).fit(X, y).transform(*test)
    assert_allclose(some.transform(*test), first[:, some.train_indices_])
    # all rows with the first seed, 17 with the second
    more = LeaveOneOut(tree, max_seconds=N + 1 + 17, **given).fit(X, y)
    scores, expected = more.transform(*test), whole.transform(*test)
    twice = np.isfinite(more.scores_sem_).all(0)
    assert scores.shape == expected.shape
    assert twice.sum() == 17
    assert_allclose(scores[:, twice], expected[:, twice])
    assert_allclose(scores[:, ~twice], first[:, ~twice])
    assert_allclose(more.scores_sem_[:, twice], whole.scores_sem_[:, twice])


def test_networks_end_between_stacks(ticks):
    X, y, *test = data()
    given = {**NETWORK, "n_seeds": [1, 2], "random_state": 0}
    whole = LeaveOneOut(tanh_network(D, 4, 1), **given).fit(X, y)
    some = LeaveOneOut(tanh_network(D, 4, 1), max_seconds=3, **given).fit(X, y)
    assert 1 < len(some.train_indices_) < N
    expected = whole.transform(*test), whole.scores_sem_
    one = LeaveOneOut(tanh_network(D, 4, 1), **given | {"n_seeds": [1]}).fit(X, y).transform(*test)
    assert_allclose(some.transform(*test), one[:, some.train_indices_], rtol=1e-10)
    late = LeaveOneOut(tanh_network(D, 4, 1), max_seconds=LATE, **given).fit(X, y)
    assert_array_equal(late.transform(*test), expected[0])
    assert_array_equal(late.scores_sem_, expected[1])


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_time_that_is_not_over_changes_no_bit(n_jobs):
    X, y, *test = data()
    for method in (
        LeaveOneOut(Ridge(), n_seeds=2, random_state=0),
        Datamodel(Ridge(), regression="ridge", n_seeds=1),
    ):
        plain = method.set_params(random_state=0).fit(X, y)
        method = method.__sklearn_clone__().set_params(max_seconds=LATE, n_jobs=n_jobs)
        if isinstance(method, Datamodel):
            method.set_params(subsets=plain.subsets_)
        with parallel_config("threading"):
            assert_array_equal(method.fit(X, y).transform(*test), plain.transform(*test))


def test_what_is_on_disk_is_not_trained_again(tmp_path, ticks):
    """A second call goes on where the time of the first was over."""
    X, y, *test = data()
    given = {**NETWORK, "n_seeds": [1], "random_state": 0}
    whole = LeaveOneOut(tanh_network(D, 4, 1), **given).fit(X, y).transform(*test)
    some = LeaveOneOut(tanh_network(D, 4, 1), max_seconds=2, checkpoint_dir=tmp_path, **given).fit(
        X, y
    )
    n = len(some.train_indices_)
    for _ in range(4):
        some = some.__sklearn_clone__().fit(X, y)
        assert len(some.train_indices_) >= n
        n = len(some.train_indices_)
    assert n == N
    assert_allclose(some.transform(*test), whole, rtol=1e-10)


def test_measurements_on_disk_are_completed_by_further_calls(tmp_path, ticks):
    X, y, *test = data()
    method = LeaveOneOut(Ridge(), n_seeds=[1], checkpoint_dir=tmp_path, max_seconds=15)
    method.fit(X, y)
    with pytest.raises(
        FloatingPointError, match=r"max_seconds=15 were over .* Call transform again"
    ):
        method.transform(*test)
    whole = LeaveOneOut(Ridge(), n_seeds=[1]).fit(X, y).transform(*test)
    assert_allclose(method.transform(*test), whole, rtol=1e-10)


# ---- random subsets -------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 7, 10, 101])
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.75, 0.9])
def test_covering_subsets(n, ratio):
    size = round(ratio * n)
    if not 0 < size < n:
        return
    subsets = covering_subsets(n, ratio, np.random.RandomState(0))
    assert (subsets.sum(1) == size).all()
    often = subsets.sum(0)
    assert often.min() >= 1
    assert often.max() < len(subsets)
    assert len(subsets) == np.ceil(n / min(size, n - size))  # with less, one is not in or not out
    other = covering_subsets(n, ratio, np.random.RandomState(1))
    assert n < 10 or (other != subsets).any()


@pytest.mark.parametrize("method", [Downsampling, Datamodel])
def test_subsets_that_every_row_needs(method):
    X, y, *test = data()
    some = method(Ridge(), n_seeds=2, max_seconds=AT_ONCE, random_state=0).fit(X, y)
    n = 4 if method is Downsampling else 5
    assert some.subsets_.shape == (n, N)
    assert (some.subsets_[:4].sum(0) == 2).all()
    scores = some.transform(*test)
    assert scores.shape == (N_TEST, N)
    assert np.isfinite(some.scores_sem_).all()
    if method is Downsampling:
        loss = np.array(
            [(Ridge().fit(X[s], y[s]).predict(test[0]) - test[1]) ** 2 for s in some.subsets_]
        )
        for row in range(N):
            inside = some.subsets_[:, row]
            expected = loss[~inside].mean(0) - loss[inside].mean(0)
            assert_allclose(scores[:, row], expected, rtol=1e-8)
            spread = loss[inside].var(0, ddof=1) / 2 + loss[~inside].var(0, ddof=1) / 2
            assert_allclose(some.scores_sem_[:, row], np.sqrt(spread), rtol=1e-6)


def test_subsets_that_there_was_time_for(ticks):
    X, y, *test = data()
    given = {"n_subsets": 30, "n_seeds": [1, 2], "random_state": 0}
    tree = DecisionTreeRegressor(max_depth=3, max_features=1)
    some = Downsampling(tree, max_seconds=10, **given).fit(X, y)
    assert len(some.subsets_) == 13  # four without a look at the clock, and nine
    assert [unit.seed for unit in some._kept] == [1] * 13
    again = Downsampling(tree, subsets=some.subsets_, n_seeds=[1]).fit(X, y)
    assert_allclose(some.transform(*test), again.transform(*test))
    assert_allclose(some.scores_sem_, again.scores_sem_)
    given["n_subsets"] = 3  # fewer than every row needs
    with pytest.raises(ValueError, match="Raise n_subsets"):
        Downsampling(Ridge(), ratio=0.1, max_seconds=LATE, **given).fit(X, y)


# ---- one call -------------------------------------------------------------------------------


def test_attribute_without_time_trains_what_it_must():
    """A random model: one or two trials, and a portion with the four subsets that every row needs."""
    X, y, *test = data()
    model = CountedBoosting(n_estimators=5, random_state=0).fit(X, y)
    CountedBoosting.fits = 0
    found = attribute(model, X, y, *test, budget=AT_ONCE, random_state=0)
    assert isinstance(found.attributor, Downsampling)
    assert CountedBoosting.fits <= 2 + choice.UNIT_SIZE
    assert len(found.attributor.subsets_) >= 4
    assert found.scores.shape == (N_TEST, N)
    assert np.isfinite(found.errors).all()
    assert f"after {len(found.attributor.subsets_)} of 50 trainings" in found.trust
    assert "more than the budget of 1e-09 s: LeaveOneOut" in found.reason


def test_attribute_trains_as_much_as_there_is_time_for(monkeypatch):
    """Each look at the clock is a second: the trial is counted, too."""
    X, y, *test = data()
    model = CountedBoosting(n_estimators=5, random_state=0).fit(X, y)
    monkeypatch.setattr(choice, "cpu_count", lambda: 1)
    timing = Timing(training=1.0, cores=1.0, measuring=0.0, n_bytes=1000)
    monkeypatch.setattr(SubsetTrainer, "timed", lambda self: timing)
    seconds = iter(range(10**6))
    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    CountedBoosting.fits = 0
    found = attribute(model, X, y, *test, budget=20, random_state=0)
    assert isinstance(found.attributor, Downsampling)
    assert found.attributor.seeds_ == found.attributor.seeds_[:1]
    assert CountedBoosting.fits == len(found.attributor.subsets_)
    assert 4 < CountedBoosting.fits <= 22
    enough = attribute(model, X, y, *test, budget=1000, random_state=0)
    assert isinstance(enough.attributor, LeaveOneOut)
    assert len(enough.attributor.seeds_) == 5


def chosen(*given):
    """The method that `attribute` takes, not fitted, with the reason."""
    return choice.ladder_for(*given).climb(lambda method: None)[0]


def test_workers_and_cores_are_counted(monkeypatch):
    """Two workers halve the time of a fit that keeps one core busy, and not that of one with two."""
    X, y, *test = data()
    neighbours = KNeighborsRegressor(3).fit(X, y)
    monkeypatch.setattr(choice, "cpu_count", lambda: 2)
    rows = X, y, None
    taken = {}
    for cores in (1.0, 2.0):
        timing = Timing(training=1.0, cores=cores, measuring=0.25, n_bytes=1000)
        monkeypatch.setattr(SubsetTrainer, "timed", lambda self, t=timing: t)
        for n_jobs in (1, 2):
            settings = {"n_jobs": n_jobs, "random_state": 0}
            reason = chosen(neighbours, rows, test, 1.0, settings).reason
            taken[cores, n_jobs] = float(reason.split("LeaveOneOut ")[1].split(" s")[0])
    assert taken[1.0, 1] == taken[2.0, 1] == taken[2.0, 2] == pytest.approx(25 * 1.25, abs=1)
    assert taken[1.0, 2] == pytest.approx(25 * 0.75, abs=1)


def test_models_that_memory_does_not_hold():
    X, y, *test = data()
    model = CountedBoosting(n_estimators=5, random_state=0).fit(X, y)
    n_bytes = LeaveOneOut(model, n_seeds=1).fit(X, y)._retraining.way.bytes_per_model
    small = LeaveOneOut(memory_budget=int(9.5 * n_bytes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            LeaveOneOut.__init__,
            "__kwdefaults__",
            {**LeaveOneOut.__init__.__kwdefaults__, "memory_budget": small.memory_budget},
        )
        made = chosen(model, (X, y, None), test, 1e6, {"random_state": 0})
    assert isinstance(made.attributor, Downsampling)
    assert made.attributor.n_subsets <= 9
    assert "more than memory_budget" in made.reason


# ---- further training -----------------------------------------------------------------------


def test_further_training_has_one_seed_at_least():
    X, y, *test = data()
    given = {**NETWORK, "random_state": 0}
    some = FurtherTraining(tanh_network(D, 4, 1), n_seeds=4, max_seconds=AT_ONCE, **given).fit(X, y)
    whole = FurtherTraining(tanh_network(D, 4, 1), n_seeds=4, max_seconds=LATE, **given).fit(X, y)
    plain = FurtherTraining(tanh_network(D, 4, 1), n_seeds=4, **given).fit(X, y)
    assert some.seeds_ == plain.seeds_[:1]
    assert whole.seeds_ == plain.seeds_
    assert_array_equal(whole.transform(*test), plain.transform(*test))
    first = FurtherTraining(tanh_network(D, 4, 1), n_seeds=some.seeds_, **given).fit(X, y)
    assert_array_equal(some.transform(*test), first.transform(*test))


def test_further_training_begins_no_seed_that_would_end_late(ticks):
    """Each seed takes as long as the clock was looked at for it."""
    X, y, *_ = data()
    given = {**NETWORK, "random_state": 0, "n_seeds": 50}
    seeds = [
        len(FurtherTraining(tanh_network(D, 4, 1), max_seconds=s, **given).fit(X, y).seeds_)
        for s in (10, 40, 80)
    ]
    assert 1 <= seeds[0] < seeds[1] < seeds[2] < 50


@pytest.mark.parametrize("method", [LeaveOneOut, Downsampling, Datamodel, FurtherTraining])
@pytest.mark.parametrize("wrong", [0, -1.0, "soon"])
def test_wrong_times(method, wrong):
    X, y, *_ = data()
    with pytest.raises(ValueError, match="'max_seconds' parameter"):
        method(Ridge(), max_seconds=wrong).fit(X, y)
