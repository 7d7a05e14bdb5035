"""README and the other documents agree with the study files and with the tree."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import fedkd

TOP = Path(__file__).parents[2]
README = (TOP / "README.md").read_text(encoding="utf-8")
QUICKSTART = TOP / "experiments" / "quickstart.yaml"
TARGETS = ("85", "90")
DOCUMENTS = [
    *(TOP / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")),
    *sorted(TOP.glob("docs/**/*.md")),
]


def demo_rows() -> dict[str, list[str]]:
    """The README's table of the demo: an arm's cells, start first."""
    section = README.split("## What the demo shows\n")[1].split("\n## ")[0]
    cells = [
        [cell.strip(" *") for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("| `")
    ]
    return {arm.strip("`"): rest[1:] for arm, *rest in cells}


def spent(cell: str) -> int:
    return sum(int(number.lstrip(">")) for number in cell.split())


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_the_demo_table_has_the_arms_of_the_quickstart() -> None:
    study = yaml.safe_load(QUICKSTART.read_text())
    assert list(demo_rows()) == list(study["arms"])
    assert [str(round(100 * target)) for target in study["targets"]] == list(TARGETS)
    for _, *cells in demo_rows().values():
        for exchanges in cells[::2]:
            assert len(exchanges.split()) == len(study["seeds"])


def test_the_savings_of_the_demo_table_follow_from_its_exchanges() -> None:
    rows = demo_rows()
    baseline = rows.pop("fedavg")
    for arm, row in rows.items():
        for column in (1, 3):
            saved = 100 * (1 - spent(row[column]) / spent(baseline[column]))
            bound = "at most " if ">" in row[column] else ""
            assert row[column + 1] == f"{bound}{saved:.1f} %", arm


@pytest.mark.slow
def test_the_demo_gives_the_figures_of_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within what another processor changes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDKD_CACHE_DIR", str(tmp_path / "cache"))
    results = fedkd.compare(QUICKSTART)
    summary = json.loads((results.folder / "summary.json").read_text())
    for arm, row in demo_rows().items():
        runs = [run for run in summary["runs"] if run["arm"] == arm]
        start = 100 * sum(run["curve"][0]["accuracy"] for run in runs) / len(runs)
        assert start == pytest.approx(float(row[0].rstrip(" %")), abs=2), arm
        for index in range(len(TARGETS)):
            exchanges = [
                run["targets"][index]["exchanges"]
                or run["exchanges_before_round_1"] + run["max_rounds"]
                for run in runs
            ]
            shown = spent(row[1 + 2 * index])
            assert sum(exchanges) == pytest.approx(shown, rel=0.15, abs=3), arm


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(TOP)))
def test_a_document_names_files_that_exist(page: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    roots = "fedkd|strategies|clients|experiments|tests|docs"
    paths = {path.rstrip("/.") for path in re.findall(rf"`((?:{roots})/[\w./-]*)`", text)}
    links = set(re.findall(r"\]\((?!https?:|#)([^)#]+)", text))
    generated = {"study.md", "command-line.md"}
    missing = [path for path in sorted(paths) if not (TOP / path).exists()]
    missing += [
        link
        for link in sorted(links)
        if not (page.parent / link).exists() and Path(link).name not in generated
    ]
    assert not missing


def test_the_layers_are_those_of_the_contract() -> None:
    contracts = tomllib.loads((TOP / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(one["layers"] for one in contracts["contracts"] if one["type"] == "layers")
    section = (TOP / "ARCHITECTURE.md").read_text().split("## Layers\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    shown = [sorted(re.findall(r"`([\w.]+)`", row)) for row in rows]
    assert shown == [sorted(layer.split(" | ")) for layer in layers]
