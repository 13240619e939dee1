"""Single colour pictures with their classes as a ranking task: CIFAR-10, for the published table of NAS-Bench-Macro."""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pinas_zoo.data import ViewRecipe, open_source
from pinas_zoo.data.cifar import CIFAR10Source
from pinas_zoo.ranking.recipe import SupernetRecipe
from pinas_zoo.ranking.task import PairSet, PairTask, contrast_views

__all__ = ['ROOT_VARIABLE', 'PictureTask', 'Task', 'source_spec']

#: Names the folder of CIFAR-10: torchvision's files, or class folders of pictures below train/.
ROOT_VARIABLE = 'PINAS_CIFAR10'


@dataclass(frozen=True)
class PictureTask:
    """CIFAR-10's training pictures, in two disjoint parts. It has no test part, since the truth was measured elsewhere.

    Args:
        side: Height and width in pixels to which the pictures are reduced.
        train: Number of training pictures.
        heldout: Number of held-out pictures for scores of the supernet.
        seed: Determines which pictures are in which part.

    Raises:
        ValueError: A number is out of its range.
    """

    side: int = 32
    train: int = 45_000
    heldout: int = 5_000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.side <= 32 or self.train < 1 or self.heldout < 1 or self.train + self.heldout > 50_000:
            raise ValueError(
                'allowed: side in 1..32, train and heldout at least 1 and together at most 50,000; '
                f'got {self.side}, {self.train}, {self.heldout}'
            )

    @property
    def num_classes(self) -> int:
        """Classes of CIFAR-10."""
        return 10

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a picture in pixels."""
        return self.side, self.side

    @property
    def in_chans(self) -> int:
        """Channels of the networks' input."""
        return 3

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the networks' input."""
        return self.size

    def compose(self, part: str) -> PairSet:
        """The pictures of 'train' or 'heldout'; the same arguments give the same tensors. Do not write into them.

        Raises:
            ValueError: The part is unknown, or CIFAR-10 cannot be found.
        """
        return _compose(self, part)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 pictures to network input. Shape: (N, 3, H, W) -> the same."""
        mean, std = (
            torch.tensor(x, device=images.device).view(3, 1, 1) for x in (CIFAR10Source.mean, CIFAR10Source.std)
        )
        return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)

    def view_recipe(self, recipe: SupernetRecipe) -> ViewRecipe:
        """The views of the contrast."""
        return contrast_views(recipe, CIFAR10Source.mean, CIFAR10Source.std)

    def from_views(self, views: Tensor) -> Tensor:
        """Network input from normalised views. Shape: (N, V, 3, H, W) -> the same."""
        return views.contiguous()


#: The images of a study.
Task = PairTask | PictureTask


def source_spec() -> dict[str, Any]:
    """The source of CIFAR-10's training pictures: by `ROOT_VARIABLE`, else from the cache (which may download them)."""
    root = os.environ.get(ROOT_VARIABLE)
    if root and Path(root, 'train').is_dir():
        return {'kind': 'folder', 'root': str(Path(root, 'train'))}
    return {'kind': 'cifar10', 'split': 'train', **({'root': root} if root else {})}


@lru_cache(maxsize=2)
def _compose(task: PictureTask, part: str) -> PairSet:
    if part not in ('train', 'heldout'):
        raise ValueError(f'unknown part {part!r}, allowed: train, heldout')
    spec = source_spec()
    source = open_source(spec)
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(task.seed))
    chosen = order[: task.train] if part == 'train' else order[task.train : task.train + task.heldout]
    images = torch.stack([source.load(index) for index in chosen.tolist()])
    if images.shape[-2:] != task.size:
        small = F.interpolate(images.float(), task.size, mode='bilinear', antialias=True, align_corners=False)
        images = small.round().clamp(0, 255).to(torch.uint8)
    labels = torch.as_tensor(source.labels, dtype=torch.long)[chosen]
    return PairSet(images, labels, 'cifar10' if spec['kind'] == 'cifar10' else 'cifar10 as pictures in folders')
