"""The Flower ClientApp: reads a message, lets the silo answer, writes the reply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from socket import gethostname

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable, Mod
from torch import Tensor

from clients.audit_entry import note_fact
from clients.deployed import deployed_silo, is_deployed
from clients.guard import guard
from clients.silo import Silo
from clients.simulated import simulated_silo
from fedkd.config import Study
from fedkd.data.columns import sums_of
from fedkd.data.images import content_hash
from fedkd.data.texts import tokenizer_hash
from fedkd.distillation.teachers import Teacher
from fedkd.errors import UserCodeError
from fedkd.messages import describe, distil, evaluate, failures, keys, table_sums, teacher, train
from fedkd.messages.basis import read_basis
from fedkd.messages.describe import Description
from fedkd.messages.envelope import read_config, seal_reply
from fedkd.messages.teacher import Wanted
from fedkd.messages.train import TrainedModel
from fedkd.models.card import ModelCard, save_model
from fedkd.models.state import state_hash
from fedkd.registry import is_external
from fedkd.training.compute import intra_op_threads
from fedkd.util.files import hash_file

FindSilo = Callable[[Context], tuple[Silo, Study]]
Answer = Callable[[Silo, Study, str, RecordDict], RecordDict]
"""Takes a silo, its study, the arm's name and a question to the reply."""


def make_client_app(find_silo: FindSilo, mods: Sequence[Mod] = ()) -> ClientApp:
    """Return a ClientApp whose silo is found from the node's context by ``find_silo``.

    Args:
        find_silo: returns the node's silo and the study that it takes part in.
        mods: what every message passes on its way in and out, in this order.
    """

    def handler(answer: Answer) -> Callable[[Message, Context], Message]:
        def handle(message: Message, context: Context) -> Message:
            silo, study = find_silo(context)
            try:
                silo = silo.encoded(message.content)
                with intra_op_threads(silo.compute.threads):
                    content = answer(silo, study, _arm(context), message.content)
            except Exception as error:
                foreseen = _has_one_image(silo, message)
                if not foreseen and (isinstance(error, UserCodeError) or not silo.is_own):
                    raise
                return Message(Error(failures.FAILED, failures.tell_silo(error)), reply_to=message)
            return Message(seal_reply(content, message.content, silo.name), reply_to=message)

        return handle

    app, around = ClientApp(), list(mods)
    app.query("describe", mods=around)(handler(answer_describe))
    app.query("teacher", mods=around)(handler(answer_teacher))
    app.query("distil", mods=around)(handler(answer_distil))
    app.query("sums", mods=around)(handler(answer_sums))
    app.train(mods=around)(handler(answer_train))
    app.evaluate(mods=around)(handler(answer_evaluate))
    app.query("receive", mods=around)(handler(answer_receive))
    return app


def answer_describe(silo: Silo, study: Study, arm: str, content: RecordDict) -> RecordDict:  # noqa: ARG001 -- one signature for all
    """Answer ``query.describe``."""
    own = silo.own_model().state if silo.uses_model else None
    has_transfer = _own_transfer(silo, describe.read_transfer_hash(content)) is not None
    return describe.write_reply(
        Description(
            silo.arch,
            len(silo.data),
            tuple(silo.class_counts),
            has_transfer,
            "" if silo.shape.backbone is None else silo.shape.backbone.fixed_hash,
            receives=silo.disclosure is not None and silo.disclosure.file.receive is not None,
            tokenizer="" if silo.disclosure is None else tokenizer_hash(study.columns),
            holds_out=silo.holds_out,
        ),
        num_parameters=sum(tensor.numel() for tensor in own.values()) if own else 0,
        checkpoint_hash=state_hash(own) if own else None,
    )


def answer_teacher(silo: Silo, study: Study, arm: str, content: RecordDict) -> RecordDict:  # noqa: ARG001 -- as above
    """Answer ``query.teacher``: with the silo's model or predictions, and densities if asked."""
    wanted = teacher.read_wanted(content)
    if silo.disclosure is not None:
        silo.disclosure.check_mode(wanted.mode)
    images = teacher.read_images(content)
    if images is None:
        images = _own_transfer(silo, describe.read_transfer_hash(content))
    transfer_hash = None if images is None else content_hash(images)
    answer = silo.as_teacher
    if wanted.density != keys.DENSITY_NONE:  # first, because a deployed silo may refuse
        answer = _add_densities(answer, silo, wanted, content, images)
    if wanted.mode != keys.MODE_NONE:
        own = silo.own_model()
        problem = own.problem
        if wanted.mode == keys.MODE_WEIGHTS and is_external(silo.arch):
            problem = f"its model is of {silo.arch}, which only predicts"
        if problem or own.state is None:
            return teacher.write_problem(
                problem, num_examples=len(silo.data), transfer_hash=transfer_hash
            )
        if wanted.mode == keys.MODE_WEIGHTS:
            answer = replace(answer, state=own.state)
        elif silo.disclosure is not None:
            logits = silo.disclosure.predict(silo, own.state, images)
            answer = replace(answer, logits=logits)
        else:
            answer = replace(answer, logits=silo.predict(own.state, _required(images)))
    return teacher.write_reply(answer, transfer_hash=transfer_hash)


def _add_densities(
    answer: Teacher, silo: Silo, wanted: Wanted, content: RecordDict, images: Tensor | None
) -> Teacher:
    """Return the teacher with densities or moments, unless the silo is too small for any."""
    basis = read_basis(
        content, global_arch=silo.global_arch, shape=silo.shape, compute=silo.compute
    )
    if silo.disclosure is not None:
        return silo.disclosure.add_densities(answer, silo, wanted, basis, images)
    if wanted.density == keys.DENSITY_MOMENTS:
        return replace(answer, moments=silo.moments(basis))
    log_density = silo.log_density(
        _required(images),
        basis,
        per_class=wanted.density == keys.DENSITY_CLASS,
        kind=wanted.kind,
        neighbours=wanted.neighbours,
    )
    return replace(answer, log_density=log_density)


def answer_distil(silo: Silo, study: Study, arm: str, content: RecordDict) -> RecordDict:
    """Answer ``query.distil``: with the silo's model after it learns from those that were sent.

    Raises:
        ValueError: the arm lets no silo distil.
    """
    settings = study.arms[arm].consolidation
    if settings is None or not study.data.transfer.at_silo:
        raise ValueError(f"the study has no silo distil in arm {arm}")
    teachers, student = distil.read_teachers(
        content,
        own=silo.own_model().state,
        architectures=study.architectures,
        shape=silo.shape,
        compute=silo.compute,
    )
    state, loss = silo.distil(teachers, student, settings)
    return train.write_reply(TrainedModel(dict(state), len(silo.data), loss))


def answer_sums(silo: Silo, study: Study, arm: str, content: RecordDict) -> RecordDict:  # noqa: ARG001 -- as above
    """Answer ``query.sums``: with sums over the rows of the silo's table."""
    if not silo.columns:
        raise ValueError("the silo has no table")
    sums = sums_of(silo.data, silo.columns)
    return table_sums.write_reply(silo.columns, sums, least=silo.least_of_class)


def answer_train(silo: Silo, study: Study, arm: str, content: RecordDict) -> RecordDict:
    """Answer ``train``: with the global model after a round of training."""
    number, rounds = train.read_round(content), study.rounds_of(arm)
    if silo.disclosure is not None:
        silo.disclosure.check_round(number)
    # The received model has no name here, so that the silo can free it once it is loaded.
    state, loss = silo.train(
        train.read_model(content, consumed=silo.owns_questions), number, rounds
    )
    if silo.is_own:
        state = dict(state)  # a class of the user's own may keep the one that it returned
    return train.write_reply(TrainedModel(state, len(silo.data), loss))


def answer_evaluate(silo: Silo, study: Study, arm: str, content: RecordDict) -> RecordDict:
    """Answer ``evaluate``: with figures of a model, or if asked with what the silo gets."""
    arch, state, is_given = evaluate.read_question(
        content, silo.global_arch, study.architectures, consumed=silo.owns_questions
    )
    shape = silo.shape.merged if is_given else silo.shape
    if (arch, shape) != (silo.global_arch, silo.shape):
        silo = replace(silo, global_arch=arch, shape=shape)
    asks_what_it_gets, everyone = evaluate.read_gets_question(content)
    if asks_what_it_gets:
        gets = silo.compare(state, everyone, study.rounds_of(arm), study.metric)
        return evaluate.write_gets(gets)
    metrics = silo.evaluate(state)
    return evaluate.write_reply(metrics, len(silo.evaluation_data), metric=study.metric)


def answer_receive(silo: Silo, study: Study, arm: str, content: RecordDict) -> RecordDict:
    """Answer ``query.receive``: write the final model to the folder that the silo's owner names.

    Raises:
        ValueError: the silo does not ask for models.
    """
    if silo.disclosure is None or silo.disclosure.file.receive is None:
        raise ValueError("a model was sent to a silo that does not ask for it")
    state, number = train.read_model(content), train.read_round(content)
    run = str(read_config(content)[keys.RUN_ID])
    facts = {"study": study.name, "arm": arm, "seed": silo.seed, "rounds": number, "run": run}
    columns = str(read_config(content).get(keys.COLUMNS, ""))
    classes = tuple(study.data.classes or ())
    card = ModelCard(silo.global_arch, silo.shape, classes, facts, columns=columns)
    name = f"{study.name}-{arm}-seed-{silo.seed}-{run}.safetensors"
    path = Path(silo.disclosure.file.receive) / name
    save_model(path, state, card)
    note_fact("received", hash_file(path))
    return RecordDict()


def _has_one_image(silo: Silo, message: Message) -> bool:
    """Whether a simulated silo is to train on one example, which batch normalization does not take.

    The check before the study warns of it. Other silos train on without this one.
    """
    is_training = message.metadata.message_type == keys.TRAIN
    return is_training and len(silo.data) == 1 and silo.disclosure is None


def _own_transfer(silo: Silo, wanted: str | None) -> Tensor | None:
    """Return the transfer examples of the hash ``wanted``, if the silo has just these."""
    images = None if wanted is None else silo.transfer()
    return images if images is not None and content_hash(images) == wanted else None


def _required(images: Tensor | None) -> Tensor:
    if images is None:
        raise ValueError("the server asks for predictions on examples neither sent nor here")
    return images


def _arm(context: Context) -> str:
    return str(context.run_config[keys.CONFIG_ARM])


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
        node = gethostname() if context.run_config.get(keys.CONFIG_HOLDER) else ""
        return Message(Error(failures.FAILED, failures.tell(error, node)), reply_to=message)


app = make_client_app(find_silo, [tell_failures, guard])
