"""What becomes of an exception at a simulated silo: whose it is, in words that cross processes.

Where silos are simulated by processes of their own, an exception comes back as text. A fault of
ours, or of the machine, must end the study there as it does in one process; it is not the silo's.
"""

from __future__ import annotations

import traceback

from fedkd.errors import FedKDError, RemoteError

FAILED = 2
"""Flower's error code for an exception in a ClientApp, the only one that is for apps."""
_MARK = "fedkd:"
_SILO, _FORESEEN, _FAULT = "silo", "foreseen", "fault"


def tell_silo(error: Exception) -> str:
    """Write what a silo of the user's own class raised: its reply counts as failed."""
    return _write(_SILO, f"{type(error).__name__}: {error}")


def tell(error: Exception, node: str = "") -> str:
    """Write what anything else raised: a sentence if it was foreseen, else its traceback.

    Args:
        error: what was raised.
        node: of a cluster on which it was raised, which may lack what others have.
    """
    if isinstance(error, FedKDError):
        return _write(_FORESEEN, f"on the node {node}: {error}" if node else str(error))
    return _write(_FAULT, "".join(traceback.format_exception(error)))


def read(reason: str) -> Exception | None:
    """Return what is to be raised for an error that came back; None for a failed reply.

    Whatever was not written here comes from the simulation itself, such as a worker that was lost.
    """
    kind, _, text = reason.removeprefix(_MARK).partition("\n")
    if not reason.startswith(_MARK):
        return RemoteError(f"a process of the simulation failed or was lost: {reason}")
    if kind == _SILO:
        return None
    return FedKDError(text) if kind == _FORESEEN else RemoteError(f"at a simulated silo:\n{text}")


def _write(kind: str, text: str) -> str:
    return f"{_MARK}{kind}\n{text}"
