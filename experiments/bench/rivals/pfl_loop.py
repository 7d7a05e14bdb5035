"""FedAvg by pfl-research, in one process, as its benchmarks for PyTorch write it.

    python pfl_loop.py WORKLOAD.npz ROUNDS.jsonl NUM_ROUNDS

It runs in an environment of its own, because of what pfl pins.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from networks import Examples, build, start
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchDataDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch.nn import functional
from torch.utils.data import DataLoader

BATCH, LR, MOMENTUM = 32, 0.05, 0.9


def main() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 -- pfl draws from it
    workload, log, num_rounds = np.load(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    module = build(workload)
    module.load_state_dict(start(workload))

    def loss(inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(module.train()(inputs), labels)

    module.loss, module.metrics = loss, lambda *_: {}
    tests = Examples({"augment": False}, workload["test_images"], workload["test_labels"])
    loader = DataLoader(tests, batch_size=1000)

    def data_of(silo: int) -> PyTorchDataDataset:
        examples = Examples(workload, workload["images"][silo], workload["labels"][silo])
        return PyTorchDataDataset(examples, shuffle=True)

    silos = list(range(len(workload["labels"])))
    data = {silo: data_of(silo) for silo in silos}
    training = FederatedDataset(data.__getitem__, get_user_sampler("minimize_reuse", silos))

    @torch.no_grad()
    def accuracy() -> float:
        module.eval()
        right = sum(int((module(images).argmax(1) == labels).sum()) for images, labels in loader)
        return right / len(tests)

    with log.open("w", encoding="utf-8", buffering=1) as file:

        class Measure(TrainingProcessCallback):
            def on_train_begin(self, *, model: PyTorchModel) -> Metrics:  # noqa: ARG002 -- pfl's
                self.write(0)
                return Metrics()

            def after_central_iteration(
                self,
                aggregate_metrics: Metrics,  # noqa: ARG002 -- likewise
                model: PyTorchModel,  # noqa: ARG002 -- likewise
                *,
                central_iteration: int,
            ) -> tuple[bool, Metrics]:
                self.write(central_iteration + 1)
                return False, Metrics()

            def write(self, number: int) -> None:
                file.write(json.dumps({"round": number, "accuracy": accuracy()}) + "\n")

        trained = [each for each in module.parameters() if each.requires_grad]
        FederatedAveraging().run(
            NNAlgorithmParams(num_rounds, num_rounds + 1, len(silos), None),
            SimulatedBackend(training, training),
            PyTorchModel(
                module,
                partial(torch.optim.SGD, momentum=MOMENTUM),
                torch.optim.SGD(trained, lr=1.0),
            ),
            NNTrainHyperParams(BATCH, local_num_epochs=1, local_learning_rate=LR),
            callbacks=[Measure()],
        )


if __name__ == "__main__":
    main()
