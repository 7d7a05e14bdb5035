"""The progress of a study for programs: as JSON, and as a text file for Prometheus."""

from __future__ import annotations

from typing import Any

from fedkd.report.watch import RunState, StudyState


def to_plain(state: StudyState) -> dict[str, Any]:
    """Return the progress of a study as plain values."""
    return {
        "study": state.study.name,
        "metric": state.study.metric,
        "ended": state.ended,
        "elapsed_seconds": state.elapsed,
        "seconds_left": state.seconds_left,
        "runs": [
            {"arm": run.arm, "seed": run.seed, "state": run.phase, **_figures(run)}
            for run in state.runs
        ],
    }


def to_prometheus(state: StudyState) -> str:
    """Return the progress of a study in Prometheus's text format, for node_exporter's collector."""
    study = f'study="{state.study.name}"'
    samples: dict[str, dict[str, float | None]] = {"study_ended": {study: float(state.ended)}}
    for run in state.runs:
        labels = f'{study},arm="{run.arm}",seed="{run.seed}"'
        for name, value in {**_figures(run), "ended": float(run.record is not None)}.items():
            samples.setdefault(f"run_{name}", {})[labels] = value
    lines = []
    for name, values in samples.items():
        lines.append(f"# TYPE fedkd_{name} gauge")
        known = {labels: value for labels, value in values.items() if value is not None}
        lines += [f"fedkd_{name}{{{labels}}} {value:.10g}" for labels, value in known.items()]
    return "\n".join(lines) + "\n"


def _figures(run: RunState) -> dict[str, float | None]:
    last = run.points[-1] if run.points else None
    return {
        "round": last.round if last else 0,
        "max_rounds": run.max_rounds,
        "metric": last.value(run.metric) if last else None,
        "bytes": sum(point.bytes_up + point.bytes_down for point in run.points),
        "seconds": sum(point.seconds for point in run.points),
        "silos_ok": last.silos_ok if last else None,
        "silos_failed": last.silos_failed if last else None,
    }
