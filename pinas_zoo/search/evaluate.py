"""Scores of many paths of a supernet: BN re-estimation and evaluation with shared prefixes computed once.

Paths with the same beginning share a branch of a prefix tree. A node is one block after one prefix; with batch
statistics its activations, and so its re-estimated BN statistics, depend only on that prefix. Data batches are the
outer loop and the tree the inner one, so that memory is one batch times the depth.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path as FilePath

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pinas_zoo.dist import rank_and_world
from pinas_zoo.files import append_lines, read_lines
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.space import Arch

__all__ = ['Evaluator', 'PathScore', 'PrefixTree', 'ScoreCache']

Images = Iterable[Tensor]
Labelled = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class PathScore:
    """Result of one path: top-1 accuracy in percent and mean cross-entropy over `images` held-out images."""

    arch: Arch
    top1: float
    loss: float
    images: int


class _Stats:
    """Re-estimated statistics of the BN layers of one module at one node."""

    def __init__(self, module: nn.Module | None) -> None:
        modules = () if module is None else module.modules()
        self.norms = [m for m in modules if isinstance(m, _BatchNorm)]
        self.buffers = []
        for norm in self.norms:
            assert norm.running_mean is not None and norm.running_var is not None  # every BN layer here keeps them
            self.buffers.append((torch.zeros_like(norm.running_mean), torch.ones_like(norm.running_var)))

    def bind(self) -> None:
        """Lets the layers read and write this node's statistics instead of their own."""
        for norm, (mean, var) in zip(self.norms, self.buffers, strict=True):
            norm.running_mean, norm.running_var = mean, var


@dataclass
class _Node:
    """What follows a prefix: the shortcut of the next position, and one child per candidate chosen there."""

    block: _Stats
    shortcut: _Stats
    children: dict[int, _Node] = field(default_factory=dict)
    leaves: list[int] = field(default_factory=list)


class PrefixTree:
    """Paths of one supernet, merged where they have the same beginning.

    The supernet is unchanged afterwards, bit for bit: the statistics are stored in the tree.

    Args:
        supernet: The supernet, with plain BN: statistics are per process, not synchronised.
        archs: The paths; they may repeat.

    Raises:
        ValueError: There is no path, an arch is malformed, or the supernet has SyncBN.
    """

    def __init__(self, supernet: SuperNet, archs: Sequence[Arch]) -> None:
        if not archs:
            raise ValueError('there is no path to evaluate: pass at least one arch')
        if any(isinstance(module, nn.SyncBatchNorm) for module in supernet.modules()):
            raise ValueError('the supernet has SyncBN; ranks evaluate different paths, so build it with plain BN')
        self.supernet = supernet
        self.archs = [supernet.space.single(arch) for arch in archs]
        self.stem = _Stats(nn.Sequential(*supernet.stem_modules()))
        self.root = self._node(0, None)
        self.num_blocks = 0
        for leaf, arch in enumerate(self.archs):
            node = self.root
            for position, choice in enumerate(arch):
                if choice not in node.children:
                    block = supernet.blocks[position][choice]
                    node.children[choice] = self._node(position + 1, block)
                    self.num_blocks += 1
                node = node.children[choice]
            node.leaves.append(leaf)

    def _node(self, position: int, block: nn.Module | None) -> _Node:
        blocks = self.supernet.blocks
        shortcut = blocks[position].downsample if position < len(blocks) else None
        return _Node(_Stats(block), _Stats(shortcut))

    @torch.no_grad()
    def calibrate(self, batches: Images) -> None:
        """Re-estimates every node's BN statistics: the true mean over batches of batch mean and unbiased variance.

        The semantics are those of `torch.optim.swa_utils.update_bn` on each path.

        Args:
            batches: Image batches, (N, C, H, W) each, any number of them; their order has no effect.

        Raises:
            ValueError: There was no batch.
        """
        count = 0
        with self._borrowed(training=True) as norms:
            for count, images in enumerate(batches, start=1):
                for norm in norms:
                    norm.momentum = 1 / count  # makes the running update the cumulative mean
                for _ in self._walk(images):
                    pass
        if count == 0:
            raise ValueError('BN re-estimation needs at least one batch, got none')

    @torch.no_grad()
    def evaluate(self, batches: Labelled, head: nn.Module) -> list[PathScore]:
        """Evaluates every path in eval mode with the tree's statistics.

        Args:
            batches: Pairs of images (N, C, H, W) and labels (N,).
            head: Classifier on globally averaged features, (N, num_features) -> (N, classes).

        Returns:
            One score per path, in the order of the paths.

        Raises:
            ValueError: There was no image.
        """
        total, training = 0, head.training
        sums: Tensor | None = None
        head.eval()
        with self._borrowed(training=False):
            for images, labels in batches:
                if sums is None:
                    sums = torch.zeros(len(self.archs), 2, dtype=torch.float64, device=images.device)
                total += len(labels)
                for leaves, features in self._walk(images):
                    logits = head(features.mean((2, 3)))
                    hits = (logits.argmax(dim=1) == labels).sum()
                    loss = F.cross_entropy(logits.double(), labels, reduction='sum')
                    result = torch.stack([hits.double(), loss])
                    for leaf in leaves:
                        sums[leaf] += result
        head.train(training)
        if sums is None or not total:
            raise ValueError('evaluation needs at least one image, got none')
        means = (sums / total).tolist()  # the only synchronisation with the device
        pairs = zip(self.archs, means, strict=True)
        return [PathScore(arch, 100 * hits, loss, total) for arch, (hits, loss) in pairs]

    def _walk(self, images: Tensor) -> Iterator[tuple[list[int], Tensor]]:
        """Runs one batch through the tree, depth first; yields the leaves and their features."""
        self.stem.bind()
        yield from self._descend(self.root, 0, self.supernet.forward_stem(images))

    def _descend(self, node: _Node, depth: int, x: Tensor) -> Iterator[tuple[list[int], Tensor]]:
        if node.leaves:
            yield node.leaves, x
        if not node.children:
            return
        position = self.supernet.blocks[depth]
        node.shortcut.bind()
        identity = position.shortcut(x)
        for choice, child in node.children.items():
            child.block.bind()
            yield from self._descend(child, depth + 1, position[choice](x, identity))

    @contextmanager
    def _borrowed(self, training: bool) -> Iterator[list[_BatchNorm]]:
        """Sets the supernet's mode, and restores every layer's buffers and settings afterwards."""
        norms = [m for m in self.supernet.modules() if isinstance(m, _BatchNorm)]
        names = ('running_mean', 'running_var', 'num_batches_tracked', 'momentum')
        saved = [[getattr(norm, name) for name in names] for norm in norms]
        mode = self.supernet.training
        self.supernet.train(training)
        for norm in norms:
            norm.num_batches_tracked = None  # no counting; the cumulative mean is set from outside
        try:
            yield norms
        finally:
            self.supernet.train(mode)
            for norm, values in zip(norms, saved, strict=True):
                for name, value in zip(names, values, strict=True):
                    setattr(norm, name, value)


class ScoreCache:
    """Scores on disk, one JSON line each, found by (checkpoint hash, calibration set, evaluation set) and arch.

    Args:
        path: File that is read and appended to; None keeps the scores in memory.
        key: What the scores depend on besides the arch; lines with another key are kept and ignored.
    """

    def __init__(self, path: str | FilePath | None, key: Sequence[str]) -> None:
        self.path, self.key = None if path is None else FilePath(path), list(key)
        self.scores: dict[Arch, PathScore] = {}
        for record in () if self.path is None else read_lines(self.path):
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
        calibration: Image batches for BN re-estimation; iterated anew for every call.
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
        rank, ranks = rank_and_world()
        # Sorted, so that the share of each rank has prefixes in common.
        new = sorted({arch for arch in map(self.supernet.space.single, archs) if arch not in self.cache.scores})
        share = new[len(new) * rank // ranks : len(new) * (rank + 1) // ranks]
        scores = self._score(share) if share else []
        if ranks > 1:
            gathered: list[list[PathScore]] = [[] for _ in range(ranks)]
            dist.all_gather_object(gathered, scores)
            scores = [score for part in gathered for score in part]
        if rank == 0:
            self.cache.add(scores)
        self.cache.scores |= {score.arch: score for score in scores}
        return [self.cache.scores[self.supernet.space.single(arch)] for arch in archs]

    def _score(self, archs: Sequence[Arch]) -> list[PathScore]:
        tree = PrefixTree(self.supernet, archs)
        kind = self.supernet.device.type
        with nullcontext() if self.half is None else torch.autocast(kind, self.half):
            tree.calibrate(self.calibration)
            return tree.evaluate(self.evaluation, self.head)
