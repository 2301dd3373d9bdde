"""Every attributor on every kind of network: seconds, refusals, warnings and errors.

    python benchmarks/networks.py [--docs docs/networks_table.inc] [--networks "bert;gpt2"]

The networks are those of tests/networks.py (16 rows to train on, 3 to look at, skorch with SGD and a recorded
run), the attributors all of the package, with small settings. A cell has the CPU seconds of `fit` and
`transform` on one thread; an asterisk says that there was a warning, a letter in brackets that the attributor
refuses, a bold one that something breaks. The exit status is 1 if anything breaks.
"""

from __future__ import annotations

import argparse
import string
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import networks
from cells import ATTRIBUTORS, Cell, run_cell


def first_sentence(message: str) -> str:
    """Return the first sentence of an error, without the class of the error."""
    return message.split(": ", 1)[-1].split(". ")[0].rstrip(".") + "."


def marks_of(cells: list[Cell]) -> dict[str, str]:
    """Return a letter for each message of the cells that do not work."""
    messages = dict.fromkeys(first_sentence(c.message) for c in cells if c.outcome != "works")
    return dict(zip(messages, string.ascii_letters, strict=False))


def text_of(cell: Cell, marks: dict[str, str]) -> str:
    """Return what stands in a cell of the table."""
    if cell.outcome == "works":
        return f"{cell.seconds:.2f}" + ("*" if cell.warnings else "")
    mark = marks.get(first_sentence(cell.message), "?")
    return f"({mark})" if cell.outcome == "refused" else f"**{mark}**"


def grid(cells: list[Cell]) -> list[list[str]]:
    """Return the table: a row for each attributor, a column for each network."""
    marks, by = marks_of(cells), {(c.attributor, c.network): c for c in cells}
    columns = list(dict.fromkeys(c.network for c in cells))
    rows = list(dict.fromkeys(c.attributor for c in cells))
    body = [[row, *(text_of(by[row, column], marks) for column in columns)] for row in rows]
    return [["", *columns], *body]


def summary(cells: list[Cell]) -> str:
    """Return the numbers of cells by what came of them."""
    works, refused, raw = (
        [c for c in cells if c.outcome == o] for o in ("works", "refused", "raw")
    )
    warned = sum(bool(c.warnings) for c in works)
    return (
        f"{len(cells)} cells: {len(works)} work ({warned} of them with a warning), {len(refused)} refuse "
        f"({len(refused) / len(cells):.1%}), {len(raw)} fail; {sum(c.seconds for c in cells):.0f} s."
    )


def reasons(cells: list[Cell]) -> list[str]:
    """Return a line for each message of the cells that do not work, with its mark."""
    return [f"({mark}) {message}" for message, mark in marks_of(cells).items()]


def told(cells: list[Cell]) -> list[str]:
    """Return a line for each warning, with the number of cells that give it."""
    counts: dict[str, int] = {}
    for warning in (w for c in cells for w in c.warnings):
        counts[warning] = counts.get(warning, 0) + 1
    return [f"{n} cells: {w}" for w, n in sorted(counts.items(), key=lambda item: -item[1])]


def markdown(cells: list[Cell]) -> str:
    """Return the table in Markdown."""
    head, *body = ["| " + " | ".join(row) + " |" for row in grid(cells)]
    rule = "|" + " --- |" * len(grid(cells)[0])
    return "\n".join([head, rule, *body, "", summary(cells), "", *reasons(cells)])


#: Columns of one table in the documentation.
COLUMNS = 9


def restructured(cells: list[Cell]) -> str:
    """Return the table for the documentation, in parts that fit a page."""
    lines, whole = [".. Made by benchmarks/networks.py --docs.", ""], grid(cells)
    for start in range(1, len(whole[0]), COLUMNS):
        lines += [".. list-table::", "   :header-rows: 1", "   :stub-columns: 1", ""]
        for head, *row in whole:
            lines.append(f"   * - {head}".rstrip())
            lines += [f"     - {text}" for text in row[start - 1 : start - 1 + COLUMNS]]
        lines.append("")
    return "\n".join([*lines, summary(cells), "", *(f"* {r}" for r in reasons(cells)), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", help="names, by semicolons; all by default")
    parser.add_argument("--attributors", help="names, by semicolons; all by default")
    parser.add_argument("--docs", type=Path, help="file for the table of the documentation")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [
        given.split(";") if given else list(all_of_them)
        for given, all_of_them in (
            (arguments.networks, networks.NETWORKS),
            (arguments.attributors, ATTRIBUTORS),
        )
    ]
    cells = [run_cell(network, attributor) for network in chosen[0] for attributor in chosen[1]]
    print(markdown(cells), *told(cells), sep="\n")
    if arguments.docs:
        arguments.docs.write_text(restructured(cells))
    raise SystemExit(any(cell.outcome == "raw" for cell in cells))


if __name__ == "__main__":
    main()
