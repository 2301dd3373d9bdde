"""Record what the cases return, as the numbers that must not change.

Run ``python tests/golden/record.py``; with ``--only NAME ...`` these cases alone, the rest is kept.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from cases import CASES

#: Where the numbers are.
SCORES = Path(__file__).parent / "scores.npz"

Arrays = dict[str, dict[str, np.ndarray]]


def load(path: Path = SCORES) -> Arrays:
    """Return the recorded arrays of each case."""
    found: Arrays = {}
    with np.load(path) as stored:
        names, values = json.loads(str(stored["names"])), stored["values"]
    start = 0
    for case, name, shape in names:
        stop = start + math.prod(shape)
        found.setdefault(case, {})[name] = values[start:stop].reshape(shape)
        start = stop
    return found


def save(arrays: Arrays, path: Path = SCORES) -> None:
    """Write the arrays as one vector: a member of the file for each would be mostly headers."""
    flat = [(case, name, array) for case, part in arrays.items() for name, array in part.items()]
    names = [(case, name, array.shape) for case, name, array in flat]
    values = np.concatenate([array.ravel() for *_, array in flat])
    np.savez_compressed(path, names=json.dumps(names), values=values)


def main() -> None:
    """Run the cases and write their arrays."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=None, metavar="NAME")
    parser.add_argument("--to", type=Path, default=SCORES, help="file to write")
    given = parser.parse_args()
    arrays = load(given.to) if given.only and given.to.exists() else {}
    for name in given.only or CASES:
        arrays[name] = CASES[name].run()
        sys.stdout.write(f"{name}\n")
    arrays = {name: arrays[name] for name in CASES if name in arrays}
    save(arrays, given.to)
    n_arrays, size = sum(map(len, arrays.values())), given.to.stat().st_size / 1e3
    sys.stdout.write(f"{given.to}: {n_arrays} arrays of {len(arrays)} cases, {size:.0f} kB\n")


if __name__ == "__main__":
    main()
