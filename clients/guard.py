"""The guard of a deployed silo: nothing leaves that its file does not share, or unlogged.

It is a Flower mod around the whole ClientApp. Questions are checked before anything is computed,
replies before they are sent, and no message is sent before its line is in the silo's audit log.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp.mod import LocalDpMod
from flwr.clientapp.typing import ClientAppCallable

from clients.audit_entry import describe_reply, describe_run, noting_facts
from fedkd.deploy.audit import append_entry
from fedkd.deploy.bundle_hash import INSTALLED, PINNED, bundle_hash
from fedkd.deploy.silo_file import Share, SiloFile, load_silo_file
from fedkd.errors import FedKDError, NotAllowedError
from fedkd.messages import describe, evaluate, keys, teacher
from fedkd.messages.envelope import read_config
from fedkd.messages.failures import FAILED
from fedkd.messages.teacher import Wanted
from fedkd.util.names import SILO_NAME

NOT_READY = "it is not ready; its own log says why, and so does `fedkd silo check` there"

_logger = logging.getLogger("flwr")


class UnsharedError(FedKDError):
    """The silo does not do what is asked of it; the server reads the message."""


def guard(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Answer as the silo's file allows; simulated nodes, which have no file, pass."""
    if keys.NODE_SILO not in context.node_config:
        return call_next(message, context)
    try:
        file = load_silo_file(Path(str(context.node_config[keys.NODE_SILO])))
    except FedKDError as error:
        return _fail(message, error)
    with noting_facts() as facts:
        try:
            _check_code(file)
            check_question(file, message)
            with file.permissions():
                reply = _answer(file, message, context, call_next)
            if not reply.has_error():
                withhold(file.share, message, reply.content)
        except (UnsharedError, NotAllowedError) as error:
            reply = Message(Error(FAILED, str(error)), reply_to=message)
        except Exception as error:  # its text may quote private data or paths: it stays here
            reply = _fail(message, error)
    try:
        entry = {**describe_run(context), **facts, **describe_reply(message, reply)}
        append_entry(Path(file.audit), entry)
    except FedKDError as error:
        return _fail(message, error)
    return reply


def _check_code(file: SiloFile) -> None:
    """Refuse to run as other code than the owner pinned: an honest mistake, found again here.

    Raises:
        UnsharedError: it is other code, or was not checked before it was imported.
    """
    if file.code == INSTALLED and PINNED not in os.environ:
        raise UnsharedError(
            "its owner pins the code (code: installed), but its SuperNode was not started by fedkd "
            "silo serve"
        )
    if file.code not in (None, INSTALLED, bundle_hash()):
        raise UnsharedError(f"its owner allows other code alone (code), not {bundle_hash()}")


def check_question(file: SiloFile, message: Message) -> None:
    """Refuse a question about what the silo does not share, and a model that it does not ask for.

    The id of a run is echoed, logged, and part of a file's name.

    Raises:
        UnsharedError: it is not shared, or not asked for, or the run has no valid id.
    """
    if not SILO_NAME.fullmatch(str(read_config(message.content).get(keys.RUN_ID))):
        raise UnsharedError(f"{keys.RUN_ID} is not at most 64 letters, digits, '.', '_' and '-'")
    share, kind = file.share, message.metadata.message_type
    if kind == keys.TEACHER:
        wanted = teacher.read_wanted(message.content)
        mode, density = wanted.mode, wanted.density
        allowed = {"weights": ("weights", "logits"), "logits": ("logits",), "none": ()}
        if mode != keys.MODE_NONE and mode not in allowed[share.teacher]:
            raise UnsharedError(
                f"it does not share the {mode} of its model (share.teacher is {share.teacher})"
            )
        if density != keys.DENSITY_NONE:
            _check_density(share, wanted, message.content)
    elif kind == keys.DISTIL and (share.teacher != "weights" or not share.rounds):
        raise UnsharedError("it does not share models trained on its examples (share.teacher)")
    elif kind == keys.TRAIN and not share.rounds:
        raise UnsharedError("it takes no part in rounds (share.rounds)")
    elif kind == keys.EVALUATE and not share.metrics:
        raise UnsharedError("it does not share figures of a model on its examples (share.metrics)")
    elif kind == keys.TABLE_SUMS and not share.table_sums:
        raise UnsharedError("it does not share sums of its table's columns (share.table_sums)")
    elif kind == keys.RECEIVE and file.receive is None:
        raise UnsharedError("it does not ask for models (receive)")


def _check_density(share: Share, wanted: Wanted, content: RecordDict) -> None:
    if wanted.density == keys.DENSITY_MOMENTS:
        if not share.moments:
            raise UnsharedError("it does not share moments of its examples (share.moments)")
    elif not share.densities:
        raise UnsharedError("it does not share densities (share.densities)")
    # A distance to the nearest neighbour, or chosen features, can tell an example to the last bit.
    later = "a deployed silo shares them only once there is noise with a privacy account"
    if wanted.density != keys.DENSITY_MOMENTS and wanted.kind != "gaussian":
        raise UnsharedError(f"it does not share densities of kind {wanted.kind[:20]!r}: {later}")
    if keys.BASIS_MODEL in content:
        raise UnsharedError(f"it does not share densities in features of a model: {later}")


def withhold(share: Share, message: Message, content: RecordDict) -> None:
    """Take out of a reply what is not shared; refuse one that holds more than was asked for.

    Raises:
        UnsharedError: the reply holds arrays that do not belong into it.
    """
    kind = message.metadata.message_type
    if kind == keys.TEACHER:
        try:
            teacher.check_reply_holds_no_more(message.content, content)
        except ValueError as error:
            raise UnsharedError(f"its reply would have held {error}") from error
        least = teacher.least_moment_count(content)
        if least is not None and least < share.min_samples:
            raise UnsharedError("it has moments of a class with few examples (share.min_samples)")
    else:
        expected = {keys.ARRAYS} if kind in (keys.TRAIN, keys.DISTIL) else set()
        if others := set(content.array_records) - expected:
            raise UnsharedError(f"its reply would have held arrays {sorted(others)[0]!r}")
    describe.withhold_class_counts(content, least=share.min_samples, share=share.class_counts)
    evaluate.withhold_class_sums(content, least=share.min_samples, share=share.class_counts)
    if not share.metrics:
        evaluate.withhold_loss(content)


def _answer(
    file: SiloFile, message: Message, context: Context, call_next: ClientAppCallable
) -> Message:
    if file.local_dp is None or message.metadata.message_type != keys.TRAIN:
        return call_next(message, context)
    model = message.content.array_records[keys.ARRAYS]
    if whole := [key for key, array in model.items() if not array.dtype.startswith("float")]:
        # Flower's mod would fail at them in the middle of its work.
        raise UnsharedError(f"its local_dp cannot add noise to whole numbers, as {whole[0]!r} is")
    dp = file.local_dp
    noisy = LocalDpMod(dp.clipping_norm, dp.sensitivity, dp.epsilon, dp.delta)
    return noisy(message, context, call_next)


def _fail(message: Message, error: Exception) -> Message:
    """Tell the server no more than that the silo failed; the rest is in the silo's own log."""
    _logger.error("the silo cannot answer: %s", error, exc_info=error)
    return Message(Error(FAILED, NOT_READY), reply_to=message)
