"""A search over temperature and weight as one writes it in plain PyTorch on an afternoon.

Every teacher is asked anew for every batch of every epoch of every point of the grid.

    python naive_grid.py CLASSROOM.npz RESULT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


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


def load(room: dict[str, np.ndarray], prefix: str) -> nn.Module:
    model = build()
    model.load_state_dict(
        {key: torch.from_numpy(room[f"{prefix}.{key}"]) for key in model.state_dict()}
    )
    return model


def loss(
    z: Tensor, said: list[Tensor], labels: Tensor, temperature: float, weight: float
) -> Tensor:
    target = torch.stack([torch.softmax(t / temperature, dim=1) for t in said]).mean(0)
    student = functional.log_softmax(z / temperature, dim=1)
    divergence = functional.kl_div(student, target, reduction="batchmean") * temperature**2
    return (1 - weight) * functional.cross_entropy(z, labels) + weight * divergence


def main() -> None:
    torch.set_num_threads(2)
    room = dict(np.load(sys.argv[1]))
    epochs, batch, lr, momentum = (
        int(room["epochs"]),
        int(room["batch"]),
        float(room["lr"]),
        float(room["momentum"]),
    )
    images = torch.from_numpy(room["images"]).float() / 255
    labels = torch.from_numpy(room["labels"])
    judged = torch.from_numpy(room["validation_images"]).float() / 255
    truth = torch.from_numpy(room["validation_labels"])
    teachers = [load(room, f"teacher-{index}").eval() for index in range(int(room["teachers"]))]
    found = []
    for temperature, weight in room["points"].tolist():
        student = load(room, "start").train()
        optimiser = torch.optim.SGD(student.parameters(), lr=lr, momentum=momentum)
        generator = torch.Generator().manual_seed(int(room["seed"]))
        for _ in range(epochs):
            for rows in torch.randperm(len(images), generator=generator).split(batch):
                with torch.no_grad():
                    said = [teacher(images[rows]) for teacher in teachers]
                optimiser.zero_grad()
                loss(student(images[rows]), said, labels[rows], temperature, weight).backward()
                optimiser.step()
        with torch.no_grad():
            answers = student.eval()(judged).argmax(1)
        found.append(
            {
                "temperature": temperature,
                "weight": weight,
                "accuracy": float((answers == truth).double().mean()),
            }
        )
    Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
