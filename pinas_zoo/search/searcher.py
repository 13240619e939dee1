"""The base of every search: ask and tell, replay, uniform draws within limits. No torch.

Proposals come in blocks. Block i depends only on the settings, the generator seeded by (seed, i) and the
first ``i * block`` evaluations. So the sequence depends neither on how many ranks share the
work nor on how often the search was stopped: `Searcher.replay` tells a new searcher the recorded
evaluations, and the search continues identically.
"""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np

from pinas_zoo.search.limits import Limits
from pinas_zoo.space import Arch, SearchSpace

Constraint = Callable[[Arch], bool]
#: Uniform draws per proposal before the fallbacks of `Searcher.draw` are tried.
MAX_TRIES = 10_000
#: Spaces up to this size are enumerated when draws find nothing new, so that exhaustion is known exactly.
ENUMERABLE = 2**17


class Searcher(ABC):
    """Proposes architectures, is told their scores (higher is better), and never proposes one twice.

    Args:
        space: The space to search.
        seed: Seed of all random numbers, at least 0.
        block: Number of proposals between two updates from the results, at least 1.
        constraint: Predicate that every proposal satisfies, or `Limits`; None allows all.

    Raises:
        ValueError: Seed or block is out of range.
    """

    name: str

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int = 0,
        block: int = 8,
        constraint: Constraint | Limits | None = None,
    ) -> None:
        if not isinstance(seed, int) or seed < 0 or block < 1:
            raise ValueError(f'seed must be an integer of at least 0 and block at least 1, got {seed!r} and {block}')
        self.space, self.seed, self.block, self.constraint = space, seed, block, constraint
        self._proposed: list[Arch] = []
        self._scores: list[float] = []
        self._asked = 0
        self._exhausted = False
        choices = [space.choices(p) for p in range(space.num_positions)]
        self._counts = np.array([len(c) for c in choices])
        self._choices = np.zeros((len(choices), max(self._counts)), dtype=np.int64)
        for position, row in enumerate(choices):
            self._choices[position, : len(row)] = row

    # ---- ask and tell ----------------------------------------------------------------------------

    @property
    def history(self) -> list[tuple[Arch, float]]:
        """The told evaluations in the order of their proposals: everything that the search knows."""
        return list(zip(self._proposed, self._scores, strict=False))

    @property
    def best(self) -> tuple[Arch, float]:
        """The best evaluation so far; the first of equal ones.

        Raises:
            ValueError: `tell` was not called yet.
        """
        if not self._scores:
            raise ValueError('no results yet: call `tell` first')
        return max(self.history, key=lambda item: item[1])

    def ask(self, n: int | None = None) -> list[Arch]:
        """Returns the next proposals, to be told in this order.

        Args:
            n: Largest number of proposals to return, at least 1; None for the rest of the current block.

        Returns:
            Up to n architectures. Fewer if the next block needs results that are still pending; an
            empty list if and only if no feasible architecture is left.

        Raises:
            ValueError: n is below 1, no architecture within the limits was found, or results of
                earlier proposals have to be told first.
        """
        if n is None:
            n = self.block - self._asked % self.block
        if n < 1:
            raise ValueError(f'ask needs n of at least 1, got {n}')
        while len(self._proposed) < self._asked + n and not self._exhausted:
            if self._needs_results() and len(self._scores) < len(self._proposed):
                break
            self._extend()
        archs = self._proposed[self._asked : self._asked + n]
        if not archs and not self._exhausted:
            raise ValueError(
                f'{self._asked - len(self._scores)} proposals are pending: call `tell` with their scores before '
                'the next `ask`'
            )
        self._asked += len(archs)
        return archs

    def tell(self, archs: Sequence[Arch], scores: Sequence[float]) -> None:
        """Records the scores of the oldest pending proposals; on an error, of none.

        Raises:
            ValueError: Lengths differ, an architecture is not the next in proposal order, or a
                score is not finite.
        """
        if len(archs) != len(scores):
            raise ValueError(f'one score per arch is needed, got {len(archs)} archs and {len(scores)} scores')
        out = self._proposed[len(self._scores) : self._asked]
        values = [float(score) for score in scores]
        for place, (arch, value) in enumerate(zip(archs, values, strict=True)):
            arch = self.space.single(arch)
            if place >= len(out) or arch != out[place]:
                expected = self.space.format(out[place]) if place < len(out) else 'none'
                raise ValueError(
                    f'`tell` needs the results in the order of the proposals: got {self.space.format(arch)}, '
                    f'the next proposal is {expected}'
                )
            if not math.isfinite(value):
                raise ValueError(f'the score of {self.space.format(arch)} must be finite, got {value}')
        self._scores += values

    def replay(self, evaluations: Iterable[tuple[str | Sequence[int], float]]) -> None:
        """Tells a new searcher what an earlier run evaluated, in order, so that it continues from there.

        Args:
            evaluations: Pairs of architecture and score, e.g. `SearchLog.records` by index.

        Raises:
            ValueError: The searcher is not new, an architecture repeats or breaks the constraint,
                a score is not finite, or an unfinished block is not what these settings propose.
        """
        if self._proposed:
            raise ValueError(
                f'replay needs a new searcher, this one proposed {len(self._proposed)} architectures already'
            )
        pairs = [(self.space.single(arch), float(score)) for arch, score in evaluations]
        archs = [arch for arch, _ in pairs]
        if twice := sorted(arch for arch, count in Counter(archs).items() if count > 1):
            raise ValueError(f'the recorded evaluations contain {self.space.format(twice[0])} more than once')
        for arch, score in pairs:
            if not math.isfinite(score):
                raise ValueError(f'the score of {self.space.format(arch)} must be finite, got {score}')
            if not self.admits(arch):
                raise ValueError(f'recorded {self.space.format(arch)} breaks the constraint {self.constraint}')
        whole = len(pairs) - len(pairs) % self.block
        self._proposed = list(archs[:whole])
        self._scores = [score for _, score in pairs[:whole]]
        self._asked = whole
        for arch, score in pairs[whole:]:
            proposal = self.ask(1)
            if proposal != [arch]:
                raise ValueError(
                    f'recorded evaluation {len(self._scores)} is {self.space.format(arch)}, these '
                    f'settings propose {[self.space.format(p) for p in proposal]}: another version '
                    f'or other settings recorded it; drop the last {len(pairs) - whole} records or '
                    f'start a new search'
                )
            self.tell([arch], [score])

    def header(self, checkpoint: str) -> dict[str, Any]:
        """What a `SearchLog` of this search must agree on when it is continued.

        Args:
            checkpoint: Hash of the weights that the scores come from.
        """
        limits: Any = self.constraint
        if isinstance(limits, Limits):
            limits = limits.facts()
        elif limits is not None:
            limits = getattr(limits, '__qualname__', type(limits).__qualname__)
        settings = {**self._settings(), 'block': self.block, 'limits': limits}
        values = {'space': self.space.to_dict(), 'searcher': self.name, 'settings': settings}
        return {**values, 'seed': self.seed, 'checkpoint': checkpoint}

    # ---- what a searcher is made of --------------------------------------------------------------

    @abstractmethod
    def propose(self, rng: np.random.Generator, seen: set[Arch]) -> list[Arch]:
        """Returns one block of new, feasible architectures from the scores; fewer only if none are left.

        Args:
            rng: Generator of this block.
            seen: Everything proposed before; additions are allowed.
        """

    def admits(self, arch: Arch) -> bool:
        """Whether an architecture satisfies the constraint."""
        return self.constraint is None or bool(self.constraint(arch))

    def draw(self, rng: np.random.Generator, count: int, seen: set[Arch]) -> list[Arch]:
        """Draws new feasible architectures uniformly and adds them to `seen`.

        If draws find too few, a space of up to 2^17 architectures is enumerated; in a larger one
        with `Limits`, random architectures are made cheaper until they fit (no longer uniform).

        Raises:
            ValueError: No feasible architecture was found within the bounded number of tries.
        """
        any_seen = bool(seen)
        draws = (self.uniform(rng, 100).tolist() for _ in range(MAX_TRIES // 100))
        stream = map(tuple, chain.from_iterable(draws))
        found = self._take(stream, count, seen)
        if len(found) < count and self.space.num_archs <= ENUMERABLE:
            left = [a for a in self.space.all_archs() if a not in seen and self.admits(a)]
            found += self._take((left[i] for i in rng.permutation(len(left))), count - len(found), seen)
        elif len(found) < count and isinstance(self.constraint, Limits):
            walks = (self._descend(rng, self.constraint) for _ in range(50 * count))
            found += self._take(walks, count - len(found), seen)
        if not found and not any_seen:
            raise self._infeasible(rng)
        return found

    def uniform(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draws many architectures uniformly, regardless of the constraint.

        Shape:
            Output: (count, num_positions), int64.
        """
        picks = (rng.random((count, len(self._counts))) * self._counts).astype(np.int64)
        archs: np.ndarray = self._choices[np.arange(len(self._counts)), picks]
        return archs

    def _take(self, stream: Iterable[Arch], count: int, seen: set[Arch]) -> list[Arch]:
        def fresh() -> Iterable[Arch]:
            for arch in stream:
                if arch not in seen and self.admits(arch):
                    seen.add(arch)
                    yield arch

        return list(islice(fresh(), count))

    def _descend(self, rng: np.random.Generator, limits: Limits) -> Arch:
        """Makes a random architecture cheaper, position by position, until it fits."""
        arch: Arch = tuple(self.uniform(rng, 1)[0].tolist())
        for position in rng.permutation(len(arch)):
            if limits.excess(arch) <= 0:
                break
            options = ((*arch[:position], c, *arch[position + 1 :]) for c in self.space.choices(position))
            arch = min(options, key=limits.excess)
        return arch

    def _infeasible(self, rng: np.random.Generator) -> ValueError:
        if not isinstance(self.constraint, Limits):
            return ValueError(
                f'no architecture of {self.space.name!r} satisfies the constraint '
                f'{self.constraint!r} after {MAX_TRIES} draws'
            )
        limits = self.constraint
        cheapest = min((self._descend(rng, limits) for _ in range(20)), key=limits.excess)
        cost = limits.cost(cheapest)
        return ValueError(
            f'no architecture of {self.space.name!r} within {limits} after {MAX_TRIES} draws; the '
            f'cheapest seen is {self.space.format(cheapest)} with macs {cost.macs:,.12g}, params '
            f'{cost.params:,.12g}'
        )

    def _needs_results(self) -> bool:
        """Whether the next block depends on scores; otherwise it is drawn at random and can be proposed ahead."""
        return True

    def _settings(self) -> dict[str, Any]:
        return {}

    def _extend(self) -> None:
        rng = np.random.default_rng([self.seed, len(self._proposed) // self.block])
        seen = set(self._proposed)
        archs = self.propose(rng, seen) if self._needs_results() else self.draw(rng, self.block, seen)
        self._proposed += archs
        self._exhausted = len(archs) < self.block


def check_least(settings: Any, **least: float) -> None:
    """Raises a ValueError if a field of a searcher's settings is below its bound or not finite."""
    for name, bound in least.items():
        value = getattr(settings, name)
        if not math.isfinite(value) or value < bound:
            kind = type(settings).__name__
            raise ValueError(f'{kind}.{name} must be at least {bound}, got {value!r}')
