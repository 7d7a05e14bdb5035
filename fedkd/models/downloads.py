"""Whether pre-trained weights that are not on this host may be downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from fedkd.errors import UserError

_allowed: ContextVar[bool] = ContextVar("downloads_allowed", default=True)


@contextmanager
def local_files_only(*, enabled: bool = True) -> Iterator[None]:
    """Let the block, in this thread, download no weights.

    A deployed silo reads studies that others wrote: a name in them is a file of their choice.
    """
    token = _allowed.set(not enabled)
    try:
        yield
    finally:
        _allowed.reset(token)


def check_download(what: str, remedy: str) -> None:
    """Refuse a download where :func:`local_files_only` does."""
    if not _allowed.get():
        raise UserError(
            f"{what} is not on this host, and silo.yaml allows no download; {remedy}, or set "
            "download: true in silo.yaml"
        )
