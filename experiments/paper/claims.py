"""Every claim and question of the seed work: what was measured, its range, and the verdict.

The verdict is computed from the records by the rule that stands in the claim's text.
"""

# ruff: noqa: E501 -- the page is prose

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.paper.figures import Records, Spread
from experiments.paper.plan import PARTITIONS
from fedkd.files import write_text

GRID_LABELLED = (
    "fedkd-vanilla",
    "fedkd-t4-a1",
    "fedkd-t4-a5",
    "fedkd-t4-a9",
    "fedkd-t10-a5",
)
GRID_UNLABELLED = ("fedkd-vanilla", "fedkd-t4", "fedkd-t8")
WEIGHTINGS = (
    "fedkd-vanilla",
    "fedkd-size",
    "fedkd-accuracy",
    "fedkd-confidence",
    "fedkd-class-prior",
    "fedkd-consensus",
    "fedkd-familiarity",
    "fedkd-familiarity-knn",
    "control-densities",
    "control-validation",
)
TARGETS = ("90 %", "95 %", "99 %")


@dataclass(frozen=True)
class Finding:
    """What came of a claim: a table, and a sentence that says whether it holds."""

    title: str
    claim: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    verdict: str


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _cell(spread: Spread | None) -> str:
    return "failed" if spread is None else spread.percent()


def _starts(
    records: Records, study: str, arms: Sequence[str], variants: Sequence[str] | None = None
) -> list[tuple[str, ...]]:
    names = [v for v in records.variants(study) if variants is None or v[0] in variants]
    return [(arm, *(_cell(records.start(study, name, arm)) for name in names)) for arm in arms]


def _over(records: Records, study: str, arm: str) -> float:
    """Mean start of an arm over all partitions and seeds."""
    return _mean([x for name in PARTITIONS for x in records.starts(study, (name,), arm)])


def tuned_against_default(records: Records) -> Finding:
    """Tuning temperature and weight on validation data against the fixed defaults."""
    rows = []
    gains = []
    for study, grid in (("labelled-digits", GRID_LABELLED), ("start-digits", GRID_UNLABELLED)):
        for name in PARTITIONS:
            default = records.starts(study, (name,), "fedkd-vanilla")
            tuned = records.tuned(study, (name,), grid)
            average = records.starts(study, (name,), "average")
            gains.append(_mean(tuned) - _mean(default))
            rows.append(
                (
                    "labelled" if study.startswith("labelled") else "unlabelled",
                    name,
                    Spread.of(average).percent(),
                    Spread.of(default).percent(),
                    Spread.of(tuned).percent(),
                    f"{100 * gains[-1]:+.1f}",
                )
            )
    wins = sum(gain > 0 for gain in gains)
    return Finding(
        "Tuned against default distillation",
        "Choosing temperature and weight on validation data beats T = 1, a = 0.5 (the seed work: "
        "by 16 % on uniform data and 139 % on average on non-IID data, in gain over the student). "
        "Holds if the mean over seeds is higher in every row.",
        ("transfer set", "partition", "average model", "default", "tuned", "points"),
        rows,
        f"{'Holds' if wins == len(gains) else 'Does not hold everywhere'}: tuned is better in "
        f"{wins} of {len(gains)} rows, by {100 * _mean(gains):+.1f} points on average.",
    )


def methods(records: Records) -> Finding:
    """Methods on five partitions, labelled transfer set."""
    arms = (
        "average",
        "fedkd-vanilla",
        "fedkd-dml",
        "fedkd-dp",
        "fedkd-dp-sequential",
        "fedkd-familiarity",
        "control-fine-tune",
    )
    rows = _starts(records, "labelled-digits", arms)
    tuned = [Spread.of(records.tuned("labelled-digits", (p,), GRID_LABELLED)) for p in PARTITIONS]
    rows.insert(2, ("kd, tuned", *(spread.percent() for spread in tuned)))
    control = _over(records, "labelled-digits", "control-fine-tune")
    best = _mean([spread.mean for spread in tuned])
    return Finding(
        "Methods on five partitions, labelled transfer set",
        "Distillation teaches more than the labels of the transfer set alone. Holds if tuned "
        "distillation is above plain fine-tuning on those labels, on average over partitions.",
        ("arm", *PARTITIONS),
        rows,
        f"{'Holds' if best > control else 'Does not hold'}: {100 * best:.1f} against "
        f"{100 * control:.1f} for labels alone.",
    )


def supervised_dp(records: Records) -> Finding:
    """Supervised against unsupervised DP-KD."""
    rows, deltas = [], []
    for arm in ("fedkd-dp", "fedkd-dp-sequential"):
        for name in PARTITIONS:
            with_labels = records.starts("labelled-digits", (name,), arm)
            without = records.starts("start-digits", (name,), arm)
            deltas.append(_mean(with_labels) - _mean(without))
            rows.append((arm, name, Spread.of(with_labels).percent(), Spread.of(without).percent()))
    wins = sum(delta > 0 for delta in deltas)
    return Finding(
        "DP-KD with and without labels",
        "Partitioning by the label's probability beats partitioning by confidence. Holds if it is "
        "better in every row.",
        ("arm", "partition", "supervised", "unsupervised"),
        rows,
        f"{'Holds' if wins == len(deltas) else 'Does not hold everywhere'}: better in {wins} of "
        f"{len(deltas)} rows, by {100 * _mean(deltas):+.1f} points on average.",
    )


def mutual(records: Records) -> Finding:
    """DML on unlabelled data and its refinement."""
    arms = ("average", "fedkd-vanilla", "fedkd-dml", "fedkd-dml-familiarity", "fedkd-familiarity")
    plain, refined = (_over(records, "start-digits", arm) for arm in arms[2:4])
    return Finding(
        "Mutual learning on unlabelled data",
        "Peers weighted per image by familiarity make mutual learning work without labels. Holds if "
        "it is above plain mutual learning on average over partitions.",
        ("arm", *PARTITIONS),
        _starts(records, "start-digits", arms),
        f"{'Holds' if refined > plain else 'Does not hold'}: {100 * refined:.1f} against "
        f"{100 * plain:.1f}.",
    )


def learning_and_forgetting(records: Records) -> Finding:
    """Gain and forgetting of the student, over methods."""
    rows = []
    ratios = {}
    for study, arms in (
        ("labelled-digits", ("fedkd-vanilla", "fedkd-dml", "fedkd-dp", "control-fine-tune")),
        ("start-digits", ("fedkd-vanilla", "fedkd-dml", "fedkd-dp", "fedkd-familiarity")),
    ):
        for arm in arms:
            cells = []
            lost = []
            for name in PARTITIONS:
                found = records.flips(study, (name,), arm)
                cells.append(
                    "failed"
                    if found is None
                    else f"+{100 * found[0].mean:.1f} / -{100 * found[1].mean:.1f}"
                )
                lost.append(found[1].mean if found else 0.0)
            ratios[study, arm] = _mean(lost)
            rows.append((f"{arm} ({study.split('-')[0]})", *cells))
    forgets = min(
        (arm for study, arm in ratios if study == "labelled-digits"),
        key=lambda arm: ratios["labelled-digits", arm],
    )
    return Finding(
        "Learning against forgetting",
        "Data partitioning forgets less than plain distillation (labelled transfer set, shares of "
        "test images gained and lost against the averaged model). Holds if its forgetting is the "
        "least of the methods, on average over partitions.",
        ("arm", *PARTITIONS),
        rows,
        f"{'Holds' if forgets == 'fedkd-dp' else 'Does not hold'}: the least forgetting is that of "
        f"{forgets}, {100 * ratios['labelled-digits', forgets]:.1f} % of the test images "
        f"(fedkd-dp {100 * ratios['labelled-digits', 'fedkd-dp']:.1f} %).",
    )


def weighting(records: Records) -> Finding:
    """Equal against adaptive weighting, unlabelled transfer set."""
    means = {arm: _over(records, "start-digits", arm) for arm in WEIGHTINGS}
    adaptive = {a: m for a, m in means.items() if a.startswith("fedkd") and a != "fedkd-vanilla"}
    best = max(adaptive, key=lambda arm: adaptive[arm])
    control = means["control-densities"]
    return Finding(
        "Equal against adaptive weighting of teachers",
        "Adaptive weighting beats equal weighting. Holds if the best adaptive one is better on "
        "average over partitions. fedkd-vanilla is equal.",
        ("arm", *PARTITIONS),
        _starts(records, "start-digits", WEIGHTINGS),
        f"{'Holds' if means[best] > means['fedkd-vanilla'] else 'Does not hold'}: {best} "
        f"{100 * means[best]:.1f}, equal {100 * means['fedkd-vanilla']:.1f}. The control "
        f"without any teacher model, densities alone, has {100 * control:.1f}"
        + (
            ", which is as much or more: on this data the teachers add nothing to the densities."
            if control >= means[best]
            else "."
        ),
    )


def student(records: Records) -> Finding:
    """Which model becomes the student."""
    arms = (
        "fedkd-familiarity",
        *(f"fedkd-student-{name}" for name in ("best", "worst", "fresh", "mlp")),
    )
    means = {arm: _over(records, "start-digits", arm) for arm in arms}
    spread = max(means.values()) - min(means.values())
    return Finding(
        "Choice of the student, also across architectures",
        "How much depends on the student? (fedkd-familiarity starts from the average; mlp is a new "
        "model of another architecture.) No claim: the spread is reported.",
        ("arm", *PARTITIONS),
        _starts(records, "start-digits", arms),
        f"Best {max(means, key=lambda a: means[a])} ({100 * max(means.values()):.1f}), worst "
        f"{min(means, key=lambda a: means[a])} ({100 * min(means.values()):.1f}): "
        f"{100 * spread:.1f} points between them on average over partitions.",
    )


TRANSFER_ARMS = (
    "average",
    "fedkd-equal",
    "fedkd-confidence",
    "fedkd-familiarity",
    "fedkd-background",
    "control-densities",
)


def _transfer(
    records: Records,
    kind: str,
    title: str,
    claim: str,
    verdict: Callable[[dict[str, dict[str, float]]], str],
) -> Finding:
    names = [v for v in records.variants("transfer-digits") if v[0] == kind]
    rows = [
        (arm, *(_cell(records.start("transfer-digits", name, arm)) for name in names))
        for arm in TRANSFER_ARMS
    ]
    means = {
        name[1]: {
            arm: _mean(records.starts("transfer-digits", name, arm) or [0.0])
            for arm in TRANSFER_ARMS
        }
        for name in names
    }
    return Finding(title, claim, ("arm", *(name[1] for name in names)), rows, verdict(means))


def transfer_size(records: Records) -> Finding:
    """Size of the transfer set."""

    def verdict(means: dict[str, dict[str, float]]) -> str:
        values = [means[size]["fedkd-familiarity"] for size in means]
        grows = all(b >= a - 0.005 for a, b in itertools.pairwise(values))
        return (
            f"{'Holds' if grows else 'Does not hold'} for familiarity: "
            + ", ".join(f"{100 * value:.1f}" for value in values)
            + "."
        )

    return _transfer(
        records,
        "size",
        "Size of the transfer set",
        "More transfer images give a better student (Dirichlet 0.1, digits, unlabelled). Holds if "
        "accuracy never falls by more than half a point as the set grows.",
        verdict,
    )


def transfer_type(records: Records) -> Finding:
    """Foreign transfer sets."""

    def verdict(means: dict[str, dict[str, float]]) -> str:
        native = _mean(records.starts("transfer-digits", ("size", "300"), "fedkd-familiarity"))
        foreign = ", ".join(
            f"{name} {100 * found['fedkd-familiarity']:.1f}" for name, found in means.items()
        )
        best = max(found["fedkd-familiarity"] for found in means.values())
        return (
            f"{'Holds' if best < native - 0.05 else 'Does not hold'}: familiarity on the study's "
            f"own images {100 * native:.1f}, on {foreign}."
        )

    return _transfer(
        records,
        "source",
        "Foreign transfer sets and noise",
        "A transfer set from elsewhere teaches much less (300 images, Dirichlet 0.1). Holds if "
        "familiarity loses more than five points on either.",
        verdict,
    )


def teachers(records: Records) -> Finding:
    """Number of teachers."""

    def verdict(means: dict[str, dict[str, float]]) -> str:
        equal = [means[n]["fedkd-equal"] for n in means]
        familiar = [means[n]["fedkd-familiarity"] for n in means]
        falls = equal[-1] < equal[0]
        return (
            f"{'Holds' if falls else 'Does not hold'}: equal "
            + ", ".join(f"{100 * v:.1f}" for v in equal)
            + "; familiarity "
            + ", ".join(f"{100 * v:.1f}" for v in familiar)
            + "."
        )

    return _transfer(
        records,
        "teachers",
        "Number of teachers",
        "Sharing the same data among more silos makes equally weighted teaching worse (690 images in "
        "all, Dirichlet 0.1). Holds if 20 teachers are worse than 2.",
        verdict,
    )


def rounds_saved(records: Records) -> Finding:
    """Rounds saved in each partition, against plain FedAvg and the average start."""
    rows = []
    cells = dict.fromkeys(TARGETS, 0)
    total = 0
    later = 0
    sums: dict[str, list[int]] = {"arm": [], "fedavg": [], "average": []}
    within_third = 0
    for study in ("main-digits", "main-fashion"):
        for variant in records.variants(study):
            by_arm = {
                arm: {run["seed"]: run for run in records.runs(study, variant, arm)}
                for arm in (
                    "fedavg",
                    "fedavg-average",
                    "fedkd-familiarity",
                    "control-densities",
                    "control-validation",
                )
            }
            own, base, average = (
                by_arm[a] for a in ("fedkd-familiarity", "fedavg", "fedavg-average")
            )
            row = [study.split("-")[1], *variant]
            for index, target in enumerate(TARGETS):
                spent = [
                    [_spent(arm[s], index) for s in base if s in arm] for arm in by_arm.values()
                ]
                row.append(" / ".join(_sum(arm, base, index) for arm in by_arm.values()))
                for key, values in zip(("fedavg", "average", "arm"), spent, strict=False):
                    sums[key] += values
                for seed in base:
                    if seed not in own:
                        continue
                    cells[target] += own[seed]["accuracy"][0] >= own[seed]["targets"][index]
                    later += _spent(own[seed], index) > _spent(base[seed], index)
                    if index == 2:
                        total += 1
                        within_third += own[seed]["exchanges"][2] is not None and 3 * own[seed][
                            "exchanges"
                        ][2] <= _spent(base[seed], 2)
            rows.append(tuple(row))
            del average
    if not total:
        return Finding("Rounds saved", "", (), [], "Not run yet.")
    saved = 100 * (1 - sum(sums["arm"]) / sum(sums["average"]))
    plain = 100 * (1 - sum(sums["arm"]) / sum(sums["fedavg"]))
    goals = (
        (
            "90 and 95 % before any round in at least 80 % of the cells",
            min(cells["90 %"], cells["95 %"]) >= 0.8 * total,
            f"{cells['90 %']} and {cells['95 %']} of {total}",
        ),
        (
            "99 % with at most a third of plain FedAvg's exchanges",
            within_third == total,
            f"in {within_third} of {total} cells",
        ),
        ("never later than plain FedAvg", later == 0, f"later in {later} of {3 * total}"),
        (
            "at least 60 % of exchanges saved against the average start",
            saved >= 60,
            f"{saved:.1f} % (against plain FedAvg {plain:.1f} %)",
        ),
    )
    return Finding(
        "Rounds saved in each partition",
        "Consolidation by familiarity, with the project's defaults and nothing chosen on test data, "
        "then FedAvg. Targets are shares of the best accuracy of tuned plain FedAvg. Exchanges "
        "summed over seeds, an unreached run counted in full and marked >: fedavg / average start / "
        "fedkd-familiarity / densities alone / validation labels alone. One exchange is the least "
        "that any start can cost. (The seed work: 60.6 % of rounds saved on average.)",
        ("data", "partition", "initialisation", *TARGETS),
        rows,
        " ".join(
            f"{goal}: {'reached' if met else 'not reached'}, {figure}."
            for goal, met, figure in goals
        ),
    )


def _spent(run: dict[str, Any], index: int) -> int:
    spent = run["exchanges"][index]
    return run["before"] + run["max_rounds"] if spent is None else int(spent)


def _sum(arm: dict[int, dict[str, Any]], base: dict[int, Any], index: int) -> str:
    runs = [arm[seed] for seed in base if seed in arm]
    missed = any(run["exchanges"][index] is None for run in runs)
    return f"{'>' if missed else ''}{sum(_spent(run, index) for run in runs)}"


def silos_that_lose(records: Records) -> Finding:
    """Does any silo lose by taking part?"""
    rows = []
    losing = counted = 0
    for study in ("main-digits", "main-fashion"):
        for variant in records.variants(study):
            pairs = [
                pair
                for run in records.runs(study, variant, "fedkd-familiarity")
                for pair in run["silos"]
                if None not in pair
            ]
            lost = [before - after for before, after in pairs if after < before]
            losing += len(lost)
            counted += len(pairs)
            rows.append(
                (
                    study.split("-")[1],
                    *variant,
                    str(len(pairs)),
                    str(len(lost)),
                    f"{100 * max(lost, default=0):.1f}",
                )
            )
    share = 100 * losing / counted if counted else 0.0
    return Finding(
        "Does any silo lose by taking part?",
        "Accuracy on test images in the silo's own mix of classes, of its own model before and of "
        "the global model at the end of the run. No claim: the losers are counted.",
        ("data", "partition", "initialisation", "silos x seeds", "lose", "worst loss, points"),
        rows,
        f"{losing} of {counted} ({share:.1f} %) end below their own model on their own mix.",
    )


def cross_device(records: Records) -> Finding:
    """A hundred small silos with cohorts of ten."""
    variant = ("hundred",)
    arms = ("fedavg", "fedavg-average", "fedkd-equal", "fedkd-familiarity", "control-densities")
    rows = []
    spent = {}
    for arm in arms:
        runs = records.runs("cross-device", variant, arm)
        spent[arm] = sum(_spent(run, 1) for run in runs)
        by_seed = {run["seed"]: run for run in runs}
        rows.append(
            (
                arm,
                _cell(records.start("cross-device", variant, arm)),
                *(_sum(by_seed, by_seed, index) for index in (0, 1)),
            )
        )
    saved = 100 * (1 - spent["fedkd-familiarity"] / spent["fedavg"])
    return Finding(
        "A hundred small silos, cohorts of ten",
        "Consolidation saves exchanges across many devices too (Fashion-MNIST, 5,000 images, Dirichlet "
        "0.3, all hundred teach, ten train a round). Holds if exchanges to 70 % are fewer than plain "
        "FedAvg's. An exchange with a hundred teachers carries ten times the bytes of a round here.",
        ("arm", "start", "exchanges to 60 %", "to 70 %"),
        rows,
        f"{'Holds' if saved > 0 else 'Does not hold'}: {saved:.1f} % saved.",
    )


ONE_EXCHANGE_ARMS = (
    "fedkd-equal",
    "fedkd-familiarity",
    "fedkd-familiarity-knn",
    "control-densities",
)


def one_exchange(records: Records) -> Finding:
    """One exchange against central training."""
    central = max(
        records.variants("central"),
        key=lambda v: records.record("central", v)["federations"][0]["best"],
    )
    top = _mean(records.starts("central", central, "central"))
    rows: list[tuple[str, ...]] = [
        (arm, *(_cell(records.start("one-exchange", (name,), arm)) for name in PARTITIONS))
        for arm in ONE_EXCHANGE_ARMS
    ]
    # Between the two densities validation data decide, not the test set.
    chosen = [
        _mean(records.tuned("one-exchange", (name,), ONE_EXCHANGE_ARMS[1:3])) for name in PARTITIONS
    ]
    rows.append(("familiarity, density by validation", *(f"{100 * x:.1f}" for x in chosen)))
    near = sum(x >= top - 0.02 for x in chosen)
    return Finding(
        "One exchange against central training",
        "Fashion-MNIST, ten silos of 5,000 images, 3,000 unlabelled transfer images, one seed: before "
        "any round the student is within two points of the same model trained on all images in "
        "one place, its learning rate tuned on validation data. Holds if so on four of the five "
        "partitions.",
        ("arm", *PARTITIONS),
        rows,
        f"{'Holds' if near >= 4 else 'Does not hold'}: central training reaches {100 * top:.1f} "
        f"(lr {central[1]}); {near} of 5 partitions are within two points, the gaps being "
        + ", ".join(f"{100 * (top - x):.1f}" for x in chosen)
        + ".",
    )


CLAIMS: tuple[tuple[Callable[[Records], Finding], tuple[str, ...]], ...] = (
    (rounds_saved, ("main-digits", "main-fashion")),
    (silos_that_lose, ("main-digits", "main-fashion")),
    (methods, ("labelled-digits",)),
    (tuned_against_default, ("labelled-digits", "start-digits")),
    (supervised_dp, ("labelled-digits", "start-digits")),
    (mutual, ("start-digits",)),
    (learning_and_forgetting, ("labelled-digits", "start-digits")),
    (weighting, ("start-digits",)),
    (student, ("start-digits",)),
    (transfer_size, ("transfer-digits",)),
    (transfer_type, ("transfer-digits",)),
    (teachers, ("transfer-digits",)),
    (one_exchange, ("central", "one-exchange")),
    (cross_device, ("cross-device",)),
)
"""Every judge, and the studies that it needs."""


def write_results(path: Path) -> None:
    """Judge every claim whose studies are recorded and write the page."""
    records = Records()
    missing = {run.study for run in records.missing()}
    parts = [
        "# What the studies found",
        (
            "Written by `make paper` from the records in `results/`; nothing here is typed by hand. "
            "Accuracies are per cent on test images, mean over three seeds and in brackets the least and "
            "the greatest. Claims are those of arXiv 2402.14922 and of this project; each says the "
            "rule by which it is judged. Where the seed work's exact settings are not public, ours stand "
            "in the study files."
        ),
    ]
    for judge, studies in CLAIMS:
        if lacking := sorted(missing & set(studies)):
            title = judge.__name__.replace("_", " ")
            parts.append(f"*Not judged: {title}; {', '.join(lacking)} is not recorded in full.*")
            continue
        parts.append(_render(judge(records)))
    write_text(path, "\n\n".join(parts) + "\n")


def _render(finding: Finding) -> str:
    lines = [f"## {finding.title}", "", finding.claim, ""]
    lines.append("| " + " | ".join(finding.header) + " |")
    lines.append("|" + "---|" * len(finding.header))
    lines += ["| " + " | ".join(row) + " |" for row in finding.rows]
    return "\n".join([*lines, "", f"**{finding.verdict}**"])
