"""Draws pictures of stained tissue, which every hospital stains and photographs in its own colours.

The class is the tissue's texture: many small cells, fibres, or few large lobes. Colours, light and
noise are the hospital's and say nothing about the class.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Color = tuple[int, int, int]
Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Texture:
    """A random field with one wavelength.

    Attributes:
        waves: number of wavelengths in a picture's width.
        spread: of the direction of waves, in radians; None for all directions alike.
    """

    waves: float
    spread: float | None = None


CLASSES = {
    "healthy": Texture(11),
    "inflamed": Texture(7, 0.3),
    "tumour": Texture(4),
}
GENERIC = (Texture(3), Texture(6), Texture(12), Texture(3, 0.3), Texture(6, 0.3), Texture(12, 0.3))
"""Textures of the public pictures on which the hospitals' common network is trained."""


@dataclass(frozen=True)
class Hospital:
    """How a hospital's pictures look, and how many it has of each class.

    Attributes:
        tissue: colour of the background.
        cell: colour of what lies on it.
        noise: standard deviation of the camera's noise, in grey levels.
        shares: of the classes among its pictures.
        size: share of its pictures in those of the largest hospital.
    """

    tissue: Color
    cell: Color
    noise: float
    shares: tuple[float, ...] = (1 / 3, 1 / 3, 1 / 3)
    size: float = 1.0


HOSPITALS = {
    "north": Hospital((236, 196, 214), (120, 60, 140), 8, (0.6, 0.3, 0.1)),
    "east": Hospital((200, 214, 236), (60, 70, 130), 20, (0.1, 0.6, 0.3), 0.8),
    "south": Hospital((240, 222, 180), (140, 80, 50), 12, (0.3, 0.1, 0.6), 0.7),
    "west": Hospital((206, 236, 206), (40, 110, 90), 16, (0.4, 0.3, 0.3), 0.5),
}


def draw(texture: Texture, look: Hospital, pixels: int, random: np.random.Generator) -> Picture:
    """Draw a texture in a hospital's colours, uint8 ``[pixels, pixels, 3]``."""
    frequencies = np.fft.fftfreq(pixels, 1 / pixels)
    down, across = np.meshgrid(frequencies, frequencies, indexing="ij")
    waves = texture.waves * random.uniform(0.85, 1.18)
    kept = np.exp(-(((np.hypot(down, across) - waves) / (0.25 * waves)) ** 2))
    if texture.spread is not None:
        turned = np.arctan2(down, across) - random.uniform(0, np.pi)
        kept *= np.exp(-((np.sin(turned) / texture.spread) ** 2))
    field = np.fft.ifft2(np.fft.fft2(random.normal(size=(pixels, pixels))) * kept).real
    share = 1 / (1 + np.exp(-3 * field / field.std() - random.normal(0, 0.5)))[..., None]
    mixed = (1 - share) * np.array(look.tissue) + share * np.array(look.cell)
    light = random.uniform(0.7, 1.1)
    noisy = mixed * light + random.normal(0, look.noise, mixed.shape)
    picture: Picture = noisy.clip(0, 255).astype(np.uint8)
    return picture


def write(
    folder: Path,
    drawn: Iterable[tuple[str, Hospital]],
    pixels: int,
    random: np.random.Generator,
    *,
    labelled: bool = True,
) -> None:
    """Write a picture for each class and hospital: into the class's folder, or all into one."""
    for index, (name, look) in enumerate(drawn):
        place = folder / name if labelled else folder
        place.mkdir(parents=True, exist_ok=True)
        picture = draw(CLASSES[name], look, pixels, random)
        Image.fromarray(picture).save(place / f"{index:04d}.png")


def of_hospital(look: Hospital, count: int) -> list[tuple[str, Hospital]]:
    """Return the classes of a hospital's pictures, at least two of each."""
    counts = [max(2, round(share * look.size * count)) for share in look.shares]
    return [(name, look) for name, n in zip(CLASSES, counts, strict=True) for _ in range(n)]


def of_all(count: int) -> list[tuple[str, Hospital]]:
    """Return as many pictures of every class and hospital."""
    names, looks = list(CLASSES), list(HOSPITALS.values())
    return [(names[i % 3], looks[i // 3 % len(looks)]) for i in range(count)]


def draw_public(
    count: int, pixels: int, random: np.random.Generator
) -> tuple[Picture, NDArray[np.int64]]:
    """Return pictures in any colours, uint8 ``[N, H, W, 3]``, and their textures ``[N]``."""
    labels = np.arange(count) % len(GENERIC)
    pictures = []
    for label in labels:
        tissue, cell = ((int(r), int(g), int(b)) for r, g, b in random.integers(0, 256, (2, 3)))
        look = Hospital(tissue, cell, float(random.uniform(0, 25)))
        pictures.append(draw(GENERIC[label], look, pixels, random))
    return np.stack(pictures), labels
