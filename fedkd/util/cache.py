"""The cache: results keyed by a hash of everything that determines them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedkd.errors import UserError
from fedkd.util.places import expand, user_cache

CODE = (
    "clients",
    "strategies",
    "fedkd/config",
    "fedkd/data",
    "fedkd/distillation",
    "fedkd/engines/base.py",
    "fedkd/engines/inline.py",
    "fedkd/federation",
    "fedkd/messages",
    "fedkd/models",
    "fedkd/pairs",
    "fedkd/registry.py",
    "fedkd/results/diagnostics.py",
    "fedkd/results/record.py",
    "fedkd/training",
    "fedkd/tuning",
    "fedkd/user_code.py",
    "fedkd/util/name_registry.py",
    "fedkd/util/names.py",
    "fedkd/util/parallel.py",
    "fedkd/util/random_ops.py",
    "fedkd/util/seeding.py",
    "fedkd/util/yaml_loader.py",
)
"""Files and folders of Python files on which results depend.

Left out is what shows, explains, moves or keeps results: command line, report, trackers, locks,
real hosts. A test holds this list against all that a run imports.
"""


_DEFAULT_GIGABYTES = 50
_MOST_GIGABYTES = 1e9


def cache_root() -> Path:
    """Return ``$FEDKD_CACHE_DIR``, or ``fedkd`` in the user's cache folder.

    Raises:
        UserError: neither is known.
    """
    chosen = os.environ.get("FEDKD_CACHE_DIR")
    return expand(chosen).absolute() if chosen else user_cache()


def disk_budget() -> int:
    """Return the most bytes of decoded data and features: ``$FEDKD_CACHE_GB``, else 50 GB."""
    text = os.environ.get("FEDKD_CACHE_GB", "").strip()
    try:
        gigabytes = float(text or _DEFAULT_GIGABYTES)
    except ValueError:
        gigabytes = math.nan
    if not 0 <= gigabytes < _MOST_GIGABYTES:
        raise UserError(
            f"FEDKD_CACHE_GB: {text!r} is not a valid number of gigabytes; set it to one such as "
            f"{_DEFAULT_GIGABYTES}, or to 0 to keep none on disk"
        )
    return int(gigabytes * 1e9)


def check_cache_root() -> None:
    """Make the cache folder and try to write to it."""
    root = cache_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise UserError(
            f"the cache folder {root} cannot be used: {error.strerror}; set FEDKD_CACHE_DIR to "
            "one that can be written to"
        ) from error


def cache_key(parts: Mapping[str, Any]) -> str:
    """Return a hash of ``parts`` (JSON values), of this code and of what it computes with."""
    everything = {**parts, "environment": environment()}
    text = json.dumps(everything, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def installed(*packages: str) -> dict[str, str]:
    """Return the versions of installed packages, by their names."""
    return {package: _version(package) for package in packages}


@lru_cache
def _version(package: str) -> str:
    """Look a version up once in a process: what is installed is a search through many files."""
    return version(package)


@lru_cache(maxsize=1)
def environment() -> dict[str, str]:
    """Return the code hash and versions that results depend on."""
    return {
        "code": code_fingerprint(),
        **installed("torch", "numpy", "flwr", "flwr-datasets"),
        "processor": processor(),
    }


@lru_cache(maxsize=1)
def code_fingerprint() -> str:
    """Hash the text of :data:`CODE`, so that an edit of it misses the cache."""
    digest = hashlib.sha256()
    top = Path(__file__).parents[2]
    for path in code_files(top):
        digest.update(str(path.relative_to(top)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def code_files(top: Path) -> list[Path]:
    """Return every file of :data:`CODE`, below the folder that holds the packages."""
    files: list[Path] = []
    for name in CODE:
        path = top / name
        files += [path] if path.suffix == ".py" else sorted(path.rglob("*.py"))
    return files


def processor() -> str:
    """Name the processor type: kernels, and so the last bits, depend on it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
