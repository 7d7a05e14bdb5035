"""Sections on data: its source, how it is split, the transfer set, the partition among silos."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from fedkd.config.sections import (
    Count,
    Fraction,
    Options,
    Rate,
    Section,
    Seed,
    Source,
    refuse_options,
)
from fedkd.config.table import Table
from fedkd.config.text import Text
from fedkd.registry import NOISE, PARTITIONS, SOURCES, STUDENT_SILO
from fedkd.util.name_registry import OWN
from fedkd.util.names import SILO_NAME

SiloName = Annotated[str, Field(pattern=rf"^{SILO_NAME.pattern}$")]
ClassName = Annotated[str, Field(min_length=1, max_length=200)]


class TransferSet(Section):
    """The examples on which the student learns from the teachers."""

    size: Count = Field(300, description="number of examples")
    labelled: bool = Field(default=False, description="whether the server may use their labels")
    source: Source | Literal["noise", "student-silo"] | None = Field(
        None,
        description="another data source; noise: random pixels; student-silo: the private examples "
        "of the silo whose model is the student; by default examples of data.source",
    )
    options: Options = Field(
        default={}, description="keyword arguments of a source function of your own"
    )

    @model_validator(mode="after")
    def _check(self) -> TransferSet:
        if self.source == NOISE and self.labelled:
            raise ValueError("labelled: noise has no labels")
        refuse_options(self.options, SOURCES, self.source or "data.source")
        return self

    @property
    def at_silo(self) -> bool:
        """Whether distillation takes place on a silo, on examples that never leave it."""
        return self.source == STUDENT_SILO


class Data(Section):
    """Where examples come from and how they are split."""

    source: Source | Literal["none"] = Field(
        "digits",
        description="for deployed silos: the server's own examples, on the SuperLink's host, or "
        "none, the default then; none is also for silos with data of their own (scheme: given)",
    )
    options: Options = Field(
        default={}, description="keyword arguments of a source function of your own"
    )
    test: float = Field(
        0.2, gt=0, lt=1, description="fraction of the examples, if the source has no test set"
    )
    validation: float = Field(
        0.1, ge=0, lt=1, description="fraction of the examples that are not test examples"
    )
    split_seed: Seed = Field(
        0,
        description="draws the test and validation examples, the same for all seeds of the study; "
        "these draw the transfer set and the silos' examples from the rest",
    )
    transfer: TransferSet = TransferSet()
    silo_test: float = Field(
        0,
        ge=0,
        lt=1,
        description="fraction of each silo's examples that it does not train on and judges models "
        "by; with 0 a simulated silo judges by the server's test examples in its class mix",
    )
    train_size: Count | None = Field(
        None, description="maximum number of examples for all silos together"
    )
    test_size: Count | None = Field(None, description="maximum number of test examples")
    image_size: int | None = Field(
        None, ge=4, le=1024, description="resize images to this height and width in pixels"
    )
    classes: list[ClassName] | None = Field(
        None,
        min_length=2,
        max_length=10_000,
        description="names of the classes, in the order of the labels; for deployed silos only",
    )
    channels: int | None = Field(
        None, ge=1, le=16, description="1 for greyscale, 3 for RGB; for deployed silos only"
    )
    table: Table | None = Field(None, description="columns of a table; for sources that are tables")
    text: Text | None = Field(None, description="tokenizer and columns of texts; for text:PATH")

    @model_validator(mode="after")
    def _check(self) -> Data:
        names = self.classes or []
        if twice := [name for index, name in enumerate(names) if name in names[:index]]:
            raise ValueError(f"classes: names {twice[0]!r} twice")
        refuse_options(self.options, SOURCES, self.source)
        return self


MinSize: Any = Field(10, ge=1, description="minimum number of examples of a silo")


class Partition(Section):
    """How the training examples are divided among the silos."""

    silos: int = Field(10, ge=1, le=100_000)
    min_size: int = MinSize


class Iid(Partition):
    """Silos of equal size, with the same distribution of labels."""

    scheme: Literal["iid"] = "iid"


class Quantity(Partition):
    """Sizes drawn from a Dirichlet distribution, with the same distribution of labels."""

    scheme: Literal["quantity"]
    alpha: Rate = Field(0.5, description="concentration: the smaller, the more unequal the sizes")


class LabelDirichlet(Partition):
    """Each class is divided by its own draw from a Dirichlet distribution."""

    scheme: Literal["label-dirichlet"]
    alpha: Rate = Field(0.1, description="concentration: the smaller, the fewer classes in a silo")


class LabelShards(Partition):
    """Each silo holds a fixed number of classes."""

    scheme: Literal["label-shards"]
    classes_per_silo: Count = 2


class LabelDominant(Partition):
    """A share of each class goes to one silo; the rest is divided evenly among all."""

    scheme: Literal["label-dominant"]
    share: Fraction = 0.8


class OwnPartition(Partition):
    """A function of your own divides the examples."""

    scheme: Annotated[
        str,
        AfterValidator(PARTITIONS.check),
        Field(json_schema_extra={"pattern": f"^{OWN}$", "examples": [PARTITIONS.own]}),
    ]
    options: Options = Field(default={}, description="keyword arguments of the function")


class Deployed(Partition):
    """Each silo owns its examples, on a host of its own; nothing is divided."""

    scheme: Literal["deployed"]
    names: list[SiloName] = Field(
        min_length=1, max_length=1000, description="of all silos, as in their silo.yaml"
    )

    @model_validator(mode="before")
    @classmethod
    def _count(cls, data: Any) -> Any:
        names = data.get("names") if isinstance(data, dict) else None
        return {"silos": len(names), **data} if isinstance(names, list) and names else data

    @model_validator(mode="after")
    def _check(self) -> Deployed:
        if len(set(self.names)) < len(self.names):
            raise ValueError("names has a silo twice")
        if self.silos != len(self.names):
            raise ValueError(f"silos is {self.silos}, but names has {len(self.names)} entries")
        return self


class Given(Section):
    """Each silo has its own data; data.source has the test, validation and transfer examples."""

    scheme: Literal["given"]
    silos: dict[SiloName, Source] = Field(
        min_length=1,
        max_length=1000,
        description="name of each silo, and the source of its examples; classes are united by name",
    )
    min_size: int = MinSize


class Indices(Section):
    """A split of your own, in a file; its rows are in no other set."""

    scheme: Literal["indices"]
    path: str = Field(
        min_length=1,
        max_length=4096,
        description="a JSON file that maps each silo's name to the numbers of its rows among the "
        "training examples of data.source, from 0",
    )
    names: list[SiloName] = Field(
        default=[], max_length=100_000, description="of the silos; read from the file"
    )
    min_size: int = MinSize

    @model_validator(mode="after")
    def _check(self) -> Indices:
        if not self.names:  # a study that another host sent has read none of this host's files
            raise ValueError("names: are missing; they are read where the study is loaded")
        return self


class ByColumn(Section):
    """A column of the table says which silo each row is of (``data.table.silo``)."""

    scheme: Literal["by-column"]
    names: list[SiloName] = Field(
        default=[], max_length=1000, description="of the silos; read from the column"
    )
    min_size: int = MinSize


def kind_of_partition(value: Any) -> Any:
    """Return the tag in :data:`AnyPartition` of a section, or of what a study has for one."""
    if not isinstance(value, dict | Section):
        return PARTITIONS.own  # any member refuses it
    scheme = value.get("scheme") if isinstance(value, dict) else getattr(value, "scheme", None)
    return PARTITIONS.own if isinstance(scheme, str) and PARTITIONS.is_own(scheme) else scheme


AnyPartition = Annotated[
    Annotated[Iid, Tag("iid")]
    | Annotated[Quantity, Tag("quantity")]
    | Annotated[LabelDirichlet, Tag("label-dirichlet")]
    | Annotated[LabelShards, Tag("label-shards")]
    | Annotated[LabelDominant, Tag("label-dominant")]
    | Annotated[Given, Tag("given")]
    | Annotated[Indices, Tag("indices")]
    | Annotated[ByColumn, Tag("by-column")]
    | Annotated[Deployed, Tag("deployed")]
    | Annotated[OwnPartition, Tag(PARTITIONS.own)],
    Discriminator(kind_of_partition),
]
