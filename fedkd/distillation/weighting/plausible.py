"""Leave out teachers whose predictions no trained model makes, before anything is made of them.

Absurd weights pass every check of form, and one such model ruins an average. What is left out here
is judged by itself and by the server's data alone, unlike in
:mod:`fedkd.distillation.weighting.exclusion`, where teachers contradict each other.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedkd.config import Consolidation
from fedkd.data.images import Images
from fedkd.distillation.teachers import Teacher, Teachers
from fedkd.errors import FedKDError
from fedkd.models.state import State

MAX_LOGIT = 1e4
MAX_RMS, MAX_RATIO = 10.0, 100.0
CONSTANT = 0.999
"""Share of the images from which a single class makes predictions constant."""
SAME = 1e-5
"""Logits that differ by less, relatively, do not depend on the image."""
LEVEL = 0.001
"""Probability, for a whole federation, that a teacher above the bound on chance is left out."""
MOST_IMAGES = 500
"""Images that suffice to judge a model."""


def uses_models(settings: Consolidation) -> bool:
    """Whether a consolidation uses the teachers' models or predictions at all."""
    models_start = settings.student not in ("fresh", "lda-head")
    models_teach = settings.teachers in ("models", "both") and settings.all_epochs > 0
    return models_start or models_teach


def exclude_implausible(
    teachers: Teachers, *, transfer: Images | None, validation: Images
) -> tuple[Teachers, dict[str, str]]:
    """Leave out teachers with absurd, constant or chance-level predictions.

    - Logits that are not finite or beyond ``MAX_LOGIT``.
    - Weights whose root mean square is both above ``MAX_RMS`` and ``MAX_RATIO`` times the median.
    - One class for (almost) all images, while this holds for fewer than half of the teachers. A
      model whose logits differ from image to image is kept if the class is the one that its silo
      has most of: little training on honest images gives just that.
    - Accuracy at or below chance, significantly so by an exact binomial test, on the validation
      images of the classes that a silo says it has most of, while this holds for fewer than half
      of the teachers. Of a silo that does not say, only accuracy far below chance counts.

    Args:
        teachers: at least one.
        transfer: images on which teachers without models have predicted, or None.
        validation: labelled images; may be empty. They are preferred, as being of the silos' kind.

    Returns:
        The others, and the reason for each that is left out, by name of its silo.

    Raises:
        FedKDError: none is left.
    """
    labelled = teachers.have_models and len(validation) > 0
    data = validation if labelled else transfer
    if data is None or not len(data):
        return teachers, {}
    if teachers.have_models and len(data) > MOST_IMAGES:
        data = data.take(torch.linspace(0, len(data) - 1, MOST_IMAGES).long())
    logits = teachers.predict(data.images)
    reasons = {
        m: f"its logits are not within {MAX_LOGIT:g}"
        for m in range(len(teachers))
        if not bool((logits[m].abs() <= MAX_LOGIT).all())
    }
    reasons = dict.fromkeys(_with_huge_weights(teachers), "its weights are absurd") | reasons
    votes = logits.argmax(2)
    constant = [m for m, t in enumerate(teachers.members) if _is_constant(logits[m], t)]
    reasons = _add(reasons, constant, "it predicts one class for all images", len(teachers))
    if labelled:
        level = LEVEL / len(teachers)
        chance = [
            m
            for m, teacher in enumerate(teachers.members)
            if _is_at_chance(votes[m], teacher, data.labels, logits.shape[2], level)
        ]
        reasons = _add(reasons, chance, "it is no better than chance", len(teachers))
    names = {teachers.members[m].silo: reason for m, reason in sorted(reasons.items())}
    if len(reasons) == len(teachers):
        listed = "; ".join(f"{silo}: {reason}" for silo, reason in list(names.items())[:3])
        raise FedKDError(f"no silo's pre-trained model is plausible ({listed})")
    return teachers.subset([m for m in range(len(teachers)) if m not in reasons]), names


def _add(reasons: dict[int, str], found: list[int], reason: str, total: int) -> dict[int, str]:
    """Add a reason for teachers, if it holds for fewer than half of all."""
    return dict.fromkeys(found, reason) | reasons if 2 * len(found) < total else reasons


def _with_huge_weights(teachers: Teachers) -> list[int]:
    """Return the teachers whose weights are far greater than the others'."""
    if not teachers.have_models:
        return []
    rms = torch.stack([_root_mean_square(teacher.state or {}) for teacher in teachers.members])
    bound = max(MAX_RMS, MAX_RATIO * float(rms.median()))
    return [int(m) for m in (rms > bound).nonzero()[:, 0]]


def _root_mean_square(state: State) -> Tensor:
    """Return that of all finite weights, float64."""
    weights = torch.cat([t.flatten().double() for t in state.values() if t.is_floating_point()])
    return weights[torch.isfinite(weights)].square().mean().sqrt()


def _is_constant(logits: Tensor, teacher: Teacher) -> bool:
    """Whether images hardly matter: of logits ``[N, K]``, or of the classes that they predict."""
    votes = logits.argmax(1)
    predicted = int(votes.mode().values)
    if float((votes == predicted).double().mean()) < CONSTANT:
        return False
    spread = float((logits.amax(0) - logits.amin(0)).max())
    if spread <= SAME * float(logits.abs().max()):
        return True
    counts = teacher.class_counts
    return not counts or counts[predicted] < max(counts)


def _is_at_chance(
    votes: Tensor, teacher: Teacher, labels: Tensor, num_classes: int, level: float
) -> bool:
    """Whether accuracy is significantly below a bound: a little above chance, or half of it."""
    chance = 1 / num_classes
    bound = chance / 2
    judged = torch.ones_like(labels, dtype=torch.bool)
    if teacher.class_counts:
        counts = torch.tensor(teacher.class_counts)
        judged = (counts * num_classes >= counts.sum())[labels]
        bound = chance + min(chance / 2, (1 - chance) / 8)
    hits, total = int((votes == labels)[judged].sum()), int(judged.sum())
    return total > 0 and _tail(hits, total, bound) < level


def _tail(hits: int, total: int, share: float) -> float:
    """Return the probability of at most so many hits among ``total`` with this probability each."""
    count = torch.arange(hits + 1, dtype=torch.float64)
    of_all = torch.tensor(float(total), dtype=torch.float64)
    ways = (of_all + 1).lgamma() - (count + 1).lgamma() - (of_all - count + 1).lgamma()
    logs = ways + count * math.log(share) + (of_all - count) * math.log1p(-share)
    return float(logs.exp().sum())
