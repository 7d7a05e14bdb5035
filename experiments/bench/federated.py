"""The federated part: every contender runs once per turn; times are compared within a turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.bench.contenders import PFL, Contender, check_frozen, contenders, fedkd
from experiments.bench.goals import Goal, Spread
from experiments.bench.pfl_environment import make_environment
from experiments.bench.process import CommandFailedError
from experiments.bench.workload import (
    BUILT_IN,
    OWN_MODELS,
    STUDY,
    Workload,
    prepare,
    write_workload,
)

LAST_ROUNDS = 5
TOLERANCE = 0.015
"""Maximum difference of accuracies, as means over the last rounds, to count as equal."""

Say = Callable[[str], None]
Rows = list[dict[str, Any]]


def run(
    folder: Path, *, turns: int, num_rounds: int, say: Say, workload: Workload = BUILT_IN
) -> Rows:
    """Run all contenders in turn; return a row for each, with its measurement or its error."""
    check_frozen()
    python = None
    try:
        python = make_environment(folder.parent / "pfl")
    except OSError as error:
        say(f"pfl-research takes no part: {error}")
    prepare(folder)
    file, settings = folder / "workload.npz", workload.settings(folder)
    write_workload(file, workload, folder)
    num_rounds = min(num_rounds, workload.num_rounds)
    # Decode the images once: the other contenders read decoded images, too.
    changes = [part for change in (*settings, "rounds.max=1") for part in ("--set", change)]
    fedkd("compare", STUDY, *changes, folder=folder / "warm", cache=folder / "cache")
    rows: Rows = []
    for turn in range(turns):
        for contender in contenders(folder / "cache", settings, python=python):
            place = folder / f"turn-{turn}" / contender.name.replace(" ", "-")
            rows.append({"turn": turn, "contender": contender.name})
            rows[-1] |= _measure(contender, place, file, num_rounds)
            say(_line(rows[-1]))
    return rows


def _measure(contender: Contender, place: Path, workload: Path, num_rounds: int) -> dict[str, Any]:
    try:
        measurement = contender.run(place, workload, num_rounds)
    except (CommandFailedError, OSError) as error:
        return {"error": str(error)}
    if len(measurement.accuracies) != num_rounds + 1:
        return {
            "error": f"{len(measurement.accuracies)} rounds where {num_rounds + 1} are expected"
        }
    return measurement.to_dict()


def accuracy(row: dict[str, Any]) -> float:
    """Return the mean accuracy over a run's last rounds."""
    return statistics.fmean(row["accuracies"][-LAST_ROUNDS:])


def differences(rows: Rows) -> dict[str, float]:
    """Return the maximum difference of each contender's accuracy from the bare loop's.

    Accuracies are means over the last five rounds on the same 10,000 test images. The maximum is
    over turns, against the bare loop's median.
    """
    reference = [accuracy(row) for row in rows if _is(row, "bare loop")]
    if not reference:
        return {}
    reference_median = statistics.median(reference)
    largest: dict[str, float] = {}
    for row in rows:
        if "error" not in row:
            name = str(row["contender"])
            largest[name] = max(largest.get(name, 0.0), abs(accuracy(row) - reference_median))
    return largest


def ratios(rows: Rows, first: str, second: str, key: str) -> Spread | None:
    """Return the ratios of two contenders' figures per turn; None without a complete turn."""
    values = []
    for turn in sorted({row["turn"] for row in rows}):
        pair = [
            next((row[key] for row in rows if row["turn"] == turn and _is(row, name)), None)
            for name in (first, second)
        ]
        if pair[0] is not None and pair[1] is not None:
            values.append(float(pair[0]) / float(pair[1]))
    return Spread.of(values) if values else None


def goals(rows: Rows, *, has_amx: bool) -> list[Goal]:
    """Return the goals of this part."""

    def against(text: str, limit: float, one: str, other: str, key: str) -> Goal:
        return Goal(text, limit, measured=ratios(rows, one, other, key))

    bf16 = ratios(rows, "fedkd inline bf16", "fedkd inline", "seconds")
    accuracy_differences = differences(rows)
    return [
        against(
            "whole command, inline fp32 against Flower on Ray",
            0.45,
            *("fedkd inline", "Flower on Ray", "seconds"),
        ),
        against(
            "whole command, inline fp32 against the bare loop",
            0.65,
            *("fedkd inline", "bare loop", "seconds"),
        ),
        against(
            "a round, inline fp32 against the best loop",
            1.10,
            *("fedkd inline", "best loop", "round_seconds"),
        ),
        Goal(
            "whole command, bf16 against fp32",
            0.75,
            measured=bf16 if has_amx else None,
            note=""
            if has_amx
            else "this processor has no AMX, which the goal assumes"
            + (f"; here it is {bf16}" if bf16 else ""),
        ),
        Goal(
            "accuracy, maximum difference of any contender from the bare loop",
            TOLERANCE,
            measured=Spread.of([max(accuracy_differences.values())])
            if accuracy_differences
            else None,
        ),
    ]


def own_goals(rows: dict[str, Rows]) -> list[Goal]:
    """Return the goals of the workloads with a user's model, by name."""
    whole = "whole command, a user's 5 x 5 CNN, inline fp32 against"
    goals = [
        Goal(f"{whole} {name}", limit, measured=_against(rows, "own-cnn", name, "seconds"))
        for name, limit in (("Flower on Ray", 0.60), (PFL, 0.70), ("bare loop", 0.65))
    ]
    goals += [
        Goal(
            f"a round of {each.description}, inline fp32 against the best loop",
            1.10,
            measured=_against(rows, each.name, "best loop", "round_seconds"),
        )
        for each in OWN_MODELS
    ]
    loop = "a loop that sees the pictures again"
    frozen = _against(rows, "frozen", "bare loop", "round_seconds")
    return [*goals, Goal(f"later rounds of a frozen backbone against {loop}", 0.1, measured=frozen)]


def _against(rows: dict[str, Rows], workload: str, contender: str, key: str) -> Spread | None:
    return ratios(rows.get(workload, []), "fedkd inline", contender, key)


def worst(rows: dict[str, Rows], contender: str, key: str) -> tuple[str, Spread] | None:
    """Return the workload with the highest ratio of fedkd inline to a contender, and the ratio."""
    found = {name: ratios(each, "fedkd inline", contender, key) for name, each in rows.items()}
    known = {name: spread for name, spread in found.items() if spread is not None}
    return max(known.items(), key=lambda item: item[1].median, default=None)


def all_equal(rows: Rows) -> bool:
    """Whether the accuracies of all contenders count as equal."""
    return all(each <= TOLERANCE for each in differences(rows).values())


def _is(row: dict[str, Any], name: str) -> bool:
    return bool(row["contender"] == name and "error" not in row)


def _line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"turn {row['turn']}  {row['contender']:18} FAILED: {row['error']}"
    return (
        f"turn {row['turn']}  {row['contender']:18} {row['seconds']:7.1f} s, a round "
        f"{row['round_seconds']:.3f} s, {row['peak_bytes'] / 1e6:,.0f} MB, accuracy "
        f"{accuracy(row):.4f}"
    )


def names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the contenders' names in the order in which they ran."""
    return list(dict.fromkeys(str(row["contender"]) for row in rows))
