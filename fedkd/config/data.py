"""Sections on data: its source, the cut, the transfer set, the partition among silos."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from fedkd.config.sections import Count, Fraction, Rate, Section, Source
from fedkd.registry import (
    NO_SOURCE,
    NOISE,
    PREFIXES,
    STUDENT_SILO,
    TORCHVISION_SETS,
    check_study_source,
)
from fedkd.util.names import SILO_NAME

StudySource = Annotated[
    str,
    AfterValidator(check_study_source),
    Field(json_schema_extra={"examples": ["digits", *TORCHVISION_SETS, *PREFIXES, NO_SOURCE]}),
]
SiloName = Annotated[str, Field(pattern=rf"^{SILO_NAME.pattern}$")]
ClassName = Annotated[str, Field(min_length=1, max_length=200)]


class TransferSet(Section):
    """The images on which knowledge passes from teachers to student."""

    size: Count = Field(300, description="number of images")
    labelled: bool = Field(default=False, description="whether the server may use their labels")
    source: Source | Literal["noise", "student-silo"] | None = Field(
        None,
        description="another data source to draw from, noise, or student-silo: the private images "
        "of the silo whose model is the student; by default the study's own",
    )

    @model_validator(mode="after")
    def _check(self) -> TransferSet:
        if self.source == NOISE and self.labelled:
            raise ValueError("labelled: noise has no labels")
        return self

    @property
    def at_silo(self) -> bool:
        """Whether distillation takes place on a silo, on images that never leave it."""
        return self.source == STUDENT_SILO


class Data(Section):
    """Where images come from and how they are cut."""

    source: StudySource = Field(
        "digits",
        description="of silos in the field: the server's own images, on the SuperLink's host, or "
        "none, which is then the default",
    )
    test: float = Field(0.2, gt=0, lt=1, description="fraction, where the source has no test set")
    validation: float = Field(0.1, ge=0, lt=1, description="fraction of what is not test")
    transfer: TransferSet = TransferSet()
    train_size: Count | None = Field(None, description="at most so many images for all silos")
    test_size: Count | None = Field(None, description="at most so many images to test on")
    image_size: int | None = Field(
        None, ge=4, le=1024, description="resize images to this height and width in pixels"
    )
    classes: list[ClassName] | None = Field(
        None,
        min_length=2,
        max_length=10_000,
        description="names of the classes, of silos in the field alone: a label is a place in it",
    )
    channels: int | None = Field(
        None, ge=1, le=16, description="1 for greyscale, 3 for RGB; of silos in the field alone"
    )

    @model_validator(mode="after")
    def _check(self) -> Data:
        names = self.classes or []
        if twice := [name for index, name in enumerate(names) if name in names[:index]]:
            raise ValueError(f"classes: {twice[0]!r} stands there twice")
        return self


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


class Deployed(Partition):
    """Nothing is shared out: each silo owns its images, on a host of its own."""

    scheme: Literal["deployed"]
    names: list[SiloName] = Field(
        min_length=1, max_length=1000, description="of all silos, as their silo.yaml says"
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
