"""Results folders: find, read and check."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedkd.errors import UserError
from fedkd.registry import METRICS, MetricName
from fedkd.results.points import metric_values
from fedkd.results.schema import read_search, read_summary
from fedkd.results.upgrade import upgrade, upgrade_comparison
from fedkd.util.yaml_loader import load_yaml

SUMMARY_FILE = "summary.json"
STUDY_FILE = "study.yaml"
TUNING_FILES = "tune-*.json"
REPORT_FILE = "report.html"


@dataclass(frozen=True)
class Results:
    """One study's results.

    Attributes:
        summary: the content of ``summary.json``, with the searches of fedkd tune beside the folder,
            one per tuned arm, as ``tuning``. Renamed study keys have their current names.
        label: identifies the results: names of the study and of the folder.
    """

    summary: dict[str, Any]
    label: str

    @classmethod
    def read(cls, folder: Path) -> Results:
        """Read a results folder, or the newest one in a study folder.

        Raises:
            UserError: there is none, its study has not ended, or its summary is not valid.
        """
        folder = find_run(folder)
        path = folder / SUMMARY_FILE
        if not path.is_file():
            raise UserError(
                f"{folder} has no {SUMMARY_FILE}: its study has not ended; show its progress with "
                f"fedkd watch {folder}"
            )
        summary = read_summary(path)
        study = summary["study"]
        summary["resolved"] = upgrade(summary["resolved"])
        summary["comparison"] = upgrade_comparison(summary)
        tuned = sorted(folder.absolute().parent.glob(TUNING_FILES))
        if searches := [each for file in tuned if (each := read_search(file, study))]:
            summary["tuning"] = searches
        return cls(summary, f"{study} {folder.absolute().name}")

    @property
    def num_silos(self) -> int | None:
        """Number of silos of the study, or None where it does not say so."""
        partition = self.summary["resolved"].get("partition", {})
        silos = partition.get("silos", partition.get("names"))
        return silos if silos is None or isinstance(silos, int) else len(silos)

    @property
    def arms(self) -> list[str]:
        """Names of all arms, in the order of the study."""
        return list(self.summary["resolved"]["arms"])

    @property
    def baselines(self) -> list[str]:
        """Names of the baseline arms."""
        return list(self.summary["resolved"].get("baselines", []))

    @property
    def seeds(self) -> list[int]:
        """The study's seeds."""
        return list(self.summary["resolved"]["seeds"])

    @property
    def targets(self) -> list[float]:
        """Targets as in the study file: values of the metric, or fractions of a best value."""
        targets = self.summary["resolved"]["targets"]
        return list(targets if isinstance(targets, list) else targets["of_baseline_best"])

    @property
    def relative(self) -> bool:
        """Whether targets are fractions of the first baseline's best value."""
        return not isinstance(self.summary["resolved"]["targets"], list)

    @property
    def metric(self) -> MetricName:
        """The metric that targets are in."""
        metric: MetricName = self.summary["resolved"].get("metric", "accuracy")
        return metric

    @property
    def metrics(self) -> list[MetricName]:
        """The metrics that any run has values of, in the order of the registry."""
        runs = self.summary["runs"]
        return [name for name in METRICS if any(metric_values(run, name) for run in runs)]

    def runs(self, arm: str) -> list[dict[str, Any]]:
        """Return all runs of an arm."""
        return [run for run in self.summary["runs"] if run["arm"] == arm]

    def name_target(self, target: float) -> str:
        """Return a target in words."""
        name = METRICS[self.metric]
        return percent(target) + (
            f" of {self.baselines[0]}'s best {name}" if self.relative else f" {name}"
        )


def instruments(run: dict[str, Any]) -> dict[str, Any]:
    """Return the diagnostics measured after a run; empty if there are none."""
    return run.get("instruments") or {}


def class_names(results: Results, number: int) -> list[str]:
    """Return the names of the classes, or their indices if names are not known."""
    names = [str(name) for name in results.summary.get("classes") or []]
    return names if len(names) == number else [str(index) for index in range(number)]


def find_run(folder: Path) -> Path:
    """Return a results folder: ``folder`` itself, or the newest one in it.

    Raises:
        UserError: it is neither.
    """
    if folder.is_dir():
        if (folder / SUMMARY_FILE).is_file() or (folder / STUDY_FILE).is_file():
            return folder
        # Folders are named by time, so the last name is the newest.
        if inside := sorted(path.parent for path in folder.glob(f"[!.]*/{STUDY_FILE}")):
            return inside[-1]
    raise UserError(
        f"{folder} is not a results folder: give the one that fedkd compare prints, such as "
        "runs/quickstart/20250101T120000Z"
    )


def percent(share: float, digits: int = 1) -> str:
    """Format a share as per cent, without line breaks or trailing zeros."""
    text = f"{100 * share:.{digits}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return ("0" if text == "-0" else text).replace("-", "\u2212") + "\u00a0%"


def read_study(folder: Path) -> dict[str, Any]:
    """Return the resolved study of a results folder; renamed keys have their current names.

    Raises:
        UserError: ``study.yaml`` cannot be read.
    """
    path = folder / STUDY_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    study = load_yaml(text, origin=str(path))
    if not isinstance(study, dict):
        raise UserError(f"{path} is not a study: it does not contain a mapping")
    return upgrade(study)
