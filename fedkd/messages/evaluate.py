"""``evaluate``: silos measure the global model, or one that a user names, on their own examples.

After the last round deployed silos are asked what they get from the run.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence

import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from torch import Tensor

from fedkd.messages import keys
from fedkd.messages.arrays import decode_state
from fedkd.messages.envelope import Question, read_config
from fedkd.messages.validate import RefusedError, printable, read_num_examples
from fedkd.models.state import State
from fedkd.registry import METRICS, METRICS_FROM_SUMS, metric_key
from fedkd.results.record import SiloGets
from fedkd.training.class_sums import ClassSums
from fedkd.training.evaluate import Metrics

_CLASS_SUMS = (keys.CLASS_LABELS, keys.CLASS_PREDICTED, keys.CLASS_HITS)
"""In the order of :class:`ClassSums`."""
_GETS = {"own": "own", "global": "global", "adjusted": "adjusted", "fine-tuned": "fine_tuned"}
"""Keys of what a silo gets, and of :data:`fedkd.results.record.SiloGets`."""
_OVERALL = "overall-"
"""Before the names of metrics in the server's own records, which no message carries."""


def write_question(number: int, arrays: ArrayRecord, arch: str | None = None) -> Question:
    """Ask how good a model is.

    Args:
        number: the round after which the global model is measured, 0 for the start; or the index of
            a model that a user names.
        arrays: the model.
        arch: its architecture, if it is not the arm's.
    """
    config = {} if arch is None else {keys.ARCHITECTURE: arch}
    return Question(keys.EVALUATE, number, config, {keys.ARRAYS: arrays})


def read_question(
    content: RecordDict, arch: str, architectures: Collection[str], *, consumed: bool = False
) -> tuple[str, State, bool]:
    """Return the model and its architecture, at the silo, and whether a user named the model.

    Args:
        content: of the question.
        arch: of the arm's global model, where the question names none.
        architectures: those of the study; no other is built.
        consumed: whether the question loses the model.

    Raises:
        ValueError: the architecture is not one of the study's.
    """
    config = read_config(content)
    named = config.get(keys.ARCHITECTURE, arch)
    if named not in architectures:
        raise ValueError(f"the model is of the architecture {named!r}, which the study has not")
    is_given = keys.ARCHITECTURE in config
    state = decode_state(content.array_records[keys.ARRAYS], consumed=consumed)
    return str(named), state, is_given


def write_reply(metrics: Metrics, num_examples: int, *, metric: str) -> RecordDict:
    """Write a silo's figures and the number of examples that they are of.

    Args:
        metrics: of the global model.
        num_examples: examples.
        metric: of the study; if it needs sums by class, these are in the reply too.
    """
    record = write_metrics(metrics, num_examples=num_examples)
    if metric in METRICS_FROM_SUMS and metrics.sums is not None:
        for key, counts in zip(_CLASS_SUMS, vars(metrics.sums).values(), strict=True):
            record[key] = list(counts)
    return RecordDict({keys.METRICS: record})


def write_metrics(metrics: Metrics, **counts: int) -> MetricRecord:
    """Return figures of a model as Flower's record, with counts such as ``num_examples``."""
    named = {key.replace("_", "-"): count for key, count in counts.items()}
    figures = {
        keys.ACCURACY: metrics.accuracy,
        keys.LOSS: metrics.loss,
        keys.MACRO_F1: metrics.macro_f1,
    }
    overall = {
        f"{_OVERALL}{metric}": value
        for metric in METRICS
        if (value := metrics.values.get(metric_key(metric))) is not None
    }
    return MetricRecord({**named, **figures, **overall})


def read_metrics(record: MetricRecord) -> Metrics:
    """Return figures that this program wrote."""
    accuracy, loss, macro_f1 = (
        float(str(record[key])) for key in (keys.ACCURACY, keys.LOSS, keys.MACRO_F1)
    )
    values: dict[str, float | None] = {}
    for metric in METRICS:
        value = record.get(f"{_OVERALL}{metric}")
        values[metric_key(metric)] = None if value is None else float(str(value))
    return Metrics(accuracy, loss, macro_f1, values)


def read_reply(content: RecordDict, *, num_classes: int, max_examples: int) -> tuple[Metrics, int]:
    """Return a silo's figures and the number of examples that they are of.

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
    accuracy, loss, macro_f1 = figures
    sums = _read_class_sums(record, num_classes, size)
    return Metrics(accuracy, loss, macro_f1, sums=sums), size


def _read_class_sums(record: MetricRecord | None, num_classes: int, size: int) -> ClassSums | None:
    """Return sums by class; None where the silo withholds them.

    Raises:
        RefusedError: they are no counts of ``size`` examples.
    """
    if record is None or not any(key in record for key in _CLASS_SUMS):
        return None
    lists = []
    for key in _CLASS_SUMS:
        counts = record.get(key)
        if not isinstance(counts, list) or len(counts) != num_classes:
            raise RefusedError(
                f"{key} is {printable(counts)} where {num_classes} numbers are expected"
            )
        if not all(type(count) is int and 0 <= count <= size for count in counts):
            raise RefusedError(f"{key} contains an invalid count: {printable(counts)}")
        lists.append(tuple(int(count) for count in counts))
    labels, predicted, hits = lists
    if sum(labels) != size or sum(predicted) != size:
        raise RefusedError(f"its sums by class are not of {size} examples")
    if any(hit > min(pair) for hit, *pair in zip(hits, labels, predicted, strict=True)):
        raise RefusedError(f"{keys.CLASS_HITS} has more examples than the class")
    return ClassSums(labels, predicted, hits)


def write_gets_question(number: int, arrays: ArrayRecord, everyone: Sequence[int]) -> Question:
    """Ask a silo to compare its own model with the global one, as it is and adapted to the silo.

    ``everyone`` are the examples of each class on all silos; empty where not all share theirs.
    """
    config = {keys.SILOS_GET: True, **({keys.CLASS_COUNTS: list(everyone)} if everyone else {})}
    return Question(keys.EVALUATE, number, config, {keys.ARRAYS: arrays})


def read_gets_question(content: RecordDict) -> tuple[bool, Tensor | None]:
    """Return, at the silo, whether it is asked, and examples of each class on all silos ``[C]``."""
    config = read_config(content)
    counts = config.get(keys.CLASS_COUNTS)
    return config.get(keys.SILOS_GET) is True, None if counts is None else torch.tensor(counts)


def write_gets(gets: SiloGets) -> RecordDict:
    """Write what a silo gets."""
    found = {key: v for key, name in _GETS.items() if isinstance(v := gets[name], float)}
    record = MetricRecord({keys.NUM_EXAMPLES: int(gets["num_held_out"] or 0), **found})
    return RecordDict({keys.SILOS_GET: record})


def read_gets(content: RecordDict, *, max_examples: int) -> tuple[int, dict[str, float | None]]:
    """Return how many examples a silo holds out, and the metric of each model on them.

    Raises:
        RefusedError: a value is out of range.
    """
    record = content.metric_records.get(keys.SILOS_GET)
    number, found = read_num_examples(record, max_examples), dict[str, float | None]()
    for key, name in _GETS.items():
        value = record.get(key) if record is not None else None
        if value is not None and (not isinstance(value, float) or not 0 <= value <= 1):
            raise RefusedError(f"the metric of its model {key!r} is out of range")
        found[name] = value
    return number, found


def withhold_loss(content: RecordDict) -> None:
    """Take the loss out of an answer, where a silo does not share figures of a model."""
    record = content.metric_records.get(keys.METRICS)
    if record is not None and keys.LOSS in record:
        del record[keys.LOSS]


def withhold_class_sums(content: RecordDict, *, least: int, share: bool) -> None:
    """Take sums by class out of an answer on the terms of class counts.

    Args:
        content: the answer, which is changed.
        least: fewest examples of a class that is counted.
        share: whether class counts are shared at all.
    """
    record = content.metric_records.get(keys.METRICS)
    counts = None if record is None else record.get(keys.CLASS_LABELS)
    if record is None or (
        share and isinstance(counts, list) and not any(0 < int(n) < least for n in counts)
    ):
        return
    for key in _CLASS_SUMS:
        record.pop(key, None)
