"""Studies that a silo's owner has approved, and those that wait for it.

A study is identified by its content and the code that came with it. The code that checks this is
itself part of the bundle: it protects against honest mistakes, not against a server that sends
other code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from fedkd.config import Study
from fedkd.config.own import names_at_silo
from fedkd.config.study_file import parse_study
from fedkd.deploy.audit import check_user
from fedkd.deploy.bundle_hash import bundle_hash
from fedkd.deploy.silo_file import SiloFile
from fedkd.errors import UserError
from fedkd.registry import METRICS_FROM_SUMS, NO_SOURCE
from fedkd.util.files import write_new
from fedkd.util.lock import lock_folder
from fedkd.util.yaml_loader import MAX_CHARACTERS

MAX_PENDING = 100
"""More studies are not noted until the owner has removed some: a server may ask for any number."""
LEAST_DIGITS = 8
PATIENCE = 60.0


@dataclass(frozen=True)
class Request:
    """One study that asked for the silo.

    Attributes:
        hash: of the study and the code.
        study: its content, as JSON.
        code: hash of the code that came with it.
        asked: when it asked first.
        approved: when the owner approved it; empty if that has not happened.
    """

    hash: str
    study: str
    code: str
    asked: str
    approved: str = ""


def requests_path(file: SiloFile) -> Path:
    """Return the folder of the studies that asked: beside the audit log."""
    return Path(f"{file.audit}.studies")


def hash_study(study: Study) -> str:
    """Return the hash by which a study with the code that runs here is approved."""
    return hashlib.sha256(f"{_dump(study)}\n{bundle_hash()}".encode()).hexdigest()


def _dump(study: Study) -> str:
    return json.dumps(study.to_dict(), sort_keys=True)


def is_approved(file: SiloFile, study: Study) -> bool:
    """Whether the silo may take part in a study; note the study for its owner if not.

    Raises:
        UserError: the note cannot be written or is damaged.
    """
    if file.approve.study == "any":
        return True
    folder, name = requests_path(file), hash_study(study)
    path = folder / f"{name}.json"
    if path.exists():
        return bool(_read(path).approved)
    with lock_folder(folder, wait=PATIENCE):
        folder.chmod(0o700)
        if sum(not request.approved for request in _read_all(folder)) < MAX_PENDING:
            _write(path, Request(name, _dump(study), bundle_hash(), _now()))
    return False


def read_requests(file: SiloFile) -> list[Request]:
    """Return the studies that asked, in the order in which they did.

    Raises:
        UserError: a note of one is damaged.
    """
    return sorted(_read_all(requests_path(file)), key=lambda request: request.asked)


def approve_study(file: SiloFile, digits: str) -> Request:
    """Approve the study whose hash begins with these digits.

    Raises:
        UserError: no study, or more than one, has asked with such a hash.
    """
    if len(digits) < LEAST_DIGITS:
        raise UserError(f"HASH: give at least {LEAST_DIGITS} digits of it, not {digits!r}")
    matching = [each for each in read_requests(file) if each.hash.startswith(digits.lower())]
    if len(matching) != 1:
        number = "no study" if not matching else f"{len(matching)} studies"
        raise UserError(
            f"HASH: {number} with a hash that begins with {digits[:64]} asked for this silo; "
            "fedkd silo pending lists them"
        )
    check_user(Path(file.audit))
    (request,) = matching
    approved = replace(request, approved=request.approved or _now())
    with lock_folder(requests_path(file), wait=PATIENCE):
        _write(requests_path(file) / f"{request.hash}.json", approved)
    return approved


def explain(request: Request, file: SiloFile) -> list[str]:
    """Return in plain sentences what a study asks of the silo.

    Raises:
        UserError: the study cannot be read; it may be of another version of fedkd.
    """
    study = parse_study(request.study)
    runs = len(study.arms) * len(study.seeds)
    lines = [
        f"Study {study.name}, asked by the server at {request.asked[:16]} UTC.",
        f"Silos: {', '.join(study.silo_names)}.",
        f"{runs} runs: {len(study.arms)} arms with {len(study.seeds)} seeds. Each asks for the "
        "silo's name, its number of examples, its model's architecture, size and hash"
        + (", and class counts." if file.share.class_counts else "."),
    ]
    lines += [f"Arm {name}: {'; '.join(_asked(study, name, file))}." for name in study.arms]
    if study.model.weights or file.weights:
        lines.append(f"Pre-trained weights: {file.weights or study.model.weights}.")
    own = sorted({name for _, _, name in names_at_silo(study, file.name)})
    lines.append(
        f"Functions that it imports here: {', '.join(own) or 'none but fedkd and PyTorch'}."
    )
    here = bundle_hash()
    same = "the same" if request.code == here else f"other code, {here}"
    lines.append(f"Code: {request.code}. fedkd installed here: {same}.")
    return lines


def _asked(study: Study, arm: str, file: SiloFile) -> Iterator[str]:
    """Yield what an arm asks for, and whether the silo's file shares it."""
    settings, share, rounds = study.arms[arm].consolidation, file.share, study.rounds_of(arm)
    if study.arms[arm].starts_from_models:
        mode = settings.mode if settings else "weights"
        refused = share.teacher not in ("weights", mode)
        what = "the weights of its model" if mode == "weights" else "its model's predictions"
        yield f"once {what}" + _refused(refused)
    if settings and settings.uses_moments:
        yield "once sums over its examples (moments)" + _refused(not share.moments)
    elif settings and settings.uses_densities:
        yield "once densities of the transfer examples" + _refused(not share.densities)
    if study.data.transfer.at_silo and settings:
        yield "perhaps once a model that it distils from other silos' models"
    noise = " with noise (local_dp)" if file.local_dp else ""
    times = f"in up to {rounds.max} rounds a model trained on its examples{noise}"
    yield times + _refused(not share.rounds)
    what = "after the last round the metric of its own model and the global one on examples that "
    yield f"{what}it holds out" + _refused(not share.metrics)
    if study.data.source == NO_SOURCE:  # otherwise the server measures on its own examples
        what = "after the start and every round metrics of the global model on its examples"
        yield what + _refused(not share.metrics)
        if study.metric in METRICS_FROM_SUMS:
            what = "with these of each class its examples, the predictions and the correct ones"
            yield what + _refused(not (share.metrics and share.class_counts))


def _refused(refused: bool) -> str:  # noqa: FBT001 -- one argument
    return " (refused by silo.yaml)" if refused else ""


def _read_all(folder: Path) -> list[Request]:
    return [_read(path) for path in folder.glob("*.json") if not path.name.startswith(".")]


def _read(path: Path) -> Request:
    try:
        with path.open("rb") as file:
            request = Request(**json.loads(file.read(4 * MAX_CHARACTERS)))
        if not all(isinstance(value, str) for value in vars(request).values()):
            raise TypeError
    except (OSError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or "its content is not valid"
        raise UserError(
            f"{path}: cannot be read: {reason}; remove it, and the study asks again"
        ) from None
    return request


def _write(path: Path, request: Request) -> None:
    try:
        write_new(path, json.dumps(asdict(request)).encode(), mode=0o600, replace=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
