"""Rank, number of ranks and gathering, with or without torch.distributed; cores; asynchronous copies to the device."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

__all__ = [
    'average',
    'cores',
    'exchange',
    'gather',
    'gather_objects',
    'is_distributed',
    'on_device',
    'own_share',
    'rank_and_world',
]

Item = TypeVar('Item')

#: Whether torch.distributed is initialised, also where torch was built without it; for hot paths.
is_distributed: Callable[[], bool] = getattr(dist, 'is_initialized', bool)


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) if torch.distributed is not initialised."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def own_share(items: Sequence[Item]) -> Sequence[Item]:
    """This rank's contiguous part of a list that all ranks have; the parts differ in length by at most one."""
    rank, ranks = rank_and_world()
    return items[len(items) * rank // ranks : len(items) * (rank + 1) // ranks]


def gather_objects(item: Item) -> list[Item]:
    """Every rank's object, in rank order; all ranks have to call it."""
    ranks = rank_and_world()[1]
    if ranks == 1:
        return [item]
    found: list[Any] = [None] * ranks
    dist.all_gather_object(found, item)
    return found


def cores() -> int:
    """Processor cores that this process may use."""
    affinity = getattr(os, 'sched_getaffinity', None)  # what a container may use; Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


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


def exchange(x: Tensor, order: np.ndarray) -> Tensor:
    """This rank's share of all ranks' rows in another order; every row travels once.

    Args:
        x: Rows of this rank, as many as on the others.
        order: Permutation of all rows in rank order, (ranks * N,); rank r gets its r-th part. Equal on all ranks.

    Shape:
        (N, ...) -> (N, ...)
    """
    rank, ranks = rank_and_world()
    wanted = order.reshape(ranks, -1)
    owner = wanted // len(x)
    send = wanted[owner == rank] - rank * len(x)  # row by row: for rank 0, then for rank 1, ...
    counts = (owner == rank).sum(axis=1).tolist(), np.bincount(owner[rank], minlength=ranks).tolist()
    received = torch.empty_like(x, memory_format=torch.contiguous_format)
    rows = x.index_select(0, on_device(send, x.device)).contiguous()
    dist.all_to_all_single(received, rows, counts[1], counts[0])
    # They arrive by rank of origin, and in the wanted order within one.
    return received.index_select(0, on_device(owner[rank].argsort(kind='stable').argsort(), x.device))


def average(tensors: Sequence[Tensor], bucket_bytes: int = 25 * 2**20) -> int:
    """Replaces tensors by their means over the ranks, several at a time; all ranks give the same shapes in order.

    Args:
        tensors: Dense tensors.
        bucket_bytes: How many bytes are reduced together, unless a tensor alone has more.

    Returns:
        The bytes that each rank contributed.
    """
    ranks = rank_and_world()[1]
    pending = []
    for bucket in _buckets(tensors, bucket_bytes):
        flat = _flatten_dense_tensors(bucket).div_(ranks)  # as DDP: divided first, then added
        pending.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
    for bucket, flat, work in pending:
        work.wait()
        torch._foreach_copy_(bucket, _unflatten_dense_tensors(flat, bucket))
    return sum(flat.nbytes for _, flat, _ in pending)


def _buckets(tensors: Sequence[Tensor], most: int) -> Iterator[list[Tensor]]:
    """Consecutive tensors of one type, of at most so many bytes together."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.nbytes > most or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket


def on_device(array: np.ndarray, device: torch.device) -> Tensor:
    """An array on the device, copied asynchronously, since a copy from memory that is not pinned waits."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == 'cuda' else tensor
