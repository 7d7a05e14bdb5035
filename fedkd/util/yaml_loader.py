"""YAML read defensively: plain values only, bounded, no key twice, numbers as YAML 1.2 has them.

A study is untrusted input. Tags are refused, and the size to which aliases expand is counted before
anything is built from them.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Any, NoReturn

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from fedkd.errors import UserError

MAX_CHARACTERS = 1 << 20
MAX_NODES = 100_000
MAX_DEPTH = 50
_MAX_DIGITS = 100
"""Of an integer: Python itself refuses to convert thousands, and no key means that many."""

_PREFIX = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?[0-9][0-9_]*\Z")
_FLOAT = re.compile(
    r"(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?[0-9]+[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
)
_BOOL = re.compile(
    r"(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)\Z"
)
_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
_RESOLVERS: tuple[tuple[str, re.Pattern[str], list[str]], ...] = (
    ("bool", _BOOL, list("yYnNtTfFoO")),
    ("null", _NULL, ["~", "n", "N", ""]),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+0123456789.")),
    ("merge", re.compile(r"<<\Z"), ["<"]),
)

_IN_PLAIN_WORDS = (
    ("found character '\\t'", "a tab cannot stand here in YAML; use spaces"),
    (
        "mapping values are not allowed here",
        "a ':' is not allowed here; check the indentation, or put the text in quotes",
    ),
    ("expected <block end>", "this does not fit what is above it; check the indentation"),
    ("found unexpected end of stream", "the text ends inside a quoted value"),
    ("but found another document", "a second document begins here; a study is one document"),
    ("could not find expected ':'", "a ':' is missing after the key above"),
)
"""How PyYAML's problems begin, and what a reader who never saw a YAML grammar understands."""


def read_text(path: Path, what: str) -> str:
    """Read a text file of bounded size; a pipe or device would have no end.

    Raises:
        UserError: it cannot be read, or is no text in UTF-8.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UserError(f"{path}: is a folder; name the {what} file in it")
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path}: is not a regular file")
        with path.open("rb") as file:
            content = file.read(MAX_CHARACTERS + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read: {reason}") from None
    if len(content) > MAX_CHARACTERS:
        raise UserError(f"{path}: is larger than 1 MiB, too large for a {what}")
    if b"\0" in content:
        raise UserError(f"{path}: is a binary file, not a {what} in YAML")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: line {line} is not UTF-8 text; save it as UTF-8") from None


def load_yaml(text: str, *, origin: str) -> Any:
    """Return the plain value that ``text`` holds: mappings with text keys, lists, scalars.

    JSON is valid here too. Dates, octal and base-60 numbers of YAML 1.1 stay text.

    Raises:
        UserError: it is not valid YAML, is too large, or contains a duplicate key, a tag or a
            key that is not text; the error names line and column.
    """
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{origin}: longer than {MAX_CHARACTERS} characters, too long for a study")
    try:
        return _PlainLoader(text).get_single_data()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = f"U+{ord(text[error.position]):04X}"
        message = f"line {line}: the character {code} is not allowed; is this a text file?"
    except yaml.MarkedYAMLError as error:
        message = _describe(error)
    except (ValueError, OverflowError):
        # PyYAML's scanner lets these through for "\UFFFFFFFF" and for endless version numbers.
        message = "cannot be read as YAML: a number or an escaped character is out of range"
    raise UserError(f"{origin}: {message}")


def dump_yaml(value: Any) -> str:
    """Return ``value`` as YAML text that :func:`load_yaml` reads back to an equal value."""
    text: str = yaml.dump(
        value,
        Dumper=_PlainDumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=None,
        width=100,
    )
    return text


class _PlainLoader(yaml.SafeLoader):
    """A SafeLoader that counts, and knows neither tags nor duplicate keys."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._num_nodes = 0
        self._extents: dict[Node, tuple[int, int]] = {}

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """Compose one node; refuse what is too deep, too large, tagged or refers to itself."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if tag := getattr(event, "tag", None):
            shown = tag.replace(_PREFIX, "!!")
            _refuse(f"the tag {shown} has no place in a study", event.start_mark)
        self._num_nodes += 1
        self._depth += 1
        if self._depth > MAX_DEPTH:
            _refuse(f"nested more than {MAX_DEPTH} levels deep", event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return None
        if isinstance(event, yaml.AliasEvent):
            if node not in self._extents:
                _refuse(f"the anchor {event.anchor!r} contains itself", event.start_mark)
        else:
            self._extents[node] = self._measure(node)
        return node

    def _measure(self, node: Node) -> tuple[int, int]:
        """Return how many nodes this one expands to and how deep, each alias counted in full."""
        children: list[Node] = []
        if isinstance(node, SequenceNode):
            children = node.value
        elif isinstance(node, MappingNode):
            children = [child for pair in node.value for child in pair]
        extents = [self._extents[child] for child in children]
        num_nodes = 1 + sum(extent[0] for extent in extents)
        depth = 1 + max((extent[1] for extent in extents), default=0)
        if max(num_nodes, self._num_nodes) > MAX_NODES:
            _refuse(f"expands to more than {MAX_NODES} values", node.start_mark)
        if depth > MAX_DEPTH:
            _refuse(f"nested more than {MAX_DEPTH} levels deep", node.start_mark)
        return num_nodes, depth

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        """Compose a mapping; refuse a key that stands twice or is no text.

        Here rather than when it is constructed: merge keys (``<<``) rewrite the node by then.
        """
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                _refuse("a key must be text, not a list or a mapping", key.start_mark)
            if key.tag not in (f"{_PREFIX}str", f"{_PREFIX}merge"):
                shown = f"the key {key.value} must be text; put it in quotes"
                _refuse(shown if key.value else "a key is missing before ':'", key.start_mark)
            if key.value in lines:
                first = lines[key.value]
                _refuse(
                    f"the key {key.value!r} appears twice, first on line {first}", key.start_mark
                )
            lines[key.value] = key.start_mark.line + 1
        return node

    def construct_plain_int(self, node: ScalarNode) -> int:
        """Read decimal digits, leading zeros and underscores included."""
        digits = node.value.replace("_", "")
        if len(digits) > _MAX_DIGITS:
            _refuse(f"a number of {len(digits)} digits is too long", node.start_mark)
        return int(digits)

    def construct_plain_str(self, node: ScalarNode) -> str:
        """Join the surrogate pairs as which JSON escapes characters beyond U+FFFF."""
        try:
            text: str = node.value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            _refuse("half of a surrogate pair is no character", node.start_mark)
        return text


def _refuse(problem: str, mark: Any) -> NoReturn:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _describe(error: yaml.MarkedYAMLError) -> str:
    """Return a YAML error as one sentence with its place."""
    problem = " ".join(str(error.problem or error.context or "not YAML").split())
    for start, plain in _IN_PLAIN_WORDS:
        if problem.startswith(start):
            problem = plain
            break
    mark = error.problem_mark or error.context_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem


class _PlainDumper(yaml.SafeDumper):
    """A SafeDumper that also quotes text which only the loader above would take for a number."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's signature
        """Write everything out: a study that is read by people repeats itself."""
        return True

    def represent_plain_str(self, text: str) -> ScalarNode:
        """Write text in double quotes, hence escaped, where YAML would fold what is in it."""
        style = None if text.isprintable() else '"'
        return self.represent_scalar(f"{_PREFIX}str", text, style=style)


_PlainLoader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in _RESOLVERS:
    _PlainLoader.add_implicit_resolver(f"{_PREFIX}{_name}", _pattern, _first)
    _PlainDumper.add_implicit_resolver(f"{_PREFIX}{_name}", _pattern, _first)
_PlainLoader.add_constructor(f"{_PREFIX}int", _PlainLoader.construct_plain_int)
_PlainLoader.add_constructor(f"{_PREFIX}str", _PlainLoader.construct_plain_str)
_PlainDumper.add_representer(str, _PlainDumper.represent_plain_str)
