"""Consolidation of files: the same as in a federation, and nothing that files cannot give."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from fedkd.config import Engine
from fedkd.config.study_file import parse_consolidation
from fedkd.errors import UserError
from fedkd.models.build import Shape, build_model, count_bytes
from fedkd.models.card import ModelCard, load_model, read_card, save_model
from fedkd.models.state import copy_state
from fedkd.offline.export import Described, export_model
from fedkd.offline.from_files import OfflineResult, consolidate_files
from fedkd.offline.reader import Wanted
from fedkd.offline.report import render
from fedkd.offline.request import Offline, TeacherFile
from fedkd.report.progress import EpochBar
from fedkd.results.diagnostics import pairwise_agreement
from fedkd.training.compute import intra_op_threads

SHAPE = Shape(10, 1, 8)
FAST = {"epochs": 2}


def write(folder: Path, name: str, arch: str = "mlp", seed: int = 0, shape: Shape = SHAPE) -> Path:
    path = folder / f"{name}.safetensors"
    save_file(copy_state(build_model(arch, shape, seed=seed)), path)
    return path


@pytest.fixture
def teach(tmp_path: Path) -> Callable[..., OfflineResult]:
    """Return a function that consolidates an mlp and another, seeds 0 and 1, on 60 digits."""
    files = (
        TeacherFile(write(tmp_path, "a")),
        TeacherFile(write(tmp_path, "b", seed=1)),
    )

    def run(
        settings: dict[str, Any] | None = None,
        wanted: dict[str, Any] | None = None,
        **changes: Any,
    ) -> OfflineResult:
        images = Wanted(**{"transfer": "digits", "size": 60, **(wanted or {})})
        offline = Offline(files, images, "mlp", parse_consolidation({**FAST, **(settings or {})}))
        return consolidate_files(replace(offline, **changes))

    return run


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("method", ["kd", "dml", "dp-kd", "fine-tune"])
@pytest.mark.parametrize("student", ["average", "best", "fresh"])
def test_every_method_and_student_makes_a_finite_model_repeatably(
    method: str, student: str, teach: Any
) -> None:
    def made() -> OfflineResult:
        return teach(
            {"method": method, "student": student}, {"labelled": True, "validation": "0.1"}
        )

    first, second = made(), made()
    assert same(first.state, second.state)
    assert first.report == second.report
    assert all(bool(torch.isfinite(tensor).all()) for tensor in first.state.values())
    assert first.report["accuracy_on"] == "180 images of digits, set apart from the transfer set"
    assert first.report["accuracy_used_to_choose"] is (student == "best")


@pytest.mark.parametrize("labelled", [True, False])
def test_blends_are_learnt_from_with_labels_or_without(labelled: bool, teach: Any) -> None:
    wanted = {"labelled": labelled}
    plain, first, again = (
        teach({"mixed_inputs": mixed_inputs}, wanted) for mixed_inputs in (0, 3, 3)
    )
    assert same(first.state, again.state)
    assert not same(first.state, plain.state)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in first.state.values())


def test_another_seed_gives_another_student(teach: Any) -> None:
    assert not same(teach().state, teach(seed=1).state)


def test_teachers_and_student_may_all_differ_in_architecture(tmp_path: Path, teach: Any) -> None:
    files = tuple(
        TeacherFile(write(tmp_path, f"t-{arch}", arch), arch) for arch in ("cnn", "lenet5")
    )
    made = teach({"student": "fresh", "method": "dml"}, teachers=files, arch="resnet8")
    assert made.state.keys() == build_model("resnet8", SHAPE, seed=0).state_dict().keys()
    assert [entry["arch"] for entry in made.report["teachers"]] == ["cnn", "lenet5"]


@pytest.mark.parametrize(
    "consolidation",
    [
        {"method": "kd", "weighting": "size", "temperature": 3.0},
        {"method": "dml", "student": "best"},
        {"method": "dp-kd", "student": "fresh"},
        {"method": "kd", "weighting": "accuracy", "select": {"top": 2}},
    ],
)
def test_it_gives_what_fedkd_makes_of_the_same_models_on_the_same_images(
    consolidation: dict[str, Any], run_arm: Any, make_study: Any, tmp_path: Path
) -> None:
    consolidation = {"epochs": 3, **consolidation}
    study = make_study({"arms/fedkd/consolidation": consolidation, "rounds/max": 1})
    with intra_op_threads(Engine().server_threads):
        ran = run_arm(study, "fedkd")
    transfer, validation = ran.context.transfer, ran.context.validation
    named = {"transfer": transfer.images, "validation": validation.images}
    labels = {"transfer": np.arange(len(transfer)) % 10, "validation": validation.labels.numpy()}
    for name, images in named.items():
        np.savez(tmp_path / f"{name}.npz", images=images.numpy(), labels=labels[name])
    files = []
    for silo in ran.silos:
        path = tmp_path / f"{silo.name}.safetensors"
        save_file(silo.own_model().state, path)
        files.append(TeacherFile(path))
    made = consolidate_files(
        Offline(
            tuple(files),
            Wanted(f"npz:{tmp_path}/transfer.npz", validation=f"npz:{tmp_path}/validation.npz"),
            "mlp",
            parse_consolidation(consolidation),
            tuple(len(silo.data) for silo in ran.silos),
            seed=study.seeds[0],
        )
    )
    expected = ran.start.state
    assert same(made.state, expected)
    weights = list(ran.start.notes["mean_weights"].values())
    found = [entry["mean_weight"] for entry in made.report["teachers"] if entry["taught"]]
    if consolidation["method"] != "dp-kd":
        assert found == pytest.approx(weights, abs=1e-5)


REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = {
    "densities": ({"weighting": "familiarity"}, {}, {}, "familiarity needs the densities"),
    "class counts": ({"weighting": "class-prior"}, {}, {}, "class-prior needs"),
    "sizes": ({"weighting": "size"}, {}, {}, "give --examples"),
    "too few sizes": ({"weighting": "size"}, {}, {"examples": (3,)}, "1 numbers for 2 teachers"),
    "a size of zero": ({}, {}, {"examples": (3, 0)}, "at least 1"),
    "logits": ({"mode": "logits", "student": "fresh"}, {}, {}, "leave it out"),
    "no labels": ({"method": "fine-tune"}, {}, {}, "give --labelled"),
    "no judges": ({"weighting": "accuracy"}, {}, {}, "weighting: accuracy uses labelled"),
    "no judges of students": ({"student": "worst"}, {}, {}, "student: worst uses labelled"),
    "no labels set apart": (
        {"method": "fine-tune", "teachers": "validation"},
        {"labelled": True},
        {},
        "teachers: validation uses labelled",
    ),
    "no teachers": ({}, {}, {"teachers": ()}, "at least one"),
    "no architecture": ({}, {}, {"arch": None}, "give --arch"),
    "an architecture that nobody has": ({}, {}, {"arch": "cnn"}, "does not fit the architecture"),
    "other classes": ({}, {"num_classes": 7}, {}, "--classes"),
    "other size": ({}, {"image_size": 16}, {}, "--image-size"),
    "labels of other classes": ({}, {"num_classes": 7, "labelled": True}, {}, "has 10 classes"),
    "a fraction above one": ({}, {"validation": "1.5"}, {}, "not a valid fraction"),
    "judging on what is learnt": ({}, {"validation": "digits"}, {}, "learns from"),
    "more images than there are": ({}, {"size": 5000}, {}, "--size"),
    "unknown source": ({}, {"transfer": "digit"}, {}, "did you mean 'digits'"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_files_cannot_give_is_refused(name: str, teach: Any) -> None:
    settings, wanted, changes, expected = REFUSALS[name]
    with pytest.raises(UserError, match=expected):
        teach(settings, wanted, **changes)


def test_validation_labels_alone_may_teach_without_labels_of_the_transfer_set(teach: Any) -> None:
    made = teach(
        {"method": "fine-tune", "teachers": "validation", "student": "fresh"},
        {"validation": "0.2"},
    )
    assert all(torch.isfinite(tensor).all() for tensor in made.state.values())


def test_a_model_that_diverged_and_a_file_named_twice_are_refused(
    tmp_path: Path, teach: Any
) -> None:
    state = build_model("mlp", SHAPE, seed=0).state_dict()
    state["1.bias"][0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(UserError, match="finite"):
        teach(teachers=(TeacherFile(tmp_path / "nan.safetensors"),))
    with pytest.raises(UserError, match="twice"):
        teach(teachers=(TeacherFile(tmp_path / "a.safetensors"),) * 2)


def test_a_student_of_no_teachers_architecture_must_be_fresh(tmp_path: Path, teach: Any) -> None:
    teachers = (TeacherFile(tmp_path / "a.safetensors", "mlp"),)
    with pytest.raises(UserError, match="--student fresh"):
        teach(teachers=teachers, arch="cnn")
    assert teach({"student": "fresh"}, teachers=teachers, arch="cnn").card.arch == "cnn"


def test_a_teacher_is_read_as_arch_and_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert TeacherFile.parse("x.safetensors") == TeacherFile(Path("x.safetensors"))
    assert TeacherFile.parse("cnn=d/x=1.safetensors") == TeacherFile(
        Path("d/x=1.safetensors"), "cnn"
    )
    Path("lr=1.safetensors").touch()
    assert TeacherFile.parse("lr=1.safetensors") == TeacherFile(Path("lr=1.safetensors"))
    with pytest.raises(UserError, match="did you mean 'cnn'"):
        TeacherFile.parse("cnm=x.safetensors")


def test_agreement_is_the_mean_over_pairs() -> None:
    predicted = torch.tensor([[0, 1, 2, 3], [0, 1, 0, 0], [0, 0, 2, 0]])
    assert pairwise_agreement(predicted) == pytest.approx((2 / 4 + 2 / 4 + 2 / 4) / 3, abs=1e-6)
    assert pairwise_agreement(predicted[:1]) is None


def test_a_card_comes_back(tmp_path: Path) -> None:
    model = build_model("cnn", Shape(3, 1, 8), seed=0)
    card = ModelCard("cnn", Shape(3, 1, 8), ("ä", "b", "c"), {"accuracy": 0.5})
    path = tmp_path / "m.safetensors"
    save_model(path, dict(model.state_dict()), card)
    assert read_card(path, what="x") == card
    assert same(load_model(path, card, what="x").state, dict(model.state_dict()))
    assert read_card(write(tmp_path, "plain"), what="x") is None


@pytest.mark.parametrize(
    "changes",
    [
        {"num_classes": -3},
        {"num_classes": 10**400},
        {"num_classes": True},
        {"image_size": "8"},
        {"in_channels": 17},
        {"arch": "cnm"},
        {"arch": None},
        {"classes": ["a"]},
        {"classes": "0123456789"},
        {"facts": {"accuracy": float("nan")}},
        {"facts": 3},
        [],
        "[" * 100_000,
    ],
)
def test_a_card_that_makes_no_sense_is_refused(changes: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    (key, text), *others = ModelCard("mlp", SHAPE).to_metadata().items()
    assert others == []
    if isinstance(changes, dict):
        changes = {**json.loads(text), **changes}
    metadata = {key: changes if isinstance(changes, str) else json.dumps(changes)}
    save_file(dict(build_model("mlp", SHAPE, seed=0).state_dict()), path, metadata)
    with pytest.raises(UserError, match="damaged"):
        read_card(path, what="x")


def test_a_small_file_cannot_make_us_build_a_huge_model(tmp_path: Path) -> None:
    huge = Shape(10, 16, 1024)
    assert count_bytes("mlp", huge) > 13e9
    path = tmp_path / "m.safetensors"
    save_model(path, {"w": torch.zeros(3)}, ModelCard("mlp", huge))
    card = read_card(path, what="x")
    assert card is not None
    with pytest.raises(UserError, match="too small for mlp"):
        load_model(path, card, what="x")


def test_code_is_never_imported_because_a_file_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teach: Any
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "planted.py").write_text(
        "from pathlib import Path\nfrom fedkd.models.builtin import mlp as net\n"
        f"Path({str(tmp_path / 'ran')!r}).touch()\n"
    )
    path = tmp_path / "own.safetensors"
    state = dict(build_model("mlp", SHAPE, seed=0).state_dict())
    save_model(path, state, ModelCard("planted:net", SHAPE))
    with pytest.raises(UserError, match="if it is yours"):
        teach(teachers=(TeacherFile(path),))
    assert not (tmp_path / "ran").exists()
    assert teach(teachers=(TeacherFile(path, "planted:net"),), arch=None).card.is_own
    assert (tmp_path / "ran").exists()


def test_files_that_contradict_each_other_are_refused(tmp_path: Path, teach: Any) -> None:
    def teacher(name: str, shape: Shape, classes: tuple[str, ...] = ()) -> TeacherFile:
        state = dict(build_model("mlp", shape, seed=0).state_dict())
        save_model(tmp_path / name, state, ModelCard("mlp", shape, classes))
        return TeacherFile(tmp_path / name)

    ten, four = teacher("x.safetensors", SHAPE), teacher("y.safetensors", Shape(4, 1, 8))
    with pytest.raises(UserError, match=r"num_classes 10 but .*y\.safetensors says 4"):
        teach(teachers=(ten, four), arch=None)
    two = (
        teacher("p.safetensors", Shape(2, 1, 8), ("cat", "dog")),
        teacher("q.safetensors", Shape(2, 1, 8), ("dog", "cat")),
    )
    with pytest.raises(UserError, match="another order"):
        teach(teachers=two, arch=None)


def test_transfer_images_need_no_labels(tmp_path: Path, teach: Any) -> None:
    path = tmp_path / "unlabelled.npz"
    np.savez(path, images=np.arange(70 * 64, dtype=np.uint32).reshape(70, 8, 8).astype(np.uint8))
    wanted = {"transfer": f"npz:{path}", "num_classes": 10}
    made = teach(wanted=wanted)
    assert made.report["transfer"]["size"] == 60
    for changes, message in (
        ({"num_classes": None}, "^--classes: is missing: neither npz:.* nor the teachers' files"),
        ({"labelled": True}, "^--transfer: .*labels"),
        ({"validation": "0.2"}, "^--transfer: .*labels"),
    ):
        with pytest.raises(UserError, match=message):
            teach(wanted={**wanted, **changes})


def test_images_are_brought_into_the_shape_that_the_teachers_files_name(
    tmp_path: Path, teach: Any
) -> None:
    shape = Shape(4, 3, 12)
    path = tmp_path / "rgb.safetensors"
    names = ("w", "x", "y", "z")
    state = dict(build_model("cnn", shape, seed=0).state_dict())
    save_model(path, state, ModelCard("cnn", shape, names))
    made = teach(teachers=(TeacherFile(path),), arch=None)
    assert (made.card.arch, made.card.shape, made.card.classes) == ("cnn", shape, names)
    assert json.loads(json.dumps(made.report))["shape"] == shape.sizes


def test_the_bar_appears_only_after_a_while() -> None:
    def drawn(patience: float, *, terminal: bool = True) -> str:
        screen = io.StringIO()
        bar = EpochBar(Console(file=screen, force_terminal=terminal), patience)
        with bar:
            if patience == 0:
                bar._timer.join()
            bar.on_epoch(1, 2)
        return screen.getvalue()

    assert "distilling" in drawn(0)
    assert drawn(60) == ""
    assert drawn(0, terminal=False).strip() == ""


def test_the_file_written_is_what_was_made(tmp_path: Path, teach: Any) -> None:
    made = teach()
    save_model(tmp_path / "s.safetensors", made.state, made.card)
    assert same(load_file(tmp_path / "s.safetensors"), made.state)
    assert read_card(tmp_path / "s.safetensors", what="x") == made.card


def test_names_and_types_of_a_checkpoint_are_undone_and_told(tmp_path: Path, teach: Any) -> None:
    path = tmp_path / "half.safetensors"
    model = build_model("mlp", SHAPE, seed=3)
    save_file({f"module.{k}": v.half() for k, v in model.state_dict().items()}, path)
    made = teach(teachers=(TeacherFile(path),))
    prefix, width = made.report["warnings"]
    assert "the prefix module. was removed from all names" in prefix
    assert "6 tensors of float16 were converted" in width
    text = "".join(str(part) for part in render(made.report).renderables[1:])
    assert f"Note: {prefix}." in text
    exported = tmp_path / "bare.safetensors"
    described = Described("mlp", SHAPE.num_classes, SHAPE.in_channels, SHAPE.image_size)
    notes = export_model(path, exported, "safetensors", described)["notes"]
    assert notes == [prefix, width]
    found = load_file(exported)
    assert {key: t.dtype for key, t in found.items()} == dict.fromkeys(found, torch.float32)
    assert found.keys() == model.state_dict().keys()


NORMALISING = """
from torch import nn

def bn(num_classes, in_channels, image_size):
    width = in_channels * image_size**2
    return nn.Sequential(
        nn.Flatten(), nn.Linear(width, 8), nn.BatchNorm1d(8), nn.Linear(8, num_classes)
    )

class Two(nn.Linear):
    def forward(self, x):
        z = super().forward(x.flatten(1))
        return (z, z) if self.training else z

def two(num_classes, in_channels, image_size):
    return Two(in_channels * image_size**2, num_classes)
"""


def test_a_student_that_could_not_learn_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teach: Any
) -> None:
    (tmp_path / "offline_models.py").write_text(NORMALISING)
    monkeypatch.syspath_prepend(str(tmp_path))
    bn, two = (
        TeacherFile(write(tmp_path, name, f"offline_models:{name}"), f"offline_models:{name}")
        for name in ("bn", "two")
    )
    with pytest.raises(
        UserError, match="the number of transfer images is 1, but offline_models:bn"
    ):
        teach(None, {"size": 1}, teachers=(bn,), arch="offline_models:bn")
    with pytest.raises(UserError, match="batch_size is 1, but offline_models:bn cannot be trained"):
        teach({"batch_size": 1}, teachers=(bn,), arch="offline_models:bn")
    with pytest.raises(UserError, match=r"gives tuple for 2 examples .* in training mode"):
        teach(teachers=(two,), arch="offline_models:two")
    assert teach({"student": "fresh"}, teachers=(two,)).card.arch == "mlp"
    dml = {"student": "fresh", "method": "dml"}
    with pytest.raises(UserError, match="offline_models:two gives tuple"):
        teach(dml, teachers=(two,))


def test_batch_norm_of_an_average_is_told_and_computed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teach: Any
) -> None:
    (tmp_path / "offline_models.py").write_text(NORMALISING)
    monkeypatch.syspath_prepend(str(tmp_path))
    arch = "offline_models:bn"
    files = tuple(TeacherFile(write(tmp_path, f"n{seed}", arch, seed), arch) for seed in (0, 1))
    told = "student: average averages 2 models with BatchNorm"
    averaged, anew = (
        teach({"epochs": 1, "lr": 1e-9}, teachers=files, arch=arch, batch_norm=value)
        for value in ("average", "recalibrate")
    )
    assert [told in " ".join(made.report["warnings"]) for made in (averaged, anew)] == [True, False]
    assert [made.report["batch_norm"] for made in (averaged, anew)] == ["average", "recalibrate"]
    assert not same(averaged.state, anew.state)
    for changes, settings, sentence in (
        ({"batch_norm": "local"}, {}, "--batch-norm: 'local' is not valid here"),
        ({"batch_norm": "recalibrate"}, {}, "--batch-norm: mlp has no BatchNorm"),
        ({"batch_norm": "recalibrate"}, {"student": "fresh"}, "but the student is fresh; leave it"),
    ):
        with pytest.raises(UserError, match=sentence):
            teach(settings, **changes)
    one = teach(teachers=files[:1], arch=arch)
    assert told[:30] not in " ".join(one.report["warnings"])
