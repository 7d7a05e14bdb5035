"""BatchNorm layers that every silo has of its own: FedBN, Li et al. 2102.07623.

A silo trains the global model with the BatchNorm tensors, statistics included, that it had after
its last round. The server holds them between rounds, so that silos need no memory, any of them may
be left out of any round, and a run that was killed resumes to the same bits. The global model has
their average, on which the server measures it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flwr.app import Array, ArrayRecord

from fedkd.models.state import State
from fedkd.training.batch_norm import batch_norm_keys
from strategies.context import RunContext


class LocalBatchNorm:
    """The BatchNorm tensors of every silo; none unless the study's ``batch_norm`` is ``local``.

    Args:
        context: the run.
        held: tensors by silo, which are updated in place.
    """

    def __init__(self, context: RunContext, held: dict[str, State]) -> None:
        local = context.study.model.batch_norm == "local"
        self._keys = batch_norm_keys(context.model("batch-norm")) if local else frozenset()
        self._held = held

    def keep(self, silos: Sequence[str], trained: Sequence[State]) -> None:
        """Take the tensors of the models that silos have trained."""
        if self._keys:
            for silo, model in zip(silos, trained, strict=True):
                self._held[silo] = {key: model[key].clone() for key in model if key in self._keys}

    def arrays_of(self, silos: Iterable[str], model: State) -> dict[str, ArrayRecord]:
        """Return the global model, with a silo's own tensors, for each silo that has some."""
        held = {silo: self._held[silo] for silo in silos if silo in self._held}
        if not held:
            return {}
        # Silos share the arrays of all other layers.
        shared = ArrayRecord({key: model[key] for key in model if key not in self._keys})
        return {
            silo: ArrayRecord(
                {key: shared[key] if key in shared else Array(own[key]) for key in model}
            )
            for silo, own in held.items()
        }
