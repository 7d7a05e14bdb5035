"""The doctor: what is missing is told with a remedy, and no check hides another."""

from __future__ import annotations

import builtins
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fedkd import doctor
from fedkd.cli import main
from fedkd.doctor import CHECKS, examine


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a home folder of the test's own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("FLWR_HOME", "FEDKD_DATA_DIR", "XDG_CACHE_HOME", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor, "DEBIAN_DATA", tmp_path / "debian")
    return tmp_path


def test_a_check_that_raises_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> Any:
        raise RuntimeError("no such thing\nhere")

    monkeypatch.setattr(doctor, "CHECKS", {"first": failing, **CHECKS})
    findings = list(examine())
    assert (findings[0].name, findings[0].level) == ("first", "note")
    assert findings[0].value == "could not be checked: no such thing here"
    assert [finding.name for finding in findings[1:]] == list(CHECKS)


def test_a_package_that_is_missing_or_too_old_is_broken_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "ray":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "flwr" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    finding = doctor.check_packages()
    assert finding.level == "broken"
    assert "'flwr[simulation]<1.43,>=1.42'" in finding.advice
    assert "'ray>=2.40'" in finding.advice
    assert "torch" not in finding.advice


def test_a_pytorch_that_cannot_be_imported_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "torch":
            raise OSError("libcudart.so.13: cannot open shared object file")
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    finding = doctor.check_torch()
    assert finding.level == "broken"
    assert "libcudart" in finding.value


def test_a_gpu_is_named_with_the_key_that_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    finding = doctor.check_torch()
    assert "cuda:0 (Some GPU)" in finding.value
    assert "engine.device: cuda" in finding.advice
    assert finding.details["bf16"]["cuda"]


def test_the_cache_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDKD_CACHE_DIR", str(tmp_path))
    (tmp_path / "arms").mkdir()
    (tmp_path / "arms" / "a").write_bytes(b"0" * 3000)
    (tmp_path / "b").write_bytes(b"0" * 72)
    finding = doctor.check_cache()
    assert (finding.level, finding.value) == ("ok", f"{tmp_path}, 3.0 KiB")


def test_a_cache_that_cannot_be_used_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("FEDKD_CACHE_DIR", str(tmp_path / "taken" / "cache"))
    finding = doctor.check_cache()
    assert finding.level == "broken"
    assert "set FEDKD_CACHE_DIR" in finding.advice


def test_little_room_on_the_disk_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 10 << 20})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    finding = doctor.check_disk()
    assert finding.level == "note"
    assert "10.0 MiB free here" in finding.value
    assert "FEDKD_CACHE_DIR" in finding.advice


def test_data_sets_on_disk_are_found(home: Path) -> None:
    assert doctor.check_data().details["found"] == ["digits"]
    data = home / ".cache" / "fedkd" / "data"
    for place in (data / "MNIST" / "raw", home / "debian" / "fashion-mnist"):
        place.mkdir(parents=True)
        (place / "images.gz").touch()
    (data / "usps").mkdir()  # empty: a download that failed
    (home / ".cache" / "huggingface" / "datasets" / "someone___cats").mkdir(parents=True)
    found = doctor.check_data().details["found"]
    assert found == ["digits", "mnist", "fashion-mnist", "hf:someone/cats"]


def test_flowers_connections_are_named(home: Path) -> None:
    assert "no connections" in doctor.check_flower().value
    (home / ".flwr").mkdir()
    (home / ".flwr" / "config.toml").write_text(
        '[superlink]\ndefault = "mill"\n[superlink.local]\naddress = ":local:"\n'
        '[superlink.mill]\naddress = "10.0.0.1:8000"\n'
    )
    finding = doctor.check_flower()
    assert finding.value == "local (:local:), mill (10.0.0.1:8000, default)"


def test_a_limit_on_processors_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_cpu_quota", lambda: 0.5)
    finding = doctor.check_processor()
    assert finding.level == "note"
    assert "engine.workers to 1" in finding.advice


@pytest.mark.parametrize(("broken", "code"), [(False, 0), (True, 1)])
def test_the_command_tells_findings_and_ends_with_one_only_if_something_is_broken(
    broken: bool,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = doctor.Finding("thing", "broken", "it is gone", "bring it back")
    checks = {**({"thing": lambda: bad} if broken else {}), "python": doctor.check_python}
    monkeypatch.setattr(doctor, "CHECKS", checks)
    for options in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["fedkd", "doctor", *options])
        with pytest.raises(SystemExit) as caught:
            main()
        assert (caught.value.code or 0) == code
    out = capsys.readouterr().out
    text, _, listing = out.partition("[\n")
    assert ("BAD   thing      it is gone\n" in text) == broken
    assert ("-> bring it back" in text) == broken
    assert [finding["name"] for finding in json.loads("[" + listing)] == list(checks)


def test_the_nodes_of_a_cluster_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert doctor.check_cluster().level == "ok"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    answer = b'a warning\n[["one", 16.0, 2.0], ["two", 8.0, 0]]\n'
    monkeypatch.setattr(subprocess, "check_output", lambda *_, **__: answer)
    found = doctor.check_cluster()
    assert found.value == "10.0.0.1:6379: one (16 cores, 2 GPUs), two (8 cores, 0 GPUs)"
    monkeypatch.setattr(subprocess, "check_output", lambda *_, **__: b"")
    found = doctor.check_cluster()
    assert (found.level, found.value) == ("broken", "no cluster answers at 10.0.0.1:6379")
