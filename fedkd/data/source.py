"""A data source: labelled examples, with test examples of its own or without."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from fedkd.data.columns import Column
from fedkd.data.images import Images, Kind
from fedkd.errors import UserError

MAX_CLASSES = 10_000

MAX_VALUE = 1e18
"""Of a number that models take: float32 holds its square."""

MAX_BYTES = 16 << 30
"""Most bytes that the examples of one source may take in memory."""


@dataclass(frozen=True, eq=False)
class Source:
    """All labelled examples of one source, mostly images.

    Attributes:
        name: as the study gives it, such as ``digits`` or ``npz:mine.npz``.
        train: examples to be split into silos and the other sets of a study.
        test: the source's own test set, or None where it has none.
        classes: names of the classes; a label is a position in it.
        warnings: sentences on possible mistakes, such as files that are left out.
        columns: of a table whose columns are not standardized yet; empty for all else.
        silo_of: name of the silo of each training row, or None where no column says it.
    """

    name: str
    train: Images
    test: Images | None
    classes: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    silo_of: npt.NDArray[np.object_] | None = None

    @property
    def kind(self) -> Kind:
        """What an example is."""
        return self.train.kind

    @property
    def num_classes(self) -> int:
        """Number of classes, whether or not all of them occur."""
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        """Number of channels: 1 for greyscale, 3 for RGB.

        Raises:
            UserError: its examples are no images.
        """
        self._check_images()
        return self.train.shape[1]

    @property
    def image_size(self) -> int:
        """Height and width of all images, in pixels.

        Raises:
            UserError: the images are not square, or its examples are no images.
        """
        self._check_images()
        height, width = self.train.shape[2:]
        if height != width:
            raise UserError(
                f"data source {self.name!r}: its images are {height} pixels high and {width} wide, "
                "but must be square; set data.image_size to resize and crop them"
            )
        return height

    def in_order(self, classes: tuple[str, ...]) -> Source:
        """Return a table or texts with these classes, in their order.

        Raises:
            UserError: it has another class too.
        """
        if strange := set(self.classes) - set(classes):
            raise UserError(f"data.classes: {self.name} has the class {sorted(strange)[0]!r} too")
        order = torch.tensor([classes.index(name) for name in self.classes])
        train = replace(self.train, labels=order[self.train.labels])
        return replace(self, train=train, classes=classes)

    def _check_images(self) -> None:
        if self.kind != "image":
            raise UserError(
                f"data source {self.name!r} has no images, but examples of the kind {self.kind}"
            )
