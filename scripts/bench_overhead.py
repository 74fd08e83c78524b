"""What the trainer itself costs: loop, logging, bar and checkpoints, against the steps that they surround.

python scripts/bench_overhead.py [--epochs 40] [--rounds 5] [--json FILE]

A whole training is timed, and inside it every step. The rest is the trainer's own: batches, the check of all numbers and the
metrics after an epoch, progress bar, metrics.jsonl, test error, checkpoints. LeNet-5 trains on synthetic images.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bench_report import parsed, table, write
from benchmarks.nets import STEP_NETS

from bitsback.config import Experiment
from bitsback.config.load import load_config
from bitsback.data import Dataset, Examples
from bitsback.likelihoods import CategoricalLikelihood
from bitsback.model import bayesianize
from bitsback.training import LoggingSettings, TrainingSettings, start
from bitsback.training.dashboards import Subject
from bitsback.training.loop import Fit
from bitsback.training.session import Session

ROOT = Path(__file__).parent.parent
LENET_EXAMPLES = 6400


def digits(epochs: int) -> tuple[Fit, Dataset]:
    """The multilayer perceptron on the digits, as configured."""
    experiment = Experiment.build(load_config(ROOT / "configs" / "digits_mlp.yaml", [f"training.epochs={epochs}"]))
    fit = start(experiment.model, experiment.likelihood, experiment.dataset.train, experiment.config.training)
    return fit, experiment.dataset


def lenet(epochs: int) -> tuple[Fit, Dataset]:
    """LeNet-5-Caffe with weight noise on noise."""
    net = STEP_NETS["lenet"]
    examples = Examples(torch.randn(LENET_EXAMPLES, *net.shape), torch.arange(LENET_EXAMPLES) % 10)
    settings = TrainingSettings(epochs=max(1, epochs // 20), optimizer={"lr": 0.001})
    model = bayesianize(net.make(net.width), estimator="weight")
    return start(model, CategoricalLikelihood(10), examples, settings), Dataset("noise", examples, None, 10)


NETWORKS = {"LeNet-5-Caffe": lenet, "digits MLP": digits}


def overhead(name: str, epochs: int) -> tuple[float, float]:
    """Milliseconds of a step, and of the trainer around it."""
    torch.manual_seed(0)
    fit, dataset = NETWORKS[name](epochs)
    seconds: list[float] = []
    step = fit.step

    def timed(*arguments: Any) -> Any:
        began = time.perf_counter()
        result = step(*arguments)
        seconds.append(time.perf_counter() - began)
        return result

    fit.step = timed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(fit.model)
        session = Session(fit, dataset.test, Path(folder), LoggingSettings(), subject, progress=True, resume=False)
        began = time.perf_counter()
        session.run()
        whole = time.perf_counter() - began
    inside, steps = sum(seconds), len(seconds)
    return 1e3 * inside / steps, 1e3 * (whole - inside) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40, help="of the digits MLP; LeNet takes a twentieth")
    parser.add_argument("--rounds", type=int, default=5)
    options = parsed(parser)
    torch.set_num_threads(1)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in NETWORKS}
    for _ in range(options.rounds):
        for name in NETWORKS:
            found[name].append(overhead(name, options.epochs))
    rows, results = [], {}
    for name, several in found.items():
        step, own = (median(values) for values in zip(*several, strict=True))
        shares = sorted(one / other for other, one in several)
        results[name] = {"step_ms": step, "trainer_ms": own, "share": median(shares), "shares": shares}
        rows.append([name, f"{step:.2f}", f"{own:.3f}", f"{median(shares):.1%}", f"{shares[0]:.1%} to {shares[-1]:.1%}"])
    print(table(["network", "step, ms", "trainer, ms", "share", "spread"], rows))
    write(options.json, {"rows": results})


if __name__ == "__main__":
    main()
