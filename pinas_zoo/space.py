"""The search space: candidates, positions and architectures. Pure Python and numpy, no torch.

An architecture (`Arch`) is a tuple with one candidate index per position. It is written by stage, one digit per
block: ``301-3231-203213-032`` is the paper's Pi-NAS-cls. A position of a mixed path keeps several candidates, in
brackets: ``3(01)1-3231-203213-032``. A space is data: the paper's is the value `PINAS`, and any
other skeleton or candidate list is another `SearchSpace` value.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, product
from typing import Any

import numpy as np

__all__ = [
    'PINAS',
    'PINAS_NANO',
    'PINAS_PATCH',
    'PINAS_TINY',
    'SPACES',
    'Arch',
    'Candidate',
    'SearchSpace',
    'get_space',
    'kept',
]

#: One entry per position: the candidate, or the several (ascending) that a position of a mixed path keeps.
Arch = tuple[int | tuple[int, ...], ...]

_BLOCK = re.compile(r'([0-9])|\(([0-9]+)\)')
_STAGE = re.compile(r'(?:[0-9]|\([0-9]+\))+')


def kept(choice: int | tuple[int, ...]) -> tuple[int, ...]:
    """The candidates that an entry of an arch keeps: one, or several in a mixed path."""
    return choice if isinstance(choice, tuple) else (choice,)


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

    # ---- the skeleton -------------------------------------------------------------------------------------------

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

    # ---- architectures ------------------------------------------------------------------------------------------

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
        if isinstance(arch, str):
            parts = arch.strip().split('-')
            if not all(map(_STAGE.fullmatch, parts)):
                why = 'only digits, dashes between stages, and brackets around several digits are allowed'
                raise self._malformed(arch, why)
            stages = [[int(m[1]) if m[1] else tuple(map(int, m[2])) for m in _BLOCK.finditer(part)] for part in parts]
            if len(stages) > 1 and tuple(map(len, stages)) != self.depths:
                raise self._malformed(arch, f'its stages have {tuple(map(len, stages))} blocks')
            digits: tuple[Any, ...] = tuple(digit for stage in stages for digit in stage)
        elif isinstance(arch, (tuple, list, np.ndarray)):
            digits = tuple(arch)
        else:
            raise self._malformed(arch, f'its type is {type(arch).__name__}')
        return self._validate(digits, arch)

    def _validate(self, digits: tuple[Any, ...], came: object) -> Arch:
        if len(digits) != self.num_positions:
            raise self._malformed(came, f'it has {len(digits)} positions')
        return tuple(
            self._several(position, digit, came)
            if isinstance(digit, (tuple, list))
            else self._one(position, digit, digit, came)
            for position, digit in enumerate(digits)
        )

    def _one(self, position: int, digit: Any, entry: Any, came: object) -> int:
        """A candidate index at a position, from the entry that contains it."""
        if isinstance(digit, bool) or not isinstance(digit, (int, np.integer)):
            raise self._malformed(came, f'position {position} is {entry!r}, not an integer')
        if int(digit) not in self._choices[position]:
            raise self._malformed(came, f'position {position} is {entry}, allowed there: {self._choices[position]}')
        return int(digit)

    def _several(self, position: int, digits: Sequence[Any], came: object) -> tuple[int, ...]:
        choices = tuple(sorted(self._one(position, digit, digits, came) for digit in digits))
        if len(choices) < 2 or len(set(choices)) < len(choices):
            why = f'position {position} is {digits}, brackets keep at least two different candidates'
            raise self._malformed(came, why)
        if any(self.candidates[choice].skip for choice in choices):
            raise self._malformed(came, f'position {position} is {digits}, a skip adds nothing to its neighbours')
        return choices

    def single(self, arch: str | Sequence[int | Sequence[int]]) -> tuple[int, ...]:
        """Reads an architecture as `parse` does, and refuses a mixed path.

        Raises:
            ValueError: The architecture is malformed, or some position keeps several candidates.
        """
        single: list[int] = []
        for position, choice in enumerate(self.parse(arch)):
            if isinstance(choice, tuple):
                why = f'position {position} keeps {len(choice)} candidates, but only one per position is allowed here'
                raise self._malformed(arch, why)
            single.append(choice)
        return tuple(single)

    def _malformed(self, came: object, why: str) -> ValueError:
        stages = '-'.join('d' * depth for depth in self.depths)
        return ValueError(
            f'{came!r} is not an architecture of space {self.name!r}: {why}; allowed: {self.num_positions} digits '
            f'of 0..{len(self.candidates) - 1}, by stage {stages}, or a sequence of as many integers; '
            'several candidates of one position are put in brackets, as in (01)'
        )

    def format(self, arch: str | Sequence[int | Sequence[int]]) -> str:
        """Writes an architecture by stage, one digit per block, several in brackets."""
        blocks = [f'({"".join(map(str, c))})' if isinstance(c, tuple) else str(c) for c in self.parse(arch)]
        ends = list(accumulate(self.depths))
        return '-'.join(''.join(blocks[end - depth : end]) for depth, end in zip(self.depths, ends, strict=True))

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

    def mutate(self, arch: Arch, rng: np.random.Generator, probability: float = 0.1) -> Arch:
        """Redraws each position with a probability, among the other candidates; at least one position changes.

        Raises:
            ValueError: The probability is outside 0..1, or no position has a second candidate.
        """
        if not 0 <= probability <= 1:
            raise ValueError(f'probability must be in 0..1, got {probability}')
        arch = self.parse(arch)
        free = [p for p, choices in enumerate(self._choices) if len(choices) > 1]
        if not free:
            raise ValueError(f'{self.name} has only one architecture, so nothing can mutate')
        chosen = [p for p in free if rng.random() < probability] or [int(rng.choice(free))]
        out = list(arch)
        for position in chosen:
            out[position] = int(rng.choice([c for c in self._choices[position] if c != arch[position]]))
        return tuple(out)

    def cross(self, first: Arch, second: Arch, rng: np.random.Generator) -> Arch:
        """Uniform crossover: every position comes from one of the two parents."""
        take_first = rng.random(self.num_positions) < 0.5
        pairs = zip(self.parse(first), self.parse(second), take_first, strict=True)
        return tuple(a if take else b for a, b, take in pairs)

    def one_hot(self, archs: Sequence[Arch]) -> np.ndarray:
        """Encodes architectures as rows of zeros and ones, with a one for each candidate that a position keeps.

        Shape:
            Output: (len(archs), num_positions * num candidates), uint8.
        """
        code = np.zeros((len(archs), self.num_positions, len(self.candidates)), dtype=np.uint8)
        for rows, arch in zip(code, archs, strict=True):
            for row, choice in zip(rows, self.parse(arch), strict=True):
                row[kept(choice),] = 1
        return code.reshape(len(archs), self.num_positions * len(self.candidates))

    def all_archs(self) -> Iterator[Arch]:
        """Iterates over every architecture in lexicographic order; meant for small spaces."""
        return product(*self._choices)

    # ---- metadata -----------------------------------------------------------------------------------------------

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


#: The paper's space: 4^16 architectures on the ResNeSt-50 skeleton.
PINAS = SearchSpace('pinas')
#: A space for CPUs: 28-32 px images, 4^8 architectures, well under 1 M parameters per path.
PINAS_NANO = SearchSpace(
    'pinas_nano',
    depths=(2, 2, 2, 2),
    planes=(16, 32, 64, 96),
    stem_widths=(16, 16, 32),
    stem_pool=False,
    input_size=28,
)
#: The paper's depths at a quarter of its width, for golden tensors and tests.
PINAS_TINY = SearchSpace('pinas_tiny', planes=(16, 32, 64, 128), stem_widths=(8, 8, 16), input_size=64)

#: The ranking study's space behind a patch stem, for plain images: 4 positions, 625 architectures of different kinds,
#: three of the candidates at equal cost. The stem sees single patches, so that only the candidates mix neighbours:
#: two narrow ones with kernels of 1 and 3, and three of about equal cost with kernels of 1, 3 and 5. None
#: is a skip, which not every method can rank. docs/ranking_truth.md describes the designs that were tried.
PINAS_PATCH = SearchSpace(
    'pinas_patch',
    depths=(2, 2),
    planes=(16, 32),
    strides=(1, 2),
    stem_widths=(16, 16, 16),
    stem_stride=1,
    stem_pool=False,
    stem_kernel=1,
    stem_patch=4,
    candidates=(
        Candidate(kernel=1, base_width=16),
        Candidate(base_width=16),
        Candidate(kernel=1, base_width=128),
        Candidate(),
        Candidate(cardinality=2, base_width=28, kernel=5),
    ),
    expansion=2,
    min_attention_width=8,
    input_size=20,
)

SPACES = {space.name: space for space in (PINAS, PINAS_NANO, PINAS_PATCH, PINAS_TINY)}


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
