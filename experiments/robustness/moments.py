"""Accuracy of a student in closed form with one malicious silo of ten; ``trust: validation``.

``python -m experiments.robustness.moments --write`` stores the figures in ``moments.json`` and
prints the table of ``docs/robustness.md``. The malicious silo is the largest of its seed.
``--validation`` uses validation instead of test images, for choosing settings.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from experiments.robustness.case import PARTITIONS, STUDY
from fedkd.config import Consolidation
from fedkd.config.study_file import parse_study
from fedkd.data.images import Images
from fedkd.distillation.consolidate import consolidate
from fedkd.distillation.density.basis import make_basis
from fedkd.distillation.density.moments import moments_of
from fedkd.distillation.targets import DistillationSetup
from fedkd.distillation.teachers import Teacher, Teachers
from fedkd.federation.federation import Federation
from fedkd.models.build import build_model
from fedkd.registry import NUM_PATCH_FILTERS, PATCH_FEATURES
from fedkd.training.compute import intra_op_threads
from fedkd.training.evaluate import evaluate
from fedkd.util.cache import cache_root
from fedkd.util.files import write_json
from fedkd.util.seeding import torch_generator

RECORD = Path(__file__).with_suffix(".json")
ALL_PARTITIONS = {**PARTITIONS, "quantity": "{scheme: quantity, silos: 10, alpha: 0.5}"}
LOUD = 100
"""Factor by which the loud attack exaggerates the number of images."""

Attack = Callable[[Tensor, torch.Generator], Tensor]
ATTACKS: dict[str, Attack] = {
    "flipped labels": lambda labels, _: 9 - labels,
    "random labels": lambda labels, drawn: torch.randint(0, 10, labels.shape, generator=drawn),
    "constant class": lambda labels, _: torch.zeros_like(labels),
    "loud constant class": lambda labels, _: torch.zeros_like(labels),
}
SETTINGS: dict[str, Any] = {
    "weighting": "familiarity",
    "student": "lda-head",
    "epochs": 0,
    "familiarity": {"density": "pooled", "basis": "patches", "filters": NUM_PATCH_FILTERS},
}


def measure(partition: str, seed: int, *, on: str) -> dict[str, Any]:
    """Return accuracies in per cent and excluded silos, with and without ``trust``, by attack.

    Args:
        partition: a name of ``ALL_PARTITIONS``.
        seed: of the study.
        on: ``test`` or ``validation``.
    """
    text = STUDY.format(partition=ALL_PARTITIONS[partition], seed=seed, training="epochs: 1")
    federation = Federation.load(parse_study(text), seed, cache_root())
    split = federation.split
    data = split.validation if on == "validation" else split.test
    settings = Consolidation.model_validate(SETTINGS)
    familiarity = settings.familiarity
    if split.transfer is None or data is None:
        raise ValueError("the federation has no transfer or no test images")
    basis = make_basis(
        split.transfer.images,
        dims=familiarity.effective_dims,
        kind=familiarity.basis,
        filters=familiarity.filters,
        fine=True,
    )
    if basis is None:
        raise ValueError("the transfer set is too small for filters")
    setup = DistillationSetup(
        transfer=split.transfer,
        labelled=False,
        validation=split.validation,
        arch=PATCH_FEATURES,
        shape=federation.shape,
        compute=federation.compute,
        seed=seed,
        basis=basis,
    )

    def make_teacher(silo: str, attack: str | None = None) -> Teacher:
        own = federation.data_of(silo)
        drawn = torch_generator(seed, "lie", silo)
        labels = own.labels if attack is None else ATTACKS[attack](own.labels, drawn)
        moments = moments_of(Images(own.images, labels), basis, num_classes=10)
        if attack == "loud constant class" and moments is not None:
            moments = replace(moments, counts=LOUD * moments.counts)
        # The silos' models are not used.
        unused_logits = torch.zeros(len(setup.transfer), 10)
        return Teacher(silo, "cnn", len(own), logits=unused_logits, moments=moments)

    def evaluate_student(members: Sequence[Teacher], trust: str) -> dict[str, Any]:
        teachers = Teachers(members, federation.shape, federation.compute)
        with_trust = settings.model_copy(update={"trust": trust})
        student = consolidate(teachers, with_trust, setup)
        model = build_model(PATCH_FEATURES, federation.shape, seed=0)
        model.load_state_dict(student.state)
        accuracy = evaluate(model, data, compute=federation.compute).accuracy
        return {
            "accuracy": round(100 * accuracy, 2),
            "left_out": sorted(student.notes.get("doubted", {})),
        }

    honest = [make_teacher(silo) for silo in federation.study.silo_names]
    malicious = max(range(len(honest)), key=lambda m: honest[m].num_examples)
    rest = [teacher for m, teacher in enumerate(honest) if m != malicious]
    results: dict[str, Any] = {
        "liar": honest[malicious].silo,
        "without": evaluate_student(rest, "equal"),
    }
    for name in ("honest", *ATTACKS):
        members = list(honest)
        if name != "honest":
            members[malicious] = make_teacher(honest[malicious].silo, name)
        results[name] = {
            trust: evaluate_student(members, trust) for trust in ("equal", "validation")
        }
    return results


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return means over seeds of points lost against ten honest silos, and counts of exclusions."""
    table = []
    for partition in dict.fromkeys(row["partition"] for row in rows):
        runs = [row["found"] for row in rows if row["partition"] == partition]
        honest = mean(run["honest"]["equal"]["accuracy"] for run in runs)
        without = mean(run["without"]["accuracy"] for run in runs)
        for trust in ("equal", "validation"):
            lost = {
                name: round(mean(honest - run[name][trust]["accuracy"] for run in runs), 1) + 0.0
                for name in ("honest", *ATTACKS)
            }
            caught = sum(
                run["liar"] in run[attack][trust]["left_out"] for run in runs for attack in ATTACKS
            )
            wrongly = sum(
                name != run["liar"] or case == "honest"
                for run in runs
                for case in ("honest", *ATTACKS)
                for name in run[case][trust]["left_out"]
            )
            table.append(
                {
                    "partition": partition,
                    "trust": trust,
                    "without": round(honest - without, 1),
                    "lost": lost,
                    "caught": caught,
                    "of": len(runs) * len(ATTACKS),
                    "wrongly": wrongly,
                }
            )
    return table


def render(table: Sequence[dict[str, Any]]) -> str:
    """Return the table in Markdown."""
    head = ["partition", "trust", "without the silo", "honest", *ATTACKS, "excluded", "wrongly"]
    lines = [f"| {' | '.join(head)} |", "|---|---|" + "---:|" * (4 + len(ATTACKS))]
    for row in table:
        figures = [f"{value:.1f}" for value in (row["without"], *row["lost"].values())]
        counts = [f"{row['caught']} of {row['of']}", str(row["wrongly"])]
        cells = [f"`{row['partition']}`", f"`{row['trust']}`", *figures, *counts]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--partitions", default=",".join(ALL_PARTITIONS))
    parser.add_argument("--validation", action="store_true", help="evaluate on validation images")
    parser.add_argument("--write", action="store_true", help=f"store the figures in {RECORD.name}")
    arguments = parser.parse_args()
    if arguments.write and arguments.validation:
        parser.error("the record is of test images")
    rows = []
    with intra_op_threads(1):
        for partition in arguments.partitions.split(","):
            for seed in map(int, arguments.seeds.split(",")):
                results = measure(
                    partition, seed, on="validation" if arguments.validation else "test"
                )
                rows.append({"partition": partition, "seed": seed, "found": results})
                sys.stderr.write(f"{json.dumps(rows[-1])}\n")
    if arguments.write:
        write_json(RECORD, {"runs": rows, "lost": summarise(rows)})
    sys.stdout.write(render(summarise(rows)) + "\n")


if __name__ == "__main__":
    main()
