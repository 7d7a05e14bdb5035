"""Data: where images come from, how they are cut, how silos share them."""

from __future__ import annotations

from fedkd.registry import Registry

TORCHVISION_SETS = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "qmnist": "QMNIST",
    "usps": "USPS",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "svhn": "SVHN",
    "stl10": "STL10",
}
"""Study names of torchvision's classification sets, to their class names in torchvision."""

NOISE = "noise"
STUDENT_SILO = "student-silo"
"""Transfer sets that are no data source: pixels at random, and the student's private images."""

NO_SOURCE = "none"
"""The source of a server that owns no images: for studies of silos in the field."""

PREFIXES = ("folder:", "npz:", "hf:")

PARTITIONS = Registry(
    "partition scheme",
    {
        "iid": "fedkd.data.partition:iid",
        "quantity": "fedkd.data.partition:quantity",
        "label-dirichlet": "fedkd.data.partition:label_dirichlet",
        "label-shards": "fedkd.data.partition:label_shards",
        "label-dominant": "fedkd.data.partition:label_dominant",
    },
)

_SOURCES = Registry("data source", dict.fromkeys(("digits", *TORCHVISION_SETS), ""))


def check_study_source(name: str) -> str:
    """Return ``name`` if a study's ``data.source`` may be it; raise ValueError otherwise."""
    return name if name == NO_SOURCE else check_source(name)


def check_source(name: str) -> str:
    """Return ``name`` if it has the form of a data source; raise ValueError otherwise."""
    for prefix in PREFIXES:
        if name.startswith(prefix):
            if name == prefix:
                raise ValueError(f"{prefix!r} must be followed by what to read")
            return name
    try:
        return _SOURCES.check(name)
    except ValueError as error:
        raise ValueError(f"{error}, folder:PATH, npz:PATH and hf:OWNER/NAME") from None
