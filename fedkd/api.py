"""fedkd from Python: run a study, look at its results.

Like the command line this stands above all rooms, and imports them only when a study runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.config import Study
from fedkd.errors import UserError
from fedkd.results.folder import Results, find_run

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def compare(
    study: str | Path | Mapping[str, Any] | Study | None = None,
    *,
    out: str | Path = "runs",
    fresh: bool = False,
    track: Sequence[str] = (),
    resume: str | Path | None = None,
) -> Comparison:
    """Run every arm of a study on every seed and compare the exchanges to each target.

    Args:
        study: the path of a study file, what such a file holds as a dictionary, or a Study.
            Relative paths in a dictionary are relative to the working folder.
        out: root of all results.
        fresh: ignore and rewrite what the cache holds.
        track: names of trackers that are told of every round: ``tensorboard``, ``mlflow``,
            ``wandb``. They change no result.
        resume: a results folder whose study was cut short, to go on with in place of ``study``;
            whether it is fresh is noted there.

    Returns:
        The results. Where Ctrl-C cut the study short, ``interrupted`` is true;
        ``compare(resume=results.folder)`` goes on.

    Raises:
        UserError: the study asks for what the data or the files do not give, a tracker's package
            is not installed, or there is nothing that could be resumed.
    """
    from rich.console import Console

    from fedkd.report.progress import StudyProgress
    from fedkd.results.folder import STUDY_FILE
    from fedkd.runner.run import resume_study, run_study

    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    folder = None if resume is None else find_run(Path(resume))
    if folder is not None and study is None:
        loaded = _load(folder / STUDY_FILE)
    elif folder is None and study is not None:
        loaded = _load(study)
    else:
        raise UserError("compare: give either a study, or a results folder as resume")
    runs = len(loaded.arms) * len(loaded.seeds)
    with StudyProgress(Console(stderr=True), runs) as progress:
        if folder is not None:
            outcome = resume_study(folder, progress=progress, track=tuple(track))
        else:
            outcome = run_study(
                loaded, out=Path(out), fresh=fresh, progress=progress, track=tuple(track)
            )
    return Comparison(outcome.folder, outcome.summary, interrupted=outcome.interrupted)


@dataclass(frozen=True)
class Comparison:
    """A study's results.

    Attributes:
        folder: where they lie.
        summary: what ``summary.json`` holds.
        interrupted: whether Ctrl-C cut the study short.
    """

    folder: Path
    summary: dict[str, Any]
    interrupted: bool = False

    @classmethod
    def read(cls, folder: str | Path) -> Comparison:
        """Read results that lie on disk.

        Args:
            folder: a results folder, or that of a study: then the newest one in it.

        Raises:
            UserError: there are none, or the study has not ended.
        """
        found = find_run(Path(folder))
        return cls(found, Results.read(found).summary)

    def __repr__(self) -> str:
        return f"Comparison({str(self.folder)!r})"

    def __str__(self) -> str:
        from fedkd.report.verdict import judge

        return judge(self._results).sentence

    def to_pandas(self) -> pd.DataFrame:
        """Return all curves in tidy form: one row for an arm, a seed and a round.

        ``exchanges``, ``bytes_so_far`` and ``seconds_so_far`` are sums up to the round; all other
        figures are the round's own.
        """
        import pandas as pd

        from fedkd.report.curves import tidy_rows

        return pd.DataFrame(list(tidy_rows(self.summary["runs"])))

    def comparison(self) -> pd.DataFrame:
        """Return what was saved: one row for an arm, a baseline and a target."""
        import pandas as pd

        from fedkd.report.paper import comparison_rows

        return pd.DataFrame(comparison_rows(self._results))

    def plot(self, axis: str = "exchanges") -> Figure:
        """Draw accuracy along ``exchanges`` or ``megabytes``, with bands over seeds.

        Raises:
            UserError: matplotlib is not installed (the extra ``plots``).
            ValueError: there is no such axis.
        """
        from fedkd.report.paper import draw_accuracy

        if axis not in ("exchanges", "megabytes"):
            raise ValueError(f"axis is exchanges or megabytes, not {axis!r}")
        return draw_accuracy(self._results, axis)

    def report(self, path: str | Path | None = None) -> Path:
        """Write the HTML report, by default into the results folder, and return its path."""
        from fedkd.report.page import write_report
        from fedkd.results.folder import REPORT_FILE

        return write_report([self._results], Path(path) if path else self.folder / REPORT_FILE)

    @property
    def _results(self) -> Results:
        return Results(self.summary, f"{self.summary['study']} {self.folder.absolute().name}")


def _load(study: str | Path | Mapping[str, Any] | Study) -> Study:
    from fedkd.config.study_file import load_study, resolve_study

    if isinstance(study, Study):
        return study
    if isinstance(study, Mapping):
        return resolve_study(study)
    return load_study(Path(study))
