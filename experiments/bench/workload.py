"""The workload of the bench, and its file for programs without fedkd."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.config.study_file import load_study
from fedkd.util.files import replacing
from fedkd.util.seeding import derive_seed

HERE = Path(__file__).parent
STUDY = HERE / "fedavg.yaml"
GRID = HERE / "grid.yaml"
ARM = "fedkd"
"""The tuned arm of the grid's study."""


@dataclass(frozen=True)
class Workload:
    """A study that all contenders run.

    Attributes:
        name: of the network, as ``rivals/networks.py`` builds it.
        description: a phrase.
        changes: of ``fedavg.yaml``, with ``{folder}`` for that of the bench.
        num_rounds: the most rounds, for those that take long.
    """

    name: str
    description: str
    changes: tuple[str, ...] = ()
    num_rounds: int = 20

    def settings(self, folder: Path) -> list[str]:
        """Return the changes, with the files that are made in ``folder``."""
        return [change.replace("{folder}", str(folder.absolute())) for change in self.changes]


BUILT_IN = Workload("cnn", "the built-in `cnn` on Fashion-MNIST")
_FEW_LARGE = ("data.source=npz:{folder}/pictures.npz", "data.validation=0", "data.transfer.size=1")
OWN_MODELS = (
    Workload(
        "own-cnn",
        "two 5 x 5 convolutions, a function of the user's own",
        ("model.arch=experiments.bench.models:two_convolutions",),
    ),
    Workload(
        "resnet18",
        "`torchvision:resnet18` with BatchNorm at 64 pixels, flipped and cropped",
        ("model.arch=torchvision:resnet18", "rounds.augment=flip-crop", *_FEW_LARGE),
        num_rounds=4,
    ),
    Workload(
        "mlp",
        "the built-in `mlp` on a table of 50,000 rows",
        (
            "data.source=npz:{folder}/table.npz",
            "data.train_size=40000",
            "data.validation=0",
            "data.transfer.size=1",
            "model.arch=mlp",
        ),
    ),
    Workload(
        "frozen",
        "a frozen ResNet-18 at 64 pixels with a head",
        (
            "model={arch: torchvision:resnet18, weights: '{folder}/weights.pt', train: head}",
            *_FEW_LARGE,
        ),
        num_rounds=6,
    ),
)


def prepare(folder: Path) -> None:
    """Write the data and the weights that workloads name, always the same.

    They are 2,000 pictures of Fashion-MNIST at 64 pixels and 500 to test on (a ResNet takes minutes
    for all 10,000), a random table, and random weights.
    """
    import torch
    from sklearn.datasets import make_classification

    from experiments.bench.rivals.networks import resnet18
    from fedkd.data.images import resize
    from fedkd.data.sources import load_source

    folder.mkdir(parents=True, exist_ok=True)
    rows, labels = make_classification(
        50_000, 60, n_informative=30, n_classes=5, class_sep=1.5, random_state=0
    )
    split = 45_000
    _write(
        folder / "table.npz",
        {
            "inputs": rows[:split].astype(np.float32),
            "labels": labels[:split].astype(np.int64),
            "test_inputs": rows[split:].astype(np.float32),
            "test_labels": labels[split:].astype(np.int64),
        },
    )
    source = load_source("fashion-mnist")
    parts = {"": source.train.take(torch.arange(2001))}
    if source.test is not None:
        parts["test_"] = source.test.take(torch.arange(500))
    _write(
        folder / "pictures.npz",
        {
            f"{part}{key}": array.numpy()
            for part, some in parts.items()
            for key, array in (("images", resize(some.images, 64)), ("labels", some.labels))
        },
    )
    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), folder / "weights.pt")


def write_workload(path: Path, workload: Workload, folder: Path) -> None:
    """Write the study's images, its start and the seeds of its batches as one npz file.

    The arrays are ``images`` uint8 ``[silos, N, C, H, W]`` or float32 ``[silos, N, F]``, ``labels``
    int64 ``[silos, N]``, ``test_images``, ``test_labels``, ``seeds`` int64 ``[rounds, silos]``, a
    ``start.KEY`` for every tensor of the model, ``network``, ``augment``, ``weights``, ``classes``.

    Args:
        path: of the file.
        workload: the study.
        folder: of the files that :func:`prepare` writes.
    """
    from fedkd.federation.federation import Federation
    from strategies.context import RunContext
    from strategies.fedavg import initial_arrays

    study = load_study(STUDY, workload.settings(folder))
    with tempfile.TemporaryDirectory() as cache:
        federation = Federation.load(study, study.seeds[0], Path(cache))
    start = initial_arrays(RunContext.of(federation, "fedavg", ())).to_torch_state_dict()
    silos = [federation.data_of(name) for name in study.silo_names]
    seeds = [
        [derive_seed(federation.seed, "local-training", name, number) for name in study.silo_names]
        for number in range(1, study.rounds.max + 1)
    ]
    _write(
        path,
        {
            "images": np.stack([silo.images.numpy() for silo in silos]),
            "labels": np.stack([silo.labels.numpy() for silo in silos]),
            "test_images": federation.split.test.images.numpy(),
            "test_labels": federation.split.test.labels.numpy(),
            "seeds": np.array(seeds, dtype=np.int64),
            "network": np.array(workload.name),
            "augment": np.array(study.rounds.augment != "none"),
            "weights": np.array(str(folder.absolute() / "weights.pt")),
            "classes": np.array(federation.shape.num_classes),
            **{f"start.{key}": tensor.numpy() for key, tensor in start.items()},
        },
    )


def _write(path: Path, arrays: dict[str, Any]) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def write_teachers(path: Path, cache: Path, points: Sequence[Mapping[str, float]]) -> None:
    """Write the data of the grid search as one npz file; silos are pre-trained if necessary.

    Args:
        path: of the file. The arrays are ``images``, ``labels``, ``validation_images``,
            ``validation_labels``, the ``points`` ``[P, 2]`` of temperature and weight, the
            optimiser's settings, the ``seed`` of the order of samples, and tensors
            ``start.KEY`` and ``teacher-0.KEY``, ``teacher-1.KEY``, ...
        cache: fedkd's cache, where the teachers are stored.
        points: of the grid.
    """
    from fedkd.federation.federation import Federation
    from fedkd.federation.simulated_teachers import SimulatedTeachers
    from fedkd.federation.thread_pool import silo_pool

    study = load_study(GRID)
    federation = Federation.load(study, study.seeds[0], cache)
    with silo_pool(study) as pool:
        federation.pretrain(pool)
    teachers = SimulatedTeachers(federation, ARM)
    states = [federation.pretrained(name).state for name in study.silo_names]
    arrays = {
        f"teacher-{index}.{key}": tensor.numpy()
        for index, state in enumerate(states)
        for key, tensor in (state or {}).items()
    }
    start = teachers.teachers().average(teachers.arch)
    arrays |= {f"start.{key}": tensor.numpy() for key, tensor in start.items()}
    validation, settings = federation.split.validation, teachers.own
    arrays |= {
        "images": teachers.transfer.images.numpy(),
        "labels": teachers.transfer.labels.numpy(),
        "validation_images": validation.images.numpy(),
        "validation_labels": validation.labels.numpy(),
        "points": np.array([[point["temperature"], point["weight"]] for point in points]),
        "teachers": np.array(len(states)),
        "seed": np.array(derive_seed(federation.seed, "distillation")),
        "epochs": np.array(settings.epochs),
        "batch": np.array(settings.batch_size),
        "lr": np.array(settings.lr),
        "momentum": np.array(settings.momentum),
    }
    _write(path, arrays)
