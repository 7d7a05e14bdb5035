"""A simulated silo's own model: trained on its data, or read from a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fedkd.data.images import as_inputs
from fedkd.models.build import rebuild
from fedkd.models.card import check_columns, check_preprocessing, read_card
from fedkd.models.external import read_external
from fedkd.models.own_checkpoint import read_model
from fedkd.models.state import Checkpoint, State, copy_state
from fedkd.registry import is_external
from fedkd.training.compute import intra_op_threads
from fedkd.training.external import train_external
from fedkd.training.pretrain import pretrain
from fedkd.util.seeding import derive_seed, torch_generator

if TYPE_CHECKING:
    from fedkd.federation.federation import Federation


def read_own_checkpoint(federation: Federation, silo: str, path: Path, what: str) -> Checkpoint:
    """Read a silo's own model from its checkpoint."""
    arch, shape, split = federation.study.arch_of(silo), federation.shape, federation.split
    if is_external(arch):
        some = federation.data_of(silo).take(torch.arange(min(8, federation.sizes[silo])))
        examples = as_inputs(some.images)
        state = read_external(
            path, shape, split.classes, what=what, examples=examples, encoder=split.encoder
        )
        return Checkpoint(state, finite=True)
    preprocessing = federation.own_preprocessing(silo)
    check_preprocessing(path, preprocessing, what=what)
    notes = check_columns(path, read_card(path, what=what), split.encoder, what=what)
    model = read_model(path, arch, shape, what=what, preprocessing=preprocessing)
    return replace(model, notes=(*model.notes, *notes))


def train_own_model(federation: Federation, silo: str) -> State:
    """Train a silo's own model on its data.

    Raises:
        CannotLearnError: another library's classifier cannot be trained on them.
    """
    study, seed, data = federation.study, federation.seed, federation.data_of(silo)
    arch = study.arch_of(silo)
    if is_external(arch):
        return train_external(arch, data, derive_seed(seed, "external-model", silo) % 2**31)
    compute = federation.compute_of(silo)
    model = rebuild(arch, federation.shape, federation.initial_model(silo), compute.device)
    with intra_op_threads(compute.threads):
        pretrain(
            model,
            data,
            study.pretraining,
            num_classes=federation.shape.num_classes,
            generator=torch_generator(seed, "pre-training", silo),
            compute=compute,
        )
    return copy_state(model)
