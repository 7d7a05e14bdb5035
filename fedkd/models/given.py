"""Models that a user names: by a file, or by the folder of a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedkd.data.columns import Encoder
from fedkd.errors import FedKDError, UserError
from fedkd.models.build import Shape
from fedkd.models.card import check_columns, check_preprocessing, read_card
from fedkd.models.own_checkpoint import read_model
from fedkd.models.state import Checkpoint
from fedkd.results.record import CHECKPOINT_FILE, STATE_FILE, RunRecord
from fedkd.user_code import hash_files
from fedkd.util.checkpoint_files import files_of, find_weights_problem


@dataclass(frozen=True)
class GivenModel:
    """Where a model is, and what is known of its making.

    Attributes:
        exchanges: with silos that made it, as far as they are known.
        uncharged: whether others may have made it, that are not known.
        run: the arm and seed that made it, or an empty string.
    """

    path: Path
    exchanges: int = 0
    uncharged: bool = True
    run: str = ""

    def hash(self) -> str:
        """Return a hash of the model's files."""
        return hash_files([str(file) for file in files_of(self.path)])

    def key(self) -> list[object]:
        """Return what a run that starts from it depends on, for cache keys."""
        return [self.hash(), self.exchanges, self.uncharged]


def find_given(name: str | Path, *, what: str) -> GivenModel:
    """Return the model of a checkpoint, or the final one of a finished run, ``RUN/ARM/seed-N``.

    The checkpoint in such a folder stands for the run. Errors begin with ``what``.

    Raises:
        UserError: there is no such model.
    """
    path = Path(name)
    if path.name == CHECKPOINT_FILE and (path.parent / STATE_FILE).is_file():
        path = path.parent
    if path.is_dir() and not (path / STATE_FILE).is_file():
        runs = sorted(each.parent for each in path.glob(f"**/seed-*/{STATE_FILE}"))[:1]
        hint = f"; name one, such as {runs[0]}" if runs else ""
        raise UserError(f"{what}: {path} is not the folder of a finished run{hint}")
    model = GivenModel(path)
    if path.is_dir():
        try:
            record = RunRecord.read(path)
        except FedKDError as error:
            raise UserError(f"{what}: {error}") from error
        made_by = f"{record.arm}/seed-{record.seed}"
        spent = record.exchanges_before_round_1 + record.curve[-1].round
        model = GivenModel(path / CHECKPOINT_FILE, spent, record.uncharged, made_by)
        if not model.path.exists():
            raise UserError(
                f"{what}: {path} has no {CHECKPOINT_FILE}; if the study ran on hosts, `fedkd fetch "
                f"{path.absolute().parents[1]}` brings it from the SuperLink's host"
            )
    if problem := find_weights_problem(model.path):
        raise UserError(f"{what}: {problem}")
    return model


def read_given(
    model: GivenModel,
    archs: Sequence[str],
    shape: Shape,
    classes: Sequence[str],
    *,
    what: str,
    encoder: Encoder | None = None,
) -> tuple[str, Checkpoint]:
    """Read a model that must fit a study, and return its architecture and its state.

    A file that does not name its own architecture has the first of ``archs``. ``encoder`` is what
    becomes of the columns of the study's table.

    Raises:
        UserError: it does not fit, or some of its values are not finite.
    """
    path, arch = model.path, archs[0]
    card = read_card(path, what=what)
    notes = check_columns(path, card, encoder, what=what)
    if card is not None:
        arch = card.arch
        if arch not in archs:
            known = " or ".join(dict.fromkeys(archs))
            raise UserError(f"{what}: {path} is a {arch}, but the study needs {known}")
        for key, size in card.shape.sizes.items():
            if size != (expected := shape.sizes.get(key)):
                raise UserError(
                    f"{what}: {path} has {key} {size}, but the study's data have {expected}"
                )
        if card.classes and classes and card.classes != tuple(classes):
            raise UserError(
                f"{what}: {path} has the classes {', '.join(card.classes)}, in this order; the "
                f"study has {', '.join(classes)}"
            )
    check_preprocessing(path, shape.preprocessing, what=what)
    checkpoint = read_model(path, arch, shape, what=what, preprocessing=shape.preprocessing)
    if not checkpoint.finite:
        raise UserError(f"{what}: {path} has values that are not finite")
    return arch, replace(checkpoint, notes=(*checkpoint.notes, *notes))
