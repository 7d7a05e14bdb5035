"""Sections on consolidation: who teaches, how teachers are weighed, how the student learns."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from fedkd.config.sections import Count, Fraction, Momentum, Rate, Section
from fedkd.registry import METHODS, NEEDS_MODELS, NUM_PATCH_FILTERS, WEIGHTINGS

_SCALES = {"gaussian": 5.0, "knn": 3.0, "pooled": 3.0}
_DIMS = {"gaussian": 50, "knn": 50, "pooled": 500}


class Familiarity(Section):
    """How a silo tells how likely a transfer image is under its own data."""

    density: Literal["gaussian", "knn", "pooled"] = Field(
        "gaussian",
        description="gaussian and knn: silos tell how likely each transfer image is; pooled: they "
        "tell moments of their images, and estimate one covariance together",
    )
    basis: Literal["pixels", "patches", "features"] = Field(
        "pixels",
        description="patches: what filters see that are learnt from the transfer images; features: "
        "those before the last layer of the averaged model, at the price of a second exchange",
    )
    dims: Count | None = Field(
        None,
        description="most dimensions of the basis; 50, or 500 (pooled, whose numbers grow with "
        "their square; more than half as many as transfer images are not used)",
    )
    filters: int = Field(
        100, ge=1, le=2000, description="of basis: patches; more see more, at their price"
    )
    neighbours: Count = Field(5, description="k of the knn density")
    scale: Rate | None = Field(None, description="divides log-densities; 5 (gaussian) or 3")
    background: bool = Field(default=False, description="a component for images that no silo knows")

    @property
    def effective_scale(self) -> float:
        """The scale in use."""
        return self.scale if self.scale is not None else _SCALES[self.density]

    @property
    def class_scale(self) -> float:
        """What divides log-densities where classes are told apart, rather than silos.

        Of pooled densities both are the same question, asked of hundreds of dimensions.
        """
        return self.effective_scale if self.density == "pooled" else 1.0

    @property
    def effective_dims(self) -> int:
        """The most dimensions in use."""
        return self.dims if self.dims is not None else _DIMS[self.density]

    @model_validator(mode="after")
    def _check(self) -> Familiarity:
        if self.density == "pooled" and self.basis == "features":
            raise ValueError(
                "density: pooled goes with basis: pixels or patches; nothing bounds what a model's "
                "features may be, so that no moments in them could be refused"
            )
        return self


class Selection(Section):
    """Which of the silos' models may teach."""

    drop_below_chance: bool = Field(
        default=False, description="leave out models no better than guessing on validation data"
    )
    top: Count | None = Field(None, description="keep so many teachers; by default all")
    by: Literal["accuracy", "complementary"] = Field(
        "accuracy",
        description="validation accuracy, or the share of the student's errors that it gets right",
    )

    @property
    def needs_validation(self) -> bool:
        """Whether validation data decides who teaches."""
        return self.drop_below_chance or self.top is not None


class Subset(Section):
    """Distil on a part of the transfer set only."""

    size: Count
    by: Literal["random", "entropy"] = Field(
        "random", description="at random, or the images on which the ensemble is least certain"
    )


class Consolidation(Section):
    """How teachers become one student."""

    method: Annotated[
        str, AfterValidator(METHODS.check), Field(json_schema_extra={"examples": list(METHODS)})
    ] = "kd"
    weighting: Annotated[
        str,
        AfterValidator(WEIGHTINGS.check),
        Field(json_schema_extra={"examples": list(WEIGHTINGS)}),
    ] = "equal"
    pooling: Literal["probs", "mixture", "logits", "median", "trimmed-mean"] = Field(
        "probs",
        description="weighted means of probabilities or logits, or robust ones of each class's "
        "probabilities; temperature softens every teacher, but of a mixture what all say together",
    )
    trim: float = Field(
        0.2, gt=0, lt=0.5, description="weight cut off at either end; of pooling trimmed-mean"
    )
    max_weight: Fraction | None = Field(
        None, description="most that any teacher may weigh on average over the transfer images"
    )
    trust: Literal["equal", "agreement", "validation"] = Field(
        "equal",
        description="agreement: a teacher is left out if those that know the same images "
        "contradict it; of weighting familiarity, density gaussian. validation: if validation "
        "labels contradict its moments; of density pooled",
    )
    teachers: Literal["models", "both", "densities", "validation"] = Field(
        "models",
        description="both: half of what is taught is the models', half the densities' own opinion; "
        "controls that use no teacher model: densities alone, or with method fine-tune the labels "
        "of the validation data alone",
    )
    mode: Literal["weights", "logits"] = Field(
        "weights", description="what a silo sends: its model, or only its predictions"
    )
    student: Literal["average", "best", "worst", "random", "fresh", "lda-head"] = Field(
        "average",
        description="the average of the silos' models, one of them, a new model, or, of arch "
        "patch-features, the one that the silos' moments give in closed form",
    )
    select: Selection = Selection()
    subset: Subset | None = None
    sequence: Literal["parallel", "sequential"] = Field(
        "parallel", description="of method dp-kd: all teachers at once, or one after another"
    )
    order: Literal["silos", "random", "weakest-first", "strongest-first"] = Field(
        "silos", description="of sequential teachers; the last two by validation accuracy"
    )
    temperature: float = Field(1.0, gt=0, le=100)
    weight: float = Field(
        0.5, ge=0, le=1, description="of the teachers against labels; 1 without labels"
    )
    tau: Rate = Field(0.1, description="sharpness of the confidence weighting")
    epochs: int = Field(50, ge=0, le=1_000_000, description="0 leaves a student lda-head as it is")
    batch_size: Count = 32
    lr: Rate = 0.05
    momentum: Momentum = 0.9
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="of the learning rate; cosine: down to zero over all epochs"
    )
    mixup: bool = Field(
        default=False,
        description="learn from blends of two images and of their targets; of methods kd and "
        "fine-tune",
    )
    mixed_inputs: int = Field(
        0,
        ge=0,
        le=1000,
        description="so many blends of each transfer image with another are added, on which the "
        "teachers predict as well, for better students; of method kd",
    )
    finetune_epochs: int = Field(
        0,
        ge=0,
        le=10_000,
        description="epochs that follow those with blends, at a fifth of the rate, on transfer "
        "images that are moved and not blended",
    )
    familiarity: Familiarity = Familiarity()

    @property
    def all_epochs(self) -> int:
        """How many epochs a student learns, the last ones on unblended images."""
        return self.epochs + self.finetune_epochs

    @model_validator(mode="after")
    def _check(self) -> Consolidation:
        if self.joint_densities and self.weighting != "familiarity":
            raise ValueError(f"teachers: {self.teachers} needs weighting: familiarity")
        if self.trust == "agreement" and not (
            self.uses_densities and self.familiarity.density == "gaussian"
        ):
            raise ValueError(
                "trust: agreement needs to be told who knows what: weighting: familiarity with "
                "familiarity.density: gaussian"
            )
        if self.trust == "validation" and not self.uses_moments:
            raise ValueError(
                "trust: validation judges moments: set weighting: familiarity with "
                "familiarity.density: pooled"
            )
        self._check_epochs()
        if self.student == "lda-head":
            self._check_moments_suffice()
        if self.mode == "logits":
            self._check_logits_suffice()
        if self.sequence == "sequential" and self.method != "dp-kd":
            raise ValueError(f"sequence: sequential is for method: dp-kd, not {self.method}")
        if self.teachers == "validation" and self.method != "fine-tune":
            raise ValueError(f"teachers: validation is for method: fine-tune, not {self.method}")
        if self.teachers == "both" and self.method != "kd":
            raise ValueError(f"teachers: both is for method: kd, not {self.method}")
        if self.teachers == "densities" and self.method not in ("kd", "dp-kd"):
            raise ValueError(f"teachers: densities has no models for method: {self.method}")
        return self

    def _check_epochs(self) -> None:
        if self.mixup and self.method in ("dml", "dp-kd"):
            raise ValueError(f"mixup is for methods kd and fine-tune, not {self.method}")
        if self.mixed_inputs and self.method != "kd":
            raise ValueError(f"blends are for method: kd, not {self.method}")
        if self.mixed_inputs and self.mixup:
            raise ValueError("blends are mixed already; leave mixup out")
        if self.finetune_epochs and not self.mixed_inputs:
            raise ValueError("refine follows epochs with blends; set blends, or leave refine out")
        if self.epochs == 0 and (self.student != "lda-head" or self.mixed_inputs):
            raise ValueError(
                "epochs: 0 teaches nothing; it is for student: lda-head without blends, which "
                "needs no teaching"
            )

    def _check_moments_suffice(self) -> None:
        if not (self.uses_moments and self.familiarity.basis == "patches"):
            raise ValueError(
                "student: lda-head follows from moments of what filters see: set weighting: "
                "familiarity with familiarity.density: pooled and familiarity.basis: patches"
            )
        if self.familiarity.filters != NUM_PATCH_FILTERS:
            raise ValueError(
                f"student: lda-head is patch-features of {NUM_PATCH_FILTERS} filters; set "
                f"familiarity.filters: {NUM_PATCH_FILTERS}"
            )

    def _check_logits_suffice(self) -> None:
        remedy = "but mode: logits sends only predictions; use mode: weights"
        if self.student not in ("fresh", "lda-head"):
            raise ValueError(
                f"student: {self.student} needs the silos' models, {remedy}, or student: fresh"
            )
        if self.method in NEEDS_MODELS:
            raise ValueError(f"method: {self.method} trains the silos' models, {remedy}")
        if self.mixed_inputs:
            raise ValueError(f"blends are shown to the silos' models, {remedy}")
        if self.judges_models or self.teachers == "validation":
            raise ValueError(f"teachers are judged on validation data, {remedy}")
        if self.uses_densities and self.familiarity.basis == "features":
            raise ValueError(f"familiarity.basis: features averages models, {remedy}")

    @property
    def needs_validation(self) -> bool:
        """Whether the server's validation data decides something, labels included."""
        return self.judges_models or "validation" in (self.teachers, self.trust)

    @property
    def judges_models(self) -> bool:
        """Whether it says which of the silos' models are better."""
        return (
            self.weighting == "accuracy"
            or self.student in ("best", "worst")
            or self.select.needs_validation
            or self.order in ("weakest-first", "strongest-first")
        )

    @property
    def uses_densities(self) -> bool:
        """Whether silos are asked how familiar the transfer images are."""
        return self.weighting == "familiarity"

    @property
    def uses_moments(self) -> bool:
        """Whether silos tell so by moments of their images."""
        return self.uses_densities and self.familiarity.density == "pooled"

    @property
    def joint_densities(self) -> bool:
        """Whether the densities teach too, for which they must be told by class."""
        return self.teachers in ("both", "densities")

    @property
    def rests_on_densities(self) -> bool:
        """Whether no weighting but by densities goes with it."""
        return self.joint_densities or self.student == "lda-head"

    @property
    def uses_features(self) -> bool:
        """Whether they tell so in features of the averaged model, which they must be sent."""
        return self.uses_densities and self.familiarity.basis == "features"

    @property
    def uses_accuracy(self) -> bool:
        """Whether teachers count or speak by validation accuracy; a user's weighting may."""
        by_accuracy = self.weighting == "accuracy" or ":" in self.weighting
        in_order = self.sequence == "sequential" and self.order not in ("silos", "random")
        return by_accuracy or in_order

    def function_keys(self) -> list[str]:
        """Identify the method and the weighting in cache keys, a user's own by their source."""
        return [METHODS.fingerprint(self.method), WEIGHTINGS.fingerprint(self.weighting)]
