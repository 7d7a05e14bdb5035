"""The silo of a simulated node: a part of a federation that is loaded once for all of them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from flwr.app import Context

from clients.cluster import ClusterFederation
from clients.silo import Silo
from fedkd.config import Study
from fedkd.config.study_file import parse_study
from fedkd.federation.federation import Federation
from fedkd.messages import keys
from fedkd.util.cache import cache_root


@lru_cache(maxsize=2)
def _federation(study: str, seed: int, cache: str, holder: str) -> Federation:
    if holder:
        return ClusterFederation(study, seed, holder)
    folder = Path(cache) if cache else cache_root()
    return Federation.load(parse_study(study, origin="run config: study"), seed, folder)


def simulated_silo(context: Context) -> tuple[Silo, Study]:
    """Find the silo of a simulated node by its partition id.

    Raises:
        ValueError: the node has no silo in this study.
    """
    config = context.run_config
    if parse_study(str(config[keys.CONFIG_STUDY])).is_deployed:
        raise ValueError("the study's silos are deployed, but this node has no silo.yaml")
    federation = _federation(
        str(config[keys.CONFIG_STUDY]),
        int(str(config[keys.CONFIG_SEED])),
        str(config[keys.CONFIG_CACHE_DIR]),
        str(config.get(keys.CONFIG_HOLDER, "")),
    )
    names = federation.study.silo_names
    partition = int(str(context.node_config["partition-id"]))
    if partition >= len(names):
        raise ValueError(f"node {partition} has no silo: the study has {len(names)}")
    return Silo.of(federation, names[partition], str(config[keys.CONFIG_ARM])), federation.study
