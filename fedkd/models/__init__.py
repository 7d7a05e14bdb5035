"""Architectures by name. Each is called with ``num_classes``, ``in_channels``, ``image_size``."""

from __future__ import annotations

import re

from fedkd.registry import Registry

ARCHITECTURES = Registry(
    "architecture",
    {
        "cnn": "fedkd.models.builtin:cnn",
        "filterbank": "fedkd.models.patch_features:filterbank",
        "lenet5": "fedkd.models.builtin:lenet5",
        "mlp": "fedkd.models.builtin:mlp",
        "resnet8": "fedkd.models.builtin:resnet8",
    },
)

FILTERBANK = "filterbank"
FILTERBANK_MAPS = 200
"""Filters of the architecture of that name."""

TORCHVISION = "torchvision:"
_USER_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def check_architecture(name: str) -> str:
    """Return ``name`` if it has the form of an architecture; raise ValueError otherwise.

    Whether a torchvision name or a user's function exists is known only when it is built.
    """
    if name.startswith(TORCHVISION) and name != TORCHVISION:
        return name
    if _USER_FUNCTION.fullmatch(name):
        return name
    try:
        return ARCHITECTURES.check(name)
    except ValueError as error:
        raise ValueError(f"{error}, torchvision:NAME and package.module:function") from None
