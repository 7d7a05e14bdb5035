"""Weightings of teachers and the pooling of their predictions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedkd.distillation import WEIGHTINGS
from fedkd.distillation.distil import combine
from fedkd.distillation.weightings import Evidence, confidence, familiarity, foreign_share, pool
from fedkd.study import Consolidation

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
    assert weights.shape == (teachers, 5)
    assert bool((weights >= 0).all())
    torch.testing.assert_close(weights.sum(0), torch.ones(5, dtype=torch.float64))
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
