"""Seeds derived from the purpose of a random choice, never from global state.

A seed is the SHA-256 of (study seed, purpose, silo name, round), so that no choice depends on how
many choices were made before it, on which thread or process makes it, or on Python's ``hash``.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


def derive_seed(study_seed: int, purpose: str, silo: str = "", round_number: int = 0) -> int:
    """Return a seed in [0, 2**63) that depends on its arguments alone.

    Args:
        study_seed: the seed of the study's repetition.
        purpose: what the randomness is for, such as ``"local-training"``.
        silo: the silo's name, empty for the server.
        round_number: the round, 0 before the first.
    """
    text = "\x1f".join((str(study_seed), purpose, silo, str(round_number)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(
    study_seed: int, purpose: str, silo: str = "", round_number: int = 0
) -> torch.Generator:
    """Return a CPU generator seeded by :func:`derive_seed`."""
    import torch

    seed = derive_seed(study_seed, purpose, silo, round_number)
    return torch.Generator().manual_seed(seed)


def numpy_generator(
    study_seed: int, purpose: str, silo: str = "", round_number: int = 0
) -> np.random.Generator:
    """Return a NumPy generator seeded by :func:`derive_seed`."""
    import numpy as np

    return np.random.default_rng(derive_seed(study_seed, purpose, silo, round_number))
