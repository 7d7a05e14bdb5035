"""The page of names: what each registry accepts, loads and refuses."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

import fedkd
from fedkd import registry
from fedkd.config import Rounds
from fedkd.errors import UserCodeError, UserError
from fedkd.registry import ARCHITECTURES, LOCAL_LOSSES, METHODS, SOURCES, WEIGHTINGS
from fedkd.user_code import MethodSpec
from fedkd.util.name_registry import Registry

REGISTRIES = [each for each in vars(registry).values() if isinstance(each, Registry)]
NUMBERS = itertools.count()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Return a function that writes a module and returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text: str) -> str:
        name = f"registry_module_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


@pytest.mark.parametrize("each", REGISTRIES, ids=lambda each: each.kind)
def test_every_name_leads_somewhere_and_every_kind_takes_ones_own(each: Registry) -> None:
    for name in (*each, *(f"{prefix}anything" for prefix in each.prefixes)):
        assert each.check(name) == name
        assert callable(each.load(name))
        assert not each.is_own(name)
        assert each.fingerprint(name) == name
    assert each.check("package.module:Thing_1") == "package.module:Thing_1"
    assert each.is_own("package.module:Thing_1")
    with pytest.raises(ValueError, match=rf"unknown {each.kind} 'nonsense'.*; known are .*:"):
        each.check("nonsense")


def test_all_kinds_of_names_are_on_the_page() -> None:
    kinds = {each.kind for each in REGISTRIES}
    assert kinds >= {
        *("distillation method", "weighting", "partition scheme", "data source", "architecture"),
        *("local loss", "strategy", "tracker"),
    }


@pytest.mark.parametrize("name", ["npz:module", "folder:f", "hf:owner", "npz:a.b:c"])
def test_a_known_prefix_wins_over_a_function(name: str) -> None:
    assert SOURCES.check(name) == name
    assert not SOURCES.is_own(name)
    prefix, rest = SOURCES.split(name)
    assert prefix is not None
    assert name.endswith(f":{rest}")


@pytest.mark.parametrize("name", ["npz:", "folder:", "hf:"])
def test_a_prefix_alone_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"data source '{name}' must be followed by"):
        SOURCES.check(name)
    with pytest.raises(ValueError, match="architecture 'torchvision:' must be followed by NAME"):
        ARCHITECTURES.check("torchvision:")


@pytest.mark.parametrize(
    "name", ["a.b", ":f", "a:", "a b:c", "a:b.c", "a..b:c", ".a:b", "1a:b", ""]
)
def test_names_that_are_no_function_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="unknown weighting"):
        WEIGHTINGS.check(name)


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("", "has no attribute 'function'"),
        ("function = 3", "is not a function or class"),
        ("def function(:", "invalid syntax"),
        ("import not_a_module_at_all", "No module named 'not_a_module_at_all'"),
        ("\n\nnot_defined", r"raised NameError: .*\(registry_module_\d+.py, line 3\)"),
    ],
)
def test_a_module_that_cannot_be_used_is_refused_in_a_sentence(
    text: str, refusal: str, module: Callable[[str], str]
) -> None:
    name = f"{module(text)}:function"
    with pytest.raises(UserError, match=refusal) as caught:
        WEIGHTINGS.load(name)
    assert str(caught.value).startswith(f"weighting {name} ")


def test_a_module_that_is_not_there_is_refused_with_what_to_do() -> None:
    with pytest.raises(UserError, match=r"No module named 'nowhere'; the module must be on PYTHON"):
        METHODS.load("nowhere.at_all:function")


def test_what_a_function_raises_names_kind_name_file_and_line(
    module: Callable[[str], str],
) -> None:
    name = module("def function(one, *, two):\n    return one[two]\n")
    assert WEIGHTINGS.call(f"{name}:function", [5, 6], two=1) == 6
    refusal = (
        rf"^weighting {name}:function raised IndexError: list index out of range "
        rf"\({name}.py, line 2\)$"
    )
    with pytest.raises(UserCodeError, match=refusal):
        WEIGHTINGS.call(f"{name}:function", [], two=0)


def test_a_method_of_ones_own_declares_what_it_uses(module: Callable[[str], str]) -> None:
    name = module(
        "import functools\n"
        "import fedkd\n"
        "@fedkd.method(needs={'models'}, uses=['temperature'])\n"
        "def declared(): pass\n"
        "@functools.wraps(declared)\n"
        "def wrapped(): pass\n"
        "def silent(): pass\n"
    )
    for function in ("declared", "wrapped"):
        spec = METHODS.spec(f"{name}:{function}")
        assert (set(spec.needs), set(spec.uses)) == ({"models"}, {"temperature"})
    assert METHODS.spec(f"{name}:silent") == MethodSpec()


def test_a_declaration_that_is_misspelt_is_refused(module: Callable[[str], str]) -> None:
    name = module("import fedkd\n@fedkd.method(uses={'warmth'})\ndef late(): pass\n")
    with pytest.raises(UserError, match=rf"a method declares 'warmth'.*\({name}.py, line 2\)"):
        METHODS.spec(f"{name}:late")


def test_a_local_loss_of_ones_own_declares_what_it_uses(module: Callable[[str], str]) -> None:
    name = module(
        "import fedkd\n@fedkd.local_loss(uses={'class_weights'})\ndef weighted(task): pass\n"
        "def plain(task): pass\n"
    )
    weighted = LOCAL_LOSSES.spec(f"{name}:weighted")
    rounds = Rounds(local_loss=f"{name}:weighted", class_weights="balanced")
    rounds.check_local_loss(weighted)
    with pytest.raises(ValueError, match="class_weights: is not used by local_loss"):
        rounds.check_local_loss(LOCAL_LOSSES.spec(f"{name}:plain"))
    rounds = Rounds(local_loss=f"{name}:weighted", label_smoothing=0.1)
    with pytest.raises(ValueError, match=r"label_smoothing: is not used by .* declare it: @fedkd"):
        rounds.check_local_loss(weighted)
    with pytest.raises(ValueError, match="a local loss declares 'mixup', not one of label_smoo"):
        fedkd.local_loss(uses={"mixup"})
