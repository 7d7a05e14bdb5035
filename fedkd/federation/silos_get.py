"""What each silo gets: its own model, the global one, and the global one adapted to the silo.

A participant asks whether the federation gives it a better model than its own. Compared are, by the
study's metric on examples that no model of the silo was trained on: the silo's own model, the
global model, the global model with logits adjusted to the silo's class shares (Saerens et al. 2002,
Neural Computation 14), and that with its last linear layer fine-tuned on the silo's examples.
"""

from __future__ import annotations

import copy
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from fedkd.data.images import Images
from fedkd.distillation.teachers import Teachers
from fedkd.federation.federation import Federation
from fedkd.federation.held_out import HeldOut, choose_held_out
from fedkd.federation.local_silo import LocalSilo
from fedkd.models.state import State
from fedkd.results.record import SiloGets
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
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class _Prediction:
    """Of the global model: logits ``[N, C]``, and the input of its last linear layer ``[N, D]``."""

    logits: Tensor
    features: Tensor | None


class SilosGet:
    """Measures what the silos of one seed get from its runs."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        classes = federation.shape.num_classes
        self._shape = federation.shape.merged
        self._counts = {
            silo: torch.bincount(federation.data_of(silo).labels, minlength=classes)
            for silo in federation.study.silo_names
        }
        self._held_out = {
            silo: choose_held_out(federation.test_of(silo), federation.split.test, counts)
            for silo, counts in self._counts.items()
        }
        self._own: dict[str, float | None] = {}

    def measure(self, arm: str, state: State, pool: Executor) -> tuple[SiloGets, ...]:
        """Return what each silo gets from a run, in natural order of names."""
        test = self._federation.split.test
        shared = any(held.data is test for held in self._held_out.values()) and len(test) > 0
        predictions = run_all(pool, [partial(self._predict, arm, state, test)] if shared else [])
        works = [
            partial(self._measure_silo, silo, arm, state, predictions[0] if shared else None)
            for silo in self._held_out
        ]
        return tuple(run_all(pool, works))

    def _measure_silo(
        self, silo: str, arm: str, state: State, shared: _Prediction | None
    ) -> SiloGets:
        held = self._held_out[silo]
        if silo not in self._own:
            self._own[silo] = self._measure_own(silo, held)
        on_server = held.data is self._federation.split.test
        if not len(held.rows):
            found: dict[str, float | None] = dict.fromkeys(("global", "adjusted", "fine_tuned"))
        else:
            given = shared if on_server and shared else self._predict(arm, state, held.data)
            logits = given.logits[held.rows]
            tuned = self._fine_tune(silo, arm, state, given)
            found = {
                "global": self._value(logits, held),
                "adjusted": self._value(logits + self._adjustment(silo), held),
                "fine_tuned": None if tuned is None else self._value(tuned[held.rows], held),
            }
        return conclude(silo, len(held.rows), self._own[silo], found)

    def _measure_own(self, silo: str, held: HeldOut) -> float | None:
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
        return self._value(logits[held.rows], held)

    def _predict(self, arm: str, state: State, data: Images) -> _Prediction:
        federation = self._federation
        arch = federation.study.global_arch(arm)
        device, compute = federation.compute.device, federation.compute
        with federation.model_pool.borrow(arch, self._shape, state, device) as model:
            logits = predict(model, data, compute=compute)
            found = penultimate(model, data, compute=compute)
            if found is None:
                return _Prediction(logits, None)
            features, head = found
            known = predict(head, features, compute=compute)
        # What follows the layer, if anything does, must not change the logits.
        close = torch.allclose(known, logits, rtol=_TOLERANCE, atol=_TOLERANCE)
        return _Prediction(logits, features if close else None)

    def _fine_tune(self, silo: str, arm: str, state: State, given: _Prediction) -> Tensor | None:
        """Return logits for the held-out examples after the last linear layer was fine-tuned.

        None for a model that does not end in such a layer.
        """
        if given.features is None:
            return None
        federation = self._federation
        study, compute = federation.study, federation.compute
        generator = torch_generator(federation.seed, "fine-tune-head", silo)
        data = federation.data_of(silo)
        if len(data) > MAX_IMAGES:
            data = data.take(torch.randperm(len(data), generator=generator)[:MAX_IMAGES])
        arch = study.global_arch(arm)
        with federation.model_pool.borrow(arch, self._shape, state, compute.device) as model:
            found = penultimate(model, data, compute=compute)
            if found is None:
                return None
            features, head = found[0], copy.deepcopy(found[1])
        settings = OptimizerSettings.of(study.rounds_of(arm), FINE_TUNE_EPOCHS)
        fit(
            head,
            features,
            (data.labels,),
            lambda logits, rest: functional.cross_entropy(logits, rest[0]),
            optimizer=replace(settings, schedule="constant", warmup=0.0),
            generator=generator,
            compute=compute,
        )
        return predict(head, given.features, compute=compute)

    def _adjustment(self, silo: str) -> Tensor:
        """Return log pi_m - log pi ``[C]``: the silo's class shares, and those of all silos."""
        everyone = torch.stack(list(self._counts.values())).sum(0)
        return log_shares(self._counts[silo]) - log_shares(everyone)

    def _value(self, logits: Tensor, held: HeldOut) -> float | None:
        metric = self._federation.study.metric
        value = weighted_metric(metric, logits, held.labels, held.weights)
        return None if value is None else round(value, DIGITS)


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
    known = {name: value for name, value in {**found, "own": own}.items() if value is not None}
    offered = [value for value in found.values() if value is not None]
    loses = None if own is None or not offered else max(0.0, round(own - max(offered), DIGITS))
    return {
        "silo": silo,
        "num_held_out": num_held_out,
        "own": own,
        "global": found["global"],
        "adjusted": found["adjusted"],
        "fine_tuned": found["fine_tuned"],
        "best": max(known, key=known.__getitem__) if known else None,
        "loses_by": loses,
    }
