"""What a deployed silo shares by densities, moments and predictions, and on what terms.

The server's message says what it wants. All that the answer depends on is the silo's own: the
transfer set is one that its owner approved, the basis is made of it here, and a question that was
answered before gets the stored answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from clients.guard import UnsharedError
from fedkd.config import Consolidation, Study
from fedkd.data.images import Images, content_hash, image_hashes
from fedkd.deploy.answers import PREDICTIONS, STATISTICS, Answer, SpentError, answer_once
from fedkd.deploy.approvals import is_approved
from fedkd.deploy.silo_file import SiloFile
from fedkd.distillation.density.agreement import find_rotation, rotate_moments
from fedkd.distillation.density.basis import Basis, fit_basis
from fedkd.distillation.density.moments import Moments
from fedkd.distillation.density.points import REACH
from fedkd.distillation.teachers import Teacher
from fedkd.federation.local_silo import LocalSilo
from fedkd.messages import keys
from fedkd.messages.teacher import Wanted
from fedkd.models.backbone import Backbone
from fedkd.models.state import State, state_hash


@dataclass(frozen=True)
class Disclosure:
    """The terms of one silo in one arm and seed of a study."""

    file: SiloFile
    study: Study
    arm: str
    seed: int

    def check_mode(self, mode: str) -> None:
        """Refuse a question about the silo's model that the arm, which was approved, does not ask.

        Who gives weights gives predictions.

        Raises:
            UnsharedError: it is one.
        """
        arm = self.study.arms[self.arm]
        asked = arm.consolidation.mode if arm.consolidation else keys.MODE_WEIGHTS
        allowed = (asked, keys.MODE_LOGITS) if arm.starts_from_models else ()
        if mode not in (keys.MODE_NONE, *allowed):
            raise UnsharedError(f"the study's arm {self.arm} does not ask for {mode} of its model")

    def check_round(self, number: int) -> None:
        """Refuse a round that the arm does not have.

        Raises:
            UnsharedError: it is one.
        """
        most = self.study.rounds_of(self.arm).max
        if not 1 <= number <= most:
            raise UnsharedError(f"the study's arm {self.arm} has rounds 1 to {most}, not {number}")

    def add_densities(
        self, teacher: Teacher, silo: LocalSilo, wanted: Wanted, basis: Basis, images: Tensor | None
    ) -> Teacher:
        """Return the teacher with what is wanted, computed on the silo's terms.

        Args:
            teacher: so far.
            silo: whose examples they are of.
            wanted: what the server asks for.
            basis: that it sent.
            images: the transfer examples ``[N, ...]``, sent or the silo's own.

        Raises:
            UnsharedError: the silo does not answer this question.
        """
        settings = self._settings(wanted)
        seen = self._approved(images, silo)
        own = fit_basis(seen, settings, silo.shape, silo.compute)
        rotation = None if own is None else find_rotation(own, basis, seen)
        if own is None or rotation is None:
            raise UnsharedError(
                "the basis that was sent is not the one that it makes of the transfer set"
            )
        large = replace(silo, data=_large_classes(silo), clipped=True)

        def compute() -> Answer:
            if wanted.density == keys.DENSITY_MOMENTS:
                moments = large.moments(own)
                return {} if moments is None else dict(vars(moments))
            per_class = wanted.density == keys.DENSITY_CLASS
            density = large.log_density(
                seen, own, per_class=per_class, kind=wanted.kind, neighbours=0
            )
            return {} if density is None else {keys.LOG_DENSITY: density}

        question = {
            "transfer": content_hash(seen),
            "density": wanted.density,
            "familiarity": _basis_settings(settings, silo.shape.backbone),
            "images": content_hash(silo.data),
            "labels": silo.data.labels.tolist(),
            "classes": list(self.study.data.classes or ()),
            "least": silo.least_of_class,
            "reach": REACH,
            "share": self.file.share.model_dump(mode="json", exclude={"max_questions"}),
        }
        answer = self._answer_once(question, compute)
        if wanted.density == keys.DENSITY_MOMENTS:
            # The answer is stored in the silo's basis, and only then turned into the server's.
            moments = rotate_moments(Moments(**answer), rotation) if answer else None
            return replace(teacher, moments=moments)
        return replace(teacher, log_density=answer.get(keys.LOG_DENSITY))  # rotated or not

    def predict(self, silo: LocalSilo, state: State, images: Tensor | None) -> Tensor:
        """Return the own model's logits ``[N, K]`` on the silo's terms.

        A silo that shares its weights predicts on any examples, because the weights say as much.

        Args:
            silo: whose model it is.
            state: of the model.
            images: the transfer examples ``[N, ...]``, sent or the silo's own.

        Raises:
            UnsharedError: the silo does not answer this question.
        """
        if self.file.share.teacher == "weights" and images is not None:
            return silo.predict(state, images)
        seen = self._approved(images, silo)
        question = {"transfer": content_hash(seen), "model": state_hash(state)}

        def compute() -> Answer:
            return {keys.LOGITS: silo.predict(state, seen)}

        return self._answer_once(question, compute, kind=PREDICTIONS)[keys.LOGITS]

    def _answer_once(
        self, question: dict[str, Any], compute: Callable[[], Answer], *, kind: str = STATISTICS
    ) -> Answer:
        try:
            return answer_once(self.file, question, compute, kind=kind)
        except SpentError as error:
            raise UnsharedError(str(error)) from error

    def _settings(self, wanted: Wanted) -> Consolidation:
        """Return the arm's settings if they ask for just what the message does."""
        settings = self.study.arms[self.arm].consolidation
        if settings is None or not settings.uses_densities:
            raise UnsharedError("the study's arm asks for no densities or moments")
        if replace(wanted, neighbours=0) != replace(Wanted.by(wanted.mode, settings), neighbours=0):
            raise UnsharedError("the densities asked for are not those of the study's arm")
        return settings

    def _approved(self, images: Tensor | None, silo: LocalSilo) -> Tensor:
        if images is None:
            raise UnsharedError("it has not seen the transfer set")
        dtype = torch.uint8 if silo.shape.kind == "image" else silo.shape.zeros(0).dtype
        if images.dtype != dtype or tuple(images.shape[1:]) != silo.shape.input_shape:
            raise UnsharedError(f"the transfer set is not of {silo.shape}")
        if not is_approved(images, self.file, self.study, self.seed):
            told = content_hash(images)
            raise UnsharedError(
                f"its owner has not approved the transfer set {told}; to approve it there, add "
                "the hash to approve.transfer in silo.yaml, or run fedkd silo check silo.yaml "
                "--study STUDY --accept"
            )
        return images


def _large_classes(silo: LocalSilo) -> Images:
    """Return the examples of classes with enough different examples."""
    data, kept = silo.data, torch.zeros(len(silo.data), dtype=torch.bool)
    for label in torch.unique(data.labels):
        members = data.labels == label
        different = set(image_hashes(data.take(members.nonzero()[:, 0])))
        if len(different) >= silo.least_of_class:
            kept |= members
    return data.take(kept.nonzero().flatten())


def _basis_settings(
    settings: Consolidation, backbone: Backbone | None
) -> dict[str, int | str | bool]:
    """Return all that the basis depends on beside the transfer set."""
    familiarity = settings.familiarity
    on_backbone = familiarity.basis == "backbone" and backbone is not None
    weights = {"weights": backbone.features_hash} if on_backbone and backbone else {}
    return {
        **weights,
        "basis": familiarity.basis,
        "dims": familiarity.effective_dims,
        "filters": familiarity.filters if familiarity.basis == "patches" else 0,
        "fine": settings.uses_moments,
    }
