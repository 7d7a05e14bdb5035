"""Memory of a thousand silos, against ten silos with the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.bench.contenders import fedkd
from experiments.bench.federated import Say
from experiments.bench.goals import Goal, Spread
from experiments.bench.process import Measurement
from experiments.bench.workload import STUDY

ENGINES = ("inline", "ray")
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
    for engine in ENGINES:
        for name, count in (("many", max(20, silos // 5)), ("ten", 10)):
            measurement = large(folder / f"{engine}-{name}", count, engine=engine, cache=cache)
            measurements[f"{engine}-{name}"] = measurement.to_dict()
            say(f"{count:5} silos, 46 MB, {engine}: {measurement.peak_bytes / 1e6:,.0f} MB")
    return measurements


def large(folder: Path, count: int, *, engine: str, cache: Path) -> Measurement:
    """Run one round of all silos, and a model of 46 MB."""
    changes = (
        *("model.arch=experiments.bench.models:wide_3000", "rounds.max=1"),
        *(f"partition.silos={count}", f"data.train_size={59 * count}"),
    )
    options = [part for change in (*_COMMON, *changes) for part in ("--set", change)]
    command = ("compare", "--fresh", "--engine", engine, *options)
    return fedkd(*command, STUDY, folder=folder, cache=cache)


def goals(measurements: dict[str, Any]) -> list[Goal]:
    """Return the goals of this part."""
    measured = None
    if measurements:
        measured = Spread.of(
            [measurements["many"]["peak_bytes"] / measurements["ten"]["peak_bytes"]]
        )
    text = "peak memory of 1,000 silos against 10 with the same images"
    found = [Goal(text, 1.3, measured=measured)]
    text = "peak memory of 200 silos, all in every round, against 10, with a model of 46 MB"
    for engine in ENGINES:
        measured = None
        if (many := f"{engine}-many") in measurements:
            ten = measurements[f"{engine}-ten"]["peak_bytes"]
            measured = Spread.of([measurements[many]["peak_bytes"] / ten])
        found.append(Goal(f"{text}, {engine}", 1.5, measured=measured))
    return found
