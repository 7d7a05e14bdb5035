"""The finding on a claim, and its Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.paper.figures import Spread


@dataclass(frozen=True)
class Finding:
    """The finding on a claim: a table, and a sentence on whether the claim holds."""

    title: str
    claim: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    verdict: str


def cell(spread: Spread | None) -> str:
    """Format a spread; ``failed`` if every seed failed."""
    return "failed" if spread is None else spread.percent()


def render(finding: Finding) -> str:
    """Return a finding as Markdown."""
    lines = [f"## {finding.title}", "", finding.claim, ""]
    lines.append("| " + " | ".join(finding.header) + " |")
    lines.append("|" + "---|" * len(finding.header))
    lines += ["| " + " | ".join(row) + " |" for row in finding.rows]
    return "\n".join([*lines, "", f"**{finding.verdict}**"])
