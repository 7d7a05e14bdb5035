"""What the server does with the average of a round's models before it is the new global model.

``SiloFedAvg.combine`` makes the average; the arm's ``strategy`` names the update that follows.
An update belongs to one run and may remember earlier rounds. How the global model started is none
of its business: any start goes with any update.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from fedkd.models.state import State
from fedkd.registry import SERVER_UPDATES
from strategies.context import RunContext


@dataclass(frozen=True)
class RoundModels:
    """The models of one round.

    Attributes:
        number: the round, from 1.
        sent: the global model that the silos received.
        trained: what they made of it, in natural order of their names; at least one.
        average: what ``combine`` made of those.
    """

    number: int
    sent: State
    trained: Sequence[State]
    average: State


class ServerUpdate(ABC):
    """Turns a round's models into the new global model.

    An update with state overrides ``state_dict`` and ``load_state_dict``, so that a run that was
    killed resumes to the same bits. Randomness is no state: it is drawn anew for every round.
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
            ValueError: it is not what this update would have given.
        """
        if state_dict:
            raise ValueError(f"{type(self).__name__} has no state")


def server_update(context: RunContext) -> ServerUpdate:
    """Return the update of the arm's strategy, which remembers nothing yet.

    Raises:
        UserError: the server lacks what the strategy needs.
    """
    update: ServerUpdate = SERVER_UPDATES.load(context.arm.strategy)(context)
    return update


class KeepAverage(ServerUpdate):
    """FedAvg: the average is the new global model."""

    def __init__(self, context: RunContext) -> None:
        """Take the run's setting, as every update does, and need nothing of it."""

    def __call__(self, models: RoundModels) -> State:
        """Return the average."""
        return models.average
