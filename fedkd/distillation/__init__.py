"""Distillation between pre-trained models: losses, weightings of teachers, the loop."""

from fedkd.registry import Registry

METHODS = Registry("distillation method", {"kd": "fedkd.distillation.losses:kd_loss"})

WEIGHTINGS = Registry(
    "weighting",
    {
        "equal": "fedkd.distillation.weightings:equal",
        "confidence": "fedkd.distillation.weightings:confidence",
        "familiarity": "fedkd.distillation.weightings:familiarity",
    },
)
