"""The four views of small images, a whole batch at once: every view is R @ image @ C^T."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pinas_zoo.data.sources import Source
from pinas_zoo.data.specs import open_source
from pinas_zoo.data.views import FourViews, ViewRecipe


class BatchedViews(FourViews):
    """FourViews for small images of one size: `collate_views` augments a whole batch at once.

    A sample carries its pixels and its random numbers, drawn here, so a batch does not depend on
    who collates it. Against FourViews: a crop box that would leave the image is clipped instead of
    drawn anew; brightness comes before contrast, both after the blur. Saturation, hue and grey
    steps are not served.

    Raises:
        ValueError: the recipe has one of the steps that are not served.

    Example:
        >>> data = BatchedViews({'kind': 'digits', 'split': 'test'}, 28, ViewRecipe.small_grey())
        >>> collate_views([data[0], data[1]])['views'].shape
        torch.Size([2, 4, 3, 28, 28])
    """

    NUMBERS: ClassVar[int] = 10

    def __init__(
        self,
        source: Source | Mapping[str, Any],
        size: int | Sequence[int] = 28,
        recipe: ViewRecipe | Mapping[str, Any] | None = None,
        broken_rate_limit: float = 0.01,
        views: int = 4,
    ) -> None:
        source = source if isinstance(source, Source) else open_source(source)
        recipe = ViewRecipe.small_grey(source.mean, source.std) if recipe is None else recipe
        super().__init__(source, size, recipe, broken_rate_limit, views)
        r = self.recipe
        if r.saturation or r.hue or r.grey_p:
            raise ValueError(
                f'BatchedViews got saturation={r.saturation}, hue={r.hue}, grey_p={r.grey_p}; '
                'allowed: 0 for all three (ViewRecipe.small_grey()); FourViews serves the others'
            )

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, facts = self.reader.sample(index)
        numbers = torch.rand(self.views, self.NUMBERS)
        image = image[:1] if image.stride(0) == 0 else image
        return {'image': image, 'numbers': numbers, 'spec': (self.size, self.recipe), **facts}


def collate_views(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Batch the samples of BatchedViews or FourViews into one dict of the same form.

    Shape: `views` (batch, views, 3, size, size), for grey images an expanded view of one plane: do
    not write into it; `index`, `label`, `broken` long (batch,); `name` a list.

    Raises:
        ValueError: BatchedViews met images of different sizes.
    """
    batch: dict[str, Any] = {k: torch.tensor([s[k] for s in samples]) for k in ('index', 'label', 'broken')}
    batch['name'] = [s['name'] for s in samples]
    if 'views' in samples[0]:
        batch['views'] = torch.stack([s['views'] for s in samples])
        return batch
    shapes = {tuple(s['image'].shape) for s in samples}
    if len(shapes) > 1:
        raise ValueError(f'BatchedViews needs images of one shape, came: {sorted(shapes)}; use FourViews')
    size, recipe = samples[0]['spec']
    images = torch.stack([s['image'] for s in samples])
    batch['views'] = augment_batch(images, torch.stack([s['numbers'] for s in samples]), size, recipe)
    return batch


def augment_batch(images: Tensor, numbers: Tensor, size: int | tuple[int, int], recipe: ViewRecipe) -> Tensor:
    """Crop, resize, flip, blur, jitter and normalise a batch.

    Crop, resize, flip and Gaussian blur act on rows and columns apart, so a view is R @ image @ C^T
    with two small matrices: a few batched products instead of a gather per pixel.

    Shape: images uint8 (B, C, H, W) with C 1 or 3; numbers (B, V, 10) uniform in [0, 1).
    Returns (B, V, 3, size, size), or the height and width that are given as size.
    """
    height_out, width_out = (size, size) if isinstance(size, int) else size
    u = numbers.flatten(0, 1).unbind(1)
    top, left, height, width = crop_boxes(torch.stack(u[:4]), *images.shape[-2:], recipe)
    rows = resize_weights(top, height, height_out, images.shape[-2])
    columns = resize_weights(left, width, width_out, images.shape[-1], u[4] < recipe.flip_p)
    if recipe.blur_p:
        low, high = recipe.blur_sigma
        sigma = torch.where(u[8] < recipe.blur_p, low + (high - low) * u[9], 0.0)
        rows = blur_weights(sigma, height_out, recipe.kernel(height_out)) @ rows
        columns = blur_weights(sigma, width_out, recipe.kernel(width_out)) @ columns
    batch, views = numbers.shape[:2]
    rows = rows.view(batch, 1, views * height_out, -1) @ (images.float() / 255)
    rows = rows.view(batch, -1, views, height_out, images.shape[-1]).transpose(1, 2)
    x = rows @ columns.view(batch, views, 1, width_out, -1).transpose(-1, -2)
    for amount, number, by_mean in ((recipe.brightness, u[6], False), (recipe.contrast, u[7], True)):
        factor = torch.where(u[5] < recipe.jitter_p, 1 + amount * (2 * number - 1), 1.0).view(batch, views, 1, 1, 1)
        base = x.mean((-1, -2, -3), keepdim=True) * (1 - factor) if by_mean else torch.zeros(())
        x = torch.addcmul(base, x, factor).clamp_(0, 1)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (recipe.mean, recipe.std))
    return ((x - mean) / std).expand(-1, -1, 3, -1, -1)


def crop_boxes(u: Tensor, height: int, width: int, recipe: ViewRecipe) -> tuple[Tensor, ...]:
    """Whole-pixel crop boxes from uniform numbers (4, N): top, left, height, width, each (N,)."""
    area = (recipe.scale[0] + (recipe.scale[1] - recipe.scale[0]) * u[0]) * height * width
    low, high = (math.log(r) for r in recipe.ratio)
    ratio = torch.exp(low + (high - low) * u[1])
    h = (area / ratio).sqrt().round().clamp(1, height)
    w = (area * ratio).sqrt().round().clamp(1, width)
    return (u[2] * (height - h + 1)).floor(), (u[3] * (width - w + 1)).floor(), h, w


def resize_weights(start: Tensor, length: Tensor, size: int, full: int, flip: Tensor | None = None) -> Tensor:
    """Matrices that cut [start, start + length) out and resize it: bilinear, antialiased.

    Shape: start, length, flip (N,). Returns (N, size, full), rows sum to 1.
    """
    place = (torch.arange(size) + 0.5).expand(len(start), -1)
    if flip is not None:
        place = torch.where(flip[:, None], size - place, place)
    step = (length / size)[:, None]
    centre = (start[:, None] + place * step)[..., None]
    pixel = torch.arange(full) + 0.5
    weights = ((pixel - centre).abs_() / -step.clamp(min=1)[..., None]).add_(1).clamp_(min=0)
    # torchvision crops before it resizes: a pixel outside the box must not shine in.
    inside = (pixel > start[:, None]) & (pixel < (start + length)[:, None])
    weights *= inside[:, None]
    return weights / weights.sum(-1, keepdim=True)


def blur_weights(sigma: Tensor, size: int, kernel: int) -> Tensor:
    """Matrices (N, size, size) of a Gaussian blur, borders reflected; sigma (N,) px, 0 = none."""
    offsets = torch.arange(kernel) - kernel // 2
    taps = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]) ** 2)
    taps = taps / taps.sum(1, keepdim=True)
    return (taps @ _reflection(size, kernel)).view(-1, size, size)


@lru_cache(maxsize=8)
def _reflection(size: int, kernel: int) -> Tensor:
    """(kernel, size * size): which pixel tap k of output pixel i reads, borders reflected."""
    reach = torch.arange(size) + (torch.arange(kernel) - kernel // 2)[:, None]
    reach = (size - 1) - ((size - 1) - reach.abs()).abs()
    return F.one_hot(reach, size).float().flatten(1)
