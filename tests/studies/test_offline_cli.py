"""``fedkd consolidate`` and ``fedkd export``, as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from fedkd.cli.many_values import repeat_option
from fedkd.data.columns import Column, Encoder, fit_encoder, sums_of
from fedkd.data.images import Images
from fedkd.models.build import Shape, build_model, rebuild
from fedkd.models.card import ModelCard, save_model
from fedkd.models.state import copy_state

FAST = ("--transfer", "digits", "--size", "60", "--set", "epochs=2")


@pytest.fixture
def fedkd(fedkd: Any) -> Any:
    """Return a function that runs a command beside three models."""
    for name, arch, seed in (("a", "mlp", 0), ("b", "mlp", 1), ("c", "cnn", 2)):
        state = copy_state(build_model(arch, Shape(10, 1, 8), seed=seed))
        save_file(state, f"{name}.safetensors")
    return fedkd


def logits(path: Path, arch: str, images: torch.Tensor) -> torch.Tensor:
    model = build_model(arch, Shape(10, 1, 8), seed=9).eval()
    model.load_state_dict(load_file(path))
    with torch.no_grad():
        found: torch.Tensor = model(images)
    return found


def test_an_option_takes_all_values_up_to_the_next_option() -> None:
    def repeat(text: str) -> str:
        return " ".join(repeat_option(text.split(), "--t"))

    assert repeat("--t a b c --arch x") == "--t a --t b --t c --arch x"
    assert repeat("--t a --t b") == "--t a --t b"
    assert repeat("--t=a b --x") == "--t=a --t b --x"
    assert repeat("--arch x --t a --json") == "--arch x --t a --json"
    assert repeat("--t a --json stray") == "--t a --json stray"
    assert repeat("--t") == "--t"
    assert repeat("--teach a b") == "--teach a b"


@pytest.mark.parametrize(
    "teachers",
    [
        ("--teachers", "a.safetensors", "b.safetensors"),
        ("--teachers", "a.safetensors", "--teachers", "mlp=b.safetensors"),
        ("--teachers=a.safetensors", "b.safetensors"),
    ],
)
def test_every_spelling_of_teachers_makes_the_same_bytes(
    teachers: tuple[str, ...], fedkd: Any
) -> None:
    plain = ("--teachers", "a.safetensors", "b.safetensors", "--arch", "mlp", *FAST)
    assert fedkd("consolidate", *plain, "--out", "first.safetensors")[0] == 0
    code, out, err = fedkd(
        "consolidate", *teachers, "--arch", "mlp", *FAST, "--out", "deep/second.safetensors"
    )
    assert (code, err) == (0, "")
    assert "student agrees with the teachers on" in out
    assert "accuracy is unknown" in out
    first, second = Path("first.safetensors"), Path("deep/second.safetensors")
    assert first.read_bytes() == second.read_bytes()


def test_the_report_is_for_programs_too(fedkd: Any) -> None:
    code, out, err = fedkd(
        "consolidate",
        *("--teachers", "a.safetensors", "cnn=c.safetensors", "--arch", "mlp", *FAST),
        *("--validation", "0.25", "--weighting", "size", "--examples", "100,300"),
        *("--out", "s.safetensors", "--json"),
    )
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert [t["mean_weight"] for t in report["teachers"]] == [0.25, 0.75]
    assert [t["arch"] for t in report["teachers"]] == ["mlp", "cnn"]
    assert report["accuracy_on"] == "449 images of digits, set apart from the transfer set"
    assert 0 <= report["accuracy"] <= 1
    assert report["settings"]["epochs"] == 2


def write_table_models(encoder: Encoder, *names: str) -> None:
    """Write models of a table with an encoder's columns."""
    shape = Shape.of(2, "table", [len(encoder.names)])
    for seed, name in enumerate(names):
        card = ModelCard("linear", shape, ("ill", "well"), columns=encoder.to_json())
        state = copy_state(build_model("linear", shape, seed=seed))
        save_model(Path(f"{name}.safetensors"), state, card)


def test_models_of_tables_take_rows_as_their_files_say(fedkd: Any) -> None:
    draw = np.random.default_rng(0)
    columns = {"note": [f"patient {n}" for n in range(1200)], "ward": draw.choice(["a", "b"], 1200)}
    columns |= {"age": draw.normal(50, 10, 1200), "outcome": draw.choice(["ill", "well"], 1200)}
    whole = pd.DataFrame(columns)
    whole.to_csv("rows.csv", index=False)
    whole[:300].to_csv("judged.csv", index=False)
    taken = (Column("age"), Column("ward", ("a", "b")))
    codes = np.stack([whole["age"], whole["ward"] == "b"], axis=1).astype(float)
    rows = Images(torch.from_numpy(codes), torch.zeros(len(whole), dtype=torch.int64))
    encoder = fit_encoder(taken, sums_of(rows, taken))
    write_table_models(encoder, "t", "u")
    made = ("consolidate", "--teachers", "t.safetensors", "u.safetensors", "--set", "epochs=2")
    judged = ("--validation", "csv:judged.csv", "--label", "outcome")
    table = ("--transfer", "csv:rows.csv", "--size", "100", "--out", "s.safetensors")
    code, out, err = fedkd(*made, *table, *judged, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["accuracy_on"] == "300 rows of csv:judged.csv"
    with torch.no_grad():
        inputs = encoder.encode(rows).images[:300]
        model = rebuild("linear", Shape.of(2, "table", [3]), load_file("t.safetensors"))
        right = model(inputs).argmax(1).numpy() == (whole["outcome"][:300] == "well")
    assert report["teachers"][0]["accuracy"] == pytest.approx(right.mean())
    code, out, err = fedkd("export", "s.safetensors", "--out", "e.safetensors")
    assert (code, err) == (0, "")
    exported = json.loads(Path("e.safetensors.json").read_text())
    assert exported["input"]["shape"] == ["N", 3]
    assert exported["input"]["columns"] == json.loads(encoder.to_json())

    def refused(*arguments: str) -> str:
        code, _, err = fedkd(*arguments)
        assert code == 2, err
        assert err.count("\n") == 1, "one sentence"
        return str(err)

    assert "--label: is missing" in refused(*made, *table, "--validation", "0.2")
    whole[["age", "outcome"]].to_csv("fewer.csv", index=False)
    fewer = ("--transfer", "csv:fewer.csv", *table[2:])
    assert "lacks 'ward'" in refused(*made, *fewer)
    digits = ("--transfer", "digits", *table[2:])
    assert "digits has images, but t.safetensors takes rows of 3" in refused(*made, *digits)
    write_table_models(fit_encoder(taken, sums_of(rows.take(range(99)), taken)), "u")
    said = "u.safetensors does not say how columns become inputs, or otherwise than t.safetensors"
    assert said in refused(*made, *table)
    save_file(load_file("t.safetensors"), "u.safetensors")
    assert said in refused(*made, *table, "--arch", "linear")


def test_texts_have_the_tokenizer_of_the_students_network(fedkd: Any, text_folder: Path) -> None:
    arch, shape = f"hf:{text_folder}/minilm", Shape.of(2, "text", [12])
    for seed, name in enumerate("tu"):
        state = copy_state(build_model(arch, shape, seed=seed))
        save_model(Path(f"{name}.safetensors"), state, ModelCard(arch, shape, ("bad", "good")))
    code, out, err = fedkd(
        *("consolidate", "--teachers", f"{arch}=t.safetensors", f"{arch}=u.safetensors"),
        *("--arch", arch, "--transfer", f"text:{text_folder}/sentences.csv", "--size", "40"),
        *("--validation", "0.2", "--set", "epochs=1", "--out", "s.safetensors", "--json"),
    )
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["shape"] == {"num_classes": 2, "kind": "text", "inputs": [12]}
    assert report["accuracy_on"].startswith("52 texts of text:")


REFUSALS: dict[str, tuple[tuple[str, ...], str]] = {
    "missing file": (("--teachers", "a.safetensors", "nowhere.safetensors"), "there is no file"),
    "wrong architecture": (("--teachers", "a.safetensors", "c.safetensors"), "does not fit"),
    "pickled": (("--teachers", "p.pt"), "is a whole pickled model"),
    "pickled under another name": (("--teachers", "p.safetensors"), "never unpickles"),
    "unknown architecture": (("--teachers", "cnm=c.safetensors"), "did you mean 'cnn'"),
    "unknown method": (("--teachers", "a.safetensors", "--method", "dm"), "did you mean 'dml'"),
    "unknown key": (("--teachers", "a.safetensors", "--set", "temprature=4"), "'temperature'"),
    "bad value": (("--teachers", "a.safetensors", "--set", "lr=fast"), "'fast' is not a number"),
    "no value": (("--teachers", "a.safetensors", "--set", "lr"), "such as temperature=4"),
    "bad student": (("--teachers", "a.safetensors", "--student", "bset"), "did you mean 'best'"),
    "labels missing": (("--teachers", "a.safetensors", "--method", "fine-tune"), "--labelled"),
    "bad examples": (("--teachers", "a.safetensors", "--examples", "1,x"), "--examples"),
    "overwrites a teacher": (("--teachers", "a.safetensors", "--out", "a.safetensors"), "--out"),
    "no safetensors": (("--teachers", "a.safetensors", "--out", "s.pt"), "must end in"),
    "out is a folder": (("--teachers", "a.safetensors", "--out", "d.safetensors"), "a folder"),
    "out below a file": (("--teachers", "a.safetensors", "--out", "p.pt/s.safetensors"), "a file"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_the_impossible_is_refused_in_a_sentence(name: str, fedkd: Any, tmp_path: Path) -> None:
    arguments, expected = REFUSALS[name]
    model = build_model("mlp", Shape(10, 1, 8), seed=0)
    torch.save(model, "p.pt")
    torch.save(model.state_dict(), "p.safetensors")
    Path("d.safetensors").mkdir()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    out_option = () if "--out" in arguments else ("--out", "s.safetensors")
    code, out, err = fedkd("consolidate", *arguments, "--arch", "mlp", *FAST, *out_option)
    assert (code, out) == (2, ""), err
    assert err.startswith("fedkd: ")
    assert err.strip().count("\n") == 0, err
    assert expected in err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_run_is_exported_both_ways_with_notes(fedkd: Any, make_data: Any) -> None:
    Path("study.yaml").write_text(yaml.safe_dump(make_data({"rounds/max": 1})))
    code, out, _ = fedkd("compare", "study.yaml", "--set", "arms.fedkd.arch=mlp")
    assert code == 0
    results = Path(out.strip().splitlines()[-1].removeprefix("Results: "))
    run = results / "fedkd" / "seed-0"
    images = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = logits(run / "checkpoint.safetensors", "mlp", images)

    code, out, err = fedkd("export", str(run), "--out", "m.safetensors", "--json")
    assert (code, err) == (0, "")
    notes = json.loads(Path("m.safetensors.json").read_text())
    assert notes == json.loads(out)
    summary = json.loads((results / "summary.json").read_text())
    final = {entry["arm"]: entry["final_accuracy"] for entry in summary["runs"]}
    origin = notes["origin"]
    assert (origin["study"], origin["arm"], origin["seed"]) == ("tiny", "fedkd", 0)
    assert (origin["accuracy"], origin["accuracy_on"]) == (
        final["fedkd"],
        "the study's test examples",
    )
    assert notes["classes"] == [str(digit) for digit in range(10)]
    assert torch.equal(logits(Path("m.safetensors"), "mlp", images), expected)

    code, _, err = fedkd(
        "export", str(run / "checkpoint.safetensors"), "--out", "m.pt2", "--format", "torch-export"
    )
    assert (code, err) == (0, "")
    program = torch.export.load("m.pt2").module()
    for count in (1, 2, 7):
        torch.testing.assert_close(program(images[:count]), expected[:count])
    assert json.loads(Path("m.pt2.json").read_text())["origin"] == origin

    code, _, err = fedkd("export", str(results), "--out", "m.safetensors")
    assert code == 2
    assert "not the folder of a finished run" in err
    assert "seed-0" in err
    again = ("--teachers", "m.safetensors", str(run / "checkpoint.safetensors"), *FAST)
    assert fedkd("consolidate", *again, "--out", "s.safetensors")[0] == 0


@pytest.mark.parametrize("arch", ["mlp", "cnn", "lenet5", "resnet8", "patch-features"])
def test_what_consolidate_wrote_is_exported_as_a_program(arch: str, fedkd: Any) -> None:
    made = ("--teachers", "mlp=a.safetensors", "mlp=b.safetensors", *FAST, "--student", "fresh")
    assert fedkd("consolidate", *made, "--arch", arch, "--out", "s.safetensors")[0] == 0
    code, out, err = fedkd("export", "s.safetensors", "--out", "s.pt2")
    assert (code, err) == (0, "")
    assert out.startswith(f"{arch}, ")
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = torch.export.load("s.pt2").module()(images)
    torch.testing.assert_close(found, logits(Path("s.safetensors"), arch, images))


def test_a_plain_checkpoint_is_exported_once_it_is_described(fedkd: Any) -> None:
    code, _, err = fedkd("export", "c.safetensors", "--out", "m.safetensors")
    assert code == 2
    assert "give --arch, --classes, --channels and --image-size" in err
    described = ("--arch", "cnn", "--classes", "10", "--channels", "1", "--image-size", "8")
    assert fedkd("export", "c.safetensors", "--out", "m.safetensors", *described)[0] == 0
    assert fedkd("export", "m.safetensors", "--out", "n.safetensors")[0] == 0
    code, _, err = fedkd("export", "m.safetensors", "--out", "o.safetensors", "--classes", "5")
    assert code == 2
    assert "says that its num_classes is 10, not 5" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("nowhere", "--out", "m.safetensors"), "there is no file nowhere"),
        (("a.safetensors", "--out", "m.onnx"), "must end in .safetensors or .pt2"),
        (("a.safetensors", "--out", "m.pt2", "--format", "safetensors"), "must end in"),
        (("a.safetensors", "--out", "m.pt2", "--format", "torch"), "did you mean 'torch-export'"),
        (("a.safetensors", "--out", "a.safetensors"), "choose another name"),
    ],
)
def test_impossible_exports_are_refused(
    arguments: tuple[str, ...], expected: str, fedkd: Any
) -> None:
    before = Path("a.safetensors").read_bytes()
    code, out, err = fedkd("export", *arguments)
    assert (code, out) == (2, "")
    assert expected in err
    assert Path("a.safetensors").read_bytes() == before


@pytest.mark.parametrize("command", ["consolidate", "export"])
def test_help_teaches_by_an_example(command: str, fedkd: Any) -> None:
    code, out, err = fedkd(command, "--help")
    assert (code, err) == (0, "")
    assert "For example: fedkd " + command in " ".join(out.split())
