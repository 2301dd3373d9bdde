"""The house plan: a file imports only from files above it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import fimoda

PACKAGE = Path(fimoda.__file__).parent

# From the top to the bottom; a name stands for a file, or for all files of a directory.
ORDER = [
    "_arrays",
    "_validation",
    "_identity",
    "store",
    "rows",
    "padding",
    "returned",
    "distances",
    "gradient_mode",
    "losses",
    "measurements",
    "recipe",
    "batch_statistics",
    "parameters",
    "formulas",
    "named_parameters",
    "fallbacks",
    "derivatives",
    "hessians",
    "model",
    "measured",
    "trajectory",
    "trees",
    "adapters",
    "layers",
    "row_gradients",
    "objective",
    "top_rows",
    "views",
    "checked_rows",
    "preparation",
    "last_call",
    "trials",
    "changed_rows",
    "as_estimator",
    "base",
    "training",
    "games",
    "curvature",
    "walks",
    "attributors",
    "evaluation",
    "selection",
    "groups",
    "plotting",
    "report",
    "attribution",
    "__init__",
    "_files",
    "_tables",
    "cli",
    "__main__",
    "utils",
]
APART = {"datasets"}
USER_LIBRARIES = ("skorch", "sklearn.linear_model", "sklearn.neural_network", "sklearn.pipeline")
# Files that solve a regression by scikit-learn, of numbers that have nothing to do with the user's model.
SOLVERS = {"training.subset_regression": ("sklearn.linear_model",)}
# Public names of scikit-learn's data side, which any file may use.
SCIKIT_LEARN = {
    "datasets",
    "adapters",
    "_arrays",
    "_validation",
    "preparation",
    "as_estimator",
    "games",
    "selection",
    "utils",
}
MACHINERY = ("sklearn.utils", "sklearn.base", "sklearn.exceptions")
EXTRAS = (
    *("pandas", "matplotlib", "dask", "distributed", "seaborn"),
    *("catboost", "lightgbm", "xgboost"),
    *("jinja2", "markupsafe", "PIL"),
)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def layer(module: str) -> str:
    return module.split(".")[0]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and getattr(node.test, "id", None) == "TYPE_CHECKING"


def statements(node: ast.AST, everywhere: bool) -> list[ast.AST]:
    """Nodes below `node`: all, or those that run when the module is imported."""
    found = []
    for child in ast.iter_child_nodes(node):
        deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if not everywhere and (deferred or is_type_checking(child)):
            continue
        found += [child, *statements(child, everywhere)]
    return found


def imports(module: str, everywhere: bool = True) -> set[str]:
    """Absolute names of what a file imports; of fimoda's own files with a leading dot."""
    path = FILES[module]
    package = list(path.relative_to(PACKAGE).parent.parts)
    names: set[str] = set()
    for node in statements(ast.parse(path.read_text()), everywhere):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            stem = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:  # `from . import measurements` names a file
                inner = f"{stem}.{alias.name}".strip(".")
                names.add("." + (inner if inner in FILES else stem))
    own = {f".{n.removeprefix('fimoda').strip('.')}" for n in names if n.split(".")[0] == "fimoda"}
    return {n for n in names if n.split(".")[0] != "fimoda"} | own


def own_imports(module: str) -> set[str]:
    """Files of fimoda that a file imports."""
    found = set()
    for name in imports(module):
        if name.startswith("."):
            target = name[1:]
            found.add(target if target in FILES else f"{target}.__init__".strip("."))
    return found


def starts_with(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def test_every_file_has_a_place():
    assert {layer(module) for module in FILES} == {*ORDER, *APART}


@pytest.mark.parametrize("module", FILES)
def test_imports_only_from_above(module):
    here = layer(module)
    for target in own_imports(module):
        assert target in FILES, f"{module} imports {target}, which is no file of fimoda"
        if here in APART or layer(target) in APART:
            assert layer(target) == here, f"{module} imports {target}: one of them stands apart"
            continue
        assert ORDER.index(layer(target)) <= ORDER.index(here), f"{module} imports {target}"


def test_no_import_cycles():
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for target in own_imports(module):
                visit(target, (*path, module))
            done.add(module)

    for module in FILES:
        visit(module, ())
    assert done == set(FILES)


@pytest.mark.parametrize(
    "module", [m for m in FILES if layer(m) not in {"adapters", "utils", "cli"}]
)
def test_only_adapters_know_models(module):
    solvers = SOLVERS.get(module, ())
    known = {name for name in imports(module) if starts_with(name, USER_LIBRARIES)}
    assert not [name for name in known if not starts_with(name, solvers)]


@pytest.mark.parametrize(
    "module",
    [m for m in FILES if layer(m) not in SCIKIT_LEARN],
)
def test_only_a_few_files_know_machinery(module):
    assert not [name for name in imports(module) if starts_with(name, MACHINERY)]


@pytest.mark.parametrize("module", FILES)
def test_extras_are_imported_where_they_are_used(module):
    names = imports(module, everywhere=False)
    assert not [name for name in names if starts_with(name, EXTRAS)]


def test_finds_what_it_looks_for():
    """The parser sees relative, absolute, deferred and type-checking imports."""
    known = {"adapters.__init__", "_validation", "measurements", "objective"}
    assert known <= own_imports("preparation")
    assert "model" in own_imports("training.run")
    assert "attributors.further_training_curve" in own_imports("evaluation.agreement")
    assert starts_with("sklearn.base.clone", MACHINERY)
    assert any(starts_with(name, USER_LIBRARIES) for name in imports("adapters.mlp"))
    assert any(starts_with(name, EXTRAS) for name in imports("plotting.results"))
    assert not any(
        starts_with(name, EXTRAS) for name in imports("plotting.results", everywhere=False)
    )


# ---- the developer guide --------------------------------------------------------------------

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "developer_guide.rst").read_text()


def test_the_guide_has_the_floors():
    table = GUIDE.split("The house\n---------")[1].split("=\n")[1:3]
    named = [name for line in table[0].splitlines() for name in re.findall(r"``(\w+)``", line[:22])]
    assert named == [name for name in ORDER if name != "__init__"]


def test_the_guide_names_what_exists():
    paths = set(re.findall(r"``((?:fimoda|tests|docs|benchmarks)/[\w/.]*)``", GUIDE))
    assert len(paths) > 20
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing
    files = [*FILES.values(), *Path(__file__).parent.rglob("*.py")]
    source = "\n".join(path.read_text() for path in files)
    names = set(re.findall(r"``(_?[A-Z]\w*)``", GUIDE))
    assert not [name for name in names if not re.search(rf"\b{name}\b", source)]


def test_tests_mirror_the_package():
    folders = {path.parent.name for path in Path(__file__).parent.glob("*/test_*.py")}
    assert folders <= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
