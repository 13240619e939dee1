"""Architectures as values and as text, checked against a space.

An architecture is written by stage, one digit per block: ``301-3231-203213-032`` is the paper's Pi-NAS-cls. A position
of a mixed path keeps several candidates, in brackets: ``3(01)1-3231-203213-032``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pinas_zoo.space.search_space import SearchSpace

__all__ = ['Arch', 'kept', 'malformed', 'read_arch', 'read_single', 'write_arch']

#: One entry per position: the candidate, or the several (ascending) that a position of a mixed path keeps.
Arch = tuple[int | tuple[int, ...], ...]

_BLOCK = re.compile(r'([0-9])|\(([0-9]+)\)')
_STAGE = re.compile(r'(?:[0-9]|\([0-9]+\))+')


def kept(choice: int | tuple[int, ...]) -> tuple[int, ...]:
    """The candidates that an entry of an arch keeps: one, or several in a mixed path."""
    return choice if isinstance(choice, tuple) else (choice,)


def read_arch(space: SearchSpace, arch: str | Sequence[int | Sequence[int]]) -> Arch:
    """Reads an architecture and checks it; see `SearchSpace.parse`.

    Raises:
        ValueError: Wrong type, length, stage lengths or candidate.
    """
    if isinstance(arch, str):
        parts = arch.strip().split('-')
        if not all(map(_STAGE.fullmatch, parts)):
            why = 'only digits, dashes between stages, and brackets around several digits are allowed'
            raise malformed(space, arch, why)
        stages = [[int(m[1]) if m[1] else tuple(map(int, m[2])) for m in _BLOCK.finditer(part)] for part in parts]
        if len(stages) > 1 and tuple(map(len, stages)) != space.depths:
            raise malformed(space, arch, f'its stages have {tuple(map(len, stages))} blocks')
        digits: tuple[Any, ...] = tuple(digit for stage in stages for digit in stage)
    elif isinstance(arch, (tuple, list, np.ndarray)):
        digits = tuple(arch)
    else:
        raise malformed(space, arch, f'its type is {type(arch).__name__}')
    if len(digits) != space.num_positions:
        raise malformed(space, arch, f'it has {len(digits)} positions')
    return tuple(
        _several(space, position, digit, arch)
        if isinstance(digit, (tuple, list))
        else _one(space, position, digit, digit, arch)
        for position, digit in enumerate(digits)
    )


def _one(space: SearchSpace, position: int, digit: Any, entry: Any, came: object) -> int:
    """A candidate index at a position, from the entry that contains it."""
    if isinstance(digit, bool) or not isinstance(digit, (int, np.integer)):
        raise malformed(space, came, f'position {position} is {entry!r}, not an integer')
    if int(digit) not in (choices := space.choices(position)):
        raise malformed(space, came, f'position {position} is {entry}, allowed there: {choices}')
    return int(digit)


def _several(space: SearchSpace, position: int, digits: Sequence[Any], came: object) -> tuple[int, ...]:
    choices = tuple(sorted(_one(space, position, digit, digits, came) for digit in digits))
    if len(choices) < 2 or len(set(choices)) < len(choices):
        why = f'position {position} is {digits}, brackets keep at least two different candidates'
        raise malformed(space, came, why)
    if any(space.is_skip(position, choice) for choice in choices):
        raise malformed(space, came, f'position {position} is {digits}, a skip adds nothing to its neighbours')
    return choices


def read_single(space: SearchSpace, arch: str | Sequence[int | Sequence[int]]) -> tuple[int, ...]:
    """Reads an architecture that is a single path.

    Raises:
        ValueError: The architecture is malformed, or some position keeps several candidates.
    """
    single: list[int] = []
    for position, choice in enumerate(space.parse(arch)):
        if isinstance(choice, tuple):
            why = f'position {position} keeps {len(choice)} candidates, but only one per position is allowed here'
            raise malformed(space, arch, why)
        single.append(choice)
    return tuple(single)


def write_arch(space: SearchSpace, arch: Arch) -> str:
    """An architecture by stage, one digit per block, several in brackets; inverse of `read_arch`."""
    blocks = [f'({"".join(map(str, c))})' if isinstance(c, tuple) else str(c) for c in arch]
    ends = list(accumulate(space.depths))
    return '-'.join(''.join(blocks[end - depth : end]) for depth, end in zip(space.depths, ends, strict=True))


def malformed(space: SearchSpace, came: object, why: str) -> ValueError:
    """The error for what is not an architecture of a space: the value, the reason, what is allowed."""
    stages = '-'.join('d' * depth for depth in space.depths)
    return ValueError(
        f'{came!r} is not an architecture of space {space.name!r}: {why}; allowed: {space.num_positions} digits '
        f'of 0..{len(space.candidates) - 1}, by stage {stages}, or a sequence of as many integers; '
        'several candidates of one position are put in brackets, as in (01)'
    )
