"""Stochastic gradient descent without PyTorch's overhead at every step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class LeanSGD(torch.optim.SGD):
    """PyTorch's SGD without what it checks at every step: the same operations, so the same bits.

    For a small model the checks, the profiler's hooks and the grouping of tensors take longer than
    the update, and silos that train side by side wait for one another meanwhile.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Update all parameters that have a gradient."""
        (group,) = self.param_groups
        params = [each for each in group["params"] if each.grad is not None]
        grads: Sequence[Tensor] = [each.grad for each in params]
        if any(grad.is_sparse for grad in grads):
            super().step()
            return
        if not params:
            return
        if decay := group["weight_decay"]:
            grads = torch._foreach_add(grads, params, alpha=decay)
        if momentum := group["momentum"]:
            grads = self._add_momentum(params, grads, momentum)
        torch._foreach_add_(params, grads, alpha=-group["lr"])

    # PyTorch wraps a step without this mark in its profiler's hooks.
    step.hooked = True  # type: ignore[attr-defined]

    def _add_momentum(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], momentum: float
    ) -> list[Tensor]:
        """Return the momentum buffers, with the gradients added."""
        buffers = [self.state[each].get("momentum_buffer") for each in params]
        old = [index for index, buffer in enumerate(buffers) if buffer is not None]
        if old:
            kept = [buffers[index] for index in old]
            torch._foreach_mul_(kept, momentum)
            torch._foreach_add_(kept, [grads[index] for index in old], alpha=1)
        if len(old) < len(params):
            for index, (param, grad) in enumerate(zip(params, grads, strict=True)):
                if buffers[index] is None:
                    buffers[index] = self.state[param]["momentum_buffer"] = grad.detach().clone()
        return buffers
