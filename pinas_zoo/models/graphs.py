"""CUDA graphs per block, so that a step whose path is newly drawn runs at the device's speed.

Launching a path's kernels one by one takes more host time than a data-centre card needs to run them, and a path that
changes every step cannot be captured as one graph. So every block is captured once, forward and backward, at its first
use, and replayed on whichever path contains it. A block is captured together with what always runs beside it: the stem
with the blocks of the first position, a position's shortcut with each of its candidates, the head with the blocks of
the last position. The two paths of a Pi-NAS pair differ at every position, so no graph runs twice before its backward
pass.

Nothing here changes a result: the BN statistics from before the warm-up are restored, and where a graph does not fit
(another shape or precision, SyncBN, a block that still waits for its backward pass, too little memory) the block runs
eagerly.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from pinas_zoo.models.recorder import Recorder
from pinas_zoo.models.supernet import Segment, SuperNet

__all__ = ['BlockGraphs']

_logger = logging.getLogger('pinas_zoo')

#: Share of the card's memory that captures leave free.
RESERVE = 0.1


class _Ticket:
    """Exists as long as a forward pass waits for its backward pass."""


class _Replay(torch.autograd.Function):
    """A captured block in the autograd graph; its parameters are inputs, so that their hooks (DDP's) fire."""

    @staticmethod
    def forward(ctx: Any, graph: _Graph, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.graph, ctx.ticket = graph, _Ticket()
        graph.ticket = weakref.ref(ctx.ticket)
        return graph.run_forward(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.graph.ticket is None or ctx.graph.ticket() is not ctx.ticket:
            raise RuntimeError('a captured block ran again before this backward pass; set cuda_graphs=False')
        return None, *ctx.graph.run_backward(gradient)


class _Graph:
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
        self.watched = self.parameters + list(segment.buffers())
        self.addresses = [tensor.data_ptr() for tensor in self.watched]
        self.trains = [p.requires_grad for p in self.parameters]
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
            return torch.autograd.grad(self.live, leaves, self.grad_output, retain_graph=True)

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
            self.gradients = [next(found) if p.requires_grad else None for p in (self.input, *aliases.values())]

    def fits(self, x: Tensor) -> bool:
        """Whether a replay gives what the segment would compute now."""
        return (
            x.shape == self.input.shape
            and x.dtype == self.input.dtype
            and (not self.with_backward or x.requires_grad == self.input.requires_grad)
            and (self.ticket is None or self.ticket() is None)
            and [tensor.data_ptr() for tensor in self.watched] == self.addresses
            and [p.requires_grad for p in self.parameters] == self.trains
            and self._tracks() == self.tracks
        )

    def _tracks(self) -> list[bool]:
        """What the BN layers do: batch statistics, and whether they are tracked."""
        return [flag for norm in self.norms for flag in (norm.training, norm.track_running_stats)]

    def __call__(self, x: Tensor) -> Tensor:
        return _Replay.apply(self, x, *self.parameters) if self.with_backward else self.run_forward(x)

    def run_forward(self, x: Tensor) -> Tensor:
        """The output, in memory that the next replay overwrites."""
        if self.with_backward:
            self._leave_gradients()
        with torch.no_grad():
            self.input.copy_(x)
        self.replay_forward()
        return self.output.detach()

    def _leave_gradients(self) -> None:
        """Clones gradients that are still in this graph's memory.

        Autograd passes on a first gradient without a copy. Where several are accumulated, both replays would overwrite
        it: the forward's scratch memory may be where the backward later writes its gradients.
        """
        for parameter, own in zip(self.parameters, self.gradients[1:], strict=True):
            held = parameter.grad
            if held is not None and own is not None and held.data_ptr() == own.data_ptr():
                parameter.grad = held.clone()

    def run_backward(self, gradient: Tensor) -> list[Tensor | None]:
        """Gradients of the input and the parameters, in memory that the next replay overwrites."""
        self.ticket = None
        self._leave_gradients()
        self.grad_output.copy_(gradient)
        self.replay_backward()
        return [None if own is None else own.detach() for own in self.gradients]


class BlockGraphs:
    """Runs the paths of a supernet from captured blocks; created where a network is trained, never saved with it.

    Args:
        supernet: The supernet.
        head: Module that follows it; None for none.
        recorder: Captures the graphs; the networks of one step share it.
        log: Called with one line of text at a time.

    Shape:
        forward: (N, in_chans, H, W), an architecture -> as the head of `supernet(x, arch)`
    """

    def __init__(
        self,
        supernet: SuperNet,
        head: nn.Module | None,
        recorder: Recorder,
        log: Callable[[str], None] = _logger.info,
    ) -> None:
        self.supernet, self.head, self.recorder, self.log = supernet, head, recorder, log
        self.segments: dict[tuple[int, int], Segment] = {}
        self.graphs: dict[tuple[int, int, bool], _Graph] = {}
        self.first: tuple[Any, ...] | None = None
        self.off = self.full = False
        self.seconds = 0.0
        self.replayed = self.eager = 0
        self._told: set[str] = set()

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """Graphs contain addresses, so a copy of the network gets none."""
        return None

    def segment(self, position: int, choice: int) -> Segment:
        """The segment of a candidate."""
        key = (position, choice)
        if key not in self.segments:
            self.segments[key] = Segment(self.supernet, position, choice, self.head)
        return self.segments[key]

    def accepts(self, x: Tensor, arch: Any) -> bool:
        """Whether this input may run from graphs; the first such input sets shape and precision."""
        if self.off or type(arch) is not tuple or x.requires_grad or not self.supernet.training:
            return False
        kind = x.device.type
        if kind != self.recorder.device_type:
            return False
        autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        key = (x.shape, x.dtype, x.device, *autocast)
        if self.first is None:
            if any(isinstance(module, nn.SyncBatchNorm) for module in self.supernet.modules()):
                return self._stop('SyncBN communicates with other ranks within a block')
            self.first = key
            self.autocast = dict(device_type=kind, enabled=autocast[0], dtype=autocast[1])
        if key != self.first:
            self._tell(f'CUDA graphs were captured for {_describe(self.first)}; {_describe(key)} runs without them')
        return key == self.first and all(type(choice) is int for choice in arch)

    def __call__(self, x: Tensor, arch: tuple[Any, ...]) -> Tensor:
        """Runs a path on an accepted input (`accepts`): each position has one candidate."""
        grad = torch.is_grad_enabled()
        for position, choice in enumerate(arch):
            graph = self.graphs.get((position, choice, grad))
            if graph is None:
                graph = self._capture(position, choice, grad, x)
            if graph is not None and graph.fits(x):
                x = graph(x)
                self.replayed += 1
            else:
                segment = self.segment(position, choice)
                x = segment(x)
                self.eager += not segment.empty
        return x.clone()  # out of static memory

    def _capture(self, position: int, choice: int, grad: bool, x: Tensor) -> _Graph | None:
        segment = self.segment(position, choice)
        if segment.empty or self.full:
            return None
        if self.recorder.free_share() < RESERVE:
            self._fill(f'less than {RESERVE:.0%} of the memory is free')
            return None
        began = time.perf_counter()
        try:
            graph = _Graph(segment, x, self.recorder, self.autocast)
        except RuntimeError as error:  # from torch.cuda, including out of memory
            self._fill(f'position {position}, candidate {choice}: {str(error).splitlines()[0]}')
            return None
        self.graphs[position, choice, grad] = graph
        self.seconds += time.perf_counter() - began
        if len(self.graphs) == 1:
            self.log(f'CUDA graphs: blocks are captured at their first use, for {_describe(self.first)}')
        possible = sum(not self.segment(p, c).empty for p, c in self._places())
        if sum(key[2] == grad for key in self.graphs) == possible:
            passes = 'forward and backward' if grad else 'forward'
            self.log(f'CUDA graphs: all {possible} blocks captured ({passes}), {self.seconds:.1f} s so far')
        return graph

    def _places(self) -> list[tuple[int, int]]:
        space = self.supernet.space
        return [(p, c) for p in range(space.num_positions) for c in space.choices(p)]

    def _stop(self, why: str) -> bool:
        self.off = True
        self.log(f'CUDA graphs: off, {why}')
        return False

    def _fill(self, why: str) -> None:
        """Stops capturing; what is captured stays in use."""
        self.full = True
        self.log(f'CUDA graphs: {len(self.graphs)} captures, the other blocks run without: {why}')

    def _tell(self, line: str) -> None:
        """Logs a line once."""
        if line not in self._told and len(self._told) < 8:
            self._told.add(line)
            self.log(line)


def _describe(key: tuple[Any, ...] | None) -> str:
    assert key is not None
    shape, dtype, _, enabled, precision = key
    return f'{"x".join(map(str, shape))} {str(precision if enabled else dtype)[6:]}'
