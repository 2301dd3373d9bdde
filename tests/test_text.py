"""Sentences, through a Pipeline whose first step makes tokens of them, in everything that takes networks."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from skorch import NeuralNetClassifier
from test_common import ATTRIBUTORS, make
from torch import Tensor, nn

import fimoda
from fimoda import FurtherTraining, GradDot, LeaveOneOut, TrajectoryRecorder
from fimoda.cli import main

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")
hf = pytest.importorskip("skorch.hf")

WORDS = "the film is was a good bad great dull story and acting plot never warm cold slow".split()
N, N_TEST, LENGTH = 16, 3, 10

#: Scores are equal up to rounding: the same numbers go through the same operations.
SAME = {"rtol": 1e-9, "atol": 1e-12}

rng = np.random.default_rng(0)
TEXTS = [" ".join(rng.choice(WORDS, rng.integers(2, 9))) for _ in range(N + N_TEST)]
TRAIN, TEST = TEXTS[:N], TEXTS[N:]
Y, Y_TEST = np.arange(N) % 2, np.arange(N_TEST) % 2


class Reader(nn.Module):
    """The mean over tokens of a hidden layer, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(2 + len(WORDS), 3, dtype=torch.float64)
        self.hidden = nn.Linear(3, 4, dtype=torch.float64)
        self.out = nn.Linear(4, 2, dtype=torch.float64)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask.unsqueeze(-1).to(self.out.weight)
        seen = torch.tanh(self.hidden(self.words(input_ids))) * mask
        return self.out(seen.sum(1) / mask.sum(1))


def tokens(**settings: Any) -> Any:
    """Return a step that makes tokens of sentences by a tokenizer that needs no training."""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    model = tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]")
    return hf.HuggingfacePretrainedTokenizer(fast, **{"max_length": LENGTH, **settings})


def trained_tokens() -> Any:
    """Return a step that trains its tokenizer on the sentences that it is fitted to."""
    return hf.HuggingfaceTokenizer(
        tokenizers.Tokenizer,
        model=tokenizers.models.WordLevel,
        model__unk_token="[UNK]",
        pre_tokenizer=tokenizers.pre_tokenizers.Whitespace,
        trainer__special_tokens=["[PAD]", "[UNK]"],
        trainer__show_progress=False,
        max_length=LENGTH,
    )


def a_net(module: Any = Reader, **settings: Any) -> NeuralNetClassifier:
    torch.manual_seed(0)
    recorder = TrajectoryRecorder(checkpoints="all", batches=True)
    common = {"max_epochs": 2, "lr": 0.1, "batch_size": 6, "train_split": None, "verbose": 0}
    common |= {"criterion": nn.CrossEntropyLoss, "callbacks": [("run", recorder)]}
    return NeuralNetClassifier(module, **(common | settings))


def reader(step: Any = None, **settings: Any) -> Pipeline:
    """Return a Pipeline of tokens and net, fitted to the sentences."""
    pipeline = Pipeline([("tokens", step or tokens()), ("net", a_net(**settings))])
    with torch.random.fork_rng():
        return pipeline.fit(TRAIN, Y)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return reader()


def arrays(pipeline: Pipeline, rows: Any) -> dict[str, np.ndarray]:
    """Return what the net sees of sentences, as arrays."""
    return {name: np.asarray(part) for name, part in pipeline[0].transform(rows).items()}


def scores_of(attributor: Any, train: Any, test: Any) -> list[np.ndarray]:
    """Return all that an attributor says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nets of two epochs are far from their minimum
        attributor.fit(train, Y)
        top = attributor.top(test, Y_TEST, k=2)
        return [
            attributor.transform(test, Y_TEST),
            attributor.transform(test),
            attributor.self_influence(),
            top.helpful_scores,
        ]


def assert_same(got: list[Any], expected: list[Any]) -> None:
    assert np.abs(expected[0]).max() > 0
    for one, other in zip(got, expected, strict=True):
        assert_allclose(one, other, **SAME)


# ---- every attributor -----------------------------------------------------------------------


#: Distances are of rows in one array: `KNNShapley` refuses several.
OF_INPUTS = [cls for cls in ATTRIBUTORS if cls is not fimoda.KNNShapley]


@pytest.mark.parametrize("cls", OF_INPUTS, ids=lambda cls: cls.__name__)
def test_sentences_score_as_arrays_of_tokens(pipeline, cls):
    net = pipeline[-1]
    expected = scores_of(make(cls, net), arrays(pipeline, TRAIN), arrays(pipeline, TEST))
    assert_same(scores_of(make(cls, pipeline), TRAIN, TEST), expected)


@pytest.mark.parametrize("name", ["GradDot", "CGInfluence", "FurtherTraining", "TRAK"])
def test_a_tokenizer_that_was_trained_with_the_net(name):
    pipeline, cls = reader(trained_tokens()), getattr(fimoda, name)
    expected = scores_of(make(cls, pipeline[-1]), arrays(pipeline, TRAIN), arrays(pipeline, TEST))
    assert_same(scores_of(make(cls, pipeline), TRAIN, TEST), expected)


@pytest.mark.parametrize("refit", ["all", "last"])
def test_training_again_with_the_tokenizer_or_without(refit):
    pipeline, without = reader(trained_tokens()), 5
    method = LeaveOneOut(pipeline, refit=refit, leave_out=[without], n_seeds=[0, 1], random_state=0)
    scores = method.fit(TRAIN, Y).transform(TEST, Y_TEST)
    assert scores.shape == (N_TEST, 1)
    if refit == "last":
        return
    losses = []
    for rows in (range(N), [i for i in range(N) if i != without]):
        of_seeds = []
        for seed in (0, 1):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                np.random.seed(seed)  # noqa: NPY002
                again = clone(pipeline).fit([TRAIN[i] for i in rows], Y[rows])
            probabilities = again.predict_proba(TEST)[np.arange(N_TEST), Y_TEST]
            of_seeds.append(-np.log(probabilities))
        losses.append(np.mean(of_seeds, axis=0))
    assert_allclose(scores[:, 0], losses[1] - losses[0], rtol=1e-9, atol=1e-12)


def test_a_tokenizer_that_learns_nothing_leaves_the_net_to_be_trained_in_stacks(pipeline):
    settings = {"n_seeds": 1, "leave_out": [2], "random_state": 0}
    whole = LeaveOneOut(pipeline, **settings).fit(TRAIN, Y).transform(TEST, Y_TEST)
    alone = LeaveOneOut(pipeline[-1], **settings).fit(arrays(pipeline, TRAIN), Y)
    assert_allclose(whole, alone.transform(arrays(pipeline, TEST), Y_TEST), **SAME)


# ---- what sentences may be, and what tokens --------------------------------------------------


SHAPES = {
    "array": np.array,
    "objects": lambda rows: np.array(rows, dtype=object),
    "tuple": tuple,
    "series": pd.Series,
    "series of strings": lambda rows: pd.Series(rows, dtype="string"),
    "strings of numpy": lambda rows: np.array(rows, dtype=np.dtypes.StringDType()),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["GradDot", "LeaveOneOut"])
def test_what_holds_the_sentences(pipeline, shape, name):
    cls, made = getattr(fimoda, name), SHAPES[shape]
    assert_same(
        scores_of(make(cls, pipeline), made(TRAIN), made(TEST)),
        scores_of(make(cls, pipeline), TRAIN, TEST),
    )


def test_a_column_of_a_frame(pipeline):
    column = FunctionTransformer(lambda frame: frame["text"])
    longer = Pipeline([("column", column), *pipeline.steps])
    train, test = (pd.DataFrame({"text": rows}) for rows in (TRAIN, TEST))
    got = scores_of(GradDot(longer), train, test)
    assert_same(got, scores_of(GradDot(pipeline), TRAIN, TEST))
    with pytest.raises(ValueError, match=r"step 'tokens' made 1 rows of 16.*X\[\"text\"\]"):
        GradDot(pipeline).fit(train, Y)
    with pytest.raises(ValueError, match=r"step 'tokens' made 1 rows of 16"):
        LeaveOneOut(pipeline, n_seeds=1, leave_out=[2]).fit(train, Y)


class Lists(FunctionTransformer):
    """A step that makes a dict of lists."""

    def transform(self, X: Any) -> Any:
        return {name: part.tolist() for name, part in X.items()}


@pytest.mark.parametrize("form", ["numpy", "lists", "segments", "no mask"])
def test_what_a_tokenizer_returns(pipeline, form):
    class Other(Reader):
        def forward(self, input_ids, attention_mask=None, token_type_ids=None):
            return super().forward(input_ids, (input_ids > 0).long())

    settings = {
        "numpy": {"return_tensors": "np"},
        "segments": {"return_token_type_ids": True},
        "no mask": {"return_attention_mask": False},
    }
    other = reader(tokens(**settings.get(form, {})), module=Other)
    if form == "lists":
        other = Pipeline([other.steps[0], ("lists", Lists()), other.steps[1]])
    assert_same(scores_of(GradDot(other), TRAIN, TEST), scores_of(GradDot(pipeline), TRAIN, TEST))


def test_tokens_that_were_not_padded(pipeline):
    ragged = Pipeline([("tokens", tokens(return_tensors=None).fit(TRAIN)), pipeline.steps[1]])
    message = r'X after the .*\["input_ids"\] must have rows of one length, got lengths from 2 to 8'
    with pytest.raises(ValueError, match=message):
        GradDot(ragged).fit(TRAIN, Y)


# ---- names ----------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [list, np.array, pd.Series])
def test_sentences_are_names_of_rows(pipeline, made):
    attributor = GradDot(pipeline).fit(made(TRAIN), Y)
    top = attributor.top(made(TEST), Y_TEST, k=2)
    found = fimoda.attribute(pipeline, made(TRAIN), Y, made(TEST), Y_TEST, method=GradDot())
    for one in (top, found.top(2), found.plot(TEST[1]).top):
        assert list(one.test_names) == TEST
        assert all(one.names[row] == TRAIN[row] for row in one.names)
        assert one.position(TEST[2]) == 2
    assert TRAIN[top.helpful[0, 0]][:19] in repr(top)
    assert attributor.get_feature_names_out()[1] == ("1" if made is pd.Series else "row1")


def test_an_index_with_names_goes_before_the_sentences(pipeline):
    names = [f"review {i}" for i in range(N)]
    attributor = GradDot(pipeline).fit(pd.Series(TRAIN, index=names), Y)
    assert set(attributor.top(TEST, k=1).names.values()) <= set(names)
    numbered = pd.Series(TRAIN, index=pd.Index(range(100, 100 + N), name="id"))
    shown = GradDot(pipeline).fit(numbered, Y).top(TEST, k=1).names.values()
    assert set(shown) <= set(range(100, 100 + N))


def test_frames_of_scores(pipeline):
    attributor = GradDot(pipeline).set_output(transform="pandas").fit(TRAIN, Y)
    frame = attributor.transform(TEST)
    assert list(frame.columns) == [f"row{i}" for i in range(N)]
    frame = fimoda.attribute(pipeline, TRAIN, Y, TEST, method=GradDot()).to_frame()
    assert (list(frame.index), frame.columns[1]) == ([0, 1, 2], "row1")


# ---- the rest of the package ----------------------------------------------------------------


def test_copies(pipeline):
    attributor = GradDot(pipeline).fit(TRAIN, Y)
    expected = attributor.transform(TEST)
    assert_array_equal(pickle.loads(pickle.dumps(attributor)).transform(TEST), expected)
    assert_array_equal(clone(attributor).fit(TRAIN, Y).transform(TEST), expected)


def test_functions_that_take_rows(pipeline):
    both = {
        "sentences": (pipeline, TRAIN, TEST),
        "arrays": (pipeline[-1], arrays(pipeline, TRAIN), arrays(pipeline, TEST)),
    }
    subsets = np.random.default_rng(1).random((8, N)) < 0.5
    found = []
    for model, train, test in both.values():
        rows, tests, seeds = (train, Y), (test, Y_TEST), {"n_seeds": 2, "random_state": 0}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)  # selection fits again, with torch's own generator
            curve = fimoda.further_training_curve(
                model, *rows, *tests, epochs=[1, 2], leave_out=4, **seeds
            )
            product = GradDot(model).fit(*rows)
            agreement = fimoda.agreement_curve({"Grad-Dot": product}, curve, *tests)
            trained = fimoda.train_on_subsets(model, train, Y, subsets, *tests, **seeds)
            ensemble = fimoda.train_ensemble(model, *rows, checkpoints=2, n_epochs=2, **seeds)
            method = fimoda.EnsembleAttributor(model, attributor=GradDot(), models=ensemble)
            detector = fimoda.MislabelDetector(model, random_state=0).fit(*rows)
            pruned = fimoda.PrunedClassifier(model, fraction=0.2, cv=2, random_state=0).fit(*rows)
            scores = fimoda.linear_datamodeling_score(
                {"Grad-Dot": product}, trained, *tests, random_state=0
            )
        found.append(
            [
                curve.scores,
                agreement.values["cosine"],
                trained.measured,
                *scores_of(method, train, test),
                detector.scores_,
                pruned.predict_proba(test),
                scores.values,
            ]
        )
    assert_same(*found)


def test_comparison(pipeline):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = fimoda.compare_methods(
            pipeline, TRAIN, Y, TEST, Y_TEST, epochs=[1], budget=10, random_state=0
        )
    assert "Grad-Dot" in repr(found)


def test_the_command_line(pipeline, tmp_path, capsys):
    joblib.dump(pipeline, tmp_path / "net.pkl")
    pd.DataFrame({"text": TRAIN, "label": Y}).to_csv(tmp_path / "train.csv", index=False)
    pd.DataFrame({"text": TEST}).to_csv(tmp_path / "test.csv", index=False)
    files = {"--model": "net.pkl", "--train": "train.csv", "--test": "test.csv"}
    named = [part for key, name in files.items() for part in (key, str(tmp_path / name))]
    options = ["--target", "label", "--trust", "--method", "GradDot"]
    out = tmp_path / "scores.npy"
    assert main(["attribute", *named, *options, "--out", str(out)]) == 0
    expected = GradDot(pipeline).fit(TRAIN, Y).transform(TEST)
    assert_allclose(np.load(out), expected, **SAME)
    assert TEST[0][:19] in capsys.readouterr().out


def test_a_vectorizer_keeps_working(tmp_path, capsys):
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(16, 2, dtype=torch.float64)

        def forward(self, X):
            return self.out(X)

    def dense(X):
        return X.toarray()

    steps = TfidfVectorizer(), FunctionTransformer(dense, accept_sparse=True)
    pipeline = make_pipeline(*steps, a_net(Table)).fit(TRAIN, Y)
    expected = scores_of(
        GradDot(pipeline[-1]), pipeline[:-1].transform(TRAIN), pipeline[:-1].transform(TEST)
    )
    assert_same(scores_of(GradDot(pipeline), TRAIN, TEST), expected)
    assert list(GradDot(pipeline).fit(TRAIN, Y).top(TEST, k=1).test_names) == TEST


def test_the_whole_way():
    train = ["a warm story", "great acting", "a good film", "never dull", "the plot is great"]
    train += ["a cold story", "bad acting", "a bad film", "slow and dull", "the plot is slow"]
    y = np.repeat([1, 0], 5)
    torch.manual_seed(0)
    steps = [("tokens", tokens()), ("net", a_net(max_epochs=40, lr=1.0, batch_size=5))]
    model = Pipeline(steps).fit(train, y)
    found = fimoda.attribute(
        model, train, y, ["a great film"], [1], method=FurtherTraining(n_seeds=2, n_epochs=2)
    )
    top = found.top(3)
    assert (y[top.helpful[0]] == 1).all()
    assert (y[top.harmful[0]] == 0).all()
    assert train[top.helpful[0, 0]] in str(top)
