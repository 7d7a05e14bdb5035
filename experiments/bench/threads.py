"""A round with two threads a silo against one, where silos train one at a time."""

from __future__ import annotations

from pathlib import Path

from experiments.bench.contenders import fedkd
from experiments.bench.federated import Say
from experiments.bench.goals import Goal, Spread
from experiments.bench.workload import OWN_MODELS, STUDY, prepare

_RESNET = next(each for each in OWN_MODELS if each.name == "resnet18")
_CHANGES = ("partition.silos=2", "data.train_size=1500", "engine.workers=1")


def run(folder: Path, *, turns: int, say: Say, num_rounds: int = 3) -> list[dict[str, float]]:
    """Return the median seconds of a round by number of threads, for every turn.

    Two silos train ``torchvision:resnet18`` at 64 pixels on 750 pictures each.
    """
    prepare(folder)
    rows: list[dict[str, float]] = []
    for turn in range(turns):
        rows.append({})
        for threads in (1, 2):
            changes = (*_RESNET.settings(folder), *_CHANGES, f"engine.silo_threads={threads}")
            options = [
                part for c in (*changes, f"rounds.max={num_rounds}") for part in ("--set", c)
            ]
            place = folder / f"turn-{turn}-{threads}"
            cache = folder / "cache"
            measured = fedkd("compare", STUDY, "--fresh", *options, folder=place, cache=cache)
            seconds = rows[-1][str(threads)] = measured.round_seconds or float("nan")
            say(f"turn {turn}  {threads} threads: {seconds:.2f} s a round")
    return rows


def goals(rows: list[dict[str, float]]) -> list[Goal]:
    """Return the goals of this part."""
    ratios = [row["1"] / row["2"] for row in rows]
    text = "a round of ResNet-18 at 64 pixels, one silo at a time: one thread against two"
    return [Goal(text, 1.5, at_least=True, measured=Spread.of(ratios) if ratios else None)]
