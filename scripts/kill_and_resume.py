"""Kill trainings at random moments, resume them, and compare what they end with.

python scripts/kill_and_resume.py [--kills 200] [--seed 0] [--configurations NAME ...] [--place DIR] [--log FILE]

Short trainings of the digits run without interruption, and then again under SIGKILL. The moments are drawn: some over the whole
process, most over the time in which it holds its directory, from before the first file to after the last byte of the report;
some of these wait until a file is being written. At times a bit of the newest checkpoint is flipped as well. A killed training
is resumed until it has finished. Then ledger.json, posterior.safetensors, config.yaml, the metrics and the last checkpoint (but
for their seconds) must equal those of the uninterrupted run, bit for bit, and nothing else may lie in the run's directory or
beside it. Prints a JSON summary; the exit code is 1 if anything differed or was left.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from safetensors import safe_open

import bitsback.analysis.codelengths  # noqa: F401
from bitsback.cli import main as main_of_bitsback

METHOD = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
HOME = Path(__file__).parent.parent
COMMON = ["data.limit=200", "training.epochs=40", "ledger.samples=2", "training.threads=1"]
CONFIGURATIONS = {
    "digits": ["data.limit=200", "training.checkpoint_seconds=0"],
    "gradient": ["prior={kind: laplace, learn: gradient}", "training.checkpoint_seconds=0"],
    "mixture": ["prior.kind=scale_mixture", "training.checkpoint_seconds=0.05"],
    "budget": ["training.budget_bits=300", "training.checkpoint_seconds=0"],
    "ivon": ["training.optimizer={name: IVON}", "training.checkpoint_seconds=0"],
    "early_stop": ["training.early_stop={patience_epochs: 3}", "training.checkpoint_seconds=0"],
    "report": ["logging.report=true", "training.checkpoint_seconds=0"],
}
"""Overrides of configs/digits.yaml, beside COMMON."""

EXPECTED = {"config.yaml", "metrics.jsonl", "ledger.json", "summary.json", "posterior.safetensors", "checkpoint"}


def command(name, run, *, resume):
    """The words that begin or resume a training."""
    if resume:
        return ["train", str(run), "--resume"]
    report = [] if name == "report" else ["logging.report=false"]
    config = str(HOME / "configs" / "digits.yaml")
    return ["train", config, *COMMON, *report, *CONFIGURATIONS[name], "--out", str(run)]


def start(words, log):
    """Start a training in a process of its own; where there is fork, it need not import torch again."""
    process = multiprocessing.get_context(METHOD).Process(target=run_command, args=(words, str(log)))
    process.start()
    return process


def run_command(words, log):
    """Be a command of the command line."""
    with open(log, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["bitsback", *words]
    main_of_bitsback()


def taken(run):
    """When the directory was last taken by a training, as its lock says; 0 before the first."""
    try:
        return (run / ".lock").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def is_writing(run):
    """True if there is a temporary file, of a living process or a killed one."""
    try:
        return any(name.endswith(".tmp") for folder in (run, run / "checkpoint") for name in os.listdir(folder))
    except FileNotFoundError:
        return False


def kill_at(process, run, moment, *, since_taken, while_writing):
    """Kill a process; True if it was still running.

    Args:
        process, run: the training, and its directory.
        moment: seconds after its start, or, with ``since_taken``, after it has taken its directory.
        since_taken: see there.
        while_writing: wait for a temporary file after that.
    """
    due, before = None if since_taken else time.monotonic() + moment, taken(run)
    while process.is_alive():
        if due is None and taken(run) not in (0, before):
            due = time.monotonic() + moment
        if due is not None and time.monotonic() >= due and (not while_writing or is_writing(run)):
            process.kill()
            process.join()
            return True
        time.sleep(0.0 if while_writing and due is not None else 0.001)
    return False


def straight_run(name, run, log):
    """Train without interruption; seconds of the whole process, and of those in which it held its directory."""
    began, process, taken_at = time.monotonic(), start(command(name, run, resume=False), log), None
    while process.is_alive():
        taken_at = taken_at or (time.monotonic() if taken(run) else None)
        time.sleep(0.001)
    if process.exitcode != 0:
        raise SystemExit(f"{name}: the uninterrupted training failed; see --log")
    return time.monotonic() - began, time.monotonic() - taken_at


def contents(run):
    """What must be equal, as one digest for each thing."""
    found = {
        name: hashlib.sha256((run / name).read_bytes()).hexdigest()
        for name in ("ledger.json", "posterior.safetensors", "config.yaml")
    }
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found["metrics"] = json.dumps([{key: value for key, value in line.items() if key != "seconds"} for line in metrics])
    with safe_open(run / "checkpoint" / "state.safetensors", framework="np") as file:
        facts = json.loads(file.metadata()["facts"])
        del facts["extra"]["seconds"]
        tensors = {name: file.get_tensor(name).tobytes().hex() for name in sorted(file.keys())}
    found["checkpoint"] = hashlib.sha256(json.dumps([facts, tensors]).encode()).hexdigest()
    return found


def litter(run, name):
    """Files that should not be there."""
    expected = EXPECTED | ({"report.html"} if name == "report" else set())
    left = [str(path) for path in run.iterdir() if path.name not in expected]
    left += [
        str(path) for path in (run / "checkpoint").iterdir() if path.name not in ("state.safetensors", "previous.safetensors")
    ]
    return left + [str(path) for path in run.parent.iterdir() if path != run]


def damage_newest(run, draw):
    """Flip one bit of the newest checkpoint; the one before must then give the same end."""
    path = run / "checkpoint" / "state.safetensors"
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def one_training(name, place, seconds, draw, budget, log):
    """Train under kills until the end; returns the run, how many kills it took, and how many checkpoints were damaged."""
    run, kills, damaged = place / name / "run", 0, 0
    run.parent.mkdir()
    while True:
        resume = (run / "config.yaml").is_file()
        process = start(command(name, run, resume=resume), log)
        since_taken, while_writing = draw.random() < 0.85, draw.random() < 0.4
        moment = draw.uniform(0.0, 1.05 * seconds[since_taken])
        if kills < budget and kill_at(process, run, moment, since_taken=since_taken, while_writing=while_writing):
            kills += 1
            checkpoints = [(run / "checkpoint" / f"{which}.safetensors").is_file() for which in ("state", "previous")]
            if all(checkpoints) and draw.random() < 0.35:  # killed between two renames, it has the one before alone
                damage_newest(run, draw)
                damaged += 1
            continue
        process.join()
        if process.exitcode != 0:
            raise SystemExit(f"{name}: a training that was {'resumed' if resume else 'begun'} ended with {process.exitcode}")
        return run, kills, damaged


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="how many in all")
    parser.add_argument("--most-per-training", type=int, default=16, help="then it is let through")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--configurations", nargs="+", choices=CONFIGURATIONS, default=list(CONFIGURATIONS))
    parser.add_argument("--place", type=Path, help="where the runs go; default: a temporary directory")
    parser.add_argument("--log", type=Path, help="a line for every training, and what the trainings say")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    differences, left, kills, trainings, damaged = [], [], 0, 0, 0
    log = options.log or Path(os.devnull)
    with tempfile.TemporaryDirectory(dir=options.place) as folder:
        straight, seconds = {}, {}
        for name in options.configurations:
            (Path(folder) / "straight" / name).mkdir(parents=True)
            run = Path(folder) / "straight" / name / "run"
            seconds[name] = straight_run(name, run, log)
            straight[name] = contents(run)
        while kills < options.kills:
            (name,) = draw.choices(
                options.configurations, [0.2 if name == "report" else 1.0 for name in options.configurations]
            )
            place = Path(folder) / f"{trainings}"
            place.mkdir()
            budget = min(draw.randint(1, options.most_per_training), options.kills - kills)
            run, done, flipped = one_training(name, place, seconds[name], draw, budget, log)
            ended = contents(run)
            differences += [f"{trainings} {name}: {key}" for key in ended if ended[key] != straight[name][key]]
            left += litter(run, name)
            kills, trainings, damaged = kills + done, trainings + 1, damaged + flipped
            with open(log, "a", encoding="utf-8") as file:
                counts = f"{kills} kills in all, {len(differences)} differences, {len(left)} left over"
                print(f"{trainings} {name}: {done} kills, {counts}", file=file)
    summary = {"seed": options.seed, "kills": kills, "trainings": trainings, "checkpoints_damaged": damaged,
               "differences": differences, "left_over": left}  # fmt: skip
    print(json.dumps(summary, indent=2))
    sys.exit(1 if differences or left else 0)


if __name__ == "__main__":
    main()
