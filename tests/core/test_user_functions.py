"""Partitions, sources and local losses of the user's own: what is used, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedkd.config import OwnPartition, Rounds
from fedkd.config.own import function_keys
from fedkd.config.study_file import check_files, dump_study, parse_study
from fedkd.data.cached import cached_partition, load_cached_source
from fedkd.data.images import Images
from fedkd.data.partition import partition
from fedkd.data.sources import load_source
from fedkd.errors import UserError
from fedkd.federation.federation import Federation
from fedkd.training.compute import Compute
from fedkd.training.local import LocalTask, train_locally

NUMBERS = itertools.count()
LABELS = np.arange(20) % 4


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Return a function that writes a module and returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text: str) -> str:
        name = f"own_module_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


# --- Partitions

EVEN = """
import numpy as np

def function(labels, silos, generator, *, keep=1.0):
    labels[:] = -1  # the study's own must not change
    order = generator.permutation(len(labels))
    return np.array_split(order[: int(keep * len(labels))], silos)
"""


def own_partition(name: str, **changes: Any) -> OwnPartition:
    return OwnPartition(scheme=f"{name}:function", **{"silos": 3, "min_size": 2, **changes})


def test_a_function_divides_the_images_by_the_seed(module: Callable[[str], str]) -> None:
    spec = own_partition(module(EVEN))
    labels = LABELS.copy()
    first, again, other = (partition(labels, spec, seed) for seed in (0, 0, 1))
    assert np.array_equal(labels, LABELS)
    assert [part.tolist() for part in first] == [part.tolist() for part in again]
    assert [part.tolist() for part in first] != [part.tolist() for part in other]
    assert sorted(np.concatenate(first).tolist()) == list(range(20))
    assert {part.dtype for part in first} == {np.dtype(np.int64)}


def test_its_options_reach_it_and_images_may_be_left_out(module: Callable[[str], str]) -> None:
    parts = partition(LABELS, own_partition(module(EVEN), options={"keep": 0.5}), 0)
    assert len(np.concatenate(parts)) == 10


@pytest.mark.parametrize(
    ("returned", "refusal"),
    [
        ("None", "must return 3 arrays of indices, one for each silo, not NoneType"),
        ("5", "one for each silo, not int"),
        ("(part for part in [])", "one for each silo, not generator"),
        ("[[0, 1], [2, 3]]", "one for each silo, not 2"),
        ("[[0, 1], [2, 3], [4.0, 5.0]]", r"integers .*of silo-2 is float64 \[2\]"),
        ("[[0, 1], [2, 3], [True, False]]", r"of silo-2 is bool \[2\]"),
        ("[[0, 1], [2, 3], [[4], [5]]]", r"of silo-2 is int64 \[2, 1\]"),
        ("[[0, 1], [2, 3], [[4], [5, 6]]]", "raised ValueError"),
        ("[[0, 1], [2, 3], ['4', '5']]", "of silo-2 is <U1"),
        ("[[0, 1], [2, 3], None]", "of silo-2 is object"),
        ("[[0, 1], [2, 3], [4, 20]]", "from 0 to 19, but silo-2 has 20"),
        ("[[0, 1], [2, 3], [4, -1]]", "but silo-2 has -1"),
        ("[[0, 1], [2, 3], [4, 4]]", "disjoint, but silo-2 has 4 twice"),
        ("[[0, 1], [2, 3], [4, 1]]", "disjoint, but silo-2 has 1 and so has silo-0"),
        ("[[0, 1], [2, 3], [4]]", "partition.min_size: asks for 2 examples .* silo-2 only 1"),
        ("[[0, 1], [2, 3], []]", "partition.min_size: asks for 2 examples .* silo-2 only 0"),
        ("1 / 0", r"raised ZeroDivisionError: .*\(own_module_\d+.py, line 2\)"),
        ("{0: [0, 1], 1: [2, 3], 2: [4, 5]}", "one for each silo, not dict"),
    ],
)
def test_what_is_no_partition_is_refused(
    returned: str, refusal: str, module: Callable[[str], str]
) -> None:
    name = module(f"def function(labels, silos, generator):\n    return {returned}\n")
    with pytest.raises(UserError, match=refusal) as caught:
        partition(LABELS, own_partition(name), 0)
    assert f"{name}:function" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_option_that_the_function_does_not_take_is_refused(
    module: Callable[[str], str],
) -> None:
    spec = own_partition(module(EVEN), options={"kep": 0.5})
    with pytest.raises(UserError, match=r"argument 'kep'; it takes \(labels, .* line \d+\)$"):
        partition(LABELS, spec, 0)


def test_an_own_partition_is_drawn_anew_whatever_is_cached(
    module: Callable[[str], str], tmp_path: Path
) -> None:
    """It may read a file, of which no cache key knows."""
    file = tmp_path / "keep.txt"
    file.write_text("1.0")
    name = module(EVEN.replace("keep=1.0", "path").replace("keep *", "float(open(path).read()) *"))
    spec = own_partition(name, options={"path": str(file)})
    assert len(np.concatenate(cached_partition(LABELS, spec, 0, tmp_path))) == 20
    file.write_text("0.5")
    assert len(np.concatenate(cached_partition(LABELS, spec, 0, tmp_path))) == 10


# --- Sources

SOURCE = """
import numpy as np

def function(*, images=40, brightness=1, size=4):
    labels = np.arange(images) % 3
    pixels = np.zeros((images, size, size), dtype=np.uint8)
    pixels[:, 0, 0] = brightness * (1 + labels)
    return {"images": pixels, "labels": labels, "classes": ["a", "b", "c"]}
"""


def test_arrays_of_a_function_are_a_source(module: Callable[[str], str]) -> None:
    name = f"{module(SOURCE)}:function"
    source = load_source(name, options={"images": 30, "brightness": 9})
    assert source.name == name
    assert source.classes == ("a", "b", "c")
    assert source.train.images.shape == (30, 1, 4, 4)
    assert source.train.images[:3, 0, 0, 0].tolist() == [9, 18, 27]
    assert source.train.labels.dtype == torch.int64
    assert source.test is None
    assert load_source(name, image_size=8).image_size == 8


@pytest.mark.parametrize(
    ("returned", "refusal"),
    [
        ("None", "must return a mapping with images and labels, not NoneType"),
        ("(X, Y)", "must return a mapping with images and labels, not tuple"),
        ("{'images': X}", "the array labels is missing"),
        ("{'image': X, 'labels': Y}", "it returned 'image'; known are images, labels"),
        ("{'images': X, 'labels': Y, 'test_images': X}", "the array test_labels is missing"),
        ("{'images': X / 255, 'labels': Y}", r"the array images is float64 \[6, 4, 4\]; .*uint8"),
        ("{'images': X, 'labels': Y[:5]}", "images has 6 examples but labels has 5"),
        ("{'images': X, 'labels': Y / 1}", r"the array labels is float64 \[6\]"),
        ("{'images': X, 'labels': Y - 1}", "run from -1 to 1"),
        ("{'images': X[:0], 'labels': Y[:0]}", "not empty"),
        ("{'images': X[:, :2], 'labels': Y}", "must be square"),
        ("{'images': X, 'labels': 0 * Y}", "it has 1 classes"),
        ("{'images': X, 'labels': Y, 'classes': ['a', 'b']}", "run from 0 to 2.*within 0 to 1"),
        ("{'images': X, 'labels': Y, 'classes': ['a', 'b', 'a']}", "names one class twice"),
        ("{'images': X, 'labels': Y, 'classes': 'abc'}", "classes must be a list of names"),
        ("{'images': X, 'labels': Y, 'classes': 3}", "classes must be a list of names"),
        ("{'images': [[1], [1, 2]], 'labels': Y}", "raised ValueError"),
        ("{'images': None, 'labels': Y}", "the array images is object"),
        ("1 / 0", r"raised ZeroDivisionError: .*\(own_module_\d+.py, line 5\)"),
    ],
)
def test_what_is_no_source_is_refused(
    returned: str, refusal: str, module: Callable[[str], str]
) -> None:
    name = module(
        "import numpy as np\n"
        "X = np.zeros((6, 4, 4), dtype=np.uint8)\n"
        "Y = np.arange(6) % 3\n"
        "def function():\n"
        f"    return {returned}\n"
    )
    with pytest.raises(UserError, match=refusal) as caught:
        load_source(f"{name}:function")
    assert f"{name}:function" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_its_content_is_in_every_cache_key(
    module: Callable[[str], str], make_study: Any, tmp_path: Path
) -> None:
    name = f"{module(SOURCE)}:function"
    data = {"source": name, "transfer": {"size": 5}, "options": {"images": 60, "size": 8}}
    partition = {"scheme": "iid", "silos": 2}

    def fingerprint(**options: Any) -> dict[str, object]:
        own = {**data, "options": {**data["options"], **options}}
        study = make_study({"data": own, "partition": partition})
        return Federation.load(study, 0, tmp_path).fingerprint()

    assert fingerprint() == fingerprint()
    assert fingerprint() != fingerprint(brightness=2)
    assert not (tmp_path / "sources").exists()
    assert load_cached_source(name, image_size=None, cache=tmp_path).num_classes == 3


def test_a_transfer_set_may_come_from_a_function(
    module: Callable[[str], str], make_study: Any, tmp_path: Path
) -> None:
    name = f"{module(SOURCE)}:function"
    transfer = {"size": 10, "source": name, "options": {"brightness": 50, "size": 8}}
    study = make_study({"data/transfer": transfer})
    images = Federation.load(study, 0, tmp_path).split.transfer
    assert images is not None
    assert set(images.images[:, 0, 0, 0].tolist()) <= {50, 100, 150}


# --- Local losses

LOSS = """
from torch.nn.functional import cross_entropy
from fedkd.training.local import Objective

def function(task, *, scale=1.0):
    def loss(logits, batch):
        return scale * cross_entropy(logits, batch[0])
    return Objective(loss)
"""


def train(name: str, **settings: Any) -> float:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 1, 2, 2), generator=generator, dtype=torch.uint8)
    data = Images(images, torch.arange(12) % 3)
    rounds = Rounds(local_loss=name, lr=1e-6, batch_size=4, **settings)
    task = LocalTask(model, data, 3, rounds, Compute())
    return train_locally(task, generator=torch.Generator().manual_seed(0))


def test_a_local_loss_of_ones_own_is_used_with_its_options(module: Callable[[str], str]) -> None:
    name = f"{module(LOSS)}:function"
    plain = train("cross-entropy")
    assert train(name) == plain
    assert train(name, options={"scale": 3.0}) == pytest.approx(3 * plain, rel=1e-4)


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        (LOSS.replace("return Objective(loss)", "return loss"), "must return a .*Objective, not f"),
        (LOSS.replace("(loss)", "(loss, (task.data.labels[:3],))"), "row for each of 12 examples"),
        (LOSS.replace("(loss)", "(loss, (3,))"), "a row for each of 12 examples"),
        (LOSS.replace("scale * cross", "0.5; cross"), "must compute a scalar tensor"),
        (LOSS.replace("batch[0])", "batch[0], reduction='none')"), "must compute a scalar tensor"),
        (LOSS.replace("batch[0])", "batch[0]).detach()"), "with a gradient"),
        (LOSS.replace("batch[0]", "batch[1]"), r"raised IndexError: .*\(own_module_\d+.py, line 7"),
        (LOSS.replace("return Obj", "raise KeyError('k')  #"), r"raised KeyError.*line 8\)"),
        (LOSS.replace("scale=1.0", "factor=1.0"), "raised NameError"),
    ],
)
def test_what_is_no_local_loss_is_refused(
    text: str, refusal: str, module: Callable[[str], str]
) -> None:
    name = f"{module(text)}:function"
    with pytest.raises(UserError, match=refusal) as caught:
        train(name)
    assert f"local loss {name}" in str(caught.value)


# --- In a study, before anything runs

STUDY = """
name: own
data: {source: digits}
targets: [0.5]
arms: {fedavg: {start: random}, fedkd: {start: consolidated}}
"""


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("data.source", "data: {source: 'MODULE:missing'}"),
        ("data.transfer.source", "data: {transfer: {source: 'MODULE:missing'}}"),
        ("partition.scheme", "partition: {scheme: 'MODULE:missing'}"),
        ("model.arch", "model: {arch: 'MODULE:missing'}"),
        ("model.per_silo.silo-1", "model: {per_silo: {silo-1: 'MODULE:missing'}}"),
        ("arms.x.arch", "arms: {x: {start: random, arch: 'MODULE:missing'}}"),
        ("rounds.local_loss", "rounds: {local_loss: 'MODULE:missing'}"),
        (
            "arms.x.rounds.local_loss",
            "arms: {x: {start: random, rounds: {local_loss: 'MODULE:missing'}}}",
        ),
        (
            "arms.fedkd.consolidation.method",
            "arms: {fedkd: {start: consolidated, consolidation: {method: 'MODULE:missing'}}}",
        ),
        (
            "arms.fedkd.consolidation.weighting",
            "arms: {fedkd: {start: consolidated, consolidation: {weighting: 'MODULE:missing'}}}",
        ),
    ],
)
def test_a_function_that_is_not_there_is_named_with_its_key(
    key: str, change: str, module: Callable[[str], str]
) -> None:
    name = module("")
    top = change.partition(":")[0]
    lines = [line for line in STUDY.strip().splitlines() if not line.startswith(f"{top}:")]
    study = parse_study("\n".join([*lines, change.replace("MODULE", name)]))
    assert parse_study(dump_study(study)) == study
    with pytest.raises(UserError) as caught:
        check_files(study)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{key}: ")
    assert f"{name}:missing cannot be imported: module '{name}' has no attribute" in line


METHOD = """
import fedkd

@fedkd.method(needs=NEEDS, uses=USES)
def function(*args, **options):
    pass
"""


@pytest.mark.parametrize(
    ("needs", "uses", "settings", "refusal"),
    [
        ("set()", "set()", "temperature: 2", "arms.fedkd.consolidation: temperature: is not used"),
        ("set()", "{'temperature'}", "temperature: 2", None),
        ("{'labels'}", "set()", "epochs: 2", "arms.fedkd.consolidation.method: .* from labels"),
        ("{'labels'}", "set()", "teachers: validation", None),
        ("{'models'}", "set()", "mode: logits, student: fresh", "trains the silos' models"),
        ("set()", "set()", "mode: logits, student: fresh", None),
        ("set()", "set()", "mixup: true", "mixup: is not used"),
    ],
)
def test_settings_of_a_method_of_ones_own_are_checked_by_its_declaration(
    needs: str, uses: str, settings: str, refusal: str | None, module: Callable[[str], str]
) -> None:
    name = module(METHOD.replace("NEEDS", needs).replace("USES", uses))
    own = f"{{method: '{name}:function', {settings}}}"
    study = parse_study(
        STUDY.replace("start: consolidated", f"start: consolidated, consolidation: {own}")
    )
    if refusal is None:
        check_files(study)
        return
    with pytest.raises(UserError, match=refusal):
        check_files(study)


def test_keys_of_an_arm_name_every_function_of_ones_own(module: Callable[[str], str]) -> None:
    name = module("def function(*args, **options):\n    pass\n")
    study = parse_study(
        f"""
name: keys
data: {{source: '{name}:function', transfer: {{source: '{name}:function'}}}}
partition: {{scheme: '{name}:function'}}
rounds: {{local_loss: '{name}:function'}}
targets: [0.5]
arms:
  plain: {{start: random, rounds: {{local_loss: proximal}}}}
  fedkd:
    start: consolidated
    consolidation: {{method: '{name}:function', weighting: '{name}:function'}}
"""
    )
    keys = function_keys(study, "fedkd")
    assert len(keys) == 6
    assert {key.partition("@")[0] for key in keys} == {f"{name}:function"}
    assert len(function_keys(study, "plain")) == 3
    assert function_keys(parse_study(STUDY), "fedkd") == []


def test_deployed_silos_run_no_code_that_a_study_names() -> None:
    text = """
name: field
data: {classes: [a, b], channels: 1, image_size: 8}
partition: {scheme: deployed, names: [north, south]}
targets: [0.5]
arms: {fedavg: {start: random, rounds: {local_loss: 'mymod:loss'}}}
"""
    with pytest.raises(UserError, match=r"arms\.fedavg: local_loss mymod:loss is code that a stud"):
        parse_study(text)
