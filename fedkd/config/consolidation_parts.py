"""Sections within a consolidation: which teachers, on which examples, with which densities."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from fedkd.config.sections import Count, Rate, Section

_SCALES = {"gaussian": 5.0, "knn": 3.0, "pooled": 3.0}
_DIMS = {"gaussian": 50, "knn": 50, "pooled": 500}

_CONTROLS = ("densities", "validation")
"""Values of ``teachers`` for which no model of a silo is a target."""
WITHOUT_MODELS = ("fresh", "lda-head")
"""Values of ``student`` that need no model of a silo."""


def fill_control(data: Any) -> Any:
    """Return a consolidation as its file holds it; a control's student is fresh by default."""
    if isinstance(data, dict) and data.get("teachers") in _CONTROLS:
        return {"student": "fresh", **data}
    return data


def check_control(teachers: str, student: str) -> None:
    """Refuse a control whose student is made of the models that it is a control for."""
    if teachers in _CONTROLS and student not in WITHOUT_MODELS:
        raise ValueError(
            f"student: {student} is made of the silos' models, but teachers: {teachers} is a "
            "control without them; use student: fresh"
        )


class Selection(Section):
    """Which of the silos' models are teachers."""

    drop_below_chance: bool = Field(
        default=False, description="leave out models no better than chance on validation data"
    )
    top: Count | None = Field(None, description="maximum number of teachers; by default all")
    by: Literal["accuracy", "complementary"] = Field(
        "accuracy",
        description="validation accuracy, or the share of the student's errors that a model "
        "predicts correctly",
    )

    @property
    def needs_validation(self) -> bool:
        """Whether teachers are chosen by validation data."""
        return self.drop_below_chance or self.top is not None


class Subset(Section):
    """Distil on a part of the transfer set only."""

    size: Count
    by: Literal["random", "entropy"] = Field(
        "random", description="entropy: the examples of which the ensemble is least certain"
    )


class Familiarity(Section):
    """How a silo estimates the density of transfer examples under its own data."""

    density: Literal["gaussian", "knn", "pooled"] = Field(
        "gaussian",
        description="gaussian and knn: each silo sends the log-density of each transfer example; "
        "pooled: silos share class sums of their examples, from which the server estimates class "
        "means and one covariance",
    )
    basis: Literal["pixels", "patches", "backbone", "inputs", "features"] = Field(
        "pixels",
        description="space of the densities. patches: responses of filters learnt from the "
        "transfer images; backbone: features of the part of the model that nobody trains; "
        "inputs: the columns of a table, or other floats as they are; "
        "features: inputs of the averaged model's last layer, which costs a second exchange",
    )
    dims: Count | None = Field(
        None,
        description="maximum number of dimensions; by default 50, or 500 for pooled, whose "
        "messages grow with its square and which uses at most half as many as transfer examples",
    )
    filters: int = Field(100, ge=1, le=2000, description="number of filters; for basis: patches")
    neighbours: Count = Field(5, description="k; for density: knn")
    scale: Rate | None = Field(
        None, description="divides log-densities; by default 5 for gaussian and 3 for the others"
    )
    background: bool = Field(
        default=False,
        description="add a broad component, so that teachers count equally on examples unlike any "
        "silo's",
    )

    @property
    def effective_scale(self) -> float:
        """The scale in use."""
        return self.scale if self.scale is not None else _SCALES[self.density]

    @property
    def class_scale(self) -> float:
        """The divisor of log-densities between classes, rather than between silos.

        For pooled densities it is the same, because both compare hundreds of dimensions.
        """
        return self.effective_scale if self.density == "pooled" else 1.0

    @property
    def effective_dims(self) -> int:
        """The maximum number of dimensions in use."""
        return self.dims if self.dims is not None else _DIMS[self.density]

    @model_validator(mode="after")
    def _check(self) -> Familiarity:
        if self.density == "pooled" and self.basis == "features":
            raise ValueError(
                "density: pooled needs basis: pixels, patches, backbone or inputs; features of a "
                "model are unbounded, so that implausible class sums could not be refused"
            )
        return self
