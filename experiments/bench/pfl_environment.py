"""The environment of pfl-research, which pins other versions than fedkd."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

VERSION = "0.6.0"


def make_environment(folder: Path) -> Path:
    """Return the Python of an environment with pfl, which shares PyTorch with this one.

    Args:
        folder: where it is, or is made.

    Raises:
        OSError: it cannot be made or installed.
    """
    python, ready = folder / "bin" / "python", folder / f"pfl-{VERSION}"
    if ready.exists():
        return python
    try:
        _run([sys.executable, "-m", "venv", folder])
        own = next(folder.glob("lib/python*/site-packages"))
        shared = sysconfig.get_path("purelib")
        (own / "shared.pth").write_text(f"{shared}\n", encoding="utf-8")
        _run([python, "-m", "pip", "install", "--quiet", f"pfl=={VERSION}"])
    except subprocess.CalledProcessError as error:
        raise OSError(f"no environment for pfl {VERSION}: {error.stderr.strip()}") from error
    ready.touch()
    return python


def _run(command: list[str | Path]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 -- our own
