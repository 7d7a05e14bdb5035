"""A study for each point of a grid of settings, in one folder, with one table of all."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from fedkd.config import Study
from fedkd.config.study_file import resolve_study
from fedkd.errors import FedKDError, UserError
from fedkd.report.page import write_report
from fedkd.report.paper import comparison_rows, to_latex
from fedkd.report.tables import Table, arms_table
from fedkd.results.folder import REPORT_FILE, STUDY_FILE, Results
from fedkd.runner.run import execute
from fedkd.util import interrupt
from fedkd.util.files import parse_json, to_csv, write_json, write_text
from fedkd.util.lock import lock_folder
from fedkd.util.yaml_loader import load_yaml

PLAN_FILE, SUMMARY = "sweep.json", "sweep-summary.json"
_MOST_POINTS = 1000
Values = Mapping[str, Any]
"""Of the swept keys, by their paths."""


@dataclass(frozen=True)
class SweepOutcome:
    """A sweep's folder, the content of ``sweep-summary.json``, and the savings at each point."""

    folder: Path
    summary: dict[str, Any]
    table: Table
    interrupted: bool


def parse_grid(texts: Sequence[str]) -> Sequence[Values]:
    """Return the points of a grid, the last key the fastest.

    Args:
        texts: ``key=value,value`` each; values are YAML.

    Raises:
        UserError: one is not of this form, or names a key or a value twice.
    """
    grid: dict[str, list[Any]] = {}
    for text in texts:
        origin, (key, _, values) = f"--grid {text}", text.partition("=")
        parsed = load_yaml(f"[{values}]", origin=origin)
        if not parsed or not key:
            raise UserError(f"{origin}: write it as path=value,value, such as rounds.lr=0.05,0.1")
        if key in grid or len(set(map(json.dumps, parsed))) < len(parsed):
            raise UserError(f"{origin}: names a {'key' if key in grid else 'value'} twice")
        grid[key] = parsed
    points = [dict(zip(grid, each, strict=True)) for each in product(*grid.values())]
    if len(points) > _MOST_POINTS:
        raise UserError(f"--grid: has {len(points)} points, more than {_MOST_POINTS}")
    return points


def overrides_of(values: Values) -> list[str]:
    """Return the values of a point as options ``--set`` of a study have them."""
    return [f"{key}={_show(value)}" for key, value in values.items()]


def begin_sweep(points: Sequence[tuple[Values, Study]], *, out: Path, fresh: bool) -> Path:
    """Make the folder ``OUT/STUDY-sweep/TIME`` of a sweep, with the studies of all points."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    folder = out / f"{points[0][1].name}-sweep" / stamp
    listed = [{"values": values, "study": study.to_dict()} for values, study in points]
    try:
        folder.mkdir(parents=True)
        write_json(folder / PLAN_FILE, {"fresh": fresh, "points": listed})
    except OSError as error:
        raise FedKDError(f"{folder} cannot be written to: {error.strerror}; give --out") from error
    return folder


def run_sweep(folder: Path, console: Console) -> SweepOutcome:
    """Run what is left of a sweep, one point after the other; its progress is shown.

    Raises:
        UserError: the folder is not one of :func:`begin_sweep`.
    """
    path = folder / PLAN_FILE
    try:
        plan = parse_json(path.read_text(encoding="utf-8"))
        fresh, points = plan["fresh"], [(p["values"], p["study"]) for p in plan["points"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); give the folder that fedkd sweep prints"
        ) from error
    runs: list[tuple[Values, Path]] = []
    interrupted = False
    with lock_folder(folder):
        for number, (values, resolved) in enumerate(points, 1):
            interrupt.advise(f"Resume with: fedkd sweep --resume {shlex.quote(str(folder))}")
            label, study = ", ".join(overrides_of(values)), resolve_study(resolved)
            place = folder / f"{number}-{re.sub(r'[^A-Za-z0-9.=_-]+', '-', label)[:100]}"
            begun = max((path.parent for path in place.glob(f"*/[!.]*/{STUDY_FILE}")), default=None)
            console.print(f"{number} of {len(points)}: {label}", soft_wrap=True, markup=False)
            outcome = execute(study, console, out=place, fresh=fresh, resume=begun)
            runs.append((values, outcome.folder))
            if interrupted := outcome.interrupted:
                break
        interrupt.advise(f"Resume with: fedkd sweep --resume {shlex.quote(str(folder))}")
        return SweepOutcome(folder, *_summarise(folder, runs), interrupted)


def _summarise(folder: Path, runs: Sequence[tuple[Values, Path]]) -> tuple[dict[str, Any], Table]:
    """Write the summary, the report and the tables of the points that were run."""
    results = [
        Results(Results.read(run).summary, ", ".join(overrides_of(values))) for values, run in runs
    ]
    points, rows = [], []
    for (values, run), each in zip(runs, results, strict=True):
        place = run.relative_to(folder).as_posix()
        points.append({"values": values, "folder": place, "failures": each.summary["failures"]})
        rows += [{**values, **row} for row in comparison_rows(each)]
    saved = arms_table(results)
    cells = [
        [*map(_show, values.values()), *row[1:]]
        for (values, _), row in zip(runs, saved.rows, strict=True)
    ]
    table = Table([*runs[0][0], *saved.head[1:]], cells)
    summary = {"points": points, "rows": rows}
    write_json(folder / SUMMARY, summary)
    write_text(folder / "comparison.csv", to_csv(rows))
    write_text(folder / "savings.tex", to_latex(table.head, table.rows))
    write_report(results, folder / REPORT_FILE)
    return summary, table


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
