"""Models whose classes have another order than the study's, or are more: outputs by class name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from fedkd.errors import UserError
from fedkd.models.build import Shape, build_model
from fedkd.models.state import State


def find_classes_problem(own: Sequence[str], wanted: Sequence[str]) -> str | None:
    """Return why a model with the classes ``own`` cannot give those of a study; None if it can."""
    if twice := [name for name in wanted if list(own).count(name) > 1]:
        return f"has two outputs for the class {twice[0]!r}; train a model that has one for each"
    if missing := [name for name in wanted if name not in own]:
        return (
            f"has no output for the study's class {missing[0]!r} (it has {', '.join(own[:20])}); "
            "train a last layer for all classes, or take part without a model (share.teacher: none)"
        )
    return None


def select_classes(
    state: State, arch: str, shape: Shape, own: Sequence[str], wanted: Sequence[str], *, what: str
) -> State:
    """Return the state of a model whose outputs are the classes ``wanted``, in this order.

    The last layer is what has another shape in a model of one class more. Its rows are taken by
    name, so that the logits of the chosen classes stay what they are.

    Args:
        state: of a model with the classes ``own``.
        arch: its architecture.
        shape: what it is built for.
        own: its classes; ``wanted`` are among them.
        wanted: those of the study.
        what: how to name the model in an error.

    Raises:
        UserError: the architecture has no such layer.
    """
    larger = replace(shape, num_classes=len(own) + 1)
    like = build_model(arch, larger, seed=0).state_dict()
    rows = torch.tensor([list(own).index(name) for name in wanted])
    head = [key for key in state if state[key].shape != like[key].shape]
    if not head or any(
        len(like[key]) != len(own) + 1 or state[key].shape[1:] != like[key].shape[1:]
        for key in head
    ):
        raise UserError(
            f"{what}: its classes have another order than the study's, or are more, and {arch} has "
            "no last layer with a row for each; give a model with the study's classes"
        )
    return {key: t[rows].clone() if key in head else t for key, t in state.items()}
