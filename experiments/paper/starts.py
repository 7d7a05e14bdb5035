"""The start that the recipes chose for FedKD, and the candidates."""

# ruff: noqa: E501 -- the page is prose

from __future__ import annotations

from experiments.paper.figures import Records
from experiments.paper.findings import Finding
from experiments.paper.plan import DENSITIES, STUDENTS, STUDIES, recipes


def starts_tried(_: Records) -> Finding:
    """Return the chosen student, density and mixup, and all candidates."""
    rows = []
    students = dict.fromkeys(STUDENTS, 0)
    densities = dict.fromkeys(DENSITIES, 0)
    worst = dict.fromkeys(STUDENTS, 1.0)
    for study in STUDIES:
        for variant, recipe in recipes(study).items():
            by_name, with_mixup = {}, ""
            for entry in recipe["fedkd"]["starts"]:
                candidate = entry["settings"]
                name = (
                    candidate["consolidation.student"],
                    candidate["consolidation.familiarity.density"],
                )
                if candidate.get("consolidation.mixup"):
                    with_mixup = f"; {name[0]}, {name[1]} with mixup {_percent(entry['start'])}"
                else:
                    by_name[name] = entry["start"]
                    worst[name[0]] = min(worst[name[0]], *entry["start"])
            settings = recipe["fedkd"]["chosen"]
            student, density = (
                settings[f"consolidation.{key}"] for key in ("student", "familiarity.density")
            )
            students[student] += 1
            densities[density] += 1
            rows.append(
                (
                    study.split("-")[1],
                    *variant.split("."),
                    *(
                        " / ".join(_percent(by_name.get((each, density))) for density in DENSITIES)
                        for each in STUDENTS
                    ),
                    f"{student}, {density}{' with mixup' * ('consolidation.mixup' in settings)}{with_mixup}",
                )
            )
    return Finding(
        "Which start was chosen",
        "Validation accuracy before any round by student, with gaussian / knn / pooled densities, mean over seeds "
        "on which no claim is evaluated; the best of them also with mixup, unless it has mixed inputs. "
        "pooled stands for densities pooled in the basis of patches, which are also targets (`teachers: both`), "
        "and 8 mixed inputs per image. No claim.",
        ("data", "partition", "initialisation", *STUDENTS, "chosen"),
        rows,
        "Chosen: "
        + ", ".join(f"{name} in {count}" for name, count in (students | densities).items())
        + f" of {len(rows)} cells. The worst start on any seed: "
        + ", ".join(f"{student} {100 * worst[student]:.1f}" for student in STUDENTS)
        + ".",
    )


def _percent(shares: list[float] | None) -> str:
    return "-" if shares is None else f"{100 * sum(shares) / len(shares):.1f}"
