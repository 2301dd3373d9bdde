"""Distributional attribution: distances, samples, and predicted against known distributions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from problems import tanh_network
from scipy.stats import energy_distance, entropy, ks_2samp, norm, wasserstein_distance
from sklearn.linear_model import Ridge
from torch import nn

from fimoda import (
    SOURCE,
    DistributionalInfluence,
    ExactInfluence,
    FurtherTraining,
    GradDot,
    LeaveOneOut,
    LinearizedFurtherTraining,
    MeanVarianceDisplay,
    OnceLinearizedFurtherTraining,
    OutcomeDensityDisplay,
    OutcomeSamples,
    UnrolledDifferentiation,
    distributional_agreement,
    further_training_curve,
    joint_distance,
    linear_datamodeling_score,
    random_subsets,
    train_ensemble,
    train_on_subsets,
)
from fimoda.distances import (
    NAMED,
    KullbackLeibler,
    Quantile,
    SlicedWasserstein,
    TailProbability,
    Wasserstein,
    resolve_distance,
)
from fimoda.measurements import Output

# ---- distances against brute force ----------------------------------------------------------


def w2(a, b):
    """Wasserstein-2 by repeating each sample until both are as many."""
    a, b = np.sort(np.repeat(a, len(b))), np.sort(np.repeat(b, len(a)))
    return np.sqrt(np.mean((a - b) ** 2))


def kl(a, b, bins=10):
    edges = np.linspace(min(a.min(), b.min()), max(a.max(), b.max()), bins + 1)
    p, q = (np.histogram(x, edges)[0] / len(x) + 0.5 / min(len(a), len(b)) for x in (a, b))
    return entropy(p / p.sum(), q / q.sum())


REFERENCES = {
    "mean": lambda a, b: a.mean() - b.mean(),
    "variance": lambda a, b: np.var(a, ddof=1) - np.var(b, ddof=1),
    "std": lambda a, b: np.std(a, ddof=1) - np.std(b, ddof=1),
    "w1": wasserstein_distance,
    "w2": w2,
    "energy": energy_distance,
    "ks": lambda a, b: ks_2samp(a, b).statistic,
    "kl": kl,
}


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("sizes", [(12, 12), (12, 9), (7, 21), (2, 13)])
@pytest.mark.parametrize("tied", [False, True])
def test_distances_against_brute_force(name, sizes, tied):
    rng = np.random.default_rng(0)
    left_out = rng.normal(0.3, 1.5, size=(sizes[0], 3, 4))
    full = rng.normal(size=(sizes[1], 3, 1))
    if tied:
        left_out, full = left_out.round(), full.round()
    found = NAMED[name](left_out, full)
    expected = [
        [REFERENCES[name](left_out[:, z, i], full[:, z, 0]) for i in range(4)] for z in range(3)
    ]
    assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    swapped = NAMED[name](np.broadcast_to(full, (sizes[1], 3, 4)), left_out)
    if NAMED[name].signed:
        assert_allclose(swapped, -found, atol=1e-12)
    elif name != "kl":  # which is not symmetric
        assert_allclose(swapped, found, atol=1e-12)


def test_quantile_tail_and_callable():
    rng = np.random.default_rng(1)
    left_out, full = rng.normal(size=(20, 2, 3)), rng.normal(size=(30, 2, 1))
    assert_allclose(
        Quantile(0.9)(left_out, full), np.quantile(left_out, 0.9, 0) - np.quantile(full, 0.9, 0)
    )
    assert_allclose(
        TailProbability(0.5)(left_out, full), (left_out > 0.5).mean(0) - (full > 0.5).mean(0)
    )
    own = resolve_distance(lambda a, b: a.max() - b.max())
    assert_allclose(own(left_out, full), left_out.max(0) - full.max(0))


GRID = norm.ppf((np.arange(4000) + 0.5) / 4000)


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        ("mean", 0.4),
        ("std", 0.5),
        ("variance", 1.5**2 - 1),
        ("w2", np.hypot(0.4, 0.5)),
        (Quantile(0.9), 0.4 + 0.5 * norm.ppf(0.9)),
        (TailProbability(1.0), norm.sf((1 - 0.4) / 1.5) - norm.sf(1)),
        ("ks", np.abs(norm.cdf(np.linspace(-6, 6, 10**5)) -
                      norm.cdf(np.linspace(-6, 6, 10**5), 0.4, 1.5)).max()),
        ("energy", np.sqrt(2 * 12 * np.mean((norm.cdf(np.linspace(-6, 6, 10**5)) -
                                             norm.cdf(np.linspace(-6, 6, 10**5), 0.4, 1.5)) ** 2))),
    ],
    ids=str,
)  # fmt: skip
def test_distances_of_two_normal_laws(distance, expected):
    """N(0.4, 1.5^2) against N(0, 1), from their quantiles."""
    assert_allclose(resolve_distance(distance)(0.4 + 1.5 * GRID, GRID), expected, rtol=3e-3)


@pytest.mark.parametrize("p", [1, 2])
def test_wasserstein_against_the_optimal_plan(p):
    """Of different numbers of samples, whose plan splits them; POT solves the transport problem."""
    ot = pytest.importorskip("ot")
    rng = np.random.default_rng(p)
    left_out, full = rng.normal(size=(7, 3)), 1 + 2 * rng.normal(size=(5, 3))
    found = Wasserstein(p)(left_out, full)
    for z in range(3):
        costs = np.abs(left_out[:, z, None] - full[:, z]) ** p
        plan = ot.emd(np.full(7, 1 / 7), np.full(5, 1 / 5), costs)
        assert_allclose(found[z], (plan * costs).sum() ** (1 / p), rtol=1e-10)


def test_sliced_wasserstein_of_a_shift_and_a_rotation():
    cloud = np.random.default_rng(0).normal(size=(300, 3)) * [1.0, 3.0, 0.2]
    shift = np.array([2.0, -1.0, 0.5])
    many = SlicedWasserstein(4000)
    assert_allclose(many(cloud + shift, cloud), np.linalg.norm(shift), rtol=0.03)
    assert many(cloud, cloud) == 0
    one = SlicedWasserstein(1)(cloud[:, :1] * 2, cloud[:, :1])  # one number: W2 itself
    assert_allclose(one, Wasserstein(2)(cloud[:, 0] * 2, cloud[:, 0]), rtol=1e-12)


def test_kl_of_constants_is_zero():
    assert KullbackLeibler()(np.ones(5), np.ones(7)) == 0


@pytest.mark.parametrize("name", NAMED)
def test_constant_outcomes(name):
    """Where training is deterministic a distance is that of two numbers."""
    found = NAMED[name](np.full(6, 3.0), np.full(4, 1.0))
    expected = {"mean": 2, "variance": 0, "std": 0, "w1": 2, "w2": 2, "energy": 2, "ks": 1}
    assert np.isfinite(found)
    if name in expected:
        assert_allclose(found, expected[name], atol=1e-12)


# ---- samples --------------------------------------------------------------------------------


def some_samples(n=30, n_test=3, n_rows=5, effect=0.5):
    rng = np.random.default_rng(0)
    full = rng.normal(size=(n, n_test))
    left_out = full[..., None] + effect * rng.normal(size=(n_rows,))
    return OutcomeSamples(full, left_out, np.arange(10, 10 + n_rows), measurement="loss")


def test_blocks_do_not_show(monkeypatch):
    samples = some_samples()
    whole = samples.distance("w1"), samples.interval("std", random_state=0)
    p = samples.permutation_test("mean", random_state=0)
    monkeypatch.setattr("fimoda.training.outcome_samples.BLOCK", 1)
    assert_allclose(samples.distance("w1"), whole[0], rtol=1e-12)
    assert_allclose(samples.interval("std", random_state=0), whole[1], atol=1e-12)
    assert_array_equal(samples.permutation_test("mean", random_state=0), p)


def test_the_interval_covers_the_mean():
    """Of 200 independent effects with a true mean of 0.3, 95 percent are covered."""
    rng = np.random.default_rng(0)
    full = rng.normal(size=(60, 200))
    samples = OutcomeSamples(full, (full + 0.3 + rng.normal(size=(60, 200)))[..., None])
    low, high = samples.interval("mean", n_bootstrap=400, random_state=0)
    covered = ((low < 0.3) & (0.3 < high)).mean()
    assert 0.89 < covered < 0.99
    wide = OutcomeSamples(full, samples.left_out, paired=False)
    low_, high_ = wide.interval("mean", n_bootstrap=400, random_state=0)
    assert (high_ - low_).mean() > 1.2 * (high - low).mean()  # pairs share what they have in common


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("distance", ["mean", "std", "w2"])
def test_permutation_test_is_uniform_without_an_effect(paired, distance):
    rng = np.random.default_rng(2)
    shared = rng.normal(size=(12, 150)) if paired else 0.0
    full, other = (shared + rng.normal(size=(12, 150)) for _ in range(2))
    samples = OutcomeSamples(full, other[..., None], paired=paired)
    p = samples.permutation_test(distance, n_permutations=99, random_state=0)
    assert abs((p <= 0.1).mean() - 0.1) < 0.075
    assert abs(p.mean() - 0.5) < 0.09
    moved = OutcomeSamples(full, other[..., None] * 3 + 4, paired=paired)
    assert np.mean(moved.permutation_test(distance, n_permutations=99, random_state=0)) < 0.1


def test_paired_swaps_see_a_small_effect_in_every_pair():
    samples = some_samples(effect=0.01)
    assert (samples.permutation_test("mean", random_state=0) < 0.01).all()
    apart = OutcomeSamples(samples.full, samples.left_out, samples.rows, paired=False)
    assert (apart.permutation_test("mean", random_state=0) > 0.5).all()


def test_groups_and_rows():
    samples = some_samples()
    groups = samples.of_groups([[0, 3], [4]])
    assert_allclose(groups.effects[..., 0], samples.effects[..., 0] + samples.effects[..., 3])
    assert_allclose(groups.left_out[..., 1], samples.left_out[..., 4])
    assert_array_equal(samples.of_rows([13, 10]).left_out, samples.left_out[:, :, [3, 0]])


def test_joint_distance_sees_what_no_output_sees():
    rng = np.random.default_rng(0)
    common, other = rng.normal(size=(200, 1)), rng.normal(size=(200, 1))
    first = OutcomeSamples(common, common[..., None])
    second = OutcomeSamples(
        common, np.sort(other, 0)[np.argsort(common[:, 0]).argsort()][..., None]
    )
    apart = OutcomeSamples(common, common[rng.permutation(200)][..., None])
    together = joint_distance([first, first])
    assert_allclose(together, 0, atol=1e-12)
    assert_allclose(apart.distance("w2"), 0, atol=1e-12)
    assert joint_distance([first, apart]) > 0.3
    assert joint_distance([first, second]) < 0.3


# ---- errors ---------------------------------------------------------------------------------


def test_errors_of_samples():
    full, left_out = np.zeros((4, 2)), np.zeros((4, 2, 3))
    with pytest.raises(ValueError, match=r"got \(4,\) and \(4, 2, 3\)"):
        OutcomeSamples(full[:, 0], left_out)
    with pytest.raises(ValueError, match=r"the same test rows, got \(4, 1\)"):
        OutcomeSamples(full[:, :1], left_out)
    with pytest.raises(ValueError, match=r"as many with all rows \(3\) as without each \(4\)"):
        OutcomeSamples(full[:3], left_out)
    assert OutcomeSamples(full[:3], left_out, paired=False).distance("w2").shape == (2, 3)
    with pytest.raises(ValueError, match="left_out has samples that are NaN"):
        OutcomeSamples(full, left_out * np.nan)
    with pytest.raises(ValueError, match="rows must hold the index of each of the 3"):
        OutcomeSamples(full, left_out, [1, 2])
    with pytest.raises(ValueError, match="must hold samples"):
        OutcomeSamples(full[:0], left_out[:0])
    with pytest.raises(ValueError, match="paired samples only"):
        OutcomeSamples(full, left_out, paired=False).of_groups([[0]])
    with pytest.raises(ValueError, match=r"among those left out, got \[7\]"):
        OutcomeSamples(full, left_out).of_rows([1, 7])
    with pytest.raises(ValueError, match="one OutcomeSamples a measurement"):
        joint_distance([OutcomeSamples(full, left_out), some_samples()])
    samples = some_samples()
    with pytest.raises(ValueError, match="confidence must lie between"):
        samples.interval("mean", confidence=1.0)
    with pytest.raises(ValueError, match="n_bootstrap"):
        samples.interval("mean", n_bootstrap=0)
    with pytest.raises(ValueError, match="n_permutations"):
        samples.permutation_test("mean", n_permutations=0)


def test_errors_of_distances():
    with pytest.raises(ValueError, match=r"Quantile\(q=0.99\) needs at least 100 samples, got 30"):
        some_samples().distance(Quantile(0.99))
    with pytest.raises(ValueError, match="left_out must have at least 2 samples for Variance"):
        some_samples(n=1).distance("variance")
    with pytest.raises(ValueError, match="one finite number for two samples"):
        some_samples().distance(lambda a, b: a)
    with pytest.raises(ValueError, match="distance must be one of 'mean'"):
        some_samples().distance("mode")
    with pytest.raises(ValueError, match="NaN or infinite"):
        NAMED["w1"]([np.nan], [1.0])
    for bad, name in ((lambda: Quantile(1.0), "q"), (lambda: Wasserstein(3), "p"),
                      (lambda: KullbackLeibler(1), "bins")):  # fmt: skip
        with pytest.raises(ValueError, match=f"{name} must"):
            bad()
    with pytest.raises(ValueError, match="vectors of one length"):
        SlicedWasserstein()(np.ones((3, 2)), np.ones((3, 4)))


def test_errors_of_agreement():
    samples = some_samples()
    other = OutcomeSamples(samples.full, samples.left_out, samples.rows, measurement="output")
    with pytest.raises(ValueError, match="the same measurement, got 'loss' and 'output'"):
        distributional_agreement(samples, other)
    fewer = OutcomeSamples(samples.full[:, :2], samples.left_out[:, :2], samples.rows)
    with pytest.raises(ValueError, match="the same test rows, got 3 and 2"):
        distributional_agreement(samples, fewer)
    with pytest.raises(ValueError, match="among those left out"):
        distributional_agreement(samples.of_rows([10]), samples)


# ---- agreement ------------------------------------------------------------------------------


def test_agreement():
    measured = some_samples()
    half = OutcomeSamples(
        measured.full, measured.full[..., None] + measured.effects / 2, measured.rows
    )
    for distance in ("mean", "w2"):
        found = distributional_agreement(half, measured, distance)
        assert_allclose(found.pearson, 1)
        assert_allclose(found.spearman, 1)
        assert_allclose(found.after, found.before / 2)
        assert found.closer == 1
    nothing = OutcomeSamples(measured.full, 0 * measured.left_out + measured.full[..., None])
    found = distributional_agreement(nothing, OutcomeSamples(measured.full, measured.left_out))
    assert_array_equal(found.pearson, 0)
    assert_array_equal(found.after, found.before)
    assert found.closer == 0


# ---- a linear model, whose distributions are known ------------------------------------------


class Line:
    """Linear regression by steps of gradient descent from random initial parameters."""

    def __init__(self, n=12, p=3, rank=None, n_epochs=40, n_seeds=25, white=False):
        rng = np.random.default_rng(0)
        self.X = rng.normal(size=(n, rank or p)) @ rng.normal(size=(rank or p, p)) / np.sqrt(p)
        if white:  # the Hessian is twice a projection
            u, _, v = np.linalg.svd(self.X, full_matrices=False)
            self.X = np.sqrt(n) * u[:, : rank or p] @ v[: rank or p]
        self.y = (self.X @ rng.normal(size=p) + 0.5 * rng.normal(size=n))[:, None]
        self.X_test = rng.normal(size=(4, p))
        self.net = nn.Linear(p, 1, bias=False).double()
        starts = rng.normal(size=(n_seeds, p))
        starts -= starts.mean(0)  # their mean is 0 and their covariance the identity, exactly
        self.starts = starts @ np.linalg.inv(np.linalg.cholesky(np.cov(starts.T))).T
        self.steps = {"lr": 0.2, "batch_size": n, "optimizer": "SGD", "n_epochs": n_epochs}

    def methods(self, **params):
        """One method a seed, from its initial parameters."""
        return [
            UnrolledDifferentiation(
                n_seeds=[seed],
                start={"weight": torch.from_numpy(start)[None]},
                **self.steps,
                **params,
                order="own",
            )
            for seed, start in enumerate(self.starts)
        ]

    def influence(self, **params):
        settings = {"criterion": nn.MSELoss(), "measurement": "output", **params}
        return DistributionalInfluence(self.net, **settings).fit(self.X, self.y)

    def law(self, i=None, size=1.0):
        """A and b of the parameters A start + b after training, a part `size` of row i removed."""
        n, p = self.X.shape
        w = np.full(n, 1 / n)
        if i is not None:
            w += size * (np.where(np.arange(n) == i, 0, 1 / (n - 1)) - w)
        hessian = 2 * self.X.T @ (w[:, None] * self.X)
        gradient = 2 * self.X.T @ (w * self.y[:, 0])
        A, b = np.eye(p), np.zeros(p)
        for _ in range(self.steps["n_epochs"]):
            A, b = (
                A - self.steps["lr"] * hessian @ A,
                b - self.steps["lr"] * (hessian @ b - gradient),
            )
        return A, b

    def tangent(self, i):
        """Derivative of A and b in the removal of row i, for the whole row."""
        more, less = self.law(i, 1e-4), self.law(i, -1e-4)
        return [(one - other) / 2e-4 for one, other in zip(more, less, strict=True)]

    def outcomes(self, A, b):
        """What the trained models say of the test rows, (n_samples, n_test)."""
        return (self.starts @ A.T + b) @ self.X_test.T


def test_predicted_samples_of_a_linear_model_are_exact():
    line = Line(n_seeds=6, n_epochs=10)
    samples = line.influence(method=line.methods()).outcome_samples(line.X_test)
    A, b = line.law()
    assert_allclose(samples.full, line.outcomes(A, b), atol=1e-12)
    for i in range(len(line.X)):
        dA, db = line.tangent(i)
        expected = line.outcomes(A + dA, b + db)
        assert_allclose(samples.left_out[..., i], expected, atol=1e-8)
        # the law is normal: N(x'b, |A'x|^2)
        mean, variance = (samples.distance(name)[:, i] for name in ("mean", "variance"))
        assert_allclose(mean, line.X_test @ db, atol=1e-8)
        size = np.square(line.X_test @ A).sum(1)
        assert_allclose(variance, np.square(line.X_test @ (A + dA)).sum(1) - size, atol=1e-8)
        for name, reference in REFERENCES.items():
            found = samples.distance(name)[:, i]
            pairs = zip(expected.T, line.outcomes(A, b).T, strict=True)
            # ranks and bins may differ where numbers all but agree
            tolerance = 0.1 if name in ("ks", "kl") else 1e-6
            assert_allclose(found, [reference(*pair) for pair in pairs], atol=tolerance)
    assert samples.measurement == "output"


def test_the_factor_n_and_the_sign():
    """Removal is a whole row, not a derivative in its weight: slope 1 against removal, not n."""
    line = Line(n=80, n_seeds=6, n_epochs=15)
    samples = line.influence(method=line.methods()).outcome_samples(line.X_test)
    truth = np.stack([line.outcomes(*line.law(i)) for i in range(80)], -1)
    slope = np.sum(samples.effects * (truth - samples.full[..., None])) / np.sum(samples.effects**2)
    assert 0.97 < slope < 1.15
    measured = OutcomeSamples(samples.full, truth, measurement="output")
    for distance in ("mean", "std", "w2"):
        found = distributional_agreement(samples, measured, distance)
        assert found.pearson.min() > 0.99
        assert found.closer > 0.99


def response(line, net, start, i, n_epochs):
    """Change of the parameters when row i is left out, and the Hessian and row's gradient there."""
    method = UnrolledDifferentiation(
        net, n_seeds=[0], start=start, leave_out=[i], mode="forward", criterion=nn.MSELoss(),
        measurement="output", **{**line.steps, "n_epochs": n_epochs}, order="own",
    ).fit(line.X, line.y)  # fmt: skip
    walked = method._forward[0]
    theta, model = walked.thetas[-1], method.model_
    X, y = torch.from_numpy(line.X), torch.from_numpy(line.y)
    hessian = torch.func.hessian(lambda t: (model.forward(t, X) - y).square().mean())(theta)
    gradient = torch.func.grad(lambda t: (model.forward(t, X[[i]]) - y[i]).square().mean())(theta)
    gradients = model.at(theta).jacobian(torch.from_numpy(line.X_test))[:, 0]
    parts = (walked.values[-1, 0], hessian, gradient, gradients, theta)
    return [part.numpy() for part in parts]


def test_the_response_converges_to_the_pseudo_inverse():
    """Where rows do not span the parameters: no null part, though the parameters have one."""
    line = Line(p=4, rank=2, n_seeds=8, white=True)
    thetas = []
    for start in line.starts[:2]:
        weight = {"weight": torch.from_numpy(start)[None]}
        found, hessian, gradient, _, theta = response(line, line.net, weight, 4, 60)
        assert np.linalg.matrix_rank(hessian, tol=1e-8) == 2
        expected = np.linalg.pinv(hessian, rcond=1e-8) @ gradient / (len(line.X) - 1)
        assert_allclose(found, expected, atol=1e-7 * np.abs(expected).max())
        thetas.append(theta)
    null = np.eye(4) - np.linalg.pinv(hessian, rcond=1e-8) @ hessian
    assert_allclose(null @ found, 0, atol=1e-9)
    assert np.linalg.norm(null @ (thetas[0] - thetas[1])) > 0.1


def test_the_null_space_part_of_an_overparametrised_linear_model():
    """Two layers without a bias: the response has a part along the valley, which no output sees."""
    line = Line(p=2, n=20, white=True)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False)).double()
    found, hessian, gradient, outputs, _ = response(line, net, None, 4, 200)
    inverse = np.linalg.pinv(hessian, rcond=1e-6)
    expected = inverse @ gradient / (len(line.X) - 1)
    null = np.eye(len(hessian)) - inverse @ hessian
    assert_allclose(found - null @ found, expected, atol=1e-5 * np.abs(expected).max())
    assert np.linalg.norm(null @ found) > 0.05 * np.linalg.norm(expected)
    assert_allclose(outputs @ found, outputs @ expected, atol=1e-5 * np.abs(expected).max())


# ---- where samples come from ----------------------------------------------------------------


def small_problem():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 3)).astype("float32")
    y = (X[:, :1] + 0.3 * rng.normal(size=(20, 1))).astype("float32")
    net = tanh_network(3, 4, 1).float()
    return net, X, y, X[:3] + 0.1, y[:3]


STEPS = {"n_epochs": 3, "lr": 0.1, "batch_size": 5, "optimizer": "SGD"}
SEEDS = [3, 5, 8]


def test_further_training_gives_the_pairs_that_were_run():
    net, X, y, X_test, y_test = small_problem()
    params = {**STEPS, "n_seeds": SEEDS, "leave_out": [2, 7], "compile": False}
    influence = DistributionalInfluence(
        net, method=FurtherTraining(**params), criterion=nn.MSELoss(), distance="std"
    ).fit(X, y)
    found = influence.outcome_samples(X_test, y_test)
    epochs = params.pop("n_epochs")
    curve = further_training_curve(
        net, X, y, X_test, y_test, epochs=[1, epochs], criterion=nn.MSELoss(), **params
    )
    measured = OutcomeSamples.from_further_training(curve, measurement="loss")
    assert_array_equal(found.rows, [2, 7])
    assert_allclose(found.full, measured.full, rtol=1e-6)
    assert_allclose(found.left_out, measured.left_out, rtol=1e-6)
    assert_array_equal(influence.train_indices_, [2, 7])
    expected = measured.left_out.std(0, ddof=1) - measured.full.std(0, ddof=1)[:, None]
    assert_allclose(influence.transform(X_test, y_test), expected, atol=1e-9)
    first = OutcomeSamples.from_further_training(curve, epochs=1)
    assert_array_equal(first.full, curve.outcomes.full[0].T)
    with pytest.raises(ValueError, match=r"one of the curve's horizons \[1, 3\], got 2"):
        OutcomeSamples.from_further_training(curve, epochs=2)


def test_retraining_gives_the_pairs_that_were_run():
    net, X, y, X_test, y_test = small_problem()
    params = {**STEPS, "n_seeds": SEEDS, "compile": False}
    influence = DistributionalInfluence(
        net, method=LeaveOneOut(leave_out=[2, 7], **params), criterion=nn.MSELoss()
    ).fit(X, y)
    found = influence.outcome_samples(X_test, y_test)
    subsets = np.ones((3, 20), dtype=bool)
    subsets[0, 2] = subsets[2, 7] = False  # all rows in between
    outcomes = train_on_subsets(
        net, X, y, subsets, X_test, y_test, criterion=nn.MSELoss(), **params
    )
    measured = OutcomeSamples.from_retraining(outcomes)
    assert_array_equal(measured.rows, [2, 7])
    assert_allclose(found.full, measured.full, rtol=1e-6)
    assert_allclose(found.left_out, measured.left_out, rtol=1e-6)
    outcomes.measured[1, 0, 1] = np.nan  # a training that failed
    assert len(OutcomeSamples.from_retraining(outcomes).full) == 2
    outcomes.measured[:] = np.nan
    with pytest.raises(ValueError, match="a seed with which no training failed"):
        OutcomeSamples.from_retraining(outcomes)
    outcomes.subsets[1, 0] = False
    with pytest.raises(ValueError, match="a subset of all rows"):
        OutcomeSamples.from_retraining(outcomes)


@pytest.mark.parametrize("mode", ["adjoint", "forward"])
def test_unrolled_training_ends_at_the_models_of_the_ensemble(mode):
    net, X, y, X_test, y_test = small_problem()
    ensemble = train_ensemble(
        net, X, y, n_seeds=SEEDS, checkpoints=[0], criterion=nn.MSELoss(), **STEPS
    )
    methods = [
        UnrolledDifferentiation(n_seeds=[seed], start=run.state(0), mode=mode, **STEPS, order="own")
        for seed, run in zip(ensemble.seeds, ensemble.trajectories, strict=True)
    ]
    influence = DistributionalInfluence(net, method=methods, criterion=nn.MSELoss()).fit(X, y)
    found = influence.outcome_samples(X_test, y_test)
    outputs = [m.outputs(torch.from_numpy(X_test)).double().numpy() for m in ensemble.models]
    assert_allclose(found.full, np.square(np.array(outputs) - y_test)[..., 0], rtol=1e-5)
    each = [
        one.set_params(estimator=net, criterion=nn.MSELoss()).fit(X, y).transform(X_test, y_test)
        for one in methods
    ]
    assert_allclose(found.effects, each, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "method",
    [
        UnrolledDifferentiation(n_seeds=SEEDS, **STEPS, order="own"),
        LinearizedFurtherTraining(n_seeds=SEEDS, **STEPS),
        OnceLinearizedFurtherTraining(n_seeds=SEEDS, solver="steps", **STEPS),
    ],
    ids=["unrolled", "segments", "steps"],
)
def test_pairs_of_further_training_end_where_it_ends(method):
    net, X, y, X_test, y_test = small_problem()
    influence = DistributionalInfluence(net, method=method, criterion=nn.MSELoss()).fit(X, y)
    found = influence.outcome_samples(X_test, y_test)
    curve = further_training_curve(
        net, X, y, X_test, y_test, epochs=[3], n_seeds=SEEDS, leave_out=[0], lr=0.1, batch_size=5,
        optimizer="SGD", criterion=nn.MSELoss(), compile=False,
    )  # fmt: skip
    assert_allclose(found.full, curve.outcomes.full[0].T, rtol=1e-4)
    direct = influence.members_[0].transform(X_test, y_test)
    assert_allclose(influence.transform(X_test, y_test), direct, atol=1e-7)


def test_models_and_any_method():
    net, X, y, X_test, y_test = small_problem()
    ensemble = train_ensemble(net, X, y, n_seeds=SEEDS, criterion=nn.MSELoss(), **STEPS)
    influence = DistributionalInfluence(
        net, method=GradDot(lr=0.1), models=ensemble, distance="variance", criterion=nn.MSELoss()
    ).fit(X, y)
    each = np.stack(
        [GradDot(m, lr=0.1).fit(X, y).transform(X_test, y_test) for m in ensemble.models]
    )
    full = influence.outcome_samples(X_test, y_test).full
    assert full.std(0).min() > 0
    expected = (full[..., None] + each).var(0, ddof=1) - full.var(0, ddof=1)[:, None]
    assert_allclose(influence.transform(X_test, y_test), expected, rtol=1e-9, atol=1e-15)
    params = {"models": ensemble, "criterion": nn.MSELoss()}
    found = DistributionalInfluence(net, method=SOURCE(), **params).fit(X, y)
    runs = zip(ensemble.models, ensemble.trajectories, strict=True)
    own = [SOURCE(m, trajectory=run).fit(X, y).transform(X_test, y_test) for m, run in runs]
    assert_allclose(found.outcome_samples(X_test, y_test).effects, own, rtol=1e-5, atol=1e-8)
    models = list(ensemble.models)
    same = DistributionalInfluence(
        net, method=[GradDot(lr=0.1)] * 3, models=models, criterion=nn.MSELoss()
    ).fit(X, y)
    assert_allclose(same.transform(X_test, y_test), each.mean(0), rtol=1e-9)


def test_joint_outputs():
    torch.manual_seed(0)
    X = np.random.default_rng(0).normal(size=(15, 3)).astype("float32")
    nets = [nn.Linear(3, 2) for _ in range(6)]
    params = {"method": ExactInfluence(), "models": nets, "criterion": nn.MSELoss()}
    joint = DistributionalInfluence(nets[0], joint=[Output(0), Output(1)], **params).fit(
        X, X[:, :2]
    )
    found = joint.transform(X[:4], X[:4, :2])
    each = [
        DistributionalInfluence(nets[0], measurement=Output(k), **params)
        .fit(X, X[:, :2])
        .outcome_samples(X[:4], X[:4, :2])
        for k in (0, 1)
    ]
    assert_allclose(found, joint_distance(each), rtol=1e-9)
    least = np.sqrt(sum(one.distance("w2") ** 2 for one in each))
    assert (found > 0.7 * least).all()
    assert np.isfinite(joint.self_influence()).all()


def test_errors_of_the_attributor():
    X, y = np.random.default_rng(0).normal(size=(12, 2)), np.arange(12.0)
    ridge = Ridge().fit(X, y)
    for params, message in (
        ({"distance": "mode"}, "distance must be one of 'mean'"),
        ({"models": []}, "at least one fitted model"),
        ({"models": [ridge], "method": [GradDot(), GradDot()]}, "each of the 1 models, got 2"),
        ({"method": []}, "each of the 0 models, got 0"),
        ({"models": [ridge] * 2, "method": [FurtherTraining(leave_out=[k]) for k in (0, 1)]},
         "score the same rows at every model"),
        ({"joint": ["mode"]}, "measurement must be one of"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            DistributionalInfluence(ridge, **params).fit(X, y)
    alone = DistributionalInfluence(ridge, method=GradDot(), distance="variance").fit(X, y)
    with pytest.raises(ValueError, match="at least 2 samples for Variance"):
        alone.transform(X, y)


# ---- linear datamodeling score of distributions ---------------------------------------------


def test_distributional_lds():
    """Samples without groups of rows: their rank correlation is the score; names work as functions."""
    net, X, y, X_test, y_test = small_problem()
    subsets = np.vstack([np.ones((1, 20), bool), random_subsets(20, 12, 0.7, random_state=0)])
    outcomes = train_on_subsets(
        net, X, y, subsets, X_test, y_test, n_seeds=6, criterion=nn.MSELoss(), compile=False,
        random_state=0, **STEPS,
    )  # fmt: skip
    measured = OutcomeSamples.from_retraining(outcomes)
    assert_array_equal(measured.rows, np.arange(12))
    ensemble = train_ensemble(
        net, X, y, n_seeds=outcomes.seeds, checkpoints=[0], criterion=nn.MSELoss(), **STEPS
    )
    methods = [
        UnrolledDifferentiation(n_seeds=[seed], start=run.state(0), **STEPS, order="own")
        for seed, run in zip(ensemble.seeds, ensemble.trajectories, strict=True)
    ]
    influence = DistributionalInfluence(net, method=methods, criterion=nn.MSELoss()).fit(X, y)
    samples = influence.outcome_samples(X_test, y_test)
    predicted = samples.of_groups(~subsets[1:])
    found = distributional_agreement(predicted, measured, "mean")
    assert found.spearman.mean() > 0.5
    rest = type(outcomes)(subsets[1:], outcomes.seeds, outcomes.measured[1:], [])
    lds = linear_datamodeling_score(
        {"mean": influence}, rest, X_test, y_test, distance="mean",
        reference=outcomes.measured[0], random_state=0,
    )  # fmt: skip
    assert_allclose(lds.values[0, 0], found.spearman, atol=1e-9)


# ---- displays -------------------------------------------------------------------------------


def test_displays():
    pytest.importorskip("matplotlib").use("Agg")
    import matplotlib.pyplot as plt

    samples = some_samples()
    shown = {"measured": samples, "predicted": samples.of_rows([12, 10])}
    ax = OutcomeDensityDisplay(shown, row=12, test_row=1).plot().ax_
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["all rows", "without row 12, measured", "without row 12, predicted"]
    for line in ax.lines:
        grid, density = line.get_data()
        assert abs(np.trapezoid(density, grid) - 1) < 0.05
    assert ax.get_xlabel() == "loss"
    constant = OutcomeSamples(np.ones((4, 1)), np.full((4, 1, 1), 2.0))
    grid, density = OutcomeDensityDisplay(constant, row=0).plot().ax_.lines[0].get_data()
    assert abs(grid[density.argmax()] - 2) < 0.02
    ax = MeanVarianceDisplay(samples, test_row=2).plot(n_named=1).ax_
    points = ax.collections[0].get_offsets()
    expected = [samples.distance(name)[2] for name in ("mean", "variance")]
    assert_allclose(points, np.transpose(expected))
    best = int(samples.rows[np.abs(expected[0]).argmax()])
    assert str(best) in {text.get_text() for text in ax.texts}
    plt.close("all")
