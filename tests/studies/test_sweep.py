"""``fedkd sweep``: one table of all points, resumable, and refused before anything runs."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedkd.runner import run, sweep

GRID = ("--grid", "rounds.lr=0.05,0.2", "--grid", "arms.fedkd.consolidation.epochs=2")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fedkd(fedkd: Run, make_data: Any) -> Run:
    """Return a function that runs ``fedkd sweep`` beside ``study.yaml``."""
    study = make_data({"name": "tiny-sweep", "rounds/max": 1, "targets": [0.3]})
    Path("study.yaml").write_text(yaml.safe_dump(study))
    return partial(fedkd, "sweep")


def savings(folder: Path) -> list[tuple[str, ...]]:
    """Return the rows of the table without the columns of time, which differs."""
    with (folder / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [tuple(v for k, v in row.items() if "seconds" not in k) for row in rows]


def test_every_point_is_run_once_though_the_sweep_was_killed(
    fedkd: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[float] = []
    run_study = run.run_study

    def killed_at_the_second(study: Any, **options: Any) -> Any:
        begun.append(study.rounds.lr)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return run_study(study, **options)

    monkeypatch.setattr(run, "run_study", killed_at_the_second)
    code, _, err = fedkd("study.yaml", *GRID, "--out", "killed")
    (folder,) = (tmp_path / "killed" / "tiny-sweep-sweep").iterdir()
    assert code == 130
    assert f"Resume with: fedkd sweep --resume killed/tiny-sweep-sweep/{folder.name}" in err
    assert not (folder / sweep.SUMMARY).exists()

    code, out, _ = fedkd("--resume", str(folder))
    assert (code, begun) == (0, [0.05, 0.2, 0.2])
    assert "rounds.lr" in out

    monkeypatch.setattr(run, "run_study", run_study)
    code, out, _ = fedkd("study.yaml", *GRID, "--out", "whole", "--json")
    (whole,) = (tmp_path / "whole" / "tiny-sweep-sweep").iterdir()
    assert savings(folder) == savings(whole)
    summary = json.loads(out)
    assert summary == json.loads((whole / sweep.SUMMARY).read_text())
    swept = [(row["rounds.lr"], row["arm"]) for row in summary["rows"]]
    assert swept == [(0.05, "fedkd"), (0.2, "fedkd")]
    assert summary["rows"][0]["arms.fedkd.consolidation.epochs"] == 2
    for point in summary["points"]:
        assert (whole / point["folder"] / "report.html").is_file()
    latex = (whole / "savings.tex").read_text()
    assert r"\begin{tabular}" in latex
    assert "0.05 & 2 & 30~\\% & fedavg" in latex
    page = (whole / "report.html").read_text()
    assert page.count("rounds.lr=0.2, arms.fedkd.consolidation.epochs=2") > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "sweep: give a study file and --grid, such as"),
        (("study.yaml", "--grid", "rounds.lr"), "--grid rounds.lr: write it as path=value,value"),
        (("study.yaml", "--grid", "rounds.lr=0.1,0.1"), "names a value twice"),
        (("study.yaml", "--grid", "seeds=[1],[2]", "--grid", "seeds=[3]"), "names a key twice"),
        (("study.yaml", "--grid", "rounds.lrr=1,2"), "rounds.lrr: unknown key (did you mean"),
        (("study.yaml", "--grid", "rounds.lr=0.1,-1"), "rounds.lr: "),
        (("study.yaml", "--grid", f"seeds={','.join(map(str, range(1001)))}"), "1001 points, more"),
        (("--resume", "."), "sweep.json cannot be read"),
        (("study.yaml", *GRID, "--resume", "."), "sweep: give a study file and --grid"),
    ],
)
def test_a_sweep_is_refused_before_anything_is_written(
    fedkd: Run, arguments: tuple[str, ...], message: str
) -> None:
    code, _, err = fedkd(*arguments)
    assert code == 2
    assert message in err
    assert not Path("runs").exists()
