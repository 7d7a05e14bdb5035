"""The Flower ClientApp: messages in, messages out; the silo does the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable, Mod

from clients.deployed import deployed_silo, is_deployed
from clients.guard import guard
from clients.silo import Silo
from fedkd.config import Study
from fedkd.config.study_file import parse_study
from fedkd.data.images import content_hash
from fedkd.errors import UserCodeError
from fedkd.federation.federation import Federation
from fedkd.messages import failures, keys
from fedkd.messages.basis import read_basis
from fedkd.messages.distil import read_teachers
from fedkd.messages.moments import write_moments
from fedkd.models.state import state_hash
from fedkd.training.compute import intra_op_threads
from fedkd.util.cache import cache_root

FindSilo = Callable[[Context], tuple[Silo, Study]]
Work = Callable[[Silo, Study, str, RecordDict], RecordDict]
"""Takes a silo, the study, the arm's name and a question to the answer."""
FAILED = 2
"""Flower's error code for an exception in a ClientApp, the only one that is for apps."""


def make_client_app(find_silo: FindSilo, mods: Sequence[Mod] = ()) -> ClientApp:
    """Return a ClientApp whose silo is found from the node's context by ``find_silo``.

    Args:
        find_silo: returns the node's silo and the study that it takes part in.
        mods: what every message passes on its way in and out, in this order.
    """
    app = ClientApp()
    around = list(mods)

    def answer(work: Work) -> Callable[[Message, Context], Message]:
        def handle(message: Message, context: Context) -> Message:
            silo, study = find_silo(context)
            try:
                with intra_op_threads(1):
                    content = work(silo, study, _arm(context), message.content)
            except UserCodeError:
                raise
            except Exception as error:
                if not silo.is_own:
                    raise
                return Message(Error(FAILED, failures.tell_silo(error)), reply_to=message)
            return _reply(message, silo, content)

        return handle

    app.query("describe", mods=around)(answer(introduce))
    app.query("teacher", mods=around)(answer(teach))
    app.query("distil", mods=around)(answer(learn))
    app.train(mods=around)(answer(train))
    app.evaluate(mods=around)(answer(evaluate))
    return app


def introduce(silo: Silo, study: Study, arm: str, content: RecordDict) -> RecordDict:
    """Answer ``query.describe``."""
    config = content.config_records[keys.CONFIG]
    return describe_silo(silo, config, study.arms[arm].needs_pretrained)


def train(silo: Silo, study: Study, arm: str, content: RecordDict) -> RecordDict:
    """Answer ``train``."""
    state, loss = silo.train(
        content.array_records[keys.ARRAYS].to_torch_state_dict(),
        _integer(content.config_records[keys.CONFIG], keys.ROUND),
        study.rounds_of(arm),
    )
    metrics = MetricRecord({keys.NUM_EXAMPLES: len(silo.data), keys.LOSS: loss})
    return RecordDict({keys.ARRAYS: ArrayRecord(state), keys.METRICS: metrics})


def evaluate(silo: Silo, study: Study, arm: str, content: RecordDict) -> RecordDict:  # noqa: ARG001 -- one signature for all
    """Answer ``evaluate``."""
    found = silo.evaluate(content.array_records[keys.ARRAYS].to_torch_state_dict())
    metrics = MetricRecord(
        {
            keys.NUM_EXAMPLES: len(silo.judged),
            keys.ACCURACY: found.accuracy,
            keys.LOSS: found.loss,
            keys.MACRO_F1: found.macro_f1,
        }
    )
    return RecordDict({keys.METRICS: metrics})


def describe_silo(silo: Silo, config: ConfigRecord, owns_model: bool) -> RecordDict:  # noqa: FBT001 -- the one fact asked
    """Return what a silo says of itself."""
    wanted = config.get(keys.TRANSFER_HASH)
    own = silo.own_model().state if owns_model else None
    info = ConfigRecord(
        {
            keys.ARCHITECTURE: silo.arch,
            keys.NUM_EXAMPLES: len(silo.data),
            keys.CLASS_COUNTS: silo.class_counts,
            keys.NUM_PARAMETERS: sum(t.numel() for t in own.values()) if own else 0,
            keys.CHECKPOINT_HASH: state_hash(own) if own else keys.NO_HASH,
            keys.HOLDS_TRANSFER: _held(silo, wanted) is not None,
        }
    )
    return RecordDict({keys.INFO: info})


def teach(silo: Silo, study: Study, arm: str, content: RecordDict) -> RecordDict:  # noqa: ARG001 -- one signature for all
    """Answer ``query.teacher``: the silo's model or its predictions, and densities if asked."""
    config = content.config_records[keys.CONFIG]
    mode, density = str(config[keys.MODE]), str(config[keys.DENSITY])
    info = ConfigRecord({keys.NUM_EXAMPLES: len(silo.data)})
    reply = RecordDict()
    images: torch.Tensor | None = None
    if keys.TRANSFER in content.array_records:
        images = torch.from_numpy(content.array_records[keys.TRANSFER][keys.IMAGES].numpy())
        info[keys.TRANSFER_HASH] = content_hash(images)
    elif (held := _held(silo, config.get(keys.TRANSFER_HASH))) is not None:
        images = held
        info[keys.TRANSFER_HASH] = str(config[keys.TRANSFER_HASH])
    if mode != keys.MODE_NONE:
        own = silo.own_model()
        if own.state is None:
            info[keys.PROBLEM] = own.problem
        elif mode == keys.MODE_WEIGHTS:
            reply[keys.TEACHER_RECORD] = ArrayRecord(own.state)
        else:
            logits = silo.predict(own.state, _needed(images))
            reply[keys.TEACHER_RECORD] = ArrayRecord({keys.LOGITS: logits})
    if density != keys.DENSITY_NONE and (record := familiarity(silo, content, images)) is not None:
        reply[keys.FAMILIARITY] = record
    reply[keys.INFO] = info
    return reply


def familiarity(silo: Silo, content: RecordDict, images: torch.Tensor | None) -> ArrayRecord | None:
    """Return what the silo tells of its data: log-densities of images, or moments; None if nothing.

    Args:
        silo: who is asked.
        content: the question.
        images: the transfer images, where the silo has them.
    """
    config = content.config_records[keys.CONFIG]
    basis = read_basis(
        content, global_arch=silo.global_arch, shape=silo.shape, compute=silo.compute
    )
    if config[keys.DENSITY] == keys.DENSITY_MOMENTS:
        moments = silo.moments(basis)
        return None if moments is None else write_moments(moments)
    found = silo.familiarity(
        _needed(images),
        basis,
        per_class=config[keys.DENSITY] == keys.DENSITY_CLASS,
        kind=str(config[keys.DENSITY_KIND]),
        neighbours=_integer(config, keys.NEIGHBOURS),
    )
    return None if found is None else ArrayRecord({keys.LOG_DENSITY: found})


def learn(silo: Silo, study: Study, arm: str, content: RecordDict) -> RecordDict:
    """Answer ``query.distil``: the silo's model, taught by those that the server sent."""
    settings = study.arms[arm].consolidation
    if settings is None or not study.data.transfer.at_silo:
        raise ValueError(f"the study has no silo distil in arm {arm}")
    teachers, student = read_teachers(
        content,
        own=silo.own_model().state,
        architectures=study.architectures,
        shape=silo.shape,
        compute=silo.compute,
    )
    state, loss = silo.distil(teachers, student, settings)
    metrics = MetricRecord({keys.NUM_EXAMPLES: len(silo.data), keys.LOSS: loss})
    return RecordDict({keys.ARRAYS: ArrayRecord(state), keys.METRICS: metrics})


def _held(silo: Silo, wanted: object) -> torch.Tensor | None:
    """Return the transfer images of the hash ``wanted``, if the silo has just these."""
    if wanted is None or wanted == keys.NO_HASH:
        return None
    images = silo.transfer()
    return images if images is not None and content_hash(images) == wanted else None


def _needed(images: torch.Tensor | None) -> torch.Tensor:
    if images is None:
        raise ValueError("the server asks for predictions on images that are neither sent nor here")
    return images


def _reply(message: Message, silo: Silo, content: RecordDict) -> Message:
    """Send ``content`` back, saying which silo, run and round it belongs to."""
    config = message.content.config_records[keys.CONFIG]
    info = content.config_records.get(keys.INFO) or ConfigRecord()
    info[keys.SILO] = silo.name
    info[keys.RUN_ID] = str(config[keys.RUN_ID])
    info[keys.ROUND] = _integer(config, keys.ROUND)
    content[keys.INFO] = info
    return Message(content, reply_to=message)


def _arm(context: Context) -> str:
    return str(context.run_config[keys.CONFIG_ARM])


def _integer(config: ConfigRecord, key: str) -> int:
    value = config[key]
    if not isinstance(value, int):
        raise TypeError(f"{key} is {value!r} where a whole number is expected")
    return value


@lru_cache(maxsize=2)
def _federation(study: str, seed: int, cache: str) -> Federation:
    folder = Path(cache) if cache else cache_root()
    return Federation.load(parse_study(study, origin="run config: study"), seed, folder)


def simulated_silo(context: Context) -> tuple[Silo, Study]:
    """Find the silo of a simulated node by its partition id.

    Raises:
        ValueError: the node has no silo in this study.
    """
    config = context.run_config
    if parse_study(str(config[keys.CONFIG_STUDY])).is_deployed:
        raise ValueError("the study's silos are in the field, but this node has no silo.yaml")
    federation = _federation(
        str(config[keys.CONFIG_STUDY]),
        int(str(config[keys.CONFIG_SEED])),
        str(config[keys.CONFIG_CACHE_DIR]),
    )
    names = federation.study.silo_names
    partition = int(str(context.node_config["partition-id"]))
    if partition >= len(names):
        raise ValueError(f"node {partition} has no silo: the study has {len(names)}")
    return Silo.of(federation, names[partition], _arm(context)), federation.study


def find_silo(context: Context) -> tuple[Silo, Study]:
    """Find the node's silo: its own if it has one, else its part of a simulated federation."""
    return deployed_silo(context) if is_deployed(context) else simulated_silo(context)


def tell_failures(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Send what a simulated silo's process raises to the server, which ends the run by it."""
    try:
        return call_next(message, context)
    except Exception as error:
        if is_deployed(context):
            raise
        return Message(Error(FAILED, failures.tell(error)), reply_to=message)


app = make_client_app(find_silo, [tell_failures, guard])
