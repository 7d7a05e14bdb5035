"""Predictions of a model, and their metrics."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedkd.data.images import Images, as_inputs
from fedkd.models.build import running
from fedkd.models.partial import kept_features
from fedkd.registry import METRICS, metric_key
from fedkd.training.batches import uint8_batches
from fedkd.training.class_sums import ClassSums
from fedkd.training.compute import Compute, intra_op_threads
from fedkd.training.ranking import rank_metrics
from fedkd.util.parallel import check_stopped
from fedkd.util.random_ops import DrawFrom, draws_at_random


@dataclass(frozen=True)
class Metrics:
    """Metrics of a model on labelled examples: accuracy and macro-F1 in [0, 1], loss in nats.

    Attributes:
        accuracy: share of the examples that are classified correctly.
        loss: mean cross-entropy.
        macro_f1: mean F1 over classes. Over several silos, the mean of theirs.
        values: of every metric of :data:`~fedkd.registry.METRICS` over all examples together, by
            its key; None for one that is not defined or not known, empty if none was computed.
        sums: by class, where they were counted.
    """

    accuracy: float
    loss: float
    macro_f1: float
    values: Mapping[str, float | None] = field(default_factory=dict)
    sums: ClassSums | None = None


PREDICTION_BATCH = {"cpu": 128, "cuda": 1024, "mps": 1024}
"""Batch size of :func:`predict`, by kind of device.

On a processor the activations of a small batch stay in its caches: 128 examples per batch take
half the processor time of 1,024. The size is fixed, because another one gives other last bits.
"""
_COPIES_BYTES = 1 << 30
"""Most bytes of a model's copies, of which each thread of :func:`predict` may take one."""


def predict(
    model: nn.Module, images: Tensor | Images, *, compute: Compute, batch_size: int | None = None
) -> Tensor:
    """Return logits ``[N, C]`` (fp32, on the CPU) for examples ``[N, ...]`` of any kind.

    Features of a fixed part are computed once for each example, and kept in the cache.

    On a processor the batches are distributed over as many threads as the phase has intra-op
    threads (:func:`intra_op_threads`). Each thread computes with one, so that the logits do not
    depend on their number. A model that may keep something from call to call, or draw at random in
    evaluation mode too, is copied for each thread, and its draws are those of the batch's number.
    """
    model.eval()
    kept = kept_features(model, images, device=compute.device, precision=compute.precision)
    if kept is not None:
        rest, features = kept
        return predict(rest, features, compute=compute, batch_size=batch_size)
    kind = compute.device.partition(":")[0]
    batches = uint8_batches(images, batch_size or PREDICTION_BATCH[kind])
    threads = min(torch.get_num_threads(), len(batches)) if kind == "cpu" else 1
    # Forward hooks expect the batches in order.
    one_thread = threads == 1 or bool(model._forward_hooks)
    at_random = draws_at_random(model)
    models = [model] if one_thread else _one_each(model, threads, shared=not at_random)
    free = deque(models)

    def predict_batch(index: int) -> Tensor:
        own = free.pop()
        draws = DrawFrom(torch.Generator().manual_seed(index)) if at_random else nullcontext()
        try:
            with draws:
                return _predict(own, batches[index](), compute)
        finally:
            free.append(own)

    if len(models) == 1:
        with intra_op_threads(1):
            return torch.cat([predict_batch(index) for index in range(len(batches))]).cpu()
    workers = ThreadPoolExecutor(len(models), initializer=torch.set_num_threads, initargs=(1,))
    with workers as pool:
        return torch.cat(list(pool.map(predict_batch, range(len(batches)))))


def _one_each(model: nn.Module, threads: int, *, shared: bool) -> list[nn.Module]:
    """Return a model for each thread: the same one, or copies of it; one alone if it has none."""
    if shared:
        return [model] * threads
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    copies = min(threads - 1, _COPIES_BYTES // max(1, size))
    try:
        return [model, *(copy.deepcopy(model) for _ in range(copies))]
    except Exception:  # a module may hold what cannot be copied, such as a file or a lock
        return [model]


@torch.no_grad()
def _predict(model: nn.Module, batch: Tensor, compute: Compute) -> Tensor:
    """Return one batch's logits there. Gradient mode and autocast are per thread, so set here."""
    check_stopped()
    with compute.autocast(), running(model):
        logits: Tensor = model(as_inputs(batch).to(compute.device))
    return logits.float()


def evaluate(model: nn.Module, data: Images, *, compute: Compute) -> Metrics:
    """Evaluate ``model`` on labelled examples."""
    return metrics(predict(model, data, compute=compute), data.labels)


def evaluate_all(model: nn.Module, data: Images, *, compute: Compute) -> Metrics:
    """Evaluate ``model`` on labelled examples by every metric."""
    return all_metrics(predict(model, data, compute=compute), data.labels)


def metrics(logits: Tensor, labels: Tensor) -> Metrics:
    """Compute accuracy, mean cross-entropy and macro-F1 of logits ``[N, C]`` on labels ``[N]``.

    Macro-F1 is the mean over the classes that occur in labels or predictions.
    """
    predicted = logits.argmax(dim=1)
    sums = ClassSums.of(predicted, labels, logits.shape[1])
    return Metrics(
        accuracy=float((predicted == labels).double().mean()),
        loss=float(functional.cross_entropy(logits.double(), labels)),
        macro_f1=sums.macro_f1,
        sums=sums,
    )


def all_metrics(logits: Tensor, labels: Tensor) -> Metrics:
    """Compute every metric of logits ``[N, C]`` on labels ``[N]``; see :func:`metrics`.

    Balanced accuracy is the mean recall of the classes that occur in ``labels``. AUROC and average
    precision are those of :mod:`fedkd.training.ranking`.
    """
    measured = metrics(logits, labels)
    values = metric_values(measured.accuracy, measured.sums)
    return replace(measured, values={**values, **rank_metrics(logits, labels)})


def metric_values(accuracy: float, sums: ClassSums | None) -> dict[str, float | None]:
    """Return all metrics by key: those that follow from accuracy and sums, the others None."""
    values: dict[str, float | None] = dict.fromkeys(map(metric_key, METRICS))
    values["accuracy"] = accuracy
    if sums is not None:
        values["balanced_accuracy"] = sums.balanced_accuracy
        values["macro_f1"] = sums.macro_f1
    return values
