"""Damaged copies of a good file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from tally import tally

#: Copies per reader.
MUTATIONS = 200


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Truncates, flips bits, repeats, deletes or exchanges a piece."""
    kind = rng.integers(6)
    first, second = np.sort(rng.integers(0, len(content) + 1, 2)).tolist()
    if kind == 0:
        return content[:first]
    if kind == 1:
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), rng.integers(1, 8)):
            damaged[place] ^= 1 << int(rng.integers(8))
        return bytes(damaged)
    if kind == 2:
        return content[:second] + content[first:]
    if kind == 3:
        return content[:first] + content[second:]
    lines = content.split(b'\n')
    a, b = rng.integers(0, len(lines), 2)
    if kind == 4:
        lines[a], lines[b] = lines[b], lines[a]
    else:
        lines.insert(int(a), lines[b])
    return b'\n'.join(lines)


def refusals(path: Path, read: Callable[[], object], name: Callable[[str], bool], what: str = '') -> int:
    """Reads 200 damaged copies of a file; any error but a ValueError ends the test.

    Args:
        path: The good file, which is overwritten.
        read: Reads it.
        name: Whether an error line names the file.
        what: Its name in the counts; default that of the file.

    Returns:
        How many were refused.
    """
    good, rng, refused = path.read_bytes(), np.random.default_rng(7), 0
    read()
    for number in range(MUTATIONS):
        path.write_bytes(mutate(good, rng))
        line = ''
        try:
            read()
        except ValueError as error:  # BadInputError, BrokenImageError and others are ValueErrors
            line = str(error)
            assert name(line), f'{number}: {error!r}'
        refused += bool(line)
        tally(f'damaged {what or path.name}', bool(line))
    return refused
