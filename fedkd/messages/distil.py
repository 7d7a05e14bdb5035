"""``query.distil``: teachers are sent to the student's own silo, which distils them.

It answers as to ``train``: with the student.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from flwr.app import ArrayRecord, RecordDict

from fedkd.distillation.selection import Choice
from fedkd.distillation.teachers import Teacher, Teachers
from fedkd.messages import keys
from fedkd.messages.arrays import decode_state
from fedkd.messages.envelope import Question, read_config
from fedkd.models.build import Shape
from fedkd.models.state import State
from fedkd.training.compute import Compute


def write_question(choice: Choice, accuracies: Sequence[float]) -> Question:
    """Ask a silo to distil; every teacher is sent except the silo's own model.

    Args:
        choice: the student and its teachers.
        accuracies: of the teachers on validation data, or empty.
    """
    members = choice.teachers.members
    config: dict[str, Any] = {
        keys.STUDENT: keys.NO_TEACHER if choice.student is None else choice.student,
        keys.ARCHITECTURES: [teacher.arch for teacher in members],
        keys.NUM_EXAMPLES: [teacher.num_examples for teacher in members],
    }
    if accuracies:
        config[keys.ACCURACIES] = list(accuracies)
    if all(teacher.class_counts for teacher in members):
        config[keys.CLASS_COUNTS] = [n for teacher in members for n in teacher.class_counts]
    records = {
        keys.teacher_record(index): ArrayRecord(teacher.state)
        for index, teacher in enumerate(members)
        if index != choice.student and teacher.state is not None
    }
    return Question(keys.DISTIL, 0, config, records)


def read_teachers(
    content: RecordDict,
    *,
    own: State | None,
    architectures: Collection[str],
    shape: Shape,
    compute: Compute,
) -> tuple[Teachers, int | None]:
    """Return the teachers, and the index of the silo's own model among them or None.

    Args:
        content: of the question.
        own: the silo's own model, which is never sent to it.
        architectures: those of the study; no other is built.
        shape: what the models are built for.
        compute: device and precision.

    Raises:
        ValueError: the lists do not fit together, or name an architecture that the study does not.
    """
    config = read_config(content)
    archs, sizes = _list(config, keys.ARCHITECTURES), _list(config, keys.NUM_EXAMPLES)
    accuracies = _list(config, keys.ACCURACIES) or [None] * len(archs)
    counts, classes = _list(config, keys.CLASS_COUNTS), shape.num_classes
    index = config[keys.STUDENT]
    student = index if isinstance(index, int) and index != keys.NO_TEACHER else None
    members = []
    for m, (arch, size, accuracy) in enumerate(zip(archs, sizes, accuracies, strict=True)):
        if arch not in architectures:
            raise ValueError(f"a teacher is of the architecture {arch!r}, which the study has not")
        record = keys.teacher_record(m)
        state = own if m == student else decode_state(content.array_records[record])
        members.append(
            Teacher(
                record,
                str(arch),
                int(size),
                dict(state) if state else None,
                class_counts=tuple(int(n) for n in counts[m * classes : (m + 1) * classes]),
                accuracy=None if accuracy is None else float(accuracy),
            )
        )
    return Teachers(members, shape, compute), student


def _list(config: Any, key: str) -> list[Any]:
    value = config.get(key, [])
    if not isinstance(value, list):
        raise TypeError(f"{key} is {value!r} where a list is expected")
    return value
