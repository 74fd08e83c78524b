"""Train tables that nobody tuned, with the defaults, and compare with what a code without inputs would cost.

python scripts/bench_tables.py [NAME ...] [--uci DIR] [--splits N] [--set key=value ...]

scikit-learn's tables with the data section alone (and `likelihood: {kind: gaussian}` for real targets), 80 % in training, seeds
0 to 2: net bits beside the uniform and the marginal code. With --uci, a directory with NAME.csv and NAME_test_rows.json, tables
of Hernandez-Lobato & Adams 2015 with configs/tables.yaml on raw targets: rmse and log-likelihood of the targets in nats, over
their standard splits, beside those reported for MC dropout on the same. A JSON line for each.

Which tables the defaults were tuned on, and which were left untouched until the defaults stood, was written down here first.
"""

import argparse
import json
import math
import statistics
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

from bitsback.config import Experiment, load_config
from bitsback.config.schema import Config

TUNED = ("energy", "diabetes", "iris", "wine")
"""Looked at while choosing scalings, steps, learning rates and the start of the noise (energy: its first five splits)."""

UNTOUCHED = ("concrete", "yacht", "kin8nm", "breast_cancer", "linnerud")
"""Run once the defaults stood; nothing was changed for them."""

SKLEARN = ("iris", "wine", "breast_cancer", "diabetes", "linnerud")
DROPOUT = {"energy": (0.54, -1.21), "concrete": (4.82, -2.93), "yacht": (0.67, -1.25), "kin8nm": (0.08, 1.14)}
REGRESSIONS = ("diabetes", "linnerud")
DRAWS = 100
TABLES = Path(__file__).parent.parent / "configs" / "tables.yaml"


def sklearn_table(name, overrides, place):
    """Net bits of the defaults, mean over seeds of split, initial weights and batches."""
    from sklearn import datasets

    found = getattr(datasets, f"load_{name}")()
    np.savez(place / f"{name}.npz", inputs=found.data, targets=found.target)
    rows = []
    for seed in range(3):
        sections = {"data": {"kind": "npz", "path": str(place / f"{name}.npz"), "split_seed": seed}, "seed": seed}
        if name in REGRESSIONS:
            sections["likelihood"] = {"kind": "gaussian"}
        for key, value in overrides:
            section, _, field = key.partition(".")
            sections.setdefault(section, {})[field] = value
        outcome = Experiment.build(Config.model_validate(sections)).train(None, progress=False)
        ledger = outcome.ledger
        rows.append([ledger.net_bits, ledger.uniform_bits, ledger.marginal_bits, outcome.test_error, outcome.training_seconds])
    names = ("net_bits", "uniform_bits", "marginal_bits", "test_error", "seconds")
    return {key: round(statistics.fmean(column), 3) for key, column in zip(names, zip(*rows, strict=True), strict=True)}


@torch.no_grad()
def scores(experiment):
    """Rmse and mean log-likelihood (nats) of the test targets under the average of weight draws, in the targets' units."""
    model, likelihood, test = experiment.model.eval(), experiment.likelihood, experiment.dataset.test
    torch.manual_seed(0)
    means, logs = [], []
    for _ in range(DRAWS):
        with model.sample():
            outputs = model(test.inputs)
        means.append(likelihood.predict(outputs)[:, 0])
        std = likelihood.variance(outputs)[:, 0].sqrt()
        logs.append(torch.distributions.Normal(means[-1], std).log_prob(test.targets))
    rmse = (torch.stack(means).mean(0) - test.targets).square().mean().sqrt()
    log_likelihood = (torch.logsumexp(torch.stack(logs), 0) - math.log(DRAWS)).mean()
    return float(rmse), float(log_likelihood)


def uci_table(name, root, splits, overrides, place):
    """Rmse and log-likelihood over the standard splits, with their standard errors."""
    table = np.loadtxt(root / f"{name}.csv", delimiter=",", skiprows=1)
    held_out = json.loads((root / f"{name}_test_rows.json").read_text())[:splits]
    rows = []
    for number, test in enumerate(held_out):
        train = np.setdiff1d(np.arange(len(table)), test)
        path = place / f"{name}.npz"
        arrays = {"inputs": table[train, :-1], "targets": table[train, -1]}
        np.savez(path, **arrays, test_inputs=table[test, :-1], test_targets=table[test, -1])
        config = load_config(TABLES, [f"data.path={path}", f"seed={number}", *overrides])
        experiment = Experiment.build(config)
        outcome = experiment.train(None, progress=False)
        rows.append((*scores(experiment), outcome.ledger.net_bits, outcome.ledger.no_model_bits, outcome.training_seconds))
    rmse, log_likelihood, net, no_model, seconds = zip(*rows, strict=True)
    spread = [
        statistics.stdev(column) / math.sqrt(len(column)) if len(column) > 1 else 0.0 for column in (rmse, log_likelihood)
    ]
    return {
        "splits": len(rows),
        "rmse": round(statistics.fmean(rmse), 4),
        "rmse_stderr": round(spread[0], 4),
        "log_likelihood": round(statistics.fmean(log_likelihood), 4),
        "log_likelihood_stderr": round(spread[1], 4),
        "mc_dropout": DROPOUT[name],
        "net_bits": round(statistics.fmean(net), 1),
        "no_model_bits": round(statistics.fmean(no_model), 1),
        "seconds": round(statistics.fmean(seconds), 1),
    }


def main():
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join((*SKLEARN, *DROPOUT))}; default: all that are there")
    parser.add_argument("--uci", type=Path, help="directory of the UCI tables")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--set", nargs="*", default=[], help="overrides, to try something else")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    torch.set_num_threads(1)
    known = (*SKLEARN, *(DROPOUT if options.uci else ()))
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"no table {unknown[0]} here; there are {', '.join(known)}")
    with tempfile.TemporaryDirectory() as place:
        for name in options.names or known:
            if name in SKLEARN:
                overrides = [(key, json.loads(value)) for key, _, value in (item.partition("=") for item in options.set)]
                found = sklearn_table(name, overrides, Path(place))
            else:
                found = uci_table(name, options.uci, options.splits, options.set, Path(place))
            print(json.dumps({"table": name, "tuned": name in TUNED, **found}), flush=True)


if __name__ == "__main__":
    main()
