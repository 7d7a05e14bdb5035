"""Distillation between pre-trained models: methods, weightings of teachers, the loop."""

from fedkd.registry import Registry

METHODS = Registry(
    "distillation method",
    {
        "kd": "fedkd.distillation.kd:kd",
        "dml": "fedkd.distillation.dml:dml",
        "dp-kd": "fedkd.distillation.dp_kd:dp_kd",
        "fine-tune": "fedkd.distillation.fine_tune:fine_tune",
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
        "equal": "fedkd.distillation.weightings:equal",
        "size": "fedkd.distillation.weightings:size",
        "accuracy": "fedkd.distillation.weightings:accuracy",
        "confidence": "fedkd.distillation.weightings:confidence",
        "class-prior": "fedkd.distillation.weightings:class_prior",
        "consensus": "fedkd.distillation.weightings:consensus",
        "familiarity": "fedkd.distillation.weightings:familiarity",
    },
    own=True,
)
