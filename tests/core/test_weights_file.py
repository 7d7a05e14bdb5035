"""Checkpoints in the forms that people have: read and noted, or refused in a sentence."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from fedkd.cli import app
from fedkd.config.study_file import check_files
from fedkd.errors import UserError
from fedkd.federation.check import check_study
from fedkd.federation.federation import Federation
from fedkd.models.build import Shape, build_model
from fedkd.models.state import copy_state, read_checkpoint
from fedkd.models.weights_file import read_weights
from fedkd.util.checkpoint_files import files_of, find_weights_problem

State = dict[str, Tensor]


def make_state(classes: int = 3) -> State:
    """Return the state of a small network with a counter."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, classes))
    return {f"layers.{key}": tensor.detach() for key, tensor in model.state_dict().items()}


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: tensor for key, tensor in state.items()}


def shards(path: Path, state: State) -> None:
    """Write two files and their index, as ``save_pretrained`` does."""
    names = list(state)
    parts = {"one.safetensors": names[:3], "two.safetensors": names[3:]}
    for name, keys in parts.items():
        save_file({key: state[key] for key in keys}, path.parent / name)
    weight_map = {key: name for name, keys in parts.items() for key in keys}
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def lightning(state: State) -> dict[str, Any]:
    return {"epoch": 3, "state_dict": prefixed("model.", state), "optimizer_states": [{"lr": 0.1}]}


FORMS: dict[str, tuple[str, Callable[[Path, State], None], tuple[str, ...]]] = {
    "state dict": ("a.pt", lambda path, state: torch.save(state, path), ()),
    "before zip archives": (
        "a.pth",
        lambda path, state: torch.save(state, path, _use_new_zipfile_serialization=False),
        (),
    ),
    "DataParallel under a key": (
        "a.pth",
        lambda path, state: torch.save({"state_dict": prefixed("module.", state)}, path),
        (
            "the weights are those under 'state_dict'",
            "the prefix module. was removed from all names",
        ),
    ),
    "Lightning": (
        "last.ckpt",
        lambda path, state: torch.save(lightning(state), path),
        (
            "the weights are those under 'state_dict'; entries left out besides: 2",
            "the prefix model. was removed from all names",
        ),
    ),
    "compiled, under two keys": (
        "a.bin",
        lambda path, state: torch.save(
            {"model": {"model_state_dict": prefixed("net._orig_mod.", state)}}, path
        ),
        (
            "the weights are those under 'model'",
            "the weights are those under 'model_state_dict'",
            "the prefix net._orig_mod. was removed from all names",
        ),
    ),
    "sharded": ("model.safetensors.index.json", shards, ()),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_tensors_and_says_what_was_undone(
    form: str, tmp_path: Path
) -> None:
    name, write, notes = FORMS[form]
    path, state = tmp_path / name, make_state()
    write(path, state)
    assert find_weights_problem(path) is None
    found = read_checkpoint(path, state)
    assert list(found.state) == list(state)
    assert all(torch.equal(found.state[key], state[key]) for key in state)
    assert found.notes == tuple(f"{path}: {note}" for note in notes)
    path.write_bytes(b"")
    assert all(torch.equal(found.state[key], state[key]) for key in state), "nothing stays mapped"


class Bomb:
    """Leaves a trace if it is ever unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return exec, (f"open({str(self.trace)!r}, 'w')", "")


def whole_model(path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2)), path)


def torchscript(path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(path))


def truncated(path: Path) -> None:
    torch.save(make_state(), path)
    path.write_bytes(path.read_bytes()[:600])


def holding_itself(path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, path)


def index_of_numbers(path: Path) -> None:
    path.write_text('{"weight_map": {"a": 5}}')


def deepspeed(path: Path) -> None:
    (path / "global_step3").mkdir(parents=True)
    (path / "zero_to_fp32.py").touch()


def folder(path: Path) -> None:
    path.mkdir()
    (path / "model.safetensors").touch()


def text(path: Path) -> None:
    path.write_text("weights: none")


def safetensors(path: Path) -> None:
    save_file(make_state(), path)


def index_of(*names: str) -> Callable[[Path], None]:
    return lambda path: void(path.write_text(json.dumps({"weight_map": dict(enumerate(names))})))


def void(_: object) -> None:
    return None


REFUSED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "whole pickled model": ("a.pt", whole_model, "is a whole pickled model, which runs code"),
    "objects beside tensors": (
        "a.ckpt",
        lambda path: torch.save({**lightning(make_state()), "args": argparse.Namespace()}, path),
        "holds argparse.Namespace beside tensors, which fedkd does not unpickle",
    ),
    "TorchScript": ("a.pt", torchscript, "is a TorchScript program, not weights"),
    "truncated": ("a.pth", truncated, "is damaged: PytorchStreamReader failed"),
    "text": ("a.pt", text, "is not a file that torch.save wrote"),
    "empty": ("a.pt", lambda path: path.touch(), "is not a file that torch.save wrote"),
    "missing": ("a.pt", lambda _: None, "does not exist"),
    "safetensors under another name": ("a.pt", safetensors, "rename it so that its name ends in"),
    "a list": ("a.pt", lambda path: torch.save([1], path), "holds an object of type list, not"),
    "no tensors": ("a.pt", lambda path: torch.save({}, path), "holds no tensors"),
    "an optimizer's state": (
        "a.pt",
        lambda path: torch.save({"epoch": 3, "w": torch.zeros(2)}, path),
        "its entry 'epoch' is an object of type int, not a tensor",
    ),
    "a key that is not text": (
        "a.pt",
        lambda path: torch.save({1: torch.zeros(2)}, path),
        "its key 1 is not text",
    ),
    "a dict that holds itself": ("a.pt", holding_itself, "is an object of type dict, not a tensor"),
    "sparse": (
        "a.pt",
        lambda path: torch.save({"a": torch.eye(3).to_sparse()}, path),
        "its entry 'a' is a sparse tensor",
    ),
    "without data": (
        "a.pt",
        lambda path: torch.save({"a": torch.zeros(3, device="meta")}, path),
        "its entry 'a' is a tensor of torch.float32 on meta, not of numbers",
    ),
    "4 TB in one number": (
        "a.pt",
        lambda path: torch.save({"a": torch.zeros(1).expand(10**12)}, path),
        "has tensors of more bytes than the file",
    ),
    "an index of numbers": (
        "a.safetensors.index.json",
        index_of_numbers,
        "is not an index of safetensors files",
    ),
    "DeepSpeed's folder": ("run.pt", deepspeed, "is a folder as DeepSpeed writes it"),
    "a folder": ("run.pt", folder, "name a file in it, such as"),
    "index of nothing": ("a.safetensors.index.json", index_of(), "it names 0 files"),
    "index of a missing file": (
        "a.safetensors.index.json",
        index_of("gone.safetensors"),
        "names a file that cannot be used: there is no file",
    ),
    "index of another folder's file": (
        "a.safetensors.index.json",
        index_of("../x.safetensors"),
        "it names '../x.safetensors', which is not a safetensors file beside it",
    ),
    "not an index": ("a.safetensors.index.json", text, "it is not an index of safetensors files"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    name, write, expected = REFUSED[case]
    write(tmp_path / name)
    with pytest.raises(UserError) as caught:
        read_weights(tmp_path / name, what="model.checkpoint")
    message = str(caught.value)
    assert message.startswith(f"model.checkpoint: {tmp_path / name} ")
    assert expected in message
    assert len(message.splitlines()) == 1
    assert "\x1b" not in message


@pytest.mark.parametrize("old", [True, False])
def test_code_in_a_pickle_is_never_run(old: bool, tmp_path: Path) -> None:
    state = {"state_dict": make_state(), "extra": Bomb(tmp_path / "trace")}
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=not old)
    with pytest.raises(UserError, match="does not unpickle, as that can run any code"):
        read_weights(tmp_path / "a.pt", what="FILE")
    assert not (tmp_path / "trace").exists()


def test_a_file_that_is_removed_while_it_is_opened_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by another process that replaces an entry of the cache; PyTorch opens it once more."""
    save_file(make_state(), tmp_path / "a.safetensors")
    mapped = torch.UntypedStorage.from_file

    def removed(*arguments: Any, **options: Any) -> Any:
        (tmp_path / "a.safetensors").unlink()
        return mapped(*arguments, **options)

    monkeypatch.setattr(torch.UntypedStorage, "from_file", removed)
    with pytest.raises(UserError, match=r"^x: .*a\.safetensors is not a readable safetensors file"):
        read_weights(tmp_path / "a.safetensors", what="x")


def test_a_head_of_other_classes_is_named_with_the_remedy(tmp_path: Path) -> None:
    torch.save(make_state(5), tmp_path / "a.pt")
    with pytest.raises(UserError) as caught:
        read_checkpoint(tmp_path / "a.pt", make_state(3))
    assert str(caught.value) == (
        f"checkpoint: {tmp_path / 'a.pt'} gives 5 outputs where 3 are expected: its last layer, "
        "'layers.2', is of other classes; train that layer on the study's 3 classes (a deployed "
        "silo maps its own to them by labels in silo.yaml)"
    )


def test_a_tensor_that_two_shards_have_is_an_error(tmp_path: Path) -> None:
    shards(tmp_path / "m.safetensors.index.json", make_state())
    shutil.copy(tmp_path / "one.safetensors", tmp_path / "two.safetensors")
    with pytest.raises(UserError, match=r"has 'layers\.0\.bias' a second time"):
        read_weights(tmp_path / "m.safetensors.index.json", what="FILE")


def test_all_files_of_a_checkpoint_are_known(tmp_path: Path) -> None:
    index = tmp_path / "m.safetensors.index.json"
    shards(index, make_state())
    assert [path.name for path in files_of(index)] == [
        index.name,
        "one.safetensors",
        "two.safetensors",
    ]
    assert files_of(tmp_path / "a.pt") == [tmp_path / "a.pt"]


def test_a_study_takes_them_and_knows_them_by_the_content_of_all_files(
    make_study: Any, tmp_path: Path
) -> None:
    index = tmp_path / "m.safetensors.index.json"
    state = copy_state(build_model("mlp", Shape(10, 1, 8), seed=5))
    shards(index, prefixed("net.", state))
    torch.save(whole := {"state_dict": state, "epoch": 1}, tmp_path / "a.ckpt")
    checkpoints = {"silo-0": str(index), "silo-1": str(tmp_path / "a.ckpt")}
    study = make_study({"pretraining/checkpoints": checkpoints})

    def load() -> Federation:
        return Federation.load(study, 0, tmp_path / "cache")

    check_files(study)
    before = load()
    for silo in checkpoints:
        own = before.pretrained(silo).state
        assert own is not None
        assert all(torch.equal(own[key], state[key]) for key in state)
    notes = check_study([before])
    assert f"{index}: the prefix net. was removed from all names" in notes
    assert before.fingerprint() == load().fingerprint()
    part = tmp_path / "two.safetensors"
    save_file({key: tensor + 1 for key, tensor in load_file(part).items()}, part)
    assert before.fingerprint() != load().fingerprint()
    torch.save({**whole, "args": argparse.Namespace()}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"^pretraining.checkpoints.silo-1: .* holds argparse"):
        check_study([load()])


def test_convert_shows_a_checkpoint_and_writes_its_weights(tmp_path: Path) -> None:
    source, out, state = tmp_path / "last.ckpt", tmp_path / "m.safetensors", make_state()
    torch.save(lightning(prefixed("module.", state)), source)
    done = CliRunner().invoke(app, ["convert", str(source), str(out), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["notes"] == [
        "the weights are those under 'state_dict'; entries left out besides: 2",
        "the prefix model. was removed from all names",
        "the prefix module. was removed from all names",
    ]
    assert found["shapes"]["layers.2.weight"] == [3, 4]
    assert found["types"] == ["float32", "int64"]
    assert read_checkpoint(out, state).notes == ()
    plain = CliRunner().invoke(app, ["convert", str(source), str(out)])
    assert "layers.2.bias [3]" in plain.stdout
    assert f"{len(state)} tensors" in plain.stdout
    for target in (out.with_suffix(".pt"), tmp_path / "d.safetensors"):
        (tmp_path / "d.safetensors").mkdir(exist_ok=True)
        assert isinstance(
            CliRunner().invoke(app, ["convert", str(source), str(target)]).exception, UserError
        )
