"""The one training loop and the one evaluation, on tensors in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import torch
from cachetools import LRUCache, cached
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR

from fedkd.data.images import Images, as_float, content_hash
from fedkd.errors import UserError
from fedkd.models.patch_features import split_fixed
from fedkd.models.state import copy_state, state_hash
from fedkd.util.random_ops import DrawFrom, draws_at_random

Loss = Callable[[Tensor, Sequence[Tensor]], Tensor]
"""Takes logits ``[B, C]`` and a batch's further tensors to a scalar."""


@dataclass(frozen=True)
class Sgd:
    """Settings of stochastic gradient descent with momentum.

    ``schedule`` is ``constant``, or ``cosine``: down to zero over all steps (1608.03983, without
    restarts).
    """

    epochs: int
    batch_size: int
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "constant"


@dataclass(frozen=True)
class Compute:
    """On what to compute: ``cpu`` or ``cuda[:n]``, in ``fp32`` or with ``bf16`` autocast."""

    device: str = "cpu"
    precision: str = "fp32"

    def check(self) -> None:
        """Refuse a device that this machine has not.

        Raises:
            UserError: there is no such GPU.
        """
        kind, _, index = self.device.partition(":")
        if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
            raise UserError(
                f"engine.device: {self.device} is not to be had: PyTorch sees "
                f"{torch.cuda.device_count()} GPUs here; use cpu"
            )

    def autocast(self) -> torch.autocast:
        """Return the context in which forward passes run."""
        return torch.autocast(
            self.device.partition(":")[0], torch.bfloat16, enabled=self.precision == "bf16"
        )


@dataclass(frozen=True)
class Metrics:
    """Quality of a model on labelled images; accuracy and macro-F1 in [0, 1], loss in nats."""

    accuracy: float
    loss: float
    macro_f1: float


@contextlib.contextmanager
def intra_op_threads(count: int) -> Iterator[None]:
    """Run a numeric phase of this thread with ``count`` threads.

    One and two threads give different bits, so every phase says how many it uses.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fit(
    model: nn.Module,
    images: Tensor,
    others: Sequence[Tensor],
    loss: Loss,
    *,
    sgd: Sgd,
    generator: torch.Generator,
    compute: Compute,
    on_epoch: Callable[[], None] | None = None,
    mix: Callable[[Sequence[Tensor]], list[Tensor]] | None = None,
) -> float:
    """Train ``model`` in place by SGD and return the mean loss of the last epoch.

    Training stops at the end of the first epoch whose loss is not finite; the caller sees that
    in the value returned.

    Args:
        model: the model, on ``compute.device``.
        images: uint8 ``[N, C, H, W]``, turned into floats an epoch at a time; or floats. The part
            of the model that nobody trains, if it has one, sees the former once.
        others: tensors ``[N, ...]`` that go with the images, such as labels or targets.
        loss: takes logits and the batch of ``others`` to the loss.
        sgd: settings of the optimiser.
        generator: order of the samples and noise of the model's random layers.
        compute: device and precision.
        on_epoch: called after every epoch.
        mix: makes a batch's tensors, images first, into those that are learnt from.
    """
    learner = model
    if mix is None:
        learner, images = _see_once(model, images, compute)
    model.train()
    optimiser = make_optimiser(model, sgd.lr, sgd.momentum, sgd.weight_decay)
    bounds = batch_bounds(len(images), sgd.batch_size)
    anneal = make_schedule(optimiser, sgd.schedule, sgd.epochs * len(bounds))
    noise = DrawFrom(generator) if draws_at_random(model) else contextlib.nullcontext()
    layout = torch.channels_last if is_channels_last(model) else torch.contiguous_format
    images = images.contiguous(memory_format=layout)
    mean = float("nan")
    for _ in range(sgd.epochs):
        order = torch.randperm(len(images), generator=generator)
        mixed = images[order] if images.is_floating_point() else as_float(images[order])
        shuffled = [
            mixed.to(compute.device),
            *(other[order].to(compute.device) for other in others),
        ]
        total = torch.zeros((), device=compute.device)
        for start, end in bounds:
            batch, *rest = (tensor[start:end] for tensor in shuffled)
            if mix:
                batch, *rest = mix([batch, *rest])
            optimiser.zero_grad()
            with noise, compute.autocast():
                logits = learner(batch)
            batch_loss = loss(logits.float(), rest)
            batch_loss.backward()  # type: ignore[no-untyped-call]  # PyTorch's is untyped
            optimiser.step()
            anneal()
            total += batch_loss.detach() * (end - start)
        mean = float(total) / len(images)
        if on_epoch:
            on_epoch()
        if not torch.isfinite(total):
            break
    return mean


SEEN_BYTES = 4 << 30
"""Most memory that features of a model's fixed part may take; of more images none are kept."""
KEPT_BYTES = 1 << 30
"""Most that all features take that are kept for the next round's training of the same filters."""


def _see_once(model: nn.Module, images: Tensor, compute: Compute) -> tuple[nn.Module, Tensor]:
    """Return what of a model learns, and what its fixed part, if there is one, sees of images."""
    split = split_fixed(model)
    if split is None or images.is_floating_point():
        return model, images
    fixed, learner = split
    width = predict(fixed, images[:1], compute=compute).numel()
    if len(images) * width * 4 > SEEN_BYTES:
        return model, images
    return learner, _see(fixed, images, compute)


def _identify(fixed: nn.Module, images: Tensor, compute: Compute) -> tuple[str, str, Compute]:
    return state_hash(copy_state(fixed)), content_hash(images), compute


@cached(LRUCache(KEPT_BYTES, getsizeof=lambda seen: seen.nbytes), key=_identify, lock=Lock())
def _see(fixed: nn.Module, images: Tensor, compute: Compute) -> Tensor:
    return predict(fixed, images, compute=compute)


def is_channels_last(model: nn.Module) -> bool:
    """Whether the model's convolutions lie in memory channels last; images then should as well."""
    return any(
        weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
        for weight in model.parameters()
        if weight.dim() == 4
    )


def make_optimiser(
    model: nn.Module, lr: float, momentum: float, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """Return the optimiser of all training: SGD with momentum."""
    return torch.optim.SGD(
        model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay, foreach=True
    )


def make_schedule(
    optimiser: torch.optim.Optimizer, name: str, num_steps: int
) -> Callable[[], None]:
    """Return what is to be called after every step of an optimiser; see :class:`Sgd`."""
    if name == "cosine":
        return CosineAnnealingLR(optimiser, num_steps).step
    return lambda: None


def train_supervised(
    model: nn.Module,
    data: Images,
    *,
    sgd: Sgd,
    generator: torch.Generator,
    compute: Compute,
    on_epoch: Callable[[], None] | None = None,
) -> float:
    """Train ``model`` in place on labelled images with cross-entropy; see :func:`fit`."""
    return fit(
        model,
        data.images,
        (data.labels,),
        lambda logits, rest: functional.cross_entropy(logits, rest[0]),
        sgd=sgd,
        generator=generator,
        compute=compute,
        on_epoch=on_epoch,
    )


def batch_bounds(size: int, batch_size: int) -> list[tuple[int, int]]:
    """Cut ``size`` samples into batches; a lone last sample joins the batch before it.

    Normalisation layers cannot train on one sample, and dropping it would lose data.
    """
    starts = list(range(0, size, batch_size))
    if len(starts) > 1 and size - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], size], strict=True))


PREDICTED_AT_ONCE = {"cpu": 128, "cuda": 1024}
"""Images in a batch of :func:`predict`, by kind of device.

On a processor, what a small batch's layers hand on stays in its caches: 128 take about half the
processor time of 1,024. The size is fixed, as another one gives other last bits.
"""


def predict(
    model: nn.Module, images: Tensor, *, compute: Compute, batch_size: int | None = None
) -> Tensor:
    """Return logits ``[N, C]`` (fp32, on the CPU) for uint8 images ``[N, C, H, W]``.

    On a processor the batches are shared among as many threads as the phase has intra-op threads
    (:func:`intra_op_threads`), each computing with one, so that the logits do not depend on how
    many there are.
    """
    model.eval()
    kind = compute.device.partition(":")[0]
    batches = torch.split(images, batch_size or PREDICTED_AT_ONCE[kind])
    threads = min(torch.get_num_threads(), len(batches)) if kind == "cpu" else 1
    if draws_at_random(model):
        # A user's model may draw at random here too; the same draws make the same figures.
        with DrawFrom(torch.Generator().manual_seed(0)), intra_op_threads(1):
            return torch.cat([_predict(model, batch, compute) for batch in batches])
    if threads == 1 or model._forward_hooks:
        # Whoever hooks into the model wants its batches in order.
        with intra_op_threads(1):
            return torch.cat([_predict(model, batch, compute) for batch in batches])
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return torch.cat(list(pool.map(lambda batch: _predict(model, batch, compute), batches)))


@torch.no_grad()
def _predict(model: nn.Module, batch: Tensor, compute: Compute) -> Tensor:
    """Return one batch's logits; gradients and autocast are matters of each thread."""
    with compute.autocast():
        logits: Tensor = model(as_float(batch).to(compute.device))
    return logits.float().cpu()


def evaluate(model: nn.Module, data: Images, *, compute: Compute) -> Metrics:
    """Measure ``model`` on labelled images."""
    return metrics(predict(model, data.images, compute=compute), data.labels)


def metrics(logits: Tensor, labels: Tensor) -> Metrics:
    """Compute accuracy, mean cross-entropy and macro-F1 of logits ``[N, C]`` on labels ``[N]``.

    Macro-F1 is the mean over the classes that occur in labels or predictions.
    """
    classes = logits.shape[1]
    predicted = logits.argmax(dim=1)
    confusion = torch.bincount(labels * classes + predicted, minlength=classes * classes)
    confusion = confusion.reshape(classes, classes).double()
    hits = confusion.diagonal()
    occurrences = confusion.sum(0) + confusion.sum(1)
    f1 = 2 * hits[occurrences > 0] / occurrences[occurrences > 0]
    return Metrics(
        accuracy=float((predicted == labels).double().mean()),
        loss=float(functional.cross_entropy(logits.double(), labels)),
        macro_f1=float(f1.mean()),
    )


def is_finite(state: dict[str, Tensor]) -> bool:
    """Whether every number of a state dict is finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in state.values())
