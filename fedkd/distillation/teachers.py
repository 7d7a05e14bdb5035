"""Teachers: trained models or their predictions, and what is known of the data behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from fedkd.config import Selection
from fedkd.data.images import Images, content_hash
from fedkd.distillation.density.moments import Moments
from fedkd.distillation.predictions import Predictions
from fedkd.errors import FedKDError
from fedkd.models.build import Shape, build_model
from fedkd.models.state import State, average_states
from fedkd.training.compute import Compute
from fedkd.training.evaluate import predict
from fedkd.util.seeding import numpy_generator


@dataclass(frozen=True)
class Teacher:
    """One silo's contribution.

    Attributes:
        silo: its name.
        arch: architecture of its model.
        num_examples: size of its data.
        state: its model, unless it sent only predictions.
        logits: its predictions on the transfer set, fp32 ``[N, K]``, if it sent them.
        log_density: float64 ``[N]`` or joint ``[N, K]`` in nats, if asked for and to be had.
        moments: of its images, where these are asked for instead and to be had.
        class_counts: images of each class, or empty where the silo keeps them to itself.
        accuracy: on validation data, where another party that holds some has told it.
    """

    silo: str
    arch: str
    num_examples: int
    state: State | None = None
    logits: Tensor | None = None
    log_density: Tensor | None = None
    moments: Moments | None = None
    class_counts: tuple[int, ...] = ()
    accuracy: float | None = None


class Teachers:
    """At least one teacher, in natural order of the silos' names; each predicts an image set once.

    Args:
        members: the teachers.
        shape: what their models are built for.
        compute: device and precision.
        known: predictions made before, shared with every selection of these teachers.
    """

    def __init__(
        self,
        members: Sequence[Teacher],
        shape: Shape,
        compute: Compute,
        known: Predictions | None = None,
    ) -> None:
        self.members = tuple(members)
        self.shape = shape
        self.compute = compute
        self._known = Predictions() if known is None else known

    def __len__(self) -> int:
        return len(self.members)

    @property
    def have_models(self) -> bool:
        """Whether every teacher sent its model."""
        return all(teacher.state is not None for teacher in self.members)

    def kept_in(self, cache: Path | None, files: Sequence[str] = ()) -> Teachers:
        """Return the same teachers, whose predictions are kept in a cache from now on."""
        known = self._known.kept_in(cache, files)
        return Teachers(self.members, self.shape, self.compute, known)

    def only(self, indices: Sequence[int]) -> Teachers:
        """Return the teachers at ``indices``."""
        chosen = [self.members[index] for index in indices]
        return Teachers(chosen, self.shape, self.compute, self._known)

    def model(self, index: int) -> nn.Module:
        """Build a teacher's model."""
        teacher = self.members[index]
        if teacher.state is None:
            raise ValueError(f"{teacher.silo} sent predictions where its model is needed")
        model = build_model(teacher.arch, self.shape, seed=0)
        model.load_state_dict(teacher.state)
        return model.to(self.compute.device)

    def models(self) -> tuple[nn.Module, ...]:
        """Build all models."""
        return tuple(self.model(index) for index in range(len(self)))

    def predict(self, images: Tensor) -> Tensor:
        """Return logits ``[M, N, K]`` on uint8 images ``[N, C, H, W]``, each computed once."""
        found = content_hash(images)
        return torch.stack(
            [
                self._known.get(found, teacher.silo, partial(self._predict, index, images, found))
                for index, teacher in enumerate(self.members)
            ]
        )

    def _predict(self, index: int, images: Tensor, images_hash: str) -> Tensor:
        teacher = self.members[index]
        if teacher.logits is not None:
            return teacher.logits
        if teacher.state is None:
            raise ValueError(f"{teacher.silo} sent neither its model nor predictions")
        return self._known.of_model(
            teacher.state,
            teacher.arch,
            self.shape,
            images,
            images_hash,
            self.compute,
            lambda: predict(self.model(index), images, compute=self.compute),
        )

    def can_be_judged(self, data: Images) -> bool:
        """Whether :meth:`accuracy` can tell anything."""
        return self._told() is not None or (len(data) > 0 and self.have_models)

    def _told(self) -> list[float] | None:
        told = [teacher.accuracy for teacher in self.members if teacher.accuracy is not None]
        return told if len(told) == len(self) else None

    def accuracy(self, data: Images) -> Tensor:
        """Return every teacher's accuracy, float64 ``[M]``: as told, or on labelled images."""
        if (told := self._told()) is not None:
            return torch.tensor(told, dtype=torch.float64)
        hits = self.predict(data.images).argmax(2) == data.labels
        return hits.double().mean(1)

    def class_counts(self) -> Tensor | None:
        """Return images of each class in each silo, float64 ``[M, K]``; None if one keeps them."""
        if not all(teacher.class_counts for teacher in self.members):
            return None
        return torch.tensor([t.class_counts for t in self.members], dtype=torch.float64)

    def average(self, arch: str) -> State:
        """Average the models of ``arch``, weighted by examples as a round of FedAvg would."""
        alike = [t for t in self.members if t.arch == arch and t.state is not None]
        self._check_alike(alike, arch)
        return average_states(
            [t.state for t in alike if t.state is not None], [float(t.num_examples) for t in alike]
        )

    def pick(self, choice: str, arch: str, validation: Images, seed: int) -> int:
        """Return which teacher of ``arch`` is ``best``, ``worst`` or a ``random`` one.

        Best and worst are judged on validation data; of equals it is the first.
        """
        alike = [index for index, teacher in enumerate(self.members) if teacher.arch == arch]
        self._check_alike(alike, arch)
        if choice == "random":
            return alike[int(numpy_generator(seed, "student").integers(len(alike)))]
        scores = self.accuracy(validation)[alike]
        # argmax may return any of equals; the first must win.
        wanted = scores.max() if choice == "best" else scores.min()
        return alike[int((scores == wanted).int().argmax())]

    def _check_alike(self, alike: Sequence[object], arch: str) -> None:
        if not alike:
            raise FedKDError(
                f"no silo whose model can be used has the student's architecture, {arch}"
            )

    def select(self, selection: Selection, validation: Images, student: Tensor | None) -> list[int]:
        """Return who may teach, in silo order; the most accurate alone if none qualifies.

        Args:
            selection: the rule.
            validation: labelled images on which teachers are judged.
            student: logits of the student on them ``[N, K]``; for ``by: complementary``.
        """
        everyone = list(range(len(self)))
        if not selection.needs_validation:
            return everyone
        accuracy = self.accuracy(validation)
        kept = everyone
        if selection.drop_below_chance:
            kept = [m for m in kept if accuracy[m] > 1 / self.shape.num_classes]
            kept = kept or [int((accuracy == accuracy.max()).int().argmax())]
        if selection.top is not None:
            score = accuracy
            if selection.by == "complementary" and student is not None:
                wrong = student.argmax(1) != validation.labels
                right = self.predict(validation.images).argmax(2) == validation.labels
                score = (right & wrong).double().mean(1)
            kept = sorted(kept, key=lambda m: (-float(score[m]), m))[: selection.top]
        return sorted(kept)
