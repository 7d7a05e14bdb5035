"""Generate the command line reference from the commands."""

from __future__ import annotations

import html
import inspect
from collections.abc import Iterator
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from fedkd.cli import app

PAGE = "reference/command-line.md"
INTRODUCTION = """# Command line

A user's error is reported in one sentence. The exit code is 0 on success; 2 when the request is
invalid, before anything runs or is written; 1 when a run failed or too few silos answered; and 130
after Ctrl-C.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page to the site."""
    files.append(File.generated(config, PAGE, content=render()))
    return files


def render() -> str:
    """Return the page as Markdown."""
    commands = _commands(typer.main.get_command(app))
    return "\n".join([INTRODUCTION, *(_section(name, it) for name, it in commands)])


def _commands(group: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every command with its full name, including those of groups such as ``keys``."""
    for name, command in vars(group)["commands"].items():
        if "commands" in vars(command):
            yield from _commands(command, f"{above}{name} ")
        else:
            yield f"{above}{name}", command


def _section(name: str, command: Any) -> str:
    below: dict[str, Any] = getattr(command, "commands", {})
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    usage = " ".join(["fedkd", name, "[OPTIONS]", *(_metavar(p) for p in arguments)])
    rows = [(_metavar(p), p) for p in arguments if p.help]
    for option in options:
        value = "" if option.is_flag else f" {_metavar(option)}"
        rows.append((", ".join(option.opts) + value, option))
    table = [f"| `{text}` | {html.escape(p.help or '')} |" for text, p in rows]
    return "\n".join(
        [
            f"\n## `fedkd {name}`\n\n```text\n{usage}\n```\n",
            html.escape(inspect.cleandoc(command.help or ""), quote=False),
            *(["\n| | meaning |", "|---|---|", *table] if table else []),
            *(_section(f"{name} {own}", it) for own, it in below.items()),
        ]
    )


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name).strip()
