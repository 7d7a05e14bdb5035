"""Federations of ten teachers, and what a bad one of them sends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

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
from fedkd.util.seeding import torch_generator

PARTITIONS = {
    "iid": "{scheme: iid, silos: 10}",
    "label-dirichlet": "{scheme: label-dirichlet, silos: 10, alpha: 0.1}",
    "label-shards": "{scheme: label-shards, silos: 10, classes_per_silo: 2}",
    "label-dominant": "{scheme: label-dominant, silos: 10}",
}
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
