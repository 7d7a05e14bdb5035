"""The study file as types: every key, its default, its bounds, and what may stand together.

Importing this module imports no PyTorch, so that a study is checked at once.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from fedkd.data import PREFIXES, TORCHVISION_SETS, check_source
from fedkd.distillation import METHODS, WEIGHTINGS
from fedkd.models import ARCHITECTURES, check_architecture
from fedkd.registry import suggest

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Rate = Annotated[float, Field(gt=0, le=1000)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Architecture = Annotated[
    str,
    AfterValidator(check_architecture),
    Field(json_schema_extra={"examples": [*ARCHITECTURES, "torchvision:resnet18"]}),
]
Source = Annotated[
    str,
    AfterValidator(check_source),
    Field(json_schema_extra={"examples": ["digits", *TORCHVISION_SETS, *PREFIXES]}),
]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Section(BaseModel):
    """A mapping of the study file: frozen, and closed to keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        """Name the nearest valid key, and catch YAML's yes and no where a number is meant."""
        if not isinstance(data, dict):
            return data
        for key, value in data.items():
            if key not in cls.model_fields:
                hint = suggest(str(key), list(cls.model_fields))
                hint = hint or f"; known are {', '.join(cls.model_fields)}"
                raise PydanticCustomError(
                    "unknown_key", "unknown key{hint}", {"key": str(key), "hint": hint}
                )
            if cls.model_fields[key].annotation is not bool:
                _refuse_switch(str(key), value)
        return data


def _refuse_switch(key: str, value: Any) -> None:
    """Refuse a boolean, or a list that holds one, where something else is meant."""
    for index, item in enumerate(value if isinstance(value, list) else [value]):
        if isinstance(item, bool):
            path = f"{key}.{index}" if isinstance(value, list) else key
            raise PydanticCustomError(
                "not_a_switch",
                "{value} is no value for this key: YAML reads a bare yes, no, on or off so",
                {"key": path, "value": str(item).lower()},
            )


class TransferSet(Section):
    """The images on which knowledge passes from teachers to student."""

    size: Count = Field(300, description="number of images")
    labelled: bool = Field(default=False, description="whether the server may use their labels")
    source: Source | None = Field(
        None, description="another data source to draw from; by default the study's own"
    )


class Data(Section):
    """Where images come from and how they are cut."""

    source: Source = "digits"
    test: float = Field(0.2, gt=0, lt=1, description="fraction, where the source has no test set")
    validation: float = Field(0.1, ge=0, lt=1, description="fraction of what is not test")
    transfer: TransferSet = TransferSet()
    train_size: Count | None = Field(None, description="at most so many images for all silos")
    image_size: int | None = Field(
        None, ge=4, le=1024, description="resize images to this height and width in pixels"
    )


class Partition(Section):
    """How the training images are shared among the silos."""

    silos: int = Field(10, ge=1, le=100_000)
    min_size: int = Field(10, ge=1, description="least number of images in a silo")


class Iid(Partition):
    """Equal sizes, one mix of labels."""

    scheme: Literal["iid"] = "iid"


class Quantity(Partition):
    """Sizes drawn from a Dirichlet distribution, one mix of labels."""

    scheme: Literal["quantity"]
    alpha: Rate = 0.5


class LabelDirichlet(Partition):
    """Each class is shared out by its own draw from a Dirichlet distribution."""

    scheme: Literal["label-dirichlet"]
    alpha: Rate = 0.1


class LabelShards(Partition):
    """Each silo holds a fixed number of classes."""

    scheme: Literal["label-shards"]
    classes_per_silo: Count = 2


class LabelDominant(Partition):
    """A share of each class goes to one silo, the rest to all evenly."""

    scheme: Literal["label-dominant"]
    share: Fraction = 0.8


class Model(Section):
    """The architecture of the global model and of silos that differ from it."""

    arch: Architecture = "cnn"
    per_silo: dict[str, Architecture] = Field(
        default={}, description="silo name to the architecture of its pre-trained model"
    )


class Pretraining(Section):
    """How the silos' own models came to be."""

    epochs: Count = 20
    lr: Rate = 0.02
    momentum: Momentum = 0.9
    batch_size: Count = 32
    init: Literal["shared", "per-silo"] = Field(
        "shared", description="one initialisation for all silos, or one each"
    )
    checkpoints: dict[str, str] = Field(
        default={}, description="silo name to a .safetensors file used instead of pre-training"
    )


class Rounds(Section):
    """The communication rounds."""

    max: Count = 40
    stop: Literal["targets", "budget"] = Field(
        "targets", description="stop once all targets are reached, or use all rounds"
    )
    fraction: Fraction = Field(1.0, description="of the silos that take part in a round")
    local_epochs: Count = 1
    batch_size: Count = 32
    lr: Rate = 0.05
    momentum: Momentum = 0.9
    weight_decay: float = Field(0.0, ge=0, le=1)
    local_loss: Literal["cross-entropy"] = "cross-entropy"
    quorum: float = Field(
        0.5, ge=0, le=1, description="least share of a round's silos that must answer well"
    )
    timeout: float = Field(3600.0, gt=0, description="seconds to wait for a round's replies")


class RoundOverrides(Section):
    """Keys of ``rounds`` that one arm sets otherwise."""

    max: Count | None = None
    stop: Literal["targets", "budget"] | None = None
    fraction: Fraction | None = None
    local_epochs: Count | None = None
    batch_size: Count | None = None
    lr: Rate | None = None
    momentum: Momentum | None = None
    weight_decay: Annotated[float, Field(ge=0, le=1)] | None = None
    local_loss: Literal["cross-entropy"] | None = None
    quorum: Annotated[float, Field(ge=0, le=1)] | None = None
    timeout: Annotated[float, Field(gt=0)] | None = None


class Familiarity(Section):
    """How a silo tells how likely a transfer image is under its own data."""

    density: Literal["gaussian", "knn"] = "gaussian"
    basis: Literal["pixels"] = "pixels"
    dims: Count = Field(50, description="most dimensions of the basis")
    neighbours: Count = Field(5, description="k of the knn density")
    scale: Rate | None = Field(None, description="divides log-densities; 5 (gaussian) or 3 (knn)")
    background: bool = Field(default=False, description="a component for images that no silo knows")

    @property
    def effective_scale(self) -> float:
        """The scale in use."""
        return self.scale if self.scale is not None else {"gaussian": 5.0, "knn": 3.0}[self.density]


class Consolidation(Section):
    """How teachers become one student."""

    method: Annotated[
        str, AfterValidator(METHODS.check), Field(json_schema_extra={"enum": list(METHODS)})
    ] = "kd"
    weighting: Annotated[
        str, AfterValidator(WEIGHTINGS.check), Field(json_schema_extra={"enum": list(WEIGHTINGS)})
    ] = "equal"
    pooling: Literal["probs", "logits"] = "probs"
    teachers: Literal["models", "densities"] = Field(
        "models", description="densities: the control that uses no teacher model"
    )
    mode: Literal["weights", "logits"] = Field(
        "weights", description="what a silo sends: its model, or only its predictions"
    )
    student: Literal["average", "best", "fresh"] = "average"
    temperature: float = Field(1.0, gt=0, le=100)
    weight: float = Field(
        0.5, ge=0, le=1, description="of the teachers against labels; 1 without labels"
    )
    tau: Rate = Field(0.1, description="sharpness of the confidence weighting")
    epochs: Count = 50
    batch_size: Count = 32
    lr: Rate = 0.05
    momentum: Momentum = 0.9
    familiarity: Familiarity = Familiarity()

    @model_validator(mode="after")
    def _check(self) -> Consolidation:
        if self.teachers == "densities" and self.weighting != "familiarity":
            raise ValueError("teachers: densities needs weighting: familiarity")
        if self.mode == "logits" and self.student != "fresh":
            raise ValueError(
                f"student: {self.student} needs the silos' models, but mode: logits sends only "
                "predictions; use student: fresh or mode: weights"
            )
        return self

    @property
    def uses_densities(self) -> bool:
        """Whether silos are asked how familiar the transfer images are."""
        return self.weighting == "familiarity"


class Arm(Section):
    """One way to start the global model and to go on."""

    start: Literal["random", "average", "best", "consolidated"]
    strategy: Literal["fedavg"] = "fedavg"
    consolidation: Consolidation | None = None
    rounds: RoundOverrides = RoundOverrides()

    @model_validator(mode="before")
    @classmethod
    def _fill_consolidation(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("start") == "consolidated":
            return {**data, "consolidation": data.get("consolidation") or {}}
        return data

    @model_validator(mode="after")
    def _check(self) -> Arm:
        if self.consolidation is not None and self.start != "consolidated":
            raise ValueError(
                f"consolidation is set but start is {self.start!r}; use start: consolidated"
            )
        return self

    @property
    def needs_pretrained(self) -> bool:
        """Whether the silos must own a trained model for this arm."""
        return self.start != "random"


class RelativeTargets(Section):
    """Targets as fractions of the best accuracy of the first baseline."""

    of_baseline_best: list[Fraction] = Field(min_length=1, max_length=20)


def _kind_of_targets(value: Any) -> str:
    return "relative" if isinstance(value, dict | RelativeTargets) else "absolute"


class Engine(Section):
    """Where an arm runs, and on what."""

    name: str = Field("inline", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    workers: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    server_threads: int = Field(2, ge=1, le=1024)
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$")


_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
Name = Annotated[
    str, Field(pattern=rf"^{_NAME.pattern}$", description="lower-case letters, digits, hyphens")
]


class Study(Section):
    """A whole study: what is compared, on which data, how often."""

    name: Name
    data: Data = Data()
    partition: Annotated[
        Iid | Quantity | LabelDirichlet | LabelShards | LabelDominant,
        Field(discriminator="scheme"),
    ] = Iid()
    model: Model = Model()
    pretraining: Pretraining = Pretraining()
    rounds: Rounds = Rounds()
    targets: Annotated[
        Annotated[list[Fraction], Field(min_length=1, max_length=20), Tag("absolute")]
        | Annotated[RelativeTargets, Tag("relative")],
        Discriminator(_kind_of_targets),
    ]
    baselines: list[str] = []
    arms: dict[Name, Arm] = Field(min_length=1, max_length=100)
    seeds: list[Seed] = Field(default=[0, 1, 2], min_length=1, max_length=1000)
    engine: Engine = Engine()

    @model_validator(mode="before")
    @classmethod
    def _default_baseline(cls, data: Any) -> Any:
        arms = data.get("arms") if isinstance(data, dict) else None
        if isinstance(arms, dict) and "fedavg" in arms and "baselines" not in data:
            return {**data, "baselines": ["fedavg"]}
        return data

    @model_validator(mode="after")
    def _check(self) -> Study:
        for check in (_check_arms, _check_baselines, _check_silo_names, _check_needs):
            check(self)
        for key, values, noun in (
            ("seeds", self.seeds, "seed"),
            ("baselines", self.baselines, "baseline"),
            ("targets", self.target_values, "target"),
        ):
            if len(set(values)) != len(values):
                raise ValueError(f"{key}: {values} names a {noun} twice")
        return self

    @property
    def silo_names(self) -> tuple[str, ...]:
        """Names of all silos, in natural order."""
        return tuple(f"silo-{index}" for index in range(self.partition.silos))

    @property
    def target_values(self) -> list[float]:
        """Targets as the study names them: accuracies, or fractions of the baseline's best."""
        if isinstance(self.targets, RelativeTargets):
            return self.targets.of_baseline_best
        return self.targets

    @property
    def absolute_targets(self) -> list[float] | None:
        """Targets in accuracy, or None where they depend on the first baseline's runs."""
        return None if isinstance(self.targets, RelativeTargets) else self.targets

    def arch_of(self, silo: str) -> str:
        """The architecture of a silo's pre-trained model."""
        return self.model.per_silo.get(silo, self.model.arch)

    def rounds_of(self, arm: str) -> Rounds:
        """The round settings of an arm: the study's, with the arm's own on top.

        Where targets are relative to the first baseline's best, that arm uses its whole budget.
        """
        overrides = self.arms[arm].rounds.model_dump(exclude_none=True)
        if isinstance(self.targets, RelativeTargets) and arm == self.baselines[0]:
            overrides["stop"] = "budget"
        return self.rounds.model_copy(update=overrides)

    @property
    def needs_pretrained(self) -> bool:
        """Whether any arm uses the silos' own models."""
        return any(arm.needs_pretrained for arm in self.arms.values())

    def to_dict(self) -> dict[str, Any]:
        """The resolved study as plain values; loading it again gives an equal study."""
        return self.model_dump(mode="json", exclude_none=True)


def _check_arms(study: Study) -> None:
    for name, arm in study.arms.items():
        named = name == "fedkd" or name.startswith("fedkd-")
        control = name.startswith("control-")
        if arm.start == "consolidated" and not (named or control):
            raise ValueError(
                f"arms.{name}: an arm that consolidates is named fedkd, fedkd-... or control-..."
            )
        if arm.start != "consolidated" and named:
            raise ValueError(
                f"arms.{name}: the name says that it consolidates but start is {arm.start!r}"
            )


def _check_baselines(study: Study) -> None:
    for name in study.baselines:
        if name not in study.arms:
            raise ValueError(
                f"baselines: no arm is named {name!r}{suggest(name, list(study.arms))}"
            )
    if isinstance(study.targets, RelativeTargets) and not study.baselines:
        raise ValueError("targets.of_baseline_best: needs at least one arm under baselines")


def _check_silo_names(study: Study) -> None:
    known = set(study.silo_names)
    for key, mapping in (
        ("model.per_silo", study.model.per_silo),
        ("pretraining.checkpoints", study.pretraining.checkpoints),
    ):
        for silo in mapping:
            if silo not in known:
                raise ValueError(
                    f"{key}: no silo is named {silo!r}; they are silo-0 to "
                    f"silo-{study.partition.silos - 1}"
                )


def _check_needs(study: Study) -> None:
    mixed = sorted({study.arch_of(silo) for silo in study.silo_names} - {study.model.arch})
    for name, arm in study.arms.items():
        student = arm.consolidation.student if arm.consolidation else arm.start
        if student in ("average", "best") and mixed:
            key, remedy = "start", "start: random, or consolidated with student: fresh"
            if arm.consolidation:
                key, remedy = "consolidation.student", "student: fresh"
            raise ValueError(
                f"arms.{name}.{key}: {student} needs silos of one architecture, but model.per_silo "
                f"gives some {', '.join(mixed)} beside {study.model.arch}; use {remedy}"
            )
        if student == "best" and study.data.validation == 0:
            raise ValueError(
                f"arms.{name}: the best model is chosen on validation data, "
                "but data.validation is 0"
            )
