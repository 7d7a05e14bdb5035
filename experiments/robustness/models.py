"""Accuracy lost to one bad teacher of ten, and to robust options with honest teachers.

``python -m experiments.robustness.models --write`` stores the figures in ``models.json``, where
they replace those of the same partition, weighting and seed, and prints the table of
``docs/robustness.md``. The bad silo is the largest of its seed, with the largest influence.
``--validation`` uses validation instead of test images, for choosing settings.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from fedkd.config import Consolidation
from fedkd.config.study_file import parse_study
from fedkd.data.images import Images
from fedkd.distillation.consolidate import consolidate
from fedkd.distillation.density.basis import Basis, make_basis
from fedkd.distillation.density.estimators import density_bound, log_densities
from fedkd.distillation.targets import DistillationSetup
from fedkd.distillation.teachers import Teacher, Teachers
from fedkd.federation.federation import Federation
from fedkd.models.build import build_model
from fedkd.models.state import State, copy_state
from fedkd.training.compute import intra_op_threads
from fedkd.training.evaluate import evaluate
from fedkd.training.loop import train_supervised
from fedkd.training.optimizer import OptimizerSettings
from fedkd.util.cache import cache_root
from fedkd.util.files import write_json
from fedkd.util.seeding import torch_generator

RECORD = Path(__file__).with_suffix(".json")
PARTITIONS = {
    "iid": "{scheme: iid, silos: 10}",
    "label-dirichlet": "{scheme: label-dirichlet, silos: 10, alpha: 0.1}",
    "label-shards": "{scheme: label-shards, silos: 10, classes_per_silo: 2}",
    "label-dominant": "{scheme: label-dominant, silos: 10}",
}
WEIGHTINGS = ("equal", "confidence", "familiarity")
RULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "median": {"pooling": "median"},
    "cap": {"max_weight": 0.2},
    "trust": {"trust": "agreement"},
    "cap and trust": {"max_weight": 0.2, "trust": "agreement"},
}
"""``trust`` needs weighting ``familiarity``."""
TRAINING = "epochs: 100, lr: 0.05"
STUDY = """
name: robustness
data: {{source: digits, test: 0.2, validation: 0.1, transfer: {{size: 300, labelled: false}}}}
partition: {partition}
model: {{arch: cnn}}
pretraining: {{{training}, init: shared}}
targets: [0.9]
arms: {{fedkd: {{start: consolidated}}}}
seeds: [{seed}]
"""


class RobustnessCase:
    """One federation of ten teachers, one of which may be bad.

    Args:
        partition: a name of ``PARTITIONS``.
        seed: of the study.
        pool: threads on which silos train.
        training: settings of the silos' pre-training.
    """

    def __init__(
        self, partition: str, seed: int, pool: ThreadPoolExecutor, training: str = TRAINING
    ) -> None:
        text = STUDY.format(partition=PARTITIONS[partition], seed=seed, training=training)
        study = parse_study(text)
        federation = Federation.load(study, seed, cache_root())
        federation.pretrain(pool)
        transfer = federation.split.transfer
        basis = None if transfer is None else make_basis(transfer.images, dims=50)
        if transfer is None or basis is None:
            raise ValueError("the transfer set is too small for densities")
        self.federation, self.transfer, self.basis = federation, transfer, basis
        with intra_op_threads(1):
            self.honest = [self._make_teacher(silo, basis) for silo in study.silo_names]
        self.bad = max(range(10), key=lambda m: self.honest[m].num_examples)

    def student(self, settings: Consolidation, members: Sequence[Teacher], data: Images) -> float:
        """Return the accuracy on ``data`` of the student of these teachers."""
        federation = self.federation
        setup = DistillationSetup(
            transfer=self.transfer,
            labelled=False,
            validation=federation.split.validation,
            arch="cnn",
            shape=federation.shape,
            compute=federation.compute,
            seed=federation.seed,
            basis=self.basis if settings.uses_densities else None,
        )
        teachers = Teachers(members, federation.shape, federation.compute)
        model = build_model("cnn", federation.shape, seed=0)
        with intra_op_threads(1):
            model.load_state_dict(consolidate(teachers, settings, setup).state)
            return evaluate(model, data, compute=federation.compute).accuracy

    def without(self) -> list[Teacher]:
        """Return all teachers but the bad one."""
        return [teacher for m, teacher in enumerate(self.honest) if m != self.bad]

    def under(self, attack: str) -> list[Teacher]:
        """Return all teachers, with ``attack`` applied to the bad one."""
        changed = ATTACKS[attack](self, self.honest[self.bad])
        return [changed if m == self.bad else teacher for m, teacher in enumerate(self.honest)]

    def retrain(self, silo: str, labels: Callable[[Tensor], Tensor]) -> State:
        """Return the silo's model after training on changed labels."""
        federation, settings = self.federation, self.federation.study.pretraining
        data = federation.data_of(silo)
        model = build_model("cnn", federation.shape, seed=0)
        model.load_state_dict(federation.initial_model(silo))
        with intra_op_threads(1):
            train_supervised(
                model,
                Images(data.images, labels(data.labels)),
                optimizer=OptimizerSettings.of(settings, settings.epochs),
                generator=torch_generator(federation.seed, "pre-training", silo),
                compute=federation.compute,
            )
        return copy_state(model)

    def _make_teacher(self, silo: str, basis: Basis) -> Teacher:
        data = self.federation.data_of(silo)
        joint = log_densities(
            data,
            self.transfer.images,
            basis,
            kind="gaussian",
            neighbours=5,
            num_classes=10,
        )
        density = None if joint is None else joint.logsumexp(1)
        state = self.federation.pretrained(silo).state
        return Teacher(silo, "cnn", len(data), state, log_density=density)


def flipped_labels(case: RobustnessCase, teacher: Teacher) -> Teacher:
    """Train on label 9 - k instead of k; the densities are honest."""
    return replace(teacher, state=case.retrain(teacher.silo, lambda labels: 9 - labels))


def random_logits(case: RobustnessCase, teacher: Teacher) -> Teacher:
    """Confident random predictions, independent for each image; random weights."""
    generator = torch_generator(case.federation.seed, "random-logits")
    logits = 5 * torch.randn(len(case.transfer), 10, generator=generator)
    state = copy_state(build_model("cnn", case.federation.shape, seed=1))
    return replace(teacher, state=state, logits=logits)


def constant_class(_: RobustnessCase, teacher: Teacher) -> Teacher:
    """Predict class 0 for every image, confidently."""
    state = {key: tensor.clone() for key, tensor in (teacher.state or {}).items()}
    weight, bias = list(state)[-2:]
    state[weight].zero_()
    state[bias] = torch.tensor([30.0] + [0.0] * 9)
    return replace(teacher, state=state)


def loud_constant_class(case: RobustnessCase, teacher: Teacher) -> Teacher:
    """Predict class 0 for every image, and send the highest density that passes validation."""
    bound = density_bound("gaussian", len(case.basis.components))
    claimed = torch.full((len(case.transfer),), bound, dtype=torch.float64)
    return replace(constant_class(case, teacher), log_density=claimed)


ATTACKS: dict[str, Callable[[RobustnessCase, Teacher], Teacher]] = {
    "flipped labels": flipped_labels,
    "random logits": random_logits,
    "constant class": constant_class,
    "loud constant class": loud_constant_class,
}


def measure(case: RobustnessCase, weighting: str, *, on: str) -> dict[str, Any]:
    """Return accuracies in per cent: without the bad silo, honest, and under every attack.

    Args:
        case: the teachers.
        weighting: the weighting of the teachers.
        on: ``test`` or ``validation``.
    """
    split = case.federation.split
    data = split.validation if on == "validation" else split.test
    if data is None:
        raise ValueError("the federation has no test images")
    plain = Consolidation(weighting=weighting)

    def points(settings: Consolidation, members: Sequence[Teacher]) -> float:
        return round(100 * case.student(settings, members, data), 2)

    accuracies: dict[str, Any] = {"left out": points(plain, case.without())}
    for rule, changes in RULES.items():
        if "trust" in changes and weighting != "familiarity":
            continue
        settings = Consolidation.model_validate({"weighting": weighting, **changes})
        accuracies[rule] = {"honest": points(settings, case.honest)}
        for attack in ATTACKS:
            if attack == "loud constant class" and not settings.uses_densities:
                continue
            accuracies[rule][attack] = points(settings, case.under(attack))
    return accuracies


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean losses over seeds, in points.

    Losses with honest teachers are relative to ``plain``; losses under attack are relative to
    training without the bad silo.
    """
    table = []
    for partition in PARTITIONS:
        for weighting in WEIGHTINGS:
            runs = [
                row["found"]
                for row in rows
                if (row["partition"], row["weighting"]) == (partition, weighting)
            ]
            for rule in (rule for rule in RULES if runs and rule in runs[0]):
                lost = {"honest": mean(r["plain"]["honest"] - r[rule]["honest"] for r in runs)}
                for attack in ATTACKS:
                    if attack in runs[0][rule]:
                        lost[attack] = mean(r["left out"] - r[rule][attack] for r in runs)
                table.append(
                    {
                        "partition": partition,
                        "weighting": weighting,
                        "rule": rule,
                        "lost": {key: round(value, 1) for key, value in lost.items()},
                        "reached": lost["honest"] <= 1
                        and all(value <= 2 for key, value in lost.items() if key != "honest"),
                    }
                )
    return table


def render(table: Sequence[dict[str, Any]]) -> str:
    """Return the table in Markdown."""
    head = ["partition", "weighting", "rule", "honest", *ATTACKS, "reached"]
    lines = [f"| {' | '.join(head)} |", "|---|---|---|" + "---:|" * (1 + len(ATTACKS)) + "---|"]
    for row in table:
        figures = [f"{row['lost'][key]:+.1f}" if key in row["lost"] else "" for key in head[3:-1]]
        cells = [f"`{row['partition']}`", f"`{row['weighting']}`", row["rule"], *figures]
        lines.append(f"| {' | '.join([*cells, 'yes' if row['reached'] else ''])} |")
    return "\n".join(lines)


def _with_others(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows, and those of the record that were not measured again."""

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row[name] for name in ("partition", "weighting", "seed"))

    before = json.loads(RECORD.read_text())["runs"] if RECORD.is_file() else []
    merged = {key(row): row for row in [*before, *rows]}
    return [row for _, row in sorted(merged.items())]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--partitions", default=",".join(PARTITIONS))
    parser.add_argument("--weightings", default=",".join(WEIGHTINGS))
    parser.add_argument("--training", default=TRAINING, help="settings of the silos' pre-training")
    parser.add_argument("--validation", action="store_true", help="evaluate on validation images")
    parser.add_argument("--write", action="store_true", help=f"store the figures in {RECORD.name}")
    arguments = parser.parse_args()
    if arguments.write and (arguments.validation or arguments.training != TRAINING):
        parser.error("the record is of test images and of fully trained models")
    rows = []
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for seed in map(int, arguments.seeds.split(",")):
            for partition in arguments.partitions.split(","):
                case = RobustnessCase(partition, seed, pool, arguments.training)
                for weighting in arguments.weightings.split(","):
                    accuracies = measure(
                        case, weighting, on="validation" if arguments.validation else "test"
                    )
                    where = {"partition": partition, "seed": seed, "weighting": weighting}
                    rows.append({**where, "found": accuracies})
                    sys.stderr.write(f"{json.dumps(rows[-1])}\n")
    if arguments.write:
        rows = _with_others(rows)
        write_json(RECORD, {"runs": rows, "lost": summarise(rows)})
    sys.stdout.write(render(summarise(rows)) + "\n")


if __name__ == "__main__":
    main()
