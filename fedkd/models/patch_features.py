"""A bank of fixed filters and one linear layer on what it sees.

Coates et al., "An Analysis of Single-Layer Networks in Unsupervised Feature Learning" (2011): wide
features that nobody trains, under a linear classifier, come near a trained network on small images.
For a federation they have a further use: the best linear layer follows from sums over all silos'
images (:mod:`fedkd.distillation.density.moments`), so that one exchange is enough to know it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedkd.registry import NUM_PATCH_FILTERS

POOLED_SIDE = 3
THRESHOLD = 0.25
NORMALISING = 0.01


def see(images: Tensor, kernels: Tensor, offset: Tensor) -> Tensor:
    """Return the pooled responses of K filters of p x p pixels, ``[N, 2 * K * 9]``.

    Each patch is brought to zero mean and unit variance; responses and their opposites are
    thresholded, averaged over 3 x 3 regions, and their square roots taken, which keep few strong
    responses from hiding many weak ones (Perronnin et al., "Improving the Fisher Kernel", 2010).

    Args:
        images: floats ``[N, C, H, W]`` in [0, 1].
        kernels: ``[K, C, p, p]``.
        offset: ``[K]``, added to what they give.
    """
    size = kernels[0].numel()
    mean = _window_mean(images, kernels.shape[-1])
    variance = _window_mean(images**2, kernels.shape[-1]) - mean**2
    variance = variance.clamp_min(0) * size / (size - 1)
    # Linear, so that no patch need be cut out: each is normalised after the convolution. In
    # place, as the maps are most of the work: memory, not arithmetic, is what they cost.
    response = functional.conv2d(images, kernels.contiguous())
    response -= mean * kernels.sum((1, 2, 3))[:, None, None]
    response /= (variance + NORMALISING).sqrt()
    response += offset[:, None, None]
    opposite = (-response).sub_(THRESHOLD).relu_()
    response.sub_(THRESHOLD).relu_()
    pooling = _pooling(response.shape[2], response.shape[3]).to(response)
    pooled = [maps.flatten(2) @ pooling for maps in (response, opposite)]
    features: Tensor = torch.cat(pooled, dim=1).flatten(1).sqrt_()
    return features


def _window_mean(images: Tensor, side: int) -> Tensor:
    return functional.avg_pool2d(images, side, stride=1).mean(1, keepdim=True)


def _pooling(height: int, width: int) -> Tensor:
    """Return the matrix ``[height * width, 9]`` of adaptive average pooling, the faster as such."""
    down, right = (
        functional.adaptive_avg_pool1d(torch.eye(side), POOLED_SIDE) for side in (height, width)
    )
    return torch.kron(down.contiguous(), right.contiguous())


def patch_side(image_size: int) -> int:
    """Return the side of the patches that filters look at: a quarter of the image's, but 3 to 6."""
    return max(3, min(6, image_size // 4))


class PatchFeatures(nn.Module):
    """Images ``[N, C, H, W]`` to features ``[N, 2 * K * 9]``; filters are buffers, never trained.

    Random directions until others are loaded into them.
    """

    kernels: Tensor
    offset: Tensor

    def __init__(self, maps: int, in_channels: int, side: int) -> None:
        super().__init__()
        drawn = torch.randn(maps, in_channels * side * side)
        kernels = functional.normalize(drawn).reshape(maps, in_channels, side, side)
        self.register_buffer("kernels", kernels)
        self.register_buffer("offset", torch.zeros(maps))

    def forward(self, images: Tensor) -> Tensor:
        """Return what the filters see."""
        return see(images, self.kernels, self.offset)


class PatchModel(nn.Sequential):
    """:class:`PatchFeatures`, and a linear layer: all that is trained."""

    def split_fixed(self) -> tuple[nn.Module, nn.Module]:
        """Return the filters, which nobody trains, and the layer; see ``fit``."""
        return self[0], self[1]


def patch_features(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """200 fixed filters, and a linear layer of 3,600 features: all that is trained."""
    return PatchModel(
        PatchFeatures(NUM_PATCH_FILTERS, in_channels, patch_side(image_size)),
        nn.Linear(2 * NUM_PATCH_FILTERS * POOLED_SIDE**2, num_classes),
    )
