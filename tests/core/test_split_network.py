"""Networks that are taken apart while other threads use theirs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from fedkd.models.split import split_at


class Meanwhile(nn.Module):
    """Returns its input, after another thread has called another network."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        other = nn.Linear(2, 3)
        with ThreadPoolExecutor(1) as pool:
            self.seen.append(pool.submit(other, torch.ones(1, 2)).result())
        return x


def test_a_network_of_another_thread_runs_while_one_is_traced() -> None:
    meanwhile = Meanwhile()
    block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    network = nn.Sequential(nn.Linear(2, 4), meanwhile, block)
    parts = split_at(network, "2", ["2"])
    assert [tuple(output.shape) for output in meanwhile.seen] == [(1, 3)]
    assert parts is not None
    images = torch.randn(3, 2)
    assert torch.equal(parts[1](parts[0](images)), block(network[0](images)))
