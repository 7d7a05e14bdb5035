"""The progress of a study for programs: as JSON, and as a text file for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fedkd.report.watch import RunState, StudyState

Samples = dict[str, float | None]
HELP = {
    "round": "Rounds that have ended.",
    "max_rounds": "Rounds of the budget.",
    "metric": "The study's metric after the last round.",
    "sent_bytes": "Bytes between server and silos so far.",
    "round_seconds": "Seconds of the last round, without evaluation.",
    "silos_ok": "Silos whose reply the last round used.",
    "silos_failed": "Replies that were missing or refused in the last round.",
    "ended": "1 once the run has ended.",
}


def to_plain(state: StudyState) -> dict[str, Any]:
    """Return the progress of a study as plain values."""
    return {
        "study": state.study.name,
        "metric": state.study.metric,
        "ended": state.ended,
        "elapsed_seconds": state.elapsed,
        "seconds_left": state.seconds_left,
        "runs": [
            {"arm": run.arm, "seed": run.seed, "state": run.phase, **_samples(run)}
            for run in state.runs
        ],
    }


def to_prometheus(state: StudyState) -> str:
    """Return the progress of a study in Prometheus's text format, for node_exporter's collector."""
    return "".join(f"{line}\n" for line in _lines(state))


def _lines(state: StudyState) -> Iterator[str]:
    for name, text in HELP.items():
        yield f"# HELP fedkd_{name} {text}"
        yield f"# TYPE fedkd_{name} gauge"
        for run in state.runs:
            value = _samples(run)[name]
            if value is not None:
                labels = {"study": state.study.name, "arm": run.arm, "seed": str(run.seed)}
                pairs = ",".join(f'{key}="{label}"' for key, label in labels.items())
                yield f"fedkd_{name}{{{pairs}}} {value:.10g}"
    yield "# HELP fedkd_study_ended 1 once the study has ended."
    yield "# TYPE fedkd_study_ended gauge"
    yield f'fedkd_study_ended{{study="{state.study.name}"}} {int(state.ended)}'


def _samples(run: RunState) -> Samples:
    last = run.points[-1] if run.points else None
    return {
        "round": last.round if last else 0,
        "max_rounds": run.max_rounds,
        "metric": last.value(run.metric) if last else None,
        "sent_bytes": sum(point.bytes_up + point.bytes_down for point in run.points),
        "round_seconds": last.seconds if last else None,
        "silos_ok": last.silos_ok if last else None,
        "silos_failed": last.silos_failed if last else None,
        "ended": float(run.record is not None),
    }
