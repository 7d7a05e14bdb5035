"""What all tests share: a cache of their own, few threads, and a federation that runs fast."""

from __future__ import annotations

import contextlib
import copy
import gc
import multiprocessing
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before PyTorch is loaded: threads of tiny models would spin for longer than they compute.
os.environ["OMP_WAIT_POLICY"] = "passive"

# Not PyTorch: the process that distributes tests among others has no use for it.
import pytest
import yaml
from hypothesis import settings

from fedkd.config.study_file import parse_study
from fedkd.results.comparison import compare_arms
from fedkd.results.record import Point, RunRecord
from fedkd.util.cache_entries import KINDS

if TYPE_CHECKING:
    import torch

    from fedkd.config import Study

settings.register_profile("fedkd", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("fedkd")

GOLDEN = Path(__file__).parent / "golden"


# What is imported and collected stays: to look for garbage in it takes seconds.
gc.disable()

# Tests write and remove thousands of small files, which takes a disk longer than some of them run.
MEMORY = Path("/dev/shm")  # noqa: S108 -- pytest makes a folder of its own in it
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 4e9:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


SLOW_IMPORTS = [
    *("test_external", "test_tables"),  # skops
    *("test_texts", "test_backbones", "test_lite0_weights", "test_offline_cli"),  # torch.export
    *("test_tuning", "test_arm_search", "test_tune_store", "test_tune_cli"),  # Optuna
]
"""Files of tests that need a library which takes long to import, beside each other."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put tests that fork commands or need slow imports first.

    One process of pytest-xdist begins with them all. What is forked from takes long to start, too.
    """
    places = {name: place for place, name in enumerate(SLOW_IMPORTS)}

    def place(item: pytest.Item) -> tuple[bool, int]:
        forks = "forks" in getattr(item, "fixturenames", ())
        return not forks, places.get(item.path.stem, len(places))

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Look for garbage in what comes later alone, and less often than after every 700 objects."""
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """Return how many tests run at once: one more than there are cores, as some wait for others."""
    return (yield) + 1


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    """One intra-op thread: the models are tiny, and tests may run side by side."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """A test that draws from PyTorch's global generator draws the same wherever it runs."""
    import torch

    # Not torch.manual_seed, which notes the whole stack for each kind of accelerator that is not
    # there.
    torch.default_generator.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard() -> None:
    """A shell starts background jobs deaf to Ctrl-C, and so would be what tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _no_sync() -> Iterator[None]:
    """Wait for no disk: what tests write need not outlive a power failure."""
    connect = sqlite3.connect

    def connect_quickly(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        with contextlib.suppress(sqlite3.Error):  # it is not a database
            connection.execute("PRAGMA synchronous = OFF")
        return connection

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr(sqlite3, "connect", connect_quickly)
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_command_line() -> Iterator[None]:
    """Build what Typer makes of an app's functions once, not for each command that a test gives."""
    import typer.main
    import typer.testing

    build = cache(typer.main.get_command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", build)
        patch.setattr(typer.testing, "_get_command", build)
        yield


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the cache of this test session, which the workers of pytest-xdist share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_cache(cache_dir: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDKD_CACHE_DIR", str(cache_dir))
        patch.setenv("FLWR_TELEMETRY_ENABLED", "0")
        yield


@pytest.fixture(scope="session")
def make_cache(cache_dir: Path) -> Callable[[Path], Path]:
    """Return a function that makes a cache in a folder, without the runs of other tests.

    What runs begin from, as silos' models, is the session's, which must not be changed there.
    """

    def make_cache(folder: Path) -> Path:
        folder.mkdir()
        for kind in KINDS.keys() - {"arms"}:
            (cache_dir / kind).mkdir(exist_ok=True)
            (folder / kind).symlink_to(cache_dir / kind)
        return folder

    return make_cache


@pytest.fixture(scope="session")
def quick_searches() -> Iterator[None]:
    """Let Optuna read its migrations once, not for every new file of a search."""
    import alembic.util

    with pytest.MonkeyPatch.context() as patch:
        load = cache(alembic.util.load_python_file)
        patch.setattr(alembic.util, "load_python_file", load)
        yield


@pytest.fixture
def few_epochs(quick_searches: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let searches draw students of few epochs; up to a hundred would take most of the time."""
    monkeypatch.setattr("fedkd.tuning.space.EPOCHS", (1, 4))


@pytest.fixture(scope="session")
def golden() -> Path:
    """Return the folder of golden files."""
    return GOLDEN


START_COMMAND = """
import os, sys
os.environ.update(FEDKD_CACHE_DIR=cache, FLWR_TELEMETRY_ENABLED="0")
os.chdir(folder)
for number, end in ((1, out), (2, err)):
    os.dup2(end.fileno(), number)
    end.close()
exec(before)
encoding = os.environ.get("PYTHONIOENCODING")
sys.stdout, sys.stderr = (open(n, "w", closefd=False, encoding=encoding) for n in (1, 2))
sys.argv = ["fedkd", *arguments]
from fedkd.cli import main
main()
"""


class Command:
    """A ``fedkd`` command in a process of its own, which can be killed.

    The process is forked from one that has imported PyTorch, which takes seconds, once for all.
    Code may run in it ``before`` the command, to limit what it may use.
    """

    def __init__(
        self, forks: Any, folder: Path, *arguments: object, cache: Path, before: str = ""
    ) -> None:
        self._ends, given = {}, {}
        for name in ("out", "err"):
            self._ends[name], given[name] = forks.Pipe(duplex=False)
        values = {
            "arguments": [str(each) for each in arguments],
            "folder": str(folder),
            "cache": str(cache),
            "before": before,
        }
        self._process = forks.Process(target=exec, args=(START_COMMAND, {**values, **given}))
        self._process.start()
        for end in given.values():
            end.close()

    @property
    def pid(self) -> int:
        """Number of the process."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, or None while it runs; that of a signal is negative."""
        return self._process.exitcode

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        if self.returncode is None:
            self._process.kill()

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """Wait until it has ended; return what it printed on stdout and on stderr."""
        printed = dict.fromkeys(self._ends, b"")
        names = {end: name for name, end in self._ends.items()}
        deadline = time.monotonic() + timeout
        while names:
            ready = wait(list(names), timeout=max(0, deadline - time.monotonic()))
            assert ready, f"it runs on after {timeout} s"
            for end in ready:
                assert isinstance(end, Connection)
                some = os.read(end.fileno(), 1 << 16)
                printed[names[end]] += some
                if not some:
                    del names[end]
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"it runs on after {timeout} s"
        return printed["out"].decode(), printed["err"].decode()


PRELOADED = [
    *("fedkd.cli.run", "fedkd.runner.run", "fedkd.tuning.command", "strategies.server_app"),
    *("clients.handlers", "sklearn.datasets", "optuna"),
    *("flwr_datasets.partitioner", "jinja2", "experiments.paper.record"),
]


@pytest.fixture(scope="session")
def forks() -> BaseContext:
    """Return the context whose processes are forked from one that has imported PyTorch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


@pytest.fixture(scope="session")
def start(forks: BaseContext) -> Iterator[Callable[..., Command]]:
    """Return a function that starts a :class:`Command` in a folder, with a cache."""
    started: list[Command] = []

    def start(folder: Path, *arguments: object, cache: Path, before: str = "") -> Command:
        started.append(Command(forks, folder, *arguments, cache=cache, before=before))
        return started[-1]

    yield start
    for command in started:
        command.kill()


def tiny_data() -> dict[str, Any]:
    """Return a study of digits that runs in about a second."""
    return {
        "name": "tiny",
        "data": {"source": "digits", "transfer": {"size": 60}, "train_size": 150},
        "partition": {"scheme": "label-dirichlet", "silos": 3, "alpha": 0.5, "min_size": 12},
        "model": {"arch": "mlp"},
        "pretraining": {"epochs": 4, "lr": 0.05},
        "rounds": {"max": 2, "stop": "budget", "lr": 0.05},
        "targets": [0.3, 0.99],
        "baselines": ["fedavg"],
        "arms": {
            "fedavg": {"start": "random"},
            "fedkd": {
                "start": "consolidated",
                "consolidation": {"weighting": "familiarity", "epochs": 5},
            },
        },
        "seeds": [0],
        "engine": {"name": "inline", "workers": 2, "server_threads": 1},
    }


def change(data: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a study with the values at paths such as ``rounds/max`` replaced."""
    data = copy.deepcopy(data)
    for path, value in changes.items():
        here = data
        *parents, last = path.split("/")
        for parent in parents:
            here = here.setdefault(parent, {})
        here[last] = value
    return data


RAISING = """
import os, signal, sys
import torch
from torch import nn

class Raises(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        self.layer = nn.Linear(width, classes)

    def forward(self, x):
        if self.training and len(x) > 2:  # what is tried before a study has two images
            raise ArithmeticError("not today")
        return self.layer(x.flatten(1))

def raises(num_classes, in_channels, image_size):
    return Raises(in_channels * image_size**2, num_classes)

def method(student, lesson, settings, **options):
    return {}["loss"]
"""


@pytest.fixture(scope="session")
def raising() -> str:
    """Return a module of a user's whose model raises on line 13, and whose method on line 20."""
    return RAISING


@pytest.fixture(scope="session")
def make_data() -> Callable[..., dict[str, Any]]:
    """Return a function that gives the tiny study as plain data, with changes."""
    return lambda changes=None: change(tiny_data(), changes or {})


@pytest.fixture(scope="session")
def make_study() -> Callable[..., Study]:
    """Return a function that gives the tiny study, with changes."""
    return lambda changes=None: _parse(_write_yaml(change(tiny_data(), changes or {})))


def _write_yaml(data: dict[str, Any]) -> str:
    text: str = yaml.dump(data, Dumper=yaml.CSafeDumper, sort_keys=False)
    return text


@cache
def _parse(text: str) -> Study:
    """Parse a study once, however many tests have it: nobody can change one."""
    return parse_study(text)


@pytest.fixture(scope="session")
def make_summary() -> Callable[..., dict[str, Any]]:
    """Return a function that gives the summary of a study whose curves are made up.

    It takes each arm's accuracies by seed, ``{"fedavg": [[0.1, 0.5], ...], ...}``, and changes to
    the summary; ``fedavg`` is the baseline, and arms that are named fedkd or control consolidate.
    """
    return _make_summary


def _make_summary(
    curves: dict[str, list[list[float]]],
    targets: tuple[float, ...] = (0.5,),
    *,
    changes: dict[str, Any] | None = None,
) -> dict[str, Any]:
    from fedkd.runner.summary import run_entry

    seeds = range(max(len(each) for each in curves.values()))
    starts = {arm: "random" if arm == "fedavg" else "consolidated" for arm in curves}
    changed = {
        "arms": {arm: {"start": start} for arm, start in starts.items()},
        "baselines": ["fedavg"],
        "targets": list(targets),
        "seeds": list(seeds),
    }
    study = _parse(_write_yaml(change(tiny_data(), changed)))
    records = [
        RunRecord(
            arm=arm,
            seed=seed,
            engine="inline",
            curve=tuple(
                Point(index, accuracy, 1.0, 1_000_000, 1_000_000, 0.5, 3, 0, accuracy)
                for index, accuracy in enumerate(curve)
            ),
            stopped="budget",
            exchanges_before_round_1=0 if starts[arm] == "random" else 1,
            max_rounds=len(curve) - 1,
            targets=targets,
        )
        for arm, each in curves.items()
        for seed, curve in enumerate(each)
    ]
    summary = {
        "schema": 1,
        "study": "tiny",
        "resolved": study.to_dict(),
        "versions": {"fedkd": "0.1.0"},
        "machine": {"cores": 2},
        "runs": [run_entry(record) for record in records],
        "comparison": compare_arms(records, baselines=study.baselines, targets=targets),
        "failures": [],
        "classes": ["zero", "one"],
        "silos": [
            {"seed": seed, "silo": f"silo-{n}", "num_examples": 9, "class_counts": [n, 9 - n]}
            for seed in seeds
            for n in range(3)
        ],
    }
    return change(summary, changes or {})


@dataclass
class Ran:
    """One arm that ran in this process, and what it ran with."""

    run: Any
    start: Any
    silos: list[Any]
    context: Any
    cohort: Any

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """The global model at the end."""
        return dict(self.run.model)

    @property
    def members(self) -> list[str]:
        """Names of the silos that introduced themselves."""
        return [member.name for member in self.run.members]

    @property
    def refused(self) -> list[tuple[str, int]]:
        """Silo and round of every reply that was not used."""
        return [(entry.silo, entry.round) for entry in self.run.quarantined]

    @property
    def reasons(self) -> str:
        """Why replies were not used."""
        return "; ".join(entry.reason for entry in self.run.quarantined)


class _Deaf:
    """An observer that does nothing."""

    def on_point(self, point: Any) -> None:
        pass

    def on_distillation(self, epoch: int, epochs: int) -> None:
        pass

    def on_waiting(self, reason: str) -> None:
        pass


@pytest.fixture(scope="session")
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for silos."""
    import torch

    with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as executor:
        yield executor


@pytest.fixture(scope="session")
def run_arm(pool: ThreadPoolExecutor, cache_dir: Path) -> Callable[..., Ran]:
    """Return a function that runs one arm with Flower's real apps on an in-process grid.

    Its ``tamper`` takes a silo's name, the question and the honest reply to the reply that the
    server gets instead; None stands for no reply at all, a list for several. With a ``folder``
    the run keeps its state there, and goes on from what it finds.
    """
    import torch

    from clients.silo import Silo
    from fedkd.engines.inline import InlineGrid, make_grid
    from fedkd.federation.federation import Federation
    from fedkd.messages import keys
    from strategies.context import RunContext
    from strategies.evaluation import central_evaluation
    from strategies.fedavg import initial_arrays
    from strategies.savepoint import CheckpointWriter
    from strategies.server_app import make_strategy

    class TamperingGrid(InlineGrid):
        tamper: Any = None
        names: tuple[str, ...] = ()

        def _answer(self, message: Any, context: Any) -> Any:
            reply = super()._answer(message, context)
            name = self.names[message.metadata.dst_node_id - 2]
            return self.tamper(name, message, reply) if self.tamper else reply

        def pull_messages(self, message_ids: Any) -> Any:
            replies: list[Any] = []
            while not replies and (received := super().pull_messages(message_ids)):
                for reply in received:
                    replies += reply if isinstance(reply, list) else [reply] if reply else []
            return replies

    def run(
        study: Study,
        arm: str,
        *,
        tamper: Any = None,
        test: bool = True,
        targets: tuple[float, ...] = (),
        folder: Path | None = None,
    ) -> Ran:
        federation = Federation.load(study, study.seeds[0], cache_dir)
        silos = [Silo.of(federation, name, arm) for name in study.silo_names]
        context = RunContext.of(federation, arm, targets)
        grid = make_grid(silos, study, {keys.CONFIG_ARM: arm}, pool, TamperingGrid)
        grid.tamper, grid.names = tamper, study.silo_names
        writer = CheckpointWriter(folder, context) if folder else None
        initial = initial_arrays(context)
        saved = writer.read(dict(initial.to_torch_state_dict())) if writer else None
        strategy = make_strategy(
            context, _Deaf(), "this-run", checkpoint_writer=writer, state=saved
        )
        starts, begin = [], strategy.begin

        def noting(*args: Any) -> Any:
            starts.append(begin(*args))
            return starts[-1]

        strategy.begin = noting  # type: ignore[method-assign]
        result = strategy.start(
            grid,
            initial,
            num_rounds=context.rounds.max,
            timeout=context.rounds.timeout,
            evaluate_fn=central_evaluation(context) if test else None,
        )
        found = dict(result.arrays.to_torch_state_dict())
        assert all(torch.equal(found[key], t) for key, t in strategy.state.model.items())
        return Ran(strategy.state, starts[0] if starts else None, silos, context, strategy.cohort)

    return run


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ``sentences.csv`` and ``minilm``, an encoder of random weights.

    Of the words of a sentence one tells its class.
    """
    import numpy as np
    import tokenizers
    import torch
    import transformers

    folder, draw = tmp_path_factory.mktemp("texts"), np.random.default_rng(0)
    telling = {"bad": ["awful", "dull", "worse"], "good": ["fine", "great", "kind"]}
    others = ["the", "film", "was", "very", "plot", "and", "cast"]
    rows = ["text,label"]
    for number in range(260):
        label = ("bad", "good")[number % 2]
        words = [*draw.choice(others, draw.integers(2, 9)), draw.choice(telling[label])]
        rows.append(f"{' '.join(words)} {number},{label}")
    (folder / "sentences.csv").write_text("\n".join(rows))
    known = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *others, *telling["bad"], *telling["good"]]
    known += [str(number) for number in range(260)]
    ids = {word: index for index, word in enumerate(known)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, "[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = transformers.BertConfig(
        vocab_size=300, num_hidden_layers=2, max_position_embeddings=64, **sizes
    )
    torch.manual_seed(0)
    encoder = folder / "minilm"
    transformers.BertModel(config).save_pretrained(encoder)
    transformers.BertForSequenceClassification(config).save_pretrained(encoder / "classifier")
    backend.save(str(encoder / "tokenizer.json"))
    (encoder / "tokenizer_config.json").write_text('{"pad_token": "[PAD]"}')
    return folder
