"""Losses of the silos' local training, known by name without importing PyTorch."""

from fedkd.registry import Registry

LOCAL_LOSSES = Registry(
    "local loss",
    {
        "cross-entropy": "fedkd.training:train_supervised",
    },
)
