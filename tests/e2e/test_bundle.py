"""The Flower App Bundle: what `flwr build` packs, and that it runs away from the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
ROOMS = ("fedkd", "strategies", "clients")
FLOWERS_OWN = {"pyproject.toml", ".info/CONTENT"}
LOAD = """
import importlib.util
import strategies.server_app, clients.client_app, fedkd
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

assert isinstance(strategies.server_app.app, ServerApp)
assert isinstance(clients.client_app.app, ClientApp)
assert importlib.util.find_spec("experiments") is None, "the checkout is importable"
print(fedkd.__file__)
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


def test_both_apps_load_from_the_unpacked_bundle_alone(bundle: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(bundle).extractall(tmp_path)
    # -S skips the .pth file by which an editable install makes the checkout importable.
    loaded = subprocess.run(
        [sys.executable, "-S", "-c", LOAD],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert loaded.returncode == 0, loaded.stderr
    assert Path(loaded.stdout.strip()).is_relative_to(tmp_path)
