"""Suggestions for a name that is not valid: renamed, called otherwise elsewhere, or misspelt."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

RENAMED = {
    "blends": "mixed_inputs",
    "refine": "finetune_epochs",
    "filterbank": "patch-features",
    "discriminant": "lda-head",
    "field": "deployed",
}
"""Keys and names of study files before version 0.2.0, to what they are called since."""

_OTHER_NAMES = {
    "lr": "learning_rate step_size",
    "optimizer": "optimiser opt",
    "momentum": "beta1 beta_1",
    "beta_2": "beta2",
    "weight_decay": "wd l2",
    "batch_size": "bs batchsize",
    "clip_norm": "grad_clip",
    "schedule": "scheduler lr_schedule",
    "epochs": "num_epochs local_epochs",
    "local_epochs": "epochs num_epochs",
    "max": "num_rounds rounds max_rounds",
    "fraction": "client_fraction fraction_fit",
    "silos": "clients num_clients num_silos",
    "seeds": "seed",
    "arch": "architecture network backbone model",
    "weights": "pretrained",
    "augment": "transform",
    "preprocessing": "transform normalize",
    "source": "dataset path",
    "labelled": "labeled",
    "temperature": "temp",
    "alpha": "concentration",
    "scheme": "type",
    "teachers": "teacher",
    "local_loss": "loss",
    "mu": "proximal_mu",
    "aggregation": "aggregator",
    "targets": "accuracy",
    "baselines": "baseline",
    "label-dirichlet": "dirichlet",
    "label-shards": "shards pathological",
    "by-column": "natural",
    "given": "natural",
    "iid": "uniform",
    "kd": "vanilla",
    "dml": "mutual",
    "average": "mean",
    "equal": "uniform mean",
    "random": "scratch",
    "consolidated": "distilled",
    "resnet8": "resnet",
    "lenet5": "lenet",
    "kmnist": "emnist",
    "fashion-mnist": "fmnist",
}
"""What a study file calls something, to other names in use; of several the first valid is meant."""

_ELSEWHERE = {
    "fedprox": "FedProx is rounds.local_loss: proximal, with any strategy",
    "fedlc": "FedLC is rounds.local_loss: logit-adjusted, with any strategy",
    "fedntd": "FedNTD is rounds.local_loss: not-true, with any strategy",
    "fedbn": "FedBN is model.batch_norm: local, with any strategy",
    "fedyogi": "experiments/examples/fedyogi.py is a strategy to use as fedyogi:fedyogi",
    "median": "a robust average is rounds.aggregation: median",
    "fedmedian": "a robust average is rounds.aggregation: median",
    "trimmedmean": "a robust average is rounds.aggregation: trimmed-mean",
    "fedtrimmedavg": "a robust average is rounds.aggregation: trimmed-mean",
}
"""What other frameworks call a strategy and fedkd sets by another key."""

_CUTOFF = 0.66
"""Similarity below which names are unrelated (``optimizer`` and ``timeout`` have 0.5)."""


def suggest(name: str, valid: Iterable[str]) -> str:
    """Return a phrase to end an error on ``name`` with, or an empty string."""
    names = list(valid)
    if RENAMED.get(name) in names:
        return f"; it was renamed to {RENAMED[name]!r}"
    plain = name.casefold()
    if elsewhere := _ELSEWHERE.get(plain.replace("_", "").replace("-", "")):
        return f" ({elsewhere})"
    other = plain.replace("-", "_")
    meant = [
        own for own, others in _OTHER_NAMES.items() if own in names and other in others.split()
    ]
    begun = [each for each in names if len(plain) > 2 and each.startswith(plain)]
    for candidates in (meant, get_close_matches(plain, names, n=1, cutoff=_CUTOFF), begun):
        if candidates:
            return f" (did you mean {candidates[0]!r}?)"
    return ""
