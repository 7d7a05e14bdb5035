"""A summary that was edited or damaged opens, or is refused in a sentence that names the key."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedkd.api import Comparison
from fedkd.errors import FedKDError, UserError
from fedkd.report.page import render_page
from fedkd.report.paper import write_csv
from fedkd.report.watch import read_state
from fedkd.results.folder import Results
from fedkd.results.record import Point, RunRecord, build

GONE = object()
NESTED = json.loads("[" * 150 + "]" * 150)
DAMAGES = [GONE, None, True, "text", "\ud800", -1, 0.5, 10**30, float("nan"), [], {}, NESTED]
LATER: dict[str, Any] = {
    "warnings": ["few examples"],
    "constant_accuracy": [{"seed": 0, "accuracy": 0.1, "metrics": {"accuracy": 0.1, "auroc": 0.5}}],
    "tuning": [
        {
            "arm": "fedavg",
            "judged_by": "validation accuracy",
            "trials": [{"state": "finished", "value": 0.7, "settings": {"lr": 1, "weight": 0.5}}],
        }
    ],
}
"""Keys that came after 0.1.0."""
LATER_OF_RUN: dict[str, Any] = {
    "silos_get": [
        {
            "silo": "silo-0",
            "num_held_out": 20,
            "own": 0.5,
            "global": 0.4,
            "adjusted": None,
            "fine_tuned": 0.3,
            "best": "own",
            "loses_by": 0.1,
        }
    ],
    "quarantined": [{"silo": "silo-1", "round": 1, "reason": "late"}],
}
LATER_NOTES = {"quarantined_after": {"silo-1": 1}, "warning": "w", "metric_without": ["silo-0"]}


@pytest.fixture(scope="module")
def whole(golden: Path) -> dict[str, Any]:
    """Return the summary of a study that ran, with every key that reports read."""
    summary: dict[str, Any] = json.loads((golden / "results-0.1.0" / "summary.json").read_text())
    summary |= LATER
    for run in summary["runs"]:
        run |= LATER_OF_RUN
        run["notes"] |= LATER_NOTES
        run["curve"][0]["metrics"] = {"accuracy": 0.1, "auroc": None}
    summary["failures"] = [{"arm": "fedavg", "seed": 0, "reason": "it failed"}]
    row = summary["comparison"][0]
    row |= {side: {"arm": 0, "baseline": 0} for side in ("failed", "uncharged")}
    return summary


def change(summary: dict[str, Any], path: list[Any], value: Any) -> dict[str, Any]:
    """Return a copy with one value replaced, or left out."""
    changed = here = copy.deepcopy(summary)
    for key in path[:-1]:
        here = here[key]
    if value is GONE:
        del here[path[-1]]
    else:
        here[path[-1]] = value
    return changed


def show(summary: dict[str, Any], folder: Path) -> str:
    """Show the results in all ways; return the sentence if they are refused."""
    (folder / "summary.json").write_text(json.dumps(summary))
    try:
        results = Results.read(folder)
    except UserError as error:
        return str(error)
    assert render_page([results, results])
    write_csv(results, folder / "tables")
    comparison = Comparison.read(folder)
    assert str(comparison)
    assert comparison.to_pandas() is not None
    assert comparison.comparison() is not None
    return ""


def test_what_any_version_wrote_opens_and_so_do_further_keys(
    whole: dict[str, Any], tmp_path: Path
) -> None:
    more = change(whole, ["later"], NESTED)
    for path in (["runs", 0], ["runs", 0, "curve", 0], ["comparison", 0], ["silos", 0]):
        more = change(more, [*path, "later"], {"key": [None]})
    assert show(more, tmp_path) == ""


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (["runs"], GONE, "runs: is missing"),
        (["runs", 0, "curve"], [], "runs.0.curve: needs at least 1 entry but has 0"),
        (["runs", 0, "curve", 1, "accuracy"], GONE, "runs.0.curve.1.accuracy: is missing"),
        (["runs", 0, "curve", 1, "accuracy"], "0.5", "accuracy: '0.5' is not a number"),
        (["runs", 0, "curve", 1, "accuracy"], float("nan"), "accuracy: nan is"),
        (["runs", 0, "curve", 1, "seconds"], float("inf"), "seconds: inf is not a finite number"),
        (["runs", 0, "curve", 1], 3, "runs.0.curve.1: 3 is not a mapping of keys to values"),
        (["runs", 0, "curve", 1, "round"], 7, "runs.0.curve does not have every round once"),
        (["runs", 0, "targets"], [], ""),
        (["runs", 0, "targets", 0], GONE, "runs.0.targets and resolved.targets differ in length"),
        (["runs", 0, "arm"], "other", "resolved.arms lacks 'other'"),
        (["resolved", "seeds"], GONE, "resolved.seeds: is missing"),
        (["resolved", "targets"], {}, "resolved.targets"),
        (["comparison", 0, "bound"], "none", "comparison.0.bound: 'none' is not one of exact"),
        (["comparison", 0, "range"], [1.0], "comparison.0.range"),
        (["silos", 0, "class_counts", 0], GONE, "differ in length"),
        (["machine"], [], "machine: is a list, but a mapping of keys to values is expected"),
    ],
)
def test_the_sentence_names_the_file_and_the_key(
    path: list[Any], value: Any, sentence: str, whole: dict[str, Any], tmp_path: Path
) -> None:
    refused = show(change(whole, path, value), tmp_path)
    assert sentence in refused
    if sentence:
        assert refused.startswith(f"{tmp_path / 'summary.json'}: ")
        assert refused.endswith("; restore the file, or run the study again")


@pytest.mark.parametrize("text", ["", "[1", "[" * 100_000, '{"schema": 1, "runs": 1e', "\x00"])
def test_what_is_not_json_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(UserError, match="cannot be read: "):
        Results.read(tmp_path)


@given(data=st.data())
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damage_gives_a_traceback(data: Any, whole: dict[str, Any], tmp_path: Path) -> None:
    path: list[Any] = []
    here: Any = whole
    while isinstance(here, dict | list) and here and (not path or data.draw(st.booleans())):
        path.append(data.draw(st.sampled_from(list(here) if isinstance(here, dict) else [0])))
        here = here[path[-1]]
    refused = show(change(whole, path, data.draw(st.sampled_from(DAMAGES))), tmp_path)
    assert "\n" not in refused
    assert not refused or "summary.json" in refused


def test_a_damaged_search_is_refused_and_another_studys_is_left_out(
    whole: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "tune-a.json").write_text("[]")
    (tmp_path / "tune-b.json").write_text('{"study": "other"}')
    assert show(whole, folder) == ""
    (tmp_path / "tune-c.json").write_text('{"study": "tiny", "arm": "a", "judged_by": "b"}')
    assert "tune-c.json: trials: is missing" in show(whole, folder)


def numbers(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every number in a JSON value."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(inner, (*path, key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_no_number_of_a_runs_record_may_be_infinite(
    number: str, golden: Path, tmp_path: Path
) -> None:
    shutil.copytree(golden / "results-0.1.0" / "fedkd-blends" / "seed-0", tmp_path / "run")
    for name in ("rounds.jsonl", "state.json"):
        path, mark = tmp_path / "run" / name, -987654321
        whole = path.read_text()
        line = whole.splitlines()[0] if name == "rounds.jsonl" else whole
        places = list(numbers(json.loads(line)))
        assert len(places) > 5
        for place in places:
            changed = json.dumps(change(json.loads(line), list(place), mark))
            path.write_text(whole.replace(line, changed.replace(str(mark), number), 1))
            with pytest.raises(FedKDError, match="does not contain a finished run: ") as refused:
                RunRecord.read(tmp_path / "run")
            assert "\n" not in str(refused.value)
        path.write_text(whole)
    assert RunRecord.read(tmp_path / "run").arm == "fedkd-blends"


@pytest.mark.parametrize("name", ["../../x/best.safetensors", "/best.safetensors", "state.json"])
def test_a_record_names_no_files_but_models(name: str, golden: Path, tmp_path: Path) -> None:
    """What ``fedkd fetch`` writes to is named by the record, which another host has sent."""
    shutil.copytree(golden / "results-0.1.0" / "fedavg" / "seed-0", tmp_path / "run")
    path = tmp_path / "run" / "state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps({**state, "models": {"round-0010.safetensors": "0" * 64}}))
    assert RunRecord.read(tmp_path / "run").models
    path.write_text(json.dumps({**state, "models": {name: "0" * 64}}))
    with pytest.raises(FedKDError, match="does not contain a finished run"):
        RunRecord.read(tmp_path / "run")


@pytest.mark.parametrize("key", ["seconds", "bytes_up", "silos_ok", "round"])
def test_no_cost_of_a_round_is_negative(key: str) -> None:
    point = dict.fromkeys(("round", "bytes_up", "bytes_down", "silos_ok", "silos_failed"), 1)
    point |= {"accuracy": 0.5, "loss": -0.1, "seconds": 0.0}
    assert build(Point, point).loss == -0.1
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        build(Point, {**point, key: -1})


def test_watch_shows_a_run_whose_files_are_damaged_as_one_that_waits(
    golden: Path, tmp_path: Path
) -> None:
    shutil.copytree(golden / "results-0.1.0", tmp_path / "run")
    for text in ('{"round": 0, "accuracy": "x"}\n', "[" * 100_000 + "\n", "7\n"):
        for file in (tmp_path / "run").glob("fedavg/seed-0/*"):
            file.write_text(text)
        assert [run.phase for run in read_state(tmp_path / "run").runs] == [
            *("waiting", "budget", "budget")
        ]
