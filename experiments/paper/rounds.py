"""The claims about rounds: how many are saved, and who loses."""

# ruff: noqa: E501 -- the page is prose

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from experiments.paper.figures import Records, mean
from experiments.paper.findings import Finding, cell
from experiments.paper.plan import SAME_LOSS, STUDIES

TARGETS = ("90 %", "95 %", "99 %")
ARMS = (
    "fedavg",
    "fedavg-same-loss",
    "fedavg-same-rounds",
    "fedavg-average",
    "fedkd",
    "control-densities",
    "control-validation",
)


@dataclass(frozen=True)
class _Cell:
    """One data set, partition, initialisation, seed and target: what each arm spent on it."""

    target: int
    before_any_round: bool
    reached: bool
    spent: dict[str, int]


def rounds_saved(records: Records) -> Finding:
    """Rounds saved in each partition, against plain FedAvg and the average start."""
    rows = []
    cells: list[_Cell] = []
    for study in STUDIES:
        for variant in records.variants(study):
            by_arm = {arm: _by_seed(records, study, variant, arm) for arm in ARMS}
            seeds = by_arm["fedavg"]
            sums = [
                " / ".join(_sum(by_arm[arm], seeds, index) for arm in ARMS)
                for index in range(len(TARGETS))
            ]
            starts = [
                f"{100 * mean([run['accuracy'][0] for run in runs.values()]):.1f}"
                if runs
                else "failed"
                for runs in by_arm.values()
            ]
            rows.append((study.split("-")[1], *variant, " / ".join(starts), *sums))
            cells += _cells(by_arm)
    return Finding(
        "Rounds saved in each partition",
        "Consolidation by familiarity, then FedAvg. Student, density (and what goes with it) and mixup of the consolidated start, "
        "and learning rate and local loss after it and after the averaged one, were chosen on validation "
        "data and other seeds (`recipes/`); the learning rate of plain FedAvg on validation data too, but on seeds that are judged here "
        "(`../sweeps/`), in its favour. Targets are shares of the best accuracy of "
        "tuned plain FedAvg on the same seed. Starts are mean accuracies before any round. Exchanges are "
        "summed over seeds, an unreached run counted in full and marked >. Arms, in this order: "
        + ", ".join(ARMS)
        + "; same-loss is plain FedAvg at its own rate with the logit-adjusted loss that fedkd trains on with in nearly "
        "all cells, same-rounds a random start with the loss and the rate of fedkd, a lower one; the controls have none of the "
        "teachers: densities alone label the transfer set, or the validation labels alone teach. One "
        "exchange a seed is the least that a start other than random can cost. (The seed work: 60.6 % of "
        "rounds saved on average.)",
        ("data", "partition", "initialisation", "starts", *TARGETS),
        rows,
        " ".join(
            f"{goal}: {'reached' if met else 'not reached'}, {figure}."
            for goal, met, figure in _goals(cells)
        ),
    )


def _by_seed(
    records: Records, study: str, variant: tuple[str, ...], arm: str
) -> dict[int, dict[str, Any]]:
    if arm == "fedavg-same-loss":
        study, variant = SAME_LOSS[study], variant[:1]
    return {run["seed"]: run for run in records.runs(study, variant, arm)}


def _cells(by_arm: dict[str, dict[int, dict[str, Any]]]) -> list[_Cell]:
    """Return the cells of one variant, leaving out seeds on which an arm failed."""
    seeds = set.intersection(*(set(runs) for runs in by_arm.values()))
    found = []
    for seed in sorted(seeds):
        own = by_arm["fedkd"][seed]
        found += [
            _Cell(
                index,
                own["accuracy"][0] >= own["targets"][index],
                own["exchanges"][index] is not None,
                {arm: _spent(by_arm[arm][seed], index) for arm in ARMS},
            )
            for index in range(len(TARGETS))
        ]
    return found


def _goals(cells: list[_Cell]) -> list[tuple[str, bool, str]]:
    """Judge every goal: what it is, whether it is met, and the figures."""
    at = [[c for c in cells if c.target == index] for index in range(len(TARGETS))]
    total = len(at[0])
    before = [sum(c.before_any_round for c in at[index]) for index in range(2)]
    third = sum(c.reached and 3 * c.spent["fedkd"] <= c.spent["fedavg"] for c in at[2])
    all_99 = _saved(at[2], "fedavg")
    later = sum(c.spent["fedkd"] > c.spent["fedavg"] for c in cells)
    same = sum(c.spent["fedkd"] > c.spent["fedavg-same-loss"] for c in cells)
    saved = _saved(cells, "fedavg-average")
    controls = ", ".join(f"{arm} {_saved_by(arm, cells):.1f} %" for arm in ARMS[1:])
    return [
        (
            "90 and 95 % before any round in at least 80 % of the cells",
            min(before) >= 0.8 * total,
            f"{before[0]} and {before[1]} of {total}",
        ),
        (
            "99 % with at most a third of plain FedAvg's exchanges",
            third == total,
            f"in {third} of {total} cells, {all_99:.1f} % saved in sum",
        ),
        (
            "In no cell later than plain FedAvg",
            later == 0,
            f"later in {later} of {len(cells)} (than with the same loss in {same})",
        ),
        (
            "At least 60 % of exchanges saved against the average start, in sum",
            saved >= 60,
            f"{saved:.1f} %; against plain FedAvg the arms save: {controls}. {_what_models_add(cells)}",
        ),
    ]


def _what_models_add(cells: list[_Cell]) -> str:
    own, control = (_saved_by(arm, cells) for arm in ("fedkd", "control-densities"))
    return (
        "The densities alone save as much or more: the silos' models add nothing to them in sum"
        if control >= own
        else "The densities alone save less than with the silos' models"
    )


def _saved_by(arm: str, cells: list[_Cell]) -> float:
    """Return how many per cent of plain FedAvg's exchanges an arm saves in sum."""
    return 100 * (1 - sum(c.spent[arm] for c in cells) / sum(c.spent["fedavg"] for c in cells))


def _saved(cells: list[_Cell], baseline: str) -> float:
    """Return how many per cent of a baseline's exchanges fedkd saves in sum."""
    return 100 * (1 - sum(c.spent["fedkd"] for c in cells) / sum(c.spent[baseline] for c in cells))


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
    for study in STUDIES:
        for variant in records.variants(study):
            pairs = [
                pair
                for run in records.runs(study, variant, "fedkd")
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
    rows, spent, missed = [], {}, {}
    for arm in arms:
        runs = records.runs("cross-device", variant, arm)
        spent[arm] = sum(_spent(run, 1) for run in runs)
        by_seed = {run["seed"]: run for run in runs}
        rows.append(
            (
                arm,
                cell(records.start("cross-device", variant, arm)),
                *(_sum(by_seed, by_seed, index) for index in (0, 1)),
            )
        )
        missed[arm] = any(run["exchanges"][1] is None for run in runs)
    saved = 100 * (1 - spent["fedkd-familiarity"] / spent["fedavg"])
    at_least = "at least " * (missed["fedavg"] and not missed["fedkd-familiarity"])
    return Finding(
        "A hundred small silos, cohorts of ten",
        "Consolidation saves exchanges across many devices too (Fashion-MNIST, 5,000 images, Dirichlet "
        "0.3, all hundred teach, ten train a round). Holds if exchanges to 70 % are fewer than plain "
        "FedAvg's, whose learning rate is the best of a sweep on validation data (`../sweeps/`). An exchange with a hundred teachers carries ten times the bytes of a round here.",
        ("arm", "start", "exchanges to 60 %", "to 70 %"),
        rows,
        f"{'Holds' if saved > 0 else 'Does not hold'}: {at_least}{saved:.1f} % saved, and "
        f"{100 * (1 - spent['control-densities'] / spent['fedavg']):.1f} % by densities without any model.",
    )
