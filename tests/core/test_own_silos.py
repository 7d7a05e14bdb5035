"""Silos as they are: sources of their own, or rows of a researcher's own split."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fedkd
from fedkd.config import Study
from fedkd.config.study_file import check_files, dump_study, load_study, parse_study
from fedkd.errors import UserError
from fedkd.federation.federation import Federation
from fedkd.federation.split import Split, load_split


def write_npz(path: Path, labels: list[int], seed: int, *, test: int = 0, side: int = 6) -> None:
    random = np.random.default_rng(seed)
    arrays = {
        "images": random.integers(0, 256, (len(labels), side, side), dtype=np.uint8),
        "labels": np.array(labels),
    }
    if test:
        arrays["test_images"] = random.integers(0, 256, (test, side, side), dtype=np.uint8)
        arrays["test_labels"] = np.arange(test) % 2
    np.savez(path, **arrays)


def numbers(images: Any) -> set[bytes]:
    return {image.numpy().tobytes() for image in images.images}


@pytest.fixture
def given(tmp_path: Path, make_data: Callable[..., dict[str, Any]]) -> Callable[..., Study]:
    """Return a function that gives a study of two silos with sources of their own."""
    write_npz(tmp_path / "north.npz", [0, 1] * 20, 1)
    write_npz(tmp_path / "south.npz", [2, 0] * 15, 2, test=8)
    write_npz(tmp_path / "public.npz", [0, 1, 2] * 60, 3)

    def make(changes: dict[str, Any] | None = None) -> Study:
        data = make_data(
            {
                "data": {"source": "npz:public.npz", "transfer": {"size": 30}},
                "partition": {
                    "scheme": "given",
                    "silos": {"south": "npz:south.npz", "north": "npz:north.npz"},
                },
                "seeds": [0, 1],
                **(changes or {}),
            }
        )
        path = tmp_path / "study.yaml"
        path.write_text(json.dumps(data), encoding="utf-8")
        return load_study(path)

    return make


def test_every_silo_holds_its_own_images_and_the_source_is_for_the_server(given):
    study = given()
    split = load_split(study, 0)
    assert study.silo_names == ("north", "south")
    assert [len(silo) for silo in split.silos] == [40, 30]
    assert [sorted(set(silo.labels.tolist())) for silo in split.silos] == [[0, 1], [0, 2]]
    assert (len(split.test), len(split.validation)) == (36, 15)
    assert split.transfer is not None
    assert len(split.transfer) == 30
    assert [None if each is None else len(each) for each in split.silo_tests] == [None, 8]
    assert parse_study(dump_study(study)) == study


def same_split(one: Split, other: Split) -> bool:
    parts = [(each.test, each.validation, each.transfer, *each.silos) for each in (one, other)]
    return all(a.digest == b.digest for a, b in zip(*parts, strict=True))


def test_the_split_does_not_move_with_the_seed(given):
    study = given()
    assert same_split(load_split(study, 0), load_split(study, 7))


def test_classes_are_united_by_name_and_channels_follow_the_source(tmp_path, given):
    for index in range(24):
        for name in ("cat", "ant"):
            path = tmp_path / "colour" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (6, 6), (index, 100, 5)).save(path)
    split = load_split(given({"partition/silos": {"a": "folder:colour", "b": "npz:north.npz"}}), 0)
    assert split.classes == ("0", "1", "2", "ant", "cat")
    assert split.shape.in_channels == 1
    assert sorted(set(split.silos[0].labels.tolist())) == [3, 4]
    alone = given(
        {
            "partition/silos": {"a": "folder:colour", "b": "npz:north.npz"},
            "data": {"source": "none", "transfer": {"source": "noise", "size": 20}},
        }
    )
    split = load_split(alone, 0)
    assert split.classes == ("0", "1", "ant", "cat")
    assert (split.shape.in_channels, len(split.test), len(split.validation)) == (3, 0, 0)


def copy_images(source: Path, target: Path, count: int) -> None:
    held, arrays = np.load(source), dict(np.load(target))
    arrays["images"][:count] = held["images"][:count]
    np.savez(target, **arrays)


def test_what_a_silo_trains_on_is_left_out_and_counted(tmp_path, given):
    write_npz(tmp_path / "public.npz", [0, 1, 2] * 600, 3)
    study = given()
    before = load_split(study, 0)
    shared = before.test.images[0, 0].numpy()
    arrays = dict(np.load(tmp_path / "north.npz"))
    arrays["images"][0] = shared
    np.savez(tmp_path / "north.npz", **arrays)
    split = load_split(study, 0)
    assert len(split.test) == len(before.test) - 1
    assert not numbers(split.test) & numbers(split.silos[0])
    assert (
        f"1 of {len(before.test)} test examples are also examples on which silos"
        in split.warnings[-1]
    )


def test_more_than_a_hundredth_in_common_is_refused(tmp_path, given):
    copy_images(tmp_path / "public.npz", tmp_path / "north.npz", 40)
    with pytest.raises(
        UserError, match=r"of 36 test examples \(.*%\) are also examples on which silos"
    ):
        load_split(given(), 0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"partition/silos": {}}, "partition.silos"),
        (
            {"partition/silos": {"north": "npz:absent.npz"}},
            "partition.silos.north: there is no file",
        ),
        ({"partition/silos": {"north": "nowhere"}}, "unknown data source 'nowhere'"),
        ({"partition/silos": 4}, "partition.silos"),
        ({"partition/min_size": 31}, "partition.min_size: asks for 31 .* but south has 30"),
        ({"pretraining/checkpoints": {"west": "x.safetensors"}}, "they are north, south"),
        ({"data": {"source": "none", "validation": 0.1}}, "data.validation: the server has no"),
        ({"data": {"source": "none"}}, "data.transfer.source: is missing"),
        ({"data/classes": ["a", "b"]}, "data.classes: is read from data.source"),
    ],
)
def test_what_given_silos_cannot_be_is_refused_in_a_sentence(given, changes, sentence):
    def check() -> None:
        study = given(changes)
        check_files(study)
        load_split(study, 0)

    with pytest.raises(UserError, match=sentence):
        check()


def test_images_of_other_sizes_are_refused_with_the_remedy(tmp_path, given):
    write_npz(tmp_path / "south.npz", [0, 1] * 15, 2, side=9)
    with pytest.raises(UserError, match=r"set data\.image_size"):
        load_split(given({"data": {"source": "none", "transfer": {"source": "noise"}}}), 0)


def test_a_study_of_given_silos_runs_without_a_source(given, tmp_path, cache_dir):
    study = given(
        {
            "data": {"source": "none", "transfer": {"source": "noise", "size": 20}},
            "arms": {"fedavg": {"start": "random"}, "average": {"start": "average"}},
            "seeds": [0],
        }
    )
    federation = Federation.load(study, 0, cache_dir)
    assert federation.sizes == {"north": 40, "south": 30}
    assert federation.test_of("north") is None
    assert len(federation.test_of("south")) == 8
    summary = fedkd.compare(study, out=tmp_path / "runs").summary
    assert [run["accuracy_source"] for run in summary["runs"]] == ["silos", "silos"]
    # North has no test set: it measures on its 40 images, south on its 8 test images.
    accuracy = summary["runs"][0]["curve"][-1]["accuracy"]
    assert round(accuracy * 48, 6) % 1 == 0


# A researcher's own split


@pytest.fixture
def rows(tmp_path: Path, make_data: Callable[..., dict[str, Any]]) -> Callable[..., Study]:
    """Return a function that gives a study whose silos are rows in a file."""
    write_npz(tmp_path / "all.npz", [0, 1, 2] * 100, 4)

    def make(content: Any, changes: dict[str, Any] | None = None) -> Study:
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "silos.json").write_text(text, encoding="utf-8")
        data = make_data(
            {
                "data": {"source": "npz:all.npz", "transfer": {"size": 40}},
                "partition": {"scheme": "indices", "path": "silos.json"},
                **(changes or {}),
            }
        )
        (tmp_path / "study.yaml").write_text(json.dumps(data), encoding="utf-8")
        return load_study(tmp_path / "study.yaml")

    return make


SPLIT = {"silo-10": list(range(60)), "silo-2": [299, *range(100, 140)]}


def test_rows_of_a_file_are_the_silos_and_in_no_other_set(rows, tmp_path):
    study = rows(SPLIT)
    split = load_split(study, 0)
    assert study.silo_names == ("silo-2", "silo-10")
    assert parse_study(dump_study(study)) == study
    whole = torch.from_numpy(np.load(tmp_path / "all.npz")["images"])[:, None]
    assert torch.equal(split.silos[0].images, whole[SPLIT["silo-2"]])
    assert torch.equal(split.silos[1].images, whole[SPLIT["silo-10"]])
    assert (len(split.test), len(split.validation), len(split.transfer)) == (40, 16, 40)
    sets = [numbers(each) for each in (split.test, split.validation, split.transfer, *split.silos)]
    assert len(set.union(*sets)) == sum(map(len, sets)) == 40 + 16 + 40 + 101
    assert f"{300 - 197} of 300 training examples are in no silo" in split.warnings[-1]
    assert same_split(split, load_split(study, 5))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"a": [0, 1], "b": [1, 2]}, "b lists row 1 and so does a"),
        ({"a": [0, 0]}, "a lists row 0 twice"),
        ({"a": [-1]}, "must be a list of row numbers from 0"),
        ({"a": [True]}, "must be a list of row numbers from 0"),
        ({"a": [0.5]}, "must be a list of row numbers from 0"),
        ({"../a": [0]}, "not a valid name of a silo"),
        ([[0, 1]], "must map names of silos to lists"),
        ({}, "must map names of silos to lists"),
        ("{", "is not JSON"),
        (
            {"a": list(range(20)), "b": [*range(30, 40), 300]},
            "b lists row 300, but data.source has 300",
        ),
        ({"a": list(range(20)), "b": [30]}, "partition.min_size: .* b has 1"),
    ],
)
def test_a_file_that_is_no_split_is_refused_in_a_sentence(rows, content, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        load_split(rows(content), 0)
    assert str(caught.value).count("\n") <= 1


def test_a_missing_file_and_one_whose_silos_changed_are_refused(rows, tmp_path):
    with pytest.raises(UserError, match=r"partition: path: there is no file"):
        rows(SPLIT, {"partition": {"scheme": "indices", "path": "absent.json"}})
    study = rows(SPLIT)
    rows({"other": list(range(20))})
    with pytest.raises(UserError, match="names other silos than the study"):
        load_split(study, 0)
