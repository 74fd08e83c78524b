"""bitsback receive: payload, labels and network out of a message."""

from pathlib import Path
from typing import Annotated

import typer

from bitsback.errors import FileError

LOCATIONS = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Lets a command take places such as --data.root=DIR."""

OutDirectory = Annotated[Path | None, typer.Option("--out", "-o", help="A new directory.", show_default=False)]


def receive(
    context: typer.Context,
    message: Annotated[Path, typer.Argument(help="What send wrote.", show_default=False)],
    out: OutDirectory = None,
) -> None:
    """Decode a message: DIR/payload, DIR/labels.npy and DIR/model.safetensors; of a prequential one DIR/labels.npy alone.

    The network is trained again on the decoded labels to find out which payload chose its weights; with --code prequential,
    one is trained for every block. The inputs are the receiver's own; where they are is said by places such as --data.root=DIR.

    Example: bitsback receive digits.bbm -o received
    """
    from bitsback.atomic_io import new_neighbour
    from bitsback.formats.container import read_file, unseal
    from bitsback.formats.message.read import receive_file
    from bitsback.formats.prequential.preamble import FIRST_PREQUENTIAL, PREQUENTIAL
    from bitsback.formats.prequential.read import receive_prequential
    from bitsback.formats.two_part import TWO_PART, receive_two_part

    if out is None:
        raise FileError("say where the contents go: -o DIR")
    context.with_resource(new_neighbour(out))
    kind = unseal(read_file(message), str(message))[0]
    if kind in (PREQUENTIAL, FIRST_PREQUENTIAL):
        labels = receive_prequential(message, out, context.args)
        print(f"{len(labels):,} labels are in {out}")
        return
    if kind == TWO_PART:
        labels = receive_two_part(message, out, context.args).labels
        print(f"{len(labels):,} labels and the network that predicts them are in {out}")
        return
    received = receive_file(message, out, context.args)
    assert received.payload is not None
    weights = sum(tensor.numel() for tensor in received.weights.values())
    print(f"{len(received.labels):,} labels, {weights:,} weights and a payload of {len(received.payload):,} bytes are in {out}")
