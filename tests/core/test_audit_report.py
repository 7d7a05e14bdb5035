"""The account of an audit log: a row a message, a sum for each study."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from fedkd.deploy.audit import append_entry
from fedkd.deploy.audit_report import COLUMNS, parse_date, read_entries, sum_by_study, to_csv
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


def test_an_edited_line_is_named(log: Path) -> None:
    lines = log.read_text().splitlines()
    log.write_text("\n".join([lines[0], lines[1][:-9], *lines[2:]]))
    with pytest.raises(UserError, match="line 2 is not an entry"):
        sum_by_study(read_entries(log))
