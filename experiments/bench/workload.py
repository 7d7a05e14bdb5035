"""The workload of the bench, and the file by which programs without fedkd get the same."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from fedkd.files import replacing
from fedkd.seeding import derive_seed
from fedkd.study_file import load_study

HERE = Path(__file__).parent
STUDY = HERE / "fedavg.yaml"


def write_workload(path: Path) -> None:
    """Write the study's images, its start and the seeds of its batches as one npz file.

    It holds ``images`` uint8 ``[silos, N, C, H, W]``, ``labels`` int64 ``[silos, N]``,
    ``test_images``, ``test_labels``, ``seeds`` int64 ``[rounds, silos]``, and a ``start.KEY`` for
    every tensor of the model.
    """
    from fedkd.federation import Federation
    from strategies.fedavg import initial_arrays
    from strategies.setting import Setting

    study = load_study(STUDY)
    with tempfile.TemporaryDirectory() as cache:
        federation = Federation.load(study, study.seeds[0], Path(cache))
    start = initial_arrays(Setting.of(federation, "fedavg", ())).to_torch_state_dict()
    silos = [federation.data_of(name) for name in study.silo_names]
    seeds = [
        [derive_seed(federation.seed, "local-training", name, number) for name in study.silo_names]
        for number in range(1, study.rounds.max + 1)
    ]
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            images=np.stack([silo.images.numpy() for silo in silos]),
            labels=np.stack([silo.labels.numpy() for silo in silos]),
            test_images=federation.cut.test.images.numpy(),
            test_labels=federation.cut.test.labels.numpy(),
            seeds=np.array(seeds, dtype=np.int64),
            **{f"start.{key}": tensor.numpy() for key, tensor in start.items()},
        )
