"""The figure of the README, from the table of Concrete that horizons.py printed.

python benchmarks/agreement_figure.py docs/images/agreement.png
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import matplotlib.pyplot as plt

TABLE = "### Concrete, ReLU"
#: Row of the table, what it is called in the figure, and how it is drawn.
SHOWN = {
    "unrolled, 3 seeds": ("unrolled differentiation, 3 seeds", "C3", "-"),
    "unrolled": ("unrolled differentiation, 1 seed", "C3", "--"),
    "linearised": ("linearised further training, segments", "C0", "-"),
    "linearised once, exact removal": ("linearised further training, once", "C0", "--"),
    "influence, 1000": ("exact influence, best single damping", "C2", "-"),
    "EK-FAC, 100": ("EK-FAC influence", "C4", "-"),
    "TRAK, 512": ("TRAK", "C5", "-"),
    "Grad-Dot": ("Grad-Dot", "C7", "-"),
    "one seed of further training against the others": (
        "further training, 1 seed against 4 others", "black", ":",
    ),
}  # fmt: skip


def rows(text: str) -> tuple[list[int], dict[str, list[float]]]:
    """Horizons, and agreement of each method, of the first table after the heading."""
    lines = text.split(TABLE, 1)[1].split("\n\n")[1].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    epochs = [int(cell) for cell in cells[0] if cell.isdigit()]
    found = {
        row[0]: [float(cell) for cell in row[1 : len(epochs) + 1]]
        for row in cells[2:]
        if re.match(r"-?\d?\.\d", row[1])
    }
    return epochs, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    epochs, found = rows((Path(__file__).parent / "README.md").read_text())
    figure, ax = plt.subplots(figsize=(9, 4.2), layout="constrained")
    for name, (label, colour, style) in SHOWN.items():
        if name in found:
            ax.plot(epochs, found[name], color=colour, ls=style, marker=".", label=label)
    ax.set_xscale("log")
    ax.set_xticks(epochs, labels=[str(epoch) for epoch in epochs])
    ax.minorticks_off()
    ax.set(
        xlabel="epochs of further training", ylabel="cosine with further training", ylim=(0, 1),
        title="Concrete, 8-128-128-1, SGD: agreement with five seeds of further training",
    )  # fmt: skip
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(arguments.output, dpi=110)


if __name__ == "__main__":
    main()
