"""What fedkd tells users to install."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
from typing import Any

import pytest

from fedkd.util.requirements import install_command, requirements

METADATA = [
    "numpy>=1.26",
    "tomli>=2; python_version < '3'",
    "matplotlib>=3.9; extra == 'plots'",
    "sqlalchemy>=2; extra == 'mlflow'",
    "mlflow-skinny[extras]>=3; extra == 'mlflow'",
]


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: METADATA)


def test_requirements_are_those_of_this_python_or_of_one_extra(metadata: None) -> None:
    assert [str(one) for one in requirements()] == ["numpy>=1.26"]
    assert [str(one) for one in requirements("plots")] == ["matplotlib>=3.9"]


def test_the_command_names_packages_that_an_index_has(metadata: None) -> None:
    assert install_command("plots", "mlflow") == (
        "pip install 'matplotlib>=3.9' 'sqlalchemy>=2' 'mlflow-skinny[extras]>=3'"
    )


def test_sources_that_are_not_installed_have_no_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    assert install_command("wandb") == "pip install '.[wandb]' in the repository of fedkd"


@pytest.mark.parametrize("package", ["fedkd", "strategies", "clients"])
def test_packages_are_marked_as_typed(package: str) -> None:
    assert importlib.resources.files(package).joinpath("py.typed").is_file()
