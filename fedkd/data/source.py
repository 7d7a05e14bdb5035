"""A data source: labelled images, with test images of its own or without."""

from __future__ import annotations

from dataclasses import dataclass

from fedkd.data.images import Images
from fedkd.errors import UserError

MAX_CLASSES = 10_000

MAX_BYTES = 16 << 30
"""Most bytes that the images of one source may take in memory."""


@dataclass(frozen=True, eq=False)
class Source:
    """All labelled images of one source.

    Attributes:
        name: as the study gives it, such as ``digits`` or ``npz:mine.npz``.
        train: images to be split into silos and the other sets of a study.
        test: the source's own test set, or None where it has none.
        classes: names of the classes; a label is a position in it.
        warnings: sentences on possible mistakes, such as files that are left out.
    """

    name: str
    train: Images
    test: Images | None
    classes: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes, whether or not all of them occur."""
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        """Number of channels: 1 for greyscale, 3 for RGB."""
        return self.train.shape[1]

    @property
    def image_size(self) -> int:
        """Height and width of all images, in pixels.

        Raises:
            UserError: the images are not square.
        """
        height, width = self.train.shape[2:]
        if height != width:
            raise UserError(
                f"data source {self.name!r}: its images are {height} pixels high and {width} wide, "
                "but must be square; set data.image_size to resize and crop them"
            )
        return height
