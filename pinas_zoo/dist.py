"""Rank, number of ranks and gathering, with or without torch.distributed; and asynchronous copies to the device."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ['gather', 'on_device', 'rank_and_world']


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) if torch.distributed is not initialised."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(x: Tensor) -> Tensor:
    """Every rank's tensor, concatenated in rank order, without gradient; the tensor itself in a single process.

    Shape:
        (N, ...) -> (N * ranks, ...); the tensors of all ranks have the same shape.
    """
    ranks = rank_and_world()[1]
    if ranks == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(ranks)]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def on_device(array: np.ndarray, device: torch.device) -> Tensor:
    """An array on the device, copied asynchronously, since a copy from memory that is not pinned waits."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == 'cuda' else tensor
