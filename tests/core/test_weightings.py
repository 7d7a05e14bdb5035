"""Weightings of teachers and the pooling of their predictions."""

from __future__ import annotations

import math
import sys
import types
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedkd.config import Consolidation, Subset
from fedkd.distillation.weighting.ensemble import choose_subset, combine
from fedkd.distillation.weighting.weightings import (
    Evidence,
    confidence,
    familiarity,
    foreign_share,
    pool,
)
from fedkd.errors import UserError
from fedkd.registry import WEIGHTINGS

NAN = math.nan


def make_evidence(
    seed: int = 0, teachers: int = 4, samples: int = 5, without: tuple[int, ...] = ()
) -> Evidence:
    """Return random evidence; the teachers in ``without`` have no density."""
    generator = torch.Generator().manual_seed(seed)
    density = torch.randn(teachers, samples, generator=generator, dtype=torch.float64) * 30 - 60
    density[list(without)] = NAN
    return Evidence(
        logits=torch.randn(teachers, samples, 3, generator=generator) * 4,
        num_examples=torch.randint(1, 500, (teachers,), generator=generator),
        log_density=density,
        log_background=torch.randn(samples, generator=generator, dtype=torch.float64) * 10 - 60,
        accuracy=torch.rand(teachers, generator=generator, dtype=torch.float64),
        class_counts=torch.randint(0, 9, (teachers, 3), generator=generator).double(),
    )


def settings(name: str, *, background: bool = False, scale: float = 5.0) -> Consolidation:
    return Consolidation(weighting=name, familiarity={"background": background, "scale": scale})


def permute(evidence: Evidence, order: Tensor) -> Evidence:
    density = evidence.log_density
    return Evidence(
        evidence.logits[order],
        evidence.num_examples[order],
        None if density is None else density[order],
        evidence.log_background,
        None if evidence.accuracy is None else evidence.accuracy[order],
        None if evidence.class_counts is None else evidence.class_counts[order],
    )


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("name", WEIGHTINGS)
@given(st.integers(0, 10_000), st.integers(1, 6), st.data())
def test_weights_lie_in_the_simplex_and_follow_the_teachers(
    name: str, background: bool, seed: int, teachers: int, data: st.DataObject
) -> None:
    without = data.draw(st.sets(st.integers(0, teachers - 1)))
    order = torch.tensor(data.draw(st.permutations(range(teachers))))
    evidence = make_evidence(seed, teachers, without=tuple(without))
    weigh = WEIGHTINGS.load(name)
    chosen = settings(name, background=background)
    weights = weigh(evidence, chosen)
    assert weights.shape == ((teachers, 5, 3) if name == "class-prior" else (teachers, 5))
    assert bool((weights >= 0).all())
    torch.testing.assert_close(weights.sum(0), torch.ones(weights.shape[1:], dtype=torch.float64))
    torch.testing.assert_close(weigh(permute(evidence, order), chosen), weights[order])


def test_confidence_by_hand() -> None:
    """Entropies ln 2 and 0: weights in the ratio 2^(-1/tau) to 1."""
    logits = torch.tensor([[[0.0, 0.0]], [[60.0, 0.0]]])
    evidence = Evidence(logits, torch.tensor([10, 20]))
    weights = confidence(evidence, Consolidation(weighting="confidence", tau=0.5))
    torch.testing.assert_close(weights[:, 0], torch.tensor([0.2, 0.8], dtype=torch.float64))


def test_familiarity_by_hand() -> None:
    """At scale 1 the posterior: n_m p_m(x) / sum."""
    density = torch.tensor([[0.2, 0.5], [0.1, 0.1]], dtype=torch.float64)
    evidence = Evidence(torch.zeros(2, 2, 3), torch.tensor([10, 30]), density.log())
    expected = torch.tensor([[2 / 5, 5 / 8], [3 / 5, 3 / 8]], dtype=torch.float64)
    torch.testing.assert_close(familiarity(evidence, settings("familiarity", scale=1.0)), expected)


def test_a_large_scale_flattens_and_a_small_one_chooses() -> None:
    evidence = make_evidence()
    flat = familiarity(evidence, settings("familiarity", scale=1000.0))
    sharp = familiarity(evidence, settings("familiarity", scale=0.01))
    assert float((flat - 0.25).abs().max()) < 0.06
    assert float(sharp.max(0).values.min()) > 0.999


@given(st.integers(0, 10_000))
def test_a_teacher_without_a_density_gets_its_equal_share(seed: int) -> None:
    evidence = make_evidence(seed, without=(2,))
    weights = familiarity(evidence, settings("familiarity"))
    torch.testing.assert_close(weights[2], torch.full((5,), 0.25, dtype=torch.float64))
    order = torch.tensor([0, 1, 3])
    others = familiarity(permute(evidence, order), settings("familiarity"))
    torch.testing.assert_close(weights[order], others * 0.75)


@pytest.mark.parametrize("background", [False, True])
def test_without_any_density_all_are_equal(background: bool) -> None:
    expected = torch.full((4, 5), 0.25, dtype=torch.float64)
    chosen = settings("familiarity", background=background)
    torch.testing.assert_close(familiarity(make_evidence(without=(0, 1, 2, 3)), chosen), expected)
    unasked = Evidence(make_evidence().logits, make_evidence().num_examples)
    torch.testing.assert_close(familiarity(unasked, chosen), expected)


def test_the_background_takes_what_no_silo_knows() -> None:
    known = torch.tensor([[0.0, -1e6, -3.0], [-2.0, -1e6, -3.0]], dtype=torch.float64)
    background = torch.tensor([-500.0, -10.0, -3.0], dtype=torch.float64)
    evidence = Evidence(torch.zeros(2, 3, 2), torch.tensor([10, 30]), known, background)
    share = foreign_share(evidence, settings("familiarity", scale=1.0))
    # On the third sample: 40 exp(-3) of (10 + 30 + 40) exp(-3).
    torch.testing.assert_close(share, torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64))
    plain = familiarity(evidence, settings("familiarity", scale=1.0))
    mixed = familiarity(evidence, settings("familiarity", scale=1.0, background=True))
    torch.testing.assert_close(mixed, plain * (1 - share) + share / 2)
    torch.testing.assert_close(mixed[:, 1], torch.tensor([0.5, 0.5], dtype=torch.float64))


def test_the_foreign_share_needs_densities() -> None:
    bare = Evidence(torch.zeros(2, 3, 2), torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="needs densities"):
        foreign_share(bare, settings("familiarity"))


LOGITS = torch.tensor([[[2.0, 0.0]], [[-6.0, 0.0]]])
WEIGHTS = torch.tensor([[0.75], [0.25]], dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_pooling_by_hand(temperature: float) -> None:
    probs = pool(LOGITS, WEIGHTS, temperature=temperature, pooling="probs")
    expected = 0.75 * sigmoid(2 / temperature) + 0.25 * sigmoid(-6 / temperature)
    assert probs.dtype == torch.float32
    assert probs[0].tolist() == pytest.approx([expected, 1 - expected], abs=1e-6)
    logits = pool(LOGITS, WEIGHTS, temperature=temperature, pooling="logits")
    assert logits[0].tolist() == pytest.approx([0.5, 0.5], abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_a_mixture_is_softened_as_a_whole_by_hand(temperature: float) -> None:
    found = pool(LOGITS, WEIGHTS, temperature=temperature, pooling="mixture")
    first = 0.75 * sigmoid(2) + 0.25 * sigmoid(-6)
    odds = (first / (1 - first)) ** (1 / temperature)
    assert found.dtype == torch.float32
    assert found[0].tolist() == pytest.approx([odds / (1 + odds), 1 / (1 + odds)], abs=1e-6)


def test_a_mixture_bears_a_class_that_nobody_believes_in() -> None:
    sure = torch.tensor([[[2000.0, -2000.0]]])
    weights = torch.ones(1, 1, dtype=torch.float64)
    for temperature in (0.5, 1.0, 20.0):
        found = pool(sure, weights, temperature=temperature, pooling="mixture")
        assert found.tolist() == [[1.0, 0.0]]


def test_combine_weighs_at_temperature_one_and_pools_at_the_studys() -> None:
    evidence = make_evidence()
    hot = Consolidation(weighting="confidence", temperature=4.0)
    ensemble = combine(evidence, hot)
    weights = confidence(evidence, hot)
    assert torch.equal(ensemble.weights, weights)
    expected = pool(evidence.logits, weights, temperature=4.0, pooling="probs")
    assert torch.equal(ensemble.target, expected)
    torch.testing.assert_close(ensemble.target.sum(1), torch.ones(5))


@pytest.mark.parametrize("background", [False, True])
def test_combine_reports_the_foreign_share_whether_or_not_it_is_used(background: bool) -> None:
    chosen = settings("familiarity", background=background)
    evidence = make_evidence()
    found = combine(evidence, chosen).foreign
    assert found == pytest.approx(float(foreign_share(evidence, chosen).mean()))
    assert combine(make_evidence(without=(0, 1, 2, 3)), chosen).foreign is None
    assert combine(Evidence(evidence.logits, evidence.num_examples), chosen).foreign is None


def test_size_and_accuracy_by_hand() -> None:
    """Sizes 10 and 30; accuracies 0.2 (below a third, which is chance), 0.4 and 0.6."""
    logits = torch.zeros(2, 1, 3)
    sizes = WEIGHTINGS.load("size")(Evidence(logits, torch.tensor([10, 30])), settings("size"))
    assert sizes.tolist() == [[0.25], [0.75]]
    accuracies = torch.tensor([0.2, 0.4, 0.6], dtype=torch.float64)
    evidence = Evidence(torch.zeros(3, 1, 3), torch.tensor([1, 1, 1]), accuracy=accuracies)
    weights = WEIGHTINGS.load("accuracy")(evidence, settings("accuracy"))
    torch.testing.assert_close(weights[:, 0], torch.tensor([0, 0.4, 0.6], dtype=torch.float64))
    poor = replace(evidence, accuracy=torch.full((3,), 0.3, dtype=torch.float64))
    assert WEIGHTINGS.load("accuracy")(poor, settings("accuracy")).unique().tolist() == [1 / 3]


@pytest.mark.parametrize("name", ["accuracy", "class-prior"])
def test_a_weighting_without_its_evidence_says_what_it_needs(name: str) -> None:
    evidence = Evidence(torch.zeros(2, 1, 3), torch.tensor([1, 1]))
    with pytest.raises(UserError, match="needs"):
        WEIGHTINGS.load(name)(evidence, settings(name))


def test_class_prior_by_hand() -> None:
    """Silo 0 holds three quarters of class 0 and nothing of class 1; class 2 is nobody's."""
    counts = torch.tensor([[3.0, 0.0, 0.0], [1.0, 5.0, 0.0]], dtype=torch.float64)
    probs = torch.tensor([[[0.5, 0.3, 0.2]], [[0.2, 0.6, 0.2]]], dtype=torch.float64)
    evidence = Evidence(probs.log(), torch.tensor([3, 6]), class_counts=counts)
    target = combine(evidence, settings("class-prior")).target[0]
    unnormalised = torch.tensor([0.75 * 0.5 + 0.25 * 0.2, 0.6, 0.2])
    torch.testing.assert_close(target, unnormalised / unnormalised.sum())


def test_consensus_drops_the_odd_one_and_treats_those_that_agree_alike() -> None:
    """Of four teachers the one that contradicts the rest is the quarter that is dropped."""
    agree = torch.tensor([[4.0, 0.0], [0.0, 4.0]])
    logits = torch.stack([agree, agree, -agree, agree])
    weights = WEIGHTINGS.load("consensus")(
        Evidence(logits, torch.ones(4, dtype=torch.int64)), settings("consensus")
    )
    assert weights[2].tolist() == [0, 0]
    torch.testing.assert_close(weights[0], torch.full((2,), 1 / 3, dtype=torch.float64))


def test_consensus_by_hand() -> None:
    """Two certain teachers that contradict: JS = ln 2 for both, so they are equal."""
    logits = torch.tensor([[[100.0, 0.0]], [[0.0, 100.0]]])
    weights = WEIGHTINGS.load("consensus")(
        Evidence(logits, torch.tensor([1, 1])), settings("consensus")
    )
    torch.testing.assert_close(weights, torch.full((2, 1), 0.5, dtype=torch.float64))


@pytest.mark.parametrize(
    "given", [torch.ones(2, 1), torch.tensor([[math.nan], [1.0]]), torch.ones(3, 1), "no tensor"]
)
def test_a_users_weighting_that_is_none_is_refused(
    given: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("ownweights")
    module.mine = lambda evidence, settings: given  # type: ignore[attr-defined]  # set just here
    monkeypatch.setitem(sys.modules, "ownweights", module)
    evidence = Evidence(torch.zeros(2, 1, 3), torch.tensor([1, 1]))
    with pytest.raises(UserError, match="ownweights:mine must return"):
        combine(evidence, settings("ownweights:mine"))


def test_a_users_weighting_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("ownweights")
    module.first = lambda evidence, settings: torch.tensor([[1.0], [0.0]])  # type: ignore[attr-defined]  # set just here
    monkeypatch.setitem(sys.modules, "ownweights", module)
    logits = torch.tensor([[[9.0, 0.0, 0.0]], [[0.0, 9.0, 0.0]]])
    target = combine(Evidence(logits, torch.tensor([1, 1])), settings("ownweights:first")).target
    torch.testing.assert_close(target, torch.softmax(logits[0], 1))


def test_a_subset_holds_the_least_certain_or_random_images() -> None:
    target = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.99, 0.01], [0.6, 0.4]])
    assert choose_subset(target, Subset(size=2, by="entropy"), 0).tolist() == [1, 3]
    drawn = {tuple(choose_subset(target, Subset(size=2), seed).tolist()) for seed in range(20)}
    assert len(drawn) > 2
    assert choose_subset(target, Subset(size=9), 0).tolist() == [0, 1, 2, 3]


def one_hot(evidence: Evidence, _: Consolidation) -> Tensor:
    """Weigh the first teacher alone, in whole numbers."""
    weights = torch.zeros(evidence.logits.shape[:2], dtype=torch.int64)
    weights[0] = 1
    return weights


def learnt(evidence: Evidence, _: Consolidation) -> Tensor:
    """Weigh all alike, with a gradient."""
    teachers, samples, _classes = evidence.logits.shape
    return torch.softmax(torch.zeros(teachers, samples, requires_grad=True), dim=0)


def complex_ones(evidence: Evidence, _: Consolidation) -> Tensor:
    """Give what is no weight."""
    return torch.ones(evidence.logits.shape[:2], dtype=torch.complex64)


def fails(evidence: Evidence, settings: Consolidation) -> Tensor:
    """Fail as code does."""
    raise KeyError("densities")


def test_where_a_users_own_weighting_fails_is_told() -> None:
    with pytest.raises(UserError, match=r"fails raised KeyError: 'densities' \(test_weigh.*, line"):
        combine(make_evidence(), Consolidation(weighting=f"{__name__}:fails"))


def test_what_a_users_own_weighting_gives_is_brought_into_form() -> None:
    evidence = make_evidence()
    hot = combine(evidence, Consolidation(weighting=f"{__name__}:one_hot"))
    assert hot.weights.dtype == torch.float64
    assert hot.weights.mean(1).tolist() == [1.0] + [0.0] * (len(evidence.logits) - 1)
    assert not combine(evidence, Consolidation(weighting=f"{__name__}:learnt")).target.requires_grad
    with pytest.raises(UserError, match="must return a real tensor"):
        combine(evidence, Consolidation(weighting=f"{__name__}:complex_ones"))
