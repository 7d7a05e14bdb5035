"""Run the bench and write its page: ``make bench``, or ``python -m experiments.bench --help``."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments.bench import distillation, everyday, federated, machine, many_silos, threads
from experiments.bench.goals import Goal
from experiments.bench.process import exit_on_sigterm
from experiments.bench.publish import RESULTS, publish
from experiments.bench.workload import BUILT_IN, HERE, OWN_MODELS, Workload
from fedkd.util.files import write_json

PARTS = ("federated", "own-models", "distillation", "everyday", "many-silos", "threads")


def main() -> int:
    """Run the requested parts; record all that succeed, and return 1 if anything failed."""
    arguments = _parse()
    exit_on_sigterm()
    results = _earlier(arguments.out / RESULTS, arguments.rounds)
    bench = _Bench(arguments.out, results, turns=arguments.turns, num_silos=arguments.silos)
    workloads = [each for each in OWN_MODELS if each.name in arguments.models.split(",")]
    with tempfile.TemporaryDirectory(prefix="fedkd-bench-") as scratch:
        for part in arguments.parts.split(","):
            for workload in workloads if part == "own-models" else (None,):
                bench.measure(part, Path(scratch) / part, workload)
    bench.show()
    return 1 if any(each["problems"] for each in results["measured"].values()) else 0


def _earlier(path: Path, num_rounds: int) -> dict[str, Any]:
    """Return the results to which this run adds, or whose parts it replaces.

    Raises:
        SystemExit: they are of another number of rounds.
    """
    if not path.is_file():
        return {"num_rounds": num_rounds, "measured": {}, "goals": []}
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if results["num_rounds"] != num_rounds:
        sys.exit(f"{path}: is of {results['num_rounds']} rounds; use another --out")
    return results


class _Bench:
    """Collects the measurements, and writes them after each part."""

    def __init__(self, out: Path, results: dict[str, Any], *, turns: int, num_silos: int) -> None:
        self._out, self._turns, self._num_silos = out, turns, num_silos
        self.results = results

    def measure(self, part: str, folder: Path, workload: Workload | None) -> None:
        """Measure one part, of the own models one; record a failure and continue."""
        name = part if workload is None else f"{part}: {workload.name}"
        say(f"-- {name}")
        begin = time.perf_counter()
        described = {
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "turns": self._turns,
            "machine": machine.describe(),
        }
        try:
            if workload is None:
                self.results[part], problems = self._measure(part, folder)
            else:
                rows = self._run(workload, folder / workload.name)
                self.results.setdefault(part, {})[workload.name] = rows
                problems = failures(rows)
        except Exception as error:  # the other parts are measured all the same
            problems = [f"{type(error).__name__}: {error}"]
        for problem in problems:
            say(f"PROBLEM {problem}")
        self.results["measured"][name] = {**described, "problems": problems}
        say(f"-- {name}: {time.perf_counter() - begin:.0f} s in total")
        self.results["goals"] = [goal.to_dict() for goal in all_goals(self.results)]
        write_json(self._out / RESULTS, self.results)
        publish(self._out, self.results)

    def _measure(self, part: str, folder: Path) -> tuple[Any, list[str]]:
        """Return the figures of a part, and what is wrong with them."""
        turns, num_rounds = self._turns, self.results["num_rounds"]
        if part == "federated":
            rows = self._run(BUILT_IN, folder)
            unequal = f"accuracies are not equal: {federated.differences(rows)}"
            return rows, failures(rows) + ([] if federated.all_equal(rows) else [unequal])
        if part == "distillation":
            grids = distillation.run(folder, turns=turns, say=say)
            worst = max(map(distillation.difference, grids))
            unequal = f"the grids' accuracies are not equal: they differ by {worst:.4f}"
            return grids, [unequal] if worst > distillation.TOLERANCE else []
        if part == "everyday":
            return everyday.run(folder, turns=turns, num_rounds=num_rounds, say=say), []
        if part == "many-silos":
            silos = self._num_silos
            return many_silos.run(folder, num_rounds=num_rounds, say=say, silos=silos), []
        if part == "threads":
            return threads.run(folder, turns=turns, say=say), []
        raise ValueError(f"{part!r} is not a valid part: give {', '.join(PARTS)}")

    def _run(self, workload: Workload, folder: Path) -> federated.Rows:
        """Let all contenders run a workload."""
        say(f"- {workload.description}")
        num_rounds = self.results["num_rounds"]
        return federated.run(
            folder, turns=self._turns, num_rounds=num_rounds, say=say, workload=workload
        )

    def show(self) -> None:
        """Print the goals, and the folder of the results."""
        say("")
        for goal in all_goals(self.results):
            met = {True: "met", False: "MISSED", None: "-"}[goal.met]
            bound = f"{'>=' if goal.at_least else '<='} {goal.limit:g}"
            measured = goal.measured if goal.measured is not None else goal.note or "not measured"
            say(f"{met:7} {bound:8} {measured!s:28} {goal.text}")
        say(f"\nResults: {self._out}")


def all_goals(results: dict[str, Any]) -> list[Goal]:
    """Return the goals of all parts that have figures, of this run or an earlier one."""
    goals: list[Goal] = []
    if rows := results.get("federated"):
        flags = results["measured"]["federated"]["machine"]["flags"]
        goals += federated.goals(rows, has_amx=machine.AMX in flags)
    for part, function in (
        ("own-models", federated.own_goals),
        ("distillation", distillation.goals),
        ("everyday", everyday.goals),
        ("many-silos", many_silos.goals),
        ("threads", threads.goals),
    ):
        if figures := results.get(part):
            goals += function(figures)
    return goals


def failures(rows: federated.Rows) -> list[str]:
    """Return a sentence for each contender that failed."""
    failed = [row for row in rows if "error" in row]
    return [f"turn {row['turn']}, {row['contender']}: {row['error']}" for row in failed]


def say(line: str) -> None:
    """Print progress."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench",
        description="Measure fedkd against other ways to do the same work. All parts in three "
        "turns take three hours; a run of some parts keeps the figures of the others.",
    )
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="default: 20")
    parser.add_argument(
        "--silos", type=int, default=1000, metavar="N", help="of many-silos; default: 1000"
    )
    parser.add_argument(
        "--parts", default=",".join(PARTS), metavar="NAME,...", help=f"default: {','.join(PARTS)}"
    )
    names = ",".join(each.name for each in OWN_MODELS)
    parser.add_argument(
        "--models", default=names, metavar="NAME,...", help=f"of the own models; default: {names}"
    )
    parser.add_argument(
        "--out", type=Path, default=HERE, metavar="DIR", help="default: the folder of the bench"
    )
    arguments = parser.parse_args()
    if arguments.turns < 1 or not 1 <= arguments.rounds <= 20:
        parser.error("--turns must be at least 1, and --rounds from 1 to 20")
    unknown = set(arguments.parts.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"--parts: unknown {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}")
    return arguments


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
