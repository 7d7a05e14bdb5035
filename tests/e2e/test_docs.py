"""Every command and code block of README and documentation runs, and the site builds."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedkd.config.study_file import parse_study
from fedkd.deploy.silo_file import load_silo_file
from fedkd.registry import LOCAL_LOSSES, METHODS, WEIGHTINGS

pytestmark = pytest.mark.slow

TOP = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(str(page.relative_to(TOP)) for page in TOP.glob("docs/**/*.md"))]

NOT_RUN = {
    "make demo": ".ci/run runs it as a step of its own",
    "make test": ".ci/run runs it as a step of its own",
    "python3 -m venv .venv": "the test has an environment",
    ". .venv/bin/activate": "the test has an environment",
    "pip install .": "fedkd is installed in it",
    "pip install '.[tensorboard]'": "the extras are installed in it",
    "pip install '.[teachers]'": "the extras are installed in it",
}

# Studies that take minutes are scaled down: shipped ones by shrink(), those that pages write by
# these options, and the study that starts Ray for every arm to two arms.
FEWER_ROUNDS = "--seeds 0 --set rounds.max=1 --set pretraining.epochs=1"
TWO_ARMS = (
    "--set 'arms={fedavg: {start: random}, fedkd: {start: consolidated, "
    "consolidation: {epochs: 2}}}' --set 'baselines=[fedavg]'"
)
SHORTER = {
    "fedkd compare experiments/quickstart.yaml --engine ray": TWO_ARMS,
    "fedkd compare experiments/": "",
    "fedkd compare --resume ": "",
    "fedkd compare ": FEWER_ROUNDS,
    "fedkd sweep ": FEWER_ROUNDS,
    "fedkd tune ": "--trials 2",
    "python -m experiments.robustness.models ": "--partitions iid --weightings equal",
    "python -m experiments.hospitals.make_checkpoints ": (
        "--pictures 80 --epochs 2 --public 192 --public-epochs 2"
    ),
}

# Pages that use the files of another.
AFTER = {"docs/how-to/own-checkpoints.md": "docs/how-to/own-model.md"}
# Pages whose data and encoder are downloaded: small ones stand in for them.
WITH_TEXTS = ("docs/tutorial-texts.md",)


@dataclass(frozen=True)
class Block:
    language: str
    title: str
    text: str


def blocks_of(page: str) -> list[Block]:
    pattern = r'^ *```(\w*)(?: title="([^"]+)")?\n(.*?)^ *```$'
    text = (TOP / page).read_text(encoding="utf-8")
    return [Block(*parts) for parts in re.findall(pattern, text, re.MULTILINE | re.DOTALL)]


def commands_of(block: Block) -> Iterator[str]:
    for line in block.text.replace("\\\n", " ").splitlines():
        if command := re.sub(r"(^|\s+)#.*$", "", line).strip():
            yield command


def shortened(command: str) -> str:
    # Six arms on 5,000 test images take too long.
    if "fashion-dirichlet.yaml" in command:
        return command.replace("compare", "validate --file-only")
    for start, options in SHORTER.items():
        if command.startswith(start):
            return f"{command} {options}".strip()
    return command


def shrink(study: dict[str, Any]) -> dict[str, Any]:
    """Keep all arms of a shipped study, with one seed, one round and one epoch of training."""
    for arm in study["arms"].values():
        if arm["start"] == "consolidated":
            arm["consolidation"] = {**arm.get("consolidation", {}), "epochs": 2}
    data = study["data"]
    data["train_size"] = min(data.get("train_size", 500), 500)
    transfer = data.setdefault("transfer", {})
    transfer["size"] = min(transfer.get("size", 300), 300)
    study["partition"]["min_size"] = 2
    for section, key in (("rounds", "max"), ("pretraining", "epochs")):
        study.setdefault(section, {})[key] = 1
    return {**study, "seeds": [0]}


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("docs-cache")


@pytest.fixture
def run(tmp_path: Path, shared_cache: Path) -> Callable[[str], None]:
    """Return a function that runs a command in a folder that has only the studies."""
    for path in (TOP / "experiments").rglob("*.yaml"):
        target = tmp_path / path.relative_to(TOP)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(yaml.safe_dump(shrink(yaml.safe_load(path.read_text())), sort_keys=False))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(TOP),
        "FEDKD_CACHE_DIR": str(shared_cache),
    }

    def run(command: str) -> None:
        if run_of := re.search(r"runs/([\w-]+)/<timestamp>", command):
            newest = max(tmp_path.glob(f"runs/{run_of[1]}/*/summary.json")).parent.name
            command = command.replace("<timestamp>", newest)
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"

    return run


def test_every_block_says_what_it_is() -> None:
    for page in PAGES:
        fences = re.findall(r"^ *```", (TOP / page).read_text(encoding="utf-8"), re.MULTILINE)
        blocks = blocks_of(page)
        assert len(fences) == 2 * len(blocks), page
        for block in blocks:
            # Commands in a console need packages that the tests do not have, and are not run.
            languages = {"sh", "yaml", "python", "text", "console"}
            assert block.language in languages, (page, block)


def test_every_command_that_is_not_run_is_shown_somewhere() -> None:
    shown = {
        command
        for page in PAGES
        for block in blocks_of(page)
        if block.language == "sh"
        for command in commands_of(block)
    }
    assert set(NOT_RUN) <= shown


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page)])
def test_every_block_runs(
    page: str, run: Callable[[str], None], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if page in WITH_TEXTS:
        shutil.copytree(request.getfixturevalue("text_folder"), tmp_path / "data")
    for block in blocks_of(AFTER[page]) if page in AFTER else ():
        if block.title:
            (tmp_path / block.title).write_text(block.text)
    for block in blocks_of(page):
        if block.title:
            (tmp_path / block.title).write_text(block.text)
        if block.language == "sh":
            for command in commands_of(block):
                if command not in NOT_RUN:
                    run(shortened(command))
        elif block.language == "python" and not block.title:
            (tmp_path / "block.py").write_text(block.text)
            run("python block.py")
        elif block.title.startswith("silo"):
            load_silo_file(tmp_path / block.title)
        elif block.language == "yaml":
            check_study(block.text)


def check_study(text: str) -> None:
    """Read a whole study, or a section of one."""
    given = yaml.safe_load(text)
    if given is None:
        return  # a comment
    if (partition := given.get("partition", {})).get("scheme") in ("by-column", "indices"):
        # They are read from the table or the file, which is not here.
        partition["names"] = [*given.get("model", {}).get("per_silo", {}), "another"]
    rest = {"name": "rest", "targets": [0.5], "arms": {"fedavg": {"start": "random"}}}
    parse_study(yaml.safe_dump(given if "name" in given else {**rest, **given}))


@pytest.mark.parametrize("mode", ["weights", "logits"])
def test_the_silo_of_the_message_contract_is_accepted(
    mode: str, make_study: Any, tmp_path: Path, cache_dir: Path, pool: ThreadPoolExecutor
) -> None:
    from flwr.app import Context, RecordDict

    from fedkd.engines.inline import InlineGrid
    from fedkd.federation.federation import Federation
    from strategies.context import RunContext
    from strategies.fedavg import initial_arrays
    from strategies.fedkd import FedKD

    class Watcher:
        def on_point(self, point: Any) -> None:
            pass

        def on_distillation(self, epoch: int, epochs: int) -> None:
            pass

    (block,) = (b for b in blocks_of("docs/reference/contract.md") if b.title == "my_silo.py")
    path = tmp_path / "my_silo.py"
    path.write_text(block.text)
    spec = importlib.util.spec_from_file_location("my_silo", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    study = make_study(
        {
            "partition": {"scheme": "iid", "silos": 1},
            "arms/fedkd/consolidation": {
                "weighting": "confidence",
                "student": "fresh",
                "mode": mode,
                "epochs": 1,
            },
        }
    )
    setting = RunContext.of(Federation.load(study, 0, cache_dir), "fedkd", ())
    grid = InlineGrid(module.app, {2: Context(1, 2, {}, RecordDict(), {})}, pool)
    strategy = FedKD(setting, Watcher(), "this-run")
    strategy.start(grid, initial_arrays(setting), num_rounds=2, timeout=60, evaluate_fn=None)
    assert strategy.state.quarantined == []
    assert [point.silos_ok for point in strategy.state.curve] == [1, 1, 1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site, strictly."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=TOP,
        env={**os.environ, "PYTHONPATH": str(TOP), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return folder


class Loads(HTMLParser):
    """Collects the addresses that a browser fetches to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag in ("script", "img", "iframe", "source") and attributes.get("src"):
            self.addresses.append(str(attributes["src"]))
        if tag == "link" and attributes.get("rel") != "canonical":
            self.addresses.append(str(attributes.get("href")))


def test_the_site_fetches_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 10
    for page in pages:
        parser = Loads()
        parser.feed(page.read_text(encoding="utf-8"))
        assert parser.addresses
        for address in parser.addresses:
            assert not re.match(r"https?:|//", address), (page, address)
            if page.name != "404.html":  # its addresses begin at a server's root
                assert (page.parent / address.partition("?")[0]).is_file(), (page, address)
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_no_formula_is_left_unrendered(site: Path) -> None:
    text = (site / "methods.html").read_text(encoding="utf-8")
    assert text.count("<math") > 30
    assert "arithmatex" not in text
    assert "\\math" not in text


def test_the_study_reference_has_every_key(site: Path, golden: Path) -> None:
    text = (site / "reference" / "study.html").read_text(encoding="utf-8")
    keys = (golden / "study_keys.txt").read_text().split()
    assert len(keys) > 50
    for key in keys:
        last = key.rpartition(".")[2]
        assert last == "*" or f"<code>{last}</code>" in text, key


def test_the_methods_page_explains_every_registered_name(site: Path) -> None:
    text = (site / "methods.html").read_text(encoding="utf-8")
    for name in (*METHODS, *WEIGHTINGS, *LOCAL_LOSSES):
        assert f'id="{name}"' in text, name
