"""``query.receive``: the last message of a run brings its model to silos that ask for it."""

from __future__ import annotations

from flwr.app import ArrayRecord, RecordDict

from fedkd.messages import keys
from fedkd.messages.arrays import decode_state
from fedkd.messages.envelope import Question, read_config, read_whole_number
from fedkd.models.state import State


def write_question(number: int, state: State) -> Question:
    """Send the global model after the last round ``number``."""
    return Question(keys.RECEIVE, number, {}, {keys.ARRAYS: ArrayRecord(state)})


def read_question(content: RecordDict) -> tuple[State, int]:
    """Return the model and the round, at the silo."""
    number = read_whole_number(read_config(content), keys.ROUND)
    return decode_state(content.array_records[keys.ARRAYS]), number
