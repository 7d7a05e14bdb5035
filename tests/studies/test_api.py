"""fedkd from Python: light to import, typed, and the same results as the command line's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import fedkd

LIGHT = """
import sys, fedkd
names = dir(fedkd)
fedkd.Study, fedkd.Comparison, fedkd.compare, fedkd.load_study, fedkd.UserError
heavy = {"torch", "flwr", "ray", "sklearn", "pandas", "matplotlib"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""


def test_importing_fedkd_imports_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_all_that_is_offered_is_there() -> None:
    assert set(fedkd.__all__) <= set(dir(fedkd))
    assert all(getattr(fedkd, name) for name in fedkd.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fedkd.nothing  # noqa: B018 -- the access is the test


def test_a_study_may_be_a_path_a_dictionary_or_a_study(
    make_data: Any, make_study: Any, tmp_path: Path
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(make_data()))
    ways = [path, str(path), make_data(), make_study()]
    found = [fedkd.compare(study, out=tmp_path / "runs") for study in ways]
    curves = [
        c.to_pandas().drop(columns=["seconds", "seconds_so_far", "cached"]).to_dict() for c in found
    ]
    assert all(each == curves[0] for each in curves)
    assert len({c.folder for c in found}) == len(ways)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, make_data: Any) -> fedkd.Comparison:
    return fedkd.compare(make_data({"targets": [0.3]}), out=tmp_path_factory.mktemp("api"))


def test_curves_are_those_of_the_rounds_files(results: fedkd.Comparison) -> None:
    table = results.to_pandas()
    for arm in ("fedavg", "fedkd"):
        lines = (results.folder / arm / "seed-0/rounds.jsonl").read_text().splitlines()
        own = table[table["arm"] == arm]
        assert own["accuracy"].tolist() == [json.loads(line)["accuracy"] for line in lines]
    assert table["exchanges"].tolist() == [0, 1, 2, 1, 2, 3]


def test_comparison_plot_and_report(results: fedkd.Comparison, tmp_path: Path) -> None:
    (row,) = results.comparison().to_dict("records")
    assert row["exchanges_saved_pct"] == results.summary["comparison"][0]["exchanges_saved_pct"]
    assert results.plot("megabytes").axes[0].get_xlabel() == "megabytes"
    with pytest.raises(ValueError, match="not 'metres'"):
        results.plot("metres")
    assert results.report(tmp_path / "page.html").stat().st_size > 1_000_000
    assert results.report() == results.folder / "report.html"
    assert "exchanges" in str(results) or "No verdict" in str(results)


def test_results_on_disk_are_read_again(results: fedkd.Comparison) -> None:
    again = fedkd.Comparison.read(results.folder.parent)
    assert again.folder == results.folder
    assert again.summary == json.loads(json.dumps(results.summary))


def test_an_impossible_study_is_refused(make_data: Any, tmp_path: Path) -> None:
    with pytest.raises(fedkd.UserError, match="did you mean 'rounds'"):
        fedkd.compare(make_data({"rouns": {"max": 3}}), out=tmp_path)


def test_a_tracker_is_told_of_every_round(
    make_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = fedkd.compare(make_data(), out=tmp_path / "runs", track=["tensorboard"])
    assert list(found.folder.rglob("events.out.tfevents.*"))
    with pytest.raises(fedkd.UserError, match="tensorbord"):
        fedkd.compare(make_data(), out=tmp_path / "runs", track=["tensorbord"])
