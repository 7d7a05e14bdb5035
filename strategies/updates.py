"""What the server does with the average of a round's models before it is the new global model.

``SiloFedAvg.combine`` makes the average; the arm's ``strategy`` names the update that follows.
An update belongs to one run and may have a state. It does not depend on how the global model
started: any start goes with any update.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from torch import Tensor

from fedkd.errors import UserError
from fedkd.models.state import State, is_finite, mismatch
from fedkd.registry import STRATEGIES
from strategies.context import RunContext


@dataclass(frozen=True)
class RoundModels:
    """The models of one round.

    Attributes:
        number: the round, from 1.
        sent: the global model that the silos received.
        trained: the models that they sent back, in natural order of their names; at least one.
            Few are in memory at a time, and none can be taken once the round has ended: hold no
            more of them than you need.
        average: what ``combine`` made of these.
    """

    number: int
    sent: State
    trained: Sequence[State]
    average: State


class ServerUpdate(ABC):
    """Turns a round's models into the new global model.

    An update with state overrides ``state_dict`` and ``load_state_dict``, so that a run that was
    killed resumes to the same bits. Random numbers are not state: draw them for every round from
    :func:`fedkd.util.seeding.torch_generator`.
    """

    @abstractmethod
    def __call__(self, models: RoundModels) -> State:
        """Return a state with the keys, shapes and types of ``models.sent``."""

    def state_dict(self) -> State:
        """Return all that the next round depends on, as tensors by name."""
        return {}

    def load_state_dict(self, state_dict: State) -> None:
        """Restore what ``state_dict`` returned.

        Raises:
            ValueError: it is not a state of this update.
        """
        if state_dict:
            raise ValueError(f"{type(self).__name__} has no state")


def server_update(context: RunContext) -> ServerUpdate:
    """Return the update of the arm's strategy, in the state in which a run begins.

    Raises:
        UserError: the server lacks what the strategy needs, or a strategy of the user's own raised
            something or returned no update.
    """
    name = context.arm.strategy
    update = STRATEGIES.call(name, context)
    if not isinstance(update, ServerUpdate):
        raise UserError(
            f"arms.{context.arm_name}.strategy: {name} returned {type(update).__name__}, not a "
            "ServerUpdate"
        )
    return OwnUpdate(name, update) if STRATEGIES.is_own(name) else update


class OwnUpdate(ServerUpdate):
    """An update of the user's own; an error names it, and fails its arm alone.

    Args:
        name: of the strategy, as the study has it.
        update: the user's.
    """

    def __init__(self, name: str, update: ServerUpdate) -> None:
        self._name = name
        self._update = update

    def __call__(self, models: RoundModels) -> State:
        """Return what the user's update returns.

        Raises:
            UserError: it raised something, or its model does not fit the one that was sent.
        """
        with STRATEGIES.calling(self._name):
            state = self._update(models)
        if problem := find_misfit(state, models.sent):
            raise UserError(
                f"strategy {self._name} returned an unusable model in round {models.number}: "
                f"{problem}"
            )
        return dict(state)

    def state_dict(self) -> State:
        """Return the state of the user's update.

        Raises:
            UserError: it raised something, or does not map names to tensors.
        """
        with STRATEGIES.calling(self._name):
            state = self._update.state_dict()
        if not _is_state(state):
            raise UserError(f"strategy {self._name}: state_dict must return tensors by name")
        return dict(state)

    def load_state_dict(self, state_dict: State) -> None:
        """Restore the state of the user's update."""
        with STRATEGIES.calling(self._name):
            self._update.load_state_dict(state_dict)


def find_misfit(state: object, like: State) -> str:
    """Return in a phrase why a state is not a usable one of the model ``like``, or ``""``."""
    if not _is_state(state):
        return f"it is {type(state).__name__}, not tensors by name"
    if problem := mismatch(dict(state), like):
        return problem
    return "" if is_finite(dict(state), like) else "not all of its values are finite"


def _is_state(state: object) -> TypeGuard[Mapping[str, Tensor]]:
    return isinstance(state, Mapping) and all(
        isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in state.items()
    )


class KeepAverage(ServerUpdate):
    """FedAvg: the average is the new global model."""

    def __init__(self, context: RunContext) -> None:
        """Take the run's context, as every update does; none of it is needed."""

    def __call__(self, models: RoundModels) -> State:
        """Return the average."""
        return models.average
