"""Every name that a study may use; the module behind a name is imported when it is used."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

from fedkd import user_code
from fedkd.errors import UserError
from fedkd.suggestions import suggest
from fedkd.user_code import MethodSpec

OWN = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"
"""Pattern of a user's own name, ``package.module:function``."""


@dataclass(frozen=True)
class Prefix:
    """What names that begin with a prefix stand for.

    Attributes:
        target: the ``module:function`` that is given what follows the prefix.
        form: of what follows, for error messages.
        path: ``file`` or ``folder`` where what follows is the path of one.
    """

    target: str
    form: str
    path: Literal["file", "folder"] | None = None


class Registry(Mapping[str, str]):
    """Maps names to ``module:attribute``, which is imported when it is used.

    A name is an entry, a prefix with what follows it, or a function of the user's own as
    ``package.module:function``. The import is lazy so that reading a study needs no PyTorch.

    Args:
        kind: what the names stand for, for error messages.
        entries: name to ``module:attribute``.
        prefixes: prefix, colon included, to what it stands for. A name that begins with one is
            never a function of the user's own.
        own: the form of a user's own name, for error messages.
    """

    def __init__(
        self,
        kind: str,
        entries: Mapping[str, str],
        *,
        prefixes: Mapping[str, Prefix] | None = None,
        own: str = "package.module:function",
    ) -> None:
        self.kind = kind
        self.prefixes = dict(prefixes or {})
        self.own = own
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> str:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def split(self, name: str) -> tuple[Prefix | None, str]:
        """Return the prefix of a name, None if it has none, and the rest of the name."""
        for text, prefix in self.prefixes.items():
            if name.startswith(text):
                return prefix, name.removeprefix(text)
        return None, name

    def is_own(self, name: str) -> bool:
        """Whether a name has the form of a function of the user's own."""
        known = name in self._entries or self.split(name)[0] is not None
        return not known and re.fullmatch(OWN, name) is not None

    def check(self, name: str) -> str:
        """Return ``name``, or raise ValueError with the nearest valid one.

        Whether there is a user's own function, or what a prefix leads to, shows when it is loaded.
        """
        prefix, rest = self.split(name)
        if prefix and not rest:
            raise ValueError(f"{self.kind} {name!r} must be followed by {prefix.form}")
        if prefix or name in self._entries or self.is_own(name):
            return name
        forms = [f"{text}{prefix.form}" for text, prefix in self.prefixes.items()]
        known = ", ".join([*self._entries, *forms, self.own])
        raise ValueError(f"unknown {self.kind} {name!r}{suggest(name, self)}; known are {known}")

    def load(self, name: str) -> Callable[..., Any]:
        """Import and return what ``name`` stands for; of a prefix, the target.

        Raises:
            ValueError: the name is not valid.
            UserError: a function of the user's own cannot be imported, or may not be here.
        """
        prefix, _ = self.split(self.check(name))
        target = prefix.target if prefix else self._entries.get(name, name)
        module, _, attribute = target.partition(":")
        if self.is_own(name):
            user_code.check_allowed(self.kind, name)
        function: Callable[..., Any]
        with self.calling(name):
            try:
                place = importlib.import_module(module)
            except (ImportError, SyntaxError) as error:
                if not self.is_own(name):
                    raise
                raise UserError(
                    f"{self.kind} {name} cannot be imported: {error}; the module must be on "
                    "PYTHONPATH or in the folder where fedkd is started"
                ) from error
            if self.is_own(name) and not hasattr(place, attribute):
                raise UserError(
                    f"{self.kind} {name} cannot be imported: module {module!r} has no attribute "
                    f"{attribute!r}{suggest(attribute, vars(place))}"
                )
            function = getattr(place, attribute)
        if not callable(function):
            raise UserError(f"{self.kind} {name} is not a function or class")
        return function

    def call(self, name: str, *args: Any, **options: Any) -> Any:
        """Call what ``name`` stands for.

        Raises:
            UserError: it is a function of the user's own that does not take these arguments.
            UserCodeError: it is a function of the user's own and raised an exception.
        """
        self.check_call(name, *args, **options)
        with self.calling(name):
            return self.load(name)(*args, **options)

    def check_call(self, name: str, *args: Any, **options: Any) -> None:
        """Check that a function of the user's own takes these arguments, without calling it.

        Raises:
            UserError: it does not, or it cannot be imported.
        """
        if not self.is_own(name):
            return
        if problem := user_code.find_mismatch(self.load(name), args, options):
            raise UserError(f"{self.kind} {name} {problem}")

    def calling(self, name: str) -> AbstractContextManager[None]:
        """Return a context for code of ``name``: what a user's own raises becomes an error of it.

        Raises:
            UserCodeError: on leaving the context; it names kind, name, file and line.
        """
        return user_code.calling(self.kind, name) if self.is_own(name) else nullcontext()

    def fingerprint(self, name: str) -> str:
        """Return what a name stands for, for cache keys; an edit of a user's code changes it."""
        return f"{name}@{user_code.fingerprint(self.load(name))}" if self.is_own(name) else name


def _functions(module: str, *names: str) -> dict[str, str]:
    """Return entries whose function is called as its name, with underscores."""
    return {name: f"{module}:{name.replace('-', '_')}" for name in names}


class SpecRegistry(Registry):
    """A registry whose functions declare what they need and use: name to target and spec."""

    def __init__(self, kind: str, entries: Mapping[str, tuple[str, MethodSpec]]) -> None:
        super().__init__(kind, {name: entries[name][0] for name in entries})
        self._specs = {name: spec for name, (_, spec) in entries.items()}

    def spec(self, name: str) -> MethodSpec:
        """Return what a name needs and uses; nothing for a user's own that declares nothing."""
        if name in self._specs:
            return self._specs[name]
        spec = getattr(self.load(name), "method_spec", None)
        return spec if isinstance(spec, MethodSpec) else MethodSpec()


_METHODS = "fedkd.distillation.methods"
_OF_LABELS = {"label_smoothing", "class_weights"}
_USED_BY_KD = {"temperature", "weight", "weighting", "pooling", "mixup", "mixed_inputs"}

METHODS = SpecRegistry(
    "distillation method",
    {
        "kd": (f"{_METHODS}.kd:kd", MethodSpec(uses={*_USED_BY_KD, *_OF_LABELS, "augment"})),
        "dml": (f"{_METHODS}.dml:dml", MethodSpec(needs={"models"}, uses={"weighting"})),
        "dp-kd": (f"{_METHODS}.dp_kd:dp_kd", MethodSpec(uses={"temperature", "sequence"})),
        "fine-tune": (
            f"{_METHODS}.fine_tune:fine_tune",
            MethodSpec(needs={"labels"}, uses={"mixup", *_OF_LABELS, "augment"}),
        ),
    },
)

WEIGHTINGS = Registry(
    "weighting",
    _functions(
        "fedkd.distillation.weighting.weightings",
        *("equal", "size", "accuracy", "confidence", "class-prior", "consensus", "familiarity"),
    ),
)

_LOSSES = "fedkd.training.local"

LOCAL_LOSSES = SpecRegistry(
    "local loss",
    {
        "cross-entropy": (f"{_LOSSES}:cross_entropy", MethodSpec(uses=_OF_LABELS)),
        # The prior corrects for rare classes already.
        "logit-adjusted": (f"{_LOSSES}:logit_adjusted", MethodSpec(uses={"label_smoothing"})),
        "proximal": (f"{_LOSSES}:proximal", MethodSpec(uses=_OF_LABELS)),
        "not-true": (f"{_LOSSES}:not_true", MethodSpec(uses=_OF_LABELS)),
    },
)

MetricName = Literal["accuracy", "balanced-accuracy", "macro-f1", "auroc", "average-precision"]
METRICS: dict[MetricName, str] = {
    "accuracy": "accuracy",
    "balanced-accuracy": "balanced accuracy",
    "macro-f1": "macro-F1",
    "auroc": "AUROC",
    "average-precision": "average precision",
}
"""Metrics of a model, to their names in prose; :mod:`fedkd.training.evaluate` defines them."""
METRICS_FROM_SUMS = frozenset({"balanced-accuracy", "macro-f1"})
"""Metrics that follow from sums by class; accuracy alone needs no class, the others need scores."""


def metric_key(metric: str) -> str:
    """Return a metric's key in ``rounds.jsonl`` and ``summary.json``, which is in snake case."""
    return metric.replace("-", "_")


AUGMENTATIONS = Registry(
    "augmentation",
    _functions("fedkd.training.augment", "none", "flip-crop", "randaugment", "trivialaugment"),
)
"""Functions of uint8 images ``[B, C, H, W]`` to as many changed ones."""

ARCHITECTURES = Registry(
    "architecture",
    {
        "cnn": "fedkd.models.builtin:cnn",
        "patch-features": "fedkd.models.patch_features:patch_features",
        "lenet5": "fedkd.models.builtin:lenet5",
        "linear": "fedkd.models.builtin:linear",
        "mlp": "fedkd.models.builtin:mlp",
        "resnet8": "fedkd.models.builtin:resnet8",
    },
    prefixes={
        "torchvision:": Prefix("fedkd.models.libraries:torchvision_builder", "NAME"),
        "timm:": Prefix("fedkd.models.libraries:timm_builder", "NAME"),
        "hf:": Prefix("fedkd.models.libraries:hugging_face_builder", "FOLDER or OWNER/NAME"),
    },
)

ANY_INPUT = ("mlp", "linear")
"""Architectures for examples of any kind but text; the others take images."""

HUGGING_FACE = "hf:"
"""The prefix of an architecture that is read with its weights, from a folder or a hub."""

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
"""Data sources of torchvision, to the names of its classes."""

OPENCLIPART = "openclipart"
"""The data source of Debian's package openclipart-png."""

_TABLE = "fedkd.data.tabular:read_table"
_TABLE_NAMES = ("heart-disease", "flights")
_TABLE_PREFIXES = ("csv:", "parquet:", "sklearn:")


def is_table(source: str | None) -> bool:
    """Whether a data source is a table with named columns."""
    return source is not None and (source in _TABLE_NAMES or source.startswith(_TABLE_PREFIXES))


def read_silo_names(source: str, table: Any) -> list[str]:
    """Return the names of the silos in a table; its reader is imported only here."""
    names: list[str] = importlib.import_module("fedkd.data.frames").read_silo_names(source, table)
    return names


SOURCES = Registry(
    "data source",
    {
        **dict.fromkeys(_TABLE_NAMES, _TABLE),
        **dict.fromkeys(("digits", *TORCHVISION_SETS), "fedkd.data.public:read_public"),
        OPENCLIPART: "fedkd.data.openclipart:read_openclipart",
    },
    prefixes={
        f"{OPENCLIPART}:": Prefix("fedkd.data.openclipart:read_openclipart", "PATH", "folder"),
        "folder:": Prefix("fedkd.data.folder:read_folder", "PATH", "folder"),
        "npz:": Prefix("fedkd.data.npz:read_npz", "PATH", "file"),
        "csv:": Prefix(_TABLE, "PATH", "file"),
        "parquet:": Prefix(_TABLE, "PATH", "file"),
        "sklearn:": Prefix(_TABLE, "breast_cancer, digits, iris or wine"),
        "hf:": Prefix("fedkd.data.folder:read_hugging_face", "OWNER/NAME"),
    },
)

NO_SOURCE = "none"
"""The data source of a server that owns no images, where silos are deployed on other hosts."""

NOISE = "noise"
"""The transfer set of pixels drawn at random."""

STUDENT_SILO = "student-silo"
"""The transfer set that is the private images of the silo whose model is the student."""

PARTITIONS = Registry(
    "partition scheme",
    _functions(
        "fedkd.data.partition",
        *("iid", "quantity", "label-dirichlet", "label-shards", "label-dominant"),
    ),
)

STARTS = Registry(
    "start",
    _functions("strategies.starts", "random", "average", "best", "consolidated"),
)
"""Starts of the global model: functions of a session and the random model to a Start."""


STRATEGIES = Registry(
    "strategy",
    {
        "fedavg": "strategies.updates:KeepAverage",
        "fedavgm": "strategies.optimisers:fedavgm",
        "fedadam": "strategies.optimisers:fedadam",
        "feddf": "strategies.feddf:FedDF",
    },
)
"""What the server does with a round's average: functions of the context to a ServerUpdate."""

TRACKERS = Registry(
    "tracker",
    {
        "tensorboard": "fedkd.trackers.tensorboard:TensorBoardTracker",
        "mlflow": "fedkd.trackers.mlflow:MLflowTracker",
        "wandb": "fedkd.trackers.wandb:WandbTracker",
    },
    own="package.module:Class",
)

PATCH_FEATURES = "patch-features"

LINEAR = "linear"

NUM_PATCH_FILTERS = 200
"""Filters of the architecture patch-features (Coates & Ng 2011)."""

LEAST_TRANSFER_IMAGES = 20
"""With fewer transfer images there is no basis for densities."""
