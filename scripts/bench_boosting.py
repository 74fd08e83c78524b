"""Compare what one command makes of a table, untuned, with gradient-boosted trees that are tuned on it.

python scripts/bench_boosting.py [NAME ...] [--uci DIR] [--splits N] [--trees FILE] [--permuted] [--json FILE] [--smoke]

Tables: scikit-learn's own, with every fifth row at random held out, and with --uci, a directory with NAME.csv and
NAME_test_rows.json, tables of Hernandez-Lobato & Adams 2015 on the first of their standard splits. The trees are scikit-learn's
HistGradientBoosting, learning rate and leaves chosen on a 3 x 3 grid by 5-fold cross-validation on the training rows, then
fitted to all of them. Ours is `bitsback train TABLE.csv target=target`; its predictions are averaged over 20 draws. Errors on
the rows held out: rmse in the targets' units, log-loss in nats a label. Seconds are the processor's, of our training. --trees
keeps the trees' errors in a file, and takes them from it where they are there. With --permuted, the training targets are
shuffled, no trees are grown, and the ledger's warning is shown.
"""

import argparse
import csv
import json
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from bench_report import parsed, table, write

from bitsback.config import Experiment
from bitsback.config.from_data import config_of_data
from bitsback.units import bits_to_nats

LABELS = ("iris", "wine", "breast_cancer", "digits")
SKLEARN = (*LABELS, "diabetes")
UCI = ("concrete", "energy", "kin8nm", "yacht")
GRID = {"learning_rate": [0.03, 0.1, 0.3], "max_leaf_nodes": [7, 15, 31]}
FOLDS, HELD_OUT, DRAWS = 5, 0.2, 20
SMALL = ("training.epochs=2", "ledger.samples=2")
"""What --smoke trains with."""


def sklearn_table(name):
    """Inputs (n, k), and targets (n,): texts or whole numbers."""
    from sklearn import datasets

    found = getattr(datasets, f"load_{name}")()
    named = name in LABELS and name != "digits"
    targets = found.target_names[found.target] if named else found.target.astype(int)  # diabetes: whole numbers
    return found.data, targets


def splits_of(name, root, count):
    """Yield inputs, targets and the rows held out, for each split."""
    if name in SKLEARN:
        inputs, targets = sklearn_table(name)
        for seed in range(count):
            rows = np.random.default_rng(seed).permutation(len(inputs))
            yield inputs, targets, np.sort(rows[: round(HELD_OUT * len(inputs))])
    else:
        values = np.loadtxt(root / f"{name}.csv", delimiter=",", skiprows=1)
        for rows in json.loads((root / f"{name}_test_rows.json").read_text())[:count]:
            yield values[:, :-1], values[:, -1], np.array(rows)


def trees_error(name, inputs, targets, held_out, grid):
    """Error of the trees on the rows held out: log-loss of labels, rmse of numbers."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.metrics import log_loss
    from sklearn.model_selection import GridSearchCV

    train = np.setdiff1d(np.arange(len(inputs)), held_out)
    kind = HistGradientBoostingClassifier if name in LABELS else HistGradientBoostingRegressor
    scoring = "neg_log_loss" if name in LABELS else "neg_root_mean_squared_error"
    found = GridSearchCV(kind(random_state=0), grid, cv=FOLDS, scoring=scoring).fit(inputs[train], targets[train])
    if name in LABELS:
        return float(log_loss(targets[held_out], found.predict_proba(inputs[held_out]), labels=found.classes_))
    return float(np.sqrt(np.mean((found.predict(inputs[held_out]) - targets[held_out]) ** 2)))


def written(path, inputs, targets, held_out):
    """Write a table with a column that says which rows are held out."""
    parts = np.full(len(inputs), "train", dtype=object)
    parts[held_out] = "test"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([*(f"x{column}" for column in range(inputs.shape[1])), "target", "part"])
        rows.writerows(zip(*inputs.T.tolist(), targets.tolist(), parts, strict=True))
    return path


def ours(name, path, overrides):
    """Ledger and error of `bitsback train TABLE.csv target=target`."""
    experiment = Experiment.build(config_of_data(path, ["target=target", "split={column: part}", *overrides]))
    began = time.process_time()
    ledger = experiment.train(None, progress=False).ledger
    seconds = time.process_time() - began
    test = experiment.dataset.test
    predicted = experiment.model.predict(test.inputs, DRAWS, targets=test.targets)
    if name in LABELS:
        error = bits_to_nats(predicted.bits).mean()
    else:
        error = (predicted.mean.flatten() - test.targets.double()).square().mean().sqrt()
    return {
        "net_bits": ledger.net_bits,
        "marginal_bits": ledger.marginal_bits,
        "weights": ledger.weights,
        "error": float(error),
        "seconds": seconds,
        "is_worth_it": ledger.is_worth_it,
        "warnings": list(ledger.warnings),
    }


def kept(path, name, number):
    """The trees' error from the file, or None."""
    known = json.loads(path.read_text()) if path is not None and path.is_file() else {}
    return known.get(name, {}).get(str(number))


def keep(path, name, number, error):
    """Write the trees' error to the file."""
    if path is not None:
        known = json.loads(path.read_text()) if path.is_file() else {}
        known.setdefault(name, {})[str(number)] = error
        path.write_text(json.dumps(known, indent=1) + "\n")


def measured(name, options, place, overrides, grid):
    """Means over the splits of one table."""
    rows, trees = [], []
    for number, (inputs, targets, held_out) in enumerate(splits_of(name, options.uci, options.splits)):
        if options.permuted:
            train = np.setdiff1d(np.arange(len(inputs)), held_out)
            targets = targets.copy()
            targets[train] = np.random.default_rng(number).permutation(targets[train])
        else:
            error = kept(options.trees, name, number)
            if error is None:
                error = trees_error(name, inputs, targets, held_out, grid)
                keep(options.trees, name, number, error)
            trees.append(error)
        path = written(place / f"{name}.csv", inputs, targets, held_out)
        rows.append(ours(name, path, [f"seed={number}", *overrides]))
    means = ("net_bits", "marginal_bits", "weights", "error", "seconds")
    found = {"table": name, **{key: statistics.fmean(row[key] for row in rows) for key in means}, "rows": rows, "trees": trees}
    found["bits_ratio"] = found["net_bits"] / found["marginal_bits"]
    if trees:
        found["trees_error"] = statistics.fmean(trees)
        found["error_ratio"] = found["error"] / found["trees_error"]
    return found


def shown(found):
    """One row of the printed table."""
    bits = [f"{found['net_bits']:,.0f}", f"{found['marginal_bits']:,.0f}", f"{found['bits_ratio']:.3f}"]
    error = [f"{found['error']:.4g}"]
    error += [f"{found['trees_error']:.4g}", f"{found['error_ratio']:.2f}"] if found["trees"] else ["", ""]
    return [found["table"], f"{found['weights']:,.0f}", *bits, *error, f"{found['seconds']:.1f}"]


def main():
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join((*SKLEARN, *UCI))}; default: all that are there")
    parser.add_argument("--uci", type=Path, help="directory of the UCI tables")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--trees", type=Path, metavar="FILE", help="keep the trees' errors there")
    parser.add_argument("--permuted", action="store_true", help="shuffle the training targets")
    parser.add_argument("--smoke", action="store_true", help="two epochs, one tree")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides, to try something else")
    options = parsed(parser)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    torch.set_num_threads(1)
    known = (*SKLEARN, *(UCI if options.uci else ()))
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"no table {unknown[0]} here; there are {', '.join(known)}")
    overrides = [*options.set, *(SMALL if options.smoke else ())]
    grid = {"max_iter": [1]} if options.smoke else GRID
    found = []
    with tempfile.TemporaryDirectory() as place:
        for name in options.names or known:
            found.append(measured(name, options, Path(place), overrides, grid))
            if options.permuted:
                said = next((row["warnings"] for row in found[-1]["rows"] if row["warnings"]), ["no warning"])
                print(f"{name}: {said[0]}", flush=True)
    head = ["table", "weights", "net bits", "marginal bits", "ratio", "our error", "trees' error", "ratio", "seconds"]
    print(table(head, [shown(row) for row in found]))
    write(options.json, {"tables": found, "grid": GRID, "splits": options.splits, "permuted": options.permuted})


if __name__ == "__main__":
    main()
