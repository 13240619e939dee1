"""An architecture drawn as inline SVG: one row per stage, one box per block. No matplotlib."""

from __future__ import annotations

import math
from html import escape

from pinas_zoo.report.figures import Figure
from pinas_zoo.space import Arch, SearchSpace

#: Fill colours of the candidates; black text is readable on all of them.
FILLS = (
    '#a9d0f5', '#ffcf9c', '#b5e3c0', '#f5b5c8', '#d9c5f2', '#f2e394', '#a8e0e0', '#e3c4a8', '#cfd6dd', '#e6e6e6',
)  # fmt: skip


def arch_figure(
    space: SearchSpace, arch: str | Arch, *, size: tuple[int, int] | None = None, caption: str = ''
) -> Figure:
    """Draws an architecture: one row per stage, one box per block, coloured by candidate.

    Args:
        space: Space of the architecture.
        arch: The architecture.
        size: Height and width of the images in px; None for squares of the space's `input_size`.
        caption: Line below the figure; the architecture's name if empty.

    Raises:
        ValueError: The architecture is not in the space.

    Examples:
        >>> from pinas_zoo.space import PINAS
        >>> arch_figure(PINAS, '301-3231-203213-032').caption
        'Architecture 301-3231-203213-032'
    """
    arch, name = space.single(arch), space.format(arch)
    width, box, gap = 366, 52, 10
    per_row = (width + gap) // (box + gap)
    out: list[str] = []
    y = 8
    stem = '-'.join(map(str, space.stem_widths))
    pool = ', max pool 3×3' if space.stem_pool else ''
    kernel = f'{space.stem_kernel}×{space.stem_kernel}'
    patch = f'patches of {space.stem_patch} px, ' if space.stem_patch > 1 else ''
    y = _bar(out, y, width, f'Stem: {patch}{kernel} conv {stem}, stride {space.stem_stride}{pool}')
    position, reduction = 0, space.stem_reduction
    for stage, depth in enumerate(space.depths):
        reduction *= space.strides[stage]
        height, breadth = (math.ceil(side / reduction) for side in size or (space.input_size, space.input_size))
        channels = space.planes[stage] * space.expansion
        out.append(
            f'<text x="0" y="{y + 20}" font-size="13" font-weight="600">Stage {stage + 1}</text>'
            f'<text x="{width}" y="{y + 20}" font-size="12" text-anchor="end" opacity=".75">'
            f'{channels} channels · {height} × {breadth} px</text>'
        )
        y += 28
        for block in range(depth):
            row, column = divmod(block, per_row)
            x, top = column * (box + gap), y + row * (box + gap)
            if column:
                out.append(f'<path d="M{x - gap} {top + box / 2}h{gap}" stroke="currentColor" stroke-width="2"/>')
            out.append(_box(space, position, arch[position], x, top, box))
            position += 1
        y += -(-depth // per_row) * (box + gap)
    y = _bar(out, y + 4, width, f'Global average pool: {space.num_features} features')
    y = _legend(out, space, arch, y + 6)
    svg = (
        f'<svg viewBox="-2 0 {width + 4} {y}" font-family="system-ui, sans-serif" fill="currentColor" '
        f'stroke="none">{"".join(out)}</svg>'
    )
    return Figure(caption or f'Architecture {name}', svg, alt=f'Architecture {name} of space {space.name}')


def _bar(out: list[str], y: int, width: int, text: str) -> int:
    out.append(
        f'<rect x="0" y="{y}" width="{width}" height="28" rx="6" fill="none" stroke="currentColor" opacity=".5"/>'
        f'<text x="{width / 2}" y="{y + 19}" font-size="12" text-anchor="middle">{escape(text)}</text>'
    )
    return y + 34


def _box(space: SearchSpace, position: int, index: int, x: float, y: float, size: int) -> str:
    candidate, middle = space.candidates[index], x + size / 2
    skip = space.is_skip(position, index)
    dash = ' stroke-dasharray="4 3"' if skip else ''
    lines = ('skip',) if skip else candidate.label()
    texts = ''.join(
        f'<text x="{middle}" y="{y + 32 + 14 * i}" font-size="12">{escape(text)}</text>' for i, text in enumerate(lines)
    )
    return (
        f'<rect x="{x}" y="{y}" width="{size}" height="{size}" rx="8" fill="{FILLS[index]}" stroke="#0006"{dash}/>'
        f'<g fill="#111" text-anchor="middle"><text x="{middle}" y="{y + 18}" font-size="15" '
        f'font-weight="700">{index}</text>{texts}</g>'
    )


def _legend(out: list[str], space: SearchSpace, arch: Arch, y: int) -> int:
    texts = []
    for index, candidate in enumerate(space.candidates):
        what = 'skip' if candidate.skip and not candidate.projects else candidate.words()
        texts.append(f'{index}: {what} · {arch.count(index)} of {len(arch)} blocks')
    font = 12 if max(map(len, texts)) < 54 else 10.5  # the longest line still ends within the drawing
    for index, text in enumerate(texts):
        out.append(
            f'<rect x="0" y="{y}" width="14" height="14" rx="3" fill="{FILLS[index]}" stroke="#0006"/>'
            f'<text x="22" y="{y + 12}" font-size="{font}">{escape(text)}</text>'
        )
        y += 22
    return y
