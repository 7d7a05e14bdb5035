"""``fedkd pairs``: the table and its files, the same for any number of threads, and going on."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedkd.pairs import command
from fedkd.pairs.measure import COLUMNS
from fedkd.report.progress import PairsProgress

FOLDER = Path("runs/tiny")


@pytest.fixture
def fedkd(fedkd: Any) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs ``fedkd pairs`` on the tiny study with more arguments."""

    def run(data: dict[str, Any], *arguments: str) -> tuple[int, str, str]:
        Path("study.yaml").write_text(yaml.safe_dump(data))
        found: tuple[int, str, str] = fedkd("pairs", "study.yaml", "--epochs", "2", *arguments)
        return found

    return run


def read() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "pairs.json").read_text())
    return found


def timeless(results: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**row, "seconds": None} for row in results["rows"]]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str, str, str]]:
    """Return a list that grows by every row that is computed."""
    seen: list[tuple[int, str, str, str]] = []
    measure = command.measure

    def counting(pair: Any, method: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        seen.append((pair.seed, pair.teacher.silo, pair.student.silo, method))
        return measure(pair, method, *args, **kwargs)

    monkeypatch.setattr(command, "measure", counting)
    return seen


def test_all_pairs_under_all_methods_as_json_and_csv(fedkd: Any, make_data: Any) -> None:
    data = make_data({"data/transfer": {"size": 60, "labelled": True}})
    code, out, _ = fedkd(data, "--seeds", "0,1")
    assert code == 0
    results = read()
    methods = ["kd", "kd-tuned", "dml", "dp-kd", "fine-tune"]
    assert results["methods"] == methods
    assert len(results["rows"]) == 2 * 6 * len(methods)
    assert [row["method"] for row in results["rows"]] == methods * 12
    assert [entry["pairs"] for entry in results["summary"]] == [12] * len(methods)
    assert results["settings"]["epochs"] == 2
    with (FOLDER / "pairs.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == list(results["columns"]) == list(COLUMNS)
    for line, row in zip(table, results["rows"], strict=True):
        assert line == {key: "" if value is None else str(value) for key, value in row.items()}
    for method in methods:
        assert f"│ {method} " in out
    assert "with complementary knowledge" in out
    assert "pairs.csv" in out


def test_any_number_of_threads_gives_the_same_table(fedkd: Any, make_data: Any) -> None:
    tables = []
    for workers in ("1", "3"):
        given = ("--fresh", "--set", f"engine.workers={workers}", "--json")
        code, out, _ = fedkd(make_data(), *given)
        assert code == 0
        assert json.loads(out) == read()
        tables.append(timeless(read()))
    assert tables[0] == tables[1]


def test_finished_rows_are_not_computed_again(
    fedkd: Any, make_data: Any, measured: list[Any]
) -> None:
    fedkd(make_data(), "--methods", "kd")
    assert len(measured) == 6
    fedkd(make_data(), "--methods", "dml, kd")
    assert measured[6:] == [row for row in measured if row[3] == "dml"]
    assert [row["method"] for row in read()["rows"]] == ["dml", "kd"] * 6
    fedkd(make_data({"pretraining/epochs": 3}), "--methods", "kd")
    assert len(measured) == 18
    fedkd(make_data(), "--methods", "kd", "--fresh")
    assert len(measured) == 24


def test_an_interrupted_table_goes_on(
    fedkd: Any, make_data: Any, measured: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:

        def tired(self: PairsProgress, ended: int, total: int) -> None:
            if ended == 2:
                raise KeyboardInterrupt

        patched.setattr(PairsProgress, "on_row", tired)
        code, _, err = fedkd(make_data())
    assert code == 130
    assert "Interrupted. The same command resumes" in err
    partial = read()
    kept = len(partial["rows"])
    assert 2 <= kept < 24
    assert partial["interrupted"]
    assert partial["missing"] == 24 - kept
    measured.clear()
    assert fedkd(make_data())[0] == 0
    assert len(measured) == 24 - kept
    whole = read()
    assert not whole["interrupted"]
    assert [row for row in whole["rows"] if row in partial["rows"]] == partial["rows"]
    fedkd(make_data(), "--fresh")
    assert timeless(read()) == timeless(whole)


@pytest.mark.parametrize(
    ("changes", "arguments", "sentence"),
    [
        ({}, ("--methods", "fine-tune"), "--methods: fine-tune learns from labels"),
        ({}, ("--methods", "kdd"), "did you mean 'kd'?"),
        ({}, ("--methods", "nowhere:nothing"), "cannot be imported"),
        ({"data/validation": 0}, ("--methods", "kd-tuned"), "data.validation is 0"),
        ({"partition/silos": 1}, (), "a pair needs two silos"),
    ],
)
def test_what_is_impossible_is_refused_before_anything_is_written(
    fedkd: Any, make_data: Any, changes: Any, arguments: tuple[str, ...], sentence: str
) -> None:
    code, _, err = fedkd(make_data(changes), *arguments)
    assert code == 2
    assert sentence in err
    assert not Path("runs").exists()


def test_a_silo_whose_model_diverged_is_left_out(fedkd: Any, make_data: Any) -> None:
    diverging = {"model/arch": "resnet8", "pretraining/epochs": 2, "pretraining/lr": 1000}
    code, _, err = fedkd(make_data(diverging), "--methods", "kd")
    assert code == 1
    assert "silo-0 is left out" in err
    assert "fewer than two silos" in err


def test_a_method_of_the_users_own(
    fedkd: Any, make_data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "def still(student, lesson, settings, *, generator, compute, on_epoch=None):\n"
    Path("mine_pairs.py").write_text(f"{text}    return 0.0\n")
    code, out, _ = fedkd(make_data(), "--methods", "mine_pairs:still", "--json")
    assert code == 0
    assert {row["delta"] for row in json.loads(out)["rows"]} == {0.0}
