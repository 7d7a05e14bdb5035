"""The hash of the code that runs here: of every Python file of the bundle, or of the packages."""

from __future__ import annotations

import hashlib
import tomllib
from functools import lru_cache
from pathlib import Path, PurePath

PACKAGES = ("clients", "fedkd", "strategies")
"""What a bundle contains."""
CLIENT_APP = "clients.client_app:app"
PROJECT_FILE = "pyproject.toml"
INSTALLED = "installed"
"""Stands for the hash of the code that is installed on the silo's host."""
PINNED = "FEDKD_PINNED_CODE"
"""Environment variable with the hash to which ``fedkd silo serve`` compares bundles."""


@lru_cache(maxsize=1)
def bundle_hash() -> str:
    """Return the SHA-256 of all Python files of :data:`PACKAGES`, as imported here.

    It is the same in a bundle, a checkout and an installed package with the same code.
    """
    return hash_packages(Path(__file__).parents[2])


def hash_packages(top: Path) -> str:
    """Return the hash of :data:`PACKAGES` in a folder."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((top / package).rglob("*.py")):
            content = hashlib.sha256(path.read_bytes()).digest()
            digest.update(path.relative_to(top).as_posix().encode() + b"\0" + content)
    return digest.hexdigest()


def find_code_problem(bundle: Path, pinned: str) -> str | None:
    """Return why a bundle is not the code that a silo's owner pinned; None if it is.

    Nothing of the bundle has been imported yet.
    """
    for path in sorted(bundle.rglob("*")):
        name = path.relative_to(bundle)
        if path.is_symlink() or (path.is_file() and not _belongs(name)):
            return f"it brings the file {name.as_posix()[:200]!r}"
    try:
        project = tomllib.loads((bundle / PROJECT_FILE).read_text(encoding="utf-8"))
        client_app = project["tool"]["flwr"]["app"]["components"]["clientapp"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {PROJECT_FILE} cannot be read"
    if client_app != CLIENT_APP:
        return f"its ClientApp is {client_app!r:.200}"
    found = hash_packages(bundle)
    return None if found == pinned else f"its hash is {found}, not {pinned}"


def _belongs(name: PurePath) -> bool:
    """Whether a bundle may have a file: code that is hashed, or what Flower adds."""
    if name.parts[0] in PACKAGES:
        # Python does not read compiled files there while PYTHONPYCACHEPREFIX is set.
        return name.suffix == ".py" or "__pycache__" in name.parts
    return name.as_posix() in (PROJECT_FILE, ".info/CONTENT")
