"""Suggestions for names that are not valid."""

import pytest

from fedkd.config import Study
from fedkd.config.rounds import Rounds
from fedkd.registry import STRATEGIES
from fedkd.suggestions import _ELSEWHERE, _OTHER_NAMES, RENAMED, suggest


@pytest.mark.parametrize(
    ("name", "valid", "phrase"),
    [
        ("optimiser", ["optimizer", "lr", "timeout"], "did you mean 'optimizer'?"),
        ("learning-rate", list(Rounds.model_fields), "did you mean 'lr'?"),
        ("Learning_Rate", list(Rounds.model_fields), "did you mean 'lr'?"),
        ("num_rounds", list(Rounds.model_fields), "did you mean 'max'?"),
        ("batch_sise", list(Rounds.model_fields), "did you mean 'batch_size'?"),
        ("fedprox", list(STRATEGIES), "rounds.local_loss: proximal"),
        ("fed_prox", list(STRATEGIES), "rounds.local_loss: proximal"),
        ("torch", ["safetensors", "torch-export"], "did you mean 'torch-export'?"),
        ("blends", ["mixed_inputs", "mixup"], "it was renamed to 'mixed_inputs'"),
    ],
)
def test_the_meaning_is_suggested(name: str, valid: list[str], phrase: str) -> None:
    assert phrase in suggest(name, valid)


@pytest.mark.parametrize("name", ["optimizer", "secure", "dropout", "gpu", "x"])
def test_nothing_unrelated_is_suggested(name: str) -> None:
    valid = [key for key in Rounds.model_fields if key != name]
    assert suggest(name, valid) == ""


def test_what_is_valid_is_not_called_a_synonym_of_itself() -> None:
    for meant, names in _OTHER_NAMES.items():
        assert meant not in names.split()
        assert not set(names.split()) & set(RENAMED)
    assert not set(_ELSEWHERE) & set(STRATEGIES)


def test_synonyms_of_the_top_level_are_its_keys() -> None:
    assert "did you mean 'seeds'?" in suggest("seed", list(Study.model_fields))
