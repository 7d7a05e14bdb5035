"""A simple FedAvg in plain PyTorch: sequential silos, one DataLoader per silo.

Two intra-op threads. The images are float tensors in memory, so that no DataLoader decodes images.

    python bare_loop.py WORKLOAD.npz ROUNDS.jsonl NUM_ROUNDS
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

BATCH, LR, MOMENTUM = 32, 0.05, 0.9


def build() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def dataset(images: np.ndarray, labels: np.ndarray) -> TensorDataset:
    return TensorDataset(torch.from_numpy(images).float() / 255, torch.from_numpy(labels))


def train(model: nn.Module, loader: DataLoader[tuple[Tensor, ...]]) -> None:
    criterion = nn.CrossEntropyLoss()
    optimiser = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    model.train()
    for images, labels in loader:
        optimiser.zero_grad()
        criterion(model(images), labels).backward()
        optimiser.step()


@torch.no_grad()
def test(model: nn.Module, loader: DataLoader[tuple[Tensor, ...]]) -> float:
    model.eval()
    right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in loader)
    return right / 10_000


def main() -> None:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    workload, log, num_rounds = np.load(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    silos = [
        DataLoader(dataset(images, labels), batch_size=BATCH, shuffle=True)
        for images, labels in zip(workload["images"], workload["labels"], strict=True)
    ]
    test_loader = DataLoader(
        dataset(workload["test_images"], workload["test_labels"]), batch_size=1000
    )
    model = build()
    model.load_state_dict(
        {key: torch.from_numpy(workload[f"start.{key}"]) for key in model.state_dict()}
    )
    with log.open("w", encoding="utf-8", buffering=1) as file:
        file.write(json.dumps({"round": 0, "accuracy": test(model, test_loader)}) + "\n")
        for number in range(1, num_rounds + 1):
            states = []
            for silo in silos:
                local = copy.deepcopy(model)
                train(local, silo)
                states.append(local.state_dict())
            model.load_state_dict(
                {key: torch.stack([s[key] for s in states]).mean(0) for key in states[0]}
            )
            file.write(json.dumps({"round": number, "accuracy": test(model, test_loader)}) + "\n")


if __name__ == "__main__":
    main()
