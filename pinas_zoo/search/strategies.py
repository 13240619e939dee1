"""Search by ask and tell: random, the paper's partition tree, regularised evolution. No torch.

    searcher = build_searcher('tree', PINAS, seed=0)
    while len(searcher.history) < 1000 and (archs := searcher.ask()):
        searcher.tell(archs, [evaluate(arch) for arch in archs])

What they share, and why a search can be stopped and distributed over ranks: `pinas_zoo.search.searcher`.
"""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from pinas_zoo.search.limits import Limits
from pinas_zoo.search.partition_tree import PartitionTree, TreeSettings
from pinas_zoo.search.searcher import Constraint, Searcher, check_least
from pinas_zoo.space import Arch, SearchSpace

__all__ = [
    'SEARCHERS',
    'EvolutionSettings',
    'RandomSearch',
    'RegularizedEvolution',
    'build_searcher',
    'cross',
    'mutate',
    'random_records',
]


class RandomSearch(Searcher):
    """Uniform random search.

    Examples:
        >>> from pinas_zoo.space import PINAS_NANO
        >>> len(set(RandomSearch(PINAS_NANO).ask(100)))
        100
    """

    name = 'random'

    def propose(self, rng: np.random.Generator, seen: set[Arch]) -> list[Arch]:
        """See `Searcher.propose`."""
        return self.draw(rng, self.block, seen)

    def _needs_results(self) -> bool:
        return False


def mutate(space: SearchSpace, arch: Arch, rng: np.random.Generator, probability: float = 0.1) -> Arch:
    """Redraws each position with a probability, among the other candidates; at least one position changes.

    Raises:
        ValueError: The probability is outside 0..1, or no position has a second candidate.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f'probability must be in 0..1, got {probability}')
    arch = space.parse(arch)
    free = [p for p, choices in enumerate(map(space.choices, range(space.num_positions))) if len(choices) > 1]
    if not free:
        raise ValueError(f'{space.name} has only one architecture, so nothing can mutate')
    chosen = [p for p in free if rng.random() < probability] or [int(rng.choice(free))]
    out = list(arch)
    for position in chosen:
        out[position] = int(rng.choice([c for c in space.choices(position) if c != arch[position]]))
    return tuple(out)


def cross(space: SearchSpace, first: Arch, second: Arch, rng: np.random.Generator) -> Arch:
    """Uniform crossover: every position comes from one of the two parents."""
    take_first = rng.random(space.num_positions) < 0.5
    pairs = zip(space.parse(first), space.parse(second), take_first, strict=True)
    return tuple(a if take else b for a, b, take in pairs)


@dataclass(frozen=True)
class EvolutionSettings:
    """Settings of `RegularizedEvolution`.

    Args:
        population: Number of evaluations that are alive, at least 1; the first ones are random.
        sample: Size of a tournament, in 1..population.
        mutation: Probability that a position is redrawn, in 0..1; at least one position is.
        crossover: Probability that a child has two parents before it mutates, in 0..1.
    """

    population: int = 64
    sample: int = 16
    mutation: float = 0.1
    crossover: float = 0.0

    def __post_init__(self) -> None:
        check_least(self, population=1, sample=1, mutation=0, crossover=0)
        if self.sample > self.population or max(self.mutation, self.crossover) > 1:
            raise ValueError(f'sample must be in 1..population, probabilities in 0..1, got {self}')


class RegularizedEvolution(Searcher):
    """Aging evolution: the winner of a tournament has a child, the oldest of the population dies.

    The population is the last `population` evaluations; it does not change within a block. If a
    thousand children do not fill the block (known, or outside the limits), unseen random
    architectures fill it.

    Source:
        Real et al., Regularized Evolution for Image Classifier Architecture Search, AAAI 2019.

    Examples:
        >>> from pinas_zoo.space import PINAS_NANO
        >>> searcher = RegularizedEvolution(PINAS_NANO, settings=EvolutionSettings(8, 4))
        >>> for _ in range(3):
        ...     archs = searcher.ask()
        ...     searcher.tell(archs, [float(sum(arch)) for arch in archs])
        >>> len(searcher.history)
        24
    """

    name = 'evolution'

    def __init__(self, space: SearchSpace, *, settings: EvolutionSettings | None = None, **base: Any) -> None:
        super().__init__(space, **base)
        self.settings = settings or EvolutionSettings()

    def propose(self, rng: np.random.Generator, seen: set[Arch]) -> list[Arch]:
        """See `Searcher.propose`."""
        alive = self.history[-self.settings.population :]
        archs = self._take((self._child(alive, rng) for _ in range(1000)), self.block, seen)
        return archs + self.draw(rng, self.block - len(archs), seen)

    def _needs_results(self) -> bool:
        return len(self._proposed) >= self.settings.population

    def _settings(self) -> dict[str, Any]:
        return asdict(self.settings)

    def _child(self, alive: list[tuple[Arch, float]], rng: np.random.Generator) -> Arch:
        arch = self._winner(alive, rng)
        if rng.random() < self.settings.crossover:
            arch = cross(self.space, arch, self._winner(alive, rng), rng)
        return mutate(self.space, arch, rng, self.settings.mutation)

    def _winner(self, alive: list[tuple[Arch, float]], rng: np.random.Generator) -> Arch:
        picks: list[int] = rng.choice(len(alive), min(self.settings.sample, len(alive)), replace=False).tolist()
        return max((alive[i] for i in picks), key=lambda item: item[1])[0]


#: Searchers by name, each with its settings.
SEARCHERS: dict[str, tuple[type[Searcher], type | None]] = {
    'random': (RandomSearch, None),
    'tree': (PartitionTree, TreeSettings),
    'evolution': (RegularizedEvolution, EvolutionSettings),
}


def random_records(header: Mapping[str, Any]) -> int:
    """How many evaluations at the start of a search's log were drawn at random, according to its header.

    Whole blocks; all evaluations of a random search.
    """
    settings = header['settings']
    count: int = settings.get('initial', settings.get('population', sys.maxsize))
    block: int = settings['block']
    return -(-count // block) * block


def build_searcher(
    name: str,
    space: SearchSpace,
    *,
    seed: int = 0,
    block: int = 8,
    constraint: Constraint | Limits | None = None,
    **settings: Any,
) -> Searcher:
    """Builds a searcher by name.

    Args:
        name: ``'random'``, ``'tree'`` or ``'evolution'``.
        space: Where to search.
        seed: See `Searcher`.
        block: See `Searcher`.
        constraint: See `Searcher`.
        settings: Fields of the searcher's settings, `TreeSettings` or `EvolutionSettings`.

    Raises:
        ValueError: The name or a setting is unknown; the message lists the known ones.

    Examples:
        >>> from pinas_zoo.space import PINAS_NANO
        >>> build_searcher('evolution', PINAS_NANO, population=16, sample=4).settings.sample
        4
    """
    if name not in SEARCHERS:
        raise ValueError(f'unknown searcher {name!r}, allowed: {sorted(SEARCHERS)}')
    searcher, kind = SEARCHERS[name]
    allowed = [f.name for f in fields(kind)] if kind else []
    if unknown := sorted(set(settings) - set(allowed)):
        raise ValueError(f'unknown settings {unknown} of searcher {name!r}, allowed: {allowed}')
    base: dict[str, Any] = {'seed': seed, 'block': block, 'constraint': constraint}
    if kind:
        base['settings'] = kind(**settings)
    return searcher(space, **base)
