"""Memory of a thousand silos, against ten silos with the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.bench.contenders import fedkd
from experiments.bench.federated import Say
from experiments.bench.goals import Goal, Spread
from experiments.bench.workload import STUDY

# All 60,000 images but one, since a transfer set has at least one.
_COMMON = ("data.validation=0", "data.transfer.size=1", "data.train_size=60000")


def run(folder: Path, *, num_rounds: int, say: Say, silos: int = 1000) -> dict[str, Any]:
    """Run 20 rounds with cohorts of ten of 1,000 silos, and two rounds of ten large silos.

    Two rounds are enough for the ten, since no memory is kept between rounds.
    """
    cache = folder / "cache"
    measurements = {}
    many = (f"partition.silos={silos}", f"rounds.fraction={10 / silos}", f"rounds.max={num_rounds}")
    ten = ("partition.silos=10", "rounds.max=2")
    for name, changes in (("many", many), ("ten", ten)):
        options = [part for change in (*_COMMON, *changes) for part in ("--set", change)]
        measurement = fedkd(
            "compare", STUDY, "--fresh", *options, folder=folder / name, cache=cache
        )
        measurements[name] = measurement.to_dict()
        say(f"{name:5} silos: {measurement.peak_bytes / 1e6:,.0f} MB, {measurement.seconds:.1f} s")
    # All silos in every round, and a model of 46 MB.
    wide = "model.arch=experiments.bench.models:wide_3000"
    for name, count in (("large-many", max(20, silos // 5)), ("large-ten", 10)):
        changes = (wide, f"partition.silos={count}", f"data.train_size={59 * count}")
        options = [part for c in (*_COMMON, *changes, "rounds.max=1") for part in ("--set", c)]
        measurement = fedkd(
            "compare", STUDY, "--fresh", *options, folder=folder / name, cache=cache
        )
        measurements[name] = measurement.to_dict()
        say(f"{count:5} silos, 46 MB: {measurement.peak_bytes / 1e6:,.0f} MB")
    return measurements


def goals(measurements: dict[str, Any]) -> list[Goal]:
    """Return the goals of this part."""
    measured = None
    if measurements:
        measured = Spread.of(
            [measurements["many"]["peak_bytes"] / measurements["ten"]["peak_bytes"]]
        )
    text = "peak memory of 1,000 silos against 10 with the same images"
    large = None
    if "large-many" in measurements:
        large = measurements["large-many"]["peak_bytes"] / measurements["large-ten"]["peak_bytes"]
    text_large = "peak memory of 200 silos, all in every round, against 10, with a model of 46 MB"
    return [
        Goal(text, 1.3, measured=measured),
        Goal(text_large, 1.5, measured=None if large is None else Spread.of([large])),
    ]
