"""The paper's search: a tree of classifiers that separate good architectures from bad ones. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np

from pinas_zoo.search.searcher import Searcher, check_least
from pinas_zoo.space import Arch, SearchSpace


@dataclass(frozen=True)
class TreeSettings:
    """Settings of `PartitionTree`; the defaults are the paper's where it states them.

    Args:
        initial: Random evaluations before the first tree, at least 1, rounded up to whole blocks.
        ucb: Exploration constant in the unit of the scores, at least 0; with 0 the descent is greedy, as in
            the paper's search. LaNAS advises a tenth of the best score.
        heights: Numbers of evaluations beyond which the tree has one more level of splits; scale
            them with the budget if that is far from the paper's 1,000.
        max_draws: Uniform draws per leaf and block before the fallback, at least 1.
        min_samples: Nodes with fewer samples are not split, at least 4.
        estimators: Boosting rounds of a node's classifier, at least 1.
        depth: Depth of its trees, at least 1.
        folds: The quality gate: a node is split only if its classifier, fitted without each of this many parts of the
            node's evaluations, is right about more of them than by chance; at least 2, or 0 for no gate. With few
            evaluations a useful classifier often fails it (docs/methods.md).
    """

    initial: int = 80
    ucb: float = 0.0
    max_draws: int = 200_000
    heights: tuple[int, ...] = (400, 800, 1600, 3200)
    min_samples: int = 16
    estimators: int = 50
    depth: int = 3
    folds: int = 0

    def __post_init__(self) -> None:
        check_least(self, initial=1, ucb=0, max_draws=1, min_samples=4, estimators=1, depth=1, folds=0)
        if self.folds == 1:
            raise ValueError('TreeSettings.folds must be 0 or at least 2, got 1')


@dataclass
class _Node:
    """A region of the space: the decisions of all classifiers above it, and the evaluations in it."""

    rows: np.ndarray
    mean: float
    visits: int
    path: tuple[tuple[Any, bool], ...]
    children: list[_Node] | None = None


class PartitionTree(Searcher):
    """The paper's search: a tree of classifiers that separate good architectures from bad ones.

    Every node labels its evaluations by their median score, a gradient-boosted classifier on
    one-hot codes learns the label, and the halves are the children, unless it is at chance on held-out evaluations
    (`TreeSettings.folds`). Up to 400 evaluations there is
    one level of splits, then 2, 3, 4 and 5 beyond 400, 800, 1600 and 3200. Proposals are uniform draws
    that all classifiers above the best leaf accept. If `max_draws` do not give enough, the block is
    filled with accepted children of the leaf's own evaluations (half of them crossed, a tenth of the
    positions redrawn), and after those with unseen random architectures.

    With `ucb` a proposal descends to the child with the larger
    ``mean + 2 ucb sqrt(2 ln n_parent / n)`` where n counts the evaluations after the initial ones
    and the proposals of the block. The initial ones say nothing about where the search has been, and a
    median split halves them: if they were counted, the term would be nearly equal on both sides.

    Raises:
        ImportError: scikit-learn is not installed.

    Source:
        Pi-NAS's search: LaNAS (arXiv 1906.06832) with splits at the median, without exploration.

    Examples:
        >>> from pinas_zoo.space import PINAS_NANO
        >>> searcher = PartitionTree(PINAS_NANO, settings=TreeSettings(initial=16))
        >>> for _ in range(3):
        ...     archs = searcher.ask()
        ...     searcher.tell(archs, [float(sum(arch)) for arch in archs])
        >>> len(searcher.history)
        24
    """

    name = 'tree'

    def __init__(self, space: SearchSpace, *, settings: TreeSettings | None = None, **base: Any) -> None:
        super().__init__(space, **base)
        self.settings = settings or TreeSettings()
        self._classifier = _boosting_classifier()

    def propose(self, rng: np.random.Generator, seen: set[Arch]) -> list[Arch]:
        """See `Searcher.propose`."""
        self._codes, self._values = self._encode(np.array(self._proposed)), np.array(self._scores)
        root = self._node(np.arange(len(self._values)), ())
        leaves: dict[int, tuple[_Node, int]] = {}
        for _ in range(self.block):
            leaf = self._walk(root, rng)
            leaves[id(leaf)] = leaf, leaves.get(id(leaf), (leaf, 0))[1] + 1
        archs: list[Arch] = []
        for leaf, count in leaves.values():
            archs += self._sample(leaf, rng, count, seen)
        return archs + self.draw(rng, self.block - len(archs), seen)

    def _needs_results(self) -> bool:
        return len(self._proposed) >= self.settings.initial

    def _settings(self) -> dict[str, Any]:
        settings = asdict(self.settings)
        return settings if self.settings.folds else {k: v for k, v in settings.items() if k != 'folds'}

    def _node(self, rows: np.ndarray, path: tuple[tuple[Any, bool], ...]) -> _Node:
        initial = -(-self.settings.initial // self.block) * self.block
        return _Node(rows, float(self._values[rows].mean()), int((rows >= initial).sum()), path)

    def _walk(self, node: _Node, rng: np.random.Generator) -> _Node:
        """Descends to the most promising leaf; counts each visit and splits unsplit nodes on the way."""
        levels = 1 + sum(len(self._values) > bound for bound in self.settings.heights)
        for _ in range(levels):
            if node.children is None:
                node.children = self._split(node, rng)
            if not node.children:
                break
            parent_visits = node.visits
            node.visits += 1
            node = max(node.children, key=lambda child: self._promise(child, parent_visits))
        node.visits += 1
        return node

    def _promise(self, child: _Node, parent_visits: int) -> tuple[float, float]:
        if self.settings.ucb == 0:
            return child.mean, child.mean
        if child.visits == 0:
            return math.inf, child.mean
        spread = math.sqrt(2 * math.log(parent_visits) / child.visits)
        return child.mean + 2 * self.settings.ucb * spread, child.mean

    def _split(self, node: _Node, rng: np.random.Generator) -> list[_Node]:
        """Fits a node's classifier and creates its children; a node that cannot be split has none."""
        values = self._values[node.rows]
        median = np.median(values)
        # If the worse half is tied at the median, only the strict comparison separates it.
        good = values >= median if (values < median).any() else values > median
        if len(values) < self.settings.min_samples or not good.any():
            return []
        model = self._classifier(
            n_estimators=self.settings.estimators,
            max_depth=self.settings.depth,
            random_state=int(rng.integers(2**31)),
        )
        if self.settings.folds and not self._beats_chance(model, self._codes[node.rows], good, rng):
            return []
        model.fit(self._codes[node.rows], good)
        return [self._node(node.rows[good == side], (*node.path, (model, side))) for side in (True, False)]

    def _beats_chance(self, model: Any, codes: np.ndarray, good: np.ndarray, rng: np.random.Generator) -> bool:
        """Whether held-out evaluations are assigned to the right side more often than by chance, both sides equal."""
        part = np.empty(len(good), dtype=int)
        for side in (True, False):  # each part has its share of both sides
            rows = np.flatnonzero(good == side)
            part[rng.permutation(rows)] = np.arange(len(rows)) % self.settings.folds
        found = np.empty(len(good), dtype=bool)
        for index in np.unique(part):
            held, rest = part == index, part != index
            if good[rest].all() or not good[rest].any():  # one side has a single evaluation
                found[held] = good[rest].any()
            else:
                model.fit(codes[rest], good[rest])
                found[held] = model.predict(codes[held])
        return bool(found[good].mean() + (~found[~good]).mean() > 1)

    def _sample(self, leaf: _Node, rng: np.random.Generator, count: int, seen: set[Arch]) -> list[Arch]:
        """Draws from a leaf's region: uniform draws first, then children of its evaluations."""
        most, size = self.settings.max_draws, 2048
        parents = np.array([self._proposed[row] for row in leaf.rows])
        chunks = chain(
            (self.uniform(rng, min(size, most - start)) for start in range(0, most, size)),
            (self._breed(parents, rng, 16 * count) for _ in range(8)),
        )
        return self._take(chain.from_iterable(self._inside(leaf, c) for c in chunks), count, seen)

    def _breed(self, parents: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
        """Crosses half of the children and redraws a tenth of all positions."""
        first, second = parents[rng.integers(len(parents), size=(2, count))]
        swap = (rng.random((count, 1)) < 0.5) & (rng.random(first.shape) < 0.5)
        children = np.where(swap, second, first)
        return np.where(rng.random(first.shape) < 0.1, self.uniform(rng, count), children)

    def _inside(self, leaf: _Node, archs: np.ndarray) -> Iterator[Arch]:
        """The architectures that every classifier above the leaf assigns to its side."""
        for model, side in leaf.path:
            if len(archs):
                archs = archs[model.predict(self._encode(archs)) == side]
        return map(tuple, archs.tolist())

    def _encode(self, archs: np.ndarray) -> np.ndarray:
        # `SearchSpace.one_hot` without its checks: it is called for 200,000 draws per block.
        eye = np.eye(len(self.space.candidates), dtype=np.float32)
        codes: np.ndarray = eye[archs].reshape(len(archs), -1)
        return codes


def _boosting_classifier() -> type:
    try:
        from sklearn.ensemble import GradientBoostingClassifier
    except ImportError as error:
        raise ImportError("the partition tree needs scikit-learn: pip install 'pinas-zoo[search]'") from error
    classifier: type = GradientBoostingClassifier
    return classifier
