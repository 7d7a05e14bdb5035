"""Distillation between pre-trained models: methods, weightings of teachers, the loop."""

from fedkd.registry import Registry

METHODS = Registry("distillation method", {"kd": "fedkd.distillation.losses:kd_loss"}, own=True)

NEEDS_LABELS = frozenset[str]()
"""Methods that learn from labels of the transfer set."""

NEEDS_MODELS = frozenset[str]()
"""Methods that train the teachers' models, for which predictions do not suffice."""

WEIGHTINGS = Registry(
    "weighting",
    {
        name: f"fedkd.distillation.weightings:{name.replace('-', '_')}"
        for name in (
            "equal",
            "confidence",
            "familiarity",
        )
    },
    own=True,
)
