"""The files in experiments/examples: each is used by its name from a folder outside the project."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "experiments" / "examples"


@pytest.fixture(scope="module")
def compare(start: Any) -> Callable[..., dict[str, Any]]:
    """Return a function that runs a study in a folder and gives its summary."""

    def compare(folder: Path, study: str, *options: str) -> dict[str, Any]:
        command = start(folder, "compare", study, "--json", *options, cache=folder / "cache")
        out, err = command.communicate()
        assert command.returncode == 0, err
        summary: dict[str, Any] = json.loads(out)
        return summary

    return compare


def run_of(summary: dict[str, Any], arm: str) -> dict[str, Any]:
    (run,) = [run for run in summary["runs"] if run["arm"] == arm]
    return run


def measured(run: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a run's curve without its seconds."""
    return [{k: v for k, v in point.items() if k != "seconds"} for point in run["curve"]]


# What makes the study of examples.yaml run in seconds.
SHORT = [
    *("--set", "rounds.max=2", "--set", "rounds.stop=budget", "--set", "pretraining.epochs=3"),
    *("--set", "data.options.images=400", "--set", "data.transfer.size=60"),
]
NO_PENALTY = (
    "arms.fedavg-no-penalty={start: random, rounds: {local_loss: 'prox_entropy:prox_entropy', "
    "mu: 0, options: {entropy: 0}}}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a scratch folder with a copy of every example, and nothing else."""
    folder = tmp_path_factory.mktemp("scratch")
    for file in EXAMPLES.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="module")
def summary(folder: Path, compare: Any) -> dict[str, Any]:
    return compare(folder, "examples.yaml", *SHORT, "--set", NO_PENALTY)


def test_the_source_gives_the_images(summary: dict[str, Any]) -> None:
    assert summary["classes"] == [f"at {degrees} degrees" for degrees in (0, 72, 144, 216, 288)]
    # 80 test images, 32 for validation and 60 for transfer are not in silos.
    assert sum(silo["num_examples"] for silo in summary["silos"]) == 400 - 80 - 32 - 60


def test_the_partition_gives_the_sizes(summary: dict[str, Any]) -> None:
    shares = np.array([rank**-1.2 for rank in range(1, 6)])
    sizes = [silo["num_examples"] for silo in summary["silos"]]
    assert np.abs(np.array(sizes) - 228 * shares / shares.sum()).max() <= 1
    assert sizes == sorted(sizes, reverse=True)


def test_the_local_loss_trains_the_silos(summary: dict[str, Any]) -> None:
    plain, own = (measured(run_of(summary, arm)) for arm in ("fedavg", "fedavg-prox-entropy"))
    assert own[0] == plain[0]
    assert own[1] != plain[1]
    assert measured(run_of(summary, "fedavg-no-penalty")) == plain


def test_the_method_distils_the_student(summary: dict[str, Any]) -> None:
    plain, own = (run_of(summary, arm) for arm in ("fedkd", "fedkd-annealed"))
    assert own["notes"]["mean_weights"] == plain["notes"]["mean_weights"]
    assert measured(own)[0] != measured(plain)[0]


def test_an_edit_of_an_example_makes_new_runs_of_the_arms_that_use_it(
    folder: Path, compare: Any, summary: dict[str, Any]
) -> None:
    assert not any(run["cached"] for run in summary["runs"])
    file = folder / "prox_entropy.py"
    text = file.read_text()
    file.write_text(text.replace("- entropy *", "+ entropy *"))
    try:
        again = compare(folder, "examples.yaml", *SHORT, "--set", NO_PENALTY)
    finally:
        file.write_text(text)
    cached = {run["arm"] for run in again["runs"] if run["cached"]}
    assert cached == {"fedavg", "fedkd", "fedkd-annealed"}
    arm = "fedavg-prox-entropy"
    assert measured(run_of(again, arm)) != measured(run_of(summary, arm))


# A strategy and a start: fedyogi.py, median_start.py, server.yaml.


def points(run: dict[str, Any]) -> list[tuple[float, float]]:
    return [(point["accuracy"], point["loss"]) for point in run["curve"]]


def load_example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


SLOW = "arms.slow={start: random, strategy: 'fedyogi:fedyogi', options: {lr: 0.0001}}"
AVERAGE = "arms.average={start: average}"


@pytest.fixture(scope="module")
def server(folder: Path, compare: Any) -> dict[str, Any]:
    few = ["--set", "rounds.max=3", "--set", "pretraining.epochs=4"]
    return compare(folder, "server.yaml", *few, "--set", SLOW, "--set", AVERAGE)


def test_fedyogi_steps_by_its_options(server: dict[str, Any]) -> None:
    plain, own, slow = (points(run_of(server, arm)) for arm in ("fedavg", "fedyogi", "slow"))
    assert own[0] == slow[0] == plain[0]
    assert own[3][1] < slow[3][1] != plain[3][1]


def test_a_start_from_the_median_is_used_and_charged(server: dict[str, Any]) -> None:
    run = run_of(server, "median")
    assert (run["exchanges_before_round_1"], run["notes"]["models"]) == (1, 5)
    assert run["curve"][0]["silos_ok"] == 5
    starts = {points(run_of(server, arm))[0] for arm in ("fedavg", "average", "median")}
    assert len(starts) == 3


def test_a_start_and_a_strategy_go_together(server: dict[str, Any]) -> None:
    median, both = (points(run_of(server, arm)) for arm in ("median", "both"))
    assert both[0] == median[0]
    assert both[1] != median[1]


def test_fedyogi_by_hand() -> None:
    """Algorithm 2 of 2003.00295 on one parameter, over three rounds."""
    from strategies.updates import RoundModels

    update = load_example("fedyogi").FedYogi(["w"], lr=0.1, beta_1=0.8, beta_2=0.7, tau=0.01)
    first, second = 0.0, 0.01**2
    state = {"w": torch.tensor([1.0]), "buffer": torch.tensor([3.0])}
    for number, average in ((1, 1.5), (2, 0.2), (3, 0.9)):
        mean = {"w": torch.tensor([average]), "buffer": torch.tensor([float(number)])}
        sent = {**state}
        state = update(RoundModels(number, sent, [mean], mean))
        change = float(mean["w"].double() - sent["w"].double())
        first = 0.8 * first + 0.2 * change
        square = change**2
        second = second - 0.3 * square * ((second > square) - (second < square))
        weight = float(sent["w"]) + 0.1 * first / (second**0.5 + 0.01)
        assert float(state["w"]) == pytest.approx(weight, abs=1e-6)
        assert float(state["buffer"]) == number, "buffers take the average"


def test_fedyogi_resumes_to_the_same_bits(run_arm: Any, make_study: Any, tmp_path: Path) -> None:
    load_example("fedyogi")
    arm = {"start": "random", "strategy": "fedyogi:fedyogi"}
    study = make_study({"arms": {"fedavg": {"start": "random"}, "yogi": arm}, "rounds/max": 4})

    def interrupting(silo: str, question: Any, reply: Any) -> Any:
        if question.content["config"]["server-round"] == 3:
            raise KeyboardInterrupt
        return reply

    with pytest.raises(KeyboardInterrupt):
        run_arm(study, "yogi", tamper=interrupting, folder=tmp_path)
    resumed, whole = run_arm(study, "yogi", folder=tmp_path), run_arm(study, "yogi")
    assert [(p.accuracy, p.loss) for p in resumed.run.curve] == [
        (p.accuracy, p.loss) for p in whole.run.curve
    ]
    assert all(torch.equal(resumed.state[key], tensor) for key, tensor in whole.state.items())
