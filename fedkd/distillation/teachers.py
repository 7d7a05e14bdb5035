"""Teachers: trained models or their predictions, with statistics of the silos' data."""

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
from fedkd.models.build import Shape, rebuild
from fedkd.models.preprocessing import same_preprocessing
from fedkd.models.state import State, average_states
from fedkd.training.batch_norm import recalibrate
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
        state: its model; None if it shares only predictions.
        logits: its predictions on the transfer set, fp32 ``[N, K]``, if it shares them.
        log_density: float64 ``[N]`` or joint ``[N, K]`` in nats, if requested and available.
        moments: of its examples, if requested instead and available.
        class_counts: examples of each class; empty if the silo does not share them.
        accuracy: on validation data, if another party has measured it.
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
    """At least one teacher, in natural order of silo names; each predicts a set of examples once.

    Args:
        members: the teachers.
        shape: what their models are built for.
        compute: device and precision.
        predictions: earlier predictions, shared with every subset of these teachers.
        recalibrate_on: examples on which BatchNorm statistics of averages are computed anew; None
            to average them too.
    """

    def __init__(
        self,
        members: Sequence[Teacher],
        shape: Shape,
        compute: Compute,
        predictions: Predictions | None = None,
        *,
        recalibrate_on: Images | None = None,
    ) -> None:
        self.members = tuple(members)
        self.shape = shape
        self.compute = compute
        self._predictions = Predictions() if predictions is None else predictions
        self._recalibrate_on = recalibrate_on

    def __len__(self) -> int:
        return len(self.members)

    @property
    def have_models(self) -> bool:
        """Whether every teacher shares its model."""
        return all(teacher.state is not None for teacher in self.members)

    def cached_in(self, cache: Path | None, files: Sequence[str] = ()) -> Teachers:
        """Return the same teachers, with a disk cache for their predictions from now on."""
        return self._with(self.members, self._predictions.cached_in(cache, files))

    def subset(self, indices: Sequence[int]) -> Teachers:
        """Return the teachers at ``indices``."""
        chosen = [self.members[index] for index in indices]
        return self._with(chosen, self._predictions)

    def _with(self, members: Sequence[Teacher], predictions: Predictions) -> Teachers:
        return Teachers(
            members, self.shape, self.compute, predictions, recalibrate_on=self._recalibrate_on
        )

    def model(self, index: int) -> nn.Module:
        """Build a teacher's model."""
        teacher = self.members[index]
        if teacher.state is None:
            raise ValueError(f"{teacher.silo} shares predictions, but its model is needed")
        return rebuild(teacher.arch, self.shape, teacher.state, self.compute.device)

    def models(self) -> tuple[nn.Module, ...]:
        """Build all models."""
        return tuple(self.model(index) for index in range(len(self)))

    def predict(self, images: Tensor | Images) -> Tensor:
        """Return logits ``[M, N, K]`` on examples ``[N, ...]``, each computed once."""
        images_hash = content_hash(images)
        return torch.stack(
            [
                self._predictions.get(
                    images_hash, teacher.silo, partial(self._predict, index, images, images_hash)
                )
                for index, teacher in enumerate(self.members)
            ]
        )

    def _predict(self, index: int, images: Tensor | Images, images_hash: str) -> Tensor:
        teacher = self.members[index]
        if teacher.logits is not None:
            return teacher.logits
        if teacher.state is None:
            raise ValueError(f"{teacher.silo} shares neither its model nor predictions")
        return self._predictions.of_model(
            teacher.state,
            teacher.arch,
            self.shape,
            images,
            images_hash,
            self.compute,
            lambda: predict(self.model(index), images, compute=self.compute),
        )

    def has_accuracy(self, data: Images) -> bool:
        """Whether :meth:`accuracy` can be computed on this data."""
        return self._shared_accuracy() is not None or (len(data) > 0 and self.have_models)

    def _shared_accuracy(self) -> list[float] | None:
        values = [teacher.accuracy for teacher in self.members if teacher.accuracy is not None]
        return values if len(values) == len(self) else None

    def accuracy(self, data: Images) -> Tensor:
        """Return every teacher's accuracy, float64 ``[M]``: as shared, or on labelled examples."""
        if (shared := self._shared_accuracy()) is not None:
            return torch.tensor(shared, dtype=torch.float64)
        hits = self.predict(data).argmax(2) == data.labels
        return hits.double().mean(1)

    def class_counts(self) -> Tensor | None:
        """Return examples per silo and class, float64 ``[M, K]``; None if a silo shares none."""
        if not all(teacher.class_counts for teacher in self.members):
            return None
        return torch.tensor([t.class_counts for t in self.members], dtype=torch.float64)

    def average(self, arch: str) -> State:
        """Average the models of ``arch``, weighted by number of examples as in FedAvg.

        BatchNorm statistics of the average are computed anew if there are examples for that.
        """
        candidates = [t for t in self.members if t.arch == arch and t.state is not None]
        self._check_any(candidates, arch)
        states = [t.state for t in candidates if t.state is not None]
        if not same_preprocessing(states):
            raise FedKDError(
                "the silos' models differ in their preprocessing, so that their average is a model "
                "of neither; set student: best or fresh, or another start"
            )
        average = average_states(states, [float(t.num_examples) for t in candidates])
        if self._recalibrate_on is None:
            return average
        return recalibrate(average, arch, self.shape, self._recalibrate_on, self.compute)

    def choose_model(self, choice: str, arch: str, validation: Images, seed: int) -> int:
        """Return the index of the ``best``, ``worst`` or a ``random`` teacher of ``arch``.

        Best and worst are by validation accuracy; ties go to the first.
        """
        candidates = [index for index, teacher in enumerate(self.members) if teacher.arch == arch]
        self._check_any(candidates, arch)
        if choice == "random":
            return candidates[int(numpy_generator(seed, "student").integers(len(candidates)))]
        scores = self.accuracy(validation)[candidates]
        # argmax may return any of several maxima; the first is needed.
        target = scores.max() if choice == "best" else scores.min()
        return candidates[int((scores == target).int().argmax())]

    def _check_any(self, candidates: Sequence[object], arch: str) -> None:
        if not candidates:
            raise FedKDError(f"no silo with a usable model has the student's architecture, {arch}")

    def select(self, selection: Selection, validation: Images, student: Tensor | None) -> list[int]:
        """Return the indices of the selected teachers, ascending; the best one if none qualifies.

        They are evaluated on labelled examples. ``by: complementary`` takes the student's logits on
        these, ``[N, K]``.
        """
        indices = list(range(len(self)))
        if not selection.needs_validation:
            return indices
        accuracy = self.accuracy(validation)
        kept = indices
        if selection.drop_below_chance:
            kept = [m for m in kept if accuracy[m] > 1 / self.shape.num_classes]
            kept = kept or [int((accuracy == accuracy.max()).int().argmax())]
        if selection.top is not None:
            score = accuracy
            if selection.by == "complementary" and student is not None:
                wrong = student.argmax(1) != validation.labels
                right = self.predict(validation).argmax(2) == validation.labels
                score = (right & wrong).double().mean(1)
            kept = sorted(kept, key=lambda m: (-float(score[m]), m))[: selection.top]
        return sorted(kept)
