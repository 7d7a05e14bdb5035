"""The command ``fedkd convert``: a checkpoint of any form as a plain safetensors file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedkd.cli.options import AsJson
from fedkd.errors import UserError

if TYPE_CHECKING:
    from fedkd.models.state import State

_SHOWN = 3


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A checkpoint: .pt, .pth, .ckpt, .bin, .safetensors or .safetensors.index.json.",
        ),
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Where to write the weights (.safetensors).")
    ],
    as_json: AsJson = False,
) -> None:
    """Show what a checkpoint holds, and write its weights as a safetensors file.

    For example: fedkd convert lightning.ckpt model.safetensors

    A study and silo.yaml take such checkpoints directly; this command is for those who want to
    look at one first. Nothing in FILE is run. What trainers wrap around the weights is undone and
    named.
    """
    if out.suffix != ".safetensors":
        raise UserError(f"OUT: the name of {out} must end in .safetensors")
    if out.is_dir() or out.resolve() == source.resolve():
        raise UserError(f"OUT: {out} exists already; choose another name")

    from fedkd.models.state import save_state
    from fedkd.models.weights_file import read_weights, strip_prefixes

    weights = read_weights(source, what="FILE")
    state, removed = strip_prefixes(weights.state)
    notes = [*weights.notes, *(f"the prefix {p} was removed from all names" for p in removed)]
    # The metadata name tensors that share one; they are the file's own where no name changed.
    save_state(out, state, {} if removed else weights.metadata)
    found = _describe(state, notes, out)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    for note in notes:
        typer.echo(f"{source}: {note}")
    names = list(state)
    shown = names if len(names) <= 2 * _SHOWN else [*names[:_SHOWN], "...", *names[-_SHOWN:]]
    for name in shown:
        typer.echo(f"  {name} {list(state[name].shape)}" if name in state else f"  {name}")
    typer.echo(
        f"{found['num_tensors']} tensors, {found['num_parameters']:,} numbers of "
        f"{', '.join(found['types'])}\nModel: {out}"
    )


def _describe(state: State, notes: list[str], out: Path) -> dict[str, Any]:
    return {
        "out": str(out),
        "num_tensors": len(state),
        "num_parameters": sum(tensor.numel() for tensor in state.values()),
        "types": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()}),
        "shapes": {name: list(tensor.shape) for name, tensor in state.items()},
        "notes": notes,
    }
