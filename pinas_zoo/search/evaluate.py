"""Scores of many paths of a supernet: cached on disk, divided among the ranks, with shared prefixes computed once."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path as FilePath

import torch
from torch import nn

from pinas_zoo.dist import gather_objects, own_share, rank_and_world
from pinas_zoo.files import append_lines, read_lines
from pinas_zoo.models.precision import autocast
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.search.prefix_tree import Images, Labelled, PathScore, PrefixTree
from pinas_zoo.search.racing import Race, RaceSettings
from pinas_zoo.space import Arch

__all__ = ['Evaluator', 'PathScore', 'PrefixTree', 'ScoreCache']


class ScoreCache:
    """Scores on disk, one JSON line each, found by (checkpoint hash, calibration set, evaluation set) and arch.

    Args:
        path: File that is read and appended to; None keeps the scores in memory.
        key: What the scores depend on besides the arch; lines with another key are kept and ignored.
    """

    def __init__(self, path: str | FilePath | None, key: Sequence[str]) -> None:
        self.path, self.key = None if path is None else FilePath(path), list(key)
        self.scores: dict[Arch, PathScore] = {}
        if self.path is not None:
            self.read(self.path)

    def read(self, path: FilePath) -> None:
        """Takes the scores of a file, which another process may be writing."""
        for record in read_lines(path):
            if record.pop('key') == self.key:
                score = PathScore(**record | {'arch': tuple(record['arch'])})
                self.scores[score.arch] = score

    def add(self, scores: Sequence[PathScore]) -> None:
        """Appends scores, and waits until they are on disk."""
        self.scores |= {score.arch: score for score in scores}
        if self.path is not None and scores:
            append_lines(self.path, [{'key': self.key, **asdict(score)} for score in scores])


class Evaluator:
    """Scores paths: cached, distributed over the ranks, with shared prefixes.

    Args:
        supernet: The supernet.
        head: Linear classifier on its pooled features.
        calibration: Image batches for BN re-estimation; iterated anew in every call.
        evaluation: Batches of images and labels, held out.
        cache: Where scores are stored; None for memory only.
        half: Half type of the forward passes (autocast); None for the network's own type.

    Examples:
        >>> images, labels = torch.randn(8, 3, 28, 28), torch.zeros(8, dtype=torch.long)
        >>> net = SuperNet('pinas_nano')
        >>> evaluate = Evaluator(net, nn.Linear(384, 10), [images], [(images, labels)])
        >>> evaluate([net.space.parse('30-32-20-03')])[0].images
        8
    """

    def __init__(
        self,
        supernet: SuperNet,
        head: nn.Module,
        calibration: Images,
        evaluation: Labelled,
        cache: ScoreCache | None = None,
        half: torch.dtype | None = None,
    ) -> None:
        self.supernet, self.head, self.half = supernet, head, half
        self.calibration, self.evaluation = calibration, evaluation
        self.cache = cache or ScoreCache(None, ())

    def __call__(self, archs: Sequence[Arch]) -> list[PathScore]:
        """Scores of the paths, in their order, equal on all ranks.

        Every rank has to call this with the same paths. Rank 0 writes new scores to the cache.
        """
        # Sorted, so that the share of each rank has prefixes in common.
        new = sorted({arch for arch in map(self.supernet.space.single, archs) if arch not in self.cache.scores})
        share = own_share(new)
        scores = [score for part in gather_objects(self._score(share) if share else []) for score in part]
        if rank_and_world()[0] == 0:
            self.cache.add(scores)
        self.cache.scores |= {score.arch: score for score in scores}
        return [self.cache.scores[self.supernet.space.single(arch)] for arch in archs]

    def race(self, settings: RaceSettings) -> Race:
        """Racing on the same images; its scores are not stored."""
        return Race(self.supernet, self.head, self.calibration, self.evaluation, settings, self.half)

    def _score(self, archs: Sequence[Arch]) -> list[PathScore]:
        tree = PrefixTree(self.supernet, archs)
        with autocast(self.supernet.device.type, self.half):
            tree.calibrate(self.calibration)
            return tree.evaluate(self.evaluation, self.head)
