"""Limits on the cost of an architecture. No torch."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from pinas_zoo.space import Arch

__all__ = ['Cost', 'Limits']

#: Limits by the name of their field.
LIMITS = ('max_macs', 'max_params', 'max_latency')


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
        max_latency: Largest latency in seconds; None for no limit.
        latency: Function from an architecture to its latency in seconds, such as `LatencyTable.of`; only a limit on
            latency needs it.
        latency_of: What these latencies were measured on, as plain values: part of a search's identity.

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
    max_latency: float | None = None
    latency: Callable[[Arch], float] | None = None
    latency_of: Any = None

    def __post_init__(self) -> None:
        if not callable(self.cost):
            raise ValueError(f'Limits.cost must be a function of an arch, got {self.cost!r}')
        if self.max_macs is None and self.max_params is None and self.max_latency is None:
            raise ValueError('Limits needs max_macs, max_params or max_latency, got none of them')
        if self.max_latency is not None and self.latency is None:
            raise ValueError('Limits.max_latency needs a latency table: make one with `pinas latency`')
        for name in LIMITS:
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and math.isfinite(value) and value > 0
            if value is not None and not number:
                raise ValueError(f'Limits.{name} must be a positive number, got {value!r}')

    def excess(self, arch: Arch) -> float:
        """By how much an architecture exceeds the limits, as a sum of fractions; 0 if it fits."""
        cost = self.cost(arch)
        pairs = [(cost.macs, self.max_macs), (cost.params, self.max_params)]
        if self.max_latency is not None and self.latency is not None:
            pairs.append((self.latency(arch), self.max_latency))
        return sum(max(0.0, value / most - 1) for value, most in pairs if most is not None)

    def __call__(self, arch: Arch) -> bool:
        return self.excess(arch) <= 0

    def __str__(self) -> str:
        pairs = ((name.removeprefix('max_'), getattr(self, name)) for name in LIMITS)
        return ', '.join(f'{name} <= {most:,.12g}' for name, most in pairs if most is not None)

    def facts(self) -> dict[str, Any]:
        """Plain values for the header of a search's log."""
        facts = {'max_macs': self.max_macs, 'max_params': self.max_params}
        return facts if self.max_latency is None else facts | {'max_latency': self.max_latency, 'of': self.latency_of}
