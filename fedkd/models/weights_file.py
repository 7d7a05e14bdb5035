"""Reads the tensors of a checkpoint in the forms that people have, as the untrusted input it is.

What ``torch.save`` writes is a pickle. It is read by PyTorch's ``weights_only`` unpickler, which
builds tensors and plain containers and calls nothing else.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fedkd.errors import UserError
from fedkd.util.checkpoint_files import INDEX, TORCH_SUFFIXES, find_weights_problem, read_index
from fedkd.util.safetensors_header import read_metadata

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "module")
"""Keys under which trainers save the weights beside other things; of several the first counts."""
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
_MAX_WRAPPERS = 4
_MOST_SHARING = 8
"""Bytes of all tensors by those of their file: a few weights may be tied."""
_SAVE = "torch.save(model.state_dict(), 'weights.pt')"


@dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint under their own names.

    Attributes:
        state: the tensors, on the CPU.
        metadata: what a safetensors file says besides.
        notes: phrases on what was undone to find them.
    """

    state: dict[str, Tensor]
    metadata: Mapping[str, str]
    notes: tuple[str, ...] = ()


def read_weights(path: Path, *, what: str) -> Weights:
    """Read ``.safetensors``, an index of such files, ``.pt``, ``.pth``, ``.ckpt`` or ``.bin``.

    Errors begin with ``what``.

    Raises:
        UserError: it is missing, unreadable or not a state dict.
    """
    if not path.exists():
        raise UserError(f"{what}: {path} does not exist")
    torch_file = path.suffix in TORCH_SUFFIXES
    if (torch_file or path.name.endswith(INDEX)) and (problem := find_weights_problem(path)):
        raise UserError(f"{what}: {problem}")
    if torch_file:
        return _read_torch(path, what)
    try:
        if path.name.endswith(INDEX):
            return Weights(_read_shards(path), {})
        return Weights(load_file(path), read_metadata(path))
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{what}: {path} is not a readable safetensors file: {error}; write one by "
            "safetensors.torch.save_model(model, path)"
        ) from error


def strip_prefixes(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Remove known prefixes that all names have, and return the state and the prefixes."""
    removed: list[str] = []
    while state and (
        prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None)
    ):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
        removed.append(prefix)
    return state, removed


def _read_shards(path: Path) -> dict[str, Tensor]:
    """Read all files of an index; a tensor that two of them have is an error."""
    state: dict[str, Tensor] = {}
    for shard in read_index(path):
        part = load_file(shard)
        if twice := state.keys() & part.keys():
            raise ValueError(f"{shard.name} has {min(twice)!r} a second time")
        state |= part
    return state


def _read_torch(path: Path, what: str) -> Weights:
    try:
        # Only zip archives can be mapped; older files are read as a whole.
        mapped = zipfile.is_zipfile(path)
        if mapped and _is_torchscript(path):
            raise UserError(
                f"{what}: {path} is a TorchScript program, not weights; save these by {_SAVE}"
            )
        with warnings.catch_warnings():  # such as on kinds of tensors that are refused below
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise UserError(f"{what}: {_explain_refusal(path)}") from error
    except UserError:
        raise
    except Exception as error:  # a damaged archive raises almost anything
        reason = " ".join(str(error).split()).partition(". ")[0][:200]
        raise UserError(f"{what}: {path} is damaged: {reason}") from error
    return _unwrap(path, content, what)


def _is_torchscript(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(PurePath(name).name == "constants.pkl" for name in archive.namelist())


def _explain_refusal(path: Path) -> str:
    """Say in a sentence why the ``weights_only`` unpickler refuses a file."""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:
        names = []
    if any(name.startswith("torch.nn.modules.") for name in names):
        return (
            f"{path} is a whole pickled model, which runs code when it is read; where you trust "
            f"it, load it and save its weights alone by {_SAVE}"
        )
    held = f"holds {', '.join(names[:3])} beside tensors" if names else "holds more than tensors"
    return (
        f"{path} {held}, which fedkd does not unpickle, as that can run any code; where you trust "
        f"it, load it and save its weights alone by {_SAVE}"
    )


def _unwrap(path: Path, content: object, what: str) -> Weights:
    """Return the state dict in what was loaded, which may lie under a key of a trainer's."""
    notes: list[str] = []
    while isinstance(content, Mapping) and len(notes) < _MAX_WRAPPERS:
        keys = (key for key in _WRAPPERS if isinstance(content.get(key), Mapping))
        if (key := next(keys, None)) is None:
            break
        others = len(content) - 1
        besides = f"; entries left out besides: {others}" if others else ""
        notes.append(f"the weights are those under {key!r}{besides}")
        content = content[key]
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise UserError(
            f"{what}: {path} holds an object of type {kind}, not a state dict; save it by {_SAVE}"
        )
    for key, value in content.items():
        if strange := _describe_strange(key, value):
            raise UserError(f"{what}: {path} is not a state dict: {strange}; save it by {_SAVE}")
    if not content:
        raise UserError(f"{what}: {path} holds no tensors")
    if sum(tensor.nbytes for tensor in content.values()) > _MOST_SHARING * path.stat().st_size:
        raise UserError(
            f"{what}: {path} has tensors of more bytes than the file, since many share their "
            f"memory; save it by {_SAVE}"
        )
    # Copied: a mapped file may be changed while the tensors are in use.
    return Weights({key: value.clone() for key, value in content.items()}, {}, tuple(notes))


def _describe_strange(key: object, value: object) -> str | None:
    """Say why an entry is not a named dense tensor of numbers; None if it is one."""
    if not isinstance(key, str):
        return f"its key {key!r} is not text"
    if not isinstance(value, Tensor):
        return f"its entry {key!r} is an object of type {type(value).__name__}, not a tensor"
    if value.layout is not torch.strided:
        return f"its entry {key!r} is a sparse tensor"
    if value.is_quantized or value.is_meta:
        return f"its entry {key!r} is a tensor of {value.dtype} on {value.device}, not of numbers"
    return None
