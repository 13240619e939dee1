"""The moving average of weights, updated by a few kernels instead of one per tensor."""

from __future__ import annotations

import torch
from mmengine.model import ExponentialMovingAverage as PerTensorAverage
from torch import Tensor, nn

from pinas_zoo.registry import MODELS

__all__ = ['ExponentialMovingAverage']


@MODELS.register_module()
class ExponentialMovingAverage(PerTensorAverage):
    """mmengine's average, bit for bit, for its `EMAHook`: all tensors of a step in one fused update.

    Arguments and checkpoints are those of `mmengine.model.ExponentialMovingAverage`.
    """

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Moves the average towards `model`; the first call copies it."""
        elsewhere = next(model.parameters()).device != next(self.module.parameters()).device  # argument `device`
        if elsewhere or self.steps == 0 or self.steps % self.interval:
            super().update_parameters(model)
            return
        averages: list[Tensor] = list(self.module.parameters())
        values: list[Tensor] = list(model.parameters())
        buffers, current = list(self.module.buffers()), list(model.buffers())
        if self.update_buffers:
            averages += [b for b in buffers if b.is_floating_point()]
            values += [b for b in current if b.is_floating_point()]
        elif buffers:
            torch._foreach_copy_(buffers, current)
        torch._foreach_lerp_(averages, values, self.momentum)
        self.steps += 1
