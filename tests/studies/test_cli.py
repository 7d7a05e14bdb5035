"""The command line: what is impossible is refused in a sentence, before anything is written."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from fedkd.models.build import Shape, build_model
from fedkd.models.state import copy_state

DIVERGING = {
    "model/arch": "resnet8",
    "pretraining/epochs": 1,
    "arms/fedkd/consolidation": {"lr": 1000, "epochs": 5},
    "rounds/max": 1,
}


@pytest.fixture
def fedkd(fedkd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs a command in a folder beside a cache of its own."""
    monkeypatch.setenv("FEDKD_CACHE_DIR", str(tmp_path / "cache"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return fedkd


def write_checkpoint(name: str, arch: str = "mlp") -> Path:
    path = Path(name).absolute()
    save_file(copy_state(build_model(arch, Shape(10, 1, 8), seed=0)), path)
    return path


def checkpoint_study(make_data: Any, path: Path) -> dict[str, Any]:
    return make_data({"pretraining/checkpoints": {"silo-1": str(path)}})


def missing(make_data: Any) -> dict[str, Any]:
    return checkpoint_study(make_data, Path("nowhere.safetensors"))


def foreign(make_data: Any) -> dict[str, Any]:
    return checkpoint_study(make_data, write_checkpoint("m.safetensors", "cnn"))


def truncated(make_data: Any) -> dict[str, Any]:
    path = write_checkpoint("m.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    return checkpoint_study(make_data, path)


def pickled(make_data: Any) -> dict[str, Any]:
    path = Path("m.safetensors").absolute()
    torch.save(build_model("mlp", Shape(10, 1, 8), seed=0).state_dict(), path)
    return checkpoint_study(make_data, path)


def changed(**changes: Any) -> Callable[[Any], dict[str, Any]]:
    paths = {path.replace("__", "/"): value for path, value in changes.items()}
    return lambda make_data: make_data(paths)


REFUSALS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "unknown key": (changed(rouns={"max": 3}), "did you mean 'rounds'"),
    "unknown key inside": (changed(rounds__mx=3), "rounds.mx"),
    "target above one": (changed(targets=[1.5]), "targets"),
    "no silos": (changed(partition__silos=0), "partition.silos"),
    "more silos than images": (
        changed(partition={"scheme": "iid", "silos": 200, "min_size": 1}),
        "partition",
    ),
    "unknown arch": (changed(model__arch="cnm"), "did you mean 'cnn'"),
    "unknown torchvision arch": (changed(model__arch="torchvision:resnet81"), "resnet18"),
    "missing user module": (changed(model__arch="no_such_module:net"), "model.arch"),
    "unknown scheme": (changed(partition__scheme="label-dirichlett"), "label-dirichlet"),
    "unknown source": (changed(data__source="digit"), "digits"),
    "unknown weighting": (
        changed(arms__fedkd__consolidation__weighting="familiar"),
        "familiarity",
    ),
    "method that cannot be imported": (
        changed(arms__fedkd__consolidation__method="no_such_module:learn"),
        "distillation method no_such_module:learn cannot be imported",
    ),
    "weighting that cannot be imported": (
        changed(arms__fedkd__consolidation__weighting="no_such_module:weigh"),
        "weighting no_such_module:weigh cannot be imported",
    ),
    "unknown engine": (changed(engine__name="no-such-engine"), "engine"),
    "a GPU that is not there": (changed(engine__device="cuda:99"), "engine.device"),
    "missing folder": (changed(data__source="folder:nowhere"), "nowhere"),
    "missing checkpoint": (missing, "pretraining.checkpoints.silo-1"),
    "checkpoint of another architecture": (foreign, "does not fit the architecture"),
    "truncated checkpoint": (truncated, "truncated"),
    "pickled checkpoint": (pickled, "never unpickles"),
    "a list": (lambda make_data: [1, 2], "a list"),
    "empty": (lambda make_data: None, "is empty"),
    "average of no silo's architecture": (
        changed(arms__fedkd__arch="lenet5"),
        "student: fresh",
    ),
    "transfer set larger than the data": (changed(data__transfer__size=100_000), "transfer.size"),
}


def listing(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "cache" not in path.relative_to(folder).parts}


@pytest.mark.parametrize("name", REFUSALS)
def test_the_impossible_is_refused_before_anything_is_written(
    name: str, fedkd: Any, make_data: Any, tmp_path: Path
) -> None:
    make, expected = REFUSALS[name]
    data = make(make_data)
    study = Path("study.yaml")
    study.write_text("" if data is None else yaml.safe_dump(data))
    before = listing(tmp_path)
    code, out, err = fedkd("compare", "study.yaml")
    assert code == 2, err
    assert out == ""
    assert err.startswith("fedkd: ")
    assert err.strip().count("\n") == 0, err
    assert expected in err
    assert listing(tmp_path) == before


def test_a_missing_study_is_refused(fedkd: Any) -> None:
    code, out, err = fedkd("validate", "nowhere.yaml")
    assert (code, out) == (2, "")
    assert err == "fedkd: nowhere.yaml: there is no such file\n"


@pytest.mark.parametrize(
    "options", [["--set", "rounds.mx=3"], ["--set", "rounds"], ["--seeds", "a,b"], ["--seeds", ""]]
)
def test_impossible_options_are_refused(options: list[str], fedkd: Any, make_data: Any) -> None:
    Path("study.yaml").write_text(yaml.safe_dump(make_data()))
    code, out, err = fedkd("compare", "study.yaml", *options)
    assert (code, out) == (2, "")
    assert options[0] in err or "rounds.mx" in err


def test_an_unwritable_place_for_results_is_an_error_in_words(fedkd: Any, make_data: Any) -> None:
    Path("study.yaml").write_text(yaml.safe_dump(make_data()))
    Path("taken").write_text("a file")
    code, _, err = fedkd("compare", "study.yaml", "--out", "taken")
    assert code == 1
    assert "choose another place by --out" in err


def test_an_unwritable_cache_is_refused_in_words(
    fedkd: Any, make_data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("study.yaml").write_text(yaml.safe_dump(make_data()))
    Path("taken").write_text("a file")
    monkeypatch.setenv("FEDKD_CACHE_DIR", str(Path("taken").absolute() / "cache"))
    code, out, err = fedkd("compare", "study.yaml")
    assert (code, out) == (2, "")
    assert "set FEDKD_CACHE_DIR" in err
    assert not Path("runs").exists()


def test_a_full_disk_is_told_in_words(
    fedkd: Any, make_data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "rounds.jsonl")

    Path("study.yaml").write_text(yaml.safe_dump(make_data()))
    monkeypatch.setattr("strategies.server_app.append_point", full)
    code, _, err = fedkd("compare", "study.yaml")
    assert code == 1
    assert err.startswith("fedkd: rounds.jsonl: No space left on device. All rounds that had ended")
    assert "fedkd compare --resume runs/tiny/" in err
    assert err.count("\n") == 1


def test_validate_prints_every_default(fedkd: Any, make_data: Any) -> None:
    Path("study.yaml").write_text(yaml.safe_dump(make_data()))
    code, out, err = fedkd("validate", "study.yaml", "--set", "rounds.lr=0.25")
    assert code == 0
    assert all(line.startswith("data: ") for line in err.splitlines())
    assert "data: transfer: 60 images without labels\n" in err
    printed = yaml.safe_load(out)
    assert printed["rounds"]["lr"] == 0.25
    assert printed["rounds"]["quorum"] == 0.5
    assert printed["arms"]["fedkd"]["consolidation"]["tau"] == 0.1


def test_validate_checks_all_that_compare_does(fedkd: Any, make_data: Any) -> None:
    Path("own.py").write_text(
        "from torch import nn\n"
        "class Two(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        z = super().forward(x.flatten(1))\n"
        "        return (z, z) if self.training else z\n"
        "def two(num_classes, in_channels, image_size):\n"
        "    return Two(image_size ** 2, num_classes)\n"
    )
    Path("study.yaml").write_text(yaml.safe_dump(make_data({"model/arch": "own:two"})))
    for command in ("validate", "compare"):
        code, out, err = fedkd(command, "study.yaml")
        assert (code, out) == (2, "")
        assert "model.arch: own:two gives tuple for 2 examples" in err
        assert not Path("runs").exists()
    code, out, err = fedkd("validate", "study.yaml", "--file-only")
    assert (code, err) == (0, "")
    assert yaml.safe_load(out)["model"]["arch"] == "own:two"


def test_notes_of_the_check_are_printed_and_kept(fedkd: Any, make_data: Any) -> None:
    data = make_data({"targets": [0.05, 0.9], "rounds/max": 1})
    Path("study.yaml").write_text(yaml.safe_dump(data))
    code, out, err = fedkd("validate", "study.yaml")
    assert code == 0
    assert err.startswith("note: targets: always predicting one class reaches 5.0%")
    assert yaml.safe_load(out)["targets"] == [0.05, 0.9]
    code, out, err = fedkd("compare", "study.yaml", "--json")
    assert code == 0
    summary = json.loads(out)
    (warning,) = summary["warnings"]
    assert warning.startswith("targets: always predicting one class reaches 5.0%")
    (share,) = summary["constant_accuracy"]
    assert 0.1 <= share["accuracy"] < 0.2


def test_schema_is_json(fedkd: Any) -> None:
    code, out, _ = fedkd("schema")
    assert code == 0
    assert json.loads(out)["title"] == "fedkd study"


def test_compare_prints_tables_or_json(fedkd: Any, make_data: Any) -> None:
    Path("study.yaml").write_text(yaml.safe_dump(make_data({"rounds/max": 1})))
    code, out, _ = fedkd("compare", "study.yaml", "--seeds", "3")
    assert code == 0
    assert "Exchanges to 30.0% accuracy" in out
    assert "seeds 3" in out
    folder = Path(out.strip().splitlines()[-1].removeprefix("Results: "))
    assert (folder / "summary.json").is_file()
    code, out, err = fedkd("compare", "study.yaml", "--seeds", "3", "--json", "--out", "other")
    assert (code, err) == (0, "")
    summary = json.loads(out)
    assert [run["cached"] for run in summary["runs"]] == [True, True]
    assert summary["resolved"]["seeds"] == [3]


def test_a_run_that_lacked_silos_is_told_by_the_exit_code(fedkd: Any, make_data: Any) -> None:
    """A silo's model diverges and is refused where all are needed; the run can still go on."""
    rounds = {"lr": 1000, "local_epochs": 9, "quorum": 1}
    arms = {"fedavg": {"start": "random", "rounds": rounds}}
    Path("study.yaml").write_text(yaml.safe_dump(make_data({"arms": arms})))
    code, out, err = fedkd("compare", "study.yaml")
    assert code == 1, err
    assert "too few silos replied: fedavg, seed 0, after round 0" in " ".join(out.split())
    (state,) = Path("runs/tiny").glob("*/fedavg/seed-0/state.json")
    assert json.loads(state.read_text())["stopped"] == "quorum"
    assert (state.parent / "progress.safetensors").is_file()
    assert (state.parent / "checkpoint.safetensors").is_file()
    code, _, err = fedkd("compare", "--resume", "runs/tiny")
    assert code == 1, err
    cache = Path.cwd().parent / "cache"
    assert cache.is_dir()
    assert not list(cache.glob("arms/*")), "what lacked silos is not reused"


RESUME_REFUSALS = {
    "nothing at all": ((), "give a study file, or a results folder with --resume"),
    "both": (("study.yaml", "--resume", "runs"), "leave out STUDY"),
    "settings": (("--resume", "runs", "--set", "rounds.max=3"), "leave out STUDY, --set"),
    "seeds": (("--resume", "runs", "--seeds", "1"), "leave out STUDY, --set, --seeds"),
    "a fresh start": (("--resume", "runs", "--fresh"), "and --fresh"),
    "no folder": (("--resume", "nowhere"), "nowhere is not a results folder"),
}


@pytest.mark.parametrize("name", RESUME_REFUSALS)
def test_what_cannot_be_resumed_is_refused(name: str, fedkd: Any, make_data: Any) -> None:
    Path("study.yaml").write_text(yaml.safe_dump(make_data()))
    arguments, expected = RESUME_REFUSALS[name]
    code, out, err = fedkd("compare", *arguments)
    assert (code, out) == (2, "")
    assert expected in err
    assert err.count("\n") == 1


def test_a_failed_run_is_told_by_the_exit_code(fedkd: Any, make_data: Any) -> None:
    data = make_data(DIVERGING)
    Path("study.yaml").write_text(yaml.safe_dump(data))
    code, out, _ = fedkd("compare", "study.yaml")
    assert code == 1
    assert "distillation diverged" in out


STUDIES_NEED_NOT = ("torchvision", "flwr_datasets", "datasets", "sklearn", "ray", "optuna")
"""Packages that a study of which nothing has changed does without, for they are slow to import."""

LOADED = """
import sys
sys.argv = ["fedkd", "compare", "study.yaml"]
from fedkd.cli import main
try:
    main()
except SystemExit as end:
    named = set({names!r}) & set(sys.modules)
    sys.exit(f"imported {{named}}" if named else end.code)
"""


def test_a_study_that_has_not_changed_imports_only_what_it_needs(
    start: Any, tmp_path: Path, make_data: Any
) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(make_data()))
    first = start(tmp_path, "compare", "study.yaml", cache=tmp_path / "cache")
    printed = first.communicate()
    assert first.returncode == 0, printed
    names = (*STUDIES_NEED_NOT, "torch._dynamo", "matplotlib", "pandas")
    again = subprocess.run(
        [sys.executable, "-c", LOADED.format(names=names)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "FEDKD_CACHE_DIR": str(tmp_path / "cache")},
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert "taken from the cache" in again.stdout


@pytest.mark.parametrize("answer", [["--yes"], []])
def test_the_cache_is_shown_and_cleared(
    answer: list[str], fedkd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDKD_CACHE_DIR", str(tmp_path / "cache"))
    entry = tmp_path / "cache" / "arms" / ("a" * 40)
    entry.mkdir(parents=True)
    (entry / "file").write_bytes(bytes(2_000_000))
    code, out, _ = fedkd("cache")
    assert code == 0
    assert [line.split()[:4] for line in out.splitlines() if line.startswith("arms")] == [
        ["arms", "1", "2.0", "MB"]
    ]
    kinds = {kind["kind"]: kind for kind in json.loads(fedkd("cache", "--json")[1])["kinds"]}
    assert kinds["arms"]["entries"] == 1
    code, out, err = fedkd("cache", "clear", "--kind", "arms", *answer)
    assert entry.exists() == (not answer)
    assert code == (0 if answer else 2)
    assert "Removed 1 entry (2.0 MB)" in out if answer else "--yes" in err
    assert fedkd("cache", "clear", "--kind", "arm", "--yes")[0] == 2


LIGHT = [
    *(["--help"], ["--version"], ["compare", "--help"], ["schema"], ["cache"]),
    *(["consolidate", "--help"], ["export", "--help"], ["validate", "--file-only", "study.yaml"]),
]
"""Commands that need no PyTorch, which takes seconds to import."""

CHECK = f"""
import sys
from fedkd.cli import main
for arguments in {LIGHT!r}:
    sys.argv = ["fedkd", *arguments]
    try:
        main()
    except SystemExit as end:
        heavy = {{"torch", "flwr", "ray", "torchvision", "sklearn", "optuna"}} & set(sys.modules)
        print(f"{{arguments}} ended with {{end.code}} and imported {{heavy or 'nothing'}}.")
"""


def test_checking_a_study_imports_nothing_heavy(tmp_path: Path, make_data: Any) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(make_data()))
    done = subprocess.run(
        [sys.executable, "-c", CHECK], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    ended = [line for line in done.stdout.splitlines() if " ended with " in line]
    assert ended == [f"{each} ended with 0 and imported nothing." for each in LIGHT]


@pytest.fixture
def finished(fedkd: Any, make_data: Any) -> Path:
    """Run the tiny study and return its results folder."""
    Path("study.yaml").write_text(yaml.safe_dump(make_data({"rounds/max": 1})))
    assert fedkd("compare", "study.yaml")[0] == 0
    return next(Path("runs/tiny").iterdir())


def test_compare_leaves_a_report(finished: Path) -> None:
    text = (finished / "report.html").read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert "tiny" in text


def test_report_writes_what_is_asked(fedkd: Any, finished: Path) -> None:
    (finished / "report.html").unlink()
    code, out, err = fedkd("report", "runs/tiny")
    assert (code, out, err) == (0, f"{finished}/report.html\n", "")
    code, out, _ = fedkd("report", "runs/tiny", "--format", "svg,csv", "--out", "paper")
    assert code == 0
    assert Path("paper/figures/accuracy-exchanges.svg").is_file()
    assert Path("paper/tables/curves.csv").is_file()
    assert not Path("paper/report.html").exists()
    assert [Path(line).is_file() for line in out.split()] == [True] * len(out.split())
    code, out, _ = fedkd("report", str(finished), str(finished), "--format", "html,csv")
    assert code == 0
    assert out.split()[0] == "report.html"
    assert Path("tables/2-tiny/curves.csv").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["report", "nowhere"], "nowhere is not a results folder"),
        (
            ["report", "runs/tiny", "--format", "pdf"],
            "'pdf' is not a valid format: give html, png, svg or csv",
        ),
        (["watch", "nowhere"], "nowhere is not a results folder"),
    ],
)
def test_what_cannot_be_shown_is_refused(arguments: list[str], words: str, fedkd: Any) -> None:
    code, out, err = fedkd(*arguments)
    assert (code, out) == (2, "")
    assert words in err


def test_watch_shows_how_far_a_study_is(fedkd: Any, finished: Path) -> None:
    code, out, _ = fedkd("watch", "runs/tiny", "--once")
    assert code == 0
    assert "2 of 2 runs have ended" in out
    (finished / "summary.json").unlink()
    code, _, err = fedkd("report", "runs/tiny")
    assert code == 2
    assert "has not ended" in err
