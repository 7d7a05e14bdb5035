"""Sections on consolidation: the teachers, their weights, and how the student is trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from fedkd.config.consolidation_parts import (
    WITHOUT_MODELS,
    Familiarity,
    Selection,
    Subset,
    check_control,
    fill_control,
)
from fedkd.config.optimizer import OptimizerKeys
from fedkd.config.sections import Fraction, Rate, names_of
from fedkd.registry import METHODS, NUM_PATCH_FILTERS, WEIGHTINGS
from fedkd.user_code import METHOD_SETTINGS, MethodSpec

_SETTING_OF = {setting: setting for setting in METHOD_SETTINGS} | {
    "max_weight": "weighting",
    "tau": "weighting",
    "trim": "pooling",
    "order": "sequence",
    "finetune_epochs": "mixed_inputs",
}
"""Keys that not every method uses, to the setting of a ``MethodSpec`` that they belong to."""


_BASES_OF_HEADS = ("patches", "backbone", "inputs")
"""Bases in which a linear layer is the head of a model."""


class Consolidation(OptimizerKeys):
    """How the silos' models are distilled into one student."""

    method: Annotated[str, AfterValidator(METHODS.check), names_of(METHODS)] = "kd"
    weighting: Annotated[str, AfterValidator(WEIGHTINGS.check), names_of(WEIGHTINGS)] = "equal"
    pooling: Literal["probs", "mixture", "logits", "median", "trimmed-mean"] = Field(
        "probs",
        description="weighted mean of the teachers' probabilities or logits, or a robust mean of "
        "each class's probabilities. The temperature is applied to every teacher; mixture: to "
        "their mean",
    )
    trim: float = Field(
        0.2, gt=0, lt=0.5, description="weight cut off at either end; for pooling: trimmed-mean"
    )
    max_weight: Fraction | None = Field(
        None, description="maximum mean weight of a teacher over the transfer examples"
    )
    trust: Literal["equal", "agreement", "validation"] = Field(
        "equal",
        description="agreement: exclude teachers contradicted by the others on examples that are "
        "familiar to both; needs weighting: familiarity and density: gaussian. validation: exclude "
        "class sums contradicted by validation labels; needs density: pooled",
    )
    teachers: Literal["models", "both", "densities", "validation"] = Field(
        "models",
        description="both: the target is the mean of the models' and of the densities' class "
        "probabilities. Controls without the silos' models, whose student is fresh by default: "
        "densities alone, or, with method fine-tune, the labels of the validation data alone, "
        "for which silos send nothing",
    )
    mode: Literal["weights", "logits"] = Field(
        "weights", description="what a silo sends: its model, or its predictions only"
    )
    student: Literal["average", "best", "worst", "random", "fresh", "lda-head"] = Field(
        "average",
        description="initial weights: the average of the silos' models, one of them, or fresh "
        "(random weights); random: a random silo's model; lda-head: a last layer on features of "
        "the basis, patches, backbone or inputs, in closed form",
    )
    select: Selection = Selection()
    subset: Subset | None = None
    sequence: Literal["parallel", "sequential"] = Field(
        "parallel", description="all teachers at once, or one after another; of method dp-kd"
    )
    order: Literal["silos", "random", "weakest-first", "strongest-first"] = Field(
        "silos",
        description="teacher order for sequence: sequential; the last two by validation accuracy",
    )
    temperature: float = Field(1.0, gt=0, le=100)
    weight: float = Field(
        0.5,
        ge=0,
        le=1,
        description="weight of the teachers' term of the loss, the rest is the labels'; 1 without "
        "labels",
    )
    tau: Rate = Field(
        0.1, description="temperature of the weights; for weighting confidence and consensus"
    )
    epochs: int = Field(
        50, ge=0, le=1_000_000, description="0 keeps a student lda-head as computed"
    )
    mixup: bool = Field(
        default=False,
        description="interpolate pairs of examples of each batch, and their targets; of methods kd "
        "and fine-tune",
    )
    mixed_inputs: int = Field(
        0,
        ge=0,
        le=1000,
        description="number of interpolations of each transfer image with others that are added "
        "to the transfer set; the teachers predict on them too; of method kd",
    )
    finetune_epochs: int = Field(
        0,
        ge=0,
        le=10_000,
        description="epochs after those with mixed inputs, at a fifth of the learning rate, on "
        "shifted transfer images",
    )
    familiarity: Familiarity = Familiarity()

    @property
    def all_epochs(self) -> int:
        """Number of epochs of distillation, fine-tuning included."""
        return self.epochs + self.finetune_epochs

    @model_validator(mode="before")
    @classmethod
    def _fill_control(cls, data: Any) -> Any:
        return fill_control(data)

    @model_validator(mode="after")
    def _check(self) -> Consolidation:
        check_control(self.teachers, self.student)
        if self.joint_densities and self.weighting != "familiarity":
            raise ValueError(f"teachers: {self.teachers} needs weighting: familiarity")
        if self.trust == "agreement" and not (
            self.uses_densities and self.familiarity.density == "gaussian"
        ):
            raise ValueError(
                "trust: agreement compares teachers on examples that are familiar to both: set "
                "weighting: familiarity with familiarity.density: gaussian"
            )
        if self.trust == "validation" and not self.uses_moments:
            raise ValueError(
                "trust: validation compares class sums with validation labels: set weighting: "
                "familiarity with familiarity.density: pooled"
            )
        self._check_epochs()
        if self.student == "lda-head":
            self._check_moments_suffice()
        if self.mode == "logits":
            self._check_logits_suffice()
        if not METHODS.is_own(self.method):
            self.check_method(METHODS.spec(self.method))
        return self

    def check_method(self, spec: MethodSpec) -> None:
        """Refuse settings that the method does not use, and a study without what it needs.

        The spec of a user's own method is known only once it is imported.

        Raises:
            ValueError: with the key and what to do.
        """
        for key, setting in _SETTING_OF.items():
            if setting not in spec.uses and self._is_changed(key, setting):
                raise ValueError(f"{key}: is not used by method {self.method}{self._hint(setting)}")
        if self.teachers == "validation" and "labels" not in spec.needs:
            raise ValueError(
                "teachers: validation needs a method that learns from labels alone, such as "
                f"fine-tune, not {self.method}"
            )
        if self.teachers == "both" and "pooling" not in spec.uses:
            raise ValueError(
                "teachers: both changes the target that is pooled from all teachers; it is not "
                f"used by method {self.method}{self._hint('pooling')}"
            )
        if self.teachers == "densities" and spec.needs:
            raise ValueError(
                f"teachers: densities gives predictions only, but method {self.method} needs "
                f"{' and '.join(sorted(spec.needs))}"
            )
        if self.mode == "logits" and "models" in spec.needs:
            raise ValueError(
                f"method: {self.method} trains the silos' models, but mode: logits sends only "
                "predictions; use mode: weights"
            )

    def _is_changed(self, key: str, setting: str) -> bool:
        """Whether a key differs from its default, and is used by nothing but the method."""
        if setting == "weighting" and (self.rests_on_densities or self.trust != "equal"):
            return False
        return bool(getattr(self, key) != type(self).model_fields[key].default)

    def _hint(self, setting: str) -> str:
        if METHODS.is_own(self.method):
            return f"; if it uses it, declare it: @fedkd.method(uses={{{setting!r}}})"
        users = [name for name in METHODS if setting in METHODS.spec(name).uses]
        return f", only by {' and '.join(users)}; leave it out"

    def _check_epochs(self) -> None:
        if self.mixed_inputs and self.mixup:
            raise ValueError("mixed_inputs: are mixed already; set mixup: false or mixed_inputs: 0")
        if self.finetune_epochs and not self.mixed_inputs:
            raise ValueError("finetune_epochs: follow epochs with mixed inputs; set mixed_inputs")
        if self.epochs == 0 and (self.student != "lda-head" or self.mixed_inputs):
            raise ValueError(
                "epochs: 0 is for student: lda-head without mixed inputs, which needs no "
                "distillation; raise epochs"
            )

    def _check_moments_suffice(self) -> None:
        if not (self.uses_moments and self.familiarity.basis in _BASES_OF_HEADS):
            raise ValueError(
                "student: lda-head is computed from class sums of features: set weighting: "
                "familiarity with familiarity.density: pooled and familiarity.basis: patches, "
                "backbone, or inputs for a table"
            )
        if self.familiarity.basis == "patches" and self.familiarity.filters != NUM_PATCH_FILTERS:
            raise ValueError(
                f"student: lda-head is patch-features with {NUM_PATCH_FILTERS} filters; set "
                f"familiarity.filters: {NUM_PATCH_FILTERS}"
            )

    def _check_logits_suffice(self) -> None:
        remedy = "but mode: logits sends only predictions; use mode: weights"
        if self.student not in WITHOUT_MODELS:
            raise ValueError(
                f"student: {self.student} needs the silos' models, {remedy}, or student: fresh"
            )
        if self.mixed_inputs:
            raise ValueError(f"mixed_inputs: need predictions of the silos' models, {remedy}")
        if self.judges_models or self.teachers == "validation":
            raise ValueError(f"models are compared on validation data, {remedy}")
        if self.uses_densities and self.familiarity.basis == "features":
            raise ValueError(f"familiarity.basis: features averages models, {remedy}")

    @property
    def asks_silos(self) -> bool:
        """Whether silos send anything: the control on validation labels asks them for nothing."""
        return self.teachers != "validation" or self.student != "fresh"

    @property
    def needs_validation(self) -> bool:
        """Whether validation data is used, its labels included."""
        return self.judges_models or "validation" in (self.teachers, self.trust)

    @property
    def judges_models(self) -> bool:
        """Whether the silos' models are compared by validation accuracy."""
        return (
            self.weighting == "accuracy"
            or self.student in ("best", "worst")
            or self.select.needs_validation
            or self.order in ("weakest-first", "strongest-first")
        )

    @property
    def uses_densities(self) -> bool:
        """Whether silos estimate densities of the transfer examples."""
        return self.weighting == "familiarity"

    @property
    def uses_moments(self) -> bool:
        """Whether silos share class sums of their examples instead of log-densities."""
        return self.uses_densities and self.familiarity.density == "pooled"

    @property
    def joint_densities(self) -> bool:
        """Whether densities are also targets; silos then send one for each class."""
        return self.teachers in ("both", "densities")

    @property
    def rests_on_densities(self) -> bool:
        """Whether weighting: familiarity is the only one possible."""
        return self.joint_densities or self.student == "lda-head"

    @property
    def uses_features(self) -> bool:
        """Whether densities are in features of the averaged model, which silos then receive."""
        return self.uses_densities and self.familiarity.basis == "features"

    @property
    def uses_accuracy(self) -> bool:
        """Whether weights or order depend on validation accuracy; a user's own weighting may."""
        by_accuracy = self.weighting == "accuracy" or WEIGHTINGS.is_own(self.weighting)
        in_order = self.sequence == "sequential" and self.order not in ("silos", "random")
        return by_accuracy or in_order
