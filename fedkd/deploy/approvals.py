"""Transfer sets that a silo's owner has approved: in ``silo.yaml``, by its source, or once by hand.

Densities and moments tell how a silo's examples lie relative to the transfer set. A server that may
choose any examples can choose some that isolate a single example of the silo.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from fedkd.config import Study
from fedkd.data.images import content_hash
from fedkd.deploy.audit import check_user
from fedkd.deploy.silo_file import Approve, SiloFile
from fedkd.errors import UserError
from fedkd.federation.deployed_data import draw_transfer
from fedkd.registry import NOISE
from fedkd.util.files import write_new

MAX_BYTES = 1 << 20


def approvals_path(file: SiloFile) -> Path:
    """Return where the approvals are that were given by hand: beside the audit log."""
    return Path(f"{file.audit}.approved.json")


def is_approved(images: Tensor, file: SiloFile, study: Study, seed: int) -> bool:
    """Whether the silo's owner has approved the transfer examples ``[N, ...]``.

    They are if ``approve.transfer`` or the approvals file has their hash, or if the silo draws the
    same from its own ``transfer`` source.

    Raises:
        UserError: the approvals file or the source cannot be read.
    """
    wanted = content_hash(images)
    if wanted in file.approve.transfer or wanted in read_approvals(file):
        return True
    own = draw_own(file, study, seed)
    return own is not None and content_hash(own) == wanted


def draw_own(file: SiloFile, study: Study, seed: int) -> Tensor | None:
    """Draw the study's transfer set from the silo's own source; None if it has none.

    Noise is not from there, whatever the study says.
    """
    if file.transfer is None or study.data.transfer.source == NOISE:
        return None
    drawn = draw_transfer(study, seed, file.transfer)
    return None if drawn is None else drawn.images


def draw_seen(file: SiloFile, study: Study) -> list[Tensor]:
    """Draw the transfer sets of all seeds of a study from what this host has, for its owner.

    Raises:
        UserError: the source cannot be read here.
    """
    source = file.transfer or study.data.transfer.source
    drawn = [draw_transfer(study, seed, source) for seed in study.seeds]
    return [each.images for each in drawn if each is not None]


def read_approvals(file: SiloFile) -> list[str]:
    """Return the hashes that were approved by hand."""
    path = approvals_path(file)
    try:
        with path.open("rb") as handle:
            return Approve.model_validate_json(handle.read(MAX_BYTES)).transfer
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "its content is not valid"
        raise UserError(
            f"{path}: cannot be read: {reason}; remove it and run fedkd silo check with --accept"
        ) from None


def approve(file: SiloFile, hashes: Iterable[str]) -> None:
    """Add hashes to those that were approved by hand.

    Raises:
        UserError: the approvals file is damaged, cannot be written, or would be another user's.
    """
    check_user(Path(file.audit))
    known = dict.fromkeys([*read_approvals(file), *hashes])
    text = json.dumps({"transfer": list(known)}, indent=1) + "\n"
    path = approvals_path(file)
    try:
        write_new(path, text.encode(), mode=0o600, replace=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
