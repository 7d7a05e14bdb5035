"""The cache: whole entries or none, two processes at once, what it holds, and clearing it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedkd.data import download as fetch
from fedkd.data.cached import cached_partition, load_cached_source
from fedkd.data.sources import load_source
from fedkd.distillation import teachers as teachers_module
from fedkd.distillation.predictions import Predictions
from fedkd.errors import UserError
from fedkd.federation.split import load_split
from fedkd.models.build import Shape, build_model
from fedkd.models.state import copy_state
from fedkd.training.compute import Compute
from fedkd.training.evaluate import predict
from fedkd.util.cache import cache_key
from fedkd.util.cache_entries import (
    KINDS,
    MANIFEST,
    clear,
    drop_entry,
    find_entries,
    has_entry,
    new_entry,
    parse_age,
)

SHAPE = Shape(4, 1, 8)


def fill(root: Path) -> None:
    """Put an entry of every kind into a cache, and what is not fedkd's own beside them."""
    for kind in KINDS:
        folder = root / kind
        folder.mkdir(parents=True)
        key = cache_key({"kind": kind})
        if kind != "predictions":
            (folder / key).mkdir()
            (folder / key / "file").write_bytes(b"12345")
        else:  # as an earlier version wrote it
            (folder / f"{key}.safetensors").write_bytes(b"12345")
        (folder / "thesis.txt").write_text("irreplaceable")


def test_an_entry_is_whole_or_absent(tmp_path: Path) -> None:
    entry = tmp_path / "arms" / "entry"

    def fail() -> None:
        with new_entry(entry) as folder:
            (folder / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(entry.parent.iterdir()) == []
    with new_entry(entry) as folder:
        (folder / "whole").write_text("first")
    with new_entry(entry) as folder:
        (folder / "whole").write_text("second")
    assert (entry / "whole").read_text() == "second"
    assert [each.name for each in entry.parent.iterdir()] == ["entry"]
    drop_entry(entry)
    assert list(entry.parent.iterdir()) == []


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def replace_by_a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit": (lambda entry: flip_a_bit(entry / "b" / "file"), "b/file has changed"),
    "an end": (lambda entry: (entry / "a").write_bytes(b"12"), "a has changed"),
    "a file": (lambda entry: (entry / "a").unlink(), "a is missing"),
    "a file too many": (lambda entry: (entry / "c").touch(), "c is not of it"),
    "a link": (lambda entry: replace_by_a_link(entry / "a"), "elsewhere is not of it"),
    "no manifest": (lambda entry: (entry / MANIFEST).unlink(), "it has no manifest"),
    "half a manifest": (
        lambda entry: (entry / MANIFEST).write_text('{"a": '),
        "its manifest cannot be read",
    ),
    "another manifest": (
        lambda entry: (entry / MANIFEST).write_text("[1, 2]"),
        "its manifest cannot be read",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_entry_is_removed_with_a_warning(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = tmp_path / "arms" / ("a" * 40)
    with new_entry(entry) as folder:
        (folder / "a").write_bytes(b"123")
        (folder / "b").mkdir()
        (folder / "b" / "file").write_bytes(bytes(10_000))
    for _ in range(2):
        assert has_entry(entry)
    damage, reason = DAMAGE[what]
    damage(entry)
    assert not has_entry(entry)
    assert f"cache entry {entry} is damaged ({reason}); it is computed again" in caplog.text
    assert list(entry.parent.iterdir()) == []
    caplog.clear()
    assert not has_entry(entry)
    assert caplog.text == ""


def test_what_a_kill_left_behind_is_no_entry_and_is_cleared_when_old(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\nfrom pathlib import Path\n"
        "from fedkd.util.cache_entries import new_entry\n"
        f"with new_entry(Path(sys.argv[1]) / 'arms' / {'a' * 40!r}) as folder:\n"
        "    (folder / 'half').write_text('x')\n    print('ready', flush=True)\n    time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    (left,) = (tmp_path / "arms").iterdir()
    assert find_entries(tmp_path) == []
    clear(tmp_path)
    assert left.exists(), "it may be another process's work"
    long_ago = time.time() - 10 * 86400
    os.utime(left, (long_ago, long_ago))
    clear(tmp_path)
    assert not left.exists()


def test_it_lists_and_clears_its_own_and_nothing_else(tmp_path: Path) -> None:
    fill(tmp_path)
    entries = find_entries(tmp_path)
    assert [entry.kind for entry in entries] == list(KINDS)
    assert {entry.size for entry in entries} == {5}
    assert [entry.kind for entry in clear(tmp_path, kind="arms")] == ["arms"]
    assert len(find_entries(tmp_path)) == len(KINDS) - 1
    assert clear(tmp_path, older_than=3600) == []
    assert len(clear(tmp_path)) == len(KINDS) - 1
    assert find_entries(tmp_path) == []
    for kind in KINDS:
        assert [path.name for path in (tmp_path / kind).iterdir()] == ["thesis.txt"]


def test_age_decides(tmp_path: Path) -> None:
    fill(tmp_path)
    old = find_entries(tmp_path)[0].path
    long_ago = time.time() - parse_age("30d")
    os.utime(old, (long_ago, long_ago))
    assert [entry.path for entry in clear(tmp_path, older_than=parse_age("4w"))] == [old]


@pytest.mark.parametrize("text", ["", "12", "d", "-1d", "1.5h", "1y", "9999999d"])
def test_other_ages_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="older-than"):
        parse_age(text)


@pytest.mark.parametrize("kind", ["arm", "../arms", ""])
def test_other_kinds_are_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a kind"):
        clear(tmp_path, kind=kind)


def make_prediction(root: Path, changes: dict[str, Any] | None = None) -> int:
    """Ask for predictions with a cache at ``root``, and return how often they were computed."""
    asked = {"model": 1, "arch": "mlp", "images": 1, "compute": Compute(), **(changes or {})}
    model = build_model(asked["arch"], SHAPE, seed=asked["model"])
    images = torch.full((3, 1, 8, 8), asked["images"], dtype=torch.uint8)
    made = 0

    def make() -> torch.Tensor:
        nonlocal made
        made += 1
        return predict(model, images, compute=asked["compute"])

    found = Predictions(root).of_model(
        copy_state(model),
        asked["arch"],
        SHAPE,
        images,
        str(asked["images"]),
        asked["compute"],
        make,
    )
    assert torch.equal(found, predict(model, images, compute=asked["compute"]))
    return made


@pytest.mark.parametrize(
    "changes",
    [{"model": 2}, {"arch": "cnn"}, {"images": 2}, {"compute": Compute(precision="bf16")}],
    ids=str,
)
def test_predictions_are_kept_by_all_that_determines_them(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    assert make_prediction(tmp_path) == 1
    assert make_prediction(tmp_path) == 0
    assert make_prediction(tmp_path, changes) == 1
    assert make_prediction(tmp_path) == 0
    for path in (tmp_path / "predictions").glob("*/*.safetensors"):
        path.write_bytes(path.read_bytes()[:-7])
    assert make_prediction(tmp_path) == 1, "a damaged entry is as good as none"
    assert make_prediction(tmp_path) == 0


def test_predictions_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    bad = torch.full((2, 4), float("nan"))
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    state = copy_state(build_model("mlp", SHAPE, seed=0))
    for _ in range(2):
        found = Predictions(tmp_path).of_model(
            state, "mlp", SHAPE, images, "x", Compute(), lambda: bad
        )
        assert found is bad
    assert not (tmp_path / "predictions").exists()


def test_a_run_is_charged_for_its_own_predictions(
    make_study: Any, run_arm: Any, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seconds of a start must not depend on what another arm left in the cache."""
    study = make_study({"partition/silos": 4})
    computed: list[int] = []
    honest = teachers_module.predict

    def counted(model: Any, images: torch.Tensor, **options: Any) -> torch.Tensor:
        computed.append(len(images))
        return honest(model, images, **options)

    monkeypatch.setattr(teachers_module, "predict", counted)
    run_arm(study, "fedkd")
    computed.clear()
    found = run_arm(study, "fedkd")
    validation = len(found.context.validation)
    assert computed == [validation] * 4 + [60] * 4, (
        "validation and transfer images again, in the seconds of the start; test images not"
    )
    setting, teachers = found.context, found.start.teachers
    said = teachers.cached_in(cache_dir).predict(setting.test.images)
    plain = teachers_module.Teachers(teachers.members, setting.shape, setting.compute)
    assert torch.equal(said, plain.predict(setting.test.images))


def test_a_decoded_source_is_read_from_the_cache_and_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_cached_source("digits", image_size=12, cache=tmp_path)
    monkeypatch.setattr("fedkd.data.cached.load_source", None)
    again = load_cached_source("digits", image_size=12, cache=tmp_path)
    plain = load_source("digits", image_size=12)
    for source in (first, again):
        assert torch.equal(source.train.images, plain.train.images)
        assert torch.equal(source.train.labels, plain.train.labels)
        assert (source.name, source.classes, source.test) == ("digits", plain.classes, None)
    again.train.images[0] = 7
    third = load_cached_source("digits", image_size=12, cache=tmp_path)
    assert torch.equal(third.train.images, plain.train.images), "the entry was written to"
    with pytest.raises(TypeError):
        load_cached_source("digits", image_size=None, cache=tmp_path)


def write_fashion(folder: Path, shade: int) -> None:
    """Write the four files of a tiny Fashion-MNIST."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "t10k"):
        pixels = np.full((20, 28, 28), shade, dtype=np.uint8)
        labels = (np.arange(20) % 10).astype(np.uint8)
        for name, array in (
            (f"{split}-images-idx3-ubyte", pixels),
            (f"{split}-labels-idx1-ubyte", labels),
        ):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (folder / name).write_bytes(head + array.tobytes())


def test_changed_files_are_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDKD_DATA_DIR", str(tmp_path / "data"))
    later = tmp_path / "data" / "fashion-mnist"
    write_fashion(later, shade=1)
    cache = tmp_path / "cache"

    def shade() -> int:
        found = load_cached_source("fashion-mnist", image_size=None, cache=cache)
        return int(found.train.images.float().mean())

    assert shade() == 1
    (entry,) = (cache / "sources").iterdir()
    written = (entry / "images.npy").stat()
    assert shade() == 1
    assert (entry / "images.npy").stat() == written, "nothing changed, yet it was decoded again"
    write_fashion(later, shade=2)
    os.utime(later / "train-images-idx3-ubyte", (1, 1))
    assert shade() == 2
    # A file in a folder that is looked at before wins, as it would without a cache.
    write_fashion(tmp_path / "data" / "FashionMNIST" / "raw", shade=3)
    assert shade() == 3


def test_a_changed_file_is_seen_though_its_size_and_time_of_change_are_the_same(
    tmp_path: Path,
) -> None:
    path = tmp_path / "mine.npz"
    for shade in (1, 2):
        images = np.full((6, 4, 4), shade, dtype=np.uint8)
        np.savez(path, images=images, labels=np.arange(6) % 2)
        os.utime(path, (1, 1))
        found = load_cached_source(f"npz:{path}", image_size=None, cache=tmp_path / "cache")
        assert int(found.train.images.float().mean()) == shade


def test_files_are_noted_only_inside_the_block(tmp_path: Path) -> None:
    there, missing = tmp_path / "there", tmp_path / "missing"
    there.write_text("abc")
    with fetch.noting_files() as seen:
        fetch.read_files(tmp_path, {"there": 10, "missing": 10})
    fetch.read_files(tmp_path, {"other": 10})
    assert seen == {str(there): (3, there.stat().st_mtime_ns), str(missing): None}


def test_shares_are_drawn_once_for_the_same_labels_scheme_and_seed(
    make_study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme = make_study().partition
    labels = np.arange(90) % 3
    drawn = cached_partition(labels, scheme, 5, tmp_path)
    plain = cached_partition(labels, scheme, 5, None)
    assert all(np.array_equal(a, b) for a, b in zip(drawn, plain, strict=True))
    monkeypatch.setattr("fedkd.data.cached.partition", None)
    kept = cached_partition(labels, scheme, 5, tmp_path)
    assert all(np.array_equal(a, b) for a, b in zip(kept, plain, strict=True))
    other = make_study({"partition/alpha": 0.7}).partition
    for changed in ((labels[::-1], scheme, 5), (labels, other, 5), (labels, scheme, 6)):
        with pytest.raises(TypeError):
            cached_partition(*changed, tmp_path)


def test_a_cut_is_the_same_with_and_without_a_cache(make_study: Any, tmp_path: Path) -> None:
    study = make_study()
    without, new, kept = (load_split(study, 3, cache) for cache in (None, tmp_path, tmp_path))
    for split in (new, kept):
        assert torch.equal(split.test.images, without.test.images)
        for one, other in zip(split.silos, without.silos, strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)


def test_two_processes_share_a_cache(start: Any, tmp_path: Path, make_data: Any) -> None:
    """Both begin at once, on an empty cache, and end with the same curves and a whole cache."""
    study = tmp_path / "study.json"
    study.write_text(json.dumps(make_data()))

    def begin(name: str) -> Any:
        out = tmp_path / name
        return start(tmp_path, "compare", study, "--json", "--out", out, cache=tmp_path / "cache")

    running = [begin(name) for name in ("one", "two")]
    ended = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0], ended
    curves = [
        [[p["accuracy"] for p in run["curve"]] for run in json.loads(out)["runs"]]
        for out, _ in ended
    ]
    assert curves[0] == curves[1]
    again = begin("three")
    out, err = again.communicate()
    assert again.returncode == 0, err
    runs = json.loads(out)["runs"]
    assert all(run["cached"] for run in runs)
    assert [[p["accuracy"] for p in run["curve"]] for run in runs] == curves[0]
    left = [path for path in (tmp_path / "cache").rglob("*") if path.name.endswith(".part")]
    assert left == []
