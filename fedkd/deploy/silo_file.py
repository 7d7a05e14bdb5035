"""``silo.yaml``: what a silo on a host of its own holds, and what it is willing to share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from fedkd.config.backbone import WEIGHTS_SUFFIXES, Preprocessing, is_weights_file
from fedkd.config.data import ClassName, SiloName
from fedkd.config.engine import Device
from fedkd.config.paths import absolute_arch, absolute_path, absolute_source
from fedkd.config.sections import Architecture, Count, Rate, Section, Source
from fedkd.errors import UserError
from fedkd.models.downloads import local_files_only
from fedkd.user_code import importing_only
from fedkd.util.checkpoint_files import external_format
from fedkd.util.error_messages import to_user_error
from fedkd.util.yaml_loader import load_yaml, read_text

FilePath = Annotated[str, Field(min_length=1, max_length=4096)]
TransferHash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
OwnName = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", max_length=200)]


class OwnModel(Section):
    """The model that the silo trained before, and pre-trained weights on its host."""

    checkpoint: FilePath | None = Field(
        None,
        description="a file of safetensors or torch.save, its outputs in the study's order; or a "
        "model that only predicts: .onnx, .skops, .ubj or .json (XGBoost), .txt (LightGBM), .cbm",
    )
    weights: FilePath | None = Field(
        None,
        description="the file of the study's model.weights on this host, or the folder of its "
        "model.arch: hf:FOLDER with the tokenizer of texts, if it lies elsewhere",
    )
    arch: Architecture | None = Field(
        None, description="its architecture; may be left out where the file names it"
    )
    preprocessing: Preprocessing | None = Field(
        None,
        description="of images in [0, 1], as when the model was trained; by default the study's",
    )

    @model_validator(mode="after")
    def _check(self) -> OwnModel:
        if self.weights is not None and not is_weights_file(self.weights):
            raise ValueError(
                f"weights: {self.weights} is not a file of weights, which ends in "
                f"{', '.join(WEIGHTS_SUFFIXES)}; write a folder as ./{self.weights}"
            )
        if self.checkpoint is None and (self.weights is None or self.arch or self.preprocessing):
            raise ValueError("checkpoint: is missing: the file of the model that the silo trained")
        return self


class Share(Section):
    """What may leave the silo. The number of its examples always does, for averages need it."""

    teacher: Literal["weights", "logits", "none"] = Field(
        description="of its own model: the weights, or only predictions on approved transfer sets"
    )
    rounds: bool = Field(
        default=True, description="global models trained on its examples, once a round"
    )
    metrics: bool = Field(
        default=True,
        description="accuracy and loss of the global model on its examples; after the last "
        "round, the metric of it and of the silo's own model on those that it holds out",
    )
    densities: bool = Field(
        default=False,
        description="how likely each example of an approved transfer set is under its examples; "
        "classes of fewer than min_samples are kept back",
    )
    moments: bool = Field(
        default=False,
        description="sums over its examples in the basis of an approved transfer set: how many of "
        "each class, their mean, and one covariance; classes of fewer than min_samples are "
        "kept back",
    )
    class_counts: bool = Field(
        default=False,
        description="its number of examples of each class; other silos are sent the sum over all "
        "silos. With metrics, also how many of them the global model predicts and gets right, if "
        "the study's metric needs it",
    )
    table_sums: bool = Field(
        default=False,
        description="of a table: sums over its rows by column, and how many rows each category "
        "has; categories of fewer than min_samples are kept back",
    )
    min_samples: int = Field(
        10,
        ge=1,
        le=10**9,
        description="with fewer examples it takes no part; class counts stay here if any class "
        "that it has has fewer",
    )
    max_questions: Count = Field(
        6,
        description="different questions about densities and moments that it ever answers, over "
        "all runs, and as many transfer sets on which it predicts; the answer to a question that "
        "was asked before is the same and does not count",
    )


class Approve(Section):
    """What the silo's owner has seen and approved."""

    study: Literal["ask", "any"] = Field(
        "ask",
        description="ask: a study is answered once its owner has approved it (fedkd silo approve); "
        "any: every study is",
    )
    transfer: list[TransferHash] = Field(
        default=[],
        max_length=1000,
        description="hashes of transfer sets on which densities, moments and predictions may be "
        "computed",
    )


class LocalDp(Section):
    """Flower's LocalDpMod on every trained model: its change is clipped, then noise is added."""

    clipping_norm: Rate = Field(description="greatest L2 norm of the change")
    sensitivity: Rate = Field(description="of the noise's scale; at least clipping_norm")
    epsilon: Rate
    delta: float = Field(gt=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> LocalDp:
        if self.sensitivity < self.clipping_norm:
            raise ValueError(
                f"sensitivity: {self.sensitivity:g} is below clipping_norm, "
                f"{self.clipping_norm:g}, so that the noise is weaker than epsilon says; set "
                f"sensitivity: {self.clipping_norm:g} or more"
            )
        return self


class SiloFile(Section):
    """All that ``silo.yaml`` says."""

    name: SiloName = Field(description="one of the study's partition.names")
    data: Source = Field(description="its private examples: folder:PATH or npz:PATH")
    labels: dict[str, ClassName] = Field(
        default={}, description="its own class names to the study's, where they differ"
    )
    model: OwnModel | None = Field(
        None, description="without a checkpoint it takes part in rounds alone"
    )
    share: Share
    receive: FilePath | None = Field(
        None,
        description="folder for the final model of every run, which the server then sends it; by "
        "default it is sent none",
    )
    audit: FilePath = Field(description="log of all that leaves, one JSON object a line")
    transfer: Source | None = Field(
        None, description="the study's data.transfer.source on this host, so that it is not sent"
    )
    approve: Approve = Approve()
    code: Annotated[str, Field(pattern=r"^([0-9a-f]{64}|installed)$")] | None = Field(
        None,
        description="for fedkd silo serve: the hash of the only code that may run here, or "
        "installed, for the code of the fedkd that is installed here",
    )
    allow: list[OwnName] = Field(
        default=[],
        max_length=1000,
        description="functions (package.module:function) that a study may make this host import",
    )
    download: bool = Field(
        default=False,
        description="whether pre-trained weights that a study names are downloaded where they are "
        "not on this host",
    )
    local_dp: LocalDp | None = None
    idle: int = Field(
        900,
        ge=0,
        le=10**9,
        description="seconds without a message after which its worker process ends and frees its "
        "memory",
    )
    device: Device = "cpu"
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="threads with which it trains, by default one for each core of its host; "
        "another number gives other last bits",
    )

    @field_validator("approve", mode="before")
    @classmethod
    def _expand_approve(cls, value: Any) -> Any:
        """Read ``approve: any`` as ``approve: {study: any}``."""
        return {"study": value} if isinstance(value, str) else value

    @property
    def importable(self) -> frozenset[str]:
        """The names that its owner lets this host import: those of ``allow`` and its own."""
        own = (self.data, self.transfer, self.model.arch if self.model else None)
        return frozenset([*self.allow, *filter(None, own)])

    @property
    def checkpoint(self) -> Path | None:
        """The file of the model that the silo trained before."""
        own = self.model.checkpoint if self.model else None
        return None if own is None else Path(own)

    @property
    def weights(self) -> str | None:
        """The study's pre-trained weights on this host; None for where the study says."""
        return self.model.weights if self.model else None

    @contextmanager
    def permissions(self) -> Iterator[None]:
        """Import and download in the block only what the file allows."""
        with importing_only(self.importable), local_files_only(enabled=not self.download):
            yield

    @model_validator(mode="after")
    def _check(self) -> SiloFile:
        if self.checkpoint is None and self.share.teacher != "none":
            raise ValueError("share.teacher: must be none for a silo without a model")
        external = self.checkpoint and external_format(self.checkpoint)
        if external and self.share.teacher == "weights":
            raise ValueError(
                f"share.teacher: weights, but the model is of {external}, which only predicts; set "
                "share.teacher: logits"
            )
        if self.local_dp is not None and self.share.teacher == "weights":
            raise ValueError(
                "local_dp: adds noise to models of the rounds, but share.teacher: weights would "
                "send the silo's own model without any; use logits or none"
            )
        return self


def load_silo_file(path: Path) -> SiloFile:
    """Read ``silo.yaml``; relative paths in it are seen from its own folder.

    Raises:
        UserError: it cannot be read or is not valid; one line a problem.
    """
    origin = str(path)
    data = load_yaml(read_text(path, "silo.yaml"), origin=origin)
    if not isinstance(data, dict):
        raise UserError(f"{origin}: is no mapping; a silo has at least name, data, share and audit")
    try:
        file = SiloFile.model_validate(data)
    except ValidationError as error:
        raise to_user_error(error, data, origin=origin) from None
    return _make_paths_absolute(file, path.absolute().parent)


def silo_schema() -> dict[str, Any]:
    """Return the JSON schema of ``silo.yaml``, for editors."""
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": dialect, **SiloFile.model_json_schema(), "title": "fedkd silo"}


def _make_paths_absolute(file: SiloFile, folder: Path) -> SiloFile:
    model = file.model
    if model is not None:
        arch = model.arch and absolute_arch(model.arch, folder)
        files = {"checkpoint": model.checkpoint, "weights": model.weights}
        found = {key: absolute_path(path, folder) for key, path in files.items() if path}
        model = model.model_copy(update={**found, "arch": arch})
    return file.model_copy(
        update={
            "data": absolute_source(file.data, folder),
            "transfer": absolute_source(file.transfer, folder),
            "audit": absolute_path(file.audit, folder),
            "receive": absolute_path(file.receive, folder) if file.receive else None,
            "model": model,
        }
    )
