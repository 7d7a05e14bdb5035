"""Weights of another implementation get timm's names."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from experiments import lite0_weights


def test_weights_are_written_under_the_names_of_timm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = timm.create_model(lite0_weights.ARCH).state_dict()
    other = {f"_other.{number}": tensor for number, tensor in enumerate(state.values())}
    first = next(iter(other))
    other[first] = other[first].to(memory_format=torch.channels_last)  # as in the package
    torch.save(other, tmp_path / "lite0.pth")
    written = tmp_path / "lite0.safetensors"
    arguments = ["lite0_weights", str(written), "--weights", str(tmp_path / "lite0.pth")]
    monkeypatch.setattr("sys.argv", arguments)
    lite0_weights.main()
    found = load_file(written)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(SystemExit, match="these are not the weights of tf_efficientnet_lite0"):
        lite0_weights.rename({"weight": torch.zeros(2)})
