"""Everyday commands: help, validation, and a study that has hardly changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.bench.contenders import fedkd
from experiments.bench.federated import Say
from experiments.bench.goals import Goal, Spread
from experiments.bench.workload import STUDY

MORE = ("--set", "arms.second={start: random, rounds: {lr: 0.02}}")
ALONE = (
    *("--set", "arms={second: {start: random, rounds: {lr: 0.02}}}"),
    *("--set", "baselines=[second]"),
)


def run(folder: Path, *, turns: int, num_rounds: int, say: Say) -> dict[str, list[Any]]:
    """Measure each command once per turn."""
    rounds = ("--set", f"rounds.max={num_rounds}")
    rows_by_command: dict[str, list[Any]] = {}

    def record(what: str, turn: int, *arguments: str | Path, cache: Path) -> float:
        measurement = fedkd(*arguments, folder=folder / f"{what}-{turn}", cache=cache)
        rows_by_command.setdefault(what, []).append(measurement.to_dict())
        say(
            f"turn {turn}  {what:18} {measurement.seconds:6.2f} s, "
            f"{measurement.cpu_seconds:.2f} s of processor time"
        )
        return measurement.seconds

    warm = folder / "cache"
    fedkd("compare", STUDY, *rounds, folder=folder / "warm", cache=warm)
    for turn in range(turns):
        record("help", turn, "--help", cache=warm)
        record("validate", turn, "validate", STUDY, cache=warm)
        record("nothing changed", turn, "compare", STUDY, *rounds, cache=warm)
        record("arm alone", turn, "compare", STUDY, *rounds, *ALONE, "--fresh", cache=warm)
        # Another learning rate every turn, so that the arm is not in the cache.
        added = MORE[1].replace("0.02", f"0.02{turn + 1}")
        record("arm added", turn, "compare", STUDY, *rounds, "--set", added, cache=warm)
    return rows_by_command


def goals(rows_by_command: dict[str, list[Any]]) -> list[Goal]:
    """Return the goals of this part."""

    def spread(command: str, key: str) -> Spread | None:
        rows = rows_by_command.get(command)
        return Spread.of([row[key] for row in rows]) if rows else None

    pairs = list(
        zip(
            rows_by_command.get("arm added", []), rows_by_command.get("arm alone", []), strict=False
        )
    )
    shares = [added["seconds"] / alone["seconds"] for added, alone in pairs]
    measured = {
        ("`fedkd --help`, seconds of processor time", 0.4): spread("help", "cpu_seconds"),
        ("`fedkd validate`, seconds of processor time", 1.0): spread("validate", "cpu_seconds"),
        ("`fedkd compare` of an unchanged study, seconds", 3.0): spread(
            "nothing changed", "seconds"
        ),
        ("`fedkd compare` with one added arm, against that arm alone", 1.15): Spread.of(shares)
        if shares
        else None,
    }
    return [Goal(text, limit, measured=each) for (text, limit), each in measured.items()]
