"""Limits on the cost of the architectures that a search may propose."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pinas_zoo.space import Arch

__all__ = ['Cost', 'Limits']


class Cost(Protocol):
    """What a cost function returns for an architecture: multiply-accumulates and parameters."""

    @property
    def macs(self) -> float: ...

    @property
    def params(self) -> float: ...


@dataclass(frozen=True)
class Limits:
    """Upper bounds on the cost of a proposed architecture; call it to test one.

    Args:
        cost: Function from an architecture to an object with `macs` and `params`.
        max_macs: Largest number of multiply-accumulates, in the unit of `cost`; None for no limit.
        max_params: Largest number of parameters; None for no limit.

    Raises:
        ValueError: No limit is given, or one is not a positive number.

    Examples:
        >>> from types import SimpleNamespace
        >>> limits = Limits(lambda arch: SimpleNamespace(macs=sum(arch), params=1), max_macs=3)
        >>> limits((1, 2)), limits((2, 2))
        (True, False)
    """

    cost: Callable[[Arch], Cost]
    max_macs: float | None = None
    max_params: float | None = None

    def __post_init__(self) -> None:
        if not callable(self.cost):
            raise ValueError(f'Limits.cost must be a function of an arch, got {self.cost!r}')
        if self.max_macs is None and self.max_params is None:
            raise ValueError('Limits needs max_macs or max_params, got neither')
        for name in ('max_macs', 'max_params'):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f'Limits.{name} must be a positive number, got {value!r}')

    def excess(self, arch: Arch) -> float:
        """By how much an architecture exceeds the limits, as a sum of fractions; 0 if it fits."""
        cost = self.cost(arch)
        pairs = ((cost.macs, self.max_macs), (cost.params, self.max_params))
        return sum(max(0.0, value / most - 1) for value, most in pairs if most is not None)

    def __call__(self, arch: Arch) -> bool:
        return self.excess(arch) <= 0

    def __str__(self) -> str:
        pairs = (('macs', self.max_macs), ('params', self.max_params))
        return ', '.join(f'{name} <= {most:,.12g}' for name, most in pairs if most is not None)
