"""What is waited for every day: help, a check of a study, a study of which little has changed."""

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
    """Measure each command once a turn."""
    rounds = ("--set", f"rounds.max={num_rounds}")
    found: dict[str, list[Any]] = {}

    def note(what: str, turn: int, *arguments: str | Path, cache: Path) -> float:
        taken = fedkd(*arguments, folder=folder / f"{what}-{turn}", cache=cache)
        found.setdefault(what, []).append(taken.to_dict())
        say(
            f"turn {turn}  {what:18} {taken.seconds:6.2f} s, {taken.cpu_seconds:.2f} s of processor"
        )
        return taken.seconds

    warm = folder / "cache"
    fedkd("compare", STUDY, *rounds, folder=folder / "warm", cache=warm)
    for turn in range(turns):
        note("help", turn, "--help", cache=warm)
        note("validate", turn, "validate", STUDY, cache=warm)
        note("nothing changed", turn, "compare", STUDY, *rounds, cache=warm)
        note("arm alone", turn, "compare", STUDY, *rounds, *ALONE, "--fresh", cache=warm)
        # The arm must not be in the cache: it is given another learning rate every turn.
        added = MORE[1].replace("0.02", f"0.02{turn + 1}")
        note("arm added", turn, "compare", STUDY, *rounds, "--set", added, cache=warm)
    return found


def goals(found: dict[str, list[Any]]) -> list[Goal]:
    """Return the goals of this part."""

    def spread(what: str, key: str) -> Spread | None:
        rows = found.get(what)
        return Spread.of([row[key] for row in rows]) if rows else None

    pairs = list(zip(found.get("arm added", []), found.get("arm alone", []), strict=False))
    shares = [added["seconds"] / alone["seconds"] for added, alone in pairs]
    measured = {
        ("`fedkd --help`, seconds of processor", 0.4): spread("help", "cpu_seconds"),
        ("`fedkd validate`, seconds of processor", 1.0): spread("validate", "cpu_seconds"),
        ("a compare in which nothing changed, seconds", 3.0): spread("nothing changed", "seconds"),
        ("a compare to which an arm was added, against that arm alone", 1.15): Spread.of(shares)
        if shares
        else None,
    }
    return [Goal(text, limit, measured=each) for (text, limit), each in measured.items()]
