"""Steps, ledgers and a training on one GPU, against the same networks without posteriors.

python scripts/bench_gpu.py [--only steps large priors kernel ledger train] [--data DIR] [--budget SECONDS] [--json FILE]

Every step is the trainer's (forward, bits, backward, KL, update, next draw), once captured as a CUDA graph and once not.
"Plain" is the same network without posterior, with torch's fused Adam (capturable in the graph) and the same precision. Times
are wall times of steps, medians, with the device synchronised before and after each group of steps.

steps: MLP and LeNet-5 (batch 128, float32); ResNet-18 (256 images of 32 x 32), ViT-B/16 (64 of 224 x 224), GPT-2 of 124 million
weights (8 x 512 tokens) in bfloat16; the last three need timm and transformers, which are not downloaded from.
large: a dense network of 1.07 10^9 weights, a step and a ledger of two draws. kernel: the pass over the weights alone, against
60 bytes a weight at the bandwidth that a copy reaches. priors: that pass under every prior, 1.07 10^8 weights, against the
Gaussian; waiting for the device in it is an error. ledger: weight bits on CPU and GPU under every prior. train: 60 epochs of
configs/mnist_conv.yaml, in a process of its own; --data: the folder of MNIST's files.

``--tiny`` runs all of it on small sizes on the CPU (in Triton's interpreter, with TRITON_INTERPRET=1), to try the script.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
from bench_report import parsed, table, write
from benchmarks.nets import lenet, mlp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bitsback.data import Examples
from bitsback.kernels import captures_on
from bitsback.likelihoods import CategoricalLikelihood
from bitsback.model import BayesianModel, bayesianize, take_ledger
from bitsback.model.noise import CounterNoise
from bitsback.optim import Adam
from bitsback.training import TrainingSettings, start

ROOT = Path(__file__).parent.parent
PARTS = ("steps", "large", "kernel", "priors", "ledger", "train")
BYTES_A_WEIGHT = 60
"""Read: draw, gradient, mean, log std, four averages; written: all but the gradient."""

PRIORS: list[dict[str, Any]] = [
    {"kind": "gaussian", "learn": "closed_form"},
    {"kind": "gaussian", "learn": "gradient"},
    {"kind": "group_gaussian", "group": "output"},
    {"kind": "laplace"},
    {"kind": "student_t"},
    {"kind": "cauchy"},
    {"kind": "logistic"},
    {"kind": "horseshoe"},
    {"kind": "scale_mixture"},
    {"kind": "adaptive_mixture"},
    {"kind": "spike_and_slab"},
    {"kind": "pyro", "distribution": "Laplace", "arguments": {"loc": 0.0, "scale": 0.3}},
]


class Bench:
    """Device, sizes and what was measured.

    Args:
        tiny: small sizes on the CPU.
        budget: seconds after which no further part begins.
    """

    def __init__(self, tiny: bool, budget: float) -> None:
        self.tiny, self.budget, self.began = tiny, budget, time.perf_counter()
        self.device = torch.device("cpu" if tiny else "cuda")
        self.rows: list[dict[str, Any]] = []

    def add(self, what: str, **numbers: Any) -> None:
        """Keep a row and print it at once: a machine may be taken away before the end."""
        self.rows.append({"what": what, **numbers})
        said = "  ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in numbers.items()
        )
        print(f"[{time.perf_counter() - self.began:5.0f} s] {what}: {said}", flush=True)

    def wait(self) -> None:
        """Wait for the device."""
        if not self.tiny:
            torch.cuda.synchronize()

    def milliseconds(self, call: Callable[[], Any], groups: int = 7, each: int = 5, warm: int = 8) -> float:
        """Median time of a call."""
        groups, each, warm = (2, 1, 1) if self.tiny else (groups, each, warm)
        for _ in range(warm):
            call()
        found = []
        for _ in range(groups):
            self.wait()
            before = time.perf_counter()
            for _ in range(each):
                call()
            self.wait()
            found.append((time.perf_counter() - before) / each)
        return 1e3 * statistics.median(found)

    def peak_bytes(self, call: Callable[[], Any]) -> int:
        """Most memory of the device during a call."""
        if self.tiny:
            call()
            return 0
        torch.cuda.reset_peak_memory_stats()
        call()
        self.wait()
        return torch.cuda.max_memory_allocated()

    def empty(self) -> None:
        """Give back what earlier parts left."""
        if not self.tiny:
            torch.cuda.empty_cache()


# steps of networks


def of_timm(name: str) -> nn.Module:
    """A network of timm with random weights."""
    import timm

    return timm.create_model(name, num_classes=10)


class Logits(nn.Module):
    """GPT-2 with random weights; its logits alone."""

    def __init__(self, **sizes: int) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        self.inner = GPT2LMHeadModel(GPT2Config(attn_implementation="sdpa", **sizes))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (n, length, vocabulary)."""
        return self.inner(tokens, use_cache=False).logits


Contestant = tuple[Callable[[], nn.Module], Tensor, Tensor, int, bool]
"""Network, inputs, targets, classes, and whether it runs in bfloat16."""


def networks(bench: Bench) -> dict[str, Contestant]:
    """What takes part."""
    size, device = (4 if bench.tiny else 128), bench.device
    images, labels = torch.randn(size, 1, 28, 28, device=device), torch.randint(10, (size,), device=device)
    found: dict[str, Contestant] = {
        "MLP 784-400-400-10, batch 128": (lambda: mlp(2 if bench.tiny else 400), images, labels, 10, False),
        "LeNet-5, batch 128": (lambda: lenet(1 if bench.tiny else 10), images, labels, 10, False),
    }
    if bench.tiny:
        return found
    labels = torch.randint(10, (256,), device=device)
    words = torch.randint(50257, (8, 512), device=device)
    found["ResNet-18, 256 x 32 x 32"] = (
        lambda: of_timm("resnet18"),
        torch.randn(256, 3, 32, 32, device=device),
        labels,
        10,
        True,
    )
    large = torch.randn(64, 3, 224, 224, device=device)
    found["ViT-B/16, 64 x 224 x 224"] = lambda: of_timm("vit_base_patch16_224"), large, labels[:64], 10, True
    found["GPT-2 124 M, 8 x 512"] = Logits, words, words, 50257, True
    return found


def fit_of(bench: Bench, network: nn.Module, x: Tensor, y: Tensor, classes: int, half: bool, graph: str, **prior: Any) -> Any:
    """A training of ours whose every step is on the same batch."""
    model = bayesianize(
        network.to(bench.device), prior or {"kind": "gaussian"}, posterior={"std": 0.02}, estimator="weight", seed=0
    )
    if bench.tiny:
        model.set_noise(CounterNoise())
    settings = TrainingSettings(
        epochs=1000, batch_size=len(x), precision="bfloat16" if half else "float32", graph=graph, noise_reuse=1,
        optimizer={"lr": 1e-4, "log_std_lr": 1e-3},
    )  # fmt: skip
    fit = start(model, CategoricalLikelihood(classes), Examples(x, y), settings)
    if bench.tiny:
        model.set_noise(CounterNoise())
    return fit


def plain_step(bench: Bench, network: nn.Module, x: Tensor, y: Tensor, half: bool, capturable: bool) -> Callable[[], Any]:
    """Steps of the network without posterior."""
    network.to(bench.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True, capturable=capturable)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            outputs = network(x)
        loss = cross_entropy(outputs.float().flatten(0, -2), y.flatten())
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def captured(bench: Bench, step: Callable[[], Tensor]) -> Callable[[], Any]:
    """The step as a CUDA graph; as it is on a CPU."""
    if bench.tiny:
        return step
    captures = captures_on(bench.device)
    with captures.trial():
        for _ in range(3):
            step()
    return captures.capture(step).replay


def own_steps(
    bench: Bench, network: nn.Module, x: Tensor, y: Tensor, classes: int, half: bool, graph: str
) -> Callable[[], Any]:
    """Steps of ours on one batch, past those that come before a capture."""
    fit, number = fit_of(bench, network, x, y, classes, half, graph), count()

    def step() -> Any:
        return fit.step(next(number), x, y)

    if graph == "auto" and not bench.tiny:
        for _ in range(8):
            step()
        if not fit.graphs.captured:
            raise RuntimeError("no step was captured")
    return step


def steps(bench: Bench) -> None:
    """Milliseconds a step, and memory, with and without posterior."""
    for name, (make, x, y, classes, half) in networks(bench).items():
        try:
            torch.manual_seed(0)
            usual = plain_step(bench, make(), x, y, half, capturable=False)
        except ImportError as error:
            print(f"left out: {name}: {error}", file=sys.stderr)
            continue
        plain, plain_bytes = bench.milliseconds(usual), bench.peak_bytes(usual)
        del usual
        bench.empty()
        graphed = captured(bench, plain_step(bench, make(), x, y, half, capturable=not bench.tiny))
        plain_graphed = bench.milliseconds(graphed)
        del graphed
        bench.empty()
        found, own_bytes = {}, 0
        for graph in ("never", "auto"):
            torch.manual_seed(0)
            step = own_steps(bench, make(), x, y, classes, half, graph)
            found[graph] = bench.milliseconds(step)
            own_bytes = own_bytes or bench.peak_bytes(step)
            del step
            bench.empty()
        bench.add(
            name, plain_ms=plain, plain_graphed_ms=plain_graphed, ours_ms=found["never"], ours_graphed_ms=found["auto"],
            ratio=found["never"] / plain, ratio_graphed=found["auto"] / plain_graphed,
            memory_ratio=own_bytes / plain_bytes if plain_bytes else 0.0,
        )  # fmt: skip


# the pass over the weights


def wide_mlp(width: int) -> nn.Module:
    """Four square matrices: 1.07 10^9 weights at 16,384, 1.07 10^8 at 5,181."""
    return nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(width, width), nn.ReLU())), nn.Linear(width, 10))


def large(bench: Bench) -> None:
    """A step and a ledger of a network of 10^9 weights."""
    width = 64 if bench.tiny else 16384
    x, y = torch.randn(256, width, device=bench.device), torch.randint(10, (256,), device=bench.device)
    torch.manual_seed(0)
    with torch.device(bench.device):
        network = wide_mlp(width)
    usual = plain_step(bench, network, x, y, True, capturable=False)
    plain = bench.milliseconds(usual, groups=5, each=3, warm=3)
    del usual, network
    bench.empty()
    with torch.device(bench.device):
        network = wide_mlp(width)
    fit = fit_of(bench, network, x, y, 10, True, "auto")
    number = count()
    own = bench.milliseconds(lambda: fit.step(next(number), x, y), groups=5, each=3, warm=6)
    model = fit.model
    fit.end()
    weights = sum(weight.posterior.numel for weight in model.weights)
    bench.empty()
    bench.wait()
    before = time.perf_counter()
    take_ledger(model, CategoricalLikelihood(10), Examples(x, y), samples=2)
    bench.wait()
    bench.add(
        f"dense network of {weights:,} weights, batch 256",
        plain_ms=plain,
        ours_ms=own,
        ledger_seconds=time.perf_counter() - before,
    )


def optimizer_of(bench: Bench, width: int, prior: dict[str, Any]) -> tuple[BayesianModel, Adam]:
    """A model with its optimiser and gradients, so that the pass can be run alone."""
    torch.manual_seed(0)
    with torch.device(bench.device):
        network = wide_mlp(width)
    model = bayesianize(network, prior, posterior={"std": 0.02}, seed=0)
    if bench.tiny:
        model.set_noise(CounterNoise())
    optimizer = Adam(model, lr=1e-4, log_std_lr=1e-3, examples=10**6)
    optimizer.nats_per_unit = 0.7  # no look for clipping outside, which waits for the device
    for p in network.parameters():
        p.grad = torch.randn_like(p) * 1e-3
    return model, optimizer


def passes(optimizer: Adam, model: BayesianModel) -> Callable[[], None]:
    """One pass: gradients, update, draw. A step refuses gradients that were used, so each call wraps them anew."""

    def call() -> None:
        for weight in model.weights:
            weight.parameter.grad = weight.parameter.grad.detach()
        optimizer.step()

    return call


def bandwidth(bench: Bench) -> float:
    """Bytes a second that a copy of 4 GB reads and writes."""
    one = torch.empty(1 << (16 if bench.tiny else 30), device=bench.device)
    other = torch.empty_like(one)
    return 2 * one.numel() * one.element_size() / (1e-3 * bench.milliseconds(lambda: other.copy_(one)))


def kernel(bench: Bench) -> None:
    """The pass over 10^9 weights against the bytes that it moves."""
    rate = bandwidth(bench)
    model, optimizer = optimizer_of(bench, 64 if bench.tiny else 16384, {"kind": "gaussian"})
    found = bench.milliseconds(passes(optimizer, model), groups=5, each=3, warm=3)
    weights = sum(weight.posterior.numel for weight in model.weights)
    least = 1e3 * BYTES_A_WEIGHT * weights / rate
    bench.add(f"pass over {weights:,} weights", ms=found, copy_TB_per_s=rate / 1e12, over_bytes_by_bandwidth=found / least)


@contextmanager
def no_waiting(bench: Bench) -> Iterator[None]:
    """Context in which waiting for the device is an error."""
    if not bench.tiny:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if not bench.tiny:
            torch.cuda.set_sync_debug_mode("default")


def priors(bench: Bench) -> None:
    """The pass under every prior, against the first."""
    base = 0.0
    for prior in PRIORS:
        model, optimizer = optimizer_of(bench, 32 if bench.tiny else 5181, prior)
        call = passes(optimizer, model)
        for _ in range(3):
            call()
        with no_waiting(bench):
            call()
        found = bench.milliseconds(call, groups=5, each=3, warm=2)
        base = base or found
        bench.add(f"prior {' '.join(map(str, list(prior.values())[:2]))}", ms=found, to_gaussian=found / base)
        del model, optimizer, call
        bench.empty()


def ledger(bench: Bench) -> None:
    """Weight bits on CPU and GPU."""
    for prior in PRIORS:
        torch.manual_seed(0)
        model = bayesianize(mlp(2 if bench.tiny else 400), prior, posterior={"std": 0.02}, seed=0)
        x, y = torch.randn(64, 1, 28, 28), torch.randint(10, (64,))
        examples, likelihood = Examples(x, y), CategoricalLikelihood(10)
        wanted = take_ledger(model, likelihood, examples, samples=1)
        model.to(bench.device)
        likelihood.to(bench.device)
        found = take_ledger(model, likelihood, examples, samples=1)
        apart = abs(found.net_weight_bits - wanted.net_weight_bits) / wanted.net_weight_bits
        bench.add(f"ledger, {' '.join(map(str, list(prior.values())[:2]))}", relative_difference=apart)


def train(bench: Bench, data: Path | None) -> None:
    """60 epochs of configs/mnist_conv.yaml."""
    if data is None:
        print("left out: train: give --data DIR with the four files of MNIST", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        sizes = ["training.epochs=1", "data.limit=200", "ledger.samples=2"] if bench.tiny else []
        command = [
            sys.executable, "-m", "bitsback", "train", str(ROOT / "configs/mnist_conv.yaml"), f"data.root={data}",
            f"training.device={bench.device.type}", "logging.report=false", *sizes, "--out", str(run),
        ]  # fmt: skip
        before = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"failed: train: {done.stderr[-600:]}", file=sys.stderr)
            return
        summary = json.loads((run / "summary.json").read_text())
        bench.add(
            "configs/mnist_conv.yaml", training_seconds=summary["training_seconds"], epochs=summary["epochs"],
            process_seconds=time.perf_counter() - before, net_bits=summary["net_bits"], test_error=summary["test_error"],
        )  # fmt: skip


def show(rows: list[dict[str, Any]]) -> None:
    """A table for each set of columns."""
    shapes: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        shapes.setdefault(tuple(row), []).append(row)
    for names, several in shapes.items():
        body = [[f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()] for row in several]
        print(table([name.replace("_", " ") for name in names], body), end="\n\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help="parts to run")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the folder of MNIST's four files, for the part train")
    parser.add_argument("--budget", type=float, default=340.0, help="seconds after which no further part begins")
    parser.add_argument("--tiny", action="store_true", help="small sizes on the CPU, to try the script")
    options = parsed(parser)
    if not options.tiny and not torch.cuda.is_available():
        raise SystemExit("no GPU is here that torch can use; --tiny tries the script on the CPU")
    bench = Bench(options.tiny, options.budget)
    torch.backends.cuda.matmul.allow_tf32 = True
    calls: dict[str, Callable[[], None]] = {
        "steps": lambda: steps(bench), "train": lambda: train(bench, options.data), "large": lambda: large(bench),
        "kernel": lambda: kernel(bench), "priors": lambda: priors(bench), "ledger": lambda: ledger(bench),
    }  # fmt: skip
    for part, call in calls.items():
        if part not in options.only:
            continue
        if time.perf_counter() - bench.began > bench.budget:
            print(f"left out: {part}: the budget of {bench.budget:.0f} s is spent", file=sys.stderr)
            continue
        try:
            call()
        except Exception as error:  # one part that fails leaves the others, and the exit status says so
            print(f"failed: {part}: {type(error).__name__}: {error}", file=sys.stderr)
            bench.rows.append({"failed": part})
        bench.empty()
    show(bench.rows)
    name = torch.cuda.get_device_name() if not options.tiny else "cpu"
    write(options.json, {"device": name, "parts": options.only, "tiny": options.tiny, "rows": bench.rows})
    if any("failed" in row for row in bench.rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
