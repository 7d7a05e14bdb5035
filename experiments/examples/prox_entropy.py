"""A local loss: FedProx with a penalty on confident predictions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedkd.training.local import LocalTask, Objective, squared_distance


def prox_entropy(task: LocalTask, *, entropy: float = 0.1) -> Objective:
    """Cross-entropy + mu/2 ||w - w_t||^2 - entropy H(p), with mu of the study's rounds.

    FedProx, Li et al. 1812.06127, with the confidence penalty of Pereyra et al. 1701.06548, so
    that a silo of few classes does not become certain of them.

    Args:
        task: the received model with parameters w_t, and the silo's data.
        entropy: weight of H, the entropy of the predictions in nats.
    """
    parameters = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
    received = [parameter.detach().clone() for parameter in parameters]

    def loss(logits: Tensor, batch: Sequence[Tensor]) -> Tensor:
        distance = squared_distance(parameters, received)
        log_probabilities = torch.log_softmax(logits, dim=1)
        mean_entropy = -(log_probabilities.exp() * log_probabilities).sum(1).mean()
        penalties = task.settings.mu / 2 * distance - entropy * mean_entropy
        return cross_entropy(logits, batch[0]) + penalties

    return Objective(loss)
