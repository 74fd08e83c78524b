"""bitsback send --code two_part: the network as a model file, and the labels behind it."""

import json as json_library
from pathlib import Path

from bitsback.errors import FileError
from bitsback.ledger.rendering import shown_error


def send_two_part_file(config: Path | None, overrides: list[str], run: Path | None, out: Path | None, json: bool) -> None:
    """Train, or open a run; write the file, and say what it holds.

    Raises:
        FileError: with the fix, for what is missing.
    """
    from bitsback.atomic_io import check_new_file, write_bytes
    from bitsback.config import Experiment, load_config, load_run
    from bitsback.formats.two_part import check_targets, send_two_part

    if (config is None) == (run is None) or (out is None and not json):
        raise FileError("say what to send, and where to: `bitsback send CONFIG --code two_part -o MSG`, or --run RUN alone")
    if out is not None:
        check_new_file(out)
    if run is not None:
        experiment = load_run(run).experiment()
    else:
        assert config is not None
        experiment = Experiment.build(load_config(config, overrides))
        check_targets(experiment)
        experiment.train(None)
    sent = send_two_part(experiment)
    if out is not None:
        write_bytes(out, sent.content)
    if json:
        print(json_library.dumps(sent.facts(), indent=2))
        return
    model_bits, packed = 8 * len(sent.packed.content), sent.packed
    print(f"{len(sent.content):,} bytes{f' in {out}' if out else ''}: {model_bits:,} bits of network ({packed.codec}), "
          f"{sent.total_bits - model_bits:,} of labels; the posterior's ledger: {packed.net_bits:,.0f}")  # fmt: skip
    if packed.test_error is not None:
        print(f"Test error of the decoded network: {shown_error(packed.error_name, packed.test_error)}")
