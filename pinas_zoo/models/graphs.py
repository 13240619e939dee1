"""CUDA graphs per block, so that a step whose path is newly drawn runs at the device's speed.

Launching a path's kernels one by one takes more host time than a data-centre GPU needs to run them, and a path that
changes every step cannot be captured as one graph. So every block is captured once, forward and backward, at its first
use, and replayed on whichever path contains it. A block is captured together with what always runs beside it: the stem
with the blocks of the first position, a position's shortcut with each of its candidates, the head with the blocks of
the last position. The two paths of a Pi-NAS pair differ at every position, so no graph runs twice before its backward
pass.

Nothing here changes a result: the BN statistics from before the warm-up are restored, and where a graph does not fit
(another shape or precision, SyncBN, a block that still waits for its backward pass, nothing to train, too little
memory) the block runs eagerly.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pinas_zoo.dist import is_distributed
from pinas_zoo.models.captured import CapturedBlock, Run
from pinas_zoo.models.recorder import Recorder
from pinas_zoo.models.supernet import Segment, SuperNet

__all__ = ['BlockGraphs']

_logger = logging.getLogger('pinas_zoo')

#: Share of the GPU's memory that captures leave free.
RESERVE = 0.1


class BlockGraphs:
    """Runs the paths of a supernet from captured blocks; created where a network is trained, never saved with it.

    Args:
        supernet: The supernet.
        head: Module that follows it; None for none.
        recorder: Captures the graphs; the networks of one step share it.
        log: Called with one line of text at a time.
        direct: Whether a backward pass may set `grad` of the parameters itself, which takes the host less time; then
            `torch.autograd.grad` does not see the parameters. Without effect under torch.distributed.

    Shape:
        forward: (N, in_chans, H, W), an architecture -> as the head of `supernet(x, arch)`
    """

    def __init__(
        self,
        supernet: SuperNet,
        head: nn.Module | None,
        recorder: Recorder,
        log: Callable[[str], None] = _logger.info,
        direct: bool = False,
    ) -> None:
        self.direct, self.anchor = direct, torch.zeros((), requires_grad=True)
        self.supernet, self.head, self.recorder, self.log = supernet, head, recorder, log
        self.segments: dict[tuple[int, int], Segment] = {}
        self.graphs: dict[tuple[int, int, bool], CapturedBlock] = {}
        self.first: tuple[Any, ...] | None = None
        self.off = self.full = False
        self.seconds = 0.0
        self.replayed = self.eager = self.direct_runs = self.autograd_runs = 0
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
        if torch.is_inference_mode_enabled():  # what is captured there cannot be used outside
            return False
        kind = x.device.type
        if not self.recorder.serves(x.device):
            self._tell(f'CUDA graphs: {x.device} is not the current GPU (torch.cuda.set_device), it runs without them')
            return False
        autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        key = (x.shape, x.dtype, x.device, *autocast)
        if self.first is None:
            if any(isinstance(module, nn.SyncBatchNorm) for module in self.supernet.modules()):
                return self._stop('SyncBN communicates with other ranks within a block')
            self.first = key
            self.anchor = torch.zeros((), device=x.device, requires_grad=True)
            self.autocast = dict(device_type=kind, enabled=autocast[0], dtype=autocast[1])
        if key != self.first:
            self._tell(f'CUDA graphs were captured for {_describe(self.first)}; {_describe(key)} runs without them')
        return key == self.first and all(type(choice) is int for choice in arch)

    def __call__(self, x: Tensor, arch: tuple[Any, ...]) -> Tensor:
        """Runs a path on an accepted input (`accepts`): each position has one candidate."""
        grad = torch.is_grad_enabled()
        waiting: list[CapturedBlock] = []  # captured blocks that follow one another
        for position, choice in enumerate(arch):
            block = self.graphs.get((position, choice, grad))
            if block is None:
                x = self._run(waiting, x)
                block = self._capture(position, choice, grad, x)
            misfit = block.misfit(waiting[-1].output if waiting else x) if block is not None else ''
            if block is not None and not misfit:
                waiting.append(block)
            else:
                if misfit:
                    self._tell(f'CUDA graphs: a block runs without for now: {misfit}')
                segment = self.segment(position, choice)
                x = segment(self._run(waiting, x))
                self.eager += not segment.empty
        return self._run(waiting, x).clone()  # out of static memory

    def _run(self, waiting: list[CapturedBlock], x: Tensor) -> Tensor:
        """Runs the captured blocks that wait, and empties the list."""
        blocks = tuple(waiting)
        self.replayed += len(waiting)
        waiting.clear()
        if not torch.is_grad_enabled():
            for block in blocks:
                x = block.run_forward(x)
        elif blocks and self._sets_gradients(blocks):
            self._tell('CUDA graphs: backward passes set gradients directly')
            self.direct_runs += len(blocks)
            x = Run.apply(blocks, True, x, self.anchor)
        else:
            if blocks and self.direct:
                self._tell('CUDA graphs: gradients go through autograd (several ranks, hooks or an earlier batch)')
            self.autograd_runs += len(blocks)
            for block in blocks:
                x = Run.apply((block,), False, x, *block.parameters)
        return x

    def _sets_gradients(self, blocks: Sequence[CapturedBlock]) -> bool:
        """Whether the backward pass of these blocks sets `grad` itself."""
        return self.direct and not is_distributed() and not any(block.needs_autograd() for block in blocks)

    def _capture(self, position: int, choice: int, grad: bool, x: Tensor) -> CapturedBlock | None:
        segment = self.segment(position, choice)
        if segment.empty or self.full:
            return None
        if grad and not x.requires_grad and not any(p.requires_grad for p in segment.parameters()):
            return None  # frozen: without a backward pass nothing would say how long its output is needed
        if self.recorder.free_share() < RESERVE:
            self._fill(f'less than {RESERVE:.0%} of the memory is free')
            return None
        began = time.perf_counter()
        try:
            graph = CapturedBlock(segment, x, self.recorder, self.autocast)
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
