"""The peer's side of `tree_peers.py`, run by the Python of its own environment.

    path/to/venv/bin/python benchmarks/tree_peers_run.py DATA.npz OUT.npz --task binary [--rows 15]

Trains a LightGBM model on the rows of DATA.npz, and writes its text, and the scores (n_train, n_test) of each
explainer with its seconds. With `--rows`, explainers that go through the rows one by one are stopped after
so many of them, and the seconds of one row are written.
"""

from __future__ import annotations

import argparse
import time

import lightgbm
import numpy as np
import torch
import tree_influence.explainers as peers
import tree_influence.explainers.leaf_inf as leaf_influence
import tree_influence.explainers.leaf_refit as leaf_refit

#: The peer's tolerance on leaf values that it computes anew; its own is smaller than float32 allows.
TOLERANCE = 1e-3


class Enough(Exception):
    """So many rows have been timed."""


class LeafRefitBefore(peers.LeafRefit):
    """The peer's LeafRefit with changed and unchanged derivatives both at the scores before a round.

    As it is, changed ones are at the scores behind the round and unchanged ones at those before.
    """

    start = None

    def fit(self, model, X, y):
        inner, before = leaf_refit._compute_new_leaf_values, []

        def shifted(*args):
            after = args[8]  # scores (n, n_rounds, n_outputs)
            if not before:
                start = np.broadcast_to(self.start, (len(after), 1, after.shape[2]))
                before.append(np.concatenate([start, after[:, :-1]], 1).astype(after.dtype))
            return inner(*args[:8], before[0], *args[9:])

        self.start = np.atleast_1d(peers.parsers.parse_model(model, X.copy(), y.copy()).bias)
        leaf_refit._compute_new_leaf_values = shifted
        try:
            return super().fit(model, X, y)
        finally:
            leaf_refit._compute_new_leaf_values = inner


def seconds_of_a_row(module, name, explainer, data, rows):
    """Return the seconds before the first row, and those of each of the first rows."""
    inner, spent = getattr(module, name), []

    def timed(*args):
        start = time.process_time()
        found = inner(*args)
        spent.append(time.process_time() - start)
        if len(spent) == rows:
            raise Enough
        return found

    setattr(module, name, timed)
    start = time.process_time()
    try:
        explainer.fit(*data)
    except Enough:
        pass
    finally:
        setattr(module, name, inner)
    return time.process_time() - start - sum(spent), float(np.mean(spent))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("out")
    parser.add_argument("--task", choices=["binary", "multiclass", "regression"])
    parser.add_argument("--trees", type=int, default=30)
    parser.add_argument("--leaves", type=int, default=15)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--only", choices=["BoostIn"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    with np.load(args.data) as file:
        X, y, X_test, y_test = (file[k].astype(float) for k in ("X", "y", "X_test", "y_test"))
    if args.task != "regression":
        y, y_test = y.astype(np.int64), y_test.astype(np.int64)
    kind = lightgbm.LGBMRegressor if args.task == "regression" else lightgbm.LGBMClassifier
    model = kind(
        n_estimators=args.trees, num_leaves=args.leaves, n_jobs=1, verbosity=-1, random_state=0
    )
    model.fit(X, y)
    found = {"text": np.array(model.booster_.model_to_string())}
    explainers = {"BoostIn": peers.BoostIn()}
    if not (args.rows or args.only):
        explainers["LeafInfluence"] = peers.LeafInfluence(atol=TOLERANCE)
        explainers["LeafRefit"] = peers.LeafRefit(atol=TOLERANCE)
        explainers["LeafRefit, corrected"] = LeafRefitBefore(atol=TOLERANCE)
        explainers["TREX"] = peers.Trex()
    for name, explainer in explainers.items():
        start = time.process_time()
        explainer.fit(model, X.copy(), y.copy())
        scores = explainer.get_local_influence(X_test.copy(), y_test.copy())
        found[f"seconds/{name}"] = np.array(time.process_time() - start)
        found[f"scores/{name}"] = np.asarray(scores, dtype=np.float64)
    if args.rows:
        for name, module, inner, explainer in (
            ("LeafRefit", leaf_refit, "_compute_new_leaf_values", peers.LeafRefit(atol=TOLERANCE)),
            (
                "LeafInfluence",
                leaf_influence,
                "_compute_leaf_derivatives",
                peers.LeafInfluence(atol=TOLERANCE),
            ),
        ):
            data = model, X.copy(), y.copy()
            found[f"row/{name}"] = np.array(
                seconds_of_a_row(module, inner, explainer, data, args.rows)
            )
    np.savez_compressed(args.out, **found)


if __name__ == "__main__":
    main()
