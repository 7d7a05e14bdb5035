"""Checkpoints of whole networks or of what is trained, read for the models of a study."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from fedkd.errors import UserError
from fedkd.models.build import Shape, build_model
from fedkd.models.partial import BackboneModel
from fedkd.models.preprocessing import Preprocessing, with_preprocessing
from fedkd.models.state import Checkpoint, State, copy_state, read_checkpoint


def read_model(
    path: Path, arch: str, shape: Shape, *, what: str, preprocessing: Preprocessing | None = None
) -> Checkpoint:
    """Read a checkpoint as the state of a study's model.

    A model with preprocessing or a fixed part takes a file of either form: of the whole
    network, as its library names its tensors, or of what is trained, as fedkd writes it.
    ``preprocessing`` is what it was trained with, if the study's models carry one.
    """
    model = build_model(arch, shape, seed=0)
    if not isinstance(model, BackboneModel):
        if shape.preprocessing is None:
            with_preprocessing({}, preprocessing, None)  # refuses one that has no place
        return read_checkpoint(path, copy_state(model), what=what)
    try:
        plain = read_checkpoint(path, model.plain_state(), what=what)
    except UserError as error:
        try:
            return read_checkpoint(path, copy_state(model), what=what)
        except UserError:
            raise error from None
    state = model.state_from_plain(plain.state, f"{what}: {path}")
    return replace(plain, state=with_preprocessing(state, preprocessing, shape.preprocessing))


def to_plain(arch: str, shape: Shape, state: State) -> State:
    """Return the whole network of a model's state, as its library names its tensors."""
    if shape.backbone is None or not shape.backbone.prepares(arch):
        return state  # without building a model, which may be code of a user's own
    model: nn.Module = build_model(arch, shape, seed=0)
    if not isinstance(model, BackboneModel):
        return state
    model.load_state_dict(state)
    return {key: tensor.detach().cpu() for key, tensor in model.plain_state().items()}
