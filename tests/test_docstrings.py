"""Docstrings: the same words for the same parameter within a family, and a verb to begin with."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator

import pytest
from numpydoc.docscrape import NumpyDocString
from test_common import ATTRIBUTORS as OTHERS
from test_common import OF_TREES
from test_layering import FILES

import fimoda

ATTRIBUTORS = OTHERS + OF_TREES

FAMILIES = {
    "influence functions": [
        "ArnoldiInfluence", "CGInfluence", "DataInf", "EKFACInfluence", "ExactInfluence", "GradCos",
        "GradDot", "LiSSAInfluence", "RepSim", "TRAK",
    ],
    "along the run": ["Hydra", "SOURCE", "TracIn"],
    "further training": [
        "FurtherTraining", "LinearizedFurtherTraining", "OnceLinearizedFurtherTraining",
        "UnrolledDifferentiation", "further_training_curve",
    ],
    "retraining": ["Datamodel", "Downsampling", "LeaveOneOut", "train_on_subsets"],
    "games": ["BetaShapley", "DataBanzhaf", "DataOOB", "DataShapley", "KNNShapley", "LeastCore"],
    "trees": ["AXIL", "BoostIn", "LeafInfluence", "LeafKernel", "LeafRefit", "TREX"],
    "of other attributors": ["DistributionalInfluence", "EnsembleAttributor", "RefinedAttributor"],
    "selection": ["InfluencePruner", "MislabelDetector", "PrunedClassifier", "PrunedRegressor"],
    "intervals": ["CVPlusRegressor", "JackknifePlusRegressor"],
}  # fmt: skip

#: parameters and attributes that all attributors share, and functions with them
EVERYWHERE = [
    "criterion", "estimator_", "measurement", "model_", "random_state", "reweight_others", "train_indices_",
    "verbose",
]  # fmt: skip

#: (family, parameter): why the words differ
DIFFERENT = {
    ("everywhere", "measurement"): "RepSim measures nothing",
    ("influence functions", "batch_size"): "of training, or of a series",
    ("influence functions", "chunk_size"): "EK-FAC holds factors",
    ("influence functions", "damping"): 'each has its own "auto"',
    ("influence functions", "measurement"): "RepSim measures nothing",
    ("influence functions", "memory_budget"): "each holds other things",
    ("influence functions", "n_components"): "eigenpairs or features",
    ("influence functions", "n_iter_"): "a series has terms",
    ("influence functions", "tol"): "of a residual, or of the solution",
    ("along the run", "chunk_size"): "Hydra goes through the run once for each chunk of test rows",
    ("along the run", "memory_budget"): "each holds other things",
    ("along the run", "n_components"): "SOURCE projects for one of its curvatures",
    ("along the run", "projection"): "SOURCE projects for one of its curvatures",
    ("further training", "checkpoint_dir"): "a curve keeps measurements, an estimator models",
    ("further training", "memory_budget"): "each holds other things",
    ("further training", "optimizer"): "derivatives of some optimisers only",
    ("of other attributors", "scores_sem_"): "over models, or over the seeds of a few rows",
    ("retraining", "checkpoint_dir"): "a function keeps measurements, an estimator models",
    ("retraining", "measurement"): "a function that attributes nothing",
    ("retraining", "memory_budget"): "a function holds measurements, an estimator models",
    ("retraining", "scores_sem_"): "subsets, bootstrap samples or seeds",
    ("retraining", "subsets"): "instead of random ones, or needed",
    ("games", "checkpoint_dir"): "bags are trained on in fit",
    ("games", "failed_"): "a set counts as empty, a bag as none",
    ("games", "measurement"): "the vote of the nearest rows has two",
    ("games", "memory_budget"): "each holds other things",
    ("games", "n_samples"): "permutations, sets or bags",
    ("games", "values_"): "of test rows, or of none",
    ("trees", "memory_budget"): "each holds other things",
    ("of other attributors", "models"): "what is averaged, or what distributions are made of",
    ("intervals", "random_state"): "for an attributor, or for the folds alone",
    ("selection", "estimator_"): "fitted on all rows, or on those that are kept",
    ("selection", "scores_"): "a detector scores by self-influence",
}  # fmt: skip


def words(names: list[str]) -> dict[str, dict[str, str]]:
    """Return what each says of each parameter and attribute, but for "As in ..." of another's."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        doc = NumpyDocString(inspect.getdoc(getattr(fimoda, name)))
        for entry in [*doc["Parameters"], *doc["Attributes"]]:
            text = " ".join(" ".join(entry.desc).split())
            if not any(words in text for words in ("As in `", "as in `", "as for `")):
                found.setdefault(entry.name, {})[name] = text
    return found


def check(family: str, found: dict[str, dict[str, str]]) -> None:
    for parameter, said in found.items():
        shared = min((text.split(". ")[0].rstrip(".") for text in said.values()), key=len)
        same = all(text.startswith(shared) for text in said.values())
        if (family, parameter) in DIFFERENT:
            assert not same, (
                f"{(family, parameter)} is no longer different: leave it out of the table"
            )
            continue
        assert same, f"{parameter} of {family}: begin alike, particulars behind: {said}"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_says_the_same(family):
    check(family, words(FAMILIES[family]))


def test_all_attributors_say_the_same():
    everyone = words([cls.__name__ for cls in ATTRIBUTORS] + ["train_ensemble", "train_on_subsets"])
    check("everywhere", {name: everyone[name] for name in EVERYWHERE})


def test_every_attributor_has_a_family():
    members = [name for family in FAMILIES.values() for name in family]
    assert len(members) == len(set(members))
    assert {cls.__name__ for cls in ATTRIBUTORS} <= set(members)


def test_differences_are_of_known_families():
    assert {family for family, _ in DIFFERENT} <= {*FAMILIES, "everywhere"}


# ---- style ----------------------------------------------------------------------------------

#: What functions do. A new one is welcome, as long as it is a verb that a colleague would use.
VERBS = set(
    "Accept Add Apply Ask Average Begin Bound Build Call Change Check Choose Compare Compute Count "
    "Cut Describe Differentiate Divide Do Draw Encode Estimate Fill Find Fit Follow Forget Freeze "
    "Give Guess Hold Join Judge Keep Leave Let List Load Lock Look Make Mark Measure Merge Move "
    "Multiply Name Offer Open Order Pass Plan Plot Project Pull Push Put Raise Read Record Refit "
    "Refuse Remove Replace Restore Return Round Run Sample Save Say Score Search Seed Send Set Share "
    "Shift Show Solve Sort Split Stand Start Step Stop Store Sum Take Tell Train Transform Try Turn "
    "Undo Update Use Walk Warn Write Yield".split()
)
#: Opens the docstring of what a subclass may overwrite: "Hook of `fit`: ...".
HOOK = "Hook"


def docstrings() -> Iterator[tuple[str, ast.AST, str]]:
    for module, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                name = f"{module}.{getattr(node, 'name', '')}"
                if found := ast.get_docstring(node):
                    yield name, node, found


def test_nothing_opens_with_a_question():
    opening = re.compile(r"(What|Whether|How|Where|By)\b")
    assert not [name for name, _, text in docstrings() if opening.match(text)]


def test_functions_open_with_a_verb():
    """Not properties, which are named for what they are."""
    nouns = []
    for name, node, text in docstrings():
        if isinstance(node, ast.FunctionDef):
            decorators = {
                ast.unparse(decorator).split(".")[-1] for decorator in node.decorator_list
            }
            first = re.split(r"[\s:;,.]", text)[0]
            if not decorators & {"property", "cached_property"} and first not in {*VERBS, HOOK}:
                nouns.append(f"{name}: {text.splitlines()[0]}")
    assert not nouns, "\n".join(nouns)
