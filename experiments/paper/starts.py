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
    won_by = dict.fromkeys(DENSITIES, 0)
    worst = dict.fromkeys(STUDENTS, 1.0)
    for study in STUDIES:
        for variant, found in recipes(study).items():
            by_name, mixed = {}, ""
            for entry in found["fedkd"]["starts"]:
                own = entry["settings"]
                name = own["consolidation.student"], own["consolidation.familiarity.density"]
                if own.get("consolidation.mixup"):
                    mixed = f"; {name[0]}, {name[1]} with mixup {_percent(entry['start'])}"
                else:
                    by_name[name] = entry["start"]
                    worst[name[0]] = min(worst[name[0]], *entry["start"])
            settings = found["fedkd"]["chosen"]
            who, kind = (
                settings[f"consolidation.{key}"] for key in ("student", "familiarity.density")
            )
            won[who] += 1
            won_by[kind] += 1
            rows.append(
                (
                    study.split("-")[1],
                    *variant.split("."),
                    *(
                        " / ".join(_percent(by_name.get((each, kind))) for kind in DENSITIES)
                        for each in STUDENTS
                    ),
                    f"{who}, {kind}{' with mixup' * ('consolidation.mixup' in settings)}{mixed}",
                )
            )
    return Finding(
        "Which start was chosen",
        "The recipes' first question: validation accuracy before any round by student, with gaussian / knn "
        "/ pooled densities, mean over seeds that no claim is judged on; the best of them with mixup too, "
        "where it has no blends, which are mixed already. What pooled stands for: densities pooled in "
        "patches, which also teach (`teachers: both`), and 8 blends an image. No claim.",
        ("data", "partition", "initialisation", *STUDENTS, "chosen"),
        rows,
        "Chosen: "
        + ", ".join(f"{name} in {count}" for name, count in (won | won_by).items())
        + f" of {len(rows)} cells. The worst start on any seed: "
        + ", ".join(f"{who} {100 * worst[who]:.1f}" for who in STUDENTS)
        + ".",
    )


def _percent(shares: list[float] | None) -> str:
    return "-" if shares is None else f"{100 * sum(shares) / len(shares):.1f}"
