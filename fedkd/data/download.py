"""Files of public data sets: looked for on this machine first, then downloaded."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedkd.errors import UserError, raise_exhaustion
from fedkd.util.cache import cache_root
from fedkd.util.places import expand, user_cache

_BLOCK = 1 << 20
_MAX_DOWNLOAD = 4 << 30
_TIMEOUT = 60.0
"""Seconds without an answer after which a server is given up."""


Seen = dict[str, tuple[int, int] | None]
"""Size in bytes and time of change in nanoseconds of every file looked for; None: not there."""

_SEEN: ContextVar[Seen | None] = ContextVar("seen", default=None)


@contextmanager
def noting_files() -> Iterator[Seen]:
    """Yield a note of all files that the block looks for: while it holds, so does what was read."""
    seen: Seen = {}
    token = _SEEN.set(seen)
    try:
        yield seen
    finally:
        _SEEN.reset(token)


def look_at(path: Path) -> tuple[int, int] | None:
    """Return a file's size and time of change, or None where there is no such file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


def _is_file(path: Path) -> bool:
    """Look for a file, and note what was found."""
    found = look_at(path)
    if (seen := _SEEN.get()) is not None:
        seen[str(path.absolute())] = found
    return found is not None


@dataclass(frozen=True)
class PublicFile:
    """A file that the publisher of a data set, or a mirror, offers for download.

    Attributes:
        urls: addresses, tried in this order.
        md5: of the file, in hexadecimal.
    """

    name: str
    urls: tuple[str, ...]
    md5: str


def data_directory() -> Path:
    """The folder of downloaded data sets: ``FEDKD_DATA_DIR``, else in the user's cache folder.

    Raises:
        UserError: neither is known, nor another folder for the cache.
    """
    if chosen := os.environ.get("FEDKD_DATA_DIR"):
        return expand(chosen)
    try:
        return user_cache() / "data"
    except UserError:
        return cache_root() / "data"


def find_file(
    file: PublicFile,
    folders: tuple[Path, ...],
    *,
    advice: str = "",
    verify: bool = False,
    unpacked: bool = False,
) -> Path:
    """Return where a file lies, after downloading it into the first folder if it lies nowhere.

    Args:
        file: the file.
        folders: where to look, in this order.
        advice: a clause that ends the error message.
        verify: whether a file found must have the MD5 of the published one; a download must always.
        unpacked: whether a file without the ending ``.gz`` does as well.

    Raises:
        UserError: the file is neither here nor downloadable, or has another hash.
    """
    names = [file.name, file.name.removesuffix(".gz")] if unpacked else [file.name]
    for path in (folder / name for folder in folders for name in names):
        if _is_file(path):
            if verify and (found := _md5_of(path)) != file.md5:
                raise UserError(
                    f"{path} is not the published file: its MD5 is {found}, not {file.md5}; "
                    "delete it to have it downloaded again"
                )
            return path
    target = folders[0] / file.name
    problem = _download(file, target)
    if problem:
        looked = ", ".join(str(folder) for folder in folders)
        raise UserError(
            f"{file.name} is in none of the folders {looked}, and downloading it failed "
            f"({problem}); put it into one of them, or set FEDKD_DATA_DIR to where your data sets "
            f"are{advice and f'; {advice}'}"
        )
    _is_file(target)
    return target


def read_members(path: Path, wanted: Mapping[str, int]) -> dict[str, bytes]:
    """Read files out of a tar archive compressed by gzip, without unpacking it to disk.

    ``wanted`` are names within the archive, to the most bytes that each may have.

    Raises:
        UserError: the archive is damaged, or a file is missing or too large.
    """
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                wants = name in wanted and member.isfile()
                stream = archive.extractfile(member) if wants else None
                if stream is not None:
                    contents[name] = _bounded(stream.read(wanted[name] + 1), wanted[name], name)
                if len(contents) == len(wanted):
                    break
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise_exhaustion(error)
        raise UserError(f"{path} is damaged ({error}); delete it and get it again") from error
    if missing := sorted(wanted.keys() - contents.keys()):
        raise UserError(f"{path} does not contain {', '.join(missing)}; get the archive again")
    return contents


def read_files(folder: Path, wanted: Mapping[str, int]) -> dict[str, bytes] | None:
    """Read files below a folder, or return None if not all are there.

    ``wanted`` is as in :func:`read_members`.

    Raises:
        UserError: a file is too large or cannot be read.
    """
    there = [_is_file(folder / name) for name in wanted]  # all are looked for, and so noted
    if not all(there):
        return None
    contents = {}
    for name, most in wanted.items():
        path = folder / name
        try:
            with path.open("rb") as stream:
                contents[name] = _bounded(stream.read(most + 1), most, str(path))
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from error
    return contents


def _bounded(content: bytes, most: int, what: str) -> bytes:
    if len(content) > most:
        raise UserError(f"{what} has more than the {most} bytes that it can have; get it again")
    return content


def _download(file: PublicFile, target: Path) -> str:
    """Download a file; return what went wrong at each address, empty on success."""
    import pooch

    pooch.get_logger().setLevel("WARNING")
    problems = []
    for url in file.urls:
        try:
            pooch.retrieve(
                url, f"md5:{file.md5}", fname=target.name, path=target.parent, downloader=_save
            )
        except (OSError, ValueError) as error:
            problems.append(f"{url}: {_first_cause(error)}")
        else:
            return ""
    return "; ".join(problems)


def _save(url: str, path: str, pooch: object) -> None:
    """Download ``url`` to ``path``, as a downloader of pooch's.

    Raises:
        OSError: the server does not answer or sends an error, or the disk is full.
        ValueError: it sends more than :data:`_MAX_DOWNLOAD` bytes.
    """
    from pooch import HTTPDownloader

    headers = {"User-Agent": "fedkd", "Accept-Encoding": "identity"}
    fetch = HTTPDownloader(chunk_size=_BLOCK, timeout=_TIMEOUT, headers=headers)
    with _BoundedFile(path, "wb") as file:
        fetch(url, file, pooch)
        os.fsync(file.fileno())
    Path(path).chmod(0o644)


class _BoundedFile(io.FileIO):
    """A file that refuses to grow beyond :data:`_MAX_DOWNLOAD` bytes."""

    def write(self, block: Any) -> int:
        if self.tell() + len(block) > _MAX_DOWNLOAD:
            raise ValueError(f"the server sent more than {_MAX_DOWNLOAD} bytes")
        return super().write(block)


def _first_cause(error: BaseException) -> str:
    """Return what the first error of a chain says, in a sentence: requests wraps the system's."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return str(error).partition(". ")[0] or type(error).__name__


def _md5_of(path: Path) -> str:
    """Return the MD5 of a file: what publishers give, and enough to find broken downloads."""
    import pooch

    try:
        digest: str = pooch.file_hash(str(path), alg="md5")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    return digest
