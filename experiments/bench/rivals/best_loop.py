"""The best loop for FedAvg that could be written by hand: no framework, no checks, no messages.

One thread a processor, one silo at a time on each with one intra-op thread, models built once,
channels-last layout, images turned to floats once, foreach SGD, float64 sums in silo order.
FROZEN: the bench refuses to run when a byte of this file has changed (``contenders.py``).

    python best_loop.py WORKLOAD.npz ROUNDS.jsonl NUM_ROUNDS
"""

from __future__ import annotations

import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

BATCH, LR, MOMENTUM = 32, 0.05, 0.9
LAYOUT = torch.channels_last


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
    ).to(memory_format=LAYOUT)


def floats(images: np.ndarray) -> Tensor:
    return (torch.from_numpy(images).float() / 255).contiguous(memory_format=LAYOUT)


def average(share: list[float], tensors: tuple[Tensor, ...]) -> Tensor:
    total = torch.zeros(tensors[0].shape, dtype=torch.float64)
    for weight, tensor in zip(share, tensors, strict=True):
        total.add_(tensor, alpha=weight)
    return total.float()


def main() -> None:
    workload, log, num_rounds = np.load(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    silos = [floats(each) for each in workload["images"]]
    labels = [torch.from_numpy(each) for each in workload["labels"]]
    test, truth = floats(workload["test_images"]), torch.from_numpy(workload["test_labels"])
    seeds = workload["seeds"]
    start = build()
    keys = list(start.state_dict())
    state = [torch.from_numpy(workload[f"start.{key}"]) for key in keys]
    workers = len(os.sched_getaffinity(0))
    own = threading.local()

    def begin_thread() -> None:
        torch.set_num_threads(1)
        own.model = build()

    def load(model: nn.Module) -> nn.Module:
        with torch.no_grad():
            for tensor, value in zip(model.state_dict().values(), state, strict=True):
                tensor.copy_(value)
        return model

    def train(job: tuple[int, int]) -> list[Tensor]:
        number, silo = job
        model = load(own.model).train()
        optimiser = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, foreach=True)
        generator = torch.Generator().manual_seed(int(seeds[number - 1, silo]))
        order = torch.randperm(len(labels[silo]), generator=generator)
        images, answers = silos[silo][order], labels[silo][order]
        for begin in range(0, len(answers), BATCH):
            optimiser.zero_grad()
            logits = model(images[begin : begin + BATCH])
            functional.cross_entropy(logits, answers[begin : begin + BATCH]).backward()
            optimiser.step()
        return [tensor.clone() for tensor in model.state_dict().values()]

    @torch.no_grad()
    def count_right(begin: int) -> int:
        model = load(own.model).eval()
        part = slice(begin, begin + 1000)
        return int((model(test[part]).argmax(1) == truth[part]).sum())

    with (
        log.open("w", encoding="utf-8", buffering=1) as file,
        ThreadPoolExecutor(workers, initializer=begin_thread) as pool,
    ):

        def measure(number: int) -> None:
            right = sum(pool.map(count_right, range(0, len(truth), 1000)))
            file.write(json.dumps({"round": number, "accuracy": right / len(truth)}) + "\n")

        measure(0)
        for number in range(1, num_rounds + 1):
            trained = list(pool.map(train, [(number, silo) for silo in range(len(silos))]))
            share = [len(each) / sum(map(len, labels)) for each in labels]
            state = [average(share, tensors) for tensors in zip(*trained, strict=True)]
            measure(number)


if __name__ == "__main__":
    main()
