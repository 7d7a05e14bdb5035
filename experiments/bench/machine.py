"""The machine on which the bench runs, and its load."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedkd.util.cache import processor
from fedkd.util.parallel import available_cores

PACKAGES = ("torch", "flwr", "ray", "numpy")
AMX = "amx_bf16"
"""The flag of a processor that has AMX instructions for bf16 matrices."""
FLAGS = ("avx2", "avx512f", "avx512_bf16", AMX)


def describe() -> dict[str, Any]:
    """Return the properties of the machine that determine speed."""
    flags = _processor_flags()
    return {
        "processor": processor(),
        "cores": available_cores(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "load_before": os.getloadavg()[0],
    }


def _processor_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()
