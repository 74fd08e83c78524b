"""Who takes part, by name; to add one is one line."""

import importlib.metadata
import sys
from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.ours import PRIORS, Ours, OwnLoop, WithPrior
from benchmarks.peers import BayesianTorch, Blitz, Deterministic, Ivon, TorchBnn
from benchmarks.pyro_peers import Pyro, Tyxe
from benchmarks.trainer import Missing, Task, Trainer

Contestants = dict[str, Callable[[Task], Trainer]]

BASELINE = "deterministic, default Adam"
DETERMINISTIC: Contestants = {
    BASELINE: Deterministic,
    "deterministic, tuned": partial(Deterministic, tuned=True),
    "deterministic, tuned, bfloat16": partial(Deterministic, tuned=True, half=True),
}
PEERS: Contestants = {
    "bayesian-torch, reparameterisation": partial(BayesianTorch, kind="Reparameterization"),
    "bayesian-torch, flipout": partial(BayesianTorch, kind="Flipout"),
    "blitz": Blitz,
    "torchbnn": TorchBnn,
    "Pyro, AutoNormal, Trace_ELBO": partial(Pyro, guide="auto"),
    "Pyro, guide by hand, TraceMeanField_ELBO": partial(Pyro, guide="hand"),
    "TyXe, sampling": partial(Tyxe, noise="sampling"),
    "TyXe, local reparameterisation": partial(Tyxe, noise="local_reparameterization"),
    "TyXe, flipout": partial(Tyxe, noise="flipout"),
    "ivon-opt": Ivon,
}
STEP_OURS: Contestants = {
    "bitsback weight": partial(Ours, estimator="weight"),
    "bitsback weight, noise drawn afresh": partial(Ours, estimator="weight", noise_reuse=1),
    "bitsback weight, bfloat16": partial(Ours, estimator="weight", precision="bfloat16"),
    "bitsback weight, plain": partial(Ours, estimator="weight", fused=False),
    "bitsback output": partial(Ours, estimator="output"),
    "bitsback output, bfloat16": partial(Ours, estimator="output", precision="bfloat16"),
    "bitsback output, plain": partial(Ours, estimator="output", fused=False),
    "bitsback auto": partial(Ours, estimator="auto"),
    "bitsback.optim.Adam, a loop of one's own": OwnLoop,
    "bitsback.optim.Adam, noise reused": partial(OwnLoop, noise_reuse=8),
}
STEP: Contestants = {**DETERMINISTIC, **PEERS, **STEP_OURS}

BY_PRIOR: Contestants = {
    f"{kind}, {estimator}": partial(WithPrior, kind=kind, estimator=estimator)
    for estimator in ("weight", "auto")
    for kind in PRIORS
}
"""Each under weight noise, and as ``auto`` has it; the first is what the others are compared with."""

_CONFIG = {
    "estimator": "auto",
    "posterior": {"kind": "gaussian", "std": 0.1, "relative_to": "fan_in"},
    "draws": 2,
    "log_std_speed": 5,
    "schedule": {"name": None},
}
"""As in configs/mnist_conv.yaml; the schedule is the benchmark's."""

BITS_OURS: Contestants = {
    "bitsback, Adam": partial(Ours, **_CONFIG),
    "bitsback, Adam, bfloat16": partial(Ours, **_CONFIG, precision="bfloat16"),
    "bitsback, Adam, bfloat16, one draw": partial(Ours, **{**_CONFIG, "draws": 1}, precision="bfloat16"),
    "bitsback, output noise, bfloat16": partial(Ours, **{**_CONFIG, "estimator": "output", "draws": 1}, precision="bfloat16"),
    "bitsback, IVON": partial(Ours, **{**_CONFIG, "log_std_speed": 0.03}, optimizer={"name": "IVON"}),
    "bitsback, Adam, noise drawn afresh": partial(Ours, **_CONFIG, noise_reuse=1),
    "bitsback, Adam, plain": partial(Ours, **_CONFIG, fused=False),
}
BITS: Contestants = {**BITS_OURS, **PEERS, "ivon-opt": partial(Ivon, beta2=0.9995)}

BITS_RATES = {"": (0.01, 0.03), "ivon-opt": (0.3, 0.5), "bitsback": (0.01, 0.02), "bitsback, IVON": (0.03,)}
"""Learning rates of the contestants whose name begins so; the longest beginning counts.

Chosen, with the initial std of 0.05, by single trainings of 8 s on the conv network, in net bits at their end. torchbnn, from a
std of 0.02 at rates 0.001, 0.003, 0.01: 36,200, 29,100, 24,700; from 0.1 at 0.003, 0.01: 47,000, 24,300; from 0.05 at 0.01,
0.03: 20,200, 17,000. From 0.05 at 0.01, bayesian-torch (reparameterisation) and Pyro (guide by hand): 19,700, 20,400. ivon-opt,
with beta2 = 0.9995 from 0.05 at 0.1, 0.3: 28,500, 21,700; with 0.999 at 0.5: 22,900; from 0.02 at 0.1 with its default beta2
of 0.99999: 31,900, with 0.9995: 30,200. The other peers were not tried, and nobody longer.
"""

PACKAGES = ("bayesian-torch", "blitz-bayesian-pytorch", "torchbnn", "pyro-ppl", "tyxe", "ivon-opt")


def chosen(contestants: Contestants, words: Sequence[str]) -> Contestants:
    """Those with one of the words in their name; all, when there are no words."""
    return {name: one for name, one in contestants.items() if not words or any(word in name for word in words)}


def rates(name: str) -> tuple[float, ...]:
    """The learning rates that a contestant is trained with."""
    return BITS_RATES[max((start for start in BITS_RATES if name.startswith(start)), key=len)]


def joined(make: Callable[[Task], Trainer], name: str, task: Task) -> Trainer | None:
    """The trainer, or None and a line that says why it is missing."""
    try:
        return make(task)
    except ModuleNotFoundError as error:
        print(f"left out: {name}: {error} (scripts/bench_env.sh installs the peers)", file=sys.stderr)
    except Missing as error:
        print(f"left out: {name}: {error}", file=sys.stderr)
    return None


def versions() -> dict[str, str]:
    """Of the peers that are installed."""
    found = {distribution.metadata["Name"]: distribution.version for distribution in importlib.metadata.distributions()}
    return {name: found.get(name, "not installed") for name in PACKAGES}
