"""Candidates, and the space of architectures that choose one of them at each position."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, product
from typing import Any

import numpy as np

from pinas_zoo.space.notation import Arch, kept, read_arch, read_single, write_arch

__all__ = ['SPACES', 'Candidate', 'SearchSpace', 'get_space']


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@dataclass(frozen=True)
class Candidate:
    """One choice at a position: a split-attention bottleneck, or a skip.

    Args:
        radix: Number of splits inside a cardinal group, at least 1.
        cardinality: Number of cardinal groups, at least 1.
        base_width: Width of one cardinal group per 64 planes.
        kernel: Odd kernel size of the split-attention convolution.
        skip: The block is left out. Only possible if input and output have the same shape; the other fields
            then have no meaning.
    """

    radix: int = 1
    cardinality: int = 1
    base_width: int = 64
    kernel: int = 3
    skip: bool = False

    def __post_init__(self) -> None:
        for field in ('radix', 'cardinality', 'base_width', 'kernel'):
            value = getattr(self, field)
            if not _is_count(value):
                raise ValueError(f'Candidate.{field} must be an integer of at least 1, got {value!r}')
        if self.kernel % 2 == 0:
            raise ValueError(f'Candidate.kernel must be odd, got {self.kernel}')

    def group_width(self, planes: int) -> int:
        """Width of the 3x3 of this candidate: ``int(planes * base_width / 64) * cardinality``."""
        return int(planes * self.base_width / 64) * self.cardinality

    def attention_width(self, planes: int, least: int) -> int:
        """Hidden channels of its split attention: plain integer division, not rounded to a multiple of 8."""
        return max(self.group_width(planes) * self.radix // 4, least)


#: The four split-attention bottlenecks of the paper (radix, cardinality, base width).
PAPER_CANDIDATES = (
    Candidate(radix=1, cardinality=1, base_width=64),
    Candidate(radix=2, cardinality=1, base_width=64),
    Candidate(radix=1, cardinality=2, base_width=42),
    Candidate(radix=2, cardinality=2, base_width=40),
)


@dataclass(frozen=True)
class SearchSpace:
    """A skeleton of stages and the candidates that each of its positions picks from.

    Args:
        name: Name under which checkpoints and configs refer to the space.
        depths: Blocks per stage, one to four stages.
        planes: Bottleneck planes per stage; a stage outputs ``planes * expansion`` channels.
        strides: Stride of each stage's first block.
        stem_widths: Output channels of the stem's three convolutions.
        stem_stride: Stride of the stem's first convolution.
        stem_pool: Whether a 3x3 max-pooling of stride 2 ends the stem.
        stem_kernel: Odd kernel size of the stem's convolutions; 1 leaves the mixing of neighbours to the blocks.
        stem_patch: Side of the square patches whose pixels are the channels of one location of the stem's input; 1
            keeps the image unchanged. Height and width of images must be multiples of it.
        candidates: What a position chooses from; at most ten, since an arch has one digit per block.
        expansion: Output channels per plane.
        min_attention_width: Lower bound of the hidden channels of split attention.
        input_size: Image side in pixels that costs and default configs refer to.

    Raises:
        ValueError: A field is out of its range, or no candidate fits some position.

    Examples:
        >>> PINAS.format((3, 0, 1, 3, 2, 3, 1, 2, 0, 3, 2, 1, 3, 0, 3, 2))
        '301-3231-203213-032'
    """

    name: str
    depths: tuple[int, ...] = (3, 4, 6, 3)
    planes: tuple[int, ...] = (64, 128, 256, 512)
    strides: tuple[int, ...] = (1, 2, 2, 2)
    stem_widths: tuple[int, int, int] = (32, 32, 64)
    stem_stride: int = 2
    stem_pool: bool = True
    stem_kernel: int = 3
    stem_patch: int = 1
    candidates: tuple[Candidate, ...] = PAPER_CANDIDATES
    expansion: int = 4
    min_attention_width: int = 32
    input_size: int = 224

    def __post_init__(self) -> None:
        if not 1 <= len(self.depths) <= 4:
            raise ValueError(f'a space must have one to four stages, got depths {self.depths}')
        if not len(self.depths) == len(self.planes) == len(self.strides):
            raise ValueError(
                f'depths, planes and strides need one entry per stage, got {self.depths}, {self.planes}, {self.strides}'
            )
        for field in ('depths', 'planes', 'strides', 'stem_widths'):
            if not all(map(_is_count, getattr(self, field))):
                raise ValueError(f'{field} must be integers of at least 1, got {getattr(self, field)}')
        for field in ('stem_stride', 'stem_kernel', 'stem_patch', 'expansion', 'min_attention_width', 'input_size'):
            if not _is_count(getattr(self, field)):
                raise ValueError(f'{field} must be an integer of at least 1, got {getattr(self, field)!r}')
        if self.stem_kernel % 2 == 0:
            raise ValueError(f'stem_kernel must be odd, got {self.stem_kernel}')
        if len(self.stem_widths) != 3:
            raise ValueError(f'stem_widths must have three entries, got {self.stem_widths}')
        if not 1 <= len(self.candidates) <= 10:
            raise ValueError(f'a space must have one to ten candidates, got {len(self.candidates)}')
        if not all(self._choices):
            raise ValueError(f'{self.name}: no candidate but skip; a shape-changing position cannot be skipped')
        for planes in self.planes:
            for candidate in self.candidates:
                width, groups = candidate.group_width(planes), candidate.cardinality * candidate.radix
                if not candidate.skip and (width < 1 or width % groups):
                    raise ValueError(
                        f'{self.name}: {candidate} has {width} channels at {planes} planes, which must be a positive '
                        f'multiple of cardinality * radix = {groups}'
                    )
                hidden = candidate.attention_width(planes, self.min_attention_width)
                if not candidate.skip and hidden % candidate.cardinality:
                    raise ValueError(
                        f'{self.name}: {candidate} has an attention width of {hidden} at {planes} planes, which must '
                        f'be a multiple of its cardinality'
                    )

    @property
    def num_positions(self) -> int:
        """Number of positions, the length of an arch."""
        return sum(self.depths)

    @property
    def num_archs(self) -> int:
        """Number of architectures in the space."""
        return math.prod(map(len, self._choices))

    @property
    def num_features(self) -> int:
        """Channels of the last stage's output."""
        return self.planes[-1] * self.expansion

    @property
    def stem_reduction(self) -> int:
        """Stride of the stem's output with respect to the image."""
        return self.stem_patch * self.stem_stride * (2 if self.stem_pool else 1)

    def stage_of(self, position: int) -> tuple[int, int]:
        """Returns (stage, block within the stage) of a position, both from 0."""
        for stage, end in enumerate(accumulate(self.depths)):
            if 0 <= position < end:
                return stage, position - (end - self.depths[stage])
        raise ValueError(f'position must be in 0..{self.num_positions - 1}, got {position}')

    def in_channels(self, position: int) -> int:
        """Input channels of a position."""
        stage, block = self.stage_of(position)
        if block:
            return self.planes[stage] * self.expansion
        return self.stem_widths[-1] if stage == 0 else self.planes[stage - 1] * self.expansion

    def has_projection(self, position: int) -> bool:
        """Whether the shortcut of a position projects, because its shape changes."""
        stage, block = self.stage_of(position)
        changes = self.in_channels(position) != self.planes[stage] * self.expansion
        return block == 0 and (changes or self.strides[stage] > 1)

    def choices(self, position: int) -> tuple[int, ...]:
        """Candidate indices that fit a position: all, except skips where the shape changes."""
        self.stage_of(position)  # raises for an invalid position
        return self._choices[position]

    @cached_property
    def _choices(self) -> tuple[tuple[int, ...], ...]:
        everything = range(len(self.candidates))
        shaped = tuple(c for c in everything if not self.candidates[c].skip)
        return tuple(shaped if self.has_projection(p) else tuple(everything) for p in range(self.num_positions))

    def parse(self, arch: str | Sequence[int | Sequence[int]]) -> Arch:
        """Reads an architecture and checks it against the space.

        Args:
            arch: ``'301-3231-203213-032'``, the same without dashes, or a sequence of integers. A position that keeps
                several candidates is written in brackets, ``'3(01)1-3231-203213-032'``, or is a tuple or list.

        Returns:
            The architecture as a tuple of ints; where several are kept, an ascending tuple of them.

        Raises:
            ValueError: Wrong type, length, stage lengths or candidate; the message has what was given and what is
                allowed.
        """
        drawn = arch if isinstance(arch, tuple) and len(arch) == self.num_positions else ()
        if drawn and all(type(c) is int and c in choices for c, choices in zip(drawn, self._choices)):
            return drawn  # every step draws some: nothing to read
        return read_arch(self, arch)

    def single(self, arch: str | Sequence[int | Sequence[int]]) -> tuple[int, ...]:
        """Reads an architecture as `parse` does; a mixed path is a ValueError."""
        return read_single(self, arch)

    def format(self, arch: str | Sequence[int | Sequence[int]]) -> str:
        """Writes an architecture by stage, one digit per block, several in brackets."""
        return write_arch(self, self.parse(arch))

    def canonical(self, arch: str | Sequence[int | Sequence[int]]) -> Arch:
        """The representative of all architectures that are the same network: skips moved to the end of their stage."""
        arch = self.parse(arch)
        out: list[int | tuple[int, ...]] = []
        for depth, end in zip(self.depths, accumulate(self.depths), strict=True):
            out += sorted(arch[end - depth : end], key=lambda c: self.candidates[kept(c)[0]].skip)
        return tuple(out)

    def sample(self, rng: np.random.Generator) -> Arch:
        """Draws an architecture uniformly."""
        return tuple(int(rng.choice(choices)) for choices in self._choices)

    def distinct_pair(self, rng: np.random.Generator) -> tuple[Arch, Arch]:
        """Draws two architectures that differ at every position (paper, section 3.2: cross-path learning).

        Raises:
            ValueError: Some position has a single candidate.
        """
        pairs = []
        for position, choices in enumerate(self._choices):
            if len(choices) < 2:
                raise ValueError(f'{self.name}: position {position} has only one candidate, so no two paths can differ')
            pairs.append(rng.choice(choices, size=2, replace=False))
        first, second = zip(*pairs, strict=True)
        return tuple(map(int, first)), tuple(map(int, second))

    def all_archs(self) -> Iterator[Arch]:
        """Iterates over every architecture in lexicographic order; meant for small spaces."""
        return product(*self._choices)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint's metadata; `from_dict` reads them back.

        `stem_patch` is left out if it is 1: it was added later, and comparisons with recorded values must still hold.
        """
        values = dataclasses.asdict(self)
        if self.stem_patch == 1:
            del values['stem_patch']
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SearchSpace:
        """Rebuilds a space from `to_dict`'s values, also after a round trip through JSON.

        Raises:
            ValueError: The name is missing, a key is unknown or a value out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := set(values) - known:
            raise ValueError(f'unknown fields of a search space: {sorted(unknown)}, allowed: {sorted(known)}')
        if 'name' not in values:
            raise ValueError(f"a search space needs its field 'name', got {sorted(values)}")
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        if 'candidates' in plain:
            plain['candidates'] = tuple(Candidate(**candidate) for candidate in plain['candidates'])
        return cls(**plain)


#: Spaces by name; `pinas_zoo.space.named` defines them.
SPACES: dict[str, SearchSpace] = {}


def get_space(space: str | dict[str, Any] | SearchSpace) -> SearchSpace:
    """Returns a space given by name, by its `to_dict` values, or as itself.

    Raises:
        ValueError: The name is unknown or the type is wrong; the message lists the known names.
    """
    if isinstance(space, SearchSpace):
        return space
    if isinstance(space, dict):
        return SearchSpace.from_dict(space)
    if not isinstance(space, str) or space not in SPACES:
        raise ValueError(f'unknown search space {space!r}, allowed: {sorted(SPACES)} or a dict of its fields')
    return SPACES[space]
