"""Texts of a file as token ids: CSV or JSON lines, and a tokenizer of a Hugging Face folder."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedkd.config.table import Table
from fedkd.config.text import Text
from fedkd.data.images import Images
from fedkd.data.source import Source
from fedkd.errors import UserError, one_line
from fedkd.util.requirements import install_command

_AT_ONCE = 4096
"""Texts whose tokens are Python objects at a time."""


def load_tokenizer(text: Text) -> Any:
    """Return the tokenizer of a study, which cuts and pads texts to ``max_length`` tokens.

    Raises:
        UserError: there is none, it cannot be read, or it does not pad.
    """
    if text.tokenizer is None:
        raise UserError("data.text.tokenizer: is missing; name a folder, or set model.arch: hf:")
    path = Path(text.tokenizer) / "tokenizer.json"
    return _load(path, text.max_length, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=4)
def _load(path: Path, max_length: int, _: int) -> Any:
    try:
        import tokenizers
    except ImportError:
        raise UserError(f"texts need the package tokenizers: {install_command('models')}") from None
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
        config = path.with_name("tokenizer_config.json").read_text(encoding="utf-8")
        pad = json.loads(config).get("pad_token")
    except Exception as error:  # of a library that reads a user's files
        elsewhere = "; a deployed silo names its own copy by model.weights in silo.yaml"
        raise UserError(
            f"data.text.tokenizer: {path.parent} cannot be read ({one_line(error)}); it must be a "
            "folder with tokenizer.json and tokenizer_config.json, as save_pretrained writes them"
            + ("" if path.parent.is_dir() else elsewhere)
        ) from error
    pad = pad.get("content") if isinstance(pad, dict) else pad
    pad_id = tokenizer.token_to_id(str(pad))
    if pad_id is None:
        raise UserError(
            f"data.text.tokenizer: {path.parent} names no token that fills up short texts; set "
            "pad_token in its tokenizer_config.json"
        )
    tokenizer.enable_truncation(max_length)
    tokenizer.enable_padding(length=max_length, pad_id=pad_id, pad_token=str(pad))
    return tokenizer


def tokenizer_hash(columns: Table | Text | None) -> str:
    """Return :func:`hash_tokenizer` of a study's tokenizer; empty where the study has no texts."""
    return hash_tokenizer(load_tokenizer(columns)) if isinstance(columns, Text) else ""


def hash_tokenizer(tokenizer: Any) -> str:
    """Return a hash of all that decides a text's token ids."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()


def read_texts(name: str, text: Text | None, *, unlabelled: bool = False) -> Source:
    """Read texts as a data source, token ids int64 ``[N, L]``.

    A file that ends in ``.jsonl`` or ``.json`` has an object a line. If ``unlabelled``, labels
    may be missing; all are then -1.

    Raises:
        UserError: the file or the tokenizer cannot be read, or a column does not fit.
    """
    from fedkd.data.frames import missing_column, read_labels, read_rows  # with pandas

    text = Text() if text is None else text
    tokenizer, rows = load_tokenizer(text), read_rows(name)
    for key, column in (("column", text.column), ("label", text.label)):
        if column not in rows and not (unlabelled and key == "label"):
            raise UserError(f"data.text.{key}: {missing_column(column, rows)}")
    labels, classes = np.full(len(rows), -1), tuple[str, ...]()
    if text.label in rows:
        labels, classes = read_labels(rows[text.label], "text")
    values = rows[text.column].tolist()
    if empty := sum(not isinstance(value, str) for value in values):
        raise UserError(
            f"data.text.column: column {text.column!r} has no text in {empty} of {len(values)} "
            "rows; leave these rows out"
        )
    ids, cut = np.empty((len(values), text.max_length), dtype=np.int64), 0
    for start in range(0, len(values), _AT_ONCE):
        encoded = tokenizer.encode_batch(values[start : start + _AT_ONCE])
        ids[start : start + len(encoded)] = [each.ids for each in encoded]
        cut += sum(bool(each.overflowing) for each in encoded)
    warning = f"{cut} of {len(values)} texts have more tokens than data.text.max_length and are cut"
    examples = Images(torch.from_numpy(ids), torch.from_numpy(labels))
    return Source(name, examples, None, classes, (warning,) if cut else ())
