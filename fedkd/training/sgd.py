"""Stochastic gradient descent without PyTorch's overhead."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SGD:
    """SGD with the operations of ``torch.optim.SGD(foreach=True)``, and so with its bits.

    PyTorch's own imports the compiler when it is made, which takes longer than all else in a small
    study. At every step it checks, groups tensors and enters the profiler's hooks, which takes
    longer than the update of a small model; silos that train side by side wait for one another
    meanwhile.

    Args:
        parameters: those to train.
        momentum: without dampening or Nesterov's correction.
        weight_decay: added to the gradient as an L2 penalty.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], *, momentum: float, weight_decay: float
    ) -> None:
        self._parameters = parameters
        self._momentum, self._weight_decay = momentum, weight_decay
        self._buffers: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update all parameters that have a gradient with this learning rate."""
        params: list[Tensor] = [each for each in self._parameters if each.grad is not None]
        grads = [each.grad for each in params if each.grad is not None]
        if not params:
            return
        sparse = any(grad.is_sparse for grad in grads)
        if self._weight_decay:
            grads = list(torch._foreach_add(grads, params, alpha=self._weight_decay))
        if self._momentum:
            grads = self._add_to_buffers(params, grads)
        if sparse:
            for param, grad in zip(params, grads, strict=True):
                param.add_(grad, alpha=-lr)
        else:
            torch._foreach_add_(params, grads, alpha=-lr)

    def _add_to_buffers(self, params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        """Return the momentum buffers, with the gradients added; the first time their copies."""
        pairs = list(zip(params, grads, strict=True))
        if old := [pair for pair in pairs if pair[0] in self._buffers]:
            buffers = [self._buffers[param] for param, _ in old]
            torch._foreach_mul_(buffers, self._momentum)
            torch._foreach_add_(buffers, [grad for _, grad in old])
        for param, grad in pairs if len(old) < len(pairs) else ():
            if param not in self._buffers:
                self._buffers[param] = grad.clone()
        return [self._buffers[param] for param in params]
