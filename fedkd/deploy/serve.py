"""``fedkd silo serve``: a SuperNode whose ClientApps are checked before they are imported.

A SuperNode starts a program named ``flwr-clientapp``, which it finds by ``PATH``. Here that is one
of the fedkd that is installed on this host (:mod:`clients.pinned`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedkd.deploy.bundle_hash import INSTALLED, PINNED, bundle_hash
from fedkd.deploy.silo_file import SiloFile
from fedkd.errors import UserError
from fedkd.util.files import write_new

PROGRAM = "flwr-clientapp"
SET_HERE = {"--node-config", "--isolation", "--allow-runtime-dependency-installation"}
"""Options of the SuperNode that would lead around the check, or that are set here."""
SCRIPT = """#!{python} -P
from clients.pinned import main
main({code!r}, {audit!r})
"""


def serve_command(
    file: SiloFile, silo_file: Path, supernode: Path, options: Sequence[str]
) -> tuple[list[str], Mapping[str, str]]:
    """Return the command of the SuperNode and its environment.

    Raises:
        UserError: the silo pins no code, an option leads around the check, or the program that
            checks cannot be written.
    """
    if file.code is None:
        raise UserError(
            f"{silo_file}: code: is missing; set it to the hash that fedkd silo pending shows, or "
            "to installed, for the code that is installed here"
        )
    for option in (option.partition("=")[0] for option in options if option.startswith("--")):
        if any(name.startswith(option) for name in SET_HERE):  # the SuperNode takes abbreviations
            raise UserError(f"{option}: cannot be given to fedkd silo serve")
    folder = Path(f"{file.audit}.serve").absolute()
    code = bundle_hash() if file.code == INSTALLED else file.code
    script = SCRIPT.format(python=sys.executable, code=code, audit=file.audit)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        write_new(folder / PROGRAM, script.encode(), mode=0o700, replace=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from error
    programs = (str(folder), str(Path(sys.executable).parent), os.environ.get("PATH", ""))
    # A bundle may bring compiled files, which Python would run instead of those checked.
    compiled = {"PYTHONPYCACHEPREFIX": str(folder / "compiled")}
    environment = {**os.environ, "PATH": os.pathsep.join(programs), PINNED: code, **compiled}
    node = ("--node-config", f'silo="{silo_file.absolute()}"')
    return [str(supernode), *options, *node], environment
