"""Recompute the net weight bits of a run from its posterior.safetensors alone, with scipy in float64, and compare.

    python scripts/recompute_ledger.py runs/digits

For runs whose priors are gaussian, laplace, student_t, cauchy or logistic.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
from safetensors import safe_open
from scipy import integrate, stats

FAMILIES = {
    "gaussian": lambda p: stats.norm(p["mean"], p["scale"]),
    "laplace": lambda p: stats.laplace(p["mean"], p["scale"]),
    "student_t": lambda p: stats.t(p["df"], p["mean"], p["scale"]),
    "cauchy": lambda p: stats.cauchy(p["mean"], p["scale"]),
    "logistic": lambda p: stats.logistic(p["mean"], p["scale"]),
}


def kl_bits(prior, mean: float, std: float) -> float:
    """KL(N(mean, std^2) || prior) in bits, by adaptive quadrature."""
    q = stats.norm(mean, std)
    low, high = mean - 12 * std, mean + 12 * std
    bends = [point for point in (prior.median(), mean) if low < point < high]
    value, _ = integrate.quad(
        lambda x: q.pdf(x) * (q.logpdf(x) - prior.logpdf(x)), low, high, points=bends, epsabs=1e-12, epsrel=1e-10, limit=200
    )
    return value / math.log(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    total = 0.0
    with safe_open(run / "posterior.safetensors", framework="np") as file:
        for name, facts in json.loads(file.metadata()["priors"]).items():
            prior = FAMILIES[facts["kind"]](facts)
            means, stds = (file.get_tensor(f"{name}.{part}").astype(np.float64).ravel() for part in ("mean", "std"))
            total += sum(kl_bits(prior, mean, std) for mean, std in zip(means, stds, strict=True))
    stated = json.loads((run / "ledger.json").read_text())["net_weight_bits"]
    print(f"ledger {stated:.9f} bits, recomputed {total:.9f} bits, relative difference {abs(stated / total - 1):.2e}")


if __name__ == "__main__":
    main()
