"""What one lying silo of ten costs a student in closed form, and what ``trust: validation`` mends.

``python -m experiments.robustness.moments --write`` keeps the figures in
``moments.json`` beside it and prints the table of ``docs/robustness.md``. The liar is
the silo of most images of its seed. ``--validation`` looks at no test image; it is what to choose
by.
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

from experiments.robustness.models import PARTITIONS, STUDY
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
"""So many times its images a loud liar claims to have."""

Lie = Callable[[Tensor, torch.Generator], Tensor]
LIES: dict[str, Lie] = {
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
    """Return accuracies in per cent and who was left out, with and without ``trust``, by lie.

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

    def meet(silo: str, lie: str | None = None) -> Teacher:
        own = federation.data_of(silo)
        drawn = torch_generator(seed, "lie", silo)
        labels = own.labels if lie is None else LIES[lie](own.labels, drawn)
        told = moments_of(Images(own.images, labels), basis, num_classes=10)
        if lie == "loud constant class" and told is not None:
            told = replace(told, counts=LOUD * told.counts)
        # What silos' models say is not used: there is none.
        said = torch.zeros(len(setup.transfer), 10)
        return Teacher(silo, "cnn", len(own), logits=said, moments=told)

    def judge(members: Sequence[Teacher], trust: str) -> dict[str, Any]:
        teachers = Teachers(members, federation.shape, federation.compute)
        asked = settings.model_copy(update={"trust": trust})
        made = consolidate(teachers, asked, setup)
        model = build_model(PATCH_FEATURES, federation.shape, seed=0)
        model.load_state_dict(made.state)
        accuracy = evaluate(model, data, compute=federation.compute).accuracy
        return {
            "accuracy": round(100 * accuracy, 2),
            "left_out": sorted(made.notes.get("doubted", {})),
        }

    honest = [meet(silo) for silo in federation.study.silo_names]
    liar = max(range(len(honest)), key=lambda m: honest[m].num_examples)
    rest = [teacher for m, teacher in enumerate(honest) if m != liar]
    found: dict[str, Any] = {"liar": honest[liar].silo, "without": judge(rest, "equal")}
    for name in ("honest", *LIES):
        members = list(honest)
        if name != "honest":
            members[liar] = meet(honest[liar].silo, name)
        found[name] = {trust: judge(members, trust) for trust in ("equal", "validation")}
    return found


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return means over seeds, in points lost against ten honest silos, and who was left out."""
    table = []
    for partition in dict.fromkeys(row["partition"] for row in rows):
        runs = [row["found"] for row in rows if row["partition"] == partition]
        honest = mean(run["honest"]["equal"]["accuracy"] for run in runs)
        without = mean(run["without"]["accuracy"] for run in runs)
        for trust in ("equal", "validation"):
            lost = {
                name: round(mean(honest - run[name][trust]["accuracy"] for run in runs), 1) + 0.0
                for name in ("honest", *LIES)
            }
            caught = sum(run["liar"] in run[lie][trust]["left_out"] for run in runs for lie in LIES)
            wrongly = sum(
                name != run["liar"] or case == "honest"
                for run in runs
                for case in ("honest", *LIES)
                for name in run[case][trust]["left_out"]
            )
            table.append(
                {
                    "partition": partition,
                    "trust": trust,
                    "without": round(honest - without, 1),
                    "lost": lost,
                    "caught": caught,
                    "of": len(runs) * len(LIES),
                    "wrongly": wrongly,
                }
            )
    return table


def render(table: Sequence[dict[str, Any]]) -> str:
    """Return the table in Markdown."""
    head = ["partition", "trust", "liar not there", "honest", *LIES, "left out", "wrongly"]
    lines = [f"| {' | '.join(head)} |", "|---|---|" + "---:|" * (4 + len(LIES))]
    for row in table:
        figures = [f"{value:.1f}" for value in (row["without"], *row["lost"].values())]
        counts = [f"{row['caught']} of {row['of']}", str(row["wrongly"])]
        cells = [f"`{row['partition']}`", f"`{row['trust']}`", *figures, *counts]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--partitions", default=",".join(ALL_PARTITIONS))
    parser.add_argument("--validation", action="store_true", help="look at no test image")
    parser.add_argument("--write", action="store_true", help=f"keep the figures in {RECORD.name}")
    asked = parser.parse_args()
    if asked.write and asked.validation:
        parser.error("the record is of test images")
    rows = []
    with intra_op_threads(1):
        for partition in asked.partitions.split(","):
            for seed in map(int, asked.seeds.split(",")):
                found = measure(partition, seed, on="validation" if asked.validation else "test")
                rows.append({"partition": partition, "seed": seed, "found": found})
                sys.stderr.write(f"{json.dumps(rows[-1])}\n")
    if asked.write:
        write_json(RECORD, {"runs": rows, "lost": summarise(rows)})
    sys.stdout.write(render(summarise(rows)) + "\n")


if __name__ == "__main__":
    main()
