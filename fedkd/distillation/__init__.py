"""Distillation between pre-trained models: methods, weightings of teachers, the loop."""

from fedkd.registry import Registry

METHODS = Registry(
    "distillation method",
    {
        "kd": "fedkd.distillation.methods.kd:kd",
        "dml": "fedkd.distillation.methods.dml:dml",
        "dp-kd": "fedkd.distillation.methods.dp_kd:dp_kd",
        "fine-tune": "fedkd.distillation.methods.fine_tune:fine_tune",
    },
    own=True,
)

LEAST_TRANSFER_IMAGES = 20
"""Fewer transfer images make no basis in which silos could tell densities."""

NEEDS_LABELS = frozenset({"fine-tune"})
"""Methods that learn from labels of the transfer set."""

NEEDS_MODELS = frozenset({"dml"})
"""Methods that train the teachers' models, for which predictions do not suffice."""

WEIGHTINGS = Registry(
    "weighting",
    {
        "equal": "fedkd.distillation.weighting.weightings:equal",
        "size": "fedkd.distillation.weighting.weightings:size",
        "accuracy": "fedkd.distillation.weighting.weightings:accuracy",
        "confidence": "fedkd.distillation.weighting.weightings:confidence",
        "class-prior": "fedkd.distillation.weighting.weightings:class_prior",
        "consensus": "fedkd.distillation.weighting.weightings:consensus",
        "familiarity": "fedkd.distillation.weighting.weightings:familiarity",
    },
    own=True,
)
