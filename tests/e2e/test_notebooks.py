"""The notebooks run from top to bottom, and keep their promise of being short."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_both_are_there() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["own-method-and-model", "quickstart"]


def test_a_method_and_a_model_take_less_than_forty_lines() -> None:
    notebook = read(FOLDER / "own-method-and-model.ipynb")
    (module,) = [cell.source for cell in notebook.cells if cell.source.startswith("%%writefile")]
    assert len(module.splitlines()) < 40


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parents[1]), prepend=os.pathsep)
    notebook = read(path)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear its outputs"
    client = NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    texts = [
        str(output.get("text") or output.get("data"))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    ]
    assert any("fedavg" in text for text in texts)
    assert (tmp_path / "runs").is_dir()


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)
