"""Silos with generated images for the rehearsal of a study whose real silos are elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedkd.config import Study
from fedkd.config.own import names_at_silo
from fedkd.config.study_file import resolve_study
from fedkd.data.images import Images, content_hash
from fedkd.errors import UserError
from fedkd.federation.deployed_data import draw_transfer, load_server_split, shape_of
from fedkd.models.backbone import Backbone
from fedkd.models.build import build_model
from fedkd.models.card import ModelCard, save_model
from fedkd.models.state import copy_state, save_state
from fedkd.registry import EXTERNAL_CLASSES, NO_SOURCE, NOISE, STUDENT_SILO, is_external
from fedkd.training.compute import Compute
from fedkd.training.external import train_external
from fedkd.training.loop import train_supervised
from fedkd.training.optimizer import OptimizerSettings
from fedkd.util.checkpoint_files import EXTERNAL_FORMATS
from fedkd.util.files import write_text
from fedkd.util.seeding import numpy_generator, torch_generator
from fedkd.util.yaml_loader import dump_yaml

SPARE_IMAGES = 500
"""Of the server's own images, beside twice the transfer set: for test and validation."""
TRAINING = OptimizerSettings(epochs=3, batch_size=32, lr=0.05, momentum=0.9)
"""Of the silos' own models: enough to be better than guessing on such images."""


def shorten(study: Study, *, folder: Path, engine: str) -> Study:
    """Return the study with one round an arm, one seed, and generated images at the server.

    Raises:
        UserError: its silos are simulated, which need no rehearsal.
    """
    if not study.is_deployed:
        raise UserError(
            f"{study.name} simulates its silos; a rehearsal is for studies whose "
            "partition.scheme is deployed. Run it with fedkd compare"
        )
    if study.is_table or study.is_text:
        raise UserError(
            f"{study.name} has tables or texts, which no rehearsal generates; try it on the hosts "
            "with one round: fedkd compare STUDY --set rounds.max=1"
        )
    values = study.to_dict()
    values["seeds"] = values["seeds"][:1]
    values["engine"]["name"] = engine
    # A file of ONNX cannot be written here; one of scikit-learn predicts as well.
    values["model"]["per_silo"] = {
        silo: "sklearn" if arch == "onnx" else arch for silo, arch in study.model.per_silo.items()
    }
    for rounds in [values["rounds"], *(arm.get("rounds") or {} for arm in values["arms"].values())]:
        if rounds is values["rounds"] or "max" in rounds:
            rounds["max"] = 1
        if rounds is values["rounds"] or "stop" in rounds:
            rounds["stop"] = "budget"
    data = values["data"]
    count = SPARE_IMAGES + 2 * study.data.transfer.size
    if study.data.source != NO_SOURCE:
        data["source"], data["options"] = _generate(study, folder / "server.npz", count), {}
    if study.data.transfer.source not in (None, NOISE, STUDENT_SILO):
        data["transfer"]["source"] = _generate(study, folder / "transfer.npz", count)
        data["transfer"]["options"] = {}
    return resolve_study(values)


def write_silo(study: Study, name: str, folder: Path, *, images: int) -> Path:
    """Write a silo's images, model and ``silo.yaml``; it shares what the arms ask for.

    Returns:
        The path of its ``silo.yaml``.
    """
    shape = shape_of(study)
    count = max(images, study.partition.min_size, shape.num_classes)
    source = _generate(study, folder / "data.npz", count)
    arch = study.arch_of(name)
    external = is_external(arch)
    shared = "logits" if external else "weights"
    transfer = _transfer_hash(study)
    file: dict[str, Any] = {
        "name": name,
        "data": source,
        "labels": {str(index): label for index, label in enumerate(study.data.classes or ())},
        "share": {
            "teacher": shared if study.needs_pretrained else "none",
            "densities": True,
            "moments": True,
            "class_counts": True,
            "min_samples": 1,
        },
        "audit": str(folder / "audit.jsonl"),
        "threads": 1,  # all silos share this machine, and simulated ones train with one
        "approve": {"study": "any", "transfer": [transfer] if transfer else []},
        "download": True,  # as the study itself does on this host
        "allow": sorted({function for _, _, function in names_at_silo(study, name)}),
    }
    if study.needs_pretrained:
        ending = EXTERNAL_FORMATS[arch][0][0] if external else ".safetensors"
        path = folder / f"model{ending}"
        _write_model(study, name, folder / "data.npz", path)
        file["model"] = {"checkpoint": str(path), "arch": arch}
    path = folder / "silo.yaml"
    write_text(path, dump_yaml(file))
    return path


def _write_model(study: Study, name: str, data: Path, path: Path) -> None:
    """Train a silo's own model on its generated images; of a fixed part all have the same."""
    arch, backbone = study.arch_of(name), Backbone.of(study)
    shape = replace(shape_of(study), backbone=backbone)
    with np.load(data) as arrays:
        pixels, labels = (torch.from_numpy(arrays[key]) for key in ("images", "labels"))
    if is_external(arch):
        trained = f"{arch}:{next(iter(EXTERNAL_CLASSES[arch]))}"
        state = train_external(trained, Images(pixels, labels), study.seeds[0])
        path.write_bytes(state["file"].numpy().tobytes())
        return
    model = build_model(arch, shape, seed=study.seeds[0])
    generator = torch_generator(study.seeds[0], "rehearsal", name)
    train_supervised(
        model, Images(pixels, labels), optimizer=TRAINING, generator=generator, compute=Compute()
    )
    if backbone is not None and backbone.trained.kind == "lora":
        save_state(path, copy_state(model))  # a whole network has no adapters of its own
    else:
        save_model(path, copy_state(model), ModelCard(arch, shape))


def _transfer_hash(study: Study) -> str | None:
    """Return the hash of the transfer set that the server will send, or None without one."""
    seed, wanted = study.seeds[0], study.data.transfer.source
    if wanted is None and study.data.source != NO_SOURCE:
        drawn = load_server_split(study, seed).transfer
    else:
        drawn = draw_transfer(study, seed, wanted)
    return None if drawn is None else content_hash(drawn.images)


def _generate(study: Study, path: Path, count: int) -> str:
    """Write images of every class and return the source's name.

    An image is its class's pattern of four by four grey values, enlarged, with noise.
    """
    shape = shape_of(study)
    side, channels = shape.image_size, shape.in_channels
    patterns = numpy_generator(0, "rehearsal-patterns").integers(
        0, 256, (shape.num_classes, channels, 4, 4)
    )
    labels = np.arange(count, dtype=np.int64) % shape.num_classes
    rows = np.arange(side) * 4 // side
    clean = patterns[:, :, rows][:, :, :, rows][labels]
    generator = numpy_generator(0, "rehearsal-images", f"{path.parent.name}/{path.stem}")
    noisy = clean + generator.normal(0, 40, (count, channels, side, side))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, images=noisy.clip(0, 255).astype(np.uint8), labels=labels)
    return f"npz:{path}"
