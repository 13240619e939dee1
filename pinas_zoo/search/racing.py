"""Racing: bad paths are scored on few images, good ones on all.

All candidates of a group are scored on a first slice of the held-out images. The losses of two paths on the same images
are paired, so the standard error of their mean difference is far below that of either mean. After every slice a
candidate that is worse than the best one by more than z standard errors leaves the race, and of the others at most
a share continues (successive halving). The best path of the earlier groups, the rival, runs with them.

The score of a path that left is the leader's on all images plus their mean difference on the images that both saw, so
that all scores of a search are comparable.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pinas_zoo.dist import gather_objects, own_share
from pinas_zoo.models.precision import autocast
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.search.prefix_tree import Images, Labelled, PathScore, PrefixCache, PrefixTree
from pinas_zoo.space import Arch

__all__ = ['Race', 'RaceSettings', 'group_of', 'paired_difference', 'scores_of', 'survivors']

#: Losses and hits of a path by image, (2, images).
Results = np.ndarray


@dataclass(frozen=True)
class RaceSettings:
    """How a race is run.

    Args:
        images: Held-out images that a path has seen after each slice, ascending; rounded up to whole batches. The last
            number may exceed the size of the set: then it means all.
        z: A candidate leaves if it is worse than the best by more than z standard errors of the paired difference.
        keep: Largest share of a group's candidates that continues after a slice, above 0 and up to 1.
        group: Number of candidates that race together while a search draws at random; a multiple of its block. Later
            every block is a group.
        cache_gib: Room for the outputs of short prefixes, see `PrefixCache`.
        cache_depth: Positions of the longest of them.

    Raises:
        ValueError: A number is out of its range.
    """

    images: tuple[int, ...]
    z: float = 2.0
    keep: float = 0.5
    group: int = 80
    cache_gib: float = 0.0
    cache_depth: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, 'images', tuple(self.images))
        ascending = list(self.images) == sorted(set(self.images)) and min(self.images, default=0) >= 2
        if not ascending or not self.z >= 0 or not 0 < self.keep <= 1 or self.group < 1:
            raise ValueError(
                'allowed for a race: ascending images of at least 2, z of at least 0, keep above 0 and up to 1, group '
                f'of at least 1; got {self}'
            )
        PrefixCache(self.cache_gib, self.cache_depth)

    def facts(self) -> dict[str, Any]:
        """What the scores depend on, for the header of a search's log."""
        return {'images': list(self.images), 'z': self.z, 'keep': self.keep, 'group': self.group}


def group_of(index: int, initial: int, block: int, group: int) -> tuple[int, int]:
    """Begin and end of the group of proposals that one of them races in; it depends on nothing else.

    Args:
        index: Number of the proposal.
        initial: Proposals that are drawn at random before any score is used, whole blocks.
        block: Proposals between two updates of the search from the results.
        group: See `RaceSettings`.

    Raises:
        ValueError: group is not a multiple of block.
    """
    if group % block:
        raise ValueError(f'group must be a multiple of the block of {block} proposals, got {group}')
    if index < initial:
        begin = index - index % group
        return begin, min(begin + group, initial)
    begin = index - (index - initial) % block
    return begin, begin + block


def paired_difference(results: Results, other: Results) -> tuple[float, float]:
    """Mean difference of the losses on the images that both paths saw, and its standard error."""
    count = min(results.shape[1], other.shape[1])
    apart = results[0, :count] - other[0, :count]
    return float(apart.mean()), float(apart.std(ddof=1) / math.sqrt(count))


def _loss(results: Results, count: int | None = None) -> float:
    return float(results[0, :count].mean())


def survivors(
    results: Mapping[Arch, Results], running: Sequence[Arch], rival: Arch | None, settings: RaceSettings
) -> list[Arch]:
    """Which of the running candidates continue, best first; equal ones in the order of the architectures.

    Args:
        results: By path; the rival's may be of more images.
        running: Candidates that have seen all images so far.
        rival: The best path of earlier groups.
        settings: z and keep.
    """
    count = min(results[arch].shape[1] for arch in running)
    everyone = [*running, *([] if rival is None else [rival])]
    leader = min(everyone, key=lambda arch: (_loss(results[arch], count), arch))
    near = []
    for arch in running:
        difference, error = paired_difference(results[arch], results[leader])
        if difference <= settings.z * error:
            near.append(arch)
    near.sort(key=lambda arch: (_loss(results[arch]), arch))
    return near[: math.ceil(settings.keep * len(running))]


def scores_of(results: Mapping[Arch, Results], archs: Sequence[Arch]) -> list[PathScore]:
    """Scores of the paths, each with the number of images that it saw; see the module's text.

    Args:
        results: By path, the rival's too.
        archs: The paths to score.
    """
    most = max(one.shape[1] for one in results.values())
    whole = [arch for arch, one in results.items() if one.shape[1] == most]
    leader = results[min(whole, key=lambda arch: (_loss(results[arch]), arch))]
    scores = []
    for arch in archs:
        one = results[arch]
        count = one.shape[1]
        loss, hits = leader.mean(axis=1) + (one - leader[:, :count]).mean(axis=1) if count < most else one.mean(axis=1)
        scores.append(PathScore(arch, 100 * float(hits), float(loss), count))
    return scores


class Race:
    """Scores groups of paths by racing, distributed over the ranks, with shared prefixes.

    Scores depend on the group, its rival and the settings, not on earlier calls or the number of ranks.

    Args:
        supernet: The supernet.
        head: Linear classifier on its pooled features.
        calibration: Image batches for BN re-estimation; iterated anew in every call.
        evaluation: Batches of images and labels, held out, in an order that is not sorted by class.
        settings: See `RaceSettings`.
        half: Half type of the forward passes (autocast); None for the network's own type.

    Examples:
        >>> images, labels = torch.randn(8, 3, 28, 28), torch.zeros(8, dtype=torch.long)
        >>> net = SuperNet('pinas_nano')
        >>> evaluation = [(images[:4], labels[:4]), (images[4:], labels[4:])]
        >>> race = Race(net, nn.Linear(384, 10), [images], evaluation, RaceSettings((4, 8)))
        >>> sorted(score.images for score in race([net.space.parse(arch) for arch in ('30-32-20-03', '00-00-00-00')]))
        [4, 8]
    """

    def __init__(
        self,
        supernet: SuperNet,
        head: nn.Module,
        calibration: Images,
        evaluation: Labelled,
        settings: RaceSettings,
        half: torch.dtype | None = None,
    ) -> None:
        self.supernet, self.head, self.settings, self.half = supernet, head, settings, half
        self.calibration, self.evaluation = calibration, evaluation
        self.cache = PrefixCache(settings.cache_gib, settings.cache_depth)
        self._whole: dict[Arch, Results] = {}  # of the paths that the next group may have as rival

    def __call__(self, archs: Sequence[Arch], rival: Arch | None = None) -> list[PathScore]:
        """Races the paths; returns their scores in their order, equal on all ranks.

        Args:
            archs: The group.
            rival: The best path of the earlier groups that has seen all images.

        Raises:
            ValueError: No path or no image is given.
        """
        group = [self.supernet.space.single(arch) for arch in archs]
        results: dict[Arch, Results] = {}
        if rival is not None and rival in self._whole:
            results[rival] = self._whole[rival]
        entrants = sorted({*group, *([] if rival is None else [rival])} - set(results))
        share = own_share(entrants)
        with autocast(self.supernet.device.type, self.half):
            self._run(entrants, share, rival, results)
        scores = scores_of(results, group)
        most = max(one.shape[1] for one in results.values())
        best = min(scores, key=lambda score: (score.images < most, score.loss, score.arch)).arch
        self._whole = {arch: results[arch] for arch in (best, rival) if arch is not None}
        return scores

    def _run(
        self, entrants: list[Arch], share: Sequence[Arch], rival: Arch | None, results: dict[Arch, Results]
    ) -> None:
        """Fills `results`; a path stays on the rank that re-estimated its statistics."""
        tree = PrefixTree(self.supernet, share, self.cache) if share else None
        if tree is not None:
            tree.calibrate(self.calibration)
        running, stream, seen = list(entrants), _Stream(self.evaluation), 0
        for target in self.settings.images:
            found: dict[Arch, Results] = {}
            if tree is not None and tree.prune({place for place, arch in enumerate(share) if arch in running}):
                per_leaf = tree.per_image(stream.until(target), self.head, stream.index)
                found = {share[leaf]: one.numpy() for leaf, one in per_leaf.items()}
            for arch, one in (pair for part in gather_objects(found) for pair in part.items()):
                results[arch] = np.concatenate([results[arch], one], axis=1) if arch in results else one
            before, seen = seen, results[running[0]].shape[1] if running and running[0] in results else 0
            if seen == before:  # the images are used up
                break
            candidates = [arch for arch in running if arch != rival]
            on = survivors(results, candidates, rival, self.settings) if candidates else []
            running = sorted({*on, *([rival] if rival in running else [])})
        if not results:
            raise ValueError('a race needs at least one image, got none')


class _Stream:
    """Batches in their order, up to a number of images at a time."""

    def __init__(self, batches: Labelled) -> None:
        self.batches, self.index, self.seen = iter(batches), 0, 0

    def until(self, images: int) -> Iterator[tuple[Tensor, Tensor]]:
        while self.seen < images and (batch := next(self.batches, None)) is not None:
            self.index += 1
            self.seen += len(batch[1])
            yield batch
