"""Draws pictures of stained tissue, which every hospital stains and photographs in its own colours.

The class is the tissue's texture: many small cells, fibres, or few large cells. Colours, light and
blur are the hospital's and say nothing about the class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

CLASSES = ("healthy", "inflamed", "tumour")
TEXTURES = dict(zip(CLASSES, ("cells", "fibres", "lobes"), strict=True))
GENERIC = ("rings", "squares", "crosses", "stripes", "cells", "triangles")
"""Textures of the public pictures on which the hospitals' common network was trained."""
Color = tuple[int, int, int]


@dataclass(frozen=True)
class Hospital:
    """How a hospital's pictures look, and how many it has of each class.

    Attributes:
        tissue: colour of the background.
        cell: colour of what lies on it.
        blur: of the microscope, in shares of the picture's width.
        shares: of the classes among its pictures.
        size: share of its pictures in those of the largest hospital.
    """

    tissue: Color
    cell: Color
    blur: float
    shares: tuple[float, float, float]
    size: float


HOSPITALS = {
    "north": Hospital((236, 196, 214), (120, 60, 140), 0.006, (0.6, 0.3, 0.1), 1.0),
    "east": Hospital((200, 214, 236), (60, 70, 130), 0.012, (0.1, 0.6, 0.3), 0.8),
    "south": Hospital((240, 222, 180), (140, 80, 50), 0.006, (0.3, 0.1, 0.6), 0.7),
    "west": Hospital((206, 236, 206), (40, 110, 90), 0.015, (0.4, 0.3, 0.3), 0.5),
}

_SHAPES = {
    # number of pieces, radius as a share of the width, corners (0: round)
    "cells": (34, 0.035, 0),
    "lobes": (9, 0.11, 0),
    "rings": (9, 0.09, 0),
    "squares": (16, 0.07, 4),
    "triangles": (16, 0.08, 3),
    "crosses": (16, 0.08, 0),
    "fibres": (14, 0.22, 0),
    "stripes": (10, 0.5, 0),
}
_LINES = ("fibres", "stripes", "crosses")


def draw(texture: str, look: Hospital, pixels: int, random: np.random.Generator) -> Image.Image:
    """Draw a texture on tissue, in a hospital's colours."""
    side = 4 * pixels  # drawn larger and reduced, so that edges are smooth
    coarse = random.normal(0, 12, (8, 8, 1)) + np.array(look.tissue)
    ground = Image.fromarray(coarse.clip(0, 255).astype(np.uint8))
    picture = ground.resize((side, side), Image.Resampling.BICUBIC)
    canvas = ImageDraw.Draw(picture)
    count, size, _ = _SHAPES[texture]
    direction = random.uniform(0, 2 * math.pi)
    for _ in range(int(random.integers(count * 3 // 4, count * 5 // 4))):
        center = random.uniform(0, 1, 2) * side
        radius = random.uniform(0.8, 1.2) * size * side
        red, green, blue = (np.array(look.cell) + random.normal(0, 14, 3)).clip(0, 255)
        color = (int(red), int(green), int(blue))
        _draw_piece(canvas, texture, center, radius, color, direction + random.normal(0, 0.2))
    small = picture.filter(ImageFilter.GaussianBlur(look.blur * side)).resize((pixels, pixels))
    light = random.uniform(0.85, 1.1)
    noisy = np.asarray(small, dtype=np.float64) * light + random.normal(0, 8, (pixels, pixels, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _draw_piece(
    canvas: ImageDraw.ImageDraw,
    texture: str,
    center: NDArray[np.float64],
    radius: float,
    color: Color,
    turn: float,
) -> None:
    x, y = center
    if texture in _LINES:
        width = round(radius / {"fibres": 7, "stripes": 16, "crosses": 3}[texture])
        for angle in (turn, turn + math.pi / 2)[: 2 if texture == "crosses" else 1]:
            dx, dy = radius * math.cos(angle), radius * math.sin(angle)
            canvas.line((x - dx, y - dy, x + dx, y + dy), fill=color, width=width)
    elif texture == "rings":
        box = (x - radius, y - radius, x + radius, y + radius)
        canvas.ellipse(box, outline=color, width=max(1, round(radius / 3)))
    else:
        corners = _SHAPES[texture][2]
        angles = np.arange(corners or 40) * 2 * math.pi / (corners or 40)
        waves = 0.2 * np.cos(5 * angles) if texture == "lobes" else 0
        points = np.stack([np.cos(angles + turn), np.sin(angles + turn)], 1)
        points = points * (radius * (1 + waves) * np.ones(len(angles)))[:, None] + center
        canvas.polygon([(float(a), float(b)) for a, b in points], fill=color)


def write_hospital(
    folder: Path, look: Hospital, count: int, pixels: int, random: np.random.Generator
) -> None:
    """Write so many pictures in one folder for each class."""
    for name, share in zip(CLASSES, look.shares, strict=True):
        (folder / name).mkdir(parents=True)
        for index in range(max(2, round(share * count))):
            picture = draw(TEXTURES[name], look, pixels, random)
            picture.save(folder / name / f"{index:04d}.png")


def write_server(folder: Path, count: int, pixels: int, random: np.random.Generator) -> None:
    """Write the server's pictures: as many of every class and every hospital's colours."""
    for index in range(count):
        name = CLASSES[index % len(CLASSES)]
        look = list(HOSPITALS.values())[index // len(CLASSES) % len(HOSPITALS)]
        (folder / name).mkdir(parents=True, exist_ok=True)
        draw(TEXTURES[name], look, pixels, random).save(folder / name / f"{index:04d}.png")


def write_unlabelled(folder: Path, count: int, pixels: int, random: np.random.Generator) -> None:
    """Write pictures without labels, of all classes and colours, into one flat folder."""
    folder.mkdir(parents=True)
    looks = list(HOSPITALS.values())
    for index in range(count):
        texture = TEXTURES[CLASSES[int(random.integers(len(CLASSES)))]]
        look = looks[int(random.integers(len(looks)))]
        draw(texture, look, pixels, random).save(folder / f"{index:04d}.png")


def draw_public(
    count: int, pixels: int, random: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return pictures in any colours, uint8 ``[N, H, W, 3]``, and their textures ``[N]``."""
    labels = np.arange(count) % len(GENERIC)
    pictures = []
    for label in labels:
        tissue, cell = ((int(r), int(g), int(b)) for r, g, b in random.integers(0, 256, (2, 3)))
        look = Hospital(tissue, cell, float(random.uniform(0, 0.015)), (0, 0, 0), 1)
        pictures.append(np.asarray(draw(GENERIC[label], look, pixels, random)))
    return np.stack(pictures), labels
