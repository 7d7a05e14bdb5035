"""Figures of given models on every silo and on the server: rows, a table of them, and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields
from typing import Annotated, Any

from pydantic import Field

from fedkd.results.record import Finite, Share, build


@dataclass(frozen=True)
class Measured:
    """A model's figures on the examples of a silo, or of the server where ``silo`` is None.

    Attributes:
        model: its name.
        silo: whose examples.
        accuracy: in [0, 1].
        loss: mean cross-entropy in nats, None if it is not finite.
        macro_f1: mean F1 over classes.
        num_examples: number of examples.
    """

    model: str
    silo: str | None
    accuracy: Share
    loss: Finite | None
    macro_f1: Share
    num_examples: Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Unmeasured:
    """A silo that gave no figures of a model, or of any where ``model`` is None, and why."""

    model: str | None
    silo: str
    reason: str


@dataclass(frozen=True)
class Evaluation:
    """Everything that was measured, and what was not."""

    measured: tuple[Measured, ...]
    unmeasured: tuple[Unmeasured, ...] = ()

    @classmethod
    def parse(cls, value: Any, models: Sequence[str], silos: Sequence[str]) -> Evaluation:
        """Read what another host sent.

        Raises:
            ValueError: it is not an evaluation of these models on these silos.
            TypeError: it is not a mapping.
        """
        found: Evaluation = build(cls, value)
        for row in found.measured:
            if row.model not in models or row.silo not in (None, *silos):
                raise ValueError(f"it has a row of {row.model!r} and {row.silo!r}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    def mean(self, model: str) -> float | None:
        """Return a model's accuracy over all silos' examples; None if no silo measured it."""
        rows = [row for row in self.measured if row.model == model and row.silo is not None]
        total = sum(row.num_examples for row in rows)
        return sum(row.accuracy * row.num_examples for row in rows) / total if total else None

    def accuracy(self, model: str, silo: str | None) -> float | None:
        """Return a model's accuracy on one silo or the server; None if it was not measured."""
        rows = (row for row in self.measured if (row.model, row.silo) == (model, silo))
        return next((row.accuracy for row in rows), None)

    def to_csv(self) -> str:
        """Return one line for each model and silo; that of the server names no silo."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([field.name for field in fields(Measured)])
        writer.writerows(astuple(row) for row in self.measured)
        return text.getvalue()
