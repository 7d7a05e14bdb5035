"""Study files: reading YAML defensively, overriding, paths, checkpoints, and writing back."""

from __future__ import annotations

import json
import math
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from fedkd.config import Study
from fedkd.config.study_file import check_files, dump_study, load_study, parse_study, study_schema
from fedkd.errors import UserError
from fedkd.registry import LOCAL_LOSSES, METHODS, TORCHVISION_SETS, WEIGHTINGS
from fedkd.util.safetensors_header import find_checkpoint_problem
from fedkd.util.yaml_loader import MAX_DEPTH, dump_yaml, load_yaml

ROOT = Path(__file__).parents[2]
GOLDEN_KEYS = ROOT / "tests" / "golden" / "study_keys.txt"
STUDY = """\
name: small
data: {source: digits, transfer: {size: 100}}
partition: {scheme: label-dirichlet, silos: 4, alpha: 0.1}
rounds:
  max: 10
  lr: 5e-2
targets: [0.5, 0.9]
arms:
  fedavg: {start: random}
  fedkd: {start: consolidated, consolidation: {weighting: familiarity}}
"""


@pytest.fixture
def study_path(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


def refusal(text: str) -> str:
    """Return the one line with which a text is refused."""
    with pytest.raises(UserError) as caught:
        parse_study(text, origin="s.yaml")
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


# --- YAML


def make_bomb(first: str, others: str) -> str:
    """Return eleven anchors, each of which holds the one before it ten times."""
    lines = [f"a0: &a0 {first}"]
    for index in range(1, 12):
        aliases = ", ".join([f"*a{index - 1}"] * 10)
        lines += [f"a{index}: &a{index} {others.replace('ALIASES', aliases)}"]
    return "\n".join(lines)


YAML_REFUSALS = {
    "list": ("- name: x\n", "s.yaml: holds a list, but a study is a mapping of keys to values"),
    "scalar": ("hello\n", "s.yaml: holds only the value 'hello', but a study is a mapping"),
    "empty": ("", "s.yaml: is empty; a study needs at least name, targets and arms"),
    "only a comment": ("# soon\n", "s.yaml: is empty"),
    "null": ("null\n", "s.yaml: is empty"),
    "duplicate key": (
        STUDY + "rounds: {max: 3}\n",
        "s.yaml: line 11, column 1: the key 'rounds' appears twice, first on line 4",
    ),
    "duplicate key below": (
        STUDY.replace("  lr: 5e-2", "  max: 11"),
        "s.yaml: line 6, column 3: the key 'max' appears twice, first on line 5",
    ),
    "duplicate key in JSON": ('{"name": "x", "name": "y"}', "the key 'name' appears twice"),
    "number as key": ("1: x\n", "s.yaml: line 1, column 1: the key 1 must be text; put it in"),
    "switch as key": ("arms: {no: {}}\n", "line 1, column 8: the key no must be text"),
    "no key": ("? \n: x\n", "line 1, column 2: a key is missing before ':'"),
    "mapping as key": ("? {a: 1}\n: x\n", "a key must be text, not a list or a mapping"),
    "bomb of lists": (make_bomb("[1]", "[ALIASES]"), "expands to more than 100000 values"),
    "bomb of merges": (make_bomb("{k: 1}", "{<<: [ALIASES]}"), "expands to more than 100000"),
    "deep nesting": ("[" * 100_000, "column 51: nested more than 50 levels deep"),
    "deep block nesting": ("- " * 10_000, "nested more than 50 levels deep"),
    "deep nesting by aliases": (
        "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 2000)),
        "nested more than 50 levels deep",
    ),
    "list in itself": ("a: &a [*a]\n", "line 1, column 8: the anchor 'a' contains itself"),
    "mapping in itself": ("a: &a {b: {c: *a}}\n", "the anchor 'a' contains itself"),
    "unknown alias": ("a: *b\n", "line 1, column 4: found undefined alias 'b'"),
    "tag": ("name: !!str x\n", "line 1, column 7: the tag !!str has no place in a study"),
    "Python tag": ("!!python/object/apply:os.getcwd []", "the tag !!python/object/apply:os.getcwd"),
    "unclosed": ("targets: [0.5\n", "s.yaml: line 2, column 1: expected ',' or ']'"),
    "unclosed quotes": ("name: 'x\n", "the text ends inside a quoted value"),
    "bad indentation": ("a:\n  b: 1\n c: 2\n", "line 3, column 2: this does not fit what is above"),
    "two colons": ("name: a: b\n", "line 1, column 8: a ':' is not allowed here"),
    "tab": ("rounds:\n\tmax: 1\n", "line 2, column 1: a tab cannot stand here in YAML"),
    "two documents": ("a: 1\n---\nb: 2\n", "line 2, column 1: a second document begins here"),
    "control character": (
        "name: x\nb: \x07",
        "s.yaml: line 2: the character U+0007 is not allowed",
    ),
    "impossible character": ('name: "\\UFFFFFFFF"\n', "s.yaml: cannot be read as YAML"),
    "half a character": ('name: "\\ud800"\n', "half of a surrogate pair is no character"),
    "endless number": ("seeds: [" + "9" * 5000 + "]", "a number of 5000 digits is too long"),
    "too long": ("#" * 1_048_577, "s.yaml: longer than 1048576 characters"),
}


@pytest.mark.parametrize("case", YAML_REFUSALS)
def test_text_that_is_no_study_is_refused_in_one_sentence(case: str) -> None:
    text, expected = YAML_REFUSALS[case]
    assert expected in refusal(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("-1.5e+2", -150.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", -math.inf),
        ("010", 10),
        ("+7", 7),
        ("1_000", 1000),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("0x10", "0x10"),
        ("'1e-3'", "1e-3"),
        ("=", "="),
        ("1e", "1e"),
        (".", "."),
        ("on", True),
        ("~", None),
        ('"\\ud83d\\ude00"', "\U0001f600"),
    ],
)
def test_scalars_are_read_as_a_researcher_means_them(text: str, value: Any) -> None:
    loaded = load_yaml(text, origin="s")
    assert loaded == value
    assert type(loaded) is type(value)


def test_values_are_counted_without_aliases_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedkd.util.yaml_loader.MAX_NODES", 100)
    assert len(load_yaml("[" + "1," * 99 + "]", origin="s")) == 99
    with pytest.raises(UserError, match="expands to more than 100 values"):
        load_yaml("[" + "1," * 100 + "]", origin="s")


def test_merge_keys_and_aliases_work_within_bounds() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\n"
    expected = {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 2}}
    assert load_yaml(text, origin="s") == expected


@settings(deadline=None)
@given(st.text(alphabet="ab01:-,[]{}&*!|>'\"%@#~<?= \n\t\\u.eE+", max_size=60))
@example("%YAML " + "9" * 5000 + ".1\n--- a")
def test_any_text_is_read_or_refused_but_never_crashes(text: str) -> None:
    try:
        value = load_yaml(text, origin="s")
    except UserError as error:
        assert str(error).startswith("s: ")  # noqa: PT017 - either way is fine
    else:
        assert str(load_yaml(dump_yaml(value), origin="s")) == str(value)


JSON_LIKE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]))
    | st.sampled_from(["1e3", "1e-3", "0x1", "010", "1:30", "no", "~", "<<", "=", "2024-01-01"]),
    lambda child: st.lists(child, max_size=3) | st.dictionaries(st.text("ab1e", max_size=3), child),
    max_leaves=8,
)


@settings(deadline=None)
@given(JSON_LIKE)
@example("folder:a\x85b")
@example("a\u2028b")
@example(" two\n\nlines ")
def test_plain_values_survive_writing_and_reading(value: Any) -> None:
    assert load_yaml(dump_yaml(value), origin="s") == value


@settings(deadline=None)
@given(JSON_LIKE)
def test_json_is_read_like_yaml(value: Any) -> None:
    assert load_yaml(json.dumps({"a": value}), origin="s") == {"a": value}


# --- Files


def test_loads_a_file(study_path: Path) -> None:
    study = load_study(study_path)
    assert study == parse_study(STUDY)
    assert study.rounds.lr == 0.05


def test_byte_order_mark_and_windows_line_ends_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + STUDY.replace("\n", "\r\n").encode())
    assert load_study(path) == parse_study(STUDY)


def test_problems_begin_with_the_file(study_path: Path) -> None:
    study_path.write_text(STUDY.replace("max", "mx"))
    with pytest.raises(UserError) as caught:
        load_study(study_path)
    assert str(caught.value) == f"{study_path}: rounds.mx: unknown key (did you mean 'max'?)"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"name: \xff\xfe\n", "line 1 is not UTF-8 text; save it as UTF-8"),
        ("name: x\n# größer\n".encode("latin-1"), "line 2 is not UTF-8 text"),
        ("name: x\n".encode("utf-16"), "is a binary file, not a study in YAML"),
        (b"\x00\x01\x02", "is a binary file, not a study in YAML"),
        (b"#" * ((1 << 20) + 1), "is larger than 1 MiB, too large for a study"),
        (b"", "is empty; a study needs at least name, targets and arms"),
    ],
)
def test_unfit_content_is_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_study(path)
    assert str(caught.value).startswith(f"{path}: {expected}")


def test_what_is_no_readable_file_is_refused(tmp_path: Path, study_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, expected in [
        (tmp_path / "none.yaml", "there is no such file"),
        (tmp_path, "is a folder; name the study file in it"),
        (fifo, "is not a regular file"),
        (study_path / "below", "cannot be read: Not a directory"),
        (tmp_path / ("x" * 300), "cannot be read: File name too long"),
        (Path("a\0b"), "cannot be read: embedded null byte"),
    ]:
        with pytest.raises(UserError) as caught:
            load_study(path)
        assert str(caught.value) == f"{path}: {expected}"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_forbidden_file_is_refused(study_path: Path) -> None:
    study_path.chmod(0)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        load_study(study_path)


# --- Overrides


def test_overrides_set_values_in_order(study_path: Path) -> None:
    study = load_study(
        study_path,
        [
            "rounds.max=3",
            "rounds.max=4",
            "rounds.lr=1e-3",
            "targets.1=0.8",
            "pretraining.epochs=2",
            "arms.fedkd.consolidation.familiarity.density=knn",
            "arms.fedavg-mean={start: average}",
            "baselines=[fedavg, fedavg-mean]",
        ],
        seeds=(7, 8),
        engine="ray",
    )
    assert (study.rounds.max, study.rounds.lr) == (4, 0.001)
    assert study.targets == [0.5, 0.8]
    assert study.pretraining.epochs == 2
    assert study.arms["fedkd"].consolidation is not None
    assert study.arms["fedkd"].consolidation.familiarity.density == "knn"
    assert study.arms["fedavg-mean"].start == "average"
    assert study.baselines == ["fedavg", "fedavg-mean"]
    assert study.seeds == [7, 8]
    assert study.engine.name == "ray"


def test_engine_name_leaves_the_other_settings(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(STUDY + "engine: {workers: 3}\n")
    study = load_study(path, engine="hosts")
    assert (study.engine.name, study.engine.workers) == ("hosts", 3)


def test_override_below_an_empty_section_fills_it(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(STUDY + "pretraining:\n")
    assert load_study(path, ["pretraining.epochs=3"]).pretraining.epochs == 3


def test_override_of_an_aliased_mapping_changes_only_the_named_one(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    arms = "arms:\n  fedavg: &a {start: random, rounds: {max: 2}}\n  other: *a\n"
    path.write_text(STUDY.split("arms:")[0] + arms)
    study = load_study(path, ["arms.other.rounds.max=5"])
    assert (study.rounds_of("fedavg").max, study.rounds_of("other").max) == (2, 5)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rounds.max", "--set rounds.max: write it as path=value, such as rounds.max=10"),
        ("=3", "--set =3: write it as path=value"),
        ("rounds..max=3", "--set rounds..max=3: write it as path=value"),
        (".".join(["a"] * 51) + "=1", ": the path has more than 50 parts"),
        ("rounds.max.x=3", "--set rounds.max.x=3: rounds.max is 10, which has no keys of its own"),
        ("name.x.y=3", "--set name.x.y=3: name is 'small', which has no keys of its own"),
        ("targets.2=0.9", "targets is a list without entry '2'; targets.0 to targets.1"),
        ("targets.-1=0.9", "targets is a list without entry '-1'"),
        ("targets.x=0.9", "targets is a list without entry 'x'"),
        ("targets." + "9" * 5000 + "=0.9", "targets is a list without entry '999"),
        ("rounds.max=[1", "--set rounds.max=[1: line 1, column 3: expected ',' or ']'"),
        ("rounds={max: 1, max: 2}", "the key 'max' appears twice"),
        ("rounds.mx=3", "study.yaml: rounds.mx: unknown key (did you mean 'max'?)"),
        ("rounds.max=0", "study.yaml: rounds.max: 0 is less than 1"),
        ("rounds.max=", "study.yaml: rounds.max: is empty, but a whole number is expected"),
        ("seeds=[1, 1]", "study.yaml: seeds: [1, 1] names a seed twice"),
    ],
)
def test_impossible_override_is_refused(study_path: Path, override: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        load_study(study_path, [override])
    assert expected in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"seeds": [3, 3]}, "seeds: [3, 3] names a seed twice"),
        ({"seeds": [-3]}, "seeds.0: -3 is less than 0"),
        ({"seeds": []}, "seeds: needs at least 1 entry but has 0"),
        ({"engine": "no such engine"}, "engine.name: 'no such engine' is not a valid engine name"),
    ],
)
def test_impossible_arguments_are_refused(
    study_path: Path, arguments: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_study(study_path, **arguments)
    assert str(caught.value).startswith(f"{study_path}: {expected}")


def test_engine_cannot_be_named_below_a_scalar(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(STUDY + "engine: ray\n")
    with pytest.raises(UserError, match="engine is 'ray', which has no keys of its own"):
        load_study(path, engine="inline")


# --- Paths in a study

PATHS = """\
pretraining: {checkpoints: {silo-0: models/a.safetensors, silo-1: ~/b.safetensors}}
data: {source: "npz:../images.npz", transfer: {source: "folder:images"}}
"""


def test_relative_paths_become_absolute_from_the_study_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "studies"
    folder.mkdir()
    (folder / "s.yaml").write_text(STUDY.replace(STUDY.splitlines()[1] + "\n", PATHS))
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.chdir(tmp_path)
    study = load_study(Path("studies/s.yaml"))
    assert study.pretraining.checkpoints == {
        "silo-0": str(folder / "models" / "a.safetensors"),
        "silo-1": "/home/someone/b.safetensors",
    }
    assert study.data.source == f"npz:{folder}/../images.npz"
    assert study.data.transfer.source == f"folder:{folder}/images"
    assert parse_study(dump_study(study)) == study


def test_other_sources_and_travelling_text_stay_as_they_are(study_path: Path) -> None:
    assert load_study(study_path, ["data.source=hf:owner/name"]).data.source == "hf:owner/name"
    text = STUDY.replace(STUDY.splitlines()[1] + "\n", PATHS)
    study = parse_study(text)
    assert study.data.source == "npz:../images.npz"
    assert study.pretraining.checkpoints["silo-1"] == "~/b.safetensors"


def with_files(**changes: str) -> Study:
    data = yaml.safe_load(STUDY)
    checkpoint, source, transfer = map(changes.get, ("checkpoint", "source", "transfer"))
    if checkpoint is not None:
        data["pretraining"] = {"checkpoints": {"silo-2": checkpoint}}
    data["data"] = {"source": source or "digits", "transfer": {"source": transfer}}
    return Study.model_validate(data)


def test_present_files_pass(tmp_path: Path) -> None:
    checkpoint = tmp_path / "a.safetensors"
    save_file({"w": np.ones((2, 3), np.float32), "b": np.zeros(2)}, checkpoint)
    archive = tmp_path / "images.npz"
    archive.touch()
    check_files(
        with_files(
            checkpoint=str(checkpoint), source=f"npz:{archive}", transfer=f"folder:{tmp_path}"
        )
    )
    check_files(with_files(source="hf:owner/name"))


def test_every_missing_file_has_its_line(tmp_path: Path) -> None:
    study = with_files(
        checkpoint=f"{tmp_path}/a.safetensors",
        source=f"npz:{tmp_path}",
        transfer=f"folder:{tmp_path}/images",
    )
    with pytest.raises(UserError) as caught:
        check_files(study)
    assert str(caught.value).splitlines() == [
        f"pretraining.checkpoints.silo-2: there is no file {tmp_path}/a.safetensors",
        f"data.source: {tmp_path} is not a file",
        f"data.transfer.source: there is no folder {tmp_path}/images",
    ]


def test_source_that_cannot_be_a_path_is_refused() -> None:
    with pytest.raises(UserError, match=r"^data.source: a.b cannot be read: embedded null byte$"):
        check_files(with_files(source="npz:a\0b"))


# --- Checkpoints


def make_checkpoint(header: bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def one_tensor(width: int = 0) -> bytes:
    entry = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    return json.dumps({"__metadata__": {"by": "x"}, **entry}).encode().ljust(width)


NEVER = "fedkd never unpickles"
CONVERT = "if torch.save wrote it, let its name end in .pt"
CHECKPOINTS = {
    "empty file": (b"", "is truncated: it has only 0 bytes"),
    "ends in its length": (b"\x10\0\0", "is truncated: it has only 3 bytes"),
    "ends in its header": (make_checkpoint(one_tensor())[:40], "is truncated: it ends inside"),
    "ends in its data": (
        make_checkpoint(one_tensor(100), b"123"),
        "is truncated: it has 111 bytes but its header describes 112",
    ),
    "goes on after its data": (
        make_checkpoint(one_tensor(100), b"12345"),
        "is damaged: it has 113",
    ),
    "no JSON": (make_checkpoint(b"{nothing}"), "is damaged: its header is not that of"),
    "not UTF-8": (make_checkpoint(b'{"\xff": 1}'), "is damaged: its header"),
    "deep JSON": (make_checkpoint(b'{"a":' + b"[" * 100_000), "is damaged: its header"),
    "no offsets": (make_checkpoint(b'{"w": {"dtype": "F32"}}'), "is damaged: its header"),
    "entry of another kind": (make_checkpoint(b'{"w": 3}'), "is damaged: its header"),
    "one offset": (make_checkpoint(b'{"w": {"data_offsets": [0]}}'), "is damaged: its header"),
    "offset of another kind": (
        make_checkpoint(b'{"w": {"data_offsets": [0, 4.0]}}', b"1234"),
        "is damaged: its header",
    ),
    "offsets reversed": (make_checkpoint(b'{"w": {"data_offsets": [4, 0]}}'), "is damaged"),
    "no tensors": (make_checkpoint(b"{}"), "holds no tensors"),
    "endless header": (
        make_checkpoint(one_tensor(), length=100_000_001),
        "is not a safetensors file: it does not begin with a header",
    ),
    "text": (b"just some text", "is not a safetensors file"),
    "pickle": (pickle.dumps({"w": [1.0]}), f"is a pickle; {NEVER}"),
    "old pickle": (pickle.dumps({"w": [1.0]}, protocol=2), f"is a pickle; {NEVER}"),
    "short pickle": (pickle.dumps(1), f"is a pickle; {NEVER}"),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_unfit_checkpoint_is_refused(tmp_path: Path, case: str) -> None:
    content, expected = CHECKPOINTS[case]
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        check_files(with_files(checkpoint=str(path)))
    message = str(caught.value)
    assert message.startswith(f"pretraining.checkpoints.silo-2: {path} {expected}")
    assert (CONVERT in message) == (NEVER in message)


def test_zip_of_torch_save_under_another_name_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    problem = find_checkpoint_problem(path)
    assert problem is not None
    assert "is a zip archive" in problem
    assert NEVER in problem
    assert CONVERT in problem


@pytest.mark.parametrize("content", [make_checkpoint(one_tensor(), b"1234"), b"some other text"])
def test_other_endings_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    assert find_checkpoint_problem(path) == (
        f"{path} must be a safetensors file whose name ends in .safetensors"
    )


def test_checkpoint_that_is_no_file_is_refused(tmp_path: Path) -> None:
    assert find_checkpoint_problem(tmp_path) == f"{tmp_path} is not a file but a folder"
    fifo = tmp_path / "a.safetensors"
    os.mkfifo(fifo)
    assert find_checkpoint_problem(fifo) == f"{fifo} is not a file"


@pytest.mark.parametrize("width", [0x80, 0x4B50])
def test_header_length_may_look_like_a_pickle_or_zip(tmp_path: Path, width: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(make_checkpoint(one_tensor(width), b"1234"))
    assert path.read_bytes()[:2] in (b"\x80\0", b"PK")
    assert find_checkpoint_problem(path) is None


def test_link_to_a_checkpoint_keeps_its_own_name(tmp_path: Path, study_path: Path) -> None:
    blob = tmp_path / "0123abcd"
    blob.write_bytes(make_checkpoint(one_tensor(), b"1234"))
    (tmp_path / "a.safetensors").symlink_to(blob)
    check_files(load_study(study_path, ["pretraining.checkpoints.silo-0=a.safetensors"]))


# --- Writing back

RATES = st.floats(1e-9, 1000, exclude_min=True)
FRACTIONS = st.floats(0, 1, exclude_min=True)
COUNTS = st.integers(1, 1_000_000)
NAMES = st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}", fullmatch=True)
PARTITIONS = st.one_of(
    st.fixed_dictionaries({"scheme": st.just("iid"), "silos": st.integers(2, 50)}),
    st.fixed_dictionaries({"scheme": st.just("label-dirichlet"), "alpha": RATES}),
    st.fixed_dictionaries({"scheme": st.just("label-shards"), "classes_per_silo": COUNTS}),
)
PLAIN_ARMS = st.dictionaries(
    NAMES.filter(lambda name: not name.startswith("fedkd")),
    st.fixed_dictionaries(
        {"start": st.sampled_from(["random", "average", "best"])},
        optional={"rounds": st.fixed_dictionaries({}, optional={"max": COUNTS, "lr": RATES})},
    ),
    max_size=3,
)
CONSOLIDATIONS = st.fixed_dictionaries(
    {},
    optional={
        "weighting": st.sampled_from(sorted(WEIGHTINGS)),
        "temperature": st.floats(0.01, 100),
        "familiarity": st.fixed_dictionaries({}, optional={"scale": RATES, "dims": COUNTS}),
    },
)


@st.composite
def studies(draw: st.DrawFn) -> Study:
    arms = draw(PLAIN_ARMS)
    arms["fedkd"] = {"start": "consolidated", "consolidation": draw(CONSOLIDATIONS)}
    absolute = st.lists(FRACTIONS, min_size=1, max_size=4, unique=True)
    return Study.model_validate(
        {
            "name": draw(NAMES),
            "data": {"source": "folder:" + draw(st.text(st.characters(codec="utf-8"), min_size=1))},
            "partition": draw(PARTITIONS),
            "rounds": {"lr": draw(RATES), "max": draw(COUNTS)},
            "targets": draw(absolute | st.fixed_dictionaries({"of_baseline_best": absolute})),
            "baselines": ["fedkd"],
            "arms": arms,
            "seeds": draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, unique=True, max_size=5)),
            "engine": {"workers": draw(st.just("auto") | st.integers(1, 1024))},
        }
    )


@settings(deadline=None)
@given(studies())
def test_written_study_is_read_back_equal(study: Study) -> None:
    assert parse_study(dump_study(study)) == study
    assert parse_study(json.dumps(study.to_dict())) == study


def test_written_study_keeps_the_order_of_keys() -> None:
    lines = dump_study(parse_study(STUDY)).splitlines()
    keys = [line.split(":")[0] for line in lines if line[0].isalpha()]
    assert keys == list(Study.model_fields)


def test_arm_called_like_a_number_is_quoted() -> None:
    study = parse_study(STUDY.replace("fedavg:", "'1e3':"))
    assert "'1e3'" in dump_study(study)
    assert parse_study(dump_study(study)) == study


# --- Schema and the option surface


def test_schema_lists_registered_names() -> None:
    schema = study_schema()
    definitions = schema["$defs"]
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert schema["title"] == "fedkd study"
    consolidation = definitions["Consolidation"]["properties"]
    assert consolidation["method"]["examples"] == list(METHODS)
    assert consolidation["weighting"]["examples"] == list(WEIGHTINGS)
    assert "cnn" in definitions["Model"]["properties"]["arch"]["examples"]
    assert (
        "cnn" in definitions["Model"]["properties"]["per_silo"]["additionalProperties"]["examples"]
    )
    source = definitions["Data"]["properties"]["source"]["anyOf"][0]
    assert {*TORCHVISION_SETS, "npz:PATH"} < set(source["examples"])
    assert definitions["Rounds"]["properties"]["local_loss"]["examples"] == list(LOCAL_LOSSES)
    assert definitions["Iid"]["required"] == ["scheme"]
    json.dumps(schema)


def list_keys(schema: dict[str, Any], definitions: dict[str, Any], path: str) -> set[str]:
    """Return the dotted paths of all keys; ``*`` stands for a name that the user chooses."""
    keys = {path} if path else set()
    if "$ref" in schema:
        keys |= list_keys(definitions[schema["$ref"].rsplit("/", 1)[-1]], definitions, path)
    for member in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        keys |= list_keys(member, definitions, path)
    below = dict(schema.get("properties", {}))
    for pattern in schema.get("patternProperties", {}).values():
        below["*"] = pattern
    if isinstance(schema.get("additionalProperties"), dict):
        below["*"] = schema["additionalProperties"]
    for key, member in below.items():
        keys |= list_keys(member, definitions, f"{path}.{key}" if path else key)
    return keys


def test_no_key_of_a_study_comes_or_goes_unnoticed() -> None:
    schema = study_schema()
    keys = sorted(list_keys(schema, schema["$defs"], ""))
    frozen = GOLDEN_KEYS.read_text().split()
    assert keys == frozen, (
        "the keys of study files changed, which breaks people's studies; if it is meant, say so "
        f"in CHANGELOG.md and write the new list to {GOLDEN_KEYS.name}"
    )


def test_checking_a_study_imports_no_heavy_library(study_path: Path) -> None:
    code = (
        "import sys, pathlib, fedkd.data\n"
        "from fedkd.config.study_file import check_files, dump_study, load_study, study_schema\n"
        "study = load_study(pathlib.Path(sys.argv[1]))\n"
        "check_files(study), dump_study(study), study_schema()\n"
        "heavy = 'torch torchvision flwr sklearn ray numpy safetensors'.split()\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, study_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == "[]"


def test_depth_limit_leaves_room_for_every_study() -> None:
    deepest = max(line.count(".") for line in GOLDEN_KEYS.read_text().split())
    assert deepest + 2 < MAX_DEPTH / 2
