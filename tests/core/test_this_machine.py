"""What ``auto`` stands for here, and how silos share processors and GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedkd.config import Study
from fedkd.engines.ray import RayEngine
from fedkd.errors import UserError
from fedkd.federation import thread_pool
from fedkd.federation.federation import Federation
from fedkd.federation.local_silo import LocalSilo
from fedkd.federation.thread_pool import on_this_machine, silos_at_once
from fedkd.training.compute import Compute


@pytest.mark.parametrize(
    ("engine", "silos", "threads", "at_once"),
    [
        ({}, 2, 1, 16),
        ({"silo_threads": 4}, 2, 4, 4),
        ({"silo_threads": 40}, 2, 40, 1),
        ({"silo_threads": "auto"}, 2, 8, 2),
        ({"silo_threads": "auto"}, 5, 3, 5),
        ({"silo_threads": "auto"}, 40, 1, 16),
        ({"silo_threads": "auto", "workers": 4}, 40, 4, 4),
        ({"silo_threads": 2, "workers": 1}, 2, 2, 1),
    ],
)
def test_silos_that_train_at_a_time_share_the_cores(
    engine: dict[str, Any],
    silos: int,
    threads: int,
    at_once: int,
    make_study: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(thread_pool, "available_cores", lambda: 16)
    study = make_study({"engine": engine, "partition/silos": silos})
    assert on_this_machine(study).engine.silo_threads == threads
    assert silos_at_once(study) == at_once
    assert on_this_machine(on_this_machine(study)) == on_this_machine(study)


def test_auto_is_a_gpu_if_there_is_one(make_study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study({"engine/device": "auto"})
    for cuda, mps, device in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert on_this_machine(study).engine.device == device
    with pytest.raises(UserError, match=r"engine\.device: mps is not available: PyTorch finds no"):
        Compute("mps").check()


def test_the_server_of_deployed_silos_resolves_auto_not_the_caller(
    make_study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    data = make_study({"engine/device": "auto", "engine/silo_threads": "auto"}).to_dict()
    data["partition"] = {"scheme": "deployed", "names": ["a", "b"]}
    data["data"] = {"classes": ["x", "y"], "channels": 1, "image_size": 8}
    data["arms"] = {"fedavg": {"start": "random"}}
    study = Study.model_validate(data)
    called, served = (f(study, 0, tmp_path) for f in (Federation.for_caller, Federation.on_server))
    assert (called.study.engine.device, called.compute.device) == ("auto", "cpu")
    assert served.study.engine.device == "cpu"


def test_silos_take_several_gpus_by_turns(
    make_study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    study = make_study({"engine/device": "cuda", "engine/workers": 6, "partition/silos": 6})
    federation = Federation.load(study, 0, tmp_path)
    silos = [LocalSilo.simulated(federation, name) for name in study.silo_names]
    assert [silo.compute.device for silo in silos] == ["cuda:0", "cuda:1"] * 3
    assert Compute("cuda:1").by_turns(4).device == "cuda:1"
    config = RayEngine(study)._simulation_config()
    assert config["client-resources-num-gpus"] == 0.333  # three silos on each of the two
