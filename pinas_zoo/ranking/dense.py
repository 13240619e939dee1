"""The dense task of the transfer truth: which item is seen at every patch of a canvas of overlapping items.

The pixels are those of the ranking task (`ranking.task`), but its labels say neither where an item is nor which of two
is in front. Everything follows from the seed.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pinas_zoo.models.network import PiNASNet
from pinas_zoo.ranking.task import open_items

__all__ = ['BACKGROUND', 'DenseNet', 'DenseSet', 'DenseTask', 'compose_dense', 'mean_iou', 'place_items']

#: Label of a patch that shows mostly background; 0 to 9 are the classes of the items.
BACKGROUND = 10
#: Pixels from this value on belong to an item; darker ones let what is behind them through.
VISIBLE = 16
#: The parts, and the items of each: disjoint from each other, equal to those of `ranking.task`.
PARTS = ('train', 'test')


@dataclass(frozen=True)
class DenseTask:
    """How the canvases look and how many there are.

    Args:
        item: Side in pixels to which an item is resized.
        side: Side of a canvas in pixels.
        items: Items per canvas; a later one covers the earlier ones.
        patch: Side of a patch: the unit of the labels, and the networks' input channels as in `PairTask`.
        train: Number of training canvases, from 50,000 items of the train split.
        test: Number of test canvases, from the test split.
        seed: Determines which items are where.

    Raises:
        ValueError: A number is out of its range.
    """

    item: int = 20
    side: int = 40
    items: int = 5
    patch: int = 4
    train: int = 12_000
    test: int = 1_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.patch < 1 or self.side % self.patch or not 1 <= self.item <= self.side:
            raise ValueError(
                f'side must be a multiple of patch and at least item, got {self.side}, {self.patch}, {self.item}'
            )
        if min(self.items, self.train, self.test) < 1:
            raise ValueError(f'items, train and test must be at least 1, got {self.items}, {self.train}, {self.test}')


@dataclass(frozen=True)
class DenseSet:
    """A part of the task.

    Args:
        images: uint8 (N, 1, side, side).
        labels: long (N, side / patch, side / patch), in 0..10.
    """

    images: Tensor
    labels: Tensor


@lru_cache(maxsize=2)
def compose_dense(task: DenseTask, part: str) -> DenseSet:
    """Makes a part of the task; the same arguments give the same tensors. Do not write into them.

    Raises:
        ValueError: The part is unknown.
    """
    pixels, classes = open_items(part, PARTS, task.seed).tensors()
    items = F.interpolate(pixels[:, :1].float(), size=(task.item, task.item), mode='bilinear', antialias=True)
    draw = torch.Generator().manual_seed(1000 * task.seed + 100 + PARTS.index(part))
    count = getattr(task, part)
    chosen = torch.randint(len(items), (count, task.items), generator=draw)
    corners = torch.randint(task.side - task.item + 1, (count, task.items, 2), generator=draw)
    images, owners = place_items(items.round().to(torch.uint8)[:, 0], classes, chosen, corners, task.side)
    return DenseSet(images[:, None], patch_labels(owners, task.patch))


def place_items(items: Tensor, classes: Tensor, chosen: Tensor, corners: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Puts items on black canvases, later ones in front; dark pixels of an item are transparent.

    Args:
        items: Pixels of all items, uint8 (M, item, item).
        classes: Their classes, (M,).
        chosen: Items of each canvas from back to front, (N, K).
        corners: Top and left of each, (N, K, 2).
        side: Side of the canvases.

    Returns:
        The canvases, uint8 (N, side, side), and the class that is seen at each pixel, long of the same shape.
    """
    count, size = len(chosen), items.shape[-1]
    canvas = torch.zeros(count, side, side, dtype=torch.uint8)
    owners = torch.full((count, side, side), BACKGROUND)
    image, within = torch.arange(count)[:, None, None], torch.arange(size)
    for layer in range(chosen.shape[1]):
        rows = (corners[:, layer, 0, None] + within)[:, :, None]
        columns = (corners[:, layer, 1, None] + within)[:, None]
        pixels = items[chosen[:, layer]]
        seen = pixels >= VISIBLE
        canvas[image, rows, columns] = torch.where(seen, pixels, canvas[image, rows, columns])
        kinds = classes[chosen[:, layer], None, None]
        owners[image, rows, columns] = torch.where(seen, kinds, owners[image, rows, columns])
    return canvas, owners


def patch_labels(owners: Tensor, patch: int) -> Tensor:
    """The label that most pixels of a patch have, the smallest of equal ones. Shape: (N, H, W) -> (N, H/p, W/p)"""
    votes = F.one_hot(owners, BACKGROUND + 1).permute(0, 3, 1, 2).float()
    return F.avg_pool2d(votes, patch).argmax(dim=1)


class DenseNet(nn.Module):
    """A backbone with a linear classifier per location, on the features of all its stages.

    Args:
        net: The backbone; its classifier is not used.
        num_classes: Classes of a location.

    Shape:
        (N, in_chans, H, W) -> (N, num_classes, h, w), with the resolution of the first stage.
    """

    def __init__(self, net: PiNASNet, num_classes: int = BACKGROUND + 1) -> None:
        super().__init__()
        net.reset_classifier(0)
        self.net = net
        channels = sum(info['num_chs'] for info in net.feature_info[1:])
        self.classify = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.classify.weight, std=0.01)
        assert self.classify.bias is not None
        nn.init.zeros_(self.classify.bias)

    def forward(self, x: Tensor) -> Tensor:
        _, (_, *stages) = self.net.forward_intermediates(x)
        size = stages[0].shape[-2:]
        return self.classify(torch.cat([stages[0], *(F.interpolate(s, size=size) for s in stages[1:])], dim=1))


def mean_iou(predicted: Tensor, labels: Tensor) -> float:
    """Mean intersection over union in percent, over the classes that occur on either side."""
    classes = BACKGROUND + 1
    table = torch.bincount(labels.flatten() * classes + predicted.flatten(), minlength=classes**2)
    table = table.view(classes, classes).double()
    hits, union = table.diagonal(), table.sum(dim=0) + table.sum(dim=1) - table.diagonal()
    return float(100 * (hits[union > 0] / union[union > 0]).mean())
