"""Rows of different lengths: networks are run on no more padding than needed, with the same results."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from skorch import NeuralNetClassifier
from test_common import ATTRIBUTORS, make
from torch import Tensor, nn

import fimoda
from fimoda import FurtherTraining, GradDot, TrajectoryRecorder
from fimoda.adapters import as_final_model
from fimoda.curvature.ekfac import EKFAC
from fimoda.curvature.operators import GaussNewton
from fimoda.curvature.rowwise_gauss_newton import RowwiseGaussNewton
from fimoda.model import FinalModel
from fimoda.objective import Objective
from fimoda.padding import by_length, chunks, cut, ends_of, order_by_length, uncut
from fimoda.rows import Padding, Rows, SeveralInputs

N, N_TEST, WORDS, LONGEST, PADDED = 64, 4, 12, 8, 15

#: Scores are equal up to rounding.
SAME = {"rtol": 1e-9, "atol": 1e-12}

rng = np.random.default_rng(0)
ENDS = rng.integers(1, LONGEST, N + N_TEST)
ENDS[3] = LONGEST
HOLDS = (np.arange(PADDED) < ENDS[:, None]).astype(np.int64)
IDS = rng.integers(1, WORDS, (N + N_TEST, PADDED)) * HOLDS
NUMBERS = rng.normal(size=(N + N_TEST, 3))
Y = np.arange(N + N_TEST) % 2


class Reader(nn.Module):
    """Words in their places, and numbers, in float64; it notes the shapes that it sees."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 3)
        self.places = nn.Parameter(0.1 * torch.randn(PADDED, 3))
        self.hidden = nn.Linear(3, 4)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(7, 2)
        self.seen: list[tuple[int, ...]] = []
        self.double()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.places, std=0.1)

    def pooled(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return (hidden * mask).sum(1) / mask.sum(1)

    def forward(self, ids, attention_mask, numbers):
        self.seen.append(tuple(ids.shape))
        words = self.words(ids) + self.places[: ids.shape[-1]]
        mask = attention_mask.unsqueeze(-1).to(words)
        hidden = self.dropout(torch.tanh(self.hidden(words)))
        return self.out(torch.cat([self.pooled(hidden, mask), numbers], dim=-1))


class Unknown(Reader):
    """The same network, whose mask has a name that says nothing: its padding is never cut."""

    def forward(self, ids, holds, numbers):
        return super().forward(ids, holds, numbers)


def rows(which: slice, mask: str = "attention_mask", length: int = PADDED) -> dict[str, Any]:
    parts = {"ids": IDS[which, :length], mask: HOLDS[which, :length]}
    return parts | {"numbers": NUMBERS[which]}


TRAIN, TEST = slice(N), slice(N, None)


def trained(module: type[Reader], mask: str, length: int = PADDED, **settings: Any) -> Any:
    torch.manual_seed(0)
    recorder = TrajectoryRecorder(checkpoints="all", batches=True)
    common = {"max_epochs": 2, "lr": 0.1, "batch_size": 16, "train_split": None, "verbose": 0}
    net = NeuralNetClassifier(
        module(**settings),
        criterion=nn.CrossEntropyLoss,
        callbacks=[("run", recorder)],
        **common,
    )
    with torch.random.fork_rng():
        return net.fit(rows(TRAIN, mask, length), Y[TRAIN])


@pytest.fixture(scope="module")
def nets() -> dict[str, Any]:
    return {
        "attention_mask": trained(Reader, "attention_mask"),
        "holds": trained(Unknown, "holds"),
    }


def scores_of(attributor: Any, mask: str, length: int = PADDED) -> list[np.ndarray]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nets of two epochs are far from their minimum
        attributor.fit(rows(TRAIN, mask, length), Y[TRAIN])
        test = rows(TEST, mask, length)
        return [attributor.transform(test, Y[TEST]), attributor.self_influence()]


def final(module: nn.Module, X: dict[str, Any] | None = None) -> FinalModel:
    X = rows(TRAIN) if X is None else X
    return as_final_model(module.eval(), X, criterion=nn.CrossEntropyLoss())


# ---- results --------------------------------------------------------------------------------


#: Distances are of rows in one array: `KNNShapley` refuses several.
OF_INPUTS = [cls for cls in ATTRIBUTORS if cls is not fimoda.KNNShapley]


@pytest.mark.parametrize("cls", OF_INPUTS, ids=lambda cls: cls.__name__)
def test_scores_are_those_of_whole_rows(nets, cls):
    if cls.__name__ in ("EKFACInfluence", "SOURCE"):  # their factors have positions in use alone
        net = trained(Reader, "attention_mask", LONGEST)
        expected = scores_of(make(cls, net), "attention_mask", LONGEST)
    else:
        expected = scores_of(make(cls, nets["holds"]), "holds")
    found = scores_of(make(cls, nets["attention_mask"]), "attention_mask")
    for one, other in zip(found, expected, strict=True):
        assert np.abs(other).max() > 0
        assert_allclose(one, other, **SAME)


def test_factors_of_ekfac_are_of_the_tokens_alone():
    """The eigenvalues of a layer are those by each row's own tokens, one row after the other."""
    model, module = final(Reader()), Reader()
    objective = Objective(model, Rows(model.encode_X(rows(TRAIN)), torch.as_tensor(Y[TRAIN])))
    module.load_state_dict(model.module.state_dict())
    taken: list[tuple[Tensor, Tensor]] = []
    module.hidden.register_forward_hook(lambda _, given, output: taken.append((given[0], output)))
    ones, A, S, gradients = torch.ones(1, 1).double(), 0.0, 0.0, []
    for i in range(N):
        row = {
            name: torch.as_tensor(part[i : i + 1, ..., : ENDS[i]])
            for name, part in rows(TRAIN).items()
        }
        row["numbers"] = torch.as_tensor(NUMBERS[i : i + 1])
        outputs = module(**row)
        p = outputs.softmax(-1)[0].detach()
        (a, hidden) = taken.pop()
        a = torch.cat([a[0].detach(), ones.expand(a.shape[1], 1)], 1)
        A = A + a.mT @ a / N
        for c in range(2):
            v = p[c].sqrt() * (p - torch.eye(2).double()[c])
            (d,) = torch.autograd.grad((outputs[0] * v).sum(), hidden, retain_graph=True)
            S = S + d[0].mT @ d[0] / N
            gradients.append(d[0].mT @ a)
    q_a, q_s = (torch.linalg.eigh(matrix)[1] for matrix in (A, S))
    expected = sum((q_s.mT @ G @ q_a) ** 2 for G in gradients) / N
    start = model.slices["hidden.weight"].start
    (block,) = [b for b in EKFAC(objective).blocks if b.place.slices[0].start == start]
    assert_allclose(block.eigenvalues, expected, **SAME)


def test_products_by_gradients_of_rows():
    """Rows are taken from the shortest to the longest, a few whole ones' positions at a time."""
    model = final(Reader())
    given = Rows(model.encode_X(rows(TRAIN)), torch.as_tensor(Y[TRAIN]), torch.rand(N).double())
    V = torch.randn(3, model.n_parameters).double()
    expected = GaussNewton(Objective(model, given)).matmat(V)
    for budget in (1, 2**16):
        by_rows = RowwiseGaussNewton.of(Objective(model, given, memory_budget=budget))
        assert_allclose(by_rows.matmat(V), expected, **SAME)


def test_chunks_hold_as_many_positions_as_whole_rows():
    inputs = final(Reader()).encode_X(rows(TRAIN))
    ordered = inputs[order_by_length(inputs)]
    ends = np.sort(ENDS[:N])
    found = list(chunks(ordered, 2, 5))
    assert [0, *(at.stop for at in found)] == [*(at.start for at in found), N]
    for at, after in zip(found, [*found[1:], None], strict=True):
        size = at.stop - at.start
        assert size == 1 or size * ends[at].max() <= 2 * PADDED
        if after is not None and size < 5:
            assert (size + 1) * ends[at.stop] > 2 * PADDED


def test_the_same_bits_each_time(nets):
    net = nets["attention_mask"]
    for method in (GradDot(net), FurtherTraining(net, n_epochs=1, n_seeds=1, random_state=0)):
        found = [scores_of(method, "attention_mask") for _ in range(2)]
        for one, other in zip(*found, strict=True):
            assert_array_equal(one, other)


def test_what_the_network_is_run_on():
    module = Reader()
    model = final(module)
    assert model.padding == Padding("attention_mask", 0, ("ids", "attention_mask"))
    inputs = model.encode_X(rows(TRAIN))
    seen = model.module.seen
    seen.clear()
    model.outputs(inputs)
    positions = sum(n * length for n, length in seen)
    assert sum(n for n, _ in seen) == N
    assert max(length for _, length in seen) == LONGEST
    assert positions < N * LONGEST
    seen.clear()
    model.call(model.views(model.theta), inputs[:20])
    assert seen == [(20, int(ENDS[:20].max()))]
    batch = inputs[torch.arange(20).view(2, 10)]
    assert cut(batch).given["ids"].shape == (2, 10, int(ENDS[:20].max()))


def test_dropout_draws_for_all_positions():
    """So that further training is that of the rows as they are."""
    model = final(Reader(dropout=0.5))
    inputs = model.encode_X(rows(TRAIN))[:10]
    model.training_module.seen.clear()
    model.call(model.views(model.theta), inputs, training=True)
    assert model.training_module.seen == [(10, PADDED)]
    assert model.cut(inputs).given["ids"].shape[1] < PADDED


# ---- networks that look at padding ----------------------------------------------------------


class WithoutMask(Reader):
    def pooled(self, hidden, mask):
        return hidden.mean(1)


class Largest(Reader):
    def pooled(self, hidden, mask):
        return hidden.amax(1)


class Last(Reader):
    def pooled(self, hidden, mask):
        return hidden[:, -1]


class LastOfARecurrent(Reader):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(4, 4, batch_first=True).double()

    def pooled(self, hidden, mask):
        return self.recurrent(hidden)[0][:, -1]


class OfAllPositions(Reader):
    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Linear(4 * PADDED, 4).double()

    def pooled(self, hidden, mask):
        return self.flat((hidden * mask).flatten(1))


class Normalised(Reader):
    """In training its statistics are over all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4).double()

    def pooled(self, hidden, mask):
        return super().pooled(self.norm(hidden.mT).mT, mask)


@pytest.mark.parametrize(
    "module", [WithoutMask, Largest, Last, LastOfARecurrent, OfAllPositions, Normalised]
)
def test_networks_that_look_at_padding_see_it(module):
    torch.manual_seed(0)
    model = final(module())
    assert model.padding is None
    x = {name: torch.as_tensor(part) for name, part in rows(TRAIN).items()}
    expected = model.module(**x).detach()
    assert_allclose(model.outputs(model.encode_X(rows(TRAIN))), expected, **SAME)


def test_rows_without_padding_say_nothing():
    assert (
        final(Reader(), {**rows(TRAIN), "attention_mask": np.ones_like(HOLDS[TRAIN])}).padding
        is None
    )


def test_an_input_that_happens_to_be_as_long():
    class Wide(Reader):
        def forward(self, ids, attention_mask, numbers):
            return super().forward(ids, attention_mask, numbers[:, :3] + numbers[:, 12:])

    wide = {**rows(TRAIN), "numbers": rng.normal(size=(N, PADDED))}
    assert final(Wide(), wide).padding is None


# ---- functions ------------------------------------------------------------------------------


def inputs_of(n: int) -> SeveralInputs:
    padding = Padding("mask", 0, ("mask", "ids"))
    ids, mask = (torch.as_tensor(part[:n]) for part in (IDS, HOLDS))
    return SeveralInputs({"ids": ids, "mask": mask}, padding=padding)


def test_ends():
    tells = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [7, 7, 7, 7]])
    assert ends_of(tells, 0).tolist() == [2, 3, 1, 4]
    assert ends_of(tells.view(2, 2, 4), 7).tolist() == [[4, 4], [4, 1]]


@pytest.mark.parametrize("n", [0, 1, 4, 63, 64, 68])
def test_by_length_gives_rows_in_their_order(n):
    inputs = inputs_of(n)
    groups, y = by_length(inputs), torch.arange(n)
    found = groups.joined([x.given["ids"].sum(1) + y[rows] for rows, x in groups.parts])
    assert_array_equal(found, inputs.given["ids"].sum(1) + y)


def test_few_rows_and_uncut_ones_stay_whole():
    assert cut(inputs_of(3)).given["ids"].shape == (3, PADDED)
    assert cut(uncut(inputs_of(20))).given["ids"].shape == (20, PADDED)
    assert cut(inputs_of(20)).given["ids"].shape == (20, int(ENDS[:20].max()))
    plain = torch.ones(4, 5)
    assert cut(plain) is plain is uncut(plain)


def test_rows_within_a_batch_of_torch():
    whole = torch.func.vmap(lambda x: cut(x).given["ids"].sum(), in_dims=(0,))(inputs_of(20))
    assert_array_equal(whole, inputs_of(20).given["ids"].sum(1))


def test_sentences_of_a_tokenizer_with_a_long_maximum():
    pytest.importorskip("transformers")
    from networks import Logits, bert

    torch.manual_seed(0)
    module = Logits(lambda: bert(dropout=0.0)).double().eval()
    holds = (np.arange(8) < np.minimum(ENDS, 5)[:, None]).astype(np.int64)
    X = {"input_ids": IDS[:, :8] * holds, "attention_mask": holds}
    long, short = X, {name: part[:, :5] for name, part in X.items()}
    y = np.arange(len(holds)) % 3
    found = []
    for one in (long, short):
        attributor = GradDot(module, criterion=nn.CrossEntropyLoss()).fit(one, y)
        assert attributor.model_.padding is not None
        found.append(attributor.transform(one, y))
    assert_allclose(*found, **SAME)
