"""The pieces of the released training step in which it differs from ours, for comparisons of speed.

They are re-implemented in plain torch from what the release does: a teacher update parameter by parameter and out of
place; cross-entropy through autograd on a copy of the queue per loss term; key images shuffled and unshuffled even on
one process; and split attention that sums full maps of the splits before it pools them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from pinas_zoo.methods.pinas import PiNAS
from pinas_zoo.models.blocks import SplitAttention
from pinas_zoo.space import Arch

__all__ = ['embed_shuffled', 'move_by_parameter', 'released_attention', 'released_term']


@contextmanager
def released_attention() -> Iterator[None]:
    """Split attention in the released order: sum the splits, then pool; weight every split, then sum."""

    def forward(self: SplitAttention, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.conv(x)), inplace=True)
        splits = torch.split(x, x.shape[1] // self.radix, dim=1)
        hidden = self.attend(F.adaptive_avg_pool2d(cast(Tensor, sum(splits)), 1))
        logits = self.fc2(hidden)
        if self.radix == 1:
            return cast(Tensor, sum(split * torch.sigmoid(logits) for split in splits))
        weights = logits.view(len(x), self.cardinality, self.radix, -1).transpose(1, 2).softmax(dim=1)
        weights = weights.reshape(len(x), -1, 1, 1).split(x.shape[1] // self.radix, dim=1)
        return cast(Tensor, sum(weight * split for weight, split in zip(weights, splits, strict=True)))

    ours = SplitAttention.forward
    SplitAttention.forward = forward  # type: ignore[method-assign] # the released form, for as long as it is measured
    try:
        yield
    finally:
        SplitAttention.forward = ours  # type: ignore[method-assign]


@torch.no_grad()
def move_by_parameter(method: PiNAS, arch: Arch) -> None:
    """Teacher update in a Python loop, out of place."""
    assert method.teacher is not None
    teacher, student = method.teacher.on_path(arch), method.student.on_path(arch)
    for k, q in zip(teacher, student, strict=True):
        k.data = k.data * method.momentum + q.data * (1 - method.momentum)


@torch.no_grad()
def embed_shuffled(encoder: Any, x: Tensor, arch: Arch) -> Tensor:
    """Keys of a batch that is gathered, shuffled and restored to its order, although there is only one process."""
    x, order = torch.cat([x.clone()]), torch.randperm(len(x), device=x.device)
    keys_ND = encoder(x[order.view(1, -1)[0]], arch)
    return torch.cat([keys_ND.clone()])[order.argsort().view(1, -1)[0]]


def released_term(method: Any, q_ND: Tensor, k_ND: Tensor) -> Tensor:
    """One term of the loss: a copy of the queue, and autograd's cross-entropy."""
    positive_N1 = torch.einsum('nd,nd->n', q_ND, k_ND)[:, None]
    negative_NK = torch.einsum('nd,dk->nk', q_ND, method.queue.clone().detach())
    logits = torch.cat([positive_N1, negative_NK], dim=1) / method.temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
