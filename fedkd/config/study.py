"""The whole study, and which settings are valid together."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from fedkd.config.arm import Arm
from fedkd.config.backbone import check_backbones
from fedkd.config.consolidation import Consolidation
from fedkd.config.data import AnyPartition, ByColumn, Data, Deployed, Given, Iid, Indices
from fedkd.config.deployed import check_deployed, check_simulated, fill_deployed
from fedkd.config.engine import Engine
from fedkd.config.external import check_external_models, fill_external
from fedkd.config.optimizer import optimizer_defaults
from fedkd.config.part_defaults import default_rate, fill_rates
from fedkd.config.rounds import Model, Pretraining, Rounds
from fedkd.config.sections import Section, Seed
from fedkd.config.study_checks import (
    check_arms,
    check_baselines,
    check_needs,
    check_silo_names,
    check_tuning_seeds,
)
from fedkd.config.table import Table
from fedkd.config.table_checks import check_table
from fedkd.config.targets import RelativeTargets, Targets, check_metric
from fedkd.config.text import Text
from fedkd.config.transfer_checks import check_recalibration
from fedkd.registry import (
    HUGGING_FACE,
    LEAST_TRANSFER_IMAGES,
    NO_SOURCE,
    MetricName,
    is_table,
    is_text,
)
from fedkd.util.names import STUDY_NAME, natural_key

Name = Annotated[
    str,
    Field(pattern=rf"^{STUDY_NAME.pattern}$", description="lower-case letters, digits, hyphens"),
]


class Study(Section):
    """A whole study: arms, data, targets and seeds."""

    name: Name
    data: Data = Data()
    partition: AnyPartition = Iid()
    model: Model = Model()
    pretraining: Pretraining = Pretraining()
    rounds: Rounds = Rounds()
    metric: MetricName = Field(
        "accuracy",
        description="what targets and fedkd tune are in; balanced-accuracy is the mean recall of "
        "the classes; auroc and average-precision rank the probabilities of one class against the "
        "rest, and need test examples of every class on the server",
    )
    targets: Targets = Field(
        description="values of the metric to reach on the test examples, in (0, 1]"
    )
    baselines: list[str] = Field(
        default=[],
        description="arms with which all others are compared; by default fedavg, if there is one",
    )
    arms: dict[Name, Arm] = Field(min_length=1, max_length=100)
    seeds: list[Seed] = Field(
        default=[0, 1, 2],
        min_length=1,
        max_length=1000,
        description="one run of every arm for each; the same seed gives all arms the same data",
    )
    engine: Engine = Engine()

    @model_validator(mode="before")
    @classmethod
    def _default_baseline(cls, data: Any) -> Any:
        arms = data.get("arms") if isinstance(data, dict) else None
        if isinstance(arms, dict) and "fedavg" in arms and "baselines" not in data:
            return {**data, "baselines": ["fedavg"]}
        return data

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        return fill_external(fill_rates(fill_deployed(data)))

    @model_validator(mode="after")
    def _check(self) -> Study:
        check_arms(self)
        check_baselines(self)
        check_tuning_seeds(self)
        check_metric(self.metric, self.data.source)
        check_table(self)
        if self.is_deployed:
            check_deployed(self)
        else:
            check_simulated(self)
        check_silo_names(self)
        check_recalibration(self)
        check_external_models(self)
        check_backbones(self)
        check_needs(self)
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
        if isinstance(self.partition, Given):
            return tuple(sorted(self.partition.silos, key=natural_key))
        if isinstance(self.partition, Deployed | Indices | ByColumn):
            return tuple(sorted(self.partition.names, key=natural_key))
        return tuple(f"silo-{index}" for index in range(self.partition.silos))

    @property
    def is_deployed(self) -> bool:
        """Whether the silos are on hosts of their own, not simulated."""
        return isinstance(self.partition, Deployed)

    @property
    def num_silos(self) -> int:
        """Number of silos."""
        return len(self.silo_names)

    @property
    def has_own_split(self) -> bool:
        """Whether the silos' examples are named by the study, so that no seed moves them."""
        return isinstance(self.partition, Given | Indices)

    @property
    def target_values(self) -> list[float]:
        """Targets as the study gives them: values of the metric, or fractions of a best one."""
        if isinstance(self.targets, RelativeTargets):
            return self.targets.of_baseline_best
        return self.targets

    @property
    def absolute_targets(self) -> list[float] | None:
        """Targets as values of the metric, or None if they depend on the first baseline's runs."""
        return None if isinstance(self.targets, RelativeTargets) else self.targets

    def global_arch(self, arm: str) -> str:
        """The architecture of an arm's global model."""
        return self.arms[arm].arch or self.model.arch

    def arch_of(self, silo: str) -> str:
        """The architecture of a silo's pre-trained model."""
        return self.model.per_silo.get(silo, self.model.arch)

    def rounds_of(self, arm: str) -> Rounds:
        """The round settings of an arm: the study's, with those that the arm overrides.

        If targets are relative to the first baseline's best, that arm uses its whole budget.
        Options of a local loss do not pass to an arm with another one, nor do learning rate and
        weight decay to an arm with another optimizer.
        """
        overrides = self.arms[arm].rounds.model_dump(exclude_none=True)
        optimizer = overrides.get("optimizer", self.rounds.optimizer)
        if optimizer != self.rounds.optimizer:
            defaults = optimizer_defaults(optimizer)
            if optimizer == "sgd" and (rate := default_rate(self.model.model_dump(), "rounds")):
                defaults["lr"] = rate
            overrides = defaults | overrides
        if overrides.get("local_loss", self.rounds.local_loss) != self.rounds.local_loss:
            overrides.setdefault("options", {})
        if isinstance(self.targets, RelativeTargets) and arm == self.baselines[0]:
            overrides["stop"] = "budget"
        return self.rounds.model_copy(update=overrides)

    def exchanges_before_round_1(self, arm: str) -> int:
        """Exchanges of an arm's start: one collects models, a second sends some to silos.

        A random start and the control on validation labels alone send silos nothing.
        If all transfer examples turn out to be alike, the run leaves out the second. Those that
        made a checkpoint are counted once it is read.
        """
        return self.statistics_exchanges + self._start_exchanges(arm)

    @property
    def statistics_exchanges(self) -> int:
        """Exchanges in which silos share sums of a table's columns; every arm pays for them."""
        table = self.data.table
        shared = table is None or table.statistics == "silos"
        return int(self.is_table and shared)

    @property
    def is_table(self) -> bool:
        """Whether the examples are rows of a table with named columns."""
        deployed = self.is_deployed and self.data.table is not None
        return deployed or any(is_table(source) for source in self._sources)

    @property
    def is_text(self) -> bool:
        """Whether the examples are texts."""
        if self.is_deployed and self.data.source == NO_SOURCE:
            return self.data.text is not None or is_text(self.data.transfer.source)
        return any(is_text(source) for source in self._sources)

    @property
    def columns(self) -> Table | Text | None:
        """What columns of a table or of texts are; texts have the model's tokenizer by default."""
        if not self.is_text:
            return self.data.table
        text, folder = self.data.text or Text(), self.model.arch.removeprefix(HUGGING_FACE)
        if text.tokenizer or folder == self.model.arch:
            return text
        return text.model_copy(update={"tokenizer": folder})

    @property
    def _sources(self) -> list[str]:
        given = self.partition.silos.values() if isinstance(self.partition, Given) else ()
        return [self.data.source, *given]

    def _start_exchanges(self, arm: str) -> int:
        if self.arms[arm].start in ("random", "checkpoint"):
            return 0
        settings, transfer = self.arms[arm].consolidation, self.data.transfer
        if settings is None:
            return 1
        if not settings.asks_silos:
            return 0
        by_features = settings.uses_features and transfer.size >= LEAST_TRANSFER_IMAGES
        return 2 if transfer.at_silo or by_features else 1

    @property
    def architectures(self) -> tuple[str, ...]:
        """All architectures of the study, of silos' and of global models."""
        own = [arm.arch for arm in self.arms.values() if arm.arch]
        return tuple(sorted({self.model.arch, *self.model.per_silo.values(), *own}))

    @property
    def needs_pretrained(self) -> bool:
        """Whether an arm uses the silos' own models."""
        return any(arm.needs_pretrained for arm in self.arms.values())

    def has_labels(self, settings: Consolidation) -> bool:
        """Whether the student of a consolidation may learn from labels."""
        transfer = self.data.transfer
        return transfer.labelled or transfer.at_silo or settings.teachers == "validation"

    @property
    def needs_transfer(self) -> bool:
        """Whether any arm, or every average, uses the transfer set."""
        recalibrates = self.model.batch_norm == "recalibrate"
        return recalibrates or any(arm.needs_transfer for arm in self.arms.values())

    def to_dict(self) -> dict[str, Any]:
        """The resolved study as plain values; loading it again gives an equal study."""
        return self.model_dump(mode="json", exclude_none=True)
