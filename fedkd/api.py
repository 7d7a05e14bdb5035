"""fedkd from Python: run a study and read its results.

Modules are imported when a study runs, so that ``import fedkd`` stays quick.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.config import Study
from fedkd.errors import UserError
from fedkd.results.folder import Results, find_run, read_study

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
    rounds: int | None = None,
) -> Comparison:
    """Run every arm of a study on every seed and compare the exchanges to each target.

    Args:
        study: the path of a study file, its content as a dictionary, or a Study. Relative paths in
            a dictionary are relative to the working folder.
        out: folder in which results are written.
        fresh: recompute everything; ignore the cache.
        track: names of trackers that log every round: ``tensorboard``, ``mlflow``, ``wandb``.
            They do not change results.
        resume: results folder of an interrupted study, instead of ``study``; ``fresh`` is read
            from there.
        rounds: with ``resume``, lengthens the study, finished or not: ``rounds.max`` of all arms.

    Returns:
        The results. After Ctrl-C ``interrupted`` is true; ``compare(resume=results.folder)``
        resumes the study.

    Raises:
        UserError: the study does not fit the data or the files, a tracker's package is not
            installed, or there is nothing to resume.
    """
    from rich.console import Console

    from fedkd.runner.run import execute

    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    if rounds is not None and resume is None:
        raise UserError("compare: rounds lengthens a study; give its results folder as resume")
    folder = None if resume is None else find_run(Path(resume))
    if folder is not None and study is None:
        loaded = _load(read_study(folder))
    elif folder is None and study is not None:
        loaded = _load(study)
    else:
        raise UserError("compare: give either a study or a results folder as resume")
    options: dict[str, Any] = {"track": tuple(track), "resume": folder, "rounds": rounds}
    outcome = execute(loaded, Console(stderr=True), out=Path(out), fresh=fresh, **options)
    return Comparison(outcome.folder, outcome.summary, interrupted=outcome.interrupted)


@dataclass(frozen=True)
class Comparison:
    """A study's results.

    Attributes:
        folder: the results folder.
        summary: the content of ``summary.json``.
        interrupted: whether Ctrl-C interrupted the study.
    """

    folder: Path
    summary: dict[str, Any]
    interrupted: bool = False

    @classmethod
    def read(cls, folder: str | Path) -> Comparison:
        """Read results from disk.

        Args:
            folder: a results folder, or a study folder: then its newest results.

        Raises:
            UserError: there are no results, or the study has not ended.
        """
        newest = find_run(Path(folder))
        return cls(newest, Results.read(newest).summary)

    def __repr__(self) -> str:
        return f"Comparison({str(self.folder)!r})"

    def __str__(self) -> str:
        from fedkd.report.verdict import judge

        return judge(self._results).sentence

    def to_pandas(self) -> pd.DataFrame:
        """Return all curves in tidy form: one row per arm, seed and round.

        ``exchanges``, ``bytes_so_far`` and ``seconds_so_far`` are cumulative; all other columns are
        of the round alone.
        """
        import pandas as pd

        from fedkd.report.curves import tidy_rows

        return pd.DataFrame(list(tidy_rows(self.summary["runs"])))

    def comparison(self) -> pd.DataFrame:
        """Return the savings: one row per arm, baseline and target."""
        import pandas as pd

        from fedkd.report.paper import comparison_rows

        return pd.DataFrame(comparison_rows(self._results))

    def plot(self, axis: str = "exchanges") -> Figure:
        """Plot the study's metric against ``exchanges`` or ``megabytes``, with bands over seeds.

        Raises:
            UserError: matplotlib is not installed (the extra ``plots``).
            ValueError: the axis is neither.
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
