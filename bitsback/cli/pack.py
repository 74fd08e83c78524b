"""bitsback pack, unpack, inspect: model files."""

import json as json_library
from pathlib import Path
from typing import Annotated, Literal

import typer

from bitsback.cli.ledger import RunArgument
from bitsback.cli.receive import OutDirectory
from bitsback.cli.train import JsonOption
from bitsback.errors import FileError
from bitsback.ledger.rendering import shown_error

Codec = Literal["auto", "relative_entropy", "quantised"]
FileArgument = Annotated[Path, typer.Argument(help="Model file.", show_default=False)]


def pack(
    run: RunArgument,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where the model file goes.", show_default=False)] = None,
    codec: Annotated[Codec | None, typer.Option(help="Default: the run's, else auto: by bits per weight.")] = None,
    budget: Annotated[int | None, typer.Option(min=1, help="Bytes of the whole file; blocks are then tuned.")] = None,
    tune: Annotated[bool, typer.Option("--tune", help="Train on what is not coded yet; quantised: try other grids.")] = False,
    setting: Annotated[list[str] | None, typer.Option("--set", help="Such as tuning.steps=400 or index_bits=16.")] = None,
    json: JsonOption = False,
) -> None:
    """Write a run's network as a file that decodes without the data.

    relative_entropy chooses every block of weights from a shared random codebook, at about the run's net bits; quantised puts
    the weights on grids and codes them under the prior. The configuration's section `pack` says how; options come on top.

    Example: bitsback pack runs/digits -o digits.bb --tune --budget 120
    """
    from bitsback.atomic_io import check_new_file, write_bytes
    from bitsback.config import load_run
    from bitsback.formats.model_file.write import pack as pack_experiment
    from bitsback.formats.model_file.write import with_settings

    if out is None:
        raise FileError("say where the model file goes: -o FILE")
    check_new_file(out)
    opened = load_run(run)
    given = [*([f"codec={codec}"] if codec else []), *([f"budget_bytes={budget}"] if budget is not None else [])]
    quantised = codec == "quantised" or (codec is None and opened.config.pack.codec == "quantised")
    if (tune or (budget is not None and not quantised)) and opened.config.pack.tuning is None:
        given.insert(0, "tuning={}")
    packed = pack_experiment(opened.experiment(), with_settings(opened.config.pack, [*given, *(setting or [])]))
    write_bytes(out, packed.content)
    if json:
        print(json_library.dumps(packed.facts(), indent=2))
        return
    print(f"{out}: {len(packed.content):,} bytes, {packed.codec} ({packed.why})")
    labels = packed.train_data_bits if packed.label_bits is None else packed.label_bits
    print(f"File and training labels given it: {packed.total_bits:,.0f} bits ({8 * len(packed.content):,} + {labels:,.0f}); "
          f"the posterior's ledger: {packed.net_bits:,.0f}")  # fmt: skip
    if packed.test_error is not None:
        print(f"Test error of the decoded file: {shown_error(packed.error_name, packed.test_error)}")


def unpack(context: typer.Context, file: FileArgument, out: OutDirectory = None) -> None:
    """Write a model file's network as DIR/model.safetensors, and its configuration as DIR/config.yaml.

    Example: bitsback unpack digits.bb -o digits
    """
    from bitsback.atomic_io import new_neighbour
    from bitsback.formats.model_file.read import load, write_unpacked

    if out is None:
        raise FileError("say where the network goes: -o DIR")
    context.with_resource(new_neighbour(out))
    loaded = load(file, context.args)
    write_unpacked(loaded, out)
    weights = sum(weight.posterior.numel for weight in loaded.model.weights)
    print(f"{weights:,} weights are in {out / 'model.safetensors'}, the configuration in {out / 'config.yaml'}")


def inspect(context: typer.Context, file: FileArgument, json: JsonOption = False) -> None:
    """Say what a model file or message holds, and where every byte goes.

    Example: bitsback inspect digits.bb
    """
    from bitsback.formats.inspect import inspect_file
    from bitsback.result import text_table

    report = inspect_file(file, context.args)
    if json:
        print(json_library.dumps(report, indent=2))
        return
    print(report["sentence"])
    rows = [[part["name"], f"{part['bits']:,.1f}", f"{part['bits'] / 8:,.1f}"] for part in report["parts"]]
    total = sum(part["bits"] for part in report["parts"])
    print(text_table(["part", "bits", "bytes"], [*rows, ["total", f"{total:,.1f}", f"{total / 8:,.1f}"]]))
    for note in report["notes"]:
        print(note)
