"""Partitions: how labelled examples are divided among silos.

Every built-in scheme takes the labels, its section of the study and a seed, and returns one array
of indices for each silo. Schemes that draw by class use the partitioner of flwr-datasets if it has
one, on an in-memory table of the labels that is shuffled first, so that the seed decides which
examples a silo gets. Other schemes do not import flwr-datasets, which takes over a second.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from fedkd.config import Iid, LabelDirichlet, LabelDominant, LabelShards, OwnPartition, Quantity
from fedkd.data.own import call_partition
from fedkd.errors import UserError
from fedkd.registry import PARTITIONS
from fedkd.util.seeding import derive_seed, numpy_generator

Scheme = Iid | Quantity | LabelDirichlet | LabelShards | LabelDominant | OwnPartition
Indices = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int64]

_DIRICHLET_SEEDS = 200
"""Maximum number of seeds tried; flwr-datasets draws eleven times from each."""

_SHARD_SEEDS = 50


def partition(labels: Labels, spec: Scheme, seed: int) -> list[Indices]:
    """Divide examples with labels ``[N]`` among silos by the scheme of a study.

    Returns:
        The examples of each silo: indices into ``labels``, in an order of the seed's. They are
        disjoint and at least ``spec.min_size`` in each silo. A built-in scheme uses all examples.

    Raises:
        UserError: there are too few examples, the scheme is not possible, or a function of the
            user's own failed or did not return a partition.
    """
    needed = spec.silos * spec.min_size
    if spec.silos > len(labels):
        raise UserError(
            f"partition.silos: asks for {spec.silos} silos, but only {len(labels)} examples are "
            "left for them; lower it"
        )
    if needed > len(labels):
        raise UserError(
            f"partition.min_size: {spec.silos} silos of at least {spec.min_size} examples need "
            f"{needed}, but only {len(labels)} are left for them; lower partition.min_size or "
            "partition.silos"
        )
    if isinstance(spec, OwnPartition):
        generator = numpy_generator(seed, "own-partition")
        parts = call_partition(spec, labels, generator)
    else:
        parts = PARTITIONS.call(spec.scheme, labels, spec, seed)
        if not np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels))):
            raise RuntimeError(f"partition scheme {spec.scheme} does not use every example once")
    sizes = [len(part) for part in parts]
    if min(sizes) < spec.min_size:
        raise UserError(
            f"partition.min_size: asks for {spec.min_size} examples in every silo, but scheme "
            f"{spec.scheme} gives silo-{int(np.argmin(sizes))} only {min(sizes)}; lower "
            f"{_keys_to_lower(spec)}"
        )
    return parts


def iid(labels: Labels, spec: Iid, seed: int) -> list[Indices]:
    """Divide examples at random into silos whose sizes differ by at most one example."""
    return _shuffle(np.array_split(_order(labels, seed), spec.silos), seed)


def quantity(labels: Labels, spec: Quantity, seed: int) -> list[Indices]:
    """Divide examples at random into silos whose sizes are drawn from a Dirichlet distribution.

    Every silo gets ``min_size`` examples; the rest is divided by one draw from a symmetric
    Dirichlet distribution: the smaller ``alpha``, the more unequal.
    """
    free = len(labels) - spec.silos * spec.min_size
    shares = numpy_generator(seed, "sizes").dirichlet(np.full(spec.silos, spec.alpha)) * free
    sizes = np.floor(shares).astype(np.int64)
    # The examples left over by rounding down go to the silos that lost most by it.
    neediest = np.argsort(sizes - shares, kind="stable")
    sizes[neediest[: free - sizes.sum()]] += 1
    ends = np.cumsum(sizes + spec.min_size)
    return _shuffle(np.split(_order(labels, seed), ends[:-1]), seed)


def label_dirichlet(labels: Labels, spec: LabelDirichlet, seed: int) -> list[Indices]:
    """Divide each class by its own draw from a Dirichlet distribution.

    After Yurochkin et al., Bayesian Nonparametric Federated Learning of Neural Networks (2019). The
    smaller ``alpha``, the fewer classes in a silo. Draws are repeated until every silo has
    ``min_size`` examples.

    Raises:
        UserError: no draw gave every silo ``min_size`` examples.
    """
    from flwr_datasets.partitioner import DirichletPartitioner

    # Fewer for many silos, so that an impossible partition is refused within seconds.
    for attempt in range(max(10, min(_DIRICHLET_SEEDS, 10_000 // spec.silos))):
        partitioner = DirichletPartitioner(
            num_partitions=spec.silos,
            partition_by="label",
            alpha=float(spec.alpha),
            min_partition_size=spec.min_size,
            self_balancing=False,
            shuffle=False,
            seed=derive_seed(seed, "dirichlet", round_number=attempt),
        )
        try:
            return _share(partitioner, labels, seed)
        except ValueError:  # no draw had such sizes
            continue
    raise UserError(
        f"partition.alpha: at {spec.alpha:g}, no draw gave each of {spec.silos} silos "
        f"(partition.silos) at least {spec.min_size} of {len(labels)} examples "
        "(partition.min_size); raise alpha, or lower silos or min_size"
    )


def label_shards(labels: Labels, spec: LabelShards, seed: int) -> list[Indices]:
    """Give every silo exactly ``classes_per_silo`` classes, such that every class is used.

    After Li et al., Federated Learning on Non-IID Data Silos (2021): a class, if it occurs, is
    divided evenly among the silos that hold it. First classes are assigned in turn, which covers
    all classes if there are at least as many silos; with fewer silos all classes are assigned in
    turn.

    Raises:
        UserError: there are fewer classes than ``classes_per_silo``, too few silos for all classes,
            or no assignment gives every silo ``min_size`` examples.
    """
    from flwr_datasets.partitioner import PathologicalPartitioner

    present, ranks = np.unique(labels, return_inverse=True)
    _check_shards(spec, len(present))
    for attempt in range(_SHARD_SEEDS):
        attempt_seed = derive_seed(seed, "shards", round_number=attempt)
        # Otherwise the first silo would hold the first class for every seed.
        renamed = numpy_generator(attempt_seed, "classes").permutation(len(present))[ranks]
        if spec.silos < len(present):
            parts = _assign_in_turn(renamed, spec, seed)
        else:
            partitioner = PathologicalPartitioner(
                num_partitions=spec.silos,
                partition_by="label",
                num_classes_per_partition=spec.classes_per_silo,
                class_assignment_mode="first-deterministic",
                shuffle=False,
                seed=attempt_seed,
            )
            try:
                parts = _share(partitioner, renamed, seed)
            except ValueError:  # more silos hold a class than it has examples
                continue
        sizes = [(len(part), len(np.unique(labels[part]))) for part in parts]
        if all(n >= spec.min_size and k == spec.classes_per_silo for n, k in sizes):
            return parts
    raise UserError(
        f"partition.classes_per_silo: no assignment gave each of {spec.silos} silos "
        f"(partition.silos) {spec.classes_per_silo} classes and at least {spec.min_size} of "
        f"{len(labels)} examples (partition.min_size); lower classes_per_silo, silos or min_size"
    )


def label_dominant(labels: Labels, spec: LabelDominant, seed: int) -> list[Indices]:
    """Give a share of each class to one silo, and divide the rest evenly among all silos.

    Classes that occur are assigned to silos in turn: with fewer silos than classes, a silo
    dominates several; with more, some dominate none. A share near 0 is as ``iid``; at 1 no class is
    in two silos.
    """
    generator = numpy_generator(seed, "dominant")
    arrangement = generator.permutation(spec.silos)
    owned: list[list[Indices]] = [[] for _ in range(spec.silos)]
    rest = []
    for rank, label in enumerate(np.unique(labels)):
        members = generator.permutation(np.flatnonzero(labels == label))
        cut = round(spec.share * len(members))
        owned[arrangement[rank % spec.silos]].append(members[:cut])
        rest.append(members[cut:])
    # Going on from class to class keeps the total of the even shares even.
    others = np.concatenate(rest)
    parts = [
        np.concatenate([*owned[silo], others[silo :: spec.silos]]) for silo in range(spec.silos)
    ]
    return _shuffle(parts, seed)


def _share(partitioner: Any, labels: Labels, seed: int) -> list[Indices]:
    """Apply a partitioner of flwr-datasets to examples in an order of the seed's."""
    from datasets import Dataset

    order = _order(labels, seed)
    table = Dataset.from_dict({"label": labels[order], "index": order})
    # In any other format a column is read value by value, which is a hundred times slower.
    partitioner.dataset = table.with_format("arrow")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each repeated draw warns
        parts = [
            np.array(partitioner.load_partition(silo)["index"], dtype=np.int64)
            for silo in range(partitioner.num_partitions)
        ]
    return _shuffle(parts, seed)


def _order(labels: Labels, seed: int) -> Indices:
    return numpy_generator(seed, "order").permutation(len(labels))


def _shuffle(parts: list[Indices], seed: int) -> list[Indices]:
    generator = numpy_generator(seed, "order-in-silo")
    return [generator.permutation(part) for part in parts]


def _check_shards(spec: LabelShards, num_classes: int) -> None:
    if spec.classes_per_silo > num_classes:
        raise UserError(
            f"partition.classes_per_silo: asks for {spec.classes_per_silo} classes in each silo, "
            f"but there are only {num_classes}; lower it"
        )
    if (covered := spec.silos * spec.classes_per_silo) < num_classes:
        raise UserError(
            f"partition.classes_per_silo: {spec.silos} silos of {spec.classes_per_silo} classes "
            f"hold at most {covered} of {num_classes} classes; raise it or partition.silos"
        )


def _assign_in_turn(labels: Labels, spec: LabelShards, seed: int) -> list[Indices]:
    """Assign classes to silos in turn; flwr-datasets would leave out some of them."""
    num_classes, held = int(labels.max()) + 1, spec.classes_per_silo
    classes_of = [
        {(silo * held + turn) % num_classes for turn in range(held)} for silo in range(spec.silos)
    ]
    order = _order(labels, seed)
    shares: list[list[Indices]] = [[] for _ in range(spec.silos)]
    for label in range(num_classes):
        holders = [silo for silo in range(spec.silos) if label in classes_of[silo]]
        members = order[labels[order] == label]
        for silo, share in zip(holders, np.array_split(members, len(holders)), strict=True):
            shares[silo].append(share)
    return _shuffle([np.concatenate(share) for share in shares], seed)


def _keys_to_lower(spec: Any) -> str:
    keys = ["partition.min_size", "partition.silos"]
    if spec.scheme == "label-dominant":
        keys.insert(1, "partition.share")
    return f"{', '.join(keys[:-1])} or {keys[-1]}"
