"""What the machine lacks is said of the machine, not of the model, file or function at hand."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from fedkd.data.sources import load_source
from fedkd.errors import UserCodeError, UserError, describe_shortage
from fedkd.models import build
from fedkd.models.build import Shape, build_model
from fedkd.user_code import calling
from fedkd.util.cache_entries import has_entry, new_entry

EXHAUSTED = {
    "memory": MemoryError(),
    "allocator": RuntimeError(
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: 12 bytes"
    ),
    "kernel": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "files": OSError(errno.EMFILE, "Too many open files", "x.png"),
    "threads": RuntimeError("can't start new thread"),
}


@pytest.mark.parametrize("error", EXHAUSTED.values(), ids=list(EXHAUSTED))
def test_a_lack_is_not_a_fault_of_a_users_model(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise error

    monkeypatch.setattr(build, "_find", lambda _: fail)
    with pytest.raises(type(error)) as caught:
        build_model("mlp", Shape(2, 1, 8), seed=0)
    with pytest.raises(type(error)), calling("architecture", "own:net"):
        fail()
    assert caught.value is error
    assert describe_shortage(error)


def test_another_error_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise ValueError("odd size")

    monkeypatch.setattr(build, "_find", lambda _: fail)
    with pytest.raises(UserError, match=r"mlp cannot be built for .*: odd size"):
        build_model("mlp", Shape(2, 1, 8), seed=0)
    with (
        pytest.raises(UserCodeError, match="own:net raised ValueError"),
        calling("model", "own:net"),
    ):
        fail()
    assert describe_shortage(ValueError("odd size")) is None


def test_a_lack_is_found_behind_the_error_that_wraps_it() -> None:
    outer = RuntimeError("the loader failed")
    outer.__cause__ = EXHAUSTED["files"]
    assert describe_shortage(outer) == describe_shortage(EXHAUSTED["files"])


def test_files_that_cannot_be_opened_now_are_neither_damaged_nor_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_entry(tmp_path / "entry") as scratch:
        (scratch / "a.txt").write_text("a")
    for name in ("a", "b"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        (tmp_path / "pictures" / name / "1.png").write_bytes(b"never read")

    def fail(*_: Any, **__: Any) -> None:
        raise EXHAUSTED["files"]

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", fail)
        with pytest.raises(OSError, match="Too many open files"):
            has_entry(tmp_path / "entry")
        with pytest.raises(OSError, match="Too many open files"):
            load_source(f"folder:{tmp_path / 'pictures'}")
    assert has_entry(tmp_path / "entry")
