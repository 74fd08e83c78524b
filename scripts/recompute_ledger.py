"""Recompute the net weight bits of a run from its posterior.safetensors alone, with scipy in float64, and compare.

    python scripts/recompute_ledger.py runs/digits

For runs whose priors are gaussian, laplace, student_t, cauchy or logistic. Points are charged by the masses of the prior's
buckets on the grid (bitsback/formats/FORMAT.md, 9.3 and 9.4), which tables hold to about 1e-4 if the step is below the scale.
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
OCTAVES = {"gaussian": 4, "laplace": 6, "logistic": 6, "cauchy": 14}
SLOTS = 2.0**28
"""Of a table; every bucket has at least one."""


def point_bits(facts, points: np.ndarray, step: float) -> float:
    """Code length of points on the multiples of ``step``: of their buckets, and of the positions inside them."""
    own, prior = FAMILIES[facts["kind"]](facts), FAMILIES[facts["kind"]]({**facts, "mean": 0.0})
    octaves = OCTAVES[facts["kind"]] if facts["kind"] in OCTAVES else 14 if facts["df"] < 3 else 10
    reach = max(8, octaves - math.frexp(step / facts["scale"])[1] + 1)
    index = np.rint(points / step).astype(np.int64) - round(facts["mean"] / step)
    size = np.where(index < 0, -1 - index, index)
    exponent = np.maximum(np.frexp(size.astype(np.float64))[1] - 7, 0)
    low = ((size >> exponent) << exponent) + np.where(index < 0, 0.5, -0.5)
    masses = prior.cdf(-low * step) - prior.cdf(-(low + 2.0**exponent) * step)  # all are symmetric: exact far out, too
    masses /= 1 - 2 * prior.cdf(-(2.0**reach) * step)
    bits = exponent - np.log2(masses * (1 - 128 * (reach - 6) / SLOTS) + 1 / SLOTS)
    beyond = math.log2(SLOTS) - own.logpdf(np.rint(points / step) * step) / math.log(2) - math.log2(step)
    return float(np.where(size < 2.0**reach, bits, beyond).sum())


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
    total, ledger = 0.0, json.loads((run / "ledger.json").read_text())
    with safe_open(run / "posterior.safetensors", framework="np") as file:
        for name, facts in json.loads(file.metadata()["priors"]).items():
            means = file.get_tensor(f"{name}.mean").astype(np.float64).ravel()
            if f"{name}.std" not in file.keys():  # noqa: SIM118
                total += point_bits(facts, means, ledger["grid_step"])
                continue
            prior, stds = FAMILIES[facts["kind"]](facts), file.get_tensor(f"{name}.std").astype(np.float64).ravel()
            total += sum(kl_bits(prior, mean, std) for mean, std in zip(means, stds, strict=True))
    stated = ledger["net_weight_bits"]
    print(f"ledger {stated:.9f} bits, recomputed {total:.9f} bits, relative difference {abs(stated / total - 1):.2e}")


if __name__ == "__main__":
    main()
