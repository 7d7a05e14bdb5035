"""``query.distil``: teachers sent to the student's own silo, and how it reads them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedkd.distillation.selection import Choice
from fedkd.distillation.teachers import Teacher, Teachers
from fedkd.messages import keys
from fedkd.models.build import Shape
from fedkd.models.state import State
from fedkd.training.compute import Compute


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
        content: of ``query.distil``.
        own: the silo's own model, which is never sent to it.
        architectures: those of the study; no other is built.
        shape: what the models are built for.
        compute: device and precision.

    Raises:
        ValueError: the lists do not fit together, or name an architecture that the study does not.
    """
    config = content.config_records[keys.CONFIG]
    archs, sizes = _list(config, keys.ARCHITECTURES), _list(config, keys.NUM_EXAMPLES)
    accuracies = _list(config, keys.ACCURACIES) or [None] * len(archs)
    counts, classes = _list(config, keys.CLASS_COUNTS), shape.num_classes
    index = config[keys.STUDENT]
    student = index if isinstance(index, int) and index != keys.NO_TEACHER else None
    members = []
    for m, (arch, size, accuracy) in enumerate(zip(archs, sizes, accuracies, strict=True)):
        if arch not in architectures:
            raise ValueError(f"a teacher is of the architecture {arch!r}, which the study has not")
        if m == student:
            state = own
        else:
            state = content.array_records[keys.teacher_record(m)].to_torch_state_dict()
        of_class = tuple(int(n) for n in counts[m * classes : (m + 1) * classes])
        members.append(
            Teacher(
                keys.teacher_record(m),
                str(arch),
                int(size),
                dict(state) if state else None,
                class_counts=of_class,
                accuracy=None if accuracy is None else float(accuracy),
            )
        )
    return Teachers(members, shape, compute), student


def _list(config: ConfigRecord, key: str) -> list[Any]:
    value = config.get(key, [])
    if not isinstance(value, list):
        raise TypeError(f"{key} is {value!r} where a list is expected")
    return value


def write_question(choice: Choice, accuracies: Sequence[float], run_id: str) -> RecordDict:
    """Write ``query.distil``: every teacher except the silo's own model.

    Args:
        choice: the student and its teachers.
        accuracies: of the teachers on validation data, or empty.
        run_id: what the reply must echo.
    """
    teachers = choice.teachers
    config: dict[str, str | int | list[str] | list[int] | list[float]] = {
        keys.RUN_ID: run_id,
        keys.ROUND: 0,
        keys.STUDENT: keys.NO_TEACHER if choice.student is None else choice.student,
        keys.ARCHITECTURES: [teacher.arch for teacher in teachers.members],
        keys.NUM_EXAMPLES: [teacher.num_examples for teacher in teachers.members],
    }
    if accuracies:
        config[keys.ACCURACIES] = list(accuracies)
    if all(teacher.class_counts for teacher in teachers.members):
        config[keys.CLASS_COUNTS] = [n for t in teachers.members for n in t.class_counts]
    records: dict[str, ArrayRecord | ConfigRecord] = {keys.CONFIG: ConfigRecord(dict(config))}
    for index, teacher in enumerate(teachers.members):
        if index != choice.student and teacher.state is not None:
            records[keys.teacher_record(index)] = ArrayRecord(teacher.state)
    return RecordDict(dict(records))
