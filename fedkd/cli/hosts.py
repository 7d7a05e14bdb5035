"""The commands for real hosts: ``fedkd keys`` and ``fedkd silo``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from fedkd.cli.options import AsJson, show_findings
from fedkd.cli.silo import silo_approve, silo_audit, silo_pending, silo_serve
from fedkd.errors import UserError
from fedkd.util.finding import Finding

KeysFolder = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Folder of all keys; keep it private.")
]


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    keys = typer.Typer(
        no_args_is_help=True,
        help="Make keys and certificates for deployed silos.\n\n"
        "For example: fedkd keys init --host fl.example.org",
    )
    keys.command("init")(keys_init)
    keys.command("add-silo")(keys_add_silo)
    app.add_typer(keys, name="keys")
    silo = typer.Typer(
        no_args_is_help=True,
        help="Check and audit a deployed silo on its own host.\n\n"
        "For example: fedkd silo check silo.yaml",
    )
    silo.command("check")(silo_check)
    silo.command("pending")(silo_pending)
    silo.command("approve")(silo_approve)
    silo.command("audit")(silo_audit)
    options = {"allow_extra_args": True, "ignore_unknown_options": True}
    silo.command("serve", context_settings=options)(silo_serve)
    silo.command("schema")(silo_schema)
    app.add_typer(silo, name="silo")


def keys_init(
    host: Annotated[
        list[str],
        typer.Option(
            metavar="NAME_OR_IP", help="Host name or address of the server; may be repeated."
        ),
    ],
    out: KeysFolder = Path("keys"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the SuperLink.")] = 8000,
    days: Annotated[
        int, typer.Option(min=1, max=3650, help="Validity of the server's certificate, in days.")
    ] = 825,
    renew: Annotated[
        bool,
        typer.Option("--renew", help="Make a new server certificate only, with DIR's authority."),
    ] = False,
) -> None:
    """Make a certificate authority and the server's certificate; print how to start the server.

    For example: fedkd keys init --host fl.example.org --host 192.0.2.7

    Copy ca.pem to every silo. Move ca.key, which signs certificates, off the server's disk;
    server.key stays on the server.
    """
    from fedkd.deploy.keys import make_server_keys

    for path in make_server_keys(out, host, days=days, renew=renew):
        typer.echo(f"wrote {path}")
    typer.echo(
        "\nOn the server's host, start the SuperLink:\n\n"
        f"  FEDKD_STATE_DIR=/var/lib/fedkd flower-superlink --host 0.0.0.0 --port {port} \\\n"
        f"    --ssl-certfile {out / 'server.pem'} --ssl-keyfile {out / 'server.key'} \\\n"
        f"    --ssl-ca-certfile {out / 'ca.pem'} --enable-supernode-auth \\\n"
        "    --database /var/lib/fedkd/superlink.db --disable-runtime-dependency-installation\n\n"
        "Where studies are started, add it to $FLWR_HOME/config.toml (~/.flwr/config.toml):\n\n"
        "  [superlink.deployed]\n"
        f'  address = "{host[0]}:{port}"\n'
        f'  root-certificates = "{(out / "ca.pem").absolute()}"\n\n'
        "Then make a key for each silo: fedkd keys add-silo NAME"
        + ("" if out == Path("keys") else f" --out {out}")
    )


def keys_add_silo(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The silo's name, as in silo.yaml.")],
    out: KeysFolder = Path("keys"),
    superlink: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="SuperLink address, for the printed command.")
    ] = "SERVER:8000",
    connection: Annotated[
        str, typer.Option(metavar="NAME", help="Its name in Flower's config.toml, likewise.")
    ] = "deployed",
) -> None:
    """Make a silo's key pair; print how to register it and how to start the SuperNode.

    For example: fedkd keys add-silo clinic-a --superlink fl.example.org:8000

    Give the private key to the silo alone. A silo may also make the pair itself and send only the
    public key.
    """
    from fedkd.deploy.keys import make_silo_key

    private, public = make_silo_key(out, name)
    typer.echo(
        f"wrote {private}\nwrote {public}\n\n"
        "Where studies are started, register the public key under the silo's name:\n\n"
        f"  flwr supernode register {public} {connection} --name {name}\n\n"
        f"Copy {private.name} and ca.pem to the silo's host, and run there:\n\n"
        f"  flower-supernode --superlink {superlink} --root-certificates /etc/fedkd/ca.pem \\\n"
        f"    --auth-supernode-private-key /etc/fedkd/{private.name} \\\n"
        "    --node-config 'silo=\"/etc/fedkd/silo.yaml\"'"
    )


def silo_check(
    path: Annotated[Path, typer.Argument(metavar="SILO", help="The silo's file, silo.yaml.")],
    superlink: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Also check this SuperLink.")
    ] = None,
    root_certificates: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="ca.pem of its server; default: the system's."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="The SuperLink uses plain HTTP.")
    ] = False,
    study: Annotated[
        Path | None, typer.Option(metavar="STUDY", help="Also check against this study.")
    ] = None,
    accept: Annotated[
        bool,
        typer.Option(
            "--accept", help="Approve the study's transfer sets for densities and moments."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check a silo before it starts: data, labels, model, disk, connection to the SuperLink, clock.

    For example: fedkd silo check silo.yaml --superlink fl.example.org:8000

    A silo computes densities and moments only on transfer sets that its owner has approved: look at
    the examples of the study's, then check it with --accept.

    Nothing is sent but a health request to the SuperLink. The exit code is 1 if something would
    fail.
    """
    from fedkd.config.study_file import load_study
    from fedkd.deploy.check import SiloCheck
    from fedkd.deploy.link import Address, check_link
    from fedkd.deploy.silo_file import load_silo_file

    if insecure and root_certificates is not None:
        raise UserError("--insecure: plain HTTP has no certificate; leave out --root-certificates")
    address = None if superlink is None else Address.parse(superlink)
    if accept and study is None:
        raise UserError("--accept: approves the transfer sets of a study; name it by --study")
    file = load_silo_file(path)

    def check() -> Iterator[Finding]:
        with file.permissions():
            loaded = None if study is None else load_study(study)
            yield from SiloCheck(file, loaded, accept=accept, path=path).findings()
        if address is not None:
            yield from check_link(address, root_certificates, insecure=insecure)

    show_findings(check(), ("ok", "note", "problem"), 11, as_json=as_json)


def silo_schema() -> None:
    """Print the JSON schema of silo.yaml, for editors and programs.

    For example: fedkd silo schema > silo.schema.json
    """
    from fedkd.deploy.silo_file import silo_schema as schema

    typer.echo(json.dumps(schema(), indent=1))
