"""The images of the ranking study: two Fashion-MNIST items on one canvas, and the unordered pair as the class.

A harder task from the same pixels: nearly every path of a small space can tell ten classes of single items apart, but
not 55 classes of pairs. Everything follows from the seed; nothing is random after the images are made.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from pinas_zoo.data import Source, ViewRecipe, open_source
from pinas_zoo.data.pairs import PAIR_MEAN, PAIR_STD, compose_pairs, pair_class
from pinas_zoo.ranking.recipe import SupernetRecipe

__all__ = [
    'PARTS',
    'PairSet',
    'PairTask',
    'augment',
    'compose',
    'contrast_views',
    'index_batches',
    'normalise',
    'open_items',
    'pair_class',
    'to_patches',
]

#: The items that each part is made of: disjoint parts of the train split, and the test split.
PARTS = ('train', 'heldout', 'test')
MEAN, STD = PAIR_MEAN[0], PAIR_STD[0]


@dataclass(frozen=True)
class PairSet:
    """A part of a task.

    Args:
        images: uint8 (N, C, H, W); canvases of pairs are (N, 1, item, 2 * item).
        labels: long (N,); of pairs see `pair_class`.
        data: Data set that the images are from: for pairs 'fashion-mnist', or 'digits' if it is missing.
    """

    images: Tensor
    labels: Tensor
    data: str

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class PairTask:
    """How the canvases look and how many there are.

    Args:
        item: Side in pixels to which an item is resized; two are side by side on a canvas of (item, 2 * item).
        patch: The networks see patches of this many pixels squared as the channels of one location; 1: plain pixels.
        train: Number of training pairs, from 50,000 items of the train split.
        heldout: Number of held-out pairs for scores of the supernet, from the other 10,000 items of the train split.
        test: Number of test pairs for the ground truth, from the test split.
        seed: Determines which items are paired.

    Raises:
        ValueError: A number is out of its range.
    """

    item: int = 20
    patch: int = 4
    train: int = 50_000
    heldout: int = 5_000
    test: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.item < 1 or self.patch < 1 or self.item % self.patch:
            raise ValueError(
                f'item and patch must be at least 1 and item a multiple of patch, got {self.item} and {self.patch}'
            )
        for part in PARTS:
            if getattr(self, part) < 1:
                raise ValueError(f'{part} must be at least 1 pair, got {getattr(self, part)}')

    @property
    def num_classes(self) -> int:
        """Unordered pairs of ten classes, equal ones included."""
        return 55

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a canvas in pixels."""
        return self.item, 2 * self.item

    @property
    def in_chans(self) -> int:
        """Channels of the networks' input."""
        return self.patch**2

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the networks' input."""
        return self.item // self.patch, 2 * self.item // self.patch

    def compose(self, part: str) -> PairSet:
        """A part of the task, see `compose`."""
        return compose(self, part)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 canvases to network input, see `normalise`."""
        return normalise(images, self.patch)

    def view_recipe(self, recipe: SupernetRecipe) -> ViewRecipe:
        """The views of the contrast."""
        wide = (1.5, 8 / 3)  # the usual 3/4 to 4/3, for canvases that are twice as wide as high
        return contrast_views(recipe, (MEAN,), (STD,), wide)

    def from_views(self, views: Tensor) -> Tensor:
        """Network input from normalised views, which have three equal channels, see `to_patches`."""
        return to_patches(views[:, :, :1], self.patch)


def contrast_views(
    recipe: SupernetRecipe,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> ViewRecipe:
    """The views of the contrast, for `augment_batch`, which has no colour steps.

    Args:
        recipe: Its crops, jitter, blur and flips.
        mean: Mean of the pixels, per channel.
        std: Their standard deviation.
        ratio: Width over height of a crop.
    """
    return ViewRecipe(
        scale=(recipe.crop_area, 1.0),
        ratio=ratio,
        brightness=recipe.jitter,
        contrast=recipe.jitter,
        saturation=0,
        hue=0,
        grey_p=0,
        blur_p=recipe.blur,
        blur_sigma=(0.1, 1.0),
        flip_p=recipe.flip,
        mean=mean,
        std=std,
    )


def open_items(part: str, parts: Sequence[str], seed: int) -> Source:
    """The items of a part: 'train' and 'heldout' divide the train split by the seed, 'test' is the test split.

    Raises:
        ValueError: The part is not one of `parts`.
    """
    if part not in parts:
        raise ValueError(f'unknown part {part!r}, allowed: {", ".join(parts)}')
    if part == 'test':
        return open_source({'kind': 'fashion-mnist', 'split': 'test'})
    half = 'train' if part == 'train' else 'holdout'
    return open_source({'kind': 'fashion-mnist', 'split': 'train', 'part': half, 'holdout': 1 / 6, 'seed': seed})


@lru_cache(maxsize=4)
def compose(task: PairTask, part: str) -> PairSet:
    """Makes a part of the task; the same arguments give the same tensors. Do not write into them.

    Raises:
        ValueError: The part is unknown.
    """
    source = open_items(part, PARTS, task.seed)
    draw = torch.Generator().manual_seed(1000 * task.seed + PARTS.index(part))
    images, labels = compose_pairs(source, getattr(task, part), task.item, draw)
    return PairSet(images, labels, source.description['data'])


def augment(images: Tensor, draw: torch.Generator, shift: int = 2) -> Tensor:
    """Mirrors half of a batch and shifts the batch by one random offset of up to `shift` pixels, padding with black.

    Shape: (N, C, H, W) uint8 -> the same.
    """
    height, width = images.shape[-2:]
    images = torch.where(torch.rand(len(images), 1, 1, 1, generator=draw) < 0.5, images, images.flip(-1))
    top, left = torch.randint(2 * shift + 1, (2,), generator=draw).tolist()
    return F.pad(images, [shift] * 4)[:, :, top : top + height, left : left + width]


def normalise(images: Tensor, patch: int) -> Tensor:
    """uint8 canvases to float network input, see `to_patches`."""
    return to_patches(images.float().div_(255).sub_(MEAN).div_(STD), patch)


def to_patches(images: Tensor, patch: int) -> Tensor:
    """Patches of pixels as channels, channels last in memory (faster on CPUs here).

    Shape: (..., 1, H, W) -> (..., patch ** 2, H / patch, W / patch), contiguous if there are more than four axes.
    """
    images = F.pixel_unshuffle(images, patch)
    return images.contiguous(memory_format=torch.channels_last) if images.dim() == 4 else images


def index_batches(images: int, batch: int, draw: torch.Generator) -> Iterator[Tensor]:
    """Indices of whole batches without end; every image comes once before any comes again."""
    queue = torch.empty(0, dtype=torch.long)
    while True:
        while len(queue) < batch:
            queue = torch.cat([queue, torch.randperm(images, generator=draw)])
        yield queue[:batch]
        queue = queue[batch:]
