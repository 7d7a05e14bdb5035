"""Flower's server optimisers: they step from the global model along the mean of its changes.

The step is Flower's own code. Flower's strategies also sample nodes and average replies, which
``SiloFedAvg`` has done by then; a small base class takes the place of that, and returns the
average. Only trainable parameters are stepped. Running statistics and counters take the average as
in FedAvg: a step could make a variance negative, and a counter would lose its type.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM

from fedkd.errors import FedKDError
from fedkd.models.state import State, is_finite
from strategies.context import RunContext
from strategies.updates import RoundModels, ServerUpdate

FEDAVGM_LR, FEDADAM_LR = 1.0, 0.01


class _GivenAverage(FedAvg):
    """Takes the place of the sampling and averaging of FedAvg below Flower's optimisers."""

    average: ArrayRecord

    def get_moments(self) -> dict[str, list[Any]]:
        """Return what the next step depends on: arrays in the order of the parameters, by name."""
        raise NotImplementedError

    def set_moments(self, names: list[str], moments: dict[str, list[Any]]) -> None:
        """Set what :meth:`get_moments` returned; ``names`` are the parameters'."""
        raise NotImplementedError

    def configure_train(
        self,
        server_round: int,  # noqa: ARG002 -- the signature is Flower's
        arrays: ArrayRecord,  # noqa: ARG002
        config: ConfigRecord,  # noqa: ARG002
        grid: Grid,  # noqa: ARG002
    ) -> Iterable[Message]:
        """Return no message."""
        return []

    def aggregate_train(
        self,
        server_round: int,  # noqa: ARG002 -- the signature is Flower's
        replies: Iterable[Message],  # noqa: ARG002
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the average that was given."""
        return self.average, None


class _Momentum(FedAvgM, _GivenAverage):
    """Hsu et al. 1909.06335."""

    def get_moments(self) -> dict[str, list[Any]]:
        # Flower steps from its own unrounded model, not from the one that was sent.
        current = self.current_arrays
        model = [] if current is None else current.to_numpy_ndarrays()
        return {"model": model, "momentum": self.momentum_vector or []}

    def set_moments(self, names: list[str], moments: dict[str, list[Any]]) -> None:
        if model := moments.get("model"):
            arrays = zip(names, model, strict=True)
            self.current_arrays = ArrayRecord({name: Array(array) for name, array in arrays})
        self.momentum_vector = moments.get("momentum")


class _Adam(FedAdam, _GivenAverage):
    """Reddi et al. 2003.00295, with the bias correction of Adam (Kingma and Ba 1412.6980).

    Flower adds that correction, but with the exponent t + 1 in round t, counted from 1: its first
    step is 0.74 of Adam's (beta_1 0.9, beta_2 0.99). Here the exponent is t, as Adam has it.
    """

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Step as in round ``server_round`` of Adam."""
        return super().aggregate_train(server_round - 1, replies)

    def get_moments(self) -> dict[str, list[Any]]:
        return {"m": list((self.m_t or {}).values()), "v": list((self.v_t or {}).values())}

    def set_moments(self, names: list[str], moments: dict[str, list[Any]]) -> None:
        first, second = moments.get("m"), moments.get("v")
        self.m_t = dict(zip(names, first, strict=True)) if first else None
        self.v_t = dict(zip(names, second, strict=True)) if second else None


class FlowerOptimiser(ServerUpdate):
    """Applies one of Flower's server optimisers to the parameters of every round's average.

    Its arithmetic runs in float64, as the average's does, and is rounded once.

    Args:
        optimiser: of this run alone; it keeps its moments between rounds.
        context: the run.
    """

    def __init__(self, optimiser: _GivenAverage, context: RunContext) -> None:
        self._optimiser = optimiser
        self._arm = context.arm_name
        model = context.model("server-update")
        # Tied parameters have several names in a state dict, and all of them move.
        named = model.named_parameters(remove_duplicate=False)
        self._shapes = {name: tensor.shape for name, tensor in named if tensor.is_floating_point()}
        self._parameters = list(self._shapes)

    def __call__(self, models: RoundModels) -> State:
        """Return the stepped parameters beside the average's buffers.

        Raises:
            FedKDError: the stepped model is not finite.
        """
        nowhere: Any = None  # no node is asked
        sent = self._record(models.sent)
        self._optimiser.configure_train(models.number, sent, ConfigRecord(), nowhere)
        self._optimiser.average = self._record(models.average)
        stepped, _ = self._optimiser.aggregate_train(models.number, [])
        state = dict(models.average)
        for name, array in (stepped or {}).items():
            state[name] = torch.from_numpy(array.numpy()).to(state[name].dtype)
        if not is_finite(state, models.average):
            raise FedKDError(
                f"arms.{self._arm}: the server's step of round {models.number} diverged; lower "
                "server.lr"
            )
        return state

    def state_dict(self) -> State:
        """Return the optimiser's moments, float64, named ``<moment>/<parameter>``."""
        return {
            f"{moment}/{name}": torch.from_numpy(np.asarray(array))
            for moment, arrays in self._optimiser.get_moments().items()
            for name, array in zip(self._parameters, arrays, strict=bool(arrays))
        }

    def load_state_dict(self, state_dict: State) -> None:
        """Set the optimiser's moments.

        Raises:
            ValueError: they are those of another optimiser or model.
        """
        moments = [
            m for m in self._optimiser.get_moments() if f"{m}/{self._parameters[0]}" in state_dict
        ]
        expected = {f"{m}/{name}": shape for m in moments for name, shape in self._shapes.items()}
        if {key: tensor.shape for key, tensor in state_dict.items()} != expected:
            raise ValueError("the server optimiser's state is of another optimiser or model")
        self._optimiser.set_moments(
            self._parameters,
            {m: [state_dict[f"{m}/{name}"].numpy() for name in self._parameters] for m in moments},
        )

    def _record(self, state: State) -> ArrayRecord:
        return ArrayRecord({name: Array(state[name].double().numpy()) for name in self._parameters})


def fedavgm(context: RunContext) -> FlowerOptimiser:
    """Flower's FedAvgM: the server's steps have momentum."""
    settings = context.arm.server
    return FlowerOptimiser(
        _Momentum(
            server_learning_rate=FEDAVGM_LR if settings.lr is None else settings.lr,
            server_momentum=settings.momentum,
        ),
        context,
    )


def fedadam(context: RunContext) -> FlowerOptimiser:
    """Flower's FedAdam: every parameter's step is divided by the size of its past changes."""
    settings = context.arm.server
    return FlowerOptimiser(
        _Adam(
            eta=FEDADAM_LR if settings.lr is None else settings.lr,
            beta_1=settings.momentum,
            beta_2=settings.beta_2,
            tau=settings.tau,
        ),
        context,
    )
