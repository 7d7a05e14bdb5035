"""Cache keys hold the code that decides results, ours and the user's, and no other."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import pytest

import fedkd
from fedkd.config.study_file import check_files, load_study
from fedkd.engines.flower_app import write_app
from fedkd.errors import UserError
from fedkd.user_code import fingerprint
from fedkd.util import cache
from fedkd.util.cache import CODE, code_files

ROOT = Path(__file__).parents[2]
BESIDE = (
    # Show, watch and start.
    *(
        "fedkd.api",
        "fedkd.cli",
        "fedkd.report.progress",
        "fedkd.util.progress",
        "fedkd.federation.recommend",
        "fedkd.report",
    ),
    *(
        "fedkd.trackers",
        "fedkd.runner.run",
        "fedkd.runner.study_runner",
        "fedkd.runner.summary",
        "fedkd.runner.results_folder",
    ),
    *("fedkd.results.comparison", "fedkd.results.folder", "fedkd.results.observer"),
    *("fedkd.results.upgrade", "fedkd.results.interval", "fedkd.results.points"),
    "fedkd.results.schema",
    "fedkd.results.evaluation",
    *("fedkd.models.card", "fedkd.version"),
    # Keep, lock and refuse.
    *(
        "fedkd.util.cache",
        "fedkd.util.cache_entries",
        "fedkd.util.checkpoint_files",
        "fedkd.util.interrupt",
        "fedkd.util.safetensors_header",
        "fedkd.errors",
        "fedkd.suggestions",
        "fedkd.util.files",
        "fedkd.util.heap",
        "fedkd.util.places",
        "fedkd.util.requirements",
        "fedkd.util.lock",
        "fedkd.util.interrupt",
    ),
    *("fedkd.util.error_messages", "fedkd.runner.resume", "fedkd.runner.run_cache"),
    # Between processes and hosts: what they carry is what the inline engine hands over.
    *("fedkd.deploy", "fedkd.engines.connection"),
    *("fedkd.engines.flower_app", "fedkd.engines.follower"),
    *("fedkd.engines.processes", "fedkd.engines.superlink"),
    "fedkd.engines.app_folder",
)
"""Modules, with all below them, that a run imports and that decide none of its bits."""
ROOMS = ("fedkd", "strategies", "clients", "experiments")


def tell_imported(study: dict[str, Any], folder: Path, sender: Connection) -> None:
    """Run a study in a process that has imported nothing of ours yet; send the modules' names."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ROOMS]:
        del sys.modules[name]
    os.environ["FEDKD_CACHE_DIR"] = str(folder / "cache")
    importlib.import_module("fedkd").compare(study, out=folder / "out")
    for app in ("clients.client_app", "strategies.server_app"):
        importlib.import_module(app)
    found = [name for name in sys.modules if name.partition(".")[0] in ROOMS]
    sender.send([name for name in found if not hasattr(sys.modules[name], "__path__")])


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


@pytest.fixture
def first_run(start: Any, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that runs a study in a process of its own and gives its first run."""

    def first_run(*arguments: object) -> dict[str, Any]:
        command = start(tmp_path, "compare", *arguments, "--json", cache=tmp_path / "cache")
        out, err = command.communicate()
        assert command.returncode == 0, err
        found: dict[str, Any] = json.loads(out)["runs"][0]
        return found

    return first_run


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


def test_every_module_that_a_run_imports_is_in_the_list_or_decides_nothing(
    forks: BaseContext, tmp_path: Path
) -> None:
    receiver, sender = forks.Pipe(duplex=False)
    process = forks.Process(target=tell_imported, args=(STUDY, tmp_path, sender))
    process.start()
    sender.close()
    modules = receiver.recv()
    process.join()
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


def test_the_fingerprint_is_of_the_code_that_runs() -> None:
    assert Path(cache.__file__) == ROOT / "fedkd" / "util" / "cache.py"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Let the fingerprint of the code be that of a copy, which may be edited."""
    tree = tmp_path / "tree"
    for room in ROOMS:
        shutil.copytree(ROOT / room, tree / room, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("FEDKD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "__file__", str(tree / "fedkd" / "util" / "cache.py"))
    yield tree
    forget_fingerprint()


def forget_fingerprint() -> None:
    """Make the next study read the code again, as a new process does."""
    cache.environment.cache_clear()
    cache.code_fingerprint.cache_clear()


def test_an_edit_of_what_decides_results_is_seen_and_a_help_text_is_not(
    tree: Path, tmp_path: Path
) -> None:
    study = {**STUDY, "arms": {"fedavg": {"start": "random"}}}

    def run(**options: Any) -> dict[str, Any]:
        forget_fingerprint()
        found: dict[str, Any] = fedkd.compare(**options).summary["runs"][0]
        return found

    assert not run(study=study, out=tmp_path / "one")["cached"]
    help_text = tree / "fedkd" / "cli" / "run.py"
    text = help_text.read_text()
    help_text.write_text(text.replace("Run every arm of STUDY", "Run STUDY"))
    assert help_text.read_text() != text
    assert run(study=study, out=tmp_path / "two")["cached"]
    assert run(resume=tmp_path / "one" / "tiny")["curve"]
    with (tree / "clients" / "handlers.py").open("a") as file:
        file.write("# an edit\n")
    assert not run(study=study, out=tmp_path / "three")["cached"]
    with pytest.raises(UserError, match="another version of fedkd's code"):
        run(resume=tmp_path / "one" / "tiny")


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


def test_an_edit_of_what_a_users_model_imports_or_reads_is_seen(
    first_run: Any, tmp_path: Path
) -> None:
    (tmp_path / "mynet.py").write_text(NET)
    (tmp_path / "widths.py").write_text("UNITS = 64\n")
    (tmp_path / "more.json").write_text("0")
    study = {
        **STUDY,
        "model": {"arch": "mynet:net", "files": ["more.json"]},
        "arms": {"fedavg": {"start": "average"}},
    }
    (tmp_path / "study.json").write_text(json.dumps(study))
    runs = [first_run("study.json", "--out", "out")]
    again = first_run("study.json", "--out", "out")
    assert again["cached"]
    (tmp_path / "widths.py").write_text("UNITS = 8\n")
    runs.append(first_run("study.json", "--out", "out"))
    (tmp_path / "more.json").write_text("2")
    runs.append(first_run("study.json", "--out", "out"))
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
