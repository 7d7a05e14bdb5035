"""The report of a consolidation of checkpoints as text for the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedkd.models.build import NOUNS


def render(report: dict[str, Any]) -> RenderableType:
    """Return a table of the teachers, and sentences on the student."""
    return Group(_teachers(report), *(Text(line) for line in _sentences(report)))


def _teachers(report: dict[str, Any]) -> Table:
    judged = report["accuracy_on"] is not None
    table = Table(title="Teachers", title_justify="left", title_style="bold")
    table.add_column("checkpoint", overflow="fold")
    table.add_column("architecture")
    for heading in ("mean weight", *(["accuracy"] if judged else [])):
        table.add_column(heading, justify="right")
    for teacher in report["teachers"]:
        weight = teacher["mean_weight"]
        shown = "-" if weight is None else f"{weight:.3f}"
        cells = [teacher["path"], teacher["arch"], shown if teacher["taught"] else "not chosen"]
        cells += [f"{teacher['accuracy']:.1%}"] if judged else []
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _sentences(report: dict[str, Any]) -> list[str]:
    transfer, loss = report["transfer"], report["distillation_loss"]
    what = NOUNS[report["shape"].get("kind", "image")]
    labels = "with labels" if transfer["labelled"] else "without labels"
    done = f"{report['method']} on {transfer['size']} {what} of {transfer['source']}, {labels}"
    started = f"student {report['arch']}, started from {report['student']}"
    last = "not finite" if loss is None else f"{loss:.4f}"
    return [
        f"{done}; {started}; the last epoch's loss is {last}.",
        _agreement(report["agreement"], what),
        _accuracy(report),
        *(f"Note: {warning}." for warning in report["warnings"]),
    ]


def _agreement(shares: dict[str, Any], what: str) -> str:
    between = shares["between_teachers"]
    text = f"On these {what} the student agrees with the teachers on {shares['student']:.1%}"
    return f"{text}." if between is None else f"{text}, two teachers with each other {between:.1%}."


def _accuracy(report: dict[str, Any]) -> str:
    if report["accuracy_on"] is None:
        return "Its accuracy is unknown; --validation measures it on labelled examples."
    text = (
        f"Accuracy of the student: {report['accuracy_before']:.1%} before, "
        f"{report['accuracy']:.1%} after, on {report['accuracy_on']}."
    )
    if report["accuracy_used_to_choose"]:
        text += " Teachers or student were chosen by the same examples, so these figures flatter."
    return f"{text} A teacher's figure flatters it where it was trained on them."
