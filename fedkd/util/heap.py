"""The heap of the C library, which keeps much of what a large model leaves free."""

from __future__ import annotations

import contextlib
import ctypes

THRESHOLD = "MALLOC_MMAP_THRESHOLD_"
"""Variable of glibc: blocks of so many bytes go back to the system once they are freed."""
PART_BYTES = "4194304"
"""Less than the 5 MB of the parts in which Flower sends a model; its programs' threads keep these
otherwise."""


def trim_heap() -> None:
    """Give free memory back to the system, where that is glibc's to do."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
