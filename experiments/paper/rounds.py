"""Claims about rounds: savings, and silos that lose accuracy."""

# ruff: noqa: E501 -- the page is prose

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.paper.figures import Records, mean, runs_of
from experiments.paper.findings import Finding, cell
from experiments.paper.plan import TUNED, Federation

ARMS = (
    "fedavg",
    "fedavg-average",
    "fedkd-equal",
    "fedkd-confidence",
    "fedkd-familiarity",
    "control-densities",
)
BASELINES = ARMS[:2]


def rounds_saved(records: Records) -> Finding:
    """Rounds saved in each partition, against plain FedAvg and the average start."""
    rows = []
    counts = {(arm, baseline): Counter[str]() for arm in ARMS for baseline in BASELINES}
    for federation, record in _tuned(records):
        what = (federation.data, federation.partition)
        rows.append((*what, "start", *(_start(runs_of(record, arm)) for arm in ARMS)))
        for index, target in enumerate(record["targets"]):
            sums = [_exchanges(runs_of(record, arm), index) for arm in ARMS]
            saved = [_saved(record, arm, BASELINES[0], target) for arm in ARMS]
            cells = (" ".join(pair).strip() for pair in zip(sums, saved, strict=True))
            rows.append((*what, f"{100 * target:.0f} %", *cells))
        for arm, baseline in counts:
            if arm != baseline:
                row = _comparison(record, arm, baseline, record["targets"][-1])
                counts[arm, baseline][_judge(row)] += 1
    return Finding(
        "Rounds saved in each partition",
        "Every arm was tuned by the same number of trials over the same kinds of settings, on validation data and on seeds "
        f"that are not judged here ({_provenance(records)}; the tuned studies are in `../tuned/`). Cells: mean accuracy before any round; "
        "exchanges to a target, summed over five seeds, where an unreached run counts with its whole budget and is marked >; "
        "in brackets what that saves against fedavg, in per cent, with its 95 % interval. A start other than random costs one "
        "exchange on each seed, so that 5 is the least. An arm saves for certain where its interval lies above 0 and no run "
        "of it missed or failed; it costs for certain where the interval lies below 0 and no run of the baseline missed or failed. "
        "(The reference paper: 60.6 % of rounds saved on average.)",
        ("data", "partition", "", *ARMS),
        rows,
        " ".join(_verdict(arm, counts) for arm in ARMS[1:])
        + " "
        + _models_against_densities(records),
    )


def _tuned(records: Records) -> Iterator[tuple[Federation, dict[str, Any]]]:
    """Yield the federations whose arms were tuned, with their records."""
    for federation in TUNED:
        for variant in records.variants(federation.name):
            yield federation, records.record(federation.name, variant)


def _start(runs: Sequence[dict[str, Any]]) -> str:
    return f"{100 * mean([run['accuracy'][0] for run in runs]):.1f}" if runs else "failed"


def _exchanges(runs: Sequence[dict[str, Any]], index: int) -> str:
    """Return the sum over an arm's runs, marked > if one of them missed the target."""
    missed = any(run["exchanges"][index] is None for run in runs)
    return f"{'>' if missed else ''}{sum(_spent(run, index) for run in runs)}"


def _spent(run: dict[str, Any], index: int) -> int:
    spent = run["exchanges"][index]
    return run["before"] + run["max_rounds"] if spent is None else int(spent)


def _comparison(record: dict[str, Any], arm: str, baseline: str, target: float) -> dict[str, Any]:
    """Return the row of a comparison; an empty one if every run of a side failed."""
    key = {"arm": arm, "baseline": baseline, "target": target}
    rows = (row for row in record["comparison"] if key.items() <= row.items())
    return next(rows, {"bound": "undefined", "range": None})


def _saved(record: dict[str, Any], arm: str, baseline: str, target: float) -> str:
    if arm == baseline:
        return ""
    row = _comparison(record, arm, baseline, target)
    if row["bound"] == "undefined" or row["range"] is None:
        return "(?)"
    bound = {"at_most": "at most ", "at_least": "at least "}.get(row["bound"], "")
    saved, low, high = (round(value) for value in (row["exchanges_saved_pct"], *row["range"]))
    return f"({bound}{saved}; {low} to {high})"


def _judge(row: dict[str, Any]) -> str:
    """Return whether an arm saves or costs exchanges for certain, or which is open."""
    if row["range"] is None:
        return "open"
    low, high = row["range"]
    if low > 0 and row["bound"] in ("exact", "at_least"):
        return "saves"
    if high < 0 and row["bound"] in ("exact", "at_most"):
        return "costs"
    return "open"


def _verdict(arm: str, counts: dict[tuple[str, str], Counter[str]]) -> str:
    parts = []
    for baseline in BASELINES:
        if arm != baseline:
            count = counts[arm, baseline]
            parts.append(
                f"against {baseline} saves in {count['saves']} of {count.total()} cells, costs in "
                f"{count['costs']}, open in {count['open']}"
            )
    return f"{arm} to the higher target: {'; '.join(parts)}."


def _models_against_densities(records: Records) -> str:
    """Say what the silos' models add to their densities."""
    fewer = Counter[str]()
    for _, record in _tuned(records):
        both, control = (
            sum(_spent(run, -1) for run in runs_of(record, arm))
            for arm in ("fedkd-familiarity", "control-densities")
        )
        fewer["models" if both < control else "densities" if control < both else "equal"] += 1
    return (
        f"With the silos' models beside their densities exchanges are fewer than with densities alone in {fewer['models']} "
        f"of {fewer.total()} cells, more in {fewer['densities']}, equal in {fewer['equal']}."
    )


def _provenance(records: Records) -> str:
    """Return the number of trials and the seeds of the search, which all arms share."""
    each = {
        (arm["trials"], tuple(arm["seeds"]))
        for _, record in _tuned(records)
        for arm in record["tuned"].values()
    }
    return "; ".join(
        f"{trials} trials on seeds {', '.join(map(str, seeds))}" for trials, seeds in sorted(each)
    )


def silos_that_lose(records: Records) -> Finding:
    """Count the silos whose accuracy is lower after the rounds than before."""
    rows = []
    losing = counted = 0
    for federation, record in _tuned(records):
        pairs = [
            pair
            for run in runs_of(record, "fedkd-familiarity")
            for pair in run["silos"]
            if None not in pair
        ]
        losses = [before - after for before, after in pairs if after < before]
        losing += len(losses)
        counted += len(pairs)
        figures = (str(len(pairs)), str(len(losses)), f"{100 * max(losses, default=0):.1f}")
        rows.append((federation.data, federation.partition, *figures))
    share = 100 * losing / counted if counted else 0.0
    return Finding(
        "Does any silo lose accuracy by taking part?",
        "Accuracy on test images, weighted by the silo's label mix: of its own model before, and of "
        "the global model of fedkd-familiarity at the end of the run. No claim: the silos with a lower accuracy are counted.",
        ("data", "partition", "silos x seeds", "lose", "largest loss, points"),
        rows,
        f"{losing} of {counted} ({share:.1f} %) end below their own model on their own label mix.",
    )


@dataclass(frozen=True)
class _Saving:
    """A saving in per cent, and which side missed a target, so that it is a bound."""

    value: float
    arm_missed: bool
    baseline_missed: bool

    @classmethod
    def of(cls, arm: int, baseline: int, *, arm_missed: bool, baseline_missed: bool) -> _Saving:
        return cls(100 * (1 - arm / baseline), arm_missed, baseline_missed)

    @property
    def is_certain(self) -> bool:
        """Whether at least so much is saved."""
        return not self.arm_missed

    def __str__(self) -> str:
        if self.arm_missed and self.baseline_missed:
            return "not known (both missed a target)"
        bound = "at most " * self.arm_missed + "at least " * self.baseline_missed
        return f"{bound}{self.value:.1f} %"


def cross_device(records: Records) -> Finding:
    """A hundred small silos with cohorts of ten."""
    variant = ("hundred",)
    arms = ("fedavg", "fedavg-average", "fedkd-equal", "fedkd-familiarity", "control-densities")
    rows, spent, missed = [], {}, {}
    for arm in arms:
        runs = records.runs("cross-device", variant, arm)
        spent[arm] = sum(_spent(run, 1) for run in runs)
        rows.append(
            (
                arm,
                cell(records.start("cross-device", variant, arm)),
                *(_exchanges(runs, index) for index in (0, 1)),
            )
        )
        missed[arm] = any(run["exchanges"][1] is None for run in runs)
    saved, by_densities = (
        _Saving.of(
            spent[arm],
            spent["fedavg"],
            arm_missed=missed[arm],
            baseline_missed=missed["fedavg"],
        )
        for arm in ("fedkd-familiarity", "control-densities")
    )
    return Finding(
        "A hundred small silos, cohorts of ten",
        "Consolidation saves exchanges across many devices too (Fashion-MNIST, 5,000 images, Dirichlet "
        "0.3; all hundred silos are teachers, ten train per round). Holds if exchanges to 70 % are fewer than plain "
        "FedAvg's, of which the learning rate alone was chosen on validation data (seed 0), and nothing for the other arms. An exchange with a hundred teachers carries ten times the bytes of a round.",
        ("arm", "start", "exchanges to 60 %", "to 70 %"),
        rows,
        f"{'Holds' if saved.value > 0 and saved.is_certain else 'Does not hold'}: {saved} saved, and "
        f"{by_densities} by densities without models.",
    )
