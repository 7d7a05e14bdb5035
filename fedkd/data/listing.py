"""Listing of a folder of pictures: its parts, its classes, their files, and what is left out."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fedkd.data.picture_reader import ENDINGS
from fedkd.errors import UserError

TRAIN, TEST, VALIDATION = "train", "test", "validation"

_WORDS = {
    TRAIN: "train|training|trn",
    TEST: "test|testing|tst",
    VALIDATION: "val|valid|validation|dev|eval|evaluation",
}
_FILLER = "(set|data|dataset|image|images|imgs|pictures|split|seg)*"
_PARTS = {part: re.compile(f"{_FILLER}({words}){_FILLER}") for part, words in _WORDS.items()}
_SYSTEM = frozenset(
    {
        *("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information"),
        *("lost+found", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini"),
    }
)
"""Names, in lower case, that systems and programs leave beside data."""
_NAMED = 5


@dataclass
class Listing:
    """The pictures of one part.

    Attributes:
        classes: names of the class folders, sorted.
        samples: path and label of every picture, in the order of torchvision's ImageFolder.
        skipped: number of files that are not pictures, by how their names end.
        beside: number of pictures that lie in no class folder.
    """

    classes: tuple[str, ...]
    samples: list[tuple[str, int]] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    beside: int = 0

    def warnings(self) -> Iterator[str]:
        """Yield a sentence on each kind of file that is left out."""
        if self.skipped:
            yield f"files that are not read as pictures: {_endings(self.skipped)}"
        if self.beside:
            yield f"pictures that lie beside the class folders and are left out: {self.beside}"


def find_parts(path: Path) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Distinguish a folder of classes from one of parts such as ``train`` and ``test``.

    Part names may have any case and spelling. A folder of such a name that directly holds pictures
    is a class, if there are folders of other names.

    Returns:
        The folders of the training and of the test part, or only the former: ``path`` itself; and
        sentences on folders that are left out.

    Raises:
        UserError: there are parts, but not one of each that is needed.
    """
    if not path.is_dir():
        raise UserError(f"there is no folder {path}; a relative path is seen from {Path.cwd()}")
    folders = _folders(path)
    parts: dict[str, list[str]] = {}
    for name in folders:
        if (part := _part_of(name)) is not None:
            parts.setdefault(part, []).append(name)
    named = [name for names in parts.values() for name in names]
    if len(parts) < 2 and len(named) < len(folders):
        named = [name for name in named if not any(map(_is_picture, (path / name).iterdir()))]
    if not named:
        return {TRAIN: path}, ()
    _check_parts(path, parts, folders)
    left_out = [n for n in folders if n not in (parts[TRAIN][0], parts[TEST][0])]
    note = (
        f"{_names(left_out)} beside {parts[TRAIN][0]} and {parts[TEST][0]} in {path} is left out; "
        "validation images are drawn from the training images"
    )
    return {part: path / parts[part][0] for part in (TRAIN, TEST)}, (note,) if left_out else ()


def list_pictures(path: Path) -> Listing:
    """List the pictures below the class folders of ``path``, hidden files and folders left out.

    Raises:
        UserError: there are no class folders, some hold no pictures, or a link puts a folder into
            two classes.
    """
    classes = tuple(_folders(path))
    if not classes:
        raise UserError(f"{path} needs one folder of images per class, but has no folders")
    if strange := [name for name in classes if not name.isprintable()]:
        listed = ", ".join(ascii(name) for name in strange[:_NAMED])
        raise UserError(
            f"{path} has folders whose names are not printable text: {listed}; rename them"
        )
    listing = Listing(classes)
    empty = []
    owners = {os.path.realpath(path): path}
    for label, name in enumerate(classes):
        before = len(listing.samples)
        folders = _walk(path / name)
        _check_links(owners, path / name, folders)
        for file in _files(folders):
            _sort_in(listing, file, label)
        if len(listing.samples) == before:
            empty.append(name)
    if empty:
        kinds = f" ({_endings(listing.skipped)} are not read)" if listing.skipped else ""
        raise UserError(
            f"{path} has folders without pictures: {_names(empty)}{kinds}; every folder in it is a "
            "class, so remove them or add pictures"
        )
    listing.beside = sum(_is_picture(entry) for entry in path.iterdir())
    return listing


def list_flat(path: Path) -> Listing | None:
    """List the pictures of a folder without folders, labelled -1; None where it is another one."""
    if not path.is_dir() or _folders(path):
        return None
    listing = Listing(())
    for file in _files(_walk(path)):
        _sort_in(listing, file, -1)
    return listing if listing.samples else None


def is_hidden(name: str) -> bool:
    """Whether a file or folder is no data: hidden, or left by a system or a program."""
    return name.startswith(".") or name.casefold() in _SYSTEM


def _sort_in(listing: Listing, file: str, label: int) -> None:
    path = Path(file)
    is_special = not path.is_file() and path.exists()  # to open a named pipe would wait for ever
    if path.suffix.lower() in ENDINGS and not is_special:
        listing.samples.append((file, label))
    else:
        listing.skipped[path.suffix.lower() or "without an ending"] += 1


def walk(folder: Path) -> Iterator[str]:
    """Yield the files below a folder and the folders that hold none, hidden ones left out."""
    for root, files in _walk(folder):
        for name in files:
            yield os.path.join(root, name)  # noqa: PTH118 -- a path for each of very many files
        if not files:
            yield root


def _files(folders: list[tuple[str, list[str]]]) -> Iterator[str]:
    """Yield the files of folders, folder by folder, both in the order of their names."""
    for root, files in folders:
        for name in files:
            yield os.path.join(root, name)  # noqa: PTH118 -- likewise


def _walk(folder: Path) -> list[tuple[str, list[str]]]:
    """Return every folder below one, with the names of its files, both in order."""

    def fail(error: OSError) -> None:
        raise error

    visited, seen = [], set()
    for root, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(root)
        # A link to a folder above would never end.
        folders[:] = [] if real in seen else [name for name in folders if not is_hidden(name)]
        visited += [] if real in seen else [(root, sorted(n for n in files if not is_hidden(n)))]
        seen.add(real)
    return sorted(visited)


def _check_links(
    owners: dict[str, Path], owner: Path, folders: list[tuple[str, list[str]]]
) -> None:
    """Refuse links by which the pictures of one folder would be of two classes."""
    for root, _ in folders:
        first = owners.setdefault(os.path.realpath(root), owner)
        if first != owner:
            raise UserError(
                f"{root} is a link to a folder that belongs to {first} too, so its pictures would "
                "be of two classes; remove the link"
            )


def _folders(path: Path) -> list[str]:
    return sorted(e.name for e in os.scandir(path) if e.is_dir() and not is_hidden(e.name))


def _part_of(name: str) -> str | None:
    letters = re.sub("[^a-z]", "", name.casefold())
    return next((part for part, words in _PARTS.items() if words.fullmatch(letters)), None)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and not is_hidden(path.name) and not path.is_dir()


def _check_parts(path: Path, parts: dict[str, list[str]], folders: list[str]) -> None:
    for part in (TRAIN, TEST):
        if len(parts.get(part, ())) > 1:
            raise UserError(
                f"{path} has more than one folder for the {part} part: {_names(parts[part])}; "
                "leave one"
            )
    if TRAIN in parts and TEST in parts:
        return
    hint = f"; rename {parts[VALIDATION][0]} to test to test on it" if VALIDATION in parts else ""
    only = "only the folders" if len(folders) == sum(map(len, parts.values())) else "the folders"
    raise UserError(
        f"{path} has {only} {', '.join(folders)}: a test set needs both train and test{hint}; "
        "without one, name the folder of the classes itself"
    )


def _endings(skipped: Counter[str]) -> str:
    return ", ".join(f"{count} {ending}" for ending, count in sorted(skipped.items()))


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
