"""Names that a study file may use, known without importing what they stand for."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from difflib import get_close_matches
from typing import Any

from fedkd.errors import UserError
from fedkd.user_code import calling, fingerprint

_OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


RENAMED = {
    "blends": "mixed_inputs",
    "refine": "finetune_epochs",
    "filterbank": "patch-features",
    "discriminant": "lda-head",
    "field": "deployed",
}
"""Keys and names of study files before version 0.2.0, to what they are called since."""


def suggest(name: str, valid: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the nearest valid name, or an empty string.

    A name of an earlier version is answered with the name that replaced it.
    """
    names = list(valid)
    if RENAMED.get(name) in names:
        return f"; it was renamed to {RENAMED[name]!r}"
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


class Registry(Mapping[str, str]):
    """Maps a name to ``module:attribute``; ``load`` imports it only when it is used.

    Adding a method, a weighting or an architecture is one function in one file and one line in
    the registry of its package. The import is lazy so that reading a study needs no PyTorch.

    Args:
        kind: what the names stand for, for error messages.
        entries: name to ``module:attribute``.
        own: whether a user's own ``package.module:function`` may stand for a name.
    """

    def __init__(self, kind: str, entries: Mapping[str, str], *, own: bool = False) -> None:
        self.kind = kind
        self._entries = dict(entries)
        self._own = own

    def __getitem__(self, name: str) -> str:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def check(self, name: str) -> str:
        """Return ``name`` or raise ValueError with the nearest valid one."""
        if name in self._entries or (self._own and _OWN.fullmatch(name)):
            return name
        known = ", ".join([*self._entries, *(["package.module:function"] if self._own else [])])
        raise ValueError(
            f"unknown {self.kind} {name!r}{suggest(name, list(self))}; known are {known}"
        )

    def load(self, name: str) -> Callable[..., Any]:
        """Import and return what ``name`` stands for."""
        target = self._entries.get(self.check(name), name)
        module, _, attribute = target.partition(":")
        try:
            loaded = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            if name in self._entries:
                raise
            raise UserError(
                f"{self.kind} {name} cannot be imported: {error}; the module must be on "
                "PYTHONPATH or in the folder where fedkd is started"
            ) from error
        if not callable(loaded):
            raise UserError(f"{self.kind} {name} is no function")
        function: Callable[..., Any] = loaded
        return function

    def is_own(self, name: str) -> bool:
        """Whether a valid name stands for a function of the user's own."""
        return name not in self._entries

    def call(self, name: str, *args: Any, **options: Any) -> Any:
        """Call what ``name`` stands for.

        Raises:
            UserCodeError: it is a function of the user's own and raised something.
        """
        function = self.load(name)
        with self.calling(name):
            return function(*args, **options)

    def calling(self, name: str) -> AbstractContextManager[None]:
        """Return a context that names a function of the user's own in what its block raises."""
        return calling(self.kind, name) if self.is_own(name) else nullcontext()

    def fingerprint(self, name: str) -> str:
        """Return what a name stands for, for cache keys; an edit of a user's code changes it."""
        return name if name in self._entries else f"{name}@{fingerprint(self.load(name))}"


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

ARCHITECTURES = Registry(
    "architecture",
    {
        "cnn": "fedkd.models.builtin:cnn",
        "patch-features": "fedkd.models.patch_features:patch_features",
        "lenet5": "fedkd.models.builtin:lenet5",
        "mlp": "fedkd.models.builtin:mlp",
        "resnet8": "fedkd.models.builtin:resnet8",
    },
)

PATCH_FEATURES = "patch-features"

NUM_PATCH_FILTERS = 200
"""Filters of the architecture patch-features (Coates & Ng 2011)."""

LDA_HEAD = "lda-head"
"""The student that is patch-features with a linear head in closed form."""

TORCHVISION = "torchvision:"

_USER_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def check_architecture(name: str) -> str:
    """Return ``name`` if it has the form of an architecture; raise ValueError otherwise.

    Whether a torchvision name or a user's function exists is known only when it is built.
    """
    if name.startswith(TORCHVISION) and name != TORCHVISION:
        return name
    if _USER_FUNCTION.fullmatch(name):
        return name
    try:
        return ARCHITECTURES.check(name)
    except ValueError as error:
        raise ValueError(f"{error}, torchvision:NAME and package.module:function") from None


TORCHVISION_SETS = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "qmnist": "QMNIST",
    "usps": "USPS",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "svhn": "SVHN",
    "stl10": "STL10",
}
"""Study names of torchvision's classification sets, to their class names in torchvision."""

NOISE = "noise"

STUDENT_SILO = "student-silo"
"""Transfer sets that are no data source: pixels at random, and the student's private images."""

NO_SOURCE = "none"
"""The source of a server that owns no images: for studies of silos in the field."""

PREFIXES = ("folder:", "npz:", "hf:")

PARTITIONS = Registry(
    "partition scheme",
    {
        "iid": "fedkd.data.partition:iid",
        "quantity": "fedkd.data.partition:quantity",
        "label-dirichlet": "fedkd.data.partition:label_dirichlet",
        "label-shards": "fedkd.data.partition:label_shards",
        "label-dominant": "fedkd.data.partition:label_dominant",
    },
)

_SOURCES = Registry("data source", dict.fromkeys(("digits", *TORCHVISION_SETS), ""))


def check_study_source(name: str) -> str:
    """Return ``name`` if a study's ``data.source`` may be it; raise ValueError otherwise."""
    return name if name == NO_SOURCE else check_source(name)


def check_source(name: str) -> str:
    """Return ``name`` if it has the form of a data source; raise ValueError otherwise."""
    for prefix in PREFIXES:
        if name.startswith(prefix):
            if name == prefix:
                raise ValueError(f"{prefix!r} must be followed by what to read")
            return name
    try:
        return _SOURCES.check(name)
    except ValueError as error:
        raise ValueError(f"{error}, folder:PATH, npz:PATH and hf:OWNER/NAME") from None


STARTS = Registry(
    "start",
    {
        "random": "strategies.starts:random",
        "average": "strategies.starts:average",
        "best": "strategies.starts:best",
        "consolidated": "strategies.starts:consolidated",
    },
    own=True,
)
"""How global models start: functions of a session and the random model to a Start."""


def start_needs_models(name: str) -> bool:
    """Return whether a start uses the silos' own models; a user's own says so by an attribute.

    Raises:
        UserError: it is the user's own and cannot be imported.
    """
    if not STARTS.is_own(name):
        return name != "random"
    return bool(getattr(STARTS.load(name), "needs_models", True))


STRATEGIES = Registry(
    "strategy",
    {
        "fedavg": "strategies.updates:KeepAverage",
        "fedavgm": "strategies.optimisers:fedavgm",
        "fedadam": "strategies.optimisers:fedadam",
        "feddf": "strategies.feddf:FedDF",
    },
    own=True,
)
"""What the server makes of a round's average: functions of the run's context to a ServerUpdate."""

TRACKERS = Registry(
    "tracker",
    {
        "tensorboard": "fedkd.trackers.tensorboard:TensorBoardTracker",
        "mlflow": "fedkd.trackers.mlflow:MLflowTracker",
        "wandb": "fedkd.trackers.wandb:WandbTracker",
    },
)

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
