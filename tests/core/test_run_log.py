"""The record as lines of a log: what is damaged, lost, doubled or out of order is noticed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd.messages.run_log import BrokenLogError, LogReader, encode_line

VALUES = [{"round": 0, "accuracy": 0.1}, {"round": 1, "accuracy": 0.25}, {"round": 2}]
LINES = [encode_line(number, "point", value) for number, value in enumerate(VALUES)]


def test_lines_come_back_in_order_among_others() -> None:
    reader = LogReader()
    log = ["INFO : something", LINES[0], "", f"INFO : {LINES[1]}", LINES[2] + "\r"]
    assert [found for line in log if (found := reader.read(line))] == [
        ("point", value) for value in VALUES
    ]


def test_a_log_shown_again_says_nothing_new() -> None:
    reader = LogReader()
    for line in LINES[:2]:
        reader.read(line)
    assert [reader.read(line) for line in LINES] == [None, None, ("point", VALUES[2])]


def test_a_missing_line_is_noticed_and_can_be_read_later() -> None:
    reader = LogReader()
    reader.read(LINES[0])
    with pytest.raises(BrokenLogError, match=r"line 1 .* is missing"):
        reader.read(LINES[2])
    assert reader.read(LINES[1]) == ("point", VALUES[1])
    assert reader.read(LINES[2]) == ("point", VALUES[2])


def test_another_version_of_a_line_is_noticed() -> None:
    reader = LogReader()
    reader.read(LINES[0])
    with pytest.raises(BrokenLogError, match="two versions"):
        reader.read(encode_line(0, "point", {"round": 0, "accuracy": 0.9}))


@given(st.integers(0, len(LINES[0]) - 1), st.characters(codec="ascii", categories=["L", "N"]))
def test_a_changed_character_is_noticed(place: int, character: str) -> None:
    changed = LINES[0][:place] + character + LINES[0][place + 1 :]
    reader = LogReader()
    if changed == LINES[0]:
        return
    try:
        # Without its mark it is no line of ours; then the next one is not the first.
        assert reader.read(changed) is None
    except BrokenLogError:
        return
    with pytest.raises(BrokenLogError, match="is missing"):
        reader.read(LINES[1])


@pytest.mark.parametrize("end", range(20, len(LINES[0]), 7))
def test_a_line_cut_short_is_noticed(end: int) -> None:
    with pytest.raises(BrokenLogError):
        LogReader().read(LINES[0][:end])


def test_not_a_number_never_enters_the_log() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_line(0, "point", {"accuracy": float("nan")})
