"""``fedkd cache``: list and clear cached models, predictions, runs and data."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from fedkd.cli.options import AsJson

if TYPE_CHECKING:
    from fedkd.util.cache_entries import Entry

app = typer.Typer(
    help="List or clear the cache.\n\n"
    "For example: fedkd cache clear --kind arms --older-than 30d\n\n"
    "The cache holds pre-trained models, teachers' predictions, finished runs and decoded data, in "
    "$FEDKD_CACHE_DIR (default: ~/.cache/fedkd). Cleared entries are computed again when they are "
    "needed. Results in runs/ are not touched."
)


def add_commands(main: typer.Typer) -> None:
    """Add ``cache`` to the command line."""
    main.add_typer(app, name="cache")


@app.callback(invoke_without_command=True)
def show(context: typer.Context, as_json: AsJson = False) -> None:
    """List the cache by kind: entries, size and age."""
    if context.invoked_subcommand is not None:
        return
    from fedkd.util.cache import cache_root
    from fedkd.util.cache_entries import KINDS, find_entries

    root = cache_root()
    entries = find_entries(root)
    rows = []
    for kind, meaning in KINDS.items():
        of_kind = [entry for entry in entries if entry.kind == kind]
        rows.append(
            {
                "kind": kind,
                "holds": meaning,
                "entries": len(of_kind),
                "bytes": sum(entry.size for entry in of_kind),
                "oldest_seconds": round(max((entry.age for entry in of_kind), default=0.0)),
                "newest_seconds": round(min((entry.age for entry in of_kind), default=0.0)),
            }
        )
    if as_json:
        typer.echo(json.dumps({"folder": str(root), "kinds": rows}, indent=1))
        return
    typer.echo(f"{root}\n")
    typer.echo(f"{'kind':12} {'entries':>8} {'size':>9}  {'age':17} holds")
    for row in rows:
        ages = (
            "" if not row["entries"] else _age_range(row["newest_seconds"], row["oldest_seconds"])
        )
        size = _megabytes(int(str(row["bytes"])))
        typer.echo(f"{row['kind']:12} {row['entries']:>8} {size:>9}  {ages:17} {row['holds']}")


@app.command()
def clear(
    kind: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="pretrained, predictions, arms, sources or partitions."),
    ] = None,
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="Only entries older than 12h, 30d or 2w.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove entries from the cache, after a confirmation.

    For example: fedkd cache clear --kind arms --older-than 30d
    """
    from fedkd.errors import UserError
    from fedkd.util.cache import cache_root
    from fedkd.util.cache_entries import check_kind, find_entries, parse_age, select
    from fedkd.util.cache_entries import clear as remove_entries

    check_kind(kind)
    age, root = parse_age(older_than), cache_root()
    matching = select(find_entries(root), kind=kind, older_than=age)
    if matching and not yes:
        if not sys.stdin.isatty():
            raise UserError("cache clear asks for a confirmation; give --yes in a script")
        typer.confirm(f"Remove {_describe(matching)} from {root}?", abort=True, err=True)
    removed = remove_entries(root, kind=kind, older_than=age)
    if as_json:
        size = sum(entry.size for entry in removed)
        typer.echo(json.dumps({"folder": str(root), "removed": len(removed), "bytes": size}))
    else:
        typer.echo(f"Removed {_describe(removed)} from {root}.")


def _describe(entries: Sequence[Entry]) -> str:
    noun = "entry" if len(entries) == 1 else "entries"
    return f"{len(entries)} {noun} ({_megabytes(sum(entry.size for entry in entries))})"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _age_range(newest: object, oldest: object) -> str:
    newest_age, oldest_age = (_age(float(str(seconds))) for seconds in (newest, oldest))
    return newest_age if newest_age == oldest_age else f"{newest_age} to {oldest_age}"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"
