"""The one training loop and the one evaluation, on tensors in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedkd.data.images import Images, as_float
from fedkd.errors import UserError
from fedkd.randomness import DrawFrom, draws_at_random

Loss = Callable[[Tensor, Sequence[Tensor]], Tensor]
"""Takes logits ``[B, C]`` and a batch's further tensors to a scalar."""


@dataclass(frozen=True)
class Sgd:
    """Settings of stochastic gradient descent with momentum."""

    epochs: int
    batch_size: int
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0


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
) -> float:
    """Train ``model`` in place by SGD and return the mean loss of the last epoch.

    Training stops at the end of the first epoch whose loss is not finite; the caller sees that
    in the value returned.

    Args:
        model: the model, on ``compute.device``.
        images: float images ``[N, C, H, W]``.
        others: tensors ``[N, ...]`` that go with the images, such as labels or targets.
        loss: takes logits and the batch of ``others`` to the loss.
        sgd: settings of the optimiser.
        generator: order of the samples and noise of the model's random layers.
        compute: device and precision.
        on_epoch: called after every epoch.
    """
    model.train()
    optimiser = make_optimiser(model, sgd.lr, sgd.momentum, sgd.weight_decay)
    noise = DrawFrom(generator) if draws_at_random(model) else contextlib.nullcontext()
    layout = torch.channels_last if is_channels_last(model) else torch.contiguous_format
    images = images.contiguous(memory_format=layout)
    mean = float("nan")
    for _ in range(sgd.epochs):
        order = torch.randperm(len(images), generator=generator)
        shuffled = [tensor[order].to(compute.device) for tensor in (images, *others)]
        total = torch.zeros((), device=compute.device)
        for start, end in batch_bounds(len(images), sgd.batch_size):
            batch, *rest = (tensor[start:end] for tensor in shuffled)
            optimiser.zero_grad()
            with noise, compute.autocast():
                logits = model(batch)
            batch_loss = loss(logits.float(), rest)
            batch_loss.backward()  # type: ignore[no-untyped-call]  # PyTorch's is untyped
            optimiser.step()
            total += batch_loss.detach() * (end - start)
        mean = float(total) / len(images)
        if on_epoch:
            on_epoch()
        if not torch.isfinite(total):
            break
    return mean


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
        as_float(data.images),
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


@torch.no_grad()
def predict(
    model: nn.Module, images: Tensor, *, compute: Compute, batch_size: int = 1024
) -> Tensor:
    """Return logits ``[N, C]`` (fp32, on the CPU) for uint8 images ``[N, C, H, W]``."""
    model.eval()
    # A user's model may draw at random here too; the same draws make the same figures.
    seeded = DrawFrom(torch.Generator().manual_seed(0)) if draws_at_random(model) else None
    noise = seeded or contextlib.nullcontext()
    parts = []
    for batch in torch.split(images, batch_size):
        with noise, compute.autocast():
            logits = model(as_float(batch).to(compute.device))
        parts.append(logits.float().cpu())
    return torch.cat(parts)


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
