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
from networks import Examples, average, build, start
from torch import Tensor, nn
from torch.utils.data import DataLoader

BATCH, LR, MOMENTUM = 32, 0.05, 0.9


def train(model: nn.Module, loader: DataLoader[tuple[Tensor, ...]]) -> None:
    criterion = nn.CrossEntropyLoss()
    trained = [each for each in model.parameters() if each.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=LR, momentum=MOMENTUM)
    model.train()
    for images, labels in loader:
        optimiser.zero_grad()
        criterion(model(images), labels).backward()
        optimiser.step()


@torch.no_grad()
def test(model: nn.Module, loader: DataLoader[tuple[Tensor, ...]]) -> float:
    model.eval()
    right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in loader)
    return right / len(loader.dataset)


def main() -> None:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    workload, log, num_rounds = np.load(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    silos = [
        DataLoader(Examples(workload, images, labels), batch_size=BATCH, shuffle=True)
        for images, labels in zip(workload["images"], workload["labels"], strict=True)
    ]
    test_set = Examples({"augment": False}, workload["test_images"], workload["test_labels"])
    test_loader = DataLoader(test_set, batch_size=1000)
    model = build(workload)
    model.load_state_dict(start(workload))
    with log.open("w", encoding="utf-8", buffering=1) as file:
        file.write(json.dumps({"round": 0, "accuracy": test(model, test_loader)}) + "\n")
        for number in range(1, num_rounds + 1):
            states = []
            for silo in silos:
                local = copy.deepcopy(model)
                train(local, silo)
                states.append(local.state_dict())
            model.load_state_dict(average(states))
            file.write(json.dumps({"round": number, "accuracy": test(model, test_loader)}) + "\n")


if __name__ == "__main__":
    main()
