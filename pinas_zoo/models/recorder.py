"""Captures work of a device and replays it: CUDA graphs, for `pinas_zoo.models.graphs`."""

from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import Any, Protocol, TypeVar

import torch

__all__ = ['CudaRecorder', 'Recorder']

T = TypeVar('T')

#: Runs of a block before its capture, after which kernels are chosen and workspaces allocated.
WARM_UPS = 2


class Recorder(Protocol):
    """Captures work for replay; the tests substitute one for the CPU."""

    def serves(self, device: torch.device) -> bool:
        """Whether work on this device can be recorded now."""
        ...

    def free_share(self) -> float:
        """Share of the device's memory that is free, in 0..1."""
        ...

    def warm_up(self, work: Callable[[], Any]) -> None:
        """Runs work a few times on the stream on which it will be recorded."""
        ...

    def pool(self, with_backward: bool) -> Any:
        """Memory for the records of one block; it must not be overwritten between forward and backward pass."""
        ...

    def record(self, work: Callable[[], T], pool: Any) -> tuple[T, Callable[[], None]]:
        """Records work; returns its result in static memory, and a function that runs it again into the same memory."""
        ...


class CudaRecorder:
    """Records CUDA graphs on one side stream.

    A capture may reuse what earlier captures in its pool have freed. A block with a backward pass therefore has its
    own pool: in a shared one, the scratch memory of a block captured earlier could overlap the activations that a
    block captured later saves for its backward pass, and blocks run in a different order in every step. Blocks that
    only run forward share a pool: their output is copied before the next one runs, and nothing else is read later.
    """

    def serves(self, device: torch.device) -> bool:
        """As `Recorder.serves`: a stream belongs to the device that was current when it was created."""
        return device.type == 'cuda' and device.index in (None, torch.cuda.current_device())

    @cached_property
    def stream(self) -> torch.cuda.Stream:
        """The stream of all captures."""
        return torch.cuda.Stream()

    @cached_property
    def forward_pool(self) -> Any:
        """The pool of the blocks that run only forward."""
        return torch.cuda.graph_pool_handle()

    def pool(self, with_backward: bool) -> Any:
        """As `Recorder.pool`."""
        return torch.cuda.graph_pool_handle() if with_backward else self.forward_pool

    def free_share(self) -> float:
        """As `Recorder.free_share`; memory that torch has reserved but does not use counts as free."""
        free, total = torch.cuda.mem_get_info()
        return (free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()) / total

    def warm_up(self, work: Callable[[], Any]) -> None:
        """As `Recorder.warm_up`."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        try:
            with torch.cuda.stream(self.stream):
                for _ in range(WARM_UPS):
                    work()
        finally:  # also after a failure: what it started may still write to the buffers, which are then restored
            current.wait_stream(self.stream)

    def record(self, work: Callable[[], T], pool: Any) -> tuple[T, Callable[[], None]]:
        """As `Recorder.record`; nothing runs yet."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.stream(self.stream):
            # Not 'global': a loader's thread that pins memory may call CUDA meanwhile.
            graph.capture_begin(pool=pool, capture_error_mode='thread_local')
            try:
                result = work()
            except BaseException:
                _abandon(graph, pool)
                raise
            graph.capture_end()
        return result, graph.replay


def _abandon(graph: torch.cuda.CUDAGraph, pool: Any) -> None:
    """Ends a capture that failed.

    One that waited for the device is invalid and cannot be ended; torch's allocator would then remain in the middle of
    it, and refuse to free memory.
    """
    try:
        graph.capture_end()
    except RuntimeError:
        names = ('_cuda_endAllocateToPool', '_cuda_endAllocateCurrentStreamToPool')  # older torch: the second
        for end in (found for name in names if (found := getattr(torch._C, name, None))):  # noqa: SLF001
            with suppress(RuntimeError):
                end(torch.cuda.current_device(), pool)
