"""The account of an audit log: a row a message, a sum for each study."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedkd.cli import app
from fedkd.deploy.audit import append_entry, check_log, check_user
from fedkd.deploy.audit_report import (
    COLUMNS,
    DAMAGED,
    parse_date,
    read_entries,
    sum_by_study,
    to_csv,
)
from fedkd.errors import UserError


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "audit.jsonl"
    append_entry(path, {"type": "train", "bytes": 100, "sent": {}})  # of an earlier version
    hashes = {"code": "c1", "data": "d", "transfer": None}
    run = {"study": "=lesions", "arm": "fedkd", "seed": 0, **hashes}
    append_entry(path, {**run, "type": "query.teacher", "bytes": 7, "sha256": "f", "transfer": "t"})
    append_entry(path, {**run, "type": "train", "bytes": 5, "code": "c2"})
    append_entry(path, {**run, "type": "train", "bytes": 9, "refused": "share.rounds"})
    return path


def test_sums_are_by_study_and_refusals_send_no_bytes(log: Path) -> None:
    unnamed, lesions = sum_by_study(read_entries(log))
    assert (unnamed["study"], unnamed["messages"], unnamed["bytes"]) == ("(not named)", 1, 100)
    assert (lesions["messages"], lesions["refused"], lesions["bytes"]) == (3, 1, 12)
    assert lesions["kinds"] == {"query.teacher": 1, "train": 2}
    assert (lesions["code"], lesions["data"], lesions["transfer"]) == (["c1", "c2"], ["d"], ["t"])
    assert lesions["first"] <= lesions["last"]


def test_csv_has_a_row_a_message_and_no_formula(log: Path) -> None:
    header, *rows = csv.reader(io.StringIO(to_csv(read_entries(log))))
    assert tuple(header) == COLUMNS
    assert [row[header.index("bytes")] for row in rows] == ["100", "7", "5", "9"]
    assert {row[header.index("study")] for row in rows} == {"", "'=lesions"}


def test_since_is_a_time_in_utc(log: Path) -> None:
    times = [entry["time"] for entry in read_entries(log)]
    assert len(list(read_entries(log, parse_date("2020-01-01")))) == 4
    assert not list(read_entries(log, parse_date("2999-01-01")))
    assert parse_date("2026-03-01T08:00+02:00") == parse_date("2026-03-01T06:00")
    assert list(read_entries(log, parse_date(times[3])))[-1]["refused"] == "share.rounds"
    with pytest.raises(UserError, match="--since: 'March' is not a date"):
        parse_date("March")


def test_a_damaged_line_is_listed_and_hides_no_other(log: Path, tmp_path: Path) -> None:
    lines = log.read_text().splitlines()
    log.write_text("\n".join([lines[0], lines[1][:-9], lines[2].replace("5", "1e999"), lines[3]]))
    _, damaged, lesions = sum_by_study(read_entries(log, parse_date("2020-01-01")))
    assert damaged["study"] == DAMAGED
    assert damaged["kinds"] == {"line 2 of the log": 1, "line 3 of the log": 1}
    assert (lesions["messages"], lesions["refused"]) == (1, 1)
    silo = {"name": "n", "data": "npz:d.npz", "share": {"teacher": "none"}, "audit": log.name}
    (tmp_path / "silo.yaml").write_text(json.dumps(silo))
    for option in ("--csv", "--json"):
        shown = CliRunner().invoke(app, ["silo", "audit", str(tmp_path / "silo.yaml"), option])
        assert shown.exit_code == 1
        assert "line 2 of the log" in shown.output


def test_a_line_that_a_full_disk_cuts_is_not_counted_as_written(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda handle, line: write(handle, line[:20]))
        with pytest.raises(UserError, match="No space left on device"):
            append_entry(log, {"study": "lesions", "type": "train", "bytes": 3})
    append_entry(log, {"study": "lesions", "type": "evaluate", "bytes": 4})
    *_, damaged, last = sum_by_study(read_entries(log))
    assert damaged["kinds"] == {"line 5 of the log": 1}
    assert (last["study"], last["kinds"]) == ("lesions", {"evaluate": 1})


def test_a_loss_that_is_no_number_leaves_a_line_of_json(log: Path) -> None:
    append_entry(
        log, {"type": "train", "bytes": 1, "sent": {"m": {"loss": float("nan")}, "n": (1,)}}
    )
    refuse = lambda constant: pytest.fail(constant)  # noqa: E731 -- json calls it
    entry = json.loads(log.read_text().splitlines()[-1], parse_constant=refuse)
    assert entry["sent"] == {"m": {"loss": "nan"}, "n": [1]}


def test_a_check_makes_no_log_and_another_users_log_is_left_alone(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_log(log)
    check_log(tmp_path / "not" / "yet.jsonl")
    assert not (tmp_path / "not").exists()
    for path in (tmp_path, log / "below.jsonl"):
        with pytest.raises(UserError, match="cannot be written"):
            check_log(path)
    check_user(log)
    monkeypatch.setattr(os, "geteuid", lambda: log.stat().st_uid + 1)
    check_user(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=f"{log} is of the user .*sudo -u "):
        check_user(log)
