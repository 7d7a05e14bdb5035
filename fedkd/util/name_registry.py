"""Names to functions that are imported when they are used, with the user's own among them."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

from fedkd import user_code
from fedkd.errors import UserError
from fedkd.suggestions import suggest
from fedkd.user_code import MethodSpec

OWN = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"
"""Pattern of a user's own name, ``package.module:function``."""


@dataclass(frozen=True)
class Prefix:
    """What names that begin with a prefix stand for.

    Attributes:
        target: the ``module:function`` that is given what follows the prefix.
        form: of what follows, for error messages.
        path: ``file`` or ``folder`` where what follows is the path of one.
    """

    target: str
    form: str
    path: Literal["file", "folder"] | None = None


class Registry(Mapping[str, str]):
    """Maps names to ``module:attribute``, which is imported when it is used.

    A name is an entry, a prefix with what follows it, or a function of the user's own as
    ``package.module:function``. The import is lazy so that reading a study needs no PyTorch.

    Args:
        kind: what the names stand for, for error messages.
        entries: name to ``module:attribute``.
        prefixes: prefix, colon included, to what it stands for. A name that begins with one is
            never a function of the user's own.
        own: the form of a user's own name, for error messages.
    """

    def __init__(
        self,
        kind: str,
        entries: Mapping[str, str],
        *,
        prefixes: Mapping[str, Prefix] | None = None,
        own: str = "package.module:function",
    ) -> None:
        self.kind = kind
        self.prefixes = dict(prefixes or {})
        self.own = own
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> str:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def split(self, name: str) -> tuple[Prefix | None, str]:
        """Return the prefix of a name, None if it has none, and the rest of the name."""
        for text, prefix in self.prefixes.items():
            if name.startswith(text):
                return prefix, name.removeprefix(text)
        return None, name

    def is_own(self, name: str) -> bool:
        """Whether a name has the form of a function of the user's own."""
        known = name in self._entries or self.split(name)[0] is not None
        return not known and re.fullmatch(OWN, name) is not None

    def check(self, name: str) -> str:
        """Return ``name``, or raise ValueError with the nearest valid one.

        Whether there is a user's own function, or what a prefix leads to, shows when it is loaded.
        """
        prefix, rest = self.split(name)
        if prefix and not rest:
            raise ValueError(f"{self.kind} {name!r} must be followed by {prefix.form}")
        if prefix or name in self._entries or self.is_own(name):
            return name
        forms = [f"{text}{prefix.form}" for text, prefix in self.prefixes.items()]
        known = ", ".join([*self._entries, *forms, self.own])
        raise ValueError(f"unknown {self.kind} {name!r}{suggest(name, self)}; known are {known}")

    def load(self, name: str) -> Callable[..., Any]:
        """Import and return what ``name`` stands for; of a prefix, the target.

        Raises:
            ValueError: the name is not valid.
            UserError: a function of the user's own cannot be imported, or may not be here.
        """
        prefix, _ = self.split(self.check(name))
        target = prefix.target if prefix else self._entries.get(name, name)
        module, _, attribute = target.partition(":")
        if self.is_own(name):
            user_code.check_allowed(self.kind, name)
        function: Callable[..., Any]
        with self.calling(name):
            try:
                place = importlib.import_module(module)
            except (ImportError, SyntaxError) as error:
                if not self.is_own(name):
                    raise
                raise UserError(
                    f"{self.kind} {name} cannot be imported: {error}; the module must be on "
                    "PYTHONPATH or in the folder where fedkd is started"
                ) from error
            if self.is_own(name) and not hasattr(place, attribute):
                raise UserError(
                    f"{self.kind} {name} cannot be imported: module {module!r} has no attribute "
                    f"{attribute!r}{suggest(attribute, vars(place))}"
                )
            function = getattr(place, attribute)
        if not callable(function):
            raise UserError(f"{self.kind} {name} is not a function or class")
        return function

    def call(self, name: str, *args: Any, **options: Any) -> Any:
        """Call what ``name`` stands for.

        Raises:
            UserError: it is a function of the user's own that does not take these arguments.
            UserCodeError: it is a function of the user's own and raised an exception.
        """
        self.check_call(name, *args, **options)
        with self.calling(name):
            return self.load(name)(*args, **options)

    def check_call(self, name: str, *args: Any, **options: Any) -> None:
        """Check that a function of the user's own takes these arguments, without calling it."""
        if not self.is_own(name):
            return
        if problem := user_code.find_mismatch(self.load(name), args, options):
            raise UserError(f"{self.kind} {name} {problem}")

    def calling(self, name: str) -> AbstractContextManager[None]:
        """Return a context for code of ``name``: what a user's own raises becomes an error of it.

        Raises:
            UserCodeError: on leaving the context; it names kind, name, file and line.
        """
        return user_code.calling(self.kind, name) if self.is_own(name) else nullcontext()

    def fingerprint(self, name: str) -> str:
        """Return what a name stands for, for cache keys; an edit of a user's code changes it."""
        return f"{name}@{user_code.fingerprint(self.load(name))}" if self.is_own(name) else name


class SpecRegistry(Registry):
    """A registry whose functions declare what they need and use: name to target and spec."""

    def __init__(self, kind: str, entries: Mapping[str, tuple[str, MethodSpec]]) -> None:
        super().__init__(kind, {name: entries[name][0] for name in entries})
        self._specs = {name: spec for name, (_, spec) in entries.items()}

    def spec(self, name: str) -> MethodSpec:
        """Return what a name needs and uses; nothing for a user's own that declares nothing."""
        if name in self._specs:
            return self._specs[name]
        spec = getattr(self.load(name), "method_spec", None)
        return spec if isinstance(spec, MethodSpec) else MethodSpec()
