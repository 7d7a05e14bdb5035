"""The files of a checkpoint, and what their names and first bytes say, before any is loaded.

A checkpoint is a safetensors file, an index of several, or what ``torch.save`` writes; or a model
of another library in its own format.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path, PurePath

from fedkd.util.safetensors_header import find_checkpoint_problem

INDEX = ".safetensors.index.json"
"""End of the name of an index of safetensors files, as Hugging Face's libraries write it."""
TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
"""Ends of names of what ``torch.save`` writes."""
EXTERNAL_FORMATS = {
    "onnx": ((".onnx",), b""),
    "sklearn": ((".skops",), b"PK"),
    "xgboost": ((".ubj", ".json"), b"{"),
    "lightgbm": ((".txt",), b"tree"),
    "catboost": ((".cbm",), b"CBM"),
}
"""Libraries whose models only predict, to the ends of names and the first bytes of their files."""
MAX_EXTERNAL_BYTES = 1 << 30
_PICKLES = (".pkl", ".pickle", ".joblib", ".sav")
_MAX_INDEX_BYTES = 100_000_000
_MAX_SHARDS = 10_000
_FIRST_BYTES = 9
_ZIP, _PICKLE, _BRACE = b"PK", b"\x80", b"{"
_DEEPSPEED = ("zero_to_fp32.py", "latest", "*_optim_states.pt", "global_step*")


def find_weights_problem(path: Path) -> str | None:
    """Return what is wrong with a checkpoint as one sentence, or None if it may be loaded.

    Of a file of ``torch.save`` only the first bytes are looked at.
    """
    try:
        if path.is_dir():
            return _describe_folder(path)
        if path.name.endswith(INDEX):
            for shard in read_index(path):
                if problem := find_checkpoint_problem(shard):
                    return f"{path} names a file that cannot be used: {problem}"
            return None
        if path.suffix in TORCH_SUFFIXES:
            return _find_torch_problem(path)
        if path.suffix in _PICKLES:
            return _describe_pickle(path)
        if library := external_format(path):
            return _find_external_problem(path, library)
    except FileNotFoundError:
        return f"there is no file {path}"
    except (OSError, ValueError) as error:
        return f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
    if path.name.endswith(".bin.index.json"):
        return (
            f"{path} is an index of pickled files; save the model again by "
            "save_pretrained(folder, safe_serialization=True)"
        )
    return find_checkpoint_problem(path)


def external_format(path: str | PurePath) -> str | None:
    """Return the library of a model by its file's ending; None for a checkpoint of PyTorch."""
    name = PurePath(path)
    if name.name.endswith(".index.json"):
        return None
    formats = (key for key, (endings, _) in EXTERNAL_FORMATS.items() if name.suffix in endings)
    return next(formats, None)


def files_of(path: Path) -> list[Path]:
    """Return all files of a checkpoint in which :func:`find_weights_problem` finds none wrong."""
    return [path, *read_index(path)] if path.name.endswith(INDEX) else [path]


def read_index(path: Path) -> list[Path]:
    """Return the files that an index names, which lie in its own folder.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not such an index.
    """
    with path.open("rb") as file:
        text = file.read(_MAX_INDEX_BYTES)
    try:
        names = sorted({PurePath(name) for name in json.loads(text)["weight_map"].values()})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError("it is not an index of safetensors files") from None
    if not 1 <= len(names) <= _MAX_SHARDS:
        raise ValueError(f"it names {len(names)} files")
    for name in names:
        if name.name != str(name) or name.suffix != ".safetensors":
            raise ValueError(f"it names {str(name)!r}, which is not a safetensors file beside it")
    return [path.parent / name for name in names]


def _describe_folder(path: Path) -> str:
    if any(any(path.glob(pattern)) for pattern in _DEEPSPEED):
        return (
            f"{path} is a folder as DeepSpeed writes it, with weights in parts; join them by "
            f"`python {path}/zero_to_fp32.py {path} weights.pt`, and name that file"
        )
    files = sorted(
        each.name
        for each in path.iterdir()
        if each.name.endswith(INDEX) or each.suffix in (".safetensors", *TORCH_SUFFIXES)
    )
    hint = f"; name a file in it, such as {path / files[0]}" if files else ""
    return f"{path} is not a file but a folder{hint}"


def _describe_pickle(path: Path) -> str:
    return (
        f"{path} is a pickle, which runs code when it is read; save the model by "
        "skops.io.dump(model, 'model.skops'), in its library's own format, or as ONNX"
    )


def _find_external_problem(path: Path, library: str) -> str | None:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        return f"{path} is not a file"
    if status.st_size > MAX_EXTERNAL_BYTES:
        return f"{path} is larger than {MAX_EXTERNAL_BYTES >> 20} MiB, the most that a model may be"
    with path.open("rb") as file:
        start = file.read(_FIRST_BYTES)
    if start.startswith(_PICKLE) and library != "onnx":
        return _describe_pickle(path)
    _, expected = EXTERNAL_FORMATS[library]
    if not start.startswith(expected) or not start:
        return f"{path} is not a file that {library} wrote, as its ending says"
    return None


def _find_torch_problem(path: Path) -> str | None:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        return f"{path} is not a file"
    with path.open("rb") as file:
        start = file.read(_FIRST_BYTES)
    if start.startswith((_ZIP, _PICKLE)):
        return None
    if start[8:] == _BRACE:
        return f"{path} is a safetensors file; rename it so that its name ends in .safetensors"
    return f"{path} is not a file that torch.save wrote"
