"""A simple search over temperature and weight in plain PyTorch.

Every teacher predicts again for every batch of every epoch of every point of the grid.

    python naive_grid.py TEACHERS.npz RESULT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from networks import convolutions
from torch import Tensor, nn
from torch.nn import functional


def load(data: dict[str, np.ndarray], prefix: str) -> nn.Module:
    model = convolutions(3)
    model.load_state_dict(
        {key: torch.from_numpy(data[f"{prefix}.{key}"]) for key in model.state_dict()}
    )
    return model


def loss(
    z: Tensor, teacher_logits: list[Tensor], labels: Tensor, temperature: float, weight: float
) -> Tensor:
    target = torch.stack([torch.softmax(t / temperature, dim=1) for t in teacher_logits]).mean(0)
    student = functional.log_softmax(z / temperature, dim=1)
    divergence = functional.kl_div(student, target, reduction="batchmean") * temperature**2
    return (1 - weight) * functional.cross_entropy(z, labels) + weight * divergence


def main() -> None:
    torch.set_num_threads(2)
    data = dict(np.load(sys.argv[1]))
    epochs, batch, lr, momentum = (
        int(data["epochs"]),
        int(data["batch"]),
        float(data["lr"]),
        float(data["momentum"]),
    )
    images = torch.from_numpy(data["images"]).float() / 255
    labels = torch.from_numpy(data["labels"])
    validation_images = torch.from_numpy(data["validation_images"]).float() / 255
    validation_labels = torch.from_numpy(data["validation_labels"])
    teachers = [load(data, f"teacher-{index}").eval() for index in range(int(data["teachers"]))]
    results = []
    for temperature, weight in data["points"].tolist():
        student = load(data, "start").train()
        optimiser = torch.optim.SGD(student.parameters(), lr=lr, momentum=momentum)
        generator = torch.Generator().manual_seed(int(data["seed"]))
        for _ in range(epochs):
            for rows in torch.randperm(len(images), generator=generator).split(batch):
                with torch.no_grad():
                    teacher_logits = [teacher(images[rows]) for teacher in teachers]
                optimiser.zero_grad()
                loss(
                    student(images[rows]), teacher_logits, labels[rows], temperature, weight
                ).backward()
                optimiser.step()
        with torch.no_grad():
            predicted = student.eval()(validation_images).argmax(1)
        results.append(
            {
                "temperature": temperature,
                "weight": weight,
                "accuracy": float((predicted == validation_labels).double().mean()),
            }
        )
    Path(sys.argv[2]).write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
