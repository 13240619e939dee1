"""The four views of an image that the method uses; `batched` is for small images of one size.

Decoding, crop and resize give uint8 views; `colour` does the rest, here or on the device for a whole batch.

Every random number comes from the global torch generator, which the engine seeds per sample from (seed, draw
number): a sample depends on nothing else, so batches do not change with the number of workers and a run resumes
exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torchvision.transforms import v2

from pinas_zoo.data.colour import COLOUR_NUMBERS, augment, colour_plan
from pinas_zoo.data.small_sets import FASHION_MNIST_MEAN, FASHION_MNIST_STD
from pinas_zoo.data.sources import IMAGENET_MEAN, IMAGENET_STD, ImageReader, Source, open_source


@dataclass(frozen=True)
class ViewRecipe:
    """Strengths of the four-view augmentation; the defaults are the paper's (hue as released).

    Args:
        scale: Area share of the random crop, as (least, most).
        ratio: Aspect ratio of the random crop, as (least, most).
        brightness: Strength of the colour jitter, which is applied with probability `jitter_p`.
        contrast: As `brightness`.
        saturation: As `brightness`.
        hue: As `brightness`.
        jitter_p: Probability in [0, 1].
        grey_p: Probability in [0, 1].
        blur_p: Probability in [0, 1].
        blur_sigma: Range in px; the kernel is a tenth of the side, at least 3.
        flip_p: Probability in [0, 1].
        mean: Mean of the normalisation, one value (grey) or three.
        std: Its standard deviation, likewise.

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
        """For grey images of about 28 px: no colour steps, a milder crop, a smaller blur."""
        return cls(
            scale=(0.3, 1.0), saturation=0.0, hue=0.0, grey_p=0.0, blur_p=0.3,
            blur_sigma=(0.1, 1.0), mean=tuple(mean), std=tuple(std),
        )  # fmt: skip

    def kernel(self, size: int | tuple[int, int]) -> int:
        """Odd side of the blur kernel for images of this side, or of the shorter side."""
        return max(3, min(sides(size)) // 10 | 1)


class FourViews(Dataset[dict[str, Any]]):
    """Independently augmented views of one image, decoded once: query a, key a, query b, key b.

    A JPEG file is decoded at 1/2, 1/4 or 1/8 if all of its crops are still as large as the views.

    Args:
        source: A source, or a spec for open_source.
        size: Side of the views in px, or height and width.
        recipe: A ViewRecipe, or its settings as a dict.
        broken_rate_limit: See ImageReader.
        views: 4 for a path pair, 2 for plain MoCo on single paths.
        finish: False leaves the views uint8 and the rest to the device, see `collate_views` and `finish_views`.

    An item is a dict: `views` (views, 3, size, size) float, `index` as requested, `name` and `label` of the image that
    was actually read, `broken`, the number of broken images skipped. Unfinished: `views` uint8, `numbers` (views,
    COLOUR_NUMBERS) and `spec` for colour_plan.

    Source: Pi-NAS, section 3.2 (cross-path learning).
    """

    ATTEMPTS: ClassVar[int] = 10  # for a crop box inside the image, as in torchvision

    def __init__(
        self,
        source: Source | Mapping[str, Any],
        size: int | Sequence[int] = 224,
        recipe: ViewRecipe | Mapping[str, Any] | None = None,
        broken_rate_limit: float = 0.01,
        views: int = 4,
        finish: bool = True,
    ) -> None:
        self.source = source if isinstance(source, Source) else open_source(source)
        self.size = size if isinstance(size, int) else cast('tuple[int, int]', tuple(size))
        if views < 2 or views % 2:
            raise ValueError(f'views must be 2 or 4, a query and a key for each path, got {views}')
        self.views, self.finish = views, finish
        self.recipe = recipe if isinstance(recipe, ViewRecipe) else ViewRecipe(**(recipe or {}))
        self.reader = ImageReader(self.source, broken_rate_limit)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        numbers = torch.rand(self.views, 2 * self.ATTEMPTS + 2 + COLOUR_NUMBERS)
        places = numbers[:, :-COLOUR_NUMBERS].tolist()
        boxes: list[tuple[int, ...]] = []

        def reduction(height: int, width: int) -> float:
            boxes[:] = [draw_box(u, height, width, self.recipe) for u in places]
            return min(min(box[2:]) for box in boxes) / max(sides(self.size))

        (image, factor), facts = self.reader.sample(index, lambda i: self.source.load_reduced(i, reduction))
        views = torch.stack([resized_crop(image, shrink_box(b, factor, image), self.size) for b in boxes])
        sample = {'views': views, 'numbers': numbers[:, -COLOUR_NUMBERS:], 'spec': (self.size, self.recipe), **facts}
        return finish_sample(sample) if self.finish else sample


def finish_sample(sample: dict[str, Any]) -> dict[str, Any]:
    """The float views of an unfinished sample of FourViews."""
    size, recipe = sample.pop('spec')
    plan = colour_plan(sample.pop('numbers'), recipe, size)
    return {**sample, 'views': augment(sample['views'][None], plan[None], recipe)[0]}


def collate_views(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Batch the samples of BatchedViews or FourViews into one dict of the same form.

    Shape: `views` (batch, views, 3, size, size), for grey images an expanded view of one plane, which must not be
    written to; `index`, `label`, `broken` long (batch,); `name` a list. For data sets with `finish=False` a
    batch for `finish_views`: uint8 `views` with their `plan`, or `image` with `numbers`; and `spec`.

    Raises:
        ValueError: BatchedViews got images of different sizes.
    """
    first = samples[0]
    batch: dict[str, Any] = {k: torch.tensor([s[k] for s in samples]) for k in ('index', 'label', 'broken')}
    batch['name'] = [s['name'] for s in samples]
    if 'image' in first:
        shapes = {tuple(s['image'].shape) for s in samples}
        if len(shapes) > 1:
            raise ValueError(f'BatchedViews needs images of one shape, got {sorted(shapes)}; use FourViews')
        raw = {key: default_collate([s[key] for s in samples]) for key in ('image', 'numbers')}
        batch |= {**raw, 'spec': first['spec']}
        return batch if first.get('finish') is False else finish_views(batch)
    if 'numbers' not in first:
        batch['views'] = torch.stack([s['views'] for s in samples])
        return batch
    size, recipe = first['spec']
    # The planes of a decoded image are adjacent: collated this way, they are copied once, unchanged, to shared memory.
    pixels = default_collate([s['views'].movedim(1, -1) for s in samples])
    plan = colour_plan(torch.stack([s['numbers'] for s in samples]), recipe, size)
    return {**batch, 'views': pixels.movedim(-1, 2), 'plan': plan, 'spec': first['spec']}


def finish_views(
    batch: dict[str, Any], dtype: torch.dtype = torch.float32, channels_last: bool = False
) -> dict[str, Any]:
    """The float views of an unfinished batch of `collate_views`, on its device; finished batches are returned
    unchanged.

    Args:
        batch: A batch whose tensors are on one device.
        dtype: Type of the views.
        channels_last: Memory format of the views of large images, see `augment`.
    """
    if 'spec' not in batch:
        return batch
    rest = {key: value for key, value in batch.items() if key not in ('spec', 'plan', 'numbers', 'image')}
    size, recipe = batch['spec']
    if 'image' in batch:
        from pinas_zoo.data.batched import augment_batch  # it imports this module

        views = augment_batch(batch['image'], batch['numbers'], size, recipe).to(dtype)
    else:
        views = augment(batch['views'], batch['plan'], recipe, dtype, channels_last)
    return {**rest, 'views': views}


def draw_box(u: Sequence[float], height: int, width: int, recipe: ViewRecipe) -> tuple[int, int, int, int]:
    """A crop box as torchvision's RandomResizedCrop draws it: top, left, height, width, in px.

    Args:
        u: Uniform in [0, 1): area and aspect ratio of each attempt in turn, then the position from top and left.
        height: Height of the image in px.
        width: Width of the image in px.
        recipe: Gives scale and ratio.
    """
    *attempts, down, right = u
    low, high = (math.log(r) for r in recipe.ratio)
    for share, aspect in zip(attempts[::2], attempts[1::2], strict=True):
        area = (recipe.scale[0] + (recipe.scale[1] - recipe.scale[0]) * share) * height * width
        ratio = math.exp(low + (high - low) * aspect)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
    # The largest centred box with an allowed aspect ratio.
    w = min(width, round(height * recipe.ratio[1]))
    h = min(height, round(width / recipe.ratio[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def shrink_box(box: Sequence[int], factor: float, image: Tensor) -> tuple[int, int, int, int]:
    """A box of the full image in the pixels of one that was decoded smaller by `factor`, inside that one."""
    (top, left, h, w), (height, width) = box, image.shape[-2:]
    top, left = min(round(top / factor), height - 1), min(round(left / factor), width - 1)
    return top, left, min(max(1, round(h / factor)), height - top), min(max(1, round(w / factor)), width - left)


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of a size that may be a single side."""
    return (size, size) if isinstance(size, int) else size


def resized_crop(image: Tensor, box: Sequence[int], size: int | tuple[int, int]) -> Tensor:
    """Bilinear, antialiased. Shape: uint8 (3, H, W) -> uint8 (3, size, size), channels-last where the image is."""
    return v2.functional.resized_crop(image, *box, list(sides(size)), antialias=True)
