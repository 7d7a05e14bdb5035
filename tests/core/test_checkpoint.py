"""Checkpoints: what is written comes back, and what does not fit is refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from safetensors.torch import save_model as safetensors_model
from torch import nn

from fedkd.errors import UserError
from fedkd.models.state import (
    average_states,
    copy_state,
    load_state,
    mismatch,
    read_checkpoint,
    save_state,
)
from fedkd.util.files import parse_json, replacing, write_json


def make_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """Return a state dict with floats of two widths, a counter and a mask."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(3, 4, generator=generator),
        "wide": torch.randn(5, generator=generator, dtype=torch.float64),
        "steps": torch.tensor(7 + seed),
        "mask": torch.tensor([True, False]),
    }


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[key].dtype == second[key].dtype and torch.equal(first[key], second[key])
        for key in first
    )


def test_a_state_comes_back_to_the_bit(tmp_path: Path) -> None:
    state = make_state()
    state["weight"][0, 0], state["weight"][0, 1] = float("nan"), -0.0
    save_state(tmp_path / "deep" / "m.safetensors", state)
    found = load_state(tmp_path / "deep" / "m.safetensors", make_state(1))
    assert list(found) == list(state)
    assert torch.equal(found["weight"].view(torch.int32), state["weight"].view(torch.int32))
    del found["weight"], state["weight"]
    assert same(found, state)


def test_tied_and_transposed_tensors_can_be_saved(tmp_path: Path) -> None:
    shared = torch.randn(4, 4)
    state = {"a": shared, "b": shared, "c": shared.T, "d": shared[1:]}
    save_state(tmp_path / "m.safetensors", state)
    assert same(load_state(tmp_path / "m.safetensors", state), state)


def test_a_copied_state_is_independent_of_the_model() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    state = copy_state(model)
    before = {key: tensor.clone() for key, tensor in state.items()}
    with torch.no_grad():
        model[0].weight.add_(1)
    assert same(state, before)
    assert not any(tensor.requires_grad for tensor in state.values())


MISFITS = {
    "missing key": ({"weight": None}, r"1 of 4 tensors are missing \('weight'\)"),
    "extra key": ({"bias": torch.zeros(2)}, r"1 tensors are not the model's \('bias'\)"),
    "transposed": ({"weight": torch.zeros(4, 3)}, r"'weight' is \[4, 3\] .* \[3, 4\]"),
    "broadcastable": ({"weight": torch.zeros(1, 4)}, r"'weight' is \[1, 4\]"),
    "other type": ({"weight": torch.zeros(3, 4).int()}, "'weight' is torch.int32"),
    "all of these": (
        {"steps": None, "a": torch.zeros(1), "b": torch.zeros(1), "wide": torch.zeros(5)}
        | {"weight": torch.zeros(4), "c": torch.zeros(1), "d": torch.zeros(1)},
        (
            r"1 of 4 .*'steps'.*; 4 tensors .*'a', 'b', 'c', \.\.\..*; 1 have another shape "
            r".*'weight' is \[4\].*; 1 have another type .*'wide' is torch.float32"
        ),
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_another_architecture_is_refused(name: str, tmp_path: Path) -> None:
    changes, message = MISFITS[name]
    state = {k: v for k, v in {**make_state(), **changes}.items() if v is not None}
    save_state(tmp_path / "m.safetensors", state)
    with pytest.raises(UserError, match=message) as caught:
        load_state(tmp_path / "m.safetensors", make_state(), what="silo-3's model")
    assert str(caught.value).startswith("silo-3's model: ")
    assert mismatch(make_state(), make_state(1)) == ""


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(UserError, match="does not exist"):
        load_state(path, make_state())
    save_file(make_state(), path)
    whole = path.read_bytes()
    for content in (b"", whole[:5], whole[:40], whole[:-1], b"not a checkpoint at all" * 3):
        path.write_bytes(content)
        with pytest.raises(UserError, match="not a readable safetensors file"):
            load_state(path, make_state())


class Bomb:
    """Leaves a trace if it is ever unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return exec, (f"open({str(self.trace)!r}, 'w')", "")


def test_pickles_are_refused_and_never_opened(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    path = tmp_path / "m.safetensors"
    path.write_bytes(pickle.dumps({"weight": Bomb(trace)}))
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_state(path, make_state())
    torch.save(make_state(), path)
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_state(path, make_state())
    assert not trace.exists()


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(
    st.lists(finite, min_size=1, max_size=8),
    st.lists(st.floats(1, 1e6), min_size=1, max_size=12),
)
def test_averaging_equal_states_is_the_identity(values: list[float], weights: list[float]) -> None:
    state = {"weight": torch.tensor(values), "steps": torch.tensor(123_457)}
    average = average_states([state] * len(weights), weights)
    assert average["weight"].dtype == torch.float32
    assert torch.equal(average["weight"], state["weight"])
    assert torch.equal(average["steps"], state["steps"])


def test_the_average_is_weighted_and_keeps_types() -> None:
    states = [make_state(seed) for seed in range(3)]
    weights = [1.0, 2.0, 5.0]
    average = average_states(states, weights)
    for key in ("weight", "wide"):
        expected = sum(w * s[key].double() for w, s in zip(weights, states, strict=True)) / 8
        torch.testing.assert_close(average[key], expected.to(states[0][key].dtype))
    assert average["steps"].dtype == torch.int64
    assert int(average["steps"]) == 7, "integers are the first state's"
    assert average["steps"] is not states[0]["steps"]
    assert average["mask"].dtype == torch.bool
    assert torch.equal(average["mask"], states[0]["mask"])
    assert average["mask"] is not states[0]["mask"]


def test_the_average_of_a_batch_norm_model_loads() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model(torch.rand(4, 2))
    model.load_state_dict(average_states([copy_state(model)] * 2, [1.0, 3.0]))
    assert model[1].num_batches_tracked.dtype == torch.int64
    assert int(model[1].num_batches_tracked) == 1


def test_nothing_half_written_bears_the_final_name(tmp_path: Path) -> None:
    path = tmp_path / "result.json"

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []
    write_json(path, {"whole": True})
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == '{\n "whole": true\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_no_more_readable_than_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_json(tmp_path / "own.json", {})
    finally:
        os.umask(before)
    assert (tmp_path / "own.json").stat().st_mode & 0o777 == 0o600


def test_nan_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []
    assert parse_json('{"a": [1, 2.5]}') == {"a": [1, 2.5]}
    for text in ("NaN", "[-Infinity]", '{"a": 1e999}'):
        with pytest.raises(ValueError, match="is not a finite number"):
            parse_json(text)


class Net(nn.Module):
    """A model with a module of each kind of name."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.second = self.first[0] if tied else nn.Linear(4, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(inputs))


class Within(nn.Module):
    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.add_module(name, model)


def compiled_within(model: Net) -> Net:
    model.first = torch.compile(model.first, backend="eager")
    return model


WRAPPED = {
    "DataParallel": (nn.DataParallel, "the prefix module. was removed from all names"),
    "compile": (
        lambda model: torch.compile(model, backend="eager"),
        "the prefix _orig_mod. was removed from all names",
    ),
    "Lightning": (lambda m: Within(m, "model"), "the prefix model. was removed from all names"),
    "both": (
        lambda model: Within(nn.DataParallel(model), "net"),
        "the prefix net.module. was removed from all names",
    ),
    "a part": (compiled_within, "module. and _orig_mod. were removed from names"),
    "a part of a part": (
        lambda model: Within(compiled_within(model), "model"),
        "module. and _orig_mod. were removed from names; the prefix model. was removed",
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_names_that_a_wrapper_changed_are_undone_and_told(name: str, tmp_path: Path) -> None:
    wrap, note = WRAPPED[name]
    like, path = copy_state(Net()), tmp_path / "m.safetensors"
    wanted = copy_state(net := Net())
    safetensors_model(wrap(net), str(path))
    read = read_checkpoint(path, like)
    assert same(read.state, wanted)
    assert list(read.state) == list(like)
    (told,) = read.notes
    assert note in told
    assert str(path) in told


def test_a_model_in_a_wrapper_takes_the_file_of_a_bare_one(tmp_path: Path) -> None:
    path, net = tmp_path / "m.safetensors", Net()
    safetensors_model(net, str(path))
    read = read_checkpoint(path, copy_state(Within(Net(), "backbone")))
    assert same({k.removeprefix("backbone."): v for k, v in read.state.items()}, copy_state(net))
    assert "the prefix backbone. was added to all names" in read.notes[0]


def test_a_prefix_that_does_not_explain_all_is_named_and_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    state = {f"model.{key}": tensor for key, tensor in make_state().items()}
    save_state(path, state | {"criterion.weight": torch.zeros(2)})
    with pytest.raises(UserError, match=r"prefix 'model\.' of the others, 1 would be left over"):
        read_checkpoint(path, make_state())
    both = {f"{prefix}.{k}": t for prefix in ("model", "ema") for k, t in make_state().items()}
    save_state(path, both)
    with pytest.raises(UserError, match="4 of 4 tensors are missing"):
        read_checkpoint(path, make_state())


def test_names_that_would_fall_together_are_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_state(path, {"weight": torch.zeros(2), "module.weight": torch.ones(2)})
    with pytest.raises(UserError, match="1 tensors are not the model's"):
        read_checkpoint(path, {"weight": torch.zeros(2)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_floats_of_16_bits_are_converted_and_told(dtype: torch.dtype, tmp_path: Path) -> None:
    path, net = tmp_path / "m.safetensors", Net().to(dtype)
    safetensors_model(nn.DataParallel(net), str(path))
    read = read_checkpoint(path, copy_state(Net()))
    assert same(
        read.state,
        {k: v.float() if v.is_floating_point() else v for k, v in copy_state(net).items()},
    )
    assert "prefix module." in read.notes[0]
    kind = str(dtype).removeprefix("torch.")
    assert f"8 tensors of {kind} were converted to the model's type" in read.notes[1]


def test_shared_tensors_that_safetensors_wrote_once_are_read(tmp_path: Path) -> None:
    path, net = tmp_path / "m.safetensors", Net(tied=True)
    for model in (net, nn.DataParallel(net)):
        safetensors_model(model, str(path))
        assert len(load_file(path)) < len(net.state_dict())
        assert same(read_checkpoint(path, copy_state(Net(tied=True))).state, copy_state(net))


def test_metadata_that_names_no_tensor_of_the_file_adds_none(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    state = make_state()
    del state["wide"]
    save_state(path, state, {"wide": "no such tensor", "format": "pt", "weight": "steps"})
    with pytest.raises(UserError, match=r"1 of 4 tensors are missing \('wide'\)"):
        read_checkpoint(path, make_state())
