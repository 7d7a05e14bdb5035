"""FedAvg on the silos of a table in plain PyTorch: sequential silos, all intra-op threads.

python table_loop.py TABLE.parquet ROUNDS.jsonl NUM_ROUNDS BATCH RATE
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

TEST = 0.02


def build(columns: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(columns, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 2)
    )


def train(model: nn.Module, inputs: Tensor, labels: Tensor, batch: int, rate: float) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    model.train()
    for rows in torch.randperm(len(inputs)).split(batch):
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
        optimizer.step()


@torch.no_grad()
def test(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    model.eval()
    return float((model(inputs).argmax(1) == labels).double().mean())


def main() -> None:
    torch.manual_seed(0)
    table, log = pd.read_parquet(sys.argv[1]), Path(sys.argv[2])
    num_rounds, batch, rate = int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])
    silos = table.pop("silo").to_numpy()
    labels = torch.from_numpy((table.pop("outcome") == "yes").to_numpy()).long()
    inputs = torch.from_numpy(table.to_numpy(dtype="float32"))
    inputs = (inputs - inputs.mean(0)) / inputs.std(0)
    held_out = torch.rand(len(inputs)) < TEST
    silo_rows = [torch.from_numpy(silos == name) & ~held_out for name in sorted(set(silos))]
    data = [(inputs[rows], labels[rows]) for rows in silo_rows]
    model = build(inputs.shape[1])
    with log.open("w", encoding="utf-8", buffering=1) as file:
        for number in range(num_rounds + 1):
            if number:
                locals_ = [copy.deepcopy(model) for _ in data]
                for local, (rows, targets) in zip(locals_, data, strict=True):
                    train(local, rows, targets, batch, rate)
                states = [local.state_dict() for local in locals_]
                shares = [len(rows) / sum(len(each) for each, _ in data) for rows, _ in data]
                model.load_state_dict(
                    {
                        key: sum(s * state[key] for s, state in zip(shares, states, strict=True))
                        for key in states[0]
                    }
                )
            accuracy = test(model, inputs[held_out], labels[held_out])
            file.write(json.dumps({"round": number, "accuracy": accuracy}) + "\n")


if __name__ == "__main__":
    main()
