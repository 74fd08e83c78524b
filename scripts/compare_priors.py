"""Train every configuration under configs/priors for three seeds and print the table of the README.

python scripts/compare_priors.py [--seeds 3]
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from bitsback.config import Experiment, load_config

CONFIGS = Path(__file__).parent.parent / "configs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="train for so many epochs instead of the configurations' own")
    arguments = parser.parse_args()
    seeds = range(arguments.seeds)
    common = [f"training.epochs={arguments.epochs}"] if arguments.epochs else []
    rows = []
    with tempfile.TemporaryDirectory() as place:
        earlier = Path(place) / "digits"
        Experiment.build(load_config(CONFIGS / "digits.yaml", ["seed=100", *common])).train(earlier, progress=False)
        for path in sorted((CONFIGS / "priors").glob("*.yaml")):
            overrides = common + ([f"prior.run={earlier}"] if path.stem == "checkpoint" else [])
            outcomes = [
                Experiment.build(load_config(path, [*overrides, f"seed={seed}"])).train(None, progress=False) for seed in seeds
            ]
            ledgers = [outcome.ledger for outcome in outcomes]

            def mean(name: str, ledgers=ledgers) -> float:
                return statistics.fmean(getattr(ledger, name) for ledger in ledgers)

            errors = statistics.fmean(outcome.test_error for outcome in outcomes)
            seconds = statistics.fmean(outcome.training_seconds for outcome in outcomes)
            numbers = [mean(name) for name in ("net_bits", "gross_bits", "refund_bits", "data_bits", "hyperparameter_bits")]
            rows.append((path.stem, numbers, errors, seconds))
            print(path.stem, [round(number, 1) for number in numbers], flush=True)
    print("\n| prior | net bits | gross bits | refund | data bits | hyper-parameters | test error | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, numbers, errors, seconds in sorted(rows, key=lambda row: row[1][0]):
        print(
            f"| `{kind}` | " + " | ".join(f"{number:,.1f}" for number in numbers) + f" | {100 * errors:.1f} % | {seconds:.1f} |"
        )


if __name__ == "__main__":
    main()
