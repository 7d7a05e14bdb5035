"""A deployed silo: its examples and model are on its own host, as its own file says."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path

from flwr.app import Context
from torch import Tensor

from clients.audit_entry import note_fact
from clients.disclosure import Disclosure
from clients.guard import UnsharedError
from clients.reuse import Latest
from clients.silo import Silo
from fedkd.config import Study
from fedkd.config.own import names_at_silo
from fedkd.config.study_file import parse_study
from fedkd.data.columns import Encoder
from fedkd.data.images import content_hash
from fedkd.data.texts import tokenizer_hash
from fedkd.deploy.holdings import Holdings, read_holdings, read_own_model, study_at_silo
from fedkd.deploy.silo_file import SiloFile, load_silo_file
from fedkd.deploy.stamp import stamp_path, stamp_source
from fedkd.deploy.study_approvals import hash_study, is_approved
from fedkd.distillation.density.estimators import LEAST_SILO_IMAGES
from fedkd.errors import NotAllowedError, UserError
from fedkd.federation.deployed_data import draw_transfer
from fedkd.federation.federation import Pretrained
from fedkd.federation.held_out import divide
from fedkd.messages import keys
from fedkd.messages.describe import WAITING
from fedkd.models.backbone import Backbone
from fedkd.models.build import Shape
from fedkd.models.pool import ModelPool
from fedkd.models.state import Checkpoint
from fedkd.training.compute import Compute, find_device
from fedkd.user_code import check_allowed
from fedkd.util.parallel import available_cores

LONGEST_REASON = 500

_holdings: Latest[Holdings] = Latest()
_data_hash: Latest[str] = Latest()
_own_model: Latest[tuple[str, Checkpoint]] = Latest()
_model_pool: Latest[ModelPool] = Latest()


def is_deployed(context: Context) -> bool:
    """Whether the node has a silo of its own."""
    return keys.NODE_SILO in context.node_config


def deployed_silo(context: Context) -> tuple[Silo, Study]:
    """Open the node's own silo for a run.

    Raises:
        UnsharedError: the silo takes no part in such a run.
        UserError: its file, examples or model are not valid.
    """
    config = context.run_config
    try:
        study = parse_study(str(config[keys.CONFIG_STUDY]))
    except NotAllowedError:
        raise
    except UserError as error:  # it quotes the study alone, which is the server's
        raise UnsharedError(str(error)[:LONGEST_REASON]) from error
    path = Path(str(context.node_config[keys.NODE_SILO]))
    file = load_silo_file(path)
    if file.name in study.silo_names and not is_approved(file, study):
        raise UnsharedError(
            f"{file.name} {WAITING}: fedkd silo approve {path.name} {hash_study(study)[:12]}"
        )
    return open_silo(file, study, str(config[keys.CONFIG_ARM]), int(str(config[keys.CONFIG_SEED])))


def open_silo(
    file: SiloFile, study: Study, arm: str, seed: int, encoder: Encoder | None = None
) -> tuple[Silo, Study]:
    """Read what the file names, in the study's order and shape; see :func:`deployed_silo`.

    Rows of a table are as they were read, and own models are left out, until there is an encoder.
    """
    if not study.is_deployed:
        raise UnsharedError("it is a deployed silo, but the study's silos are simulated")
    if file.name not in study.silo_names:
        raise UnsharedError(f"its name, {file.name}, is not in the study's partition.names")
    study = study_at_silo(file, study)
    for _, registry, name in names_at_silo(study, file.name):
        check_allowed(registry.kind, name)
    holdings = _read_holdings(file, study, encoder)
    train, test = holdings.train, holdings.test
    if test is None:
        train, test = divide(file.name, train, study.data.silo_test, seed)
    if len(train) < file.share.min_samples:
        raise UnsharedError("it has fewer examples than share.min_samples, and takes no part")
    shape = replace(holdings.shape, backbone=Backbone.of(study, weights=file.weights))
    arch = file.model.arch if file.model else None
    own = Pretrained(None, "it has no model of its own")
    if file.checkpoint is not None and (encoder is not None or not holdings.columns):
        arch, checkpoint = _read_own_model(file, shape, holdings)
        own = Pretrained(checkpoint.state)

    def transfer() -> Tensor | None:
        drawn = draw_transfer(study, seed, file.transfer)
        return None if drawn is None else drawn.images

    def with_encoder(encoder: Encoder) -> Silo:
        return open_silo(file, study, arm, seed, encoder)[0]

    silo = Silo(
        name=file.name,
        data=train,
        shape=shape,
        arch=arch or study.arch_of(file.name),
        global_arch=study.global_arch(arm),
        own_model=lambda: own,
        seed=seed,
        compute=Compute(
            find_device(file.device), study.engine.precision, file.threads or available_cores()
        ),
        model_pool=_model_pool.get(study.model_dump_json(), partial(ModelPool, keeps_large=False)),
        least_of_class=max(LEAST_SILO_IMAGES, file.share.min_samples),
        test=test,
        transfer=transfer,
        columns=holdings.columns,
        with_encoder=with_encoder if holdings.columns else None,
        disclosure=Disclosure(file, study, arm, seed),
        # What a user's own start needs is not looked up here: that would import its module.
        uses_model=study.arms[arm].starts_from_models,
    )
    return silo, study


def _read_holdings(file: SiloFile, study: Study, encoder: Encoder | None) -> Holdings:
    """Return the silo's examples; they are read anew once a file of them has changed."""
    columns = study.columns
    said = tokenizer_hash(columns) if encoder is None else encoder.to_json()
    data, stamp = study.data, stamp_source(file.data)
    terms = (tuple(data.classes or ()), data.channels, data.image_size, str(columns), said)
    key = None if stamp is None else (stamp, file.data, tuple(file.labels.items()), *terms)

    def read() -> Holdings:
        read = read_holdings(
            file,
            classes=data.classes,
            channels=data.channels,
            image_size=data.image_size,
            columns=columns,
        )
        return read if encoder is None else read.encode(encoder)

    holdings = _holdings.get(key, read)
    note_fact("data", _data_hash.get(key, lambda: _hash_data(holdings)))
    return holdings


def _hash_data(holdings: Holdings) -> str:
    """Return a hash of the examples and labels, in the study's terms."""
    digest = hashlib.sha256()
    for images in filter(None, (holdings.train, holdings.test)):
        digest.update(f"{content_hash(images.images)} {images.labels.tolist()}\n".encode())
    return digest.hexdigest()


def _read_own_model(file: SiloFile, shape: Shape, held: Holdings) -> tuple[str, Checkpoint]:
    """Return the silo's own model; it is read anew once its file has changed."""
    if file.model is None or file.checkpoint is None:
        raise UserError("model: the silo has none")
    path, arch = file.checkpoint, file.model.arch
    labels, preprocessing = tuple(file.labels.items()), str(file.model.preprocessing)
    columns = None if held.encoder is None else held.encoder.to_json()
    return _own_model.get(
        (stamp_path(path), path, arch, preprocessing, labels, shape, held.classes, columns),
        lambda: read_own_model(file, shape, held.classes, held if columns else None),
    )
