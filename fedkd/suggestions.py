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

_SYNONYMS = {
    "learning_rate": ("lr",),
    "step_size": ("lr",),
    "optimiser": ("optimizer",),
    "opt": ("optimizer",),
    "beta1": ("momentum",),
    "beta_1": ("momentum",),
    "beta2": ("beta_2",),
    "wd": ("weight_decay",),
    "l2": ("weight_decay",),
    "bs": ("batch_size",),
    "batchsize": ("batch_size",),
    "grad_clip": ("clip_norm",),
    "scheduler": ("schedule",),
    "lr_schedule": ("schedule",),
    "epochs": ("local_epochs",),
    "num_epochs": ("epochs", "local_epochs"),
    "local_epochs": ("epochs",),
    "num_rounds": ("max",),
    "rounds": ("max",),
    "max_rounds": ("max",),
    "client_fraction": ("fraction",),
    "fraction_fit": ("fraction",),
    "clients": ("silos",),
    "num_clients": ("silos",),
    "num_silos": ("silos",),
    "seed": ("seeds",),
    "architecture": ("arch",),
    "network": ("arch",),
    "backbone": ("arch",),
    "model": ("arch",),
    "pretrained": ("weights",),
    "transform": ("augment", "preprocessing"),
    "normalize": ("preprocessing",),
    "dataset": ("source",),
    "path": ("source",),
    "labeled": ("labelled",),
    "temp": ("temperature",),
    "concentration": ("alpha",),
    "type": ("scheme",),
    "teacher": ("teachers",),
    "loss": ("local_loss",),
    "proximal_mu": ("mu",),
    "aggregator": ("aggregation",),
    "accuracy": ("targets",),
    "baseline": ("baselines",),
    "dirichlet": ("label-dirichlet",),
    "shards": ("label-shards",),
    "pathological": ("label-shards",),
    "natural": ("by-column", "given"),
    "uniform": ("iid", "equal"),
    "vanilla": ("kd",),
    "mutual": ("dml",),
    "mean": ("average", "equal"),
    "scratch": ("random",),
    "distilled": ("consolidated",),
    "resnet": ("resnet8",),
    "lenet": ("lenet5",),
    "emnist": ("kmnist",),
    "fmnist": ("fashion-mnist",),
}
"""Other names in use, to what a study file calls the same; the first valid one is meant."""

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
    meant = [other for other in _SYNONYMS.get(plain.replace("-", "_"), ()) if other in names]
    begun = [other for other in names if len(plain) > 2 and other.startswith(plain)]
    for candidates in (meant, get_close_matches(plain, names, n=1, cutoff=_CUTOFF), begun):
        if candidates:
            return f" (did you mean {candidates[0]!r}?)"
    return ""
