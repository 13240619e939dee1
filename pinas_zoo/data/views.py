"""The four views of an image that the method eats, augmented one by one; `batched` augments a whole batch.

Every random number comes from the global torch generator, which the engine seeds per sample from (seed, draw
number): a sample depends on nothing else, so batches do not change with the number of workers and a run resumes
exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from pinas_zoo.data.small_sets import FASHION_MNIST_MEAN, FASHION_MNIST_STD
from pinas_zoo.data.sources import IMAGENET_MEAN, IMAGENET_STD, ImageReader, Source
from pinas_zoo.data.specs import open_source


@dataclass(frozen=True)
class ViewRecipe:
    """Strengths of the four-view augmentation; the defaults are the paper's (hue as released).

    Args:
        scale, ratio: area share and aspect of the random crop.
        brightness, contrast, saturation, hue: colour jitter, applied with probability jitter_p.
        grey_p, blur_p, flip_p: probabilities in [0, 1].
        blur_sigma: range in px; the kernel is a tenth of the side, at least 3.
        mean, std: normalisation, one value (grey) or three.

    Source: Pi-NAS, section 4.1; MoCo v2.
    """

    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.4
    jitter_p: float = 0.8
    grey_p: float = 0.2
    blur_p: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    flip_p: float = 0.5
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @classmethod
    def small_grey(
        cls, mean: Sequence[float] = FASHION_MNIST_MEAN, std: Sequence[float] = FASHION_MNIST_STD
    ) -> ViewRecipe:
        """For grey images of about 28 px: no step on colours, a milder crop, a smaller blur."""
        return cls(
            scale=(0.3, 1.0), saturation=0.0, hue=0.0, grey_p=0.0, blur_p=0.3,
            blur_sigma=(0.1, 1.0), mean=tuple(mean), std=tuple(std),
        )  # fmt: skip

    def kernel(self, size: int) -> int:
        """Odd side of the blur kernel for images of this side, the shorter one where they differ."""
        return max(3, size // 10 | 1)

    def build(self, size: int | tuple[int, int]) -> v2.Compose:
        """The recipe as a transform from uint8 (3, H, W) to float (3, size, size), or the given height and width."""
        three = [list(v) * (3 // len(v)) for v in (self.mean, self.std)]
        steps: list[torch.nn.Module] = [
            v2.RandomResizedCrop(size, self.scale, self.ratio, antialias=True),
            v2.ToDtype(torch.float32, scale=True),
        ]
        jitter = (self.brightness, self.contrast, self.saturation, self.hue)
        if any(jitter):
            steps.append(v2.RandomApply([v2.ColorJitter(*jitter)], p=self.jitter_p))
        if self.grey_p:
            steps.append(v2.RandomGrayscale(self.grey_p))
        if self.blur_p:
            blur = SeparableBlur(self.kernel(size if isinstance(size, int) else min(size)), self.blur_sigma)
            steps.append(v2.RandomApply([blur], p=self.blur_p))
        return v2.Compose([*steps, v2.RandomHorizontalFlip(self.flip_p), v2.Normalize(*three)])


class SeparableBlur(torch.nn.Module):
    """v2.GaussianBlur row by row, then column by column: equal, and six times faster at 224 px.

    Args:
        kernel: odd side in px.
        sigma: range in px that the width is drawn from.

    Shape: float (3, H, W) to the same.
    """

    def __init__(self, kernel: int, sigma: tuple[float, float]) -> None:
        super().__init__()
        self.kernel, self.sigma = kernel, sigma

    def forward(self, image: Tensor) -> Tensor:
        sigma = [float(torch.empty(()).uniform_(*self.sigma))] * 2
        image = v2.functional.gaussian_blur(image, [self.kernel, 1], sigma)
        return v2.functional.gaussian_blur(image, [1, self.kernel], sigma)


class FourViews(Dataset):
    """Independently augmented views of one image, decoded once: query a, key a, query b, key b.

    Args:
        source: a source, or a spec for open_source.
        size: side of the views in px, or height and width.
        recipe: a ViewRecipe, or its settings as a dict.
        broken_rate_limit: see ImageReader.
        views: 4 for a path pair, 2 for plain MoCo on single paths.

    Returns:
        Per index a dict: `views` (views, 3, size, size) float, `index` as asked for, `name` and
        `label` of the image that was really read, `broken` = broken images stepped over.

    Source: Pi-NAS, section 3.2 (cross-path learning).
    """

    def __init__(
        self,
        source: Source | Mapping[str, Any],
        size: int | Sequence[int] = 224,
        recipe: ViewRecipe | Mapping[str, Any] | None = None,
        broken_rate_limit: float = 0.01,
        views: int = 4,
    ) -> None:
        self.source = source if isinstance(source, Source) else open_source(source)
        self.size, self.views = size if isinstance(size, int) else tuple(size), views
        self.recipe = recipe if isinstance(recipe, ViewRecipe) else ViewRecipe(**(recipe or {}))
        self.reader = ImageReader(self.source, broken_rate_limit)
        self.transform = self.recipe.build(self.size)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, facts = self.reader.sample(index)
        return {'views': torch.stack([self.transform(image) for _ in range(self.views)]), **facts}
