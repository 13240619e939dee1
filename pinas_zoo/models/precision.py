"""Precisions of forward passes: float32, or a half type under autocast."""

from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ['PRECISIONS', 'autocast', 'half_type']

PRECISIONS: dict[str, torch.dtype | None] = {'float32': None, 'bfloat16': torch.bfloat16, 'float16': torch.float16}


def half_type(precision: str) -> torch.dtype | None:
    """The half type that a precision names; None for float32.

    Raises:
        ValueError: The precision is unknown.
    """
    if precision not in PRECISIONS:
        raise ValueError(f'precision={precision!r}, allowed: {", ".join(PRECISIONS)}')
    return PRECISIONS[precision]


def autocast(device_type: str, half: torch.dtype | None) -> AbstractContextManager[object]:
    """torch's autocast to a half type; with None a context that changes nothing."""
    return nullcontext() if half is None else torch.autocast(device_type, half)
