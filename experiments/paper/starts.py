"""Which start the recipes chose for FedKD, and what else they tried."""

# ruff: noqa: E501 -- the page is prose

from __future__ import annotations

from experiments.paper.figures import Records
from experiments.paper.findings import Finding
from experiments.paper.plan import DENSITIES, STUDENTS, STUDIES, recipes


def starts_tried(_: Records) -> Finding:
    """Which student, density and mixup were chosen, and what else was tried."""
    rows = []
    won = dict.fromkeys(STUDENTS, 0)
    worst = dict.fromkeys(STUDENTS, 1.0)
    for study in STUDIES:
        for variant, found in recipes(study).items():
            tried = [
                (
                    entry["settings"]["consolidation.student"],
                    entry["settings"]["consolidation.familiarity.density"],
                    entry["settings"].get("consolidation.mixup", False),
                    entry["start"],
                )
                for entry in found["fedkd"]["starts"]
            ]
            by_name = {(who, kind): start for who, kind, blends, start in tried if not blends}
            for (who, _kind), start in by_name.items():
                worst[who] = min(worst[who], *start)
            who, kind, _, blended = tried[-1]
            settings = found["fedkd"]["chosen"]
            chosen = [
                settings[f"consolidation.{key}"] for key in ("student", "familiarity.density")
            ]
            won[chosen[0]] += 1
            mixed = " with mixup" if settings.get("consolidation.mixup") else ""
            rows.append(
                (
                    study.split("-")[1],
                    *variant.split("."),
                    *(
                        " / ".join(_percent(by_name[who, kind]) for kind in DENSITIES)
                        for who in STUDENTS
                    ),
                    f"{who}, {kind}: {_percent(blended)}",
                    ", ".join(chosen) + mixed,
                )
            )
    return Finding(
        "Which start was chosen",
        "The recipes' first question: validation accuracy before any round by student, with gaussian / knn "
        "densities, mean over seeds that no claim is judged on; then the best of them with mixup. No "
        "claim.",
        ("data", "partition", "initialisation", *STUDENTS, "with mixup", "chosen"),
        rows,
        "Chosen: "
        + ", ".join(f"{who} in {won[who]}" for who in STUDENTS)
        + f" of {len(rows)} cells. The worst start on any seed: "
        + ", ".join(f"{who} {100 * worst[who]:.1f}" for who in STUDENTS)
        + ".",
    )


def _percent(shares: list[float]) -> str:
    return f"{100 * sum(shares) / len(shares):.1f}"
