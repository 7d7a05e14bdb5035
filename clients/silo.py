"""A silo of a federation: what it shares, and how it trains the global model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from flwr.app import RecordDict
from torch import Tensor

from clients.disclosure import Disclosure
from fedkd.config import Consolidation, Rounds
from fedkd.data.columns import Column, Encoder
from fedkd.data.images import Images
from fedkd.distillation.consolidate import distil
from fedkd.distillation.targets import DistillationSetup
from fedkd.distillation.teachers import Teachers
from fedkd.errors import FedKDError
from fedkd.federation.federation import Federation
from fedkd.federation.held_out import choose_held_out
from fedkd.federation.local_silo import LocalSilo
from fedkd.federation.silos_get import FinalModel, conclude
from fedkd.messages.table_sums import read_encoder
from fedkd.models.state import State, copy_state
from fedkd.results.record import SiloGets
from fedkd.training.evaluate import Metrics, evaluate
from fedkd.training.local import LocalTask, train_locally
from fedkd.util.seeding import torch_generator


@dataclass(frozen=True, kw_only=True)
class Silo(LocalSilo):
    """One participant. Subclass it for a silo that trains in its own way.

    Attributes:
        global_arch: architecture of the model that the rounds train.
        seed: the study's seed, from which every random choice is derived.
        test: private examples that no model of the silo learns from, or None if it has none.
        transfer: returns the transfer examples ``[N, ...]`` that the silo has already, or
            None.
        uses_model: whether the run may ask for the silo's own model.
        columns: of a deployed silo's table; empty for all else.
        with_encoder: returns the silo with rows as models get them; None for one that has no table.
        disclosure: on what terms it answers about densities and moments; None for a simulated
            silo, which has no examples to protect.
    """

    global_arch: str
    seed: int
    test: Images | None = None
    transfer: Callable[[], Tensor | None] = lambda: None
    uses_model: bool = True
    columns: tuple[Column, ...] = ()
    with_encoder: Callable[[Encoder], Silo] | None = None
    disclosure: Disclosure | None = None

    @classmethod
    def of(cls, federation: Federation, name: str, arm: str | None = None) -> Silo:
        """Return a silo of a simulated federation, as it takes part in ``arm`` if one is named."""
        study, local = federation.study, LocalSilo.simulated(federation, name)
        return cls(
            **vars(local),
            global_arch=study.global_arch(arm) if arm else study.model.arch,
            seed=federation.seed,
            test=federation.test_of(name),
            uses_model=study.arms[arm].needs_pretrained if arm else True,
        )

    def encoded(self, content: RecordDict) -> Silo:
        """Return a silo of a table with rows as models get them, once a question says how."""
        if self.with_encoder is None:
            return self
        encoder = read_encoder(content, self.columns)
        return self if encoder is None else self.with_encoder(encoder)

    @property
    def is_own(self) -> bool:
        """Whether it is of a class of the user's own, whose exceptions are its failed replies."""
        return type(self) is not Silo

    @property
    def owns_questions(self) -> bool:
        """Whether nothing else needs a question's arrays: no other silo, and no noise."""
        return self.disclosure is not None and self.disclosure.file.local_dp is None

    @property
    def evaluation_data(self) -> Images:
        """The examples on which it measures models: its test examples, else all it has."""
        return self.data if self.test is None else self.test

    @property
    def holds_out(self) -> bool | None:
        """Whether it has test examples, if it is deployed and shares metrics; else None."""
        shares = self.disclosure is not None and self.disclosure.file.share.metrics
        return self.test is not None if shares else None

    def train(self, state: State, round_number: int, settings: Rounds) -> tuple[State, float]:
        """Train the global model on the silo's data for one round.

        Returns:
            The trained state and the mean local loss of the last local epoch.
        """
        rounds = settings.in_round(round_number)
        with self.borrow_model(self.global_arch, state) as model:
            del state  # it is in the model now
            loss = train_locally(
                LocalTask(model, self.data, self.shape.num_classes, rounds, self.compute),
                generator=torch_generator(self.seed, "local-training", self.name, round_number),
            )
            model.zero_grad(set_to_none=True)  # of a large model, few copies at a time
            return copy_state(model), loss

    def evaluate(self, state: State) -> Metrics:
        """Measure the global model on the silo's own examples."""
        with self.borrow_model(self.global_arch, state) as model:
            return evaluate(model, self.evaluation_data, compute=self.compute)

    def compare(
        self, state: State, everyone: Tensor | None, settings: Rounds, metric: str
    ) -> SiloGets:
        """Measure its own model and the final global one, as it is and adapted, on test examples.

        See :meth:`fedkd.federation.silos_get.FinalModel.measure`.
        """
        if self.test is None or not len(self.test):
            return conclude(self.name, 0, None, {})
        terms = (self.model_pool, self.compute, settings, metric, self.seed)
        model = FinalModel(self.global_arch, self.shape, state, *terms)
        held = choose_held_out(self.test, self.test, torch.tensor(self.class_counts))
        own = self.own_model().state
        value = None if own is None else model.value(self.predict(own, self.test.images), held)
        found = model.measure(self.name, self.data, held, everyone)
        return conclude(self.name, len(held.rows), value, found)

    def distil(
        self, teachers: Teachers, student: int | None, settings: Consolidation
    ) -> tuple[State, float]:
        """Let the silo's own model learn from others on the silo's own examples and labels.

        Args:
            teachers: those that the server chose.
            student: which of them is the silo's own model, or None.
            settings: of the consolidation.

        Returns:
            The student's state and the mean loss of the last epoch.

        Raises:
            FedKDError: distillation diverged, or the silo has no usable model.
        """
        own = self.own_model()
        if own.state is None:
            raise FedKDError(own.problem)
        setup = DistillationSetup(
            transfer=self.data,
            labelled=True,
            validation=self.data.take(torch.tensor([], dtype=torch.int64)),
            arch=self.arch,
            shape=self.shape,
            compute=self.compute,
            seed=self.seed,
        )
        learnt = distil(own.state, teachers, student, settings, setup)
        return learnt.state, learnt.loss
