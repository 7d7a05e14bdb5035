"""Texts: files, tokenizers, networks of Hugging Face, refusals, and whole studies."""

from __future__ import annotations

import json
import operator
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import fedkd
from fedkd.config.study_file import load_study, resolve_study
from fedkd.config.text import Text
from fedkd.data.cached import load_cached_source
from fedkd.data.sources import load_source
from fedkd.data.texts import hash_tokenizer, load_tokenizer
from fedkd.errors import UserError
from fedkd.federation.describe_data import describe_data
from fedkd.federation.federation import Federation
from fedkd.federation.split import load_split
from fedkd.models import fixed
from fedkd.models.backbone import Backbone, Trained
from fedkd.models.build import Shape, build_model
from fedkd.models.partial import HeadModel
from fedkd.models.pretrained import hash_weights
from fedkd.models.state import State, copy_state
from fedkd.training.compute import Compute
from fedkd.training.evaluate import predict
from fedkd.util.yaml_loader import dump_yaml

LENGTH = 12


@pytest.fixture(scope="module")
def encoder(text_folder: Path) -> Path:
    return text_folder / "minilm"


@pytest.fixture(scope="module")
def path(text_folder: Path) -> Path:
    return text_folder / "sentences.csv"


def write_tokenizer(source: Path, folder: Path, **config: Any) -> Path:
    """Write the tokenizer of a folder into another; return its file."""
    folder.mkdir(exist_ok=True)
    shutil.copy(source / "tokenizer.json", folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]", **config}))
    return folder / "tokenizer.json"


def make_study(path: Path, encoder: Path, **changes: Any) -> dict[str, Any]:
    study: dict[str, Any] = {
        "name": "reviews",
        "data": {
            "source": f"text:{path}",
            "text": {"max_length": LENGTH},
            "transfer": {"size": 40},
        },
        "partition": {"scheme": "iid", "silos": 2},
        "model": {"arch": f"hf:{encoder}", "train": "head"},
        "pretraining": {"epochs": 2},
        "rounds": {"max": 1, "stop": "budget"},
        "targets": [0.99],
        "arms": {"fedavg": {"start": "random"}},
        "seeds": [0],
    }
    return {**study, **changes}


def familiarity(**consolidation: Any) -> dict[str, Any]:
    settings = {
        "student": "fresh",
        "epochs": 2,
        "weighting": "familiarity",
        "familiarity": {"basis": "backbone", "density": "pooled"},
    }
    return {"start": "consolidated", "consolidation": {**settings, **consolidation}}


def shape_of(arch: str, trained: Trained) -> Shape:
    found = Backbone(arch, "", hash_weights(arch, None), None, trained)
    return replace(Shape.of(2, "text", (LENGTH,)), backbone=found)


def size_of(state: State) -> int:
    return sum(tensor.nbytes for tensor in state.values())


# Files and tokenizers.


def test_csv_and_json_lines_give_the_same_tokens(path: Path, encoder: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(path)[:6]
    frame.loc[0, "text"] = "NA"  # a text, not a missing value
    frame.loc[1, "text"] = "the film was very great " * 3
    frame.to_csv(tmp_path / "some.csv", index=False)
    frame.to_json(tmp_path / "some.jsonl", orient="records", lines=True)
    text = Text(tokenizer=str(encoder), max_length=LENGTH)
    one, other = (
        load_source(f"text:{tmp_path / name}", columns=text) for name in ("some.csv", "some.jsonl")
    )
    assert one.kind == "text"
    assert one.train.digest == other.train.digest
    assert one.classes == other.classes == ("bad", "good")
    assert one.train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    ids = one.train.images
    assert ids[0].tolist() == [1, 3, 2] + [0] * 9
    assert int((ids[1] == 0).sum()) == 0
    (warning,) = one.warnings
    assert warning == "1 of 6 texts have more tokens than data.text.max_length and are cut"
    frame[["text"]].to_csv(tmp_path / "bare.csv", index=False)
    bare = load_source(f"text:{tmp_path / 'bare.csv'}", columns=text, unlabelled=True)
    assert torch.equal(bare.train.images, ids)
    assert set(bare.train.labels.tolist()) == {-1}


def test_the_cache_holds_tokens_by_the_content_of_the_tokenizer(
    path: Path, encoder: Path, tmp_path: Path
) -> None:
    def load(folder: Path) -> Tensor:
        columns = Text(tokenizer=str(folder), max_length=LENGTH)
        name, cache = f"text:{path}", tmp_path / "cache"
        source = load_cached_source(name, image_size=None, cache=cache, columns=columns)
        return source.train.images

    for name in ("one", "same", "other"):
        file = write_tokenizer(encoder, tmp_path / name)
    file.write_text(file.read_text().replace('"film"', '"movie"'))
    one, same, other = (load(tmp_path / name) for name in ("one", "same", "other"))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert len(list((tmp_path / "cache" / "sources").iterdir())) == 2
    hashes = {
        hash_tokenizer(load_tokenizer(Text(tokenizer=str(tmp_path / name))))
        for name in ("one", "same")
    }
    assert len(hashes) == 1


def test_the_tokenizer_is_the_models_unless_the_study_names_one(
    path: Path, encoder: Path, tmp_path: Path
) -> None:
    study = make_study(path, encoder)
    assert resolve_study(study).columns == Text(tokenizer=str(encoder), max_length=LENGTH)
    (tmp_path / "words").mkdir()
    study["data"]["text"] = {"tokenizer": "words"}
    (tmp_path / "study.yaml").write_text(dump_yaml(study))
    text = load_study(tmp_path / "study.yaml").data.text
    assert text is not None
    assert text.tokenizer == str(tmp_path / "words")


# Networks.


def test_padding_changes_no_features(encoder: Path, path: Path) -> None:
    arch = f"hf:{encoder}"
    model = build_model(arch, shape_of(arch, Trained("head")), seed=0).eval()
    assert isinstance(model, HeadModel)
    text = Text(tokenizer=str(encoder), max_length=LENGTH)
    ids = load_source(f"text:{path}", columns=text).train.images[:20]
    rest, features = (
        model.split_fixed()[1],
        model.split_fixed()[0].features(ids, device="cpu", precision="fp32"),
    )
    alone = [model(row[row != 0][None])[0] for row in ids]  # without any padding
    together = model(ids)
    assert torch.allclose(torch.stack(alone), together, atol=1e-5)
    assert torch.equal(rest(features), predict(model, ids, compute=Compute()))
    network: Any = model.split_fixed()[0].network
    hidden = network.network(input_ids=ids[:1, :5], attention_mask=ids[:1, :5] != 0)
    length = int((ids[0, :5] != 0).sum())
    mean = hidden.last_hidden_state[0, :length].mean(0)
    assert torch.allclose(network(ids[:1, :5])[0], mean, atol=1e-6)


def test_a_network_is_the_same_in_any_folder(encoder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "elsewhere"
    shutil.copytree(encoder, copied)

    def hashes(folder: Path) -> tuple[str, str]:
        hash_weights.__globals__["_hash_once"].cache_clear()
        backbone = shape_of(f"hf:{folder}", Trained("head")).backbone
        assert backbone is not None
        return backbone.fixed_hash, backbone.features_hash

    expected = hashes(encoder)
    assert hashes(copied) == expected
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    assert all(map(operator.ne, hashes(copied), expected))


def test_text_classifiers_and_adapters(encoder: Path) -> None:
    arch = f"hf:{encoder / 'classifier'}"
    whole = build_model(arch, shape_of(arch, Trained()), seed=0)
    assert whole(torch.ones(3, LENGTH, dtype=torch.int64)).shape == (3, 2)
    adapted = build_model(arch, shape_of(arch, Trained("lora", 2)), seed=0)
    assert 0 < size_of(copy_state(adapted)) < 0.4 * size_of(copy_state(whole))
    hash_weights.__globals__["_hash_once"].cache_clear()
    name = f"hf:{encoder}"
    first = hash_weights(name, None)
    hash_weights.__globals__["_hash_once"].cache_clear()
    torch.manual_seed(1)
    assert hash_weights(name, None) == first  # though the encoder has no head of its own


# Studies.


def test_texts_are_encoded_once_in_a_whole_study(
    path: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDKD_CACHE_DIR", str(tmp_path / "cache"))
    encoded: list[int] = []
    compute = fixed.FixedPart.compute

    def count(self: fixed.FixedPart, images: Tensor, **options: Any) -> Tensor:
        encoded.append(len(images))
        return compute(self, images, **options)

    monkeypatch.setattr(fixed.FixedPart, "compute", count)
    arms = {
        "fedavg": {"start": "random"},
        "fedkd": familiarity(),
        "control-lda": familiarity(student="lda-head", teachers="densities", epochs=0),
    }
    study = make_study(path, encoder, arms=arms)
    first, again = (fedkd.compare(study, out=tmp_path / name, fresh=True) for name in "ab")
    assert not first.summary["failures"]
    assert sum(encoded) == 260  # each text once, in both studies
    curves = [
        [[point["accuracy"] for point in run["curve"]] for run in each.summary["runs"]]
        for each in (first, again)
    ]
    assert curves[0] == curves[1]
    lines = list(describe_data(Federation.load(resolve_study(study), 0, tmp_path / "cache")))
    assert lines[0] == "2 classes: bad, good; texts of 12 values each"
    tokens = next(index for index, line in enumerate(lines) if line.startswith("tokens of a text"))
    assert "at most 12: mean " in lines[tokens]
    assert lines[tokens + 1].split(": ")[0].strip() in ("bad", "good")
    assert "film" in "".join(lines[tokens + 1 :])


def test_adapters_are_exchanged_and_silos_have_files_of_their_own(
    path: Path, encoder: Path, tmp_path: Path
) -> None:
    whole = pd.read_csv(path)
    for name, rows in (
        ("north", slice(0, 60)),
        ("south", slice(60, 120)),
        ("rest", slice(120, 260)),
    ):
        whole[rows].to_csv(tmp_path / f"{name}.csv", index=False)
    study = make_study(
        tmp_path / "rest.csv",
        encoder,
        partition={
            "scheme": "given",
            "silos": {name: f"text:{tmp_path / name}.csv" for name in ("north", "south")},
        },
        model={"arch": f"hf:{encoder}", "train": {"lora": {"rank": 1}}},
        arms={"fedavg": {"start": "random"}, "fedkd": {"start": "consolidated"}},
    )
    results = fedkd.compare(study, out=tmp_path / "runs")
    assert not results.summary["failures"]
    arch = f"hf:{encoder}"
    full = size_of(copy_state(build_model(arch, shape_of(arch, Trained()), seed=0)))
    sent = results.summary["runs"][0]["curve"][1]["bytes_up"]
    assert 0 < sent < 2 * 0.4 * full


# Refusals.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"column": "body"}, "data.text.column: there is no column 'body'; there are text, label"),
        ({"label": "class"}, "data.text.label: there is no column 'class'"),
        ({"label": "same"}, "data.text.label: column 'same' is constant"),
        ({"label": "share"}, "column 'share' has fractions .* continuous"),
        ({"label": "gaps"}, "data.text.label: column 'gaps' is empty in 1 of 4 rows"),
        ({"column": "gaps"}, "data.text.column: column 'gaps' has no text in 1 of 4 rows"),
        (
            {"tokenizer": "nowhere"},
            "nowhere cannot be read .*; it must be a folder",
        ),
    ],
)
def test_unusable_files_are_refused(
    path: Path, encoder: Path, tmp_path: Path, text: dict[str, Any], message: str
) -> None:
    frame = pd.read_csv(path)[:4].assign(
        same="a", share=[0.1, 0.2, 0.3, 0.4], gaps=["a", "b", "", "a"]
    )
    frame.to_csv(tmp_path / "bad.csv", index=False)
    columns = Text.model_validate({"tokenizer": str(encoder), **text})
    with pytest.raises(UserError, match=message):
        load_source(f"text:{tmp_path / 'bad.csv'}", columns=columns)


@pytest.mark.parametrize(
    ("content", "config", "message"),
    [
        ("{", {}, "tokenizer cannot be read .*; it must be a folder"),
        (None, {"pad_token": None}, "names no token that fills up short texts; set pad_token in"),
    ],
)
def test_unusable_tokenizers_are_refused(
    encoder: Path, tmp_path: Path, content: str | None, config: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "tokenizer"
    file = write_tokenizer(encoder, folder, **config)
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=message):
        load_tokenizer(Text(tokenizer=str(folder)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"arch": "mlp"}}, "data.text.tokenizer: is missing; name a folder"),
        ({"arms": {"fedkd": familiarity(mixup=True)}}, "mixup: cannot interpolate the token ids"),
        ({"arms": {"fedkd": familiarity(mixed_inputs=2)}}, "mixed_inputs: 2 is for images"),
        (
            {"arms": {"fedkd": familiarity(familiarity={"basis": "patches"})}},
            "basis: patches is not for examples of kind text; use basis: backbone",
        ),
        ({"pretraining": {"augment": "flip-crop"}}, "pretraining.augment: flip-crop is for images"),
        ({"partition": {"scheme": "by-column"}}, "by-column needs a table"),
        ({"partition": {"scheme": "given", "silos": {"a": "csv:a.csv"}}}, "texts or of tables"),
    ],
)
def test_settings_of_images_are_refused(
    path: Path, encoder: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_split_of({**make_study(path, encoder), **changes})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"image_size": 8}, "data.image_size: 8 is for images"),
        ({"transfer": {"source": "digits"}}, "its examples are of kind image and have"),
        ({"source": "digits"}, "data.text: is for texts, but digits has none"),
        ({"text": {"max_length": 80}}, "data.text.max_length: is 80, but .* at most 64 tokens"),
    ],
)
def test_data_that_does_not_go_with_texts_is_refused(
    path: Path, encoder: Path, tmp_path: Path, data: dict[str, Any], message: str
) -> None:
    study = make_study(path, encoder)
    with pytest.raises(UserError, match=message):
        fedkd.compare({**study, "data": {**study["data"], **data}}, out=tmp_path)


def test_models_that_do_not_fit_are_refused(path: Path, encoder: Path, tmp_path: Path) -> None:
    study = make_study(path, encoder, model={"arch": "mlp"})
    study["data"]["text"]["tokenizer"] = str(encoder)
    with pytest.raises(UserError, match=r"model.arch: mlp does not take texts.*use hf:FOLDER"):
        fedkd.compare(study, out=tmp_path)
    file = write_tokenizer(encoder, tmp_path / "large")
    content = json.loads(file.read_text())
    content["model"]["vocab"] |= {f"more{number}": 500 + number for number in range(200)}
    file.write_text(json.dumps(content))
    study = make_study(path, encoder)
    study["data"]["text"]["tokenizer"] = str(tmp_path / "large")
    with pytest.raises(UserError, match=r"data.text.tokenizer: has \d+ tokens and fills up with"):
        fedkd.compare(study, out=tmp_path)
    with pytest.raises(UserError, match=r"cannot be built for images of 1 x 8 x 8 .*takes texts"):
        build_model(f"hf:{encoder}", Shape(3, 1, 8), seed=0)


def load_split_of(study: dict[str, Any]) -> None:
    load_split(resolve_study(study), 0)


def test_an_encoder_keeps_no_layer_that_it_does_not_use(encoder: Path) -> None:
    arch = f"hf:{encoder}"
    model = build_model(arch, shape_of(arch, Trained()), seed=0)
    output = model(torch.ones(2, LENGTH, dtype=torch.int64))
    nn.functional.cross_entropy(output, torch.zeros(2, dtype=torch.int64)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
