"""Losses of the silos' local training, known by name without importing PyTorch."""

from fedkd.registry import Registry

LOCAL_LOSSES = Registry(
    "local loss",
    {
        name: f"fedkd.training.local:{name.replace('-', '_')}"
        for name in (
            "cross-entropy",
            "logit-adjusted",
            "proximal",
            "not-true",
        )
    },
)
