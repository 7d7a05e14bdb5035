"""Growth of time and memory with silos, images, parameters and teachers: ``make bench-scale``."""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments.bench import machine
from experiments.bench.contenders import fedkd
from experiments.bench.federated import Say
from experiments.bench.process import CommandFailedError, exit_on_sigterm
from experiments.bench.workload import HERE, STUDY
from fedkd.util.files import replacing, write_json, write_text

RESULTS, PAGE, PLOT = "scale.json", "SCALE.md", "scale.svg"
IMAGES = 59
"""Images of a small silo: a thousand of them have nearly all of Fashion-MNIST."""
ROUNDS = 3
QUADRATIC = 1.5
"""Power of growth above which a problem is reported."""

_CONSOLIDATED = (
    "arms={fedkd: {start: consolidated, consolidation: {epochs: 2, weighting: confidence}}}"
)
_COMMON = ("data.validation=0", f"rounds.max={ROUNDS}")


@dataclass(frozen=True)
class Sweep:
    """A sweep over one quantity, with everything else fixed.

    Attributes:
        name: of the quantity.
        description: what is run.
        sizes: ascending.
        changes: overrides of the study for each size.
        engine: the engine.
    """

    name: str
    description: str
    sizes: tuple[float, ...]
    changes: tuple[tuple[str, ...], ...]
    engine: str = "inline"


def sweeps(scale: int = 1) -> list[Sweep]:
    """Return all sweeps, with sizes divided by ``scale`` for a trial."""
    silos = [max(2, n // scale) for n in (10, 100, 1000)]
    images = [max(20, n // scale) for n in (59, 590, 5900)]
    teachers = [max(2, n // scale) for n in (10, 30, 100)]
    widths = ((100, 90_000), (1000, 1_800_000), (3000, 11_400_000))
    on_ray = [max(2, n // scale) for n in (10, 100)]
    return [
        Sweep(
            "silos",
            f"FedAvg, all silos in every round, {IMAGES} images each",
            tuple(silos),
            tuple(_silos(n, IMAGES) for n in silos),
        ),
        Sweep(
            "images of a silo",
            "FedAvg, ten silos",
            tuple(images),
            tuple(_silos(10, n) for n in images),
        ),
        Sweep(
            "parameters",
            f"FedAvg, ten silos of {IMAGES} images, two wide layers",
            tuple(size for _, size in widths),
            tuple(
                (*_silos(10, IMAGES), f"model.arch=experiments.bench.models:wide_{width}")
                for width, _ in widths
            ),
        ),
        Sweep(
            "teachers",
            f"pre-training and consolidation of silos of {IMAGES} images, one epoch",
            tuple(teachers),
            tuple(
                (*_silos(n, IMAGES), _CONSOLIDATED, "baselines=[]", "pretraining.epochs=1")
                for n in teachers
            ),
        ),
        Sweep(
            "silos on ray",
            f"FedAvg on Flower's Simulation Runtime, {IMAGES} images each",
            tuple(on_ray),
            tuple(_silos(n, IMAGES) for n in on_ray),
            engine="ray",
        ),
    ]


def _silos(silos: int, images: int) -> tuple[str, ...]:
    return (f"partition.silos={silos}", f"data.train_size={silos * images}")


def measure(sweep: Sweep, folder: Path, say: Say) -> list[dict[str, Any]]:
    """Run a sweep; return a row for each size, with its measurement or its error."""
    rows = []
    for size, changes in zip(sweep.sizes, sweep.changes, strict=True):
        place = folder / f"{sweep.name.replace(' ', '-')}-{size:g}"
        options = [part for change in (*_COMMON, *changes) for part in ("--set", change)]
        try:
            measurement = fedkd(
                "compare",
                STUDY,
                "--fresh",
                "--engine",
                sweep.engine,
                *options,
                folder=place,
                cache=folder / "cache",
            )
        except CommandFailedError as error:
            rows.append({"size": size, "error": str(error)})
            say(f"{sweep.name:18} {size:>12,.0f}  FAILED: {error}")
            continue
        points = _points(place)
        row = {
            "size": size,
            **measurement.to_dict(),
            "bytes_a_round": points[-1]["bytes_up"] + points[-1]["bytes_down"],
            "start_seconds": points[0]["seconds"],
        }
        rows.append(row)
        say(
            f"{sweep.name:18} {size:>12,.0f}  a round {row['round_seconds']:.3f} s, in all "
            f"{row['seconds']:.1f} s, {row['peak_bytes'] / 1e6:,.0f} MB"
        )
    return rows


def _points(place: Path) -> list[dict[str, Any]]:
    (path,) = place.glob("runs/*/*/*/seed-*/rounds.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def power(rows: Sequence[dict[str, Any]], key: str) -> float | None:
    """Return p of the growth size^p between the last two sizes; None if one is missing."""
    last = [row for row in rows if row.get(key)][-2:]
    if len(last) < 2:
        return None
    (small, large) = last
    return math.log(large[key] / small[key]) / math.log(large["size"] / small["size"])


def publish(out: Path, results: dict[str, Any]) -> None:
    """Write the page and the plot."""
    host = results["machine"]
    lines = [
        "# Growth of time and memory\n",
        (
            f"Written by `make bench-scale`, {results['date']}, on {host['cores']} cores of "
            f"{host['processor']}; load average before: {host['load_before']:.1f}. Every row is "
            "a whole command; figures are relative to the smallest size of the sweep. The last "
            "row of a sweep is the power p of the growth size^p between its last two sizes: "
            "1 is linear, 2 is quadratic.\n"
        ),
    ]
    for sweep in sweeps():
        rows = results["sweeps"].get(sweep.name, [])
        complete = [row for row in rows if "error" not in row]
        if not complete:
            continue
        lines += [f"## {sweep.name.capitalize()}\n", f"{sweep.description}.\n"]
        lines += ["| size | a round | whole command | peak memory | messages of a round |"]
        lines += ["|---|---|---|---|---|"]
        first = complete[0]
        for row in complete:
            cells = [f"{row[key] / first[key]:.2f}" for key in COLUMNS]
            lines.append(f"| {row['size']:,.0f} | {' | '.join(cells)} |")
        powers = [power(rows, key) for key in COLUMNS]
        cells = ["-" if each is None else f"{each:.2f}" for each in powers]
        lines.append(f"| p | {' | '.join(cells)} |\n")
    lines.append(f"![Growth of a round's time and of memory]({PLOT})\n")
    write_text(out / PAGE, "\n".join(lines))
    _draw(out / PLOT, results)


COLUMNS = ("round_seconds", "seconds", "peak_bytes", "bytes_a_round")


def _draw(path: Path, results: dict[str, Any]) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "scale"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6))
    for axis, key, title in (
        (axes[0], "round_seconds", "a round"),
        (axes[1], "peak_bytes", "peak memory"),
    ):
        for name, rows in results["sweeps"].items():
            complete = [row for row in rows if row.get(key)]
            if complete:
                sizes = [row["size"] / complete[0]["size"] for row in complete]
                axis.plot(
                    sizes, [row[key] / complete[0][key] for row in complete], "o-", label=name
                )
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("size, smallest = 1")
        axis.set_title(f"{title}, smallest size = 1", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def main() -> int:
    """Measure all sweeps, write the results after each, and report fast growth."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench.scale", description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE, metavar="DIR")
    parser.add_argument(
        "--smaller", type=int, default=1, metavar="N", help="divide all sizes by N, for a trial"
    )
    arguments = parser.parse_args()
    exit_on_sigterm()
    results: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine.describe(),
        "sweeps": {},
    }
    failed = False
    with tempfile.TemporaryDirectory(prefix="fedkd-scale-") as scratch:
        # Decode the images once, outside the measurements.
        first = Path(scratch)
        fedkd(
            "compare",
            STUDY,
            "--set",
            "rounds.max=1",
            folder=first / "warm",
            cache=first / "cache",
        )
        for sweep in sweeps(arguments.smaller):
            begin = time.perf_counter()
            rows = measure(sweep, first, _say)
            _say(f"-- {sweep.name}: {time.perf_counter() - begin:.0f} s in all")
            results["sweeps"][sweep.name] = rows
            failed |= any("error" in row for row in rows)
            write_json(arguments.out / RESULTS, results)
            publish(arguments.out, results)
            for key in COLUMNS:
                growth = power(rows, key)
                if growth is not None and growth > QUADRATIC:
                    _say(f"PROBLEM {sweep.name}: {key} grows as size^{growth:.2f}")
    _say(f"\nResults: {arguments.out}")
    return 1 if failed else 0


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
