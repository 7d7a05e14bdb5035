"""``fedkd silo pending``, ``approve`` and ``audit``: who asks a silo, and what left it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from fedkd.cli.options import AsJson, wide_console
from fedkd.errors import UserError

SiloPath = Annotated[Path, typer.Argument(metavar="SILO", help="The silo's file, silo.yaml.")]


def silo_audit(
    path: SiloPath,
    since: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="Only messages from then on, such as 2026-03-01 (UTC)."),
    ] = None,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print every message as a line of CSV instead.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Sum up what left a silo, by study: messages, bytes and kinds, from its audit log.

    For example: fedkd silo audit silo.yaml --since 2026-03-01 --csv > march.csv

    Every entry names study, arm, seed and run, the type of message, its bytes and SHA-256, and the
    hashes of code, data and transfer set. The names of studies are what the server says. Lines that
    are damaged are listed by themselves, and the exit code is 1.
    """
    from fedkd.deploy.audit_report import DAMAGED, parse_date, read_entries, sum_by_study, to_csv
    from fedkd.deploy.silo_file import load_silo_file

    if as_csv and as_json:
        raise UserError("--csv: leave out --json, or the other way round")
    begin = None if since is None else parse_date(since)
    listed: Iterable[dict[str, Any]] = read_entries(Path(load_silo_file(path).audit), begin)
    if as_csv:
        listed = list(listed)
        typer.echo(to_csv(listed), nl=False)
    else:
        listed = sum_by_study(listed)
        if as_json:
            typer.echo(json.dumps(listed, indent=1))
        else:
            _show(listed)
    if any(each.get("study") == DAMAGED for each in listed):
        raise typer.Exit(1)


def _show(sums: list[dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("study", "messages", "refused", "MB sent", "kinds", "first", "last", "code")
    for total in sums:
        kinds = ", ".join(f"{count} {kind}" for kind, count in total["kinds"].items())
        table.add_row(
            *(escape(total["study"]), str(total["messages"]), str(total["refused"])),
            *(f"{total['bytes'] / 1e6:.3g}", escape(kinds), total["first"][:19]),
            *(total["last"][:19], escape(", ".join(code[:12] for code in total["code"]))),
        )
    wide_console().print(table if sums else "No message in this time.")


def silo_pending(path: SiloPath, as_json: AsJson = False) -> None:
    """Show the studies that asked for a silo and wait for its owner's approval.

    For example: fedkd silo pending silo.yaml

    Says in plain words what would leave the silo, how often, and which code runs, by hash. Approved
    studies are listed too.
    """
    from fedkd.deploy.silo_file import load_silo_file
    from fedkd.deploy.study_approvals import explain, read_requests

    file = load_silo_file(path)
    requests = read_requests(file)
    if as_json:
        typer.echo(json.dumps([vars(request) for request in requests], indent=1))
        return
    if file.approve.study == "any":
        typer.echo(f"{path} approves every study (approve: any).")
    waiting = [request for request in requests if not request.approved]
    for request in waiting:
        with file.permissions():
            try:
                lines = explain(request, file)
            except UserError as error:
                lines = [f"This study cannot be read here: {error}"]
        typer.echo("\n".join(lines))
        typer.echo(f"To approve: fedkd silo approve {path} {request.hash[:12]}\n")
    if not waiting:
        typer.echo("No study waits.")
    for request in requests:
        if request.approved:
            typer.echo(f"Approved on {request.approved[:16]}: {request.hash[:12]}")


def silo_approve(
    path: SiloPath,
    digits: Annotated[
        str, typer.Argument(metavar="HASH", help="The study's hash, or its first digits.")
    ],
) -> None:
    """Let a silo take part in a study that asked for it.

    For example: fedkd silo approve silo.yaml 3f9a1c77e0d2

    The hash is of the study and of the code that came with it: if either changes, the silo waits
    for approval again. The server asks again within seconds. Run it as the SuperNode's user.
    """
    from fedkd.deploy.silo_file import load_silo_file
    from fedkd.deploy.study_approvals import approve_study

    request = approve_study(load_silo_file(path), digits)
    typer.echo(f"Approved {request.hash[:12]}.")


def silo_serve(context: typer.Context, path: SiloPath) -> None:
    """Start a SuperNode that runs no other code than the silo's file pins by ``code``.

    For example: fedkd silo serve silo.yaml --superlink fl.example.org:8000 --root-certificates
    ca.pem --auth-supernode-private-key north

    Options are those of flower-supernode. The installed fedkd checks every bundle before anything
    of it is imported.
    """
    from fedkd.deploy.serve import serve_command
    from fedkd.deploy.silo_file import load_silo_file
    from fedkd.engines.flower_app import find_program

    program = find_program("flower-supernode")
    command, environment = serve_command(load_silo_file(path), path, program, context.args)
    os.execve(program, command, environment)  # noqa: S606 -- our own command
