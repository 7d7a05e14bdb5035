"""Run the bench and write its page: ``make bench``, or ``python -m experiments.bench --help``."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
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
    bench = _Bench(arguments.out, turns=arguments.turns, num_rounds=arguments.rounds)
    bench.num_silos = arguments.silos
    bench.workloads = [each for each in OWN_MODELS if each.name in arguments.models.split(",")]
    with tempfile.TemporaryDirectory(prefix="fedkd-bench-") as scratch:
        for part in arguments.parts.split(","):
            bench.measure(part, Path(scratch) / part)
    bench.show()
    return 1 if bench.results["problems"] else 0


class _Bench:
    """Collects the measurements, and writes them after each part."""

    def __init__(self, out: Path, *, turns: int, num_rounds: int) -> None:
        self._out = out
        self._turns, self._num_rounds = turns, num_rounds
        self._goals: list[Goal] = []
        self.workloads: Sequence[Workload] = OWN_MODELS
        self.num_silos = 1000
        self.results: dict[str, Any] = {
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "turns": turns,
            "num_rounds": num_rounds,
            "machine": machine.describe(),
            "goals": [],
            "problems": [],
        }

    def measure(self, part: str, folder: Path) -> None:
        """Measure one part; record a failure and continue."""
        say(f"-- {part}")
        begin = time.perf_counter()
        try:
            self.results[part], goals = self._measure(part, folder)
            self._goals += goals
        except Exception as error:  # the other parts are measured all the same
            self._problem(f"{part}: {type(error).__name__}: {error}")
        say(f"-- {part}: {time.perf_counter() - begin:.0f} s in total")
        self.results["goals"] = [goal.to_dict() for goal in self._goals]
        write_json(self._out / RESULTS, self.results)
        publish(self._out, self.results)

    def _measure(self, part: str, folder: Path) -> tuple[Any, list[Goal]]:
        turns, num_rounds = self._turns, self._num_rounds
        if part == "federated":
            rows = self._run(BUILT_IN, folder)
            if not federated.all_equal(rows):
                self._problem(f"accuracies are not equal: {federated.differences(rows)}")
            return rows, federated.goals(rows, has_amx=machine.has_amx())
        if part == "own-models":
            own = {each.name: self._run(each, folder / each.name) for each in self.workloads}
            return own, federated.own_goals(own)
        if part == "distillation":
            grids = distillation.run(folder, turns=turns, say=say)
            worst = max(map(distillation.difference, grids))
            if worst > distillation.TOLERANCE:
                self._problem(f"the grids' accuracies are not equal: they differ by {worst:.4f}")
            return grids, distillation.goals(grids)
        if part == "everyday":
            commands = everyday.run(folder, turns=turns, num_rounds=num_rounds, say=say)
            return commands, everyday.goals(commands)
        if part == "many-silos":
            sizes = many_silos.run(folder, num_rounds=num_rounds, say=say, silos=self.num_silos)
            return sizes, many_silos.goals(sizes)
        if part == "threads":
            seconds = threads.run(folder, turns=turns, say=say)
            return seconds, threads.goals(seconds)
        raise ValueError(f"{part!r} is not a valid part: give {', '.join(PARTS)}")

    def _run(self, workload: Workload, folder: Path) -> federated.Rows:
        """Let all contenders run a workload, and record those that failed."""
        say(f"- {workload.description}")
        rows = federated.run(
            folder, turns=self._turns, num_rounds=self._num_rounds, say=say, workload=workload
        )
        for row in rows:
            if "error" in row:
                self._problem(
                    f"{workload.name}, turn {row['turn']}, {row['contender']}: {row['error']}"
                )
        return rows

    def _problem(self, sentence: str) -> None:
        self.results["problems"].append(sentence)
        say(f"PROBLEM {sentence}")

    def show(self) -> None:
        """Print the goals, and the folder of the results."""
        say("")
        for goal in self._goals:
            met = {True: "met", False: "MISSED", None: "-"}[goal.met]
            bound = f"{'>=' if goal.at_least else '<='} {goal.limit:g}"
            measured = goal.measured if goal.measured is not None else goal.note or "not measured"
            say(f"{met:7} {bound:8} {measured!s:28} {goal.text}")
        say(f"\nResults: {self._out}")


def say(line: str) -> None:
    """Print progress."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench",
        description="Measure fedkd against other ways to do the same work; about an hour.",
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
