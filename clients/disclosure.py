"""What a deployed silo tells of its images by densities and moments, and on what terms.

The server's message says what it wants. All that the answer depends on is the silo's own: the
transfer set is one that its owner approved, the basis is made of it here, and a question that was
answered before gets the stored answer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clients.guard import UnsharedError
from fedkd.config import Consolidation, Study
from fedkd.data.images import Images, content_hash, image_hashes
from fedkd.deploy.answers import Answer, SpentError, answer_once
from fedkd.deploy.approvals import is_approved
from fedkd.deploy.silo_file import SiloFile
from fedkd.distillation.density.basis import REACH, Basis, PatchBasis, PixelBasis, fit_basis
from fedkd.distillation.density.moments import Moments
from fedkd.distillation.teachers import Teacher
from fedkd.federation.local_silo import LocalSilo
from fedkd.messages import keys
from fedkd.messages.teacher import Wanted

TOLERANCE = 1e-4
"""Largest difference of the server's basis from the silo's, relative to its largest entry."""


@dataclass(frozen=True)
class Disclosure:
    """The terms of one silo in one arm and seed of a study."""

    file: SiloFile
    study: Study
    arm: str
    seed: int

    def add_densities(
        self, teacher: Teacher, silo: LocalSilo, wanted: Wanted, basis: Basis, images: Tensor | None
    ) -> Teacher:
        """Return the teacher with what is wanted, computed on the silo's terms.

        Args:
            teacher: so far.
            silo: whose images they are of.
            wanted: what the server asks for.
            basis: that it sent.
            images: the transfer images uint8 ``[N, C, H, W]``, sent or the silo's own.

        Raises:
            UnsharedError: the silo does not answer this question.
        """
        settings = self._settings(wanted)
        seen = self._approved(images, silo)
        own = fit_basis(seen, settings)
        if own is None or not _agree(own, basis):
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
            "familiarity": _basis_settings(settings),
            "images": content_hash(silo.data),
            "labels": silo.data.labels.tolist(),
            "classes": list(self.study.data.classes or ()),
            "least": silo.least_of_class,
            "reach": REACH,
            "share": self.file.share.model_dump(mode="json", exclude={"max_questions"}),
        }
        try:
            answer = answer_once(self.file, question, compute)
        except SpentError as error:
            raise UnsharedError(str(error)) from error
        if wanted.density == keys.DENSITY_MOMENTS:
            return replace(teacher, moments=Moments(**answer) if answer else None)
        return replace(teacher, log_density=answer.get(keys.LOG_DENSITY))

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
            raise UnsharedError("it has not seen the transfer set of the densities or moments")
        shape = (silo.shape.in_channels, silo.shape.image_size, silo.shape.image_size)
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1:] != shape:
            raise UnsharedError(f"the transfer set is not of {' x '.join(map(str, shape))} bytes")
        if not is_approved(images, self.file, self.study, self.seed):
            told = content_hash(images)
            raise UnsharedError(
                f"its owner has not approved the transfer set {told}; to approve it there, add "
                "the hash to approve.transfer in silo.yaml, or run fedkd silo check silo.yaml "
                "--study STUDY --accept"
            )
        return images


def _large_classes(silo: LocalSilo) -> Images:
    """Return the images of classes with enough different images."""
    data, kept = silo.data, torch.zeros(len(silo.data), dtype=torch.bool)
    for label in torch.unique(data.labels):
        members = data.labels == label
        different = set(image_hashes(data.take(members.nonzero()[:, 0])))
        if len(different) >= silo.least_of_class:
            kept |= members
    return data.take(kept.nonzero().flatten())


def _agree(own: Basis, sent: Basis) -> bool:
    """Whether two bases are the same but for rounding; both of pixels or both of patches."""
    if isinstance(own, PixelBasis):
        if not isinstance(sent, PixelBasis) or sent.side != own.side:
            return False
    elif not isinstance(own, PatchBasis) or not isinstance(sent, PatchBasis):
        return False
    return all(
        mine.shape == theirs.shape
        # NaN compares as false.
        and bool((mine - theirs).abs().max() <= TOLERANCE * mine.abs().max())
        for mine, theirs in zip(_arrays(own), _arrays(sent), strict=True)
    )


def _arrays(basis: Basis) -> list[Tensor]:
    filters = [basis.filters.kernels, basis.filters.offset] if isinstance(basis, PatchBasis) else []
    return [basis.mean, basis.components, *filters]


def _basis_settings(settings: Consolidation) -> dict[str, int | str | bool]:
    """Return all that the basis depends on beside the transfer set."""
    familiarity = settings.familiarity
    return {
        "basis": familiarity.basis,
        "dims": familiarity.effective_dims,
        "filters": familiarity.filters if familiarity.basis == "patches" else 0,
        "fine": settings.uses_moments,
    }
