"""What came of a claim, and how it is written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.paper.figures import Spread


@dataclass(frozen=True)
class Finding:
    """What came of a claim: a table, and a sentence that says whether it holds."""

    title: str
    claim: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    verdict: str


def cell(spread: Spread | None) -> str:
    """Format a spread, or say that every seed failed."""
    return "failed" if spread is None else spread.percent()


def render(finding: Finding) -> str:
    """Return a finding as Markdown."""
    lines = [f"## {finding.title}", "", finding.claim, ""]
    lines.append("| " + " | ".join(finding.header) + " |")
    lines.append("|" + "---|" * len(finding.header))
    lines += ["| " + " | ".join(row) + " |" for row in finding.rows]
    return "\n".join([*lines, "", f"**{finding.verdict}**"])
