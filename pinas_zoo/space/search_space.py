"""Candidates, and the space of architectures that choose one of them at each position."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, product
from typing import Any, ClassVar

import numpy as np

from pinas_zoo.space.candidates import BOTTLENECK, KINDS, CandidateKind, is_count, read_candidate, write_candidate
from pinas_zoo.space.checks import check_bottleneck, check_space
from pinas_zoo.space.notation import Arch, kept, read_arch, read_single, write_arch

__all__ = ['SPACES', 'Candidate', 'SearchSpace', 'get_space']


@dataclass(frozen=True)
class Candidate(CandidateKind):
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

    kind: ClassVar[str] = BOTTLENECK
    shares_shortcut: ClassVar[bool] = True
    activates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for field in ('radix', 'cardinality', 'base_width', 'kernel'):
            value = getattr(self, field)
            if not is_count(value):
                raise ValueError(f'Candidate.{field} must be an integer of at least 1, got {value!r}')
        if self.kernel % 2 == 0:
            raise ValueError(f'Candidate.kernel must be odd, got {self.kernel}')

    def group_width(self, planes: int) -> int:
        """Width of the 3x3 of this candidate: ``int(planes * base_width / 64) * cardinality``."""
        return int(planes * self.base_width / 64) * self.cardinality

    def attention_width(self, planes: int, least: int) -> int:
        """Hidden channels of its split attention: plain integer division, not rounded to a multiple of 8."""
        return max(self.group_width(planes) * self.radix // 4, least)

    def check(self, space: SearchSpace) -> None:
        check_bottleneck(self, space)

    def words(self) -> str:
        kernel = f', kernel {self.kernel}' if self.kernel != 3 else ''
        return f'radix {self.radix}, cardinality {self.cardinality}, width {self.base_width}{kernel}'

    def label(self) -> tuple[str, ...]:
        kernel = f' k{self.kernel}' if self.kernel != 3 else ''
        return f'r{self.radix} c{self.cardinality}', f'w{self.base_width}{kernel}'


KINDS[BOTTLENECK] = Candidate

#: Fields of a space that older files do not have, with their defaults.
LATER = {'stem_patch': 1, 'final_width': 0}

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
        stem_widths: Output channels of the stem's convolutions, one to three.
        stem_stride: Stride of the stem's first convolution.
        stem_pool: Whether a 3x3 max-pooling of stride 2 ends the stem.
        stem_kernel: Odd kernel size of the stem's convolutions; 1 leaves the mixing of neighbours to the blocks.
        stem_patch: Side of the square patches whose pixels are the channels of one location of the stem's input; 1
            keeps the image unchanged. Height and width of images must be multiples of it.
        candidates: What a position chooses from; at most ten, since an arch has one digit per block.
        expansion: Output channels per plane.
        min_attention_width: Lower bound of the hidden channels of split attention.
        input_size: Image side in pixels that costs and default configs refer to.
        final_width: Channels of a 1x1 convolution with BN and activation after the last stage; 0 for none.

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
    stem_widths: tuple[int, ...] = (32, 32, 64)
    stem_stride: int = 2
    stem_pool: bool = True
    stem_kernel: int = 3
    stem_patch: int = 1
    candidates: tuple[CandidateKind, ...] = PAPER_CANDIDATES
    expansion: int = 4
    min_attention_width: int = 32
    input_size: int = 224
    final_width: int = 0

    def __post_init__(self) -> None:
        check_space(self)

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
        """Channels of the network's features: those of the last stage, or of the convolution after it."""
        return self.final_width or self.planes[-1] * self.expansion

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

    def out_channels(self, position: int) -> int:
        """Output channels of a position."""
        return self.planes[self.stage_of(position)[0]] * self.expansion

    def changes_shape(self, position: int) -> bool:
        """Whether the output of a position has another shape than its input."""
        stage, block = self.stage_of(position)
        changes = self.in_channels(position) != self.out_channels(position)
        return block == 0 and (changes or self.strides[stage] > 1)

    def has_projection(self, position: int) -> bool:
        """Whether a position has a projection that candidates share: its shape changes, and one of them needs it."""
        return self.changes_shape(position) and any(self.shares(position, choice) for choice in self.choices(position))

    def shares(self, position: int, choice: int | tuple[int, ...]) -> bool:
        """Whether a candidate, or one of several, adds its branch to the shared projection of a position."""
        choices = choice if isinstance(choice, tuple) else (choice,)
        return self.changes_shape(position) and any(self.candidates[c].shares_shortcut for c in choices)

    def is_skip(self, position: int, choice: int) -> bool:
        """Whether a candidate leaves the block out at a position."""
        return self.candidates[choice].skip and not self.changes_shape(position)

    def choices(self, position: int) -> tuple[int, ...]:
        """Candidate indices that fit a position: all, except skips without a projection where the shape changes."""
        self.stage_of(position)  # raises for an invalid position
        return self._choices[position]

    @cached_property
    def _choices(self) -> tuple[tuple[int, ...], ...]:
        everything = tuple(range(len(self.candidates)))
        shaped = tuple(c for c in everything if not self.candidates[c].skip or self.candidates[c].projects)
        return tuple(shaped if self.changes_shape(p) else everything for p in range(self.num_positions))

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
            places = sorted(range(end - depth, end), key=lambda p: self.is_skip(p, kept(arch[p])[0]))
            out += [arch[place] for place in places]
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
        """Plain values for metadata, for `from_dict`; without those of `LATER`, so that recorded ones stay equal."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values['candidates'] = tuple(map(write_candidate, self.candidates))
        return {name: value for name, value in values.items() if name not in LATER or value != LATER[name]}

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
            plain['candidates'] = tuple(map(read_candidate, plain['candidates']))
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
