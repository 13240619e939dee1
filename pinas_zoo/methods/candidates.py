"""Paths that are evaluated without being trained: their losses on a batch select or weight the trained ones."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pinas_zoo.dist import gather, rank_and_world
from pinas_zoo.methods.base import SupervisedMethod
from pinas_zoo.space import Arch

__all__ = ['batch_statistics', 'forward_only', 'image_losses', 'mean_over_ranks']


@contextmanager
def batch_statistics(net: nn.Module) -> Iterator[None]:
    """BN normalises with batch statistics, as in training, and does not update its buffers."""
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    saved = [(norm.training, norm.track_running_stats) for norm in norms]
    for norm in norms:
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for norm, (training, tracked) in zip(norms, saved, strict=True):
            norm.training, norm.track_running_stats = training, tracked


@torch.no_grad()
def forward_only(method: SupervisedMethod, images: Tensor, archs: Sequence[Arch]) -> Tensor:
    """Class scores of several paths without gradient; the method is unchanged afterwards.

    Shape: (N, C, H, W) -> (paths, N, classes)
    """
    with batch_statistics(method.supernet):
        logits = torch.stack([method.logits(images, arch) for arch in archs])
    # Autocast caches the weights it has cast, here without a graph: whatever ran next would train nothing.
    torch.clear_autocast_cache()
    return logits


def image_losses(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of every path on every image. Shape: (paths, N, classes), (N,) -> (paths, N)"""
    paths, images, _ = logits.shape
    losses = F.cross_entropy(
        logits.flatten(0, 1), labels.repeat(paths), reduction='none', label_smoothing=label_smoothing
    )
    return losses.view(paths, images)


@torch.no_grad()
def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean of all ranks' tensors, bit-equal on all ranks; the tensor itself in a single process.

    A quantity that selects a path must be equal on all ranks, or each would train a different path.
    """
    ranks = rank_and_world()[1]
    return x if ranks == 1 else gather(x[None]).mean(dim=0)
