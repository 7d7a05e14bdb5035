"""Figures and tables for papers."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import pytest

from fedkd.errors import UserError
from fedkd.report.paper import draw_accuracy, write_csv, write_pictures
from fedkd.results.folder import Results


@pytest.fixture
def results(make_summary: Any) -> Results:
    curves = {"fedavg": [[0.1, 0.2], [0.1, 0.6]], "fedkd": [[0.6], [0.6]]}
    summary = make_summary(curves)
    summary["silos"][0]["silo"] = "$\\frac{1}{$"
    return Results(summary, "tiny")


@pytest.mark.parametrize(("kind", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_pictures_are_the_same_every_time(
    kind: str, magic: bytes, results: Results, tmp_path: Path
) -> None:
    first = write_pictures(results, tmp_path / "a", kind)
    second = write_pictures(results, tmp_path / "b", kind)
    names = ["accuracy-exchanges", "accuracy-megabytes", "savings-50", "classes"]
    assert [path.name for path in first] == [f"{name}.{kind}" for name in names]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes().startswith(magic)
        assert one.read_bytes() == two.read_bytes()


def test_arms_differ_in_more_than_colour(results: Results) -> None:
    lines = draw_accuracy(results).axes[0].get_lines()
    named = [line for line in lines if not str(line.get_label()).startswith("_")]
    assert [line.get_label() for line in named] == ["fedavg", "fedkd"]
    assert len({line.get_linestyle() for line in named}) == 2
    assert len({line.get_marker() for line in named}) == 2


def test_tables_are_tidy(results: Results, tmp_path: Path) -> None:
    written = {
        path.stem: list(csv.DictReader(path.open())) for path in write_csv(results, tmp_path)
    }
    assert list(written) == ["curves", "targets", "comparison", "silos"]
    assert len(written["curves"]) == 6
    assert written["curves"][-1]["exchanges"] == "1"
    assert [row["round"] for row in written["targets"]] == ["", "1", "0", "0"]
    (row,) = written["comparison"]
    assert (row["bound"], row["exchanges_arm"], row["exchanges_baseline"]) == ("at_least", "2", "2")
    assert len(written["silos"]) == 2 * 3 * 2


def test_without_matplotlib_a_sentence_says_what_to_install(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'matplotlib>="):
        write_pictures(results, tmp_path, "png")
