"""A deployed silo: its images and model are on its own host, as its own file says."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from torch import Tensor

from clients.disclosure import Disclosure
from clients.guard import UnsharedError
from clients.silo import Silo
from fedkd.config import Study
from fedkd.config.own import names_at_silo
from fedkd.config.study_file import parse_study
from fedkd.deploy.holdings import read_holdings, read_own_model
from fedkd.deploy.silo_file import SiloFile, load_silo_file
from fedkd.distillation.density.estimators import LEAST_SILO_IMAGES
from fedkd.errors import NotAllowedError, UserError
from fedkd.federation.deployed_data import draw_transfer
from fedkd.federation.federation import Pretrained
from fedkd.messages import keys
from fedkd.training.compute import Compute
from fedkd.user_code import check_allowed

LONGEST_REASON = 500


def is_deployed(context: Context) -> bool:
    """Whether the node has a silo of its own."""
    return keys.NODE_SILO in context.node_config


def deployed_silo(context: Context) -> tuple[Silo, Study]:
    """Open the node's own silo for a run.

    Raises:
        UnsharedError: the silo takes no part in such a run.
        UserError: its file, images or model are not valid.
    """
    config = context.run_config
    try:
        study = parse_study(str(config[keys.CONFIG_STUDY]))
    except NotAllowedError:
        raise
    except UserError as error:  # it quotes the study alone, which is the server's
        raise UnsharedError(str(error)[:LONGEST_REASON]) from error
    file = load_silo_file(Path(str(context.node_config[keys.NODE_SILO])))
    return open_silo(file, study, str(config[keys.CONFIG_ARM]), int(str(config[keys.CONFIG_SEED])))


def open_silo(file: SiloFile, study: Study, arm: str, seed: int) -> tuple[Silo, Study]:
    """Read what the file names, in the study's order and shape; see :func:`deployed_silo`."""
    if not study.is_deployed:
        raise UnsharedError("it is a deployed silo, but the study's silos are simulated")
    if file.name not in study.silo_names:
        raise UnsharedError(f"its name, {file.name}, is not in the study's partition.names")
    for _, registry, name in names_at_silo(study, file.name):
        check_allowed(registry.kind, name)
    data = study.data
    holdings = read_holdings(
        file, classes=data.classes, channels=data.channels, image_size=data.image_size
    )
    if len(holdings.train) < file.share.min_samples:
        raise UnsharedError("it has fewer images than share.min_samples, and takes no part")
    arch = file.model.arch if file.model else None
    own = Pretrained(None, "it has no model of its own")
    if file.model is not None:
        arch, checkpoint = read_own_model(file, holdings.shape, holdings.classes)
        own = Pretrained(checkpoint.state)

    def transfer() -> Tensor | None:
        drawn = draw_transfer(study, seed, file.transfer)
        return None if drawn is None else drawn.images

    silo = Silo(
        name=file.name,
        data=holdings.train,
        shape=holdings.shape,
        arch=arch or study.arch_of(file.name),
        global_arch=study.global_arch(arm),
        own_model=lambda: own,
        seed=seed,
        compute=Compute(file.device, study.engine.precision),
        least_of_class=max(LEAST_SILO_IMAGES, file.share.min_samples),
        test=holdings.test,
        transfer=transfer,
        disclosure=Disclosure(file, study, arm, seed),
        # What a user's own start needs is not looked up here: that would import its module.
        uses_model=study.arms[arm].starts_from_models,
    )
    return silo, study
