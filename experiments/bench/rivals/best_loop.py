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
from networks import augmentation, build, floats, start
from torch import Tensor, nn
from torch.nn import functional

BATCH, LR, MOMENTUM = 32, 0.05, 0.9
LAYOUT = torch.channels_last


def arranged(images: np.ndarray) -> Tensor:
    tensor = floats(images)
    return tensor.contiguous(memory_format=LAYOUT) if tensor.ndim == 4 else tensor


def average(share: list[float], tensors: tuple[Tensor, ...]) -> Tensor:
    if not tensors[0].is_floating_point():
        return tensors[0]
    total = torch.zeros(tensors[0].shape, dtype=torch.float64)
    for weight, tensor in zip(share, tensors, strict=True):
        total.add_(tensor, alpha=weight)
    return total.float()


def main() -> None:
    workload, log, num_rounds = np.load(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    silos = [arranged(each) for each in workload["images"]]
    labels = [torch.from_numpy(each) for each in workload["labels"]]
    test, truth = arranged(workload["test_images"]), torch.from_numpy(workload["test_labels"])
    seeds = workload["seeds"]
    keys = list(build(workload).state_dict())
    state = [start(workload)[key] for key in keys]
    change = augmentation(workload)
    workers = len(os.sched_getaffinity(0))
    own = threading.local()

    def begin_thread() -> None:
        torch.set_num_threads(1)
        own.model = build(workload).to(memory_format=LAYOUT)

    def load(model: nn.Module) -> nn.Module:
        with torch.no_grad():
            for tensor, value in zip(model.state_dict().values(), state, strict=True):
                tensor.copy_(value)
        return model

    def train(job: tuple[int, int]) -> list[Tensor]:
        number, silo = job
        model = load(own.model).train()
        trained = [each for each in model.parameters() if each.requires_grad]
        optimiser = torch.optim.SGD(trained, lr=LR, momentum=MOMENTUM, foreach=True)
        generator = torch.Generator().manual_seed(int(seeds[number - 1, silo]))
        order = torch.randperm(len(labels[silo]), generator=generator)
        images, answers = silos[silo][order], labels[silo][order]
        if change is not None:
            images = torch.stack([change(image) for image in images])
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
