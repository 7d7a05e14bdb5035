"""The hash of the code that runs here: of every Python file of the bundle, or of the packages."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

PACKAGES = ("clients", "fedkd", "strategies")
"""What a bundle contains."""


@lru_cache(maxsize=1)
def bundle_hash() -> str:
    """Return the SHA-256 of all Python files of :data:`PACKAGES`, as imported here.

    It is the same in a bundle, a checkout and an installed package with the same code.
    """
    return hash_packages(Path(__file__).parents[2])


def hash_packages(top: Path) -> str:
    """Return the hash of :data:`PACKAGES` in a folder.

    Args:
        top: the folder that contains the packages.
    """
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((top / package).rglob("*.py")):
            content = hashlib.sha256(path.read_bytes()).digest()
            digest.update(path.relative_to(top).as_posix().encode() + b"\0" + content)
    return digest.hexdigest()
