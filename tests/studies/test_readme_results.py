"""The README's section on results: every command and line of it runs."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedkd.cli import main

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SECTION = README.split("## Look at the results\n")[1].split("\n## ")[0]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)


def test_every_shown_line_runs(
    tmp_path: Path, make_data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    study = make_data({"name": "quickstart", "rounds/max": 1})
    Path("experiments").mkdir()
    Path("experiments/quickstart.yaml").write_text(yaml.safe_dump(study))
    (python,) = blocks("python")
    exec(compile(python, "README.md", "exec"), {})  # noqa: S102 -- the README's own lines
    assert Path("accuracy.png").is_file()
    assert Path("report.html").is_file()
    (shell,) = blocks("sh")
    for line in shell.strip().splitlines():
        monkeypatch.setattr(sys, "argv", shlex.split(line, comments=True))
        with pytest.raises(SystemExit) as caught:
            main()
        assert not caught.value.code, line
