"""Claims about the transfer set, its size and source, and about the number of teachers."""

# ruff: noqa: E501 -- the page is prose

from __future__ import annotations

import itertools
from collections.abc import Callable

from experiments.paper.figures import Records, mean
from experiments.paper.findings import Finding, cell

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
        (arm, *(cell(records.start("transfer-digits", name, arm)) for name in names))
        for arm in TRANSFER_ARMS
    ]
    means = {
        name[1]: {
            arm: mean(records.starts("transfer-digits", name, arm) or [0.0])
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
        native = mean(records.starts("transfer-digits", ("size", "300"), "fedkd-familiarity"))
        foreign = ", ".join(
            f"{name} {100 * by_arm['fedkd-familiarity']:.1f}" for name, by_arm in means.items()
        )
        best = max(by_arm["fedkd-familiarity"] for by_arm in means.values())
        return (
            f"{'Holds' if best < native - 0.05 else 'Does not hold'}: familiarity on the study's "
            f"own images {100 * native:.1f}, on {foreign}."
        )

    return _transfer(
        records,
        "source",
        "Foreign transfer sets and noise",
        "A transfer set from another source is much worse (300 images, Dirichlet 0.1). Holds if "
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
            + (", not monotonically" if sorted(equal, reverse=True) != equal else "")
            + "; familiarity "
            + ", ".join(f"{100 * v:.1f}" for v in familiar)
            + "."
        )

    return _transfer(
        records,
        "teachers",
        "Number of teachers",
        "Partitioning the same data among more silos makes distillation with equal weights worse (690 images in "
        "all, Dirichlet 0.1). Holds if 20 teachers are worse than 2.",
        verdict,
    )
