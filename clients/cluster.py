"""A federation on the nodes of a Ray cluster: data and models come from the node of the study.

Ray's object store carries them, so that no node decodes or trains again what another one has, and
none needs the sources.
"""

from __future__ import annotations

import json
import logging
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from fedkd.config.study_file import parse_study
from fedkd.errors import UserError
from fedkd.federation.federation import Federation, Pretrained
from fedkd.federation.split import Split
from fedkd.util.cache import cache_root

_NAMESPACE = "fedkd"


class Holder:
    """Hands out data and models, in a process on the node that has them.

    Args:
        study: as its file holds it.
        seed: of the federation.
        split: a list with a reference to the data in Ray's object store.
        cache: root of that node's cache.
    """

    def __init__(self, study: str, seed: int, split: list[Any], cache: str) -> None:
        self._split = split
        self._federation = Federation(parse_study(study), seed, _get(split[0]), Path(cache))

    def split(self) -> list[Any]:
        """Return the reference to the data."""
        return self._split

    def pretrained(self, silo: str) -> Pretrained:
        """Return a silo's own model."""
        return self._federation.pretrained(silo)


class ClusterFederation(Federation):
    """A federation whose data and models are those of the :class:`Holder` of a name."""

    def __init__(self, study: str, seed: int, holder: str) -> None:
        import ray

        self._holder = ray.get_actor(holder, namespace=_NAMESPACE)
        split = _get(ray.get(self._holder.split.remote())[0])
        super().__init__(parse_study(study), seed, split, cache_root())

    def pretrained(self, silo: str) -> Pretrained:
        """Return a silo's own model, which is trained nowhere else."""
        import ray

        model: Any = ray.get(self._holder.pretrained.remote(silo))
        return Pretrained(model.state, model.problem)


def check_address(address: str) -> None:
    """Check that something answers at a cluster's address; Ray would wait for minutes.

    Raises:
        UserError: nothing does.
    """
    host, _, port = address.rpartition(":")
    if "/" in host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise UserError(
            f"RAY_ADDRESS: no Ray cluster answers at {address} ({error}); start one with "
            "ray start --head, or unset RAY_ADDRESS"
        ) from error


@lru_cache(maxsize=1)
def hold(address: str, federation: Federation) -> tuple[str, Any]:
    """Start a federation's holder on this node; return its name, and what keeps it alive.

    The last one lives on until :func:`leave`.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not ray.is_initialized():
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    with _arrays_for_tensors():
        data = ray.put(federation.split)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    name, study = f"fedkd-{uuid4().hex}", json.dumps(federation.study.to_dict())
    actor = ray.remote(Holder).options(
        name=name, namespace=_NAMESPACE, num_cpus=0, scheduling_strategy=here
    )
    cache = str(federation.cache.absolute())
    return name, (actor.remote(study, federation.seed, [data], cache), data)


def leave() -> None:
    """Leave the cluster, if it was joined; all holders end."""
    if hold.cache_info().currsize:
        import ray

        hold.cache_clear()
        ray.shutdown()


def _get(split: Any) -> Split:
    import ray

    with _arrays_for_tensors():
        found: Split = ray.get(split)
    return found


@contextmanager
def _arrays_for_tensors() -> Iterator[None]:
    """Let Ray move tensors as arrays, whose memory all processes of a node share."""
    from ray.util import deregister_serializer, register_serializer

    def to_tensor(array: Any) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns that nobody may write to them
            return torch.from_numpy(array)

    register_serializer(torch.Tensor, serializer=torch.Tensor.numpy, deserializer=to_tensor)
    try:
        yield
    finally:
        deregister_serializer(torch.Tensor)
