"""``evaluate``: silos measure the global model on their own images."""

from __future__ import annotations

import sys

from flwr.app import ArrayRecord, MetricRecord, RecordDict

from fedkd.messages import keys
from fedkd.messages.arrays import decode_state
from fedkd.messages.envelope import Question
from fedkd.messages.validate import RefusedError, read_num_examples
from fedkd.models.state import State
from fedkd.training.evaluate import Metrics


def write_question(number: int, arrays: ArrayRecord) -> Question:
    """Ask how good the global model is after a round; 0 is the start."""
    return Question(keys.EVALUATE, number, {}, {keys.ARRAYS: arrays})


def read_question(content: RecordDict) -> State:
    """Return the global model, at the silo."""
    return decode_state(content.array_records[keys.ARRAYS])


def write_reply(metrics: Metrics, num_examples: int) -> RecordDict:
    """Write a silo's figures and the number of images that they are of."""
    return RecordDict({keys.METRICS: write_metrics(metrics, num_examples=num_examples)})


def write_metrics(metrics: Metrics, **counts: int) -> MetricRecord:
    """Return figures of a model as Flower's record, with counts such as ``num_examples``."""
    named = {key.replace("_", "-"): count for key, count in counts.items()}
    figures = {
        keys.ACCURACY: metrics.accuracy,
        keys.LOSS: metrics.loss,
        keys.MACRO_F1: metrics.macro_f1,
    }
    return MetricRecord({**named, **figures})


def read_metrics(record: MetricRecord) -> Metrics:
    """Return figures that this program wrote."""
    accuracy, loss, macro_f1 = (
        float(str(record[key])) for key in (keys.ACCURACY, keys.LOSS, keys.MACRO_F1)
    )
    return Metrics(accuracy, loss, macro_f1)


def read_reply(content: RecordDict, *, max_examples: int) -> tuple[Metrics, int]:
    """Return a silo's figures and the number of images that they are of.

    Raises:
        RefusedError: one of them is out of range.
    """
    record = content.metric_records.get(keys.METRICS)
    size = read_num_examples(record, max_examples)
    figures = []
    for key, most in ((keys.ACCURACY, 1.0), (keys.LOSS, sys.float_info.max), (keys.MACRO_F1, 1.0)):
        value = record.get(key) if record is not None else None
        if not isinstance(value, float) or not 0 <= value <= most:
            raise RefusedError(f"its {key} is out of range")
        figures.append(value)
    return Metrics(*figures), size


def withhold_loss(content: RecordDict) -> None:
    """Take the loss out of an answer, where a silo does not share figures of a model."""
    record = content.metric_records.get(keys.METRICS)
    if record is not None and keys.LOSS in record:
        del record[keys.LOSS]
