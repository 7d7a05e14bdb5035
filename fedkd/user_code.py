"""Functions that the user's own modules hold: of which source they are, and what they raise."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from fedkd.errors import FedKDError, NotAllowedError, UserCodeError, raise_exhaustion

_OURS = ("fedkd", "strategies", "clients")
"""Packages whose text is in every cache key already: see :data:`fedkd.util.cache.CODE`."""
_LIBRARIES = tuple({Path(sysconfig.get_path(place)) for place in ("stdlib", "platstdlib")})
_ABSENT = "absent"

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
_allowed: ContextVar[frozenset[str] | None] = ContextVar("allowed", default=None)
"""The user's own names that may be imported here; None for all."""


@contextmanager
def importing_only(names: Collection[str]) -> Iterator[None]:
    """Let the block, in this thread, import no functions of a user's own but those in ``names``.

    A deployed silo reads studies that others wrote: a name in them is code of their choice.
    """
    token = _allowed.set(frozenset(names))
    try:
        yield
    finally:
        _allowed.reset(token)


def check_allowed(kind: str, name: str) -> None:
    """Refuse to import what :func:`importing_only` does not allow."""
    allowed = _allowed.get()
    if allowed is not None and name not in allowed:
        raise NotAllowedError(
            f"the study's {kind} {name} is code that the silo would import, and allow in its "
            "silo.yaml does not name it"
        )


@contextmanager
def calling(kind: str, name: str) -> Iterator[None]:
    """Blame what the block raises on the user's function that it calls, ``weighting NAME`` or such.

    Raises:
        UserCodeError: the block raised anything but an error that fedkd foresaw or a lack of
            memory, files or threads.
    """
    try:
        yield
    except FedKDError:
        raise
    except Exception as error:
        raise_exhaustion(error)
        raise UserCodeError(f"{kind} {name} raised {describe(error)}") from error


def find_mismatch(
    function: Callable[..., Any], args: Sequence[Any], options: Mapping[str, Any]
) -> str:
    """Return in a phrase why a function does not take these arguments, or an empty string."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a few classes in C
        return ""
    try:
        signature.bind(*args, **options)
    except TypeError as error:
        code = getattr(inspect.unwrap(function), "__code__", None)
        place = f" ({Path(code.co_filename).name}, line {code.co_firstlineno})" if code else ""
        return f"does not fit its call: {error}; it takes {signature}{place}"
    return ""


def describe(error: Exception) -> str:
    """Return an exception's type and text, with the file and line of the user's own code.

    A call with wrong arguments fails before any line of it runs.
    """
    frames = traceback.extract_tb(error.__traceback__)
    foreign = [frame for frame in frames if not _is_ours(Path(frame.filename))]
    users = [frame for frame in foreign if is_users(frame.filename)]
    place = ""
    if foreign:
        last = (users or foreign)[-1]
        place = f" ({Path(last.filename).name}, line {last.lineno})"
    return f"{type(error).__name__}: {error}{place}"


def fingerprint(function: Callable[..., Any]) -> str:
    """Hash the source on which a user's function depends, as far as its text tells.

    That is its module, or the whole top-level package of it, and in the same way whatever these
    import by name, within functions too, that is neither installed nor of Python or fedkd. What a
    computed name imports (``importlib.import_module``) and files that are read are not seen.
    """
    name = inspect.unwrap(function).__module__.partition(".")[0]
    files = _find_sources(name)
    digest = hashlib.sha256()
    if not files:  # typed into an interpreter
        digest.update(_typed(function).encode())
    for key in sorted(files):
        digest.update(f"{key}\0{_hash(*_version(files[key]))}\0".encode())
    return digest.hexdigest()


def hash_files(paths: Sequence[str]) -> str:
    """Hash the content of files, in this order; one that is absent counts as that."""
    hashes = [_hash(*_version(Path(p))) if Path(p).is_file() else _ABSENT for p in paths]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _find_sources(first: str) -> dict[str, Path]:
    """Return the source files of a top-level module or package, and of those that it imports.

    The text of the imports is read instead of ``sys.modules``, so that all processes find the same,
    whatever each of them has loaded.
    """
    found: dict[str, Path] = {}
    waiting, seen = [first], set(_OURS)
    while waiting:
        top = waiting.pop()
        if top in seen:
            continue
        seen.add(top)
        files = _files_of(top, installed=top == first)
        found |= files
        for path in files.values():
            if path.suffix == ".py" and is_users(str(path)):
                waiting += _imports(*_version(path))
    return found


def _files_of(top: str, *, installed: bool) -> dict[str, Path]:
    """Return the file of a top-level module, or every Python file of a package.

    Of what is installed there are none unless that is asked for: PyTorch has thousands.
    """
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # __main__ has none
        spec = None
    if spec is not None and spec.submodule_search_locations:
        places = spec.submodule_search_locations
        return dict(_walk(top, [Path(each) for each in places if installed or is_users(each)]))
    origin = spec.origin if spec else getattr(sys.modules.get(top), "__file__", None)
    if not origin or not Path(origin).is_file() or not (installed or is_users(origin)):
        return {}
    return {top: Path(origin)}


def _walk(top: str, folders: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    for folder in folders:
        for here, below, names in os.walk(folder):
            below[:] = [name for name in below if not name.startswith((".", "__pycache__"))]
            for name in names:
                if name.endswith(".py"):
                    path = Path(here) / name
                    yield f"{top}/{path.relative_to(folder)}", path


def is_users(filename: str) -> bool:
    """Whether a file is neither installed nor of Python or fedkd."""
    path = Path(filename)
    if not path.is_absolute() or {"site-packages", "dist-packages"} & set(path.parts):
        return False
    return not _is_ours(path) and not any(path.is_relative_to(place) for place in _LIBRARIES)


def _is_ours(path: Path) -> bool:
    top = Path(__file__).parent.parent
    return any(path.is_relative_to(top / room) for room in _OURS)


def _typed(function: Callable[..., Any]) -> str:
    try:
        return inspect.getsource(inspect.unwrap(function))
    except (OSError, TypeError):
        return ""


def _version(path: Path) -> tuple[Path, int, int]:
    """Identify a file's state, so that it is read once and after every edit."""
    status = path.stat()
    return path, status.st_mtime_ns, status.st_size


@lru_cache(maxsize=4096)
def _hash(path: Path, changed: int, size: int) -> str:  # noqa: ARG001 -- they are the cache's key
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=4096)
def _imports(path: Path, changed: int, size: int) -> tuple[str, ...]:  # noqa: ARG001 -- as above
    """Return the top-level names that a file imports from outside its own package."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return ()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return tuple(sorted({name.partition(".")[0] for name in names}))


METHOD_NEEDS = ("labels", "models")
"""Labels of the transfer set; the teachers' models, of which predictions do not suffice."""

METHOD_SETTINGS = (
    *("temperature", "weight", "weighting", "pooling"),
    *("mixup", "mixed_inputs", "sequence"),
    *("label_smoothing", "class_weights", "augment"),
)
"""Keys of a study's consolidation that some methods use and others do not."""

LOSS_SETTINGS = ("label_smoothing", "class_weights")
"""Keys of a study's rounds that some local losses use and others do not."""


@dataclass(frozen=True)
class MethodSpec:
    """What a distillation method or local loss needs, and which settings it uses.

    Attributes:
        needs: of :data:`METHOD_NEEDS`; a study that does not have them is refused.
        uses: of :data:`METHOD_SETTINGS`, for a local loss of :data:`LOSS_SETTINGS`; a study that
            changes another of them is refused.

    Raises:
        ValueError: one of the names is not known.
    """

    needs: Collection[str] = ()
    uses: Collection[str] = ()

    def __post_init__(self) -> None:
        for names, known in ((self.needs, METHOD_NEEDS), (self.uses, METHOD_SETTINGS)):
            for name in names:
                if name not in known:
                    raise ValueError(f"a method declares {name!r}, not one of {', '.join(known)}")


def method(
    *, needs: Collection[str] = (), uses: Collection[str] = ()
) -> Callable[[Decorated], Decorated]:
    """Return a decorator that declares the :class:`MethodSpec` of a user's own method."""
    spec = MethodSpec(frozenset(needs), frozenset(uses))

    def declare(function: Decorated) -> Decorated:
        function.__dict__["method_spec"] = spec
        return function

    return declare


def local_loss(*, uses: Collection[str]) -> Callable[[Decorated], Decorated]:
    """Return a decorator that declares which of :data:`LOSS_SETTINGS` a user's local loss uses.

    Raises:
        ValueError: one of the names is not known.
    """
    for name in uses:
        if name not in LOSS_SETTINGS:
            raise ValueError(
                f"a local loss declares {name!r}, not one of {', '.join(LOSS_SETTINGS)}"
            )
    return method(uses=uses)
