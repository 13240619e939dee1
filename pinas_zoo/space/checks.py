"""Which values make up a search space."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pinas_zoo.space.candidates import is_count

if TYPE_CHECKING:
    from pinas_zoo.space.search_space import Candidate, SearchSpace

__all__ = ['check_bottleneck', 'check_space']


def check_space(space: SearchSpace) -> None:
    """Checks the fields of a space.

    Raises:
        ValueError: A field is out of its range, or no candidate fits some position.
    """
    if not 1 <= len(space.depths) <= 4:
        raise ValueError(f'a space must have one to four stages, got depths {space.depths}')
    if not len(space.depths) == len(space.planes) == len(space.strides):
        raise ValueError(
            f'depths, planes and strides need one entry per stage, got {space.depths}, {space.planes}, {space.strides}'
        )
    for field in ('depths', 'planes', 'strides', 'stem_widths'):
        if not all(map(is_count, getattr(space, field))):
            raise ValueError(f'{field} must be integers of at least 1, got {getattr(space, field)}')
    for field in ('stem_stride', 'stem_kernel', 'stem_patch', 'expansion', 'min_attention_width', 'input_size'):
        if not is_count(getattr(space, field)):
            raise ValueError(f'{field} must be an integer of at least 1, got {getattr(space, field)!r}')
    if space.final_width != 0 and not is_count(space.final_width):
        raise ValueError(f'final_width must be an integer of at least 0, got {space.final_width!r}')
    if space.stem_kernel % 2 == 0:
        raise ValueError(f'stem_kernel must be odd, got {space.stem_kernel}')
    if not 1 <= len(space.stem_widths) <= 3:
        raise ValueError(f'stem_widths must have one to three entries, got {space.stem_widths}')
    if not 1 <= len(space.candidates) <= 10:
        raise ValueError(f'a space must have one to ten candidates, got {len(space.candidates)}')
    if not all(space.choices(position) for position in range(space.num_positions)):
        raise ValueError(f'{space.name}: no candidate but skip; a shape-changing position cannot be skipped')
    for candidate in space.candidates:
        candidate.check(space)


def check_bottleneck(candidate: Candidate, space: SearchSpace) -> None:
    """Checks that the groups of a bottleneck divide its widths in every stage of a space.

    Raises:
        ValueError: They do not.
    """
    for planes in () if candidate.skip else space.planes:
        width, groups = candidate.group_width(planes), candidate.cardinality * candidate.radix
        if width < 1 or width % groups:
            raise ValueError(
                f'{space.name}: {candidate} has {width} channels at {planes} planes, which must be a positive '
                f'multiple of cardinality * radix = {groups}'
            )
        hidden = candidate.attention_width(planes, space.min_attention_width)
        if hidden % candidate.cardinality:
            raise ValueError(
                f'{space.name}: {candidate} has an attention width of {hidden} at {planes} planes, which must '
                f'be a multiple of its cardinality'
            )
