"""Which examples the user asks for, and how they are read as the teachers' models take them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass

from fedkd.config.table import Table
from fedkd.config.text import Text
from fedkd.data.alignment import align, unite_columns
from fedkd.data.cached import load_cached_source
from fedkd.data.columns import Encoder
from fedkd.data.source import Source
from fedkd.errors import UserError
from fedkd.models.card import ModelCard
from fedkd.registry import HUGGING_FACE, SOURCES, is_table, is_text
from fedkd.util.cache import cache_root

Cards = Mapping[str, ModelCard | None]
"""The teachers' files, and what each says of itself."""


@dataclass(frozen=True)
class Wanted:
    """Which examples the user asks for.

    Attributes:
        transfer: a data source.
        size: how many of its training examples to distil on; None for all.
        labelled: whether their labels may be used.
        validation: a fraction of the transfer source to set apart, another data source, or None.
        num_classes: of the models, where the user says so.
        in_channels: likewise.
        image_size: likewise, height and width in pixels.
        label: column of the classes in a table or in texts.
        column: of the texts.
    """

    transfer: str
    size: int | None = None
    labelled: bool = False
    validation: str | None = None
    num_classes: int | None = None
    in_channels: int | None = None
    image_size: int | None = None
    label: str | None = None
    column: str | None = None


@dataclass(frozen=True)
class Reader:
    """Reads data sources as models take their examples.

    Attributes:
        label: column of the classes in a table.
        size: height and width of images; None as they are.
        encoder: of the tables on which the teachers were trained; None for all else.
        text: where texts stand, and their tokenizer; None for all else.
        classes: that the teachers' files name, in their order; or empty.
    """

    label: str | None
    size: int | None = None
    encoder: Encoder | None = None
    text: Text | None = None
    classes: tuple[str, ...] = ()

    @classmethod
    def of(cls, wanted: Wanted, cards: Cards, arch: str, size: int | None) -> Reader:
        """Return the reader of the transfer source and of what is like it.

        A student of Hugging Face has the tokenizer of texts.

        Raises:
            UserError: the teachers' files do not say how a table's columns become inputs.
        """
        given = {key: v for key in ("label", "column") if (v := getattr(wanted, key))}
        known = [card for card in cards.values() if card is not None]
        classes = next((card.classes for card in known if card.classes), ())
        if is_table(wanted.transfer):
            return cls(wanted.label or None, encoder=_encoder(cards), classes=classes)
        if is_text(wanted.transfer):
            lengths = [card.shape.inputs[0] for card in known if card.shape.kind == "text"]
            folder = arch.removeprefix(HUGGING_FACE) if arch.startswith(HUGGING_FACE) else None
            own = {"tokenizer": folder, **({"max_length": lengths[0]} if lengths else {})}
            return cls(None, text=Text().model_copy(update={**own, **given}), classes=classes)
        if given:
            raise UserError(
                f"--{next(iter(given))}: {wanted.transfer} has no columns; leave it out"
            )
        return cls(None, size)

    def read(self, option: str, name: str, *, unlabelled: bool = False) -> Source:
        """Read a source, which ``option`` names.

        Raises:
            UserError: it cannot be read, or has not what the models take.
        """
        try:
            source = load_cached_source(
                name,
                image_size=self.size,
                cache=cache_root(),
                unlabelled=unlabelled,
                columns=self.text or self._table(name),
            )
            if self.encoder is not None and source.columns:
                wanted = self.encoder.columns
                unite_columns([("the models", wanted), (name, source.columns)])
                rows = self.encoder.encode(align(source.train, source.columns, wanted))
                source = dataclasses.replace(source, train=rows)
            return source.in_order(self.classes) if self.classes and source.classes else source
        except UserError as error:
            sentence = str(error).replace("data.image_size", "--image-size")
            sentence = sentence.replace("data.classes: ", "")
            sentence = re.sub(r"data\.(?:table|text)\.(label|column)\b", r"--\1", sentence)
            raise UserError(f"{option}: {sentence}") from error

    def _table(self, name: str) -> Table | None:
        """Return what is read of a table: the label, and the columns that the models take."""
        if self.encoder is None:
            return None
        names = [each.name for each in self.encoder.columns if each.categories is not None]
        taken = {self.label, *(each.name for each in self.encoder.columns)}
        prefix, _ = SOURCES.split(name)
        drop: list[str] = []
        if prefix is not None and prefix.path:
            from fedkd.data.frames import read_rows  # with pandas

            drop = [each for each in read_rows(name).columns if each not in taken]
        update = {"label": self.label, "drop": drop, "categorical": names}
        return Table().model_copy(update=update)


def _encoder(cards: Cards) -> Encoder:
    """Return how the columns of a table become the inputs of all teachers."""
    columns = ["" if card is None else card.columns for card in cards.values()]
    for name, text in zip(cards, columns, strict=True):
        if not text or text != columns[0]:
            raise UserError(
                f"--teachers: {name} does not say how columns become inputs, or otherwise than "
                f"{next(iter(cards))}; use final models of one study and seed, whose files say it"
            )
    return Encoder.from_json(columns[0])
