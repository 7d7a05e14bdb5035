"""The seeds of trials, on which nothing is judged afterwards."""

from __future__ import annotations

from collections.abc import Sequence

from fedkd.config import Study
from fedkd.errors import UserError

SEEDS = (100, 101)
"""Seeds of trials, by default. Ours."""


def tuning_study(study: Study, seeds: Sequence[int]) -> Study:
    """Return the study with the seeds of the trials.

    Raises:
        UserError: one of them is a seed of the study, or is named twice.
    """
    if shared := sorted(set(seeds) & set(study.seeds)):
        raise UserError(
            f"--seeds: {shared[0]} is a seed of the study, on which its arms are judged; tune on "
            f"other seeds, such as {','.join(map(str, SEEDS))}"
        )
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) >= 2**31:
        raise UserError(
            f"--seeds: {','.join(map(str, seeds))!r} is not a list of different seeds from 0 to "
            f"{2**31 - 1}"
        )
    arms = {name: arm.model_copy(update={"tuned": None}) for name, arm in study.arms.items()}
    return study.model_copy(update={"seeds": list(seeds), "arms": arms})
