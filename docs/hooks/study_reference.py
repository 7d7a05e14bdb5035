"""Generate the study file reference from its JSON schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from fedkd.config.study_file import study_schema

PAGE = "reference/study.md"
INTRODUCTION = """# Study file

A study is a YAML file of at most 1 MiB. Only `name`, `targets` and `arms` are required; `fedkd
validate STUDY` prints a study with every default. An unknown key and an invalid value are refused
before anything runs, with the key's path and the nearest valid name. Paths of files are relative to
the study file. On the command line `--set PATH=VALUE` sets one key, as in `--set rounds.lr=0.1` or
`--set arms.fedkd.consolidation.epochs=20`.

This page is generated from the [JSON schema](../how-to/editor.md) of study files.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page to the site."""
    files.append(File.generated(config, PAGE, content=render(study_schema())))
    return files


def render(schema: dict[str, Any]) -> str:
    """Return the page as Markdown."""
    return "\n".join([INTRODUCTION, *_section(schema, schema, path="", level=2)])


def _section(root: dict[str, Any], section: dict[str, Any], *, path: str, level: int) -> list[str]:
    """Describe one mapping in a table, then the mappings in it."""
    heading = f"`{path}`" if path else "The whole study"
    text = _sentence(section.get("description", ""))
    lines = [f"{'#' * min(level, 4)} {heading}", "", text, ""]
    lines += ["| key | takes | default | meaning |", "|---|---|---|---|"]
    below: list[str] = []
    required = section.get("required", [])
    for key, given in section["properties"].items():
        value = {**_resolve(root, given), **{k: v for k, v in given.items() if k != "$ref"}}
        inner = f"{path}.{key}" if path else key
        sections = list(_sections(root, value, inner))
        meaning = _sentence(value.get("description", "")) if not sections else ""
        takes = " or ".join(_links(sections) + _plain(root, value, sections))
        default = "required" if key in required else _default(given, sections)
        lines.append(f"| `{key}` | {takes} | {default} | {meaning} |")
        for name, each in sections:
            below += ["", *_section(root, each, path=name, level=level + (1 if path else 0))]
    return [*lines, *below]


def _sections(
    root: dict[str, Any], value: dict[str, Any], path: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the mappings with keys of their own that a path can have."""
    if "properties" in value:
        yield path, value
    elif isinstance(value.get("additionalProperties"), dict):
        yield from _sections(root, _resolve(root, value["additionalProperties"]), f"{path}.NAME")
    elif "patternProperties" in value:
        for each in value["patternProperties"].values():
            yield from _sections(root, _resolve(root, each), f"{path}.NAME")
    else:
        for choice in value.get("oneOf", value.get("anyOf", [])):
            resolved = _resolve(root, choice)
            scheme = resolved.get("properties", {}).get("scheme", {})
            scheme = scheme.get("const", "".join(scheme.get("examples", [])))
            yield from _sections(root, resolved, f"{path} ({scheme})" if scheme else path)


def _links(sections: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Link to the sections below; several alternatives are named by their scheme."""
    several = len(sections) > 1
    return [
        f"[{name.partition('(')[2].rstrip(')') if several else 'a section'}](#{_anchor(name)})"
        for name, _ in sections
    ]


def _plain(root: dict[str, Any], value: dict[str, Any], sections: list[Any]) -> list[str]:
    """Describe the allowed values that are not mappings."""
    if not sections:
        return [_takes(root, value)]
    choices = [_resolve(root, c) for c in value.get("oneOf", value.get("anyOf", []))]
    return [_takes(root, c) for c in choices if c.get("type") not in ("object", "null")]


def _resolve(root: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in value:
        target: dict[str, Any] = root["$defs"][value["$ref"].rpartition("/")[2]]
        return target
    return value


def _takes(root: dict[str, Any], value: dict[str, Any]) -> str:
    """Describe in words the values that a key takes."""
    value = {**_resolve(root, value), **value}
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value["enum"])
    if choices := value.get("oneOf", value.get("anyOf")):
        return " or ".join(_takes(root, c) for c in choices if c.get("type") != "null")
    kind = value.get("type")
    if kind == "array":
        return f"list of: {_takes(root, value['items'])}"
    if kind == "object":
        inner = value.get("additionalProperties")
        return "mapping of names" + (f" to: {_takes(root, inner)}" if inner else "")
    if kind == "boolean":
        return "`true`, `false`"
    if kind == "string":
        examples = value.get("examples", [])
        return "text" + (", such as " + ", ".join(f"`{e}`" for e in examples) if examples else "")
    if kind is None:
        return "any value"
    noun = {"integer": "whole number", "number": "number"}[str(kind)]
    bounds = [
        f"{word} {_number(value[key])}"
        for key, word in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if key in value
    ]
    return " ".join([noun, ", ".join(bounds)]).strip()


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _default(value: dict[str, Any], sections: list[Any]) -> str:
    default = value.get("default")
    if sections or default is None or default in ({}, []):
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default}`"


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text[:1].upper() + text[1:] + ("" if not text or text.endswith(".") else ".")


def _anchor(heading: str) -> str:
    """Return the anchor that Python-Markdown gives a heading."""
    from markdown.extensions.toc import slugify

    return str(slugify(heading, "-"))
