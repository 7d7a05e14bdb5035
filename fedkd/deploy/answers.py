"""The silo's ledger: its answers about densities, moments and predictions, over runs and restarts.

Many answers together tell more of single examples, or of the model, than one. So the same question
gets the same answer, and there is a limit to different ones.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fedkd.deploy.silo_file import SiloFile
from fedkd.errors import FedKDError, UserError
from fedkd.util.files import write_new
from fedkd.util.lock import lock_folder

PATIENCE = 300.0
"""Seconds to wait for another answer of the same silo."""

STATISTICS, PREDICTIONS = "densities and moments", "predictions"
"""Kinds of answers; each is counted by itself."""
_SUFFIX = {STATISTICS: ".npz", PREDICTIONS: ".predictions.npz"}

Answer: TypeAlias = dict[str, Tensor]
"""Arrays by name; empty where the silo has too few examples for any."""


class SpentError(FedKDError):
    """The silo has answered as many different questions as its file allows."""


def ledger_path(file: SiloFile) -> Path:
    """Return the folder of the answers: beside the audit log."""
    return Path(f"{file.audit}.answers")


def answer_once(
    file: SiloFile,
    question: Mapping[str, Any],
    compute: Callable[[], Answer],
    *,
    kind: str = STATISTICS,
) -> Answer:
    """Return the stored answer to a question, or compute and store one.

    It is on the disk before it is returned. Answers are never removed: one that was given
    before examples or ``share`` changed counts as well. The question is everything on which the
    answer depends, as JSON.

    Raises:
        SpentError: the question is new, and ``share.max_questions`` of its kind have been answered.
        UserError: the ledger cannot be written.
    """
    folder, most = ledger_path(file), file.share.max_questions
    text = json.dumps(question, sort_keys=True)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()}{_SUFFIX[kind]}"
    with lock_folder(folder, wait=PATIENCE):
        folder.chmod(0o700)
        if path.exists():
            return _read(path)
        stored = [p for p in folder.glob("*.npz") if "".join(p.suffixes) == _SUFFIX[kind]]
        if len(stored) >= most:
            raise SpentError(
                f"it has answered {most} different questions about {kind}, as many as "
                "share.max_questions allows"
            )
        answer = compute()
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **{name: t.numpy() for name, t in answer.items()})
        try:
            write_new(path, buffer.getvalue(), mode=0o600)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from error
        return answer


def _read(path: Path) -> Answer:
    with np.load(path, allow_pickle=False) as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}
