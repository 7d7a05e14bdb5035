"""``train``: silos train the global model for one round."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, MetricRecord, RecordDict

from fedkd.messages import keys
from fedkd.messages.arrays import decode_state
from fedkd.messages.envelope import Question, read_config, read_whole_number
from fedkd.messages.validate import read_num_examples, read_state
from fedkd.models.state import State


@dataclass(frozen=True)
class TrainedModel:
    """A model that a silo has trained.

    Attributes:
        state: its weights.
        num_examples: examples that it was trained on.
        loss: mean of the last epoch.
    """

    state: State
    num_examples: int
    loss: float


def write_question(number: int, arrays: ArrayRecord, config: Mapping[str, Any]) -> Question:
    """Ask for a round of training.

    Args:
        number: the round, from 1.
        arrays: the global model.
        config: further values for silos of other programs.
    """
    return Question(keys.TRAIN, number, config, {keys.ARRAYS: arrays})


def read_model(content: RecordDict, *, consumed: bool = False) -> State:
    """Return the global model, at the silo; if ``consumed``, the question has lost it then."""
    return decode_state(content.array_records[keys.ARRAYS], consumed=consumed)


def read_round(content: RecordDict) -> int:
    """Return the round, at the silo."""
    return read_whole_number(read_config(content), keys.ROUND)


def write_reply(trained: TrainedModel) -> RecordDict:
    """Write a silo's answer to ``train`` or ``query.distil``; the model's state is empty then."""
    metrics = MetricRecord({keys.NUM_EXAMPLES: trained.num_examples, keys.LOSS: trained.loss})
    arrays = ArrayRecord(trained.state, keep_input=False)
    return RecordDict({keys.ARRAYS: arrays, keys.METRICS: metrics})


def read_reply(content: RecordDict, *, like: State, max_examples: int) -> TrainedModel:
    """Return a trained model; its loss is 0 where it is not a finite number.

    Args:
        content: of the reply.
        like: the model that was sent.
        max_examples: most examples that a silo may have.

    Raises:
        RefusedError: the model or the number of examples is not valid.
    """
    record = content.metric_records.get(keys.METRICS)
    size = read_num_examples(record, max_examples)
    loss = record.get(keys.LOSS) if record is not None else None
    state = read_state(content.array_records.get(keys.ARRAYS), like)
    known = loss if isinstance(loss, float) and math.isfinite(loss) else 0.0
    return TrainedModel(state, size, known)
