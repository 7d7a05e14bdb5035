"""Random changes of images in training: torchvision's transforms, or a function of the user's own.

An augmentation is a function of uint8 images ``[B, C, H, W]`` that returns as many changed ones of
the same shape. All that it draws from PyTorch comes from the generator of the silo or student, so
that the same study gives the same images on every engine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from fedkd.errors import UserError
from fedkd.registry import AUGMENTATIONS
from fedkd.util.random_ops import DrawFrom

Augment = Callable[[Tensor], Tensor]
"""Maps uint8 images ``[B, C, H, W]`` to changed ones."""

_PADDING_FRACTION = 8
"""Crops are shifted by at most 1/8 of the side: 4 of 32 pixels, as in He et al. 1512.03385."""


def make_augmentation(name: str, generator: torch.Generator) -> Augment | None:
    """Return the augmentation of a name, which draws from ``generator``; None for ``none``.

    The function that is returned raises UserError where a user's own returns other than uint8
    images of the same shape.
    """
    if name == "none":
        return None
    function = AUGMENTATIONS.load(name)

    def augment(images: Tensor) -> Tensor:
        with AUGMENTATIONS.calling(name), DrawFrom(generator):
            changed = function(images)
        if AUGMENTATIONS.is_own(name):
            _check(name, changed, images)
        result: Tensor = changed
        return result

    return augment


def check_augmentation(name: str, channels: int, image_size: int) -> None:
    """Apply an augmentation once, to images of noise.

    Raises:
        UserError: it does not take such images, or returns something else.
    """
    augment = make_augmentation(name, torch.Generator().manual_seed(0))
    if augment is None:
        return
    if name in ("randaugment", "trivialaugment") and channels not in (1, 3):
        raise UserError(
            f"{name} changes colours and takes images of 1 or 3 channels, but these have "
            f"{channels}; use flip-crop or a function of your own"
        )
    generator = torch.Generator().manual_seed(0)
    size = (2, channels, image_size, image_size)
    augment(torch.randint(0, 256, size, generator=generator, dtype=torch.uint8))


def none(images: Tensor) -> Tensor:
    """Return the images as they are."""
    return images


def flip_crop(images: Tensor) -> Tensor:
    """Flip each image left to right with probability 1/2, and crop it at random after padding."""
    return _each(_flip_crop(*images.shape[2:]), images)


def randaugment(images: Tensor) -> Tensor:
    """Apply two random operations of RandAugment (Cubuk et al. 1909.13719) to each image."""
    from torchvision.transforms import v2

    return _each(v2.RandAugment(), images)


def trivialaugment(images: Tensor) -> Tensor:
    """Apply one random operation of TrivialAugment (Müller & Hutter 2103.10158) to each image."""
    from torchvision.transforms import v2

    return _each(v2.TrivialAugmentWide(), images)


@lru_cache(maxsize=16)
def _flip_crop(height: int, width: int) -> Augment:
    from torchvision.transforms import v2

    padding = [width // _PADDING_FRACTION, height // _PADDING_FRACTION]
    transforms = [v2.RandomHorizontalFlip(), v2.RandomCrop((height, width), padding=padding)]
    flip_and_crop: Augment = v2.Compose(transforms)
    return flip_and_crop


def _each(transform: Augment, images: Tensor) -> Tensor:
    """Apply a transform to each image: to a batch it would draw only once."""
    return torch.stack([transform(image) for image in images])


def _check(name: str, changed: object, images: Tensor) -> None:
    expected = f"uint8 images {list(images.shape)}"
    if not isinstance(changed, Tensor):
        raise UserError(f"augmentation {name} returned {type(changed).__name__}, not {expected}")
    if changed.dtype != torch.uint8 or changed.shape != images.shape:
        raise UserError(
            f"augmentation {name} returned {changed.dtype} {list(changed.shape)}, not {expected}"
        )
