"""What the engines that run Flower's own programs share: app folder, logs, programs."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import sysconfig
from pathlib import Path

import tomli_w

from fedkd.deploy.bundle_hash import CLIENT_APP
from fedkd.errors import FedKDError
from fedkd.messages import keys
from fedkd.version import VERSION

ROOMS = ("fedkd", "strategies", "clients")
LOG_LINES = 6


def write_app(folder: Path) -> Path:
    """Write a Flower app folder with the code of this process; an installed package is not an app.

    Flower allows letters, digits and hyphens in the folder's name.
    """
    for room in ROOMS:
        spec = importlib.util.find_spec(room)
        if spec is None or not spec.submodule_search_locations:
            raise FedKDError(f"the package {room} cannot be found; install fedkd again")
        source = Path(spec.submodule_search_locations[0])
        for path in source.rglob("*.py"):
            target = folder / room / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    components = {"serverapp": "strategies.server_app:app", "clientapp": CLIENT_APP}
    texts = (keys.CONFIG_STUDY, keys.CONFIG_ARM, keys.CONFIG_TARGETS)
    models = (keys.CONFIG_MODELS, keys.CONFIG_FETCH)
    folders = (keys.CONFIG_RUN_DIR, keys.CONFIG_RUN_NAME, keys.CONFIG_CACHE_DIR)
    names = (*texts, *models, *folders, keys.CONFIG_HOLDER)
    config = {**dict.fromkeys(names, ""), keys.CONFIG_SEED: 0}
    app = {"publisher": "fedkd", "components": components, "config": config}
    project = {
        "name": "fedkd",
        "version": VERSION,
        "description": "The apps of fedkd, as installed here.",
        "license": "Apache-2.0",
        "dependencies": [],
    }
    text = tomli_w.dumps({"project": project, "tool": {"flwr": {"app": app}}})
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    return folder


def find_program(name: str) -> Path:
    """Return a program of this environment; another environment may have another Flower version."""
    beside = Path(sys.executable).parent / name
    found = beside if beside.is_file() else shutil.which(name)
    if found is None:
        raise FedKDError(f"the program {name} is not installed; install flwr[simulation]")
    return Path(found)


def user_paths() -> list[str]:
    """Return the module search path beyond Python and its packages, the user's folders first.

    Ray's workers must find a model named ``package.module:function`` too.
    """
    places = ("stdlib", "platstdlib", "purelib", "platlib", "scripts")
    own = {Path(sysconfig.get_path(place)).absolute() for place in places}
    paths = dict.fromkeys(Path(entry or ".").absolute() for entry in ["", *sys.path])
    return [str(p) for p in paths if p.is_dir() and not any(p.is_relative_to(o) for o in own)]


def read_log(log: Path) -> list[str]:
    """Return the lines of a log without colours and empty lines."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    return [line.rstrip() for line in lines if line.strip()]


def last_lines(log: Path) -> str:
    """Return the end of a log, for an error message."""
    return "\n".join(read_log(log)[-LOG_LINES:]) or "(nothing)"
