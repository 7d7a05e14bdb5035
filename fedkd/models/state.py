"""State dicts: hashed, saved, read from checkpoints, compared and averaged."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save, save_file
from torch import Tensor, nn

from fedkd.errors import UserError
from fedkd.models.weights_file import read_weights
from fedkd.util.files import replacing

State = dict[str, Tensor]

_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|module)\.")
_NARROW, _WIDE = (torch.float16, torch.bfloat16), (torch.float32, torch.float64)
_NAMED = 3
_SUMMED_BYTES = 256 << 20
"""Of the float64 sums of an average that are in memory at a time, if a tensor is not larger."""


def copy_state(model: nn.Module) -> State:
    """Return a detached copy of the model's state dict on the CPU, in C order."""
    return {
        key: tensor.detach().to("cpu", copy=True).contiguous()
        for key, tensor in model.state_dict().items()
    }


def state_hash(state: State) -> str:
    """Hash a model's tensors, names included."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(f"{key}{state[key].dtype}{tuple(state[key].shape)}".encode())
        digest.update(state[key].contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_state(path: Path, state: State, metadata: Mapping[str, str] | None = None) -> None:
    """Write a state dict atomically, with metadata in the file's header."""
    with replacing(path) as temporary:
        write_tensors(temporary, state, dict(metadata) if metadata else None)


def write_tensors(path: Path, state: State, metadata: dict[str, str] | None = None) -> None:
    """Write a state dict to a file, which need not be whole if that fails."""
    # Tensors that share storage are refused by safetensors; all but the first are cloned.
    places: set[int] = set()
    owned: State = {}
    for key, tensor in state.items():
        place = tensor.untyped_storage().data_ptr()
        owned[key] = (tensor.clone() if place in places else tensor.detach()).contiguous()
        places.add(place)
    try:
        save_file(owned, path, metadata)
    except SafetensorError:
        # It takes no memory, but hides what is wrong with a disk, which Python says.
        path.write_bytes(save(owned, metadata))


@dataclass(frozen=True)
class Checkpoint:
    """A state dict that was read.

    Attributes:
        state: its tensors.
        finite: whether all its numbers are finite that are so in an untrained model.
        notes: sentences on how the file differs from it.
    """

    state: State
    finite: bool
    notes: tuple[str, ...] = ()


def load_state(path: Path, like: State, *, what: str = "checkpoint") -> State:
    """Read a state dict as :func:`read_checkpoint` does, without its notes."""
    return read_checkpoint(path, like, what=what).state


def read_checkpoint(path: Path, like: State, *, what: str = "checkpoint") -> Checkpoint:
    """Read a state dict and bring it to the keys and types of ``like``, that of an architecture.

    Differences that change nothing about the model are undone: a trainer's key around the weights
    (see :mod:`fedkd.models.weights_file`), names that ``safetensors.torch.save_model`` left out
    since they share a tensor with another, one prefix of all names or the wrappers ``module.`` and
    ``_orig_mod.`` within them, and floats of 16 bits. Errors begin with ``what``.

    Raises:
        UserError: the file is missing, unreadable or of another architecture.
    """
    weights = read_weights(path, what=what)
    state, renamed = fit_names(_add_shared(weights.state, weights.metadata), like)
    state, widened = _widen(state, like)
    if problem := _other_head(state, like):
        raise UserError(f"{what}: {path} {problem}")
    if problem := mismatch(state, like):
        raise UserError(f"{what}: {path} does not fit the architecture: {problem}")
    notes = tuple(f"{path}: {note}" for note in (*weights.notes, renamed, widened) if note)
    return Checkpoint({key: state[key] for key in like}, is_finite(state, like), notes)


def _add_shared(state: State, metadata: Mapping[str, str]) -> State:
    """Add the names that safetensors left out, each noted with the one that has its tensor."""
    return state | {
        name: state[other]
        for name, other in metadata.items()
        if name not in state and other in state
    }


def fit_names(state: State, like: State) -> tuple[State, str]:
    """Return the state with its names as in ``like`` where one rule explains all, and the rule."""
    if state.keys() == like.keys():
        return state, ""
    bare = {_WRAPPERS.sub("", key): tensor for key, tensor in state.items()}
    candidates = [(state, "")]
    if len(bare) == len(state) and bare.keys() != state.keys():
        candidates.append((bare, "module. and _orig_mod. were removed from names; "))
    for candidate, note in candidates:
        if candidate.keys() == like.keys():
            return candidate, note.removesuffix("; ")
        prefix = _find_prefix(candidate, like)
        if prefix and candidate.keys() == {prefix + key for key in like}:
            renamed = {key: candidate[prefix + key] for key in like}
            return renamed, f"{note}the prefix {prefix} was removed from all names"
        prefix = _find_prefix(like, candidate)
        if prefix and like.keys() == {prefix + key for key in candidate}:
            renamed = {prefix + key: tensor for key, tensor in candidate.items()}
            return renamed, f"{note}the prefix {prefix} was added to all names"
    return state, ""


def _find_prefix(longer: Iterable[str], shorter: Iterable[str]) -> str:
    """Return the prefix that most names of the one have over a name of the other."""
    names = set(shorter)
    counts: Counter[str] = Counter()
    for name in longer:
        parts = name.split(".")
        for cut in range(1, len(parts)):
            if ".".join(parts[cut:]) in names:
                counts[".".join(parts[:cut]) + "."] += 1
    return max(counts, key=lambda prefix: (counts[prefix], -len(prefix)), default="")


def _widen(state: State, like: State) -> tuple[State, str]:
    """Return the state with floats of 16 bits as wide as in ``like``, and how many there were."""
    narrow = [
        key
        for key, tensor in state.items()
        if tensor.dtype in _NARROW and key in like and like[key].dtype in _WIDE
    ]
    if not narrow:
        return state, ""
    kinds = ", ".join(sorted({str(state[key].dtype).removeprefix("torch.") for key in narrow}))
    wide = {key: state[key].to(like[key].dtype) for key in narrow}
    return state | wide, f"{len(narrow)} tensors of {kinds} were converted to the model's type"


def mismatch(state: State, like: State) -> str:
    """Say in a phrase how ``state`` differs from ``like`` in keys, shapes and types, or ``""``."""
    both = [key for key in like if key in state]
    missing = [repr(key) for key in like if key not in state]
    extra = [repr(key) for key in state if key not in like]
    shapes = [
        f"{key!r} is {list(state[key].shape)} where the model has {list(like[key].shape)}"
        for key in both
        if state[key].shape != like[key].shape
    ]
    types = [
        f"{key!r} is {state[key].dtype} where the model has {like[key].dtype}"
        for key in both
        if state[key].dtype != like[key].dtype
    ]
    differences = [
        _count(missing, f"of {len(like)} tensors are missing"),
        _count(extra, "tensors are not the model's"),
        _count(shapes, "have another shape"),
        _count(types, "have another type"),
    ]
    hint = ""
    if extra and (prefix := _find_prefix(state, like)):
        rest = sum(not key.startswith(prefix) for key in state)
        hint = f"; without the prefix {prefix!r} of the others, {rest} would be left over"
    return "; ".join(filter(None, differences)) + hint


def _other_head(state: State, like: State) -> str:
    """Say in a phrase that a state differs from ``like`` in its number of classes alone, or ``""``.

    The last layer is the only one whose tensors differ, and they differ in their first dimension.
    """
    if state.keys() != like.keys():
        return ""
    others = [key for key in like if state[key].shape != like[key].shape]
    layers = {key.rpartition(".")[0] for key in others}
    if (
        len(layers) != 1
        or "" in layers
        or not all(
            like[key].dim() and state[key].shape[1:] == like[key].shape[1:] for key in others
        )
    ):
        return ""
    own, expected = len(state[others[0]]), len(like[others[0]])
    return (
        f"gives {own} outputs where {expected} are expected: its last layer, {layers.pop()!r}, is "
        f"of other classes; train that layer on the study's {expected} classes (a deployed silo "
        "maps its own to them by labels in silo.yaml)"
    )


def _count(differences: list[str], what: str) -> str:
    """Return how many there are and the first few, or nothing."""
    if not differences:
        return ""
    more = ", ..." if len(differences) > _NAMED else ""
    return f"{len(differences)} {what} ({', '.join(differences[:_NAMED])}{more})"


def is_finite(state: State, like: State | None = None) -> bool:
    """Whether every number of a state dict is finite.

    Infinite numbers that ``like``, of the same keys and shapes, has too may stay as they are, such
    as a mask of minus infinity in a buffer; by default none may.
    """
    for key, tensor in state.items():
        fits = torch.isfinite(tensor)
        if like is not None and key in like and not fits.all():
            before = like[key].to(tensor.device)
            unchanged = (tensor == before) | (tensor.isnan() & before.isnan())
            fits = fits | (unchanged & ~torch.isfinite(before))
        if not bool(fits.all()):
            return False
    return True


def average_states(states: Sequence[State], weights: Sequence[float]) -> State:
    """Average state dicts of one architecture, in the order given.

    Sums run in float64, so that averaging equal states gives that state to the last bit. Integers
    and booleans, such as BatchNorm's counter of batches, are the first state's. Large states are
    averaged in several passes, some tensors in each. Positive weights need not sum to one.
    """
    total = sum(weights)
    average: State = {}
    rest: list[str] | None = None
    while rest is None or rest:
        sums: State = {}
        for state, weight in zip(states, weights, strict=True):
            if not sums:
                part, rest = _split_keys(state, list(state) if rest is None else rest)
                types = {key: state[key].dtype for key in part}
                sums = {
                    key: torch.zeros(state[key].shape, dtype=torch.float64)
                    if types[key].is_floating_point
                    else state[key].clone()
                    for key in part
                }
            for key, summed in sums.items():
                if types[key].is_floating_point:
                    summed.add_(state[key], alpha=weight / total)
        average |= {key: summed.to(types[key]) for key, summed in sums.items()}
        rest = rest or []
    return average


def _split_keys(state: State, keys: list[str]) -> tuple[list[str], list[str]]:
    """Return the first keys, whose float64 sums fit into memory together, and the others."""
    size = 0
    for index, key in enumerate(keys):
        size += 8 * state[key].numel()
        if index and size > _SUMMED_BYTES:
            return keys[:index], keys[index:]
    return keys, []
