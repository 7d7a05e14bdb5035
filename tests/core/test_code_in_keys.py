"""Cache keys hold the code that decides results, ours and the user's, and no other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedkd.config.study_file import check_files, load_study
from fedkd.engines.flower_app import write_app
from fedkd.errors import UserError
from fedkd.user_code import fingerprint
from fedkd.util.cache import CODE, code_files

ROOT = Path(__file__).parents[2]
BESIDE = (
    # Show, watch and start.
    *(
        "fedkd.api",
        "fedkd.cli",
        "fedkd.report.progress",
        "fedkd.federation.recommend",
        "fedkd.report",
    ),
    *("fedkd.trackers", "fedkd.runner.run", "fedkd.runner.summary", "fedkd.runner.results_folder"),
    *("fedkd.results.comparison", "fedkd.results.folder", "fedkd.results.observer"),
    "fedkd.results.upgrade",
    *("fedkd.models.card", "fedkd.version"),
    # Keep, lock and refuse.
    *(
        "fedkd.util.cache",
        "fedkd.util.cache_entries",
        "fedkd.util.interrupt",
        "fedkd.util.resources",
        "fedkd.util.safetensors_header",
        "fedkd.errors",
        "fedkd.util.files",
        "fedkd.util.requirements",
        "fedkd.util.lock",
        "fedkd.util.interrupt",
        "fedkd.util.resources",
    ),
    *("fedkd.config.error_messages", "fedkd.runner.resume", "fedkd.runner.run_cache"),
    # Between processes and hosts: what they carry is what the inline engine hands over.
    *("fedkd.deploy", "fedkd.engines.connection"),
    *("fedkd.engines.flower_app", "fedkd.engines.follower"),
    *("fedkd.engines.processes", "fedkd.engines.superlink"),
    "fedkd.engines.app_folder",
)
"""Modules, with all below them, that a run imports and that decide none of its bits."""
MODULES = """
import sys, fedkd
fedkd.compare(sys.argv[1], out=sys.argv[2])
import clients.client_app, strategies.server_app
print(*[name for name, module in sys.modules.items()
        if name.startswith(("fedkd.", "strategies.", "clients.", "experiments."))
        and not hasattr(module, "__path__")])
"""
STUDY: dict[str, Any] = {
    "name": "tiny",
    "data": {"source": "digits", "train_size": 150, "transfer": {"size": 60}},
    "partition": {"scheme": "iid", "silos": 2},
    "pretraining": {"epochs": 1},
    "rounds": {"max": 1},
    "targets": [0.99],
    "model": {"arch": "mlp"},
    "arms": {"fedavg": {"start": "random"}, "fedkd": {"start": "consolidated"}},
    "baselines": ["fedavg"],
    "seeds": [0],
}


def run(folder: Path, *arguments: str, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(root), "FEDKD_CACHE_DIR": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )


def compare(folder: Path, *arguments: str, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return run(folder, "-m", "fedkd.cli", "compare", *arguments, "--json", root=root)


def first_run(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["runs"][0]
    return found


def test_every_entry_of_the_list_exists() -> None:
    for name in CODE:
        path = ROOT / name
        assert path.is_file() if path.suffix == ".py" else any(path.rglob("*.py")), name


def test_an_app_for_flower_holds_the_same_code(tmp_path: Path) -> None:
    """Else its processes would look for their models under other keys than this one."""
    write_app(tmp_path / "app")
    ours, apps = code_files(ROOT), code_files(tmp_path / "app")
    assert len(ours) > 60
    assert [path.relative_to(ROOT) for path in ours] == [
        path.relative_to(tmp_path / "app") for path in apps
    ]
    assert [path.read_bytes() for path in ours] == [path.read_bytes() for path in apps]


def test_every_module_that_a_run_imports_is_in_the_list_or_decides_nothing(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps(STUDY))
    done = run(tmp_path, "-c", MODULES, "study.json", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    modules = done.stdout.splitlines()[-1].split()
    assert len(modules) > 60, "it ran no study"
    forgotten = [
        name
        for name in modules
        if not any(f"{name}.".startswith(f"{other}.") for other in BESIDE)
        and not any(
            f"{name}.".startswith(f"{entry.removesuffix('.py').replace('/', '.')}.")
            for entry in CODE
        )
    ]
    assert not forgotten


def test_an_edit_of_what_decides_results_is_seen_and_a_help_text_is_not(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    for room in ("fedkd", "strategies", "clients", "experiments"):
        shutil.copytree(ROOT / room, root / room, ignore=shutil.ignore_patterns("__pycache__"))
    study = {**STUDY, "arms": {"fedavg": {"start": "random"}}}
    (tmp_path / "study.json").write_text(json.dumps(study))
    assert not first_run(compare(tmp_path, "study.json", "--out", "one", root=root))["cached"]
    help_text = root / "fedkd" / "cli" / "run.py"
    help_text.write_text(help_text.read_text().replace("Run every arm of STUDY", "Run STUDY"))
    assert first_run(compare(tmp_path, "study.json", "--out", "two", root=root))["cached"]
    assert first_run(compare(tmp_path, "--resume", "one/tiny", root=root))["curve"]
    with (root / "clients" / "client_app.py").open("a") as file:
        file.write("# an edit\n")
    assert not first_run(compare(tmp_path, "study.json", "--out", "three", root=root))["cached"]
    refused = compare(tmp_path, "--resume", "one/tiny", root=root)
    assert refused.returncode == 2
    assert "another version of fedkd's code" in refused.stderr


NET = """
import json
from pathlib import Path
from torch import nn
from widths import UNITS

def net(num_classes, in_channels, image_size):
    more = json.loads((Path(__file__).parent / "more.json").read_text())
    return nn.Sequential(
        nn.Flatten(), nn.Linear(in_channels * image_size**2, UNITS + more), nn.ReLU(),
        nn.Linear(UNITS + more, num_classes),
    )
"""


def test_an_edit_of_what_a_users_model_imports_or_reads_is_seen(tmp_path: Path) -> None:
    (tmp_path / "mynet.py").write_text(NET)
    (tmp_path / "widths.py").write_text("UNITS = 64\n")
    (tmp_path / "more.json").write_text("0")
    study = {
        **STUDY,
        "model": {"arch": "mynet:net", "files": ["more.json"]},
        "arms": {"fedavg": {"start": "average"}},
    }
    (tmp_path / "study.json").write_text(json.dumps(study))
    runs = [first_run(compare(tmp_path, "study.json", "--out", "out"))]
    again = first_run(compare(tmp_path, "study.json", "--out", "out"))
    assert again["cached"]
    (tmp_path / "widths.py").write_text("UNITS = 8\n")
    runs.append(first_run(compare(tmp_path, "study.json", "--out", "out")))
    (tmp_path / "more.json").write_text("2")
    runs.append(first_run(compare(tmp_path, "study.json", "--out", "out")))
    assert not any(each["cached"] for each in runs)
    sizes = [each["curve"][1]["bytes_up"] for each in runs]
    assert sizes[0] > sizes[2] > sizes[1]


def test_files_of_the_study_must_exist(tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    path.write_text(json.dumps({**STUDY, "model": {"files": ["there.json", "gone.json", "."]}}))
    (tmp_path / "there.json").touch()
    study = load_study(path)
    assert study.model.files[0] == str(tmp_path / "there.json")
    with pytest.raises(UserError) as caught:
        check_files(study)
    gone, folder = str(caught.value).splitlines()
    assert gone.endswith(f"model.files.1: there is no file {tmp_path / 'gone.json'}")
    assert "model.files.2" in folder
    assert folder.endswith("is not a file")


def test_a_whole_package_and_all_that_it_imports_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = {
        "ownpkg/__init__.py": "",
        "ownpkg/net.py": "from . import part\n\ndef net():\n    import ownlazy\n",
        "ownpkg/part.py": "import torch\n",
        "ownpkg/deep/unused.py": "X = 1\n",
        "ownlazy.py": "import ownlast\n",
        "ownlast.py": "import ownlazy\n",
        "ownother.py": "X = 1\n",
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    from ownpkg.net import net  # type: ignore[import-not-found]

    before = fingerprint(net)
    assert fingerprint(net) == before
    for name, text in sources.items():
        (tmp_path / name).write_text(f"{text}# edited\n")
        changed = fingerprint(net) != before
        assert changed == (name != "ownother.py"), name
        before = fingerprint(net)
