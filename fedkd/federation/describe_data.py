"""A study's data in a few lines: shapes, classes, numbers by class, and the first examples."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fedkd.config import Study
from fedkd.config.data import Given
from fedkd.config.table import Table
from fedkd.config.text import Text
from fedkd.data.columns import Encoder
from fedkd.data.images import Images, count_values
from fedkd.data.texts import load_tokenizer
from fedkd.federation.federation import Federation
from fedkd.models.build import NOUNS

_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_SAMPLED = 1000
_COLUMNS = 100
_EXAMPLES, _CHARACTERS = 3, 80
_SHOWN = 12
"""Classes and silos beyond this number are counted."""


def describe_data(federation: Federation) -> Iterator[str]:
    """Yield lines on the data of one seed: each set, each silo, and what their examples hold."""
    study, split, shape = federation.study, federation.split, federation.shape
    sizes = " x ".join(map(str, shape.input_shape))
    yield f"{shape.num_classes} classes: {_some(list(split.classes))}; " + (
        f"images of {sizes} (channels, height, width)"
        if shape.kind == "image"
        else f"{NOUNS[shape.kind]} of {sizes} values each"
    )
    sets = {"test": split.test, "validation": split.validation, "transfer": split.transfer}
    for name, images in sets.items():
        if images is not None:
            yield f"{name}: {_count(images, split.classes)}"
    silos = list(federation.sizes)
    for name in silos[:_SHOWN]:
        yield f"{name}: {_count(federation.data_of(name), split.classes)}"
    if len(silos) > _SHOWN:
        yield f"and {len(silos) - _SHOWN} more silos"
    held = [split.test, *(federation.data_of(name) for name in silos)]
    filled = [images for images in held if len(images)]
    if split.encoder is not None:
        yield from _columns(split.encoder, study.data.table)
        yield from _first_rows(study)
    if isinstance(study.columns, Text) and filled:
        yield from _texts(study.columns, filled, split.classes)
    if filled and shape.kind == "image":
        yield f"pixels of 0 (black) to 255 (white): {_quantiles(_pixels(filled))}"


def _texts(text: Text, parts: list[Images], classes: tuple[str, ...]) -> Iterator[str]:
    """Yield the lengths of all texts, and the first ones as the model sees them."""
    tokenizer, lengths = load_tokenizer(text), torch.zeros(text.max_length + 1, dtype=torch.int64)
    for part in parts:
        held = (part.images != tokenizer.padding["pad_id"]).sum(1)
        lengths += torch.bincount(held, minlength=len(lengths))
    yield f"tokens of a text, at most {text.max_length}: {_quantiles(lengths)}"
    for row in range(min(_EXAMPLES, len(part))):
        ids, label = part.pick(slice(row, row + 1))[0], int(part.labels[row])
        yield f"  {classes[label]}: {tokenizer.decode(ids.tolist())[:_CHARACTERS]}"


def _first_rows(study: Study) -> list[str]:
    """Return the first rows of a table as its file has them."""
    from fedkd.data.frames import read_frame

    given = study.partition.silos.values() if isinstance(study.partition, Given) else ()
    rows = read_frame([*given, study.data.source][0], study.data.table).inputs.head(_EXAMPLES)
    return ["first rows:", *rows.to_string(max_cols=_SHOWN, max_colwidth=30).splitlines()]


def _columns(encoder: Encoder, table: Table | None) -> Iterator[str]:
    """Yield a line for each column of a table: what it holds, and what models get."""
    from_transfer = table is not None and table.statistics == "transfer"
    whose = "the transfer set" if from_transfer else "sums of the silos"
    yield f"columns, by {whose}: {len(encoder.columns)} become {len(encoder.names)}"
    rows = encoder.describe()
    widths = [max(len(row[index]) for row in rows) for index in range(2)]
    for name, holds, given in rows[:_COLUMNS]:
        yield f"  {name:<{widths[0]}}  {holds:<{widths[1]}}  {given}"
    if len(rows) > _COLUMNS:
        yield f"  and {len(rows) - _COLUMNS} more columns"


def _count(images: Images, classes: tuple[str, ...]) -> str:
    text = f"{len(images)} {NOUNS[images.kind]}"
    if not len(images) or int(images.labels.min()) < 0:
        return text if not len(images) else f"{text} without labels"
    counts = torch.bincount(images.labels, minlength=len(classes)).tolist()
    held = [f"{name} {count}" for name, count in zip(classes, counts, strict=True) if count]
    return f"{text}: {_some(held)}"


def _pixels(parts: list[Images]) -> torch.Tensor:
    """Return how often each value is among the pixels of some images of every part, ``[256]``."""
    counts = torch.zeros(256, dtype=torch.int64)
    each = max(1, _SAMPLED // len(parts))
    for images in parts:
        counts += count_values(images.pick(slice(None, None, max(1, len(images) // each))))
    return counts


def _quantiles(counts: torch.Tensor) -> str:
    """Return mean and quantiles of whole numbers from 0, given how often each occurs."""
    total, cumulative = int(counts.sum()), counts.cumsum(0)
    mean = float((counts * torch.arange(len(counts))).sum()) / total
    ranks = [max(1, round(quantile * total)) for quantile in _QUANTILES]
    values = torch.searchsorted(cumulative, torch.tensor(ranks)).tolist()
    pairs = [f"{100 * q:.0f} % {value}" for q, value in zip(_QUANTILES, values, strict=True)]
    return f"mean {mean:.1f}; quantiles {', '.join(pairs)}"


def _some(texts: list[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more
