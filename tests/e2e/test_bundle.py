"""The Flower App Bundle: what `flwr build` packs, and that it runs away from the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).parents[2]
ROOMS = ("fedkd", "strategies", "clients")
FLOWERS_OWN = {"pyproject.toml", ".info/CONTENT"}
LOAD = """
import importlib.util
import sys
from pathlib import Path

for name in [name for name in sys.modules if name.partition(".")[0] in (*rooms, "experiments")]:
    del sys.modules[name]
sys.path = [bundle, *(path for path in sys.path if not (Path(path) / "fedkd").exists())]
import strategies.server_app, clients.client_app, fedkd
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

assert isinstance(strategies.server_app.app, ServerApp)
assert isinstance(clients.client_app.app, ClientApp)
assert importlib.util.find_spec("experiments") is None, "the checkout is importable"
for name in rooms:
    for path in sys.modules[name].__path__:
        assert Path(path).is_relative_to(bundle), path
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the bundle from a copy: `flwr build` writes into the folder that it packs."""
    copy = tmp_path_factory.mktemp("build") / "fedkd-copy"
    shutil.copytree(
        REPO,
        copy,
        ignore=shutil.ignore_patterns(
            *(".venv", ".git", "runs", "data.npz", "__pycache__", "*.fab", "dist", ".*_cache")
        ),
    )
    flwr = Path(sys.executable).parent / "flwr"
    environment = {
        **os.environ,
        "FLWR_HOME": str(copy.parent / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    built = subprocess.run(
        [flwr, "build"], cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return next(copy.glob("*.fab"))


def test_the_bundle_holds_the_code_of_both_apps_and_nothing_else(bundle: Path) -> None:
    packed = set(zipfile.ZipFile(bundle).namelist())
    code = {
        path.relative_to(REPO).as_posix() for room in ROOMS for path in (REPO / room).rglob("*.py")
    }
    assert packed == code | FLOWERS_OWN


def test_both_apps_load_from_the_unpacked_bundle_alone(
    bundle: Path, tmp_path: Path, forks: Any
) -> None:
    """In a process that knows only the packages they need: it forgets the modules of the checkout.

    An editable install makes the checkout importable by a folder in the path, too.
    """
    zipfile.ZipFile(bundle).extractall(tmp_path)
    load = forks.Process(target=exec, args=(LOAD, {"rooms": ROOMS, "bundle": str(tmp_path)}))
    load.start()
    load.join()
    assert load.exitcode == 0
