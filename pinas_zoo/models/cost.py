"""What an architecture costs: MACs and parameters from a table. Latency: `models/latency.py`.

MACs count convolutions and linear layers only, for one image, as `torch.utils.flop_counter` / 2 does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pinas_zoo.models.mixed import make_block
from pinas_zoo.models.network import stage_geometry
from pinas_zoo.space import PINAS, Candidate, InvertedResidual, SearchSpace, kept

__all__ = ['Cost', 'CostTable', 'count']

#: Height and width in pixels.
Size = tuple[int, int]
PIXEL: Size = (1, 1)


@dataclass(frozen=True)
class Cost:
    """MACs of one image, and parameters; plain counts."""

    macs: int = 0
    params: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.macs + other.macs, self.params + other.params)

    def __str__(self) -> str:
        return f'{self.params / 1e6:.3f} M parameters, {self.macs / 1e9:.4f} GMACs'


def _conv(size: Size, kernel: int, inputs: int, outputs: int, groups: int = 1, bias: bool = False) -> Cost:
    weights = kernel * kernel * inputs // groups * outputs
    return Cost(size[0] * size[1] * weights, weights + (outputs if bias else 0))


def _strided(size: Size, stride: int) -> Size:
    return -(-size[0] // stride), -(-size[1] // stride)


def _norm(channels: int) -> Cost:
    return Cost(0, 2 * channels)


@dataclass(frozen=True)
class CostTable:
    """Costs of every candidate at every position of a space, from the shapes alone.

    Args:
        space: The space.
        size: Image side in pixels, or height and width.
        num_classes: Classes of the linear layer; 0 leaves it out.
        in_chans: Image channels.
        output_stride: 8, 16 or 32, as for `PiNASNet`.

    Examples:
        >>> print(CostTable(PINAS).of('301-3231-203213-032'))
        27.046 M parameters, 5.3323 GMACs
    """

    space: SearchSpace = PINAS
    size: int | Size = 224
    num_classes: int = 1000
    in_chans: int = 3
    output_stride: int = 32

    @cached_property
    def fixed(self) -> Cost:
        """Stem, shortcuts, final convolution and classifier: the parts that every architecture has."""
        size, kernel = self._stem_size, self.space.stem_kernel
        cost, channels = Cost(), self.in_chans * self.space.stem_patch**2
        for width in self.space.stem_widths:
            cost += _conv(size, kernel, channels, width) + _norm(width)
            channels = width
        for position in range(self.space.num_positions):
            if self._always_projects(position):
                cost += self._projection(position)
        if self.space.final_width:
            _, size = self._sizes(self.space.num_positions - 1)
            channels = self.space.out_channels(self.space.num_positions - 1)
            cost += _conv(size, 1, channels, self.space.final_width) + _norm(self.space.final_width)
        if self.num_classes:
            cost += _conv(PIXEL, 1, self.space.num_features, self.num_classes, bias=True)
        return cost

    @cached_property
    def table(self) -> tuple[tuple[Cost, ...], ...]:
        """``table[position][candidate]``: cost of the block without what is in `fixed`; zero for a skip."""
        count = len(self.space.candidates)
        return tuple(
            tuple(self._block(position, choice) for choice in range(count))
            for position in range(self.space.num_positions)
        )

    def of(self, arch: str | Sequence[int | Sequence[int]]) -> Cost:
        """Cost of one architecture, summed over its positions; each candidate of a mixed position has one factor more.

        Raises:
            ValueError: The architecture is malformed.
        """
        cost = self.fixed
        for position, choice in enumerate(self.space.parse(arch)):
            cost = sum((self.table[position][one] for one in kept(choice)), cost)
            if isinstance(choice, tuple):
                cost += Cost(0, len(choice))
                sharing = sum(self.space.shares(position, one) for one in choice)
                if sharing > 1 and not self._always_projects(position):  # they share one projection
                    shared = self._projection(position)
                    cost += Cost((1 - sharing) * shared.macs, (1 - sharing) * shared.params)
        return cost

    def _always_projects(self, position: int) -> bool:
        """Whether every candidate of a position is added to the shared projection."""
        return all(self.space.shares(position, choice) for choice in self.space.choices(position))

    def _projection(self, position: int) -> Cost:
        """Cost of the shared projection of a position."""
        outputs = self.space.out_channels(position)
        _, size = self._sizes(position)
        return _conv(size, 1, self.space.in_channels(position), outputs) + _norm(outputs)

    @property
    def _stem_size(self) -> Size:
        """Output size of the stem's convolutions."""
        full = (self.size, self.size) if isinstance(self.size, int) else self.size
        return _strided(_strided(full, self.space.stem_patch), self.space.stem_stride)

    def _sizes(self, position: int) -> tuple[Size, Size]:
        """Input and output sizes of a position."""
        stage, block = self.space.stage_of(position)
        size = _strided(self._stem_size, 2 if self.space.stem_pool else 1)
        strides = [stride for stride, *_ in stage_geometry(self.space, self.output_stride)]
        for stride in strides[:stage]:
            size = _strided(size, stride)
        output = _strided(size, strides[stage])
        return (size if block == 0 else output), output

    def _block(self, position: int, choice: int) -> Cost:
        candidate, space = self.space.candidates[choice], self.space
        if choice not in space.choices(position) or space.is_skip(position, choice):
            return Cost()
        if isinstance(candidate, Candidate):
            cost = self._bottleneck(position, candidate)
        elif isinstance(candidate, InvertedResidual):
            cost = self._inverted_residual(position, candidate)
        else:
            cost = self._counted(position, choice)
        projects = space.shares(position, choice) and not self._always_projects(position)
        return cost + self._projection(position) if projects else cost

    def _counted(self, position: int, choice: int) -> Cost:
        """By counting the block, on the meta device: for kinds without a formula here."""
        size, output = self._sizes(position)
        with torch.device('meta'):
            block = make_block(self.space, position, choice, stride=-(-size[0] // output[0]))
        return count(block, size, self.space.in_channels(position))

    def _inverted_residual(self, position: int, candidate: InvertedResidual) -> Cost:
        size, output = self._sizes(position)
        inputs, outputs = self.space.in_channels(position), self.space.out_channels(position)
        hidden = inputs * candidate.expansion
        cost = _conv(output, candidate.kernel, hidden, hidden, hidden) + _norm(hidden)
        cost += _conv(output, 1, hidden, outputs) + _norm(outputs)
        if candidate.expansion > 1:
            cost += _conv(size, 1, inputs, hidden) + _norm(hidden)
        if candidate.se:
            squeezed = candidate.se_width(hidden)
            cost += _conv(PIXEL, 1, hidden, squeezed, bias=True) + _conv(PIXEL, 1, squeezed, hidden, bias=True)
        return cost

    def _bottleneck(self, position: int, candidate: Candidate) -> Cost:
        space = self.space
        planes = space.planes[space.stage_of(position)[0]]
        width, splits = candidate.group_width(planes), candidate.group_width(planes) * candidate.radix
        hidden = candidate.attention_width(planes, space.min_attention_width)
        size, output = self._sizes(position)
        groups = candidate.cardinality
        return (
            _conv(size, 1, space.in_channels(position), width)
            + _norm(width)
            # The 3x3 works at the input's resolution; the stride is that of the average pooling after it.
            + _conv(size, candidate.kernel, width, splits, groups * candidate.radix)
            + _norm(splits)
            + _conv(PIXEL, 1, width, hidden, groups, bias=True)
            + _norm(hidden)
            + _conv(PIXEL, 1, hidden, splits, groups, bias=True)
            + _conv(output, 1, width, space.out_channels(position))
            + _norm(space.out_channels(position))
        )


@torch.no_grad()
def count(model: nn.Module, size: int | Size = 224, in_chans: int = 3) -> Cost:
    """Counts a built model on one image: convolutions and linear layers only."""
    reference, training = next(model.parameters(), torch.empty(0)), model.training
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.zeros(1, in_chans, height, width, device=reference.device, dtype=reference.dtype)
    model.eval()
    with FlopCounterMode(display=False) as counter:
        model(images)
    model.train(training)
    return Cost(counter.get_total_flops() // 2, sum(p.numel() for p in model.parameters()))
