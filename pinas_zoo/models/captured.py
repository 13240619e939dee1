"""A block of a supernet as CUDA graphs of its forward and backward pass; `pinas_zoo.models.graphs` runs them."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from pinas_zoo.models.recorder import Recorder
from pinas_zoo.models.supernet import Segment

__all__ = ['CapturedBlock', 'Run']

_TRAINS = operator.attrgetter('requires_grad')
_PER_PARAMETER = tuple(map(operator.attrgetter, ('grad', '_backward_hooks', '_post_accumulate_grad_hooks')))


class _Ticket:
    """Exists as long as a forward pass waits for its backward pass."""


class Run(torch.autograd.Function):
    """Captured blocks that follow one another, in the autograd graph.

    Either their parameters are inputs, so that hooks on these fire (DDP's) and `torch.autograd.grad` sees them, or the
    backward pass sets `grad` of the parameters itself (`direct`), which spares the host an autograd node and two
    tensors per parameter. Then one of the `inputs` must require a gradient, which it does not get.
    """

    @staticmethod
    def forward(ctx: Any, blocks: Sequence[CapturedBlock], direct: bool, x: Tensor, *inputs: Tensor) -> Tensor:
        ctx.blocks, ctx.direct, ctx.unused, ctx.ticket = blocks, direct, len(inputs), _Ticket()
        for block in blocks:
            if not direct:
                block.leave_gradients()
            block.ticket = weakref.ref(ctx.ticket)
            x = block.run_forward(x)
        return x.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if any(block.ticket is None or block.ticket() is not ctx.ticket for block in ctx.blocks):
            raise RuntimeError('a captured block ran again before this backward pass; set cuda_graphs=False')
        into: Tensor | None = gradient
        for block in reversed(ctx.blocks):
            assert into is not None  # only the first block of a path has an input without gradient
            into = block.run_backward(into)
            if ctx.direct:
                block.add_gradients()
        into = None if into is None else into.detach()
        if ctx.direct:
            return None, None, into, *[None] * ctx.unused
        found = [gradient for block in ctx.blocks for gradient in block.gradients]
        return None, None, into, *(None if gradient is None else gradient.detach() for gradient in found)


class CapturedBlock:
    """One captured segment.

    Args:
        segment: The segment, in training mode.
        x: Its first input.
        recorder: Captures it.
        autocast: Arguments of `torch.autocast`.
    """

    def __init__(self, segment: Segment, x: Tensor, recorder: Recorder, autocast: dict[str, Any]) -> None:
        self.segment = segment
        self.with_backward = torch.is_grad_enabled()
        self.parameters = list(segment.parameters())
        # Separate leaves on the same memory: a capture then touches neither the parameters' gradients nor the
        # nodes that accumulate them, whose hooks belong to DDP.
        aliases = {name: p.detach().requires_grad_(p.requires_grad) for name, p in segment.named_parameters()}
        # Not the tensors themselves: modules may get others, and walking the modules in every step takes long.
        tables = ((module._parameters, module._buffers) for module in segment.modules())  # noqa: SLF001
        self.tables = [table for both in tables for table in both if table]
        self.found = self._tensors()
        self.watched = [tensor for tensor in self.found if tensor is not None]
        self.addresses = list(map(Tensor.data_ptr, self.watched))
        self.trains = list(map(_TRAINS, self.parameters))
        self.norms = [module for module in segment.modules() if isinstance(module, _BatchNorm)]
        self.tracks = self._tracks()
        self.ticket: weakref.ref[_Ticket] | None = None
        needs_input = self.with_backward and x.requires_grad
        self.input = torch.empty_like(x.detach()).copy_(x.detach()).requires_grad_(needs_input)
        leaves = [leaf for leaf in (self.input, *aliases.values()) if leaf.requires_grad]

        def forward() -> Tensor:
            # The output is kept with its autograd graph, which holds what the backward pass reads.
            with torch.autocast(**autocast, cache_enabled=False):
                self.live = functional_call(segment, aliases, (self.input,))
            return self.live

        def backward() -> tuple[Tensor, ...]:
            found = torch.autograd.grad(self.live, leaves, self.grad_output, retain_graph=True)
            with torch.no_grad():
                return _apart([_as_parameter(*pair) for pair in zip(found, leaves, strict=True)])

        def both() -> None:
            output = forward()
            if self.with_backward:
                self.grad_output = torch.zeros_like(output)
                backward()

        saved = [buffer.clone() for buffer in segment.buffers()]
        pool = recorder.pool(self.with_backward)
        try:
            recorder.warm_up(both)
            self.output, self.replay_forward = recorder.record(forward, pool)
            if self.with_backward:
                self.grad_output = torch.zeros_like(self.output)
                gradients, self.replay_backward = recorder.record(backward, pool)
        finally:
            for buffer, value in zip(segment.buffers(), saved, strict=True):
                # Bypasses the version counter: a shared shortcut may wait for a backward pass that never reads these.
                buffer.data.copy_(value)
        if self.with_backward:
            found = iter(gradients)
            self.grad_input = next(found) if needs_input else None
            self.gradients = [next(found) if alias.requires_grad else None for alias in aliases.values()]

    def misfit(self, x: Tensor) -> str:
        """Why a replay would not give what the segment would compute now; empty if it does."""
        if x.shape != self.input.shape or x.dtype != self.input.dtype:
            return 'its input has another shape or type'
        if self.ticket is not None and self.ticket() is not None:
            return 'its last forward pass waits for its backward pass'
        now = self._tensors()
        if len(now) != len(self.found) or not all(map(operator.is_, now, self.found)):
            return 'parameters or buffers were replaced'
        if list(map(Tensor.data_ptr, self.watched)) != self.addresses:
            return 'its weights were moved'
        same_input = not self.with_backward or x.requires_grad == self.input.requires_grad
        if not same_input or list(map(_TRAINS, self.parameters)) != self.trains:
            return 'parameters were frozen or released'
        return '' if self._tracks() == self.tracks else 'BN layers do something else'

    def _tensors(self) -> list[Tensor | None]:
        """The parameters and buffers that the modules have now."""
        return [tensor for table in self.tables for tensor in table.values()]

    def _tracks(self) -> list[Any]:
        """What the BN layers do: batch statistics, and whether and how they are tracked."""
        return [value for norm in self.norms for value in (norm.training, norm.track_running_stats, norm.momentum)]

    def needs_autograd(self) -> bool:
        """Whether autograd must see the parameters: they have hooks, or gradients of an earlier batch.

        Autograd adds up the gradients of both paths before it adds them to those of an earlier batch.
        """
        return any(held is not None for read in _PER_PARAMETER for held in map(read, self.parameters))

    def run_forward(self, x: Tensor) -> Tensor:
        """The output, in memory that the next replay overwrites."""
        with torch.no_grad():
            self.input.copy_(x)
        self.replay_forward()
        return self.output

    def leave_gradients(self) -> None:
        """Clones gradients that are still in this graph's memory.

        The first gradient of a parameter is passed on without a copy. Where several are accumulated, both replays would
        overwrite it: the forward's scratch memory may be where the backward later writes its gradients.
        """
        for parameter, own in zip(self.parameters, self.gradients, strict=True):
            held = parameter.grad
            if held is not None and own is not None and held.data_ptr() == own.data_ptr():
                parameter.grad = held.clone()

    def run_backward(self, gradient: Tensor) -> Tensor | None:
        """The input's gradient; like the parameters' `gradients`, it is in memory that the next replay overwrites."""
        self.ticket = None
        self.grad_output.copy_(gradient)
        self.replay_backward()
        return self.grad_input

    def add_gradients(self) -> None:
        """Adds this backward pass to `grad` of the parameters, which was None in the forward pass."""
        held, new = [], []
        for parameter, own in zip(self.parameters, self.gradients, strict=True):
            if own is None:
                continue
            if parameter.grad is None:
                parameter.grad = own
            else:
                held.append(parameter.grad)
                new.append(own)
        if held:
            torch._foreach_add_(held, new)


def _as_parameter(gradient: Tensor, parameter: Tensor) -> Tensor:
    """The gradient in the parameter's memory format, without which autograd would copy it in every step."""
    strides = zip(gradient.shape, gradient.stride(), parameter.stride(), strict=True)
    if all(own == wanted or size == 1 for size, own, wanted in strides):
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def _apart(gradients: list[Tensor]) -> tuple[Tensor, ...]:
    """The same values, each in memory of its own: whoever changes one in place must not change another."""
    found: list[Tensor] = []
    storages: set[int] = set()
    for gradient in gradients:
        storage = gradient.untyped_storage().data_ptr()
        found.append(gradient.clone() if storage in storages else gradient)
        storages.add(storage)
    return tuple(found)
