"""The study file as types: every key, its default, its bounds, and which are valid together.

Importing this package imports no PyTorch, so that a study is checked at once. A function named
``check_...`` raises a ValueError that says the key and what to do.
"""

from fedkd.config.arm import Arm
from fedkd.config.consolidation import Consolidation
from fedkd.config.consolidation_parts import Familiarity, Selection, Subset
from fedkd.config.data import (
    Iid,
    LabelDirichlet,
    LabelDominant,
    LabelShards,
    OwnPartition,
    Quantity,
)
from fedkd.config.engine import Engine
from fedkd.config.rounds import Pretraining, Rounds
from fedkd.config.study import Study
from fedkd.config.targets import RelativeTargets
from fedkd.config.tuned import Tuned

__all__ = [
    "Arm",
    "Consolidation",
    "Engine",
    "Familiarity",
    "Iid",
    "LabelDirichlet",
    "LabelDominant",
    "LabelShards",
    "OwnPartition",
    "Pretraining",
    "Quantity",
    "RelativeTargets",
    "Rounds",
    "Selection",
    "Study",
    "Subset",
    "Tuned",
]
