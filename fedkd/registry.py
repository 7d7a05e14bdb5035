"""Every name that a study may use; the module behind a name is imported when it is used."""

from __future__ import annotations

import importlib
from typing import Any, Literal

from fedkd.user_code import MethodSpec
from fedkd.util.checkpoint_files import EXTERNAL_FORMATS
from fedkd.util.name_registry import Prefix, Registry, SpecRegistry


def _functions(module: str, *names: str) -> dict[str, str]:
    """Return entries whose function is called as its name, with underscores."""
    return {name: f"{module}:{name.replace('-', '_')}" for name in names}


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

EXTERNAL_CLASSES = {
    "sklearn": {
        "ExtraTreesClassifier": "sklearn.ensemble",
        "HistGradientBoostingClassifier": "sklearn.ensemble",
        "LogisticRegression": "sklearn.linear_model",
        "MLPClassifier": "sklearn.neural_network",
        "RandomForestClassifier": "sklearn.ensemble",
    },
    "xgboost": {"XGBClassifier": "xgboost"},
    "lightgbm": {"LGBMClassifier": "lightgbm"},
    "catboost": {"CatBoostClassifier": "catboost"},
}
"""Classifiers of other libraries that a silo may train, to their modules."""
_EXTERNAL = "fedkd.models.external:ExternalModel"


def is_external(arch: str) -> bool:
    """Whether an architecture is of another library, whose models only predict."""
    return arch in EXTERNAL_FORMATS or arch.partition(":")[0] in EXTERNAL_CLASSES


ARCHITECTURES = Registry(
    "architecture",
    {
        "cnn": "fedkd.models.builtin:cnn",
        "patch-features": "fedkd.models.patch_features:patch_features",
        "lenet5": "fedkd.models.builtin:lenet5",
        "linear": "fedkd.models.builtin:linear",
        "mlp": "fedkd.models.builtin:mlp",
        "resnet8": "fedkd.models.builtin:resnet8",
        **dict.fromkeys(EXTERNAL_FORMATS, _EXTERNAL),
    },
    prefixes={
        "torchvision:": Prefix("fedkd.models.libraries:torchvision_builder", "NAME"),
        "timm:": Prefix("fedkd.models.libraries:timm_builder", "NAME"),
        "hf:": Prefix("fedkd.models.hugging_face:hugging_face_builder", "FOLDER or OWNER/NAME"),
        **{
            f"{library}:": Prefix(_EXTERNAL, " or ".join(classes))
            for library, classes in EXTERNAL_CLASSES.items()
        },
    },
)

ANY_INPUT = ("mlp", "linear")
"""Architectures for tables and tensors too; the others take images, or texts (``hf:``)."""

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


def is_text(source: str | None) -> bool:
    """Whether a data source is a file of texts."""
    return source is not None and source.startswith("text:")


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
        "text:": Prefix("fedkd.data.texts:read_texts", "PATH", "file"),
        "sklearn:": Prefix(_TABLE, "breast_cancer, digits, iris or wine"),
        "hf:": Prefix("fedkd.data.folder:read_hugging_face", "OWNER/NAME"),
    },
)

NO_SOURCE = "none"
"""The data source of a server that owns no examples, where silos are deployed on other hosts."""

NOISE = "noise"
"""The transfer set of pixels drawn at random."""

STUDENT_SILO = "student-silo"
"""The transfer set that is the private examples of the silo whose model is the student."""

PARTITIONS = Registry(
    "partition scheme",
    _functions(
        "fedkd.data.partition",
        *("iid", "quantity", "label-dirichlet", "label-shards", "label-dominant"),
    ),
)

STARTS = Registry(
    "start",
    _functions("strategies.starts", "random", "checkpoint", "average", "best", "consolidated"),
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
"""With fewer transfer examples there is no basis for densities."""
