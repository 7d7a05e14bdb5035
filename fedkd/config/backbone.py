"""Keys on pre-trained models: their weights, their preprocessing, and the part that is trained."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from fedkd.config.sections import Count, Section
from fedkd.registry import ARCHITECTURES, HUGGING_FACE, LINEAR, PATCH_FEATURES

if TYPE_CHECKING:
    from fedkd.config.study import Study

WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
"""Endings of the files that ``model.weights`` may name."""


class Normalization(Section):
    """What is done to images, as floats in [0, 1], before the network gets them."""

    mean: list[float] = Field(
        min_length=1, max_length=16, description="of each channel, in [0, 1], which is subtracted"
    )
    std: list[Annotated[float, Field(gt=0)]] = Field(
        min_length=1, max_length=16, description="of each channel, by which it is then divided"
    )
    size: int | None = Field(
        None,
        ge=4,
        le=1024,
        description="resize images to this height and width in pixels first; by default as they "
        "are",
    )

    @model_validator(mode="after")
    def _check(self) -> Normalization:
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"std: has {len(self.std)} entries, but mean has {len(self.mean)}; give one of "
                "each for every channel"
            )
        return self


Preprocessing = Annotated[
    Annotated[Literal["none", "imagenet"], Tag("named")]
    | Annotated[Normalization, Tag("own values")],
    Discriminator(lambda v: "own values" if isinstance(v, dict | Normalization) else "named"),
]


class LastBlocks(Section):
    """Train the last blocks of the network, and the head."""

    last: Count = Field(description="number of blocks")


class Lora(Section):
    """Low-rank adapters of linear layers (Hu et al. 2106.09685), and the head."""

    rank: int = Field(8, ge=1, le=1024)
    targets: list[Annotated[str, Field(min_length=1, max_length=200)]] | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="names of layers, or how they end; by default all linear layers but the head",
    )


class LoraTraining(Section):
    """Train low-rank adapters, and the head."""

    lora: Lora


def _kind_of_part(value: Any) -> str:
    if isinstance(value, LoraTraining) or (isinstance(value, dict) and "lora" in value):
        return "adapters"
    return "blocks" if isinstance(value, dict | LastBlocks) else "named"


Trained = Annotated[
    Annotated[Literal["all", "head"], Tag("named")]
    | Annotated[LastBlocks, Tag("blocks")]
    | Annotated[LoraTraining, Tag("adapters")],
    Discriminator(_kind_of_part),
]


class BackboneKeys(Section):
    """Keys of ``model`` on pre-trained weights."""

    weights: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description="pre-trained weights of model.arch: a name that torchvision or timm knows, "
        "such as IMAGENET1K_V1, or a file; the head is replaced by one of the study's classes",
    )
    preprocessing: Preprocessing | None = Field(
        None,
        description="of images in [0, 1], inside the model; by default what the weights are made "
        "for, or none",
    )
    train: Trained = Field(
        "all",
        description="the whole network, its head (the last linear layer), {last: N} blocks and "
        "the head, or {lora: {rank: 8}}; only what is trained is exchanged",
    )


def is_weights_file(weights: str) -> bool:
    """Whether ``model.weights`` names a file rather than weights that a library knows."""
    return PurePath(weights).suffix.lower() in WEIGHTS_SUFFIXES or "/" in weights


def check_backbones(study: Study) -> None:
    """Refuse keys on pre-trained models that contradict each other."""
    model = study.model
    pretrained = model.weights or model.arch.startswith(HUGGING_FACE)
    if model.train != "all" and not pretrained:
        raise ValueError(
            "model.train: trains a part of a network whose other weights all silos know, but "
            "there are none; set model.weights"
        )
    if model.weights and not (ARCHITECTURES.split(model.arch)[0] or is_weights_file(model.weights)):
        raise ValueError(
            f"model.weights: {model.weights} is not a file, and {model.arch} has no weights with "
            "names; give a .safetensors, .pt or .pth file"
        )
    if model.weights and model.arch.startswith(HUGGING_FACE):
        raise ValueError(f"model.weights: are those of {model.arch} itself; leave it out")
    _check_preprocessing(study)
    for name, arm in study.arms.items():
        settings = arm.consolidation
        if settings is None or not settings.uses_densities:
            continue
        if settings.familiarity.basis == "backbone" and not pretrained:
            raise ValueError(
                f"arms.{name}.consolidation.familiarity.basis: backbone is features of pre-trained "
                "weights; set model.weights, or model.arch: hf:FOLDER"
            )


def _check_preprocessing(study: Study) -> None:
    model, own = study.model, study.pretraining.preprocessing
    if model.train != "all" and own:
        raise ValueError(
            "pretraining.preprocessing: belongs to the part that nobody trains, which is the same "
            "for all silos; leave it out, or set model.train: all"
        )
    sizes = {
        each.size
        for each in (model.preprocessing, *own.values())
        if isinstance(each, Normalization)
    }
    if len(sizes) > 1:
        raise ValueError(
            "pretraining.preprocessing: another size than that of model.preprocessing; all silos' "
            "models take images of one size"
        )
    if not own:
        return
    for name, arm in study.arms.items():
        averages = arm.start == "average" or (
            arm.consolidation is not None
            and (arm.consolidation.student == "average" or arm.consolidation.uses_features)
        )
        if not averages:
            continue
        arch = study.global_arch(name)
        members = [silo for silo in study.silo_names if study.arch_of(silo) == arch]
        if len({str(own.get(silo, model.preprocessing) or "none") for silo in members}) > 1:
            raise ValueError(
                f"arms.{name}: averages models of silos whose preprocessing differs "
                f"({', '.join(sorted(own))}), which is a model of neither; set student: best or "
                "fresh, or another start"
            )


def check_lda_head(study: Study, name: str) -> None:
    """Refuse an arm whose student in closed form is not the last layer of its model."""
    arch, settings = study.global_arch(name), study.arms[name].consolidation
    if settings is not None and settings.familiarity.basis == "backbone":
        if arch != study.model.arch or study.model.train != "head":
            raise ValueError(
                f"arms.{name}.consolidation.student: lda-head in basis: backbone is the head of a "
                "network that nobody trains; set model.weights and model.train: head"
            )
    elif settings is not None and settings.familiarity.basis == "inputs":
        if arch != LINEAR:
            raise ValueError(
                f"arms.{name}.consolidation.student: lda-head in basis: inputs is {LINEAR}, but "
                f"the arm's model is {arch}; set arms.{name}.arch: {LINEAR}"
            )
    elif arch != PATCH_FEATURES:
        raise ValueError(
            f"arms.{name}.consolidation.student: lda-head is a {PATCH_FEATURES}, but the arm's "
            f"model is {arch}; set arms.{name}.arch: {PATCH_FEATURES}"
        )
