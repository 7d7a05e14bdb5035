"""FedYogi: the server steps along the mean change of a round, with a rate for each parameter.

Reddi et al., "Adaptive Federated Optimization", 2003.00295, algorithm 2. In a study:

    fedyogi: {start: random, strategy: "fedyogi:fedyogi", options: {lr: 0.01}}
"""

from __future__ import annotations

import torch

from fedkd.models.state import State
from strategies.context import RunContext
from strategies.updates import RoundModels, ServerUpdate


class FedYogi(ServerUpdate):
    """Moments of the mean change, of which the second grows slowly.

    Args:
        names: of the trained parameters; buffers take the average.
        lr: the server's learning rate.
        beta_1: decay of the first moment.
        beta_2: rate of the second moment.
        tau: degree of adaptivity; its square is where the second moment begins.
    """

    def __init__(
        self, names: list[str], *, lr: float, beta_1: float, beta_2: float, tau: float
    ) -> None:
        self.names = names
        self.lr, self.beta_1, self.beta_2, self.tau = lr, beta_1, beta_2, tau
        self.first: State = {}
        self.second: State = {}

    def __call__(self, models: RoundModels) -> State:
        """Return the stepped parameters beside the average's buffers."""
        state = dict(models.average)
        for name in self.names:
            sent = models.sent[name].double()
            change = models.average[name].double() - sent
            square = change**2
            first = self.first.get(name, torch.zeros_like(sent))
            second = self.second.get(name, torch.full_like(sent, self.tau**2))
            first = self.beta_1 * first + (1 - self.beta_1) * change
            second = second - (1 - self.beta_2) * square * torch.sign(second - square)
            self.first[name], self.second[name] = first, second
            step = self.lr * first / (second.sqrt() + self.tau)
            state[name] = (sent + step).to(state[name].dtype)
        return state

    def state_dict(self) -> State:
        """Return both moments, so that a run that was killed resumes to the same bits."""
        first = {f"first/{name}": tensor for name, tensor in self.first.items()}
        return first | {f"second/{name}": tensor for name, tensor in self.second.items()}

    def load_state_dict(self, state_dict: State) -> None:
        """Restore both moments."""
        keys = {f"{moment}/{name}" for moment in ("first", "second") for name in self.names}
        if state_dict and set(state_dict) != keys:
            raise ValueError("the moments are those of another model")
        for key, tensor in state_dict.items():
            moment, _, name = key.partition("/")
            (self.first if moment == "first" else self.second)[name] = tensor


def fedyogi(context: RunContext) -> FedYogi:
    """Return the update of one run; ``options`` of the arm are its settings."""
    settings = {"lr": 0.01, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3} | context.options
    named = context.model("server-update").named_parameters(remove_duplicate=False)
    return FedYogi([name for name, _ in named], **settings)
