"""What follows the networks in a step of Pi-NAS, as one CUDA graph: terms, accuracies, and the queue's new keys.

These are about a hundred small kernels, for which the host needs more time than the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pinas_zoo.dist import rank_and_world
from pinas_zoo.models.recorder import Recorder

__all__ = ['CapturedContrast']


class Contrast(Protocol):
    """A method whose `contrast` is captured."""

    queue: Tensor | None
    queue_ptr: Tensor | None
    temperature: float
    cross_path: bool

    def contrast(self, queries: Sequence[Tensor], keys: Sequence[Tensor]) -> dict[str, Tensor]:
        """'loss' and other scalars from queries and keys, each N x D; updates the queue in place."""
        ...


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, captured: CapturedContrast, keys: Sequence[Tensor], *queries: Tensor) -> tuple[Tensor, ...]:
        loss, *others = captured.replay(queries, keys)
        ctx.save_for_backward(captured.gradients.clone())  # the next replay overwrites it
        ctx.mark_non_differentiable(*others)
        return loss, *others

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(gradient * ctx.saved_tensors[0]).unbind()


class CapturedContrast:
    """Replays `method.contrast`, which it captures at its first use.

    Args:
        method: The method; its queue is written in place.
        recorder: Captures the graph.
        log: Called with one line of text at a time.

    Shape:
        queries, keys: as many tensors (N, D) as paths; the result is that of `method.contrast`
    """

    def __init__(self, method: Contrast, recorder: Recorder, log: Callable[[str], None]) -> None:
        self.method, self.recorder, self.log = method, recorder, log
        self.first: tuple[Any, ...] | None = None
        self.replayed = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A graph contains addresses, so a copy of the method gets none."""
        return None

    def fits(self, queries: Sequence[Tensor], keys: Sequence[Tensor]) -> bool:
        """Whether a replay gives what `method.contrast` would compute now; the first that fit decide."""
        device = queries[0].device
        queue, pointer = self.method.queue, self.method.queue_ptr
        if queue is None or pointer is None or rank_and_world()[1] > 1 or not torch.is_grad_enabled():
            return False
        if not self.recorder.serves(device) or not all(q_ND.requires_grad for q_ND in queries):
            return False
        precision = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
        shapes = [(x_ND.shape, x_ND.dtype) for x_ND in (*queries, *keys)]
        constants = self.method.temperature, self.method.cross_path
        key = (shapes, device, *precision, *constants, queue.data_ptr(), pointer.data_ptr())
        if self.first is None:
            try:
                self._capture(queries, dict(device_type=device.type, enabled=precision[0], dtype=precision[1]))
                self.first = key
                self.log('CUDA graphs: the loss is captured')
            except RuntimeError as error:  # from torch.cuda, including out of memory
                self.first = ()
                self.log(f'CUDA graphs: the loss runs without: {str(error).splitlines()[0]}')
        return key == self.first

    def _capture(self, queries: Sequence[Tensor], autocast: dict[str, Any]) -> None:
        queue, pointer = self.method.queue, self.method.queue_ptr
        assert queue is not None and pointer is not None
        self.queries = torch.stack([q_ND.detach() for q_ND in queries]).requires_grad_()
        self.keys = self.queries.detach().clone()

        def work() -> tuple[Tensor, ...]:
            with torch.enable_grad(), torch.autocast(**autocast, cache_enabled=False):
                found = self.method.contrast(self.queries.unbind(), self.keys.unbind())
                (gradients,) = torch.autograd.grad(found['loss'], self.queries)
            self.names = list(found)
            return *(value.detach() for value in found.values()), gradients

        saved = queue.clone(), pointer.clone()
        try:
            self.recorder.warm_up(work)
            (*self.values, self.gradients), self._run = self.recorder.record(work, self.recorder.pool(True))
        finally:
            queue.copy_(saved[0])
            pointer.copy_(saved[1])

    def replay(self, queries: Sequence[Tensor], keys: Sequence[Tensor]) -> list[Tensor]:
        """The values, outside of static memory; updates the queue."""
        torch.stack(list(queries), out=self.queries.detach())
        torch.stack(list(keys), out=self.keys)
        self._run()
        self.replayed += 1
        return [value.clone() for value in self.values]

    def __call__(self, queries: Sequence[Tensor], keys: Sequence[Tensor]) -> dict[str, Tensor]:
        """As `method.contrast`, for queries that fit."""
        values = _Replay.apply(self, keys, *queries)
        return dict(zip(self.names, values, strict=True))
