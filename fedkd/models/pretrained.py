"""Pre-trained weights: found in the local folder of PyTorch's hub or downloaded, and read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch

from fedkd.config.backbone import is_weights_file
from fedkd.errors import UserError, one_line
from fedkd.models.downloads import check_download
from fedkd.models.hugging_face import hugging_face_preprocessing, read_hugging_face, settings_of
from fedkd.models.libraries import require
from fedkd.models.preprocessing import Preprocessing
from fedkd.models.state import State, state_hash
from fedkd.models.weights_file import read_weights, strip_prefixes
from fedkd.registry import HUGGING_FACE
from fedkd.suggestions import suggest
from fedkd.util.random_ops import DrawFrom

_TORCHVISION, _TIMM = "torchvision:", "timm:"


def load_weights(arch: str, weights: str) -> State:
    """Return the state dict of a network with all its weights, the head included.

    Weights are a file, or a name that torchvision or timm knows.

    Raises:
        UserError: they cannot be found, downloaded or read.
    """
    if is_weights_file(weights):
        path = Path(weights)
        return _read_once(str(path), _changed(path))
    if arch.startswith(_TIMM):
        return _load_timm(arch.removeprefix(_TIMM), weights)
    path = _find_torchvision(arch, weights)
    return _read_once(str(path), _changed(path))


def hash_weights(arch: str, weights: str | None) -> str:
    """Hash the content of weights; those of ``hf:`` are its own, its settings among them."""
    is_file = weights is not None and is_weights_file(weights)
    return _hash_once(arch, weights, _changed(Path(weights or "")) if is_file else None)


@lru_cache(maxsize=4)
def _hash_once(arch: str, weights: str | None, _: tuple[int, int] | None) -> str:
    if arch.startswith(HUGGING_FACE):
        try:
            # An encoder has no head: a random one must not give another hash in every process.
            with DrawFrom(torch.Generator().manual_seed(0)):
                network = read_hugging_face(arch.removeprefix(HUGGING_FACE))
        except UserError:
            raise
        except Exception as error:  # of a library that reads a user's folder
            raise UserError(f"model.arch: {arch} cannot be read: {one_line(error)}") from error
        tensors = state_hash(dict(network.state_dict()))
        return hashlib.sha256(f"{tensors} {settings_of(network)}".encode()).hexdigest()
    return state_hash(load_weights(arch, weights or ""))


def preprocessing_of_weights(arch: str, weights: str | None) -> Preprocessing | None:
    """Return what weights are made for, as far as they say it; None for a file."""
    if arch.startswith(HUGGING_FACE):
        return _of_hugging_face(hugging_face_preprocessing(arch.removeprefix(HUGGING_FACE)))
    if weights is None or is_weights_file(weights):
        return None
    if arch.startswith(_TIMM):
        settings = require("timm", "model.weights").get_pretrained_cfg(
            f"{arch.removeprefix(_TIMM)}.{weights}"
        )
        if settings is None:
            return None
        return Preprocessing(
            tuple(settings.mean), tuple(settings.std), int(settings.input_size[-1])
        )
    transforms = _torchvision_entry(arch, weights).transforms()
    return Preprocessing(
        tuple(transforms.mean), tuple(transforms.std), int(transforms.crop_size[0])
    )


def _of_hugging_face(settings: Mapping[str, Any]) -> Preprocessing | None:
    size: Any = settings.get("crop_size") if settings.get("do_center_crop") else None
    if size is None and settings.get("do_resize", True):
        size = settings.get("size")
    if isinstance(size, Mapping):
        size = size.get("height", size.get("shortest_edge"))
    mean, std = settings.get("image_mean"), settings.get("image_std")
    if not settings.get("do_normalize", True) or mean is None or std is None:
        mean, std = [0.0] * 3, [1.0] * 3
    if size is None and not settings:
        return None
    return Preprocessing(tuple(map(float, mean)), tuple(map(float, std)), size and int(size))


def _torchvision_entry(arch: str, weights: str) -> Any:
    from torchvision import models

    name = arch.removeprefix(_TORCHVISION)
    try:
        entries = models.get_model_weights(name)
    except ValueError as error:
        raise UserError(f"model.arch: torchvision has no model {name!r}") from error
    if weights not in entries.__members__:
        known = list(entries.__members__)
        raise UserError(
            f"model.weights: {arch} has no weights {weights!r}{suggest(weights, known)}; it has "
            f"{', '.join(known)}"
        )
    return entries[weights]


def _find_torchvision(arch: str, weights: str) -> Path:
    """Return the file in the hub's local folder, downloaded if it is not there."""
    url = _torchvision_entry(arch, weights).url
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if path.is_file():
        return path
    check_download(f"model.weights: {weights} of {arch}", f"put {url} at {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    # PyTorch's file names end with the first digits of the content's SHA-256.
    prefix = path.stem.rpartition("-")[2]
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"model.weights: {weights} of {arch} cannot be downloaded from {url}: {error}; put "
            f"the file at {path}"
        ) from error
    return path


@lru_cache(maxsize=2)
def _load_timm(name: str, tag: str) -> State:
    timm = require("timm", "model.weights")
    known = timm.list_pretrained(f"{name}.*")
    if f"{name}.{tag}" not in known:
        tags = [each.partition(".")[2] for each in known]
        raise UserError(
            f"model.weights: timm:{name} has no weights {tag!r}{suggest(tag, tags)}; it has "
            f"{', '.join(tags) or 'none'}; a file may be given instead"
        )
    settings = timm.get_pretrained_cfg(f"{name}.{tag}")
    file = _find_timm(settings)
    if file is None:
        remedy = f"fetch it with `hf download {settings.hf_hub_id}`"
        check_download(f"model.weights: {tag} of timm:{name}", remedy)
    overlay = None if file is None else {"file": file}
    try:
        network = timm.create_model(
            f"{name}.{tag}", pretrained=True, pretrained_cfg_overlay=overlay
        )
    except Exception as error:  # of the hub's client: no network, no such file
        raise UserError(
            f"model.weights: {tag} of timm:{name} cannot be read or downloaded: {one_line(error)}"
        ) from error
    return dict(network.state_dict())


def _find_timm(settings: Any) -> str | None:
    """Return the file of weights in the local cache of Hugging Face's hub."""
    if settings.custom_load or not settings.hf_hub_id:
        return None
    hub = require("huggingface_hub", "model.weights")
    file = hub.try_to_load_from_cache(settings.hf_hub_id, "model.safetensors")
    return file if isinstance(file, str) else None


def _changed(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"model.weights: {path} cannot be read: {error.strerror}") from error
    return stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=2)
def _read_once(name: str, _: tuple[int, int]) -> State:
    return strip_prefixes(read_weights(Path(name), what="model.weights").state)[0]
