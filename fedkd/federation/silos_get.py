"""What each silo gets: its own model, the global one, and the global one adapted to the silo.

A participant asks whether the federation gives it a better model than its own. Compared are, by the
study's metric on examples that no model of the silo was trained on: the silo's own model, the
global model, the global model with logits adjusted to the silo's class shares (Saerens et al. 2002,
Neural Computation 14), and that with its last linear layer fine-tuned on the silo's examples.
"""

from __future__ import annotations

import copy
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedkd.config import Rounds
from fedkd.data.images import Images
from fedkd.distillation.teachers import Teachers
from fedkd.federation.federation import Federation
from fedkd.federation.held_out import HeldOut, choose_held_out
from fedkd.federation.local_silo import LocalSilo
from fedkd.models.build import Shape
from fedkd.models.pool import ModelPool
from fedkd.models.state import State
from fedkd.results.record import SiloGets
from fedkd.training.compute import Compute
from fedkd.training.evaluate import predict
from fedkd.training.features import penultimate
from fedkd.training.loop import fit
from fedkd.training.optimizer import OptimizerSettings
from fedkd.training.weighted import weighted_metric
from fedkd.util.parallel import run_all
from fedkd.util.seeding import torch_generator

FINE_TUNE_EPOCHS = 5
"""Epochs on the last linear layer, with the other settings of the arm's rounds. Ours."""
MAX_IMAGES = 10_000
"""Most examples of a silo on which the layer is fine-tuned. Ours."""
DIGITS = 6
GIVEN = ("global", "adjusted", "fine_tuned")
"""The models that the federation gives a silo."""
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Prediction:
    """Of the global model: logits ``[N, C]``, and the input of its last linear layer ``[N, D]``."""

    logits: Tensor
    features: Tensor | None


@dataclass(frozen=True)
class FinalModel:
    """The global model at the end of a run, and on what terms a silo measures it.

    Attributes:
        rounds: settings of the arm's rounds, by which the last layer is fine-tuned.
        metric: of the study.
    """

    arch: str
    shape: Shape
    state: State
    model_pool: ModelPool
    compute: Compute
    rounds: Rounds
    metric: str
    seed: int

    def measure(
        self,
        silo: str,
        data: Images,
        held: HeldOut,
        everyone: Tensor | None,
        given: Prediction | None = None,
    ) -> dict[str, float | None]:
        """Return the metric of the model as it is, adjusted to a silo, and fine-tuned there.

        The silo trains on ``data``. Without ``everyone``, the examples of each class on all silos
        ``[C]``, the model is not adjusted. ``given`` is its prediction for ``held.data``, if known.
        """
        given = given or self.predict(held.data)
        logits, tuned = given.logits[held.rows], self._fine_tune(silo, data, given)
        counts = torch.bincount(data.labels, minlength=self.shape.num_classes)
        found = {"global": self.value(logits, held)}
        if everyone is not None:  # by log pi_m - log pi
            shift = log_shares(counts) - log_shares(everyone)
            found["adjusted"] = self.value(logits + shift, held)
        if tuned is not None:
            found["fine_tuned"] = self.value(tuned[held.rows], held)
        return found

    def predict(self, data: Images) -> Prediction:
        """Return what the model predicts, with features if it ends in a linear layer."""
        with self._model() as model:
            logits = predict(model, data, compute=self.compute)
            found = penultimate(model, data, compute=self.compute)
            if found is None:
                return Prediction(logits, None)
            features, head = found
            known = predict(head, features, compute=self.compute)
        # What follows the layer, if anything does, must not change the logits.
        close = torch.allclose(known, logits, rtol=_TOLERANCE, atol=_TOLERANCE)
        return Prediction(logits, features if close else None)

    def value(self, logits: Tensor, held: HeldOut) -> float | None:
        """Return the metric of logits for the held-out examples ``[N, C]``, rounded."""
        value = weighted_metric(self.metric, logits, held.labels, held.weights)
        return None if value is None else round(value, DIGITS)

    def _fine_tune(self, silo: str, data: Images, given: Prediction) -> Tensor | None:
        """Return logits for the examples of ``given`` after the last linear layer was fine-tuned.

        None for a model that does not end in such a layer.
        """
        if given.features is None:
            return None
        generator = torch_generator(self.seed, "fine-tune-head", silo)
        if len(data) > MAX_IMAGES:
            data = data.take(torch.randperm(len(data), generator=generator)[:MAX_IMAGES])
        with self._model() as model:
            found = penultimate(model, data, compute=self.compute)
            if found is None:
                return None
            features, head = found[0], copy.deepcopy(found[1])
        settings = OptimizerSettings.of(self.rounds, FINE_TUNE_EPOCHS)
        fit(
            head,
            features,
            (data.labels,),
            lambda logits, rest: functional.cross_entropy(logits, rest[0]),
            optimizer=replace(settings, schedule="constant", warmup=0.0),
            generator=generator,
            compute=self.compute,
        )
        return predict(head, given.features, compute=self.compute)

    def _model(self) -> AbstractContextManager[nn.Module]:
        return self.model_pool.borrow(self.arch, self.shape, self.state, self.compute.device)


class SilosGet:
    """Measures what the simulated silos of one seed get from its runs."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        classes = federation.shape.num_classes
        counts = {
            silo: torch.bincount(federation.data_of(silo).labels, minlength=classes)
            for silo in federation.study.silo_names
        }
        self._everyone = torch.stack(list(counts.values())).sum(0)
        self._held_out = {
            silo: choose_held_out(federation.test_of(silo), federation.split.test, own)
            for silo, own in counts.items()
        }
        self._own: dict[str, float | None] = {}

    def measure(self, arm: str, state: State, pool: Executor) -> tuple[SiloGets, ...]:
        """Return what each silo gets from a run, in natural order of names."""
        federation, study = self._federation, self._federation.study
        terms = (study.rounds_of(arm), study.metric, federation.seed)
        parts = (study.global_arch(arm), federation.shape.merged, state)
        model = FinalModel(*parts, federation.model_pool, federation.compute, *terms)
        test = federation.split.test
        shared = any(held.data is test for held in self._held_out.values()) and len(test) > 0
        predictions = run_all(pool, [partial(model.predict, test)] if shared else [])
        works = [
            partial(self._measure_silo, silo, model, predictions[0] if shared else None)
            for silo in self._held_out
        ]
        return tuple(run_all(pool, works))

    def _measure_silo(self, silo: str, model: FinalModel, shared: Prediction | None) -> SiloGets:
        federation, held = self._federation, self._held_out[silo]
        if silo not in self._own:
            self._own[silo] = self._measure_own(silo, model, held)
        found: dict[str, float | None] = {}
        if len(held.rows):
            given = shared if held.data is federation.split.test else None
            data = federation.data_of(silo)
            found = model.measure(silo, data, held, self._everyone, given)
        return conclude(silo, len(held.rows), self._own[silo], found)

    def _measure_own(self, silo: str, model: FinalModel, held: HeldOut) -> float | None:
        """Measure a silo's own model; None if the study trains none, or it is not usable."""
        federation = self._federation
        study = federation.study
        if not study.needs_pretrained or not len(held.rows):
            return None
        local = LocalSilo.simulated(federation, silo)
        own = local.own_model().state
        if own is None:
            return None
        teacher = replace(local.as_teacher, state=own)
        # As every arm predicts the server's test examples by it, these may be known.
        alone = Teachers([teacher], federation.shape, federation.compute)
        logits = alone.cached_in(federation.cache, study.model.files).predict(held.data)[0]
        return model.value(logits[held.rows], held)


def log_shares(counts: Tensor) -> Tensor:
    """Return the logarithm of class shares ``[C]``; every class counts as one example more."""
    more = counts.double() + 1
    return (more / more.sum()).log()


def conclude(
    silo: str, num_held_out: int, own: float | None, found: dict[str, float | None]
) -> SiloGets:
    """Return what a silo gets, with the best of its models, and by how much it loses.

    ``own`` is the metric of its own model, or None; ``found`` that of each model that the
    federation gives it.
    """
    found = {name: found.get(name) for name in GIVEN}
    known = {name: value for name, value in {**found, "own": own}.items() if value is not None}
    offered = [value for value in found.values() if value is not None]
    loses = None if own is None or not offered else max(0.0, round(own - max(offered), DIGITS))
    return {
        "silo": silo,
        "num_held_out": num_held_out,
        "own": own,
        **found,
        "best": max(known, key=known.__getitem__) if known else None,
        "loses_by": loses,
    }
