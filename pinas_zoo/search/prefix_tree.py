"""Paths of a supernet, merged where they have the same beginning: BN re-estimation and evaluation.

A node of the tree is one block after one prefix; its activations, and so its re-estimated BN statistics, depend only on
that prefix. Batches are the outer loop and the tree the inner one, so that memory is one batch times the depth.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.space import Arch

__all__ = ['Images', 'Labelled', 'PathScore', 'PrefixCache', 'PrefixTree']

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

    def bind(self, final: bool) -> None:
        """Lets the layers read and write this node's statistics instead of their own.

        Args:
            final: They are not written: in training mode the layers use those of the batch and keep none.
        """
        for norm, (mean, var) in zip(self.norms, self.buffers, strict=True):
            norm.running_mean, norm.running_var = (None, None) if final and norm.training else (mean, var)


@dataclass
class _Node:
    """What follows a prefix: the shortcut of the next position, and one child per candidate chosen there."""

    prefix: Arch
    block: _Stats
    shortcut: _Stats
    calibrated: bool = False
    children: dict[int, _Node] = field(default_factory=dict)
    leaves: list[int] = field(default_factory=list)


#: Which pass over the images, and the index of the batch in it.
Slot = tuple[str, int]


class PrefixCache:
    """BN statistics and outputs of short prefixes, kept from one tree to the next; results are the same bit for bit.

    A cache belongs to one supernet and its images. What comes first is kept until the room is used up.

    Args:
        gib: Room for outputs on the device, in GiB; the statistics are small and not counted.
        depth: Number of positions of the longest prefix that is kept; 0 keeps the stem only.

    Raises:
        ValueError: A number is negative.
    """

    def __init__(self, gib: float, depth: int = 2) -> None:
        if gib < 0 or depth < 0:
            raise ValueError(f'gib and depth must be at least 0, got {gib} and {depth}')
        self.room, self.depth = int(gib * 2**30), depth
        self.stats: dict[Arch, tuple[_Stats, _Stats]] = {}
        self.outputs: dict[tuple[Slot, Arch], Tensor] = {}

    def put(self, slot: Slot, prefix: Arch, x: Tensor) -> None:
        """Keeps the output of a prefix on a batch, if there is room."""
        if len(prefix) <= self.depth and x.nbytes <= self.room:
            self.outputs[slot, prefix] = x
            self.room -= x.nbytes


class PrefixTree:
    """Paths of one supernet, merged where they have the same beginning.

    The supernet is unchanged afterwards, bit for bit: the statistics are stored in the tree.

    Args:
        supernet: The supernet, with plain BN: statistics are per process, not synchronised.
        archs: The paths; they may repeat.
        cache: What earlier trees of the same supernet and images leave to this one.

    Raises:
        ValueError: No path is given, an arch is malformed, or the supernet has SyncBN.
    """

    def __init__(self, supernet: SuperNet, archs: Sequence[Arch], cache: PrefixCache | None = None) -> None:
        if not archs:
            raise ValueError('evaluation needs at least one arch, got none')
        if any(isinstance(module, nn.SyncBatchNorm) for module in supernet.modules()):
            raise ValueError('the supernet has SyncBN; ranks evaluate different paths, so build it with plain BN')
        self.supernet = supernet
        self.cache = PrefixCache(0) if cache is None else cache
        self.archs = [supernet.space.single(arch) for arch in archs]
        self.nodes: list[_Node] = []
        self.root = self._node((), nn.Sequential(*supernet.stem_modules()))
        for leaf, arch in enumerate(self.archs):
            node = self.root
            for position, choice in enumerate(arch):
                if choice not in node.children:
                    last = [supernet.final_conv] if position == len(arch) - 1 else []  # has the node's statistics
                    block = nn.Sequential(supernet.blocks[position][choice], *last)
                    node.children[choice] = self._node(arch[: position + 1], block)
                node = node.children[choice]
            node.leaves.append(leaf)
        self.num_blocks = len(self.nodes) - 1

    def _node(self, prefix: Arch, block: nn.Module) -> _Node:
        if prefix in self.cache.stats:
            node = _Node(prefix, *self.cache.stats[prefix], calibrated=True)
        else:
            blocks = self.supernet.blocks
            shortcut = blocks[len(prefix)].downsample if len(prefix) < len(blocks) else None
            node = _Node(prefix, _Stats(block), _Stats(shortcut))
        self.nodes.append(node)
        return node

    @torch.no_grad()
    def calibrate(self, batches: Images) -> None:
        """Re-estimates every node's BN statistics: the true mean over batches of batch mean and unbiased variance.

        The semantics are those of `torch.optim.swa_utils.update_bn` on each path.

        Args:
            batches: Image batches, (N, C, H, W) each, any number of them; their order has no effect.

        Raises:
            ValueError: `batches` is empty.
        """
        count = 0
        with self._borrowed(training=True) as norms:
            for count, images in enumerate(batches, start=1):
                for norm in norms:
                    norm.momentum = 1 / count  # makes the running update the cumulative mean
                for _ in self._walk(images, ('calibrate', count)):
                    pass
        if count == 0:
            raise ValueError('BN re-estimation needs at least one batch, got none')
        for node in self.nodes:
            node.calibrated = True
            if len(node.prefix) <= self.cache.depth:
                self.cache.stats[node.prefix] = node.block, node.shortcut

    @torch.no_grad()
    def evaluate(self, batches: Labelled, head: nn.Module) -> list[PathScore]:
        """Evaluates every path in eval mode with the tree's statistics: one score per path, in their order.

        Args:
            batches: Pairs of images (N, C, H, W) and labels (N,).
            head: Classifier on globally averaged features, (N, num_features) -> (N, classes).

        Raises:
            ValueError: `batches` has no image.
        """
        total, sums = 0, torch.zeros(0)
        for labels, results in self._classified(batches, head):
            if not total:
                sums = torch.zeros(len(self.archs), 2, dtype=torch.float64, device=labels.device)
            total += len(labels)
            for leaves, losses, hits in results:
                result = torch.stack([hits.sum().double(), losses.sum()])
                for leaf in leaves:
                    sums[leaf] += result
        if not total:
            raise ValueError('evaluation needs at least one image, got none')
        means = (sums / total).tolist()  # the only synchronisation with the device
        pairs = zip(self.archs, means, strict=True)
        return [PathScore(arch, 100 * hits, loss, total) for arch, (hits, loss) in pairs]

    @torch.no_grad()
    def per_image(self, batches: Labelled, head: nn.Module, first: int = 0) -> dict[int, Tensor]:
        """Evaluates every path that was not pruned, image by image.

        Args:
            batches: As for `evaluate`.
            head: As for `evaluate`.
            first: Index of the first of these batches in the whole list.

        Returns:
            By index of the path: losses and hits (0 or 1) on the CPU, float64 of shape (2, images).
        """
        found: dict[int, list[Tensor]] = {}
        for _, results in self._classified(batches, head, first):
            for leaves, losses, hits in results:
                result = torch.stack([losses, hits.double()])
                for leaf in leaves:
                    found.setdefault(leaf, []).append(result)
        return {leaf: torch.cat(parts, dim=1).cpu() for leaf, parts in found.items()}

    def prune(self, keep: Container[int]) -> bool:
        """Removes the paths whose index is not in `keep`, and what only they need; returns whether a path is left."""
        return self._prune(self.root, keep)

    def _prune(self, node: _Node, keep: Container[int]) -> bool:
        node.leaves = [leaf for leaf in node.leaves if leaf in keep]
        node.children = {choice: child for choice, child in node.children.items() if self._prune(child, keep)}
        return bool(node.leaves or node.children)

    def _classified(
        self, batches: Labelled, head: nn.Module, first: int = 0
    ) -> Iterator[tuple[Tensor, Iterator[tuple[list[int], Tensor, Tensor]]]]:
        """Per batch the labels, and the leaves with their losses (float64) and hits on its images."""
        mode = head.training
        head.eval()
        try:
            with self._borrowed(training=False):
                for index, (images, labels) in enumerate(batches, start=first):
                    yield labels, self._graded(images, labels, head, ('evaluate', index))
        finally:
            head.train(mode)

    def _graded(
        self, images: Tensor, labels: Tensor, head: nn.Module, slot: Slot
    ) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        for leaves, features in self._walk(images, slot):
            logits = head(features.mean((2, 3)))
            losses = F.cross_entropy(logits.double(), labels, reduction='none')
            yield leaves, losses, logits.argmax(dim=1) == labels

    def _walk(self, images: Tensor, slot: Slot) -> Iterator[tuple[list[int], Tensor]]:
        """Runs one batch through the tree, depth first; yields the leaves and their features."""
        x = self._output(self.root, slot, lambda: self.supernet.forward_stem(images))
        yield from self._descend(self.root, x, slot)

    def _descend(self, node: _Node, x: Tensor, slot: Slot) -> Iterator[tuple[list[int], Tensor]]:
        if node.leaves:
            yield node.leaves, x
        if not node.children:
            return
        position = self.supernet.blocks[len(node.prefix)]
        identity: Tensor | None = None
        for choice, child in node.children.items():

            def run(choice: int = choice) -> Any:
                nonlocal identity
                if identity is None:  # not needed if the cache has all children
                    node.shortcut.bind(node.calibrated)
                    identity = position.shortcut(x)
                out = position[choice](x, identity)
                return self.supernet.final_conv(out) if position is self.supernet.blocks[-1] else out

            yield from self._descend(child, self._output(child, slot, run), slot)

    def _output(self, node: _Node, slot: Slot, run: Callable[[], Any]) -> Tensor:
        """A node's output on a batch: from the cache, or by running its block."""
        # Statistics that are not final have to see every batch.
        known = self.cache.outputs.get((slot, node.prefix)) if node.calibrated else None
        if known is not None:
            return known
        node.block.bind(node.calibrated)
        x: Tensor = run()
        self.cache.put(slot, node.prefix, x)
        return x

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
