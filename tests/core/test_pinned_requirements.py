"""The lock files: whole, hashed, of no particular index, and up to date with pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TOP = Path(__file__).parents[2]
LOCKS = ("installer", "runtime", "dev")
PYTHONS = ("3.11", "3.12")
SYSTEMS = (
    {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "aarch64"},
    {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
)


def read_lock(name: str) -> str:
    return (TOP / "requirements" / f"{name}.txt").read_text(encoding="utf-8")


def entries(name: str) -> Iterator[tuple[Requirement, list[str]]]:
    """Yield every pinned requirement with its hashes."""
    text = re.sub(r"^\s*#.*\n", "", read_lock(name), flags=re.MULTILINE)
    for entry in text.replace("\\\n", " ").splitlines():
        requirement, *hashes = entry.split(" --hash=")
        yield Requirement(requirement), [one.strip() for one in hashes]


def pins(name: str, environment: dict[str, str]) -> dict[str, str]:
    """Return the versions that are installed in an environment."""
    found: dict[str, str] = {}
    for requirement, _ in entries(name):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            package = canonicalize_name(requirement.name)
            assert package not in found, f"two versions of {package} for {environment}"
            found[package] = str(requirement.specifier).removeprefix("==")
    return found


def declared() -> dict[str, list[str]]:
    """Return what pyproject.toml declares, by the lock file that must have it."""
    project: dict[str, Any] = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))
    groups = project["dependency-groups"]
    runtime = project["project"]["dependencies"] + groups["build"]
    extras = project["project"]["optional-dependencies"].values()
    dev = [line for extra in extras for line in extra if not line.startswith("fedkd[")]
    return {"installer": groups["installer"], "runtime": runtime, "dev": runtime + dev}


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_names_no_index_and_no_place(name: str) -> None:
    text = read_lock(name)
    assert "://" not in text
    for line in text.splitlines():
        assert re.match(r"\s*#|    --hash=sha256:|[a-z0-9]", line), line
    for requirement, _ in entries(name):
        assert requirement.url is None, requirement


@pytest.mark.parametrize("name", LOCKS)
def test_everything_is_pinned_with_hashes(name: str) -> None:
    for requirement, hashes in entries(name):
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), requirement
        assert hashes, requirement
        for one in hashes:
            assert re.fullmatch(r"sha256:[0-9a-f]{64}", one), requirement


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name", LOCKS)
def test_what_pyproject_declares_is_locked(name: str, system: dict[str, str], python: str) -> None:
    environment = {**system, "python_version": python, "python_full_version": f"{python}.0"}
    found = pins(name, environment)
    for line in declared()[name]:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        version = found[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{line}: {version} is locked"


def test_the_two_environments_have_the_same_versions() -> None:
    environment = {**SYSTEMS[0], "python_version": "3.11", "python_full_version": "3.11.0"}
    runtime, dev = (pins(name, environment) for name in ("runtime", "dev"))
    assert runtime.items() <= dev.items()
