"""The views of small images of one size, for a whole batch at once: every view is R @ image @ C^T."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pinas_zoo.data.colour import channel_constants
from pinas_zoo.data.sources import Source, open_source
from pinas_zoo.data.views import FourViews, ViewRecipe


class BatchedViews(FourViews):
    """FourViews for small images of one size: `collate_views` augments a whole batch at once.

    A sample contains its pixels and its random numbers, drawn here, so a batch does not depend on
    who collates it. Unlike in FourViews, a crop box that would leave the image is clipped instead of
    redrawn, and brightness comes before contrast, both after the blur. Saturation, hue and grey
    steps are not supported.

    Args:
        source, size, recipe, broken_rate_limit, views: see FourViews.
        finish: False leaves all augmentation to the device, see `finish_views`.

    Raises:
        ValueError: The recipe has a step that is not supported.

    Examples:
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
        **settings: Any,
    ) -> None:
        source = source if isinstance(source, Source) else open_source(source)
        recipe = ViewRecipe.small_grey(source.mean, source.std) if recipe is None else recipe
        super().__init__(source, size, recipe, **settings)
        r = self.recipe
        if r.saturation or r.hue or r.grey_p:
            raise ValueError(
                f'BatchedViews got saturation={r.saturation}, hue={r.hue}, grey_p={r.grey_p}; '
                'allowed: 0 for all three (ViewRecipe.small_grey()); use FourViews for the others'
            )

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, facts = self.reader.sample(index)
        numbers = torch.rand(self.views, self.NUMBERS)
        image = image[:1] if image.stride(0) == 0 else image
        sample = {'image': image, 'numbers': numbers, 'spec': (self.size, self.recipe), **facts}
        return sample if self.finish else {**sample, 'finish': False}


def augment_batch(images: Tensor, numbers: Tensor, size: int | tuple[int, int], recipe: ViewRecipe) -> Tensor:
    """Crop, resize, flip, blur, jitter and normalise a batch.

    Crop, resize, flip and Gaussian blur act on rows and columns separately, so a view is R @ image @ C^T
    with two small matrices: a few batched products instead of a gather per pixel.

    Shape: images uint8 (B, C, H, W) with C 1 or 3; numbers (B, V, 10) uniform in [0, 1).
    Returns (B, V, 3, size, size); size may be a height and width.
    """
    height_out, width_out = (size, size) if isinstance(size, int) else size
    u = numbers.flatten(0, 1).unbind(1)
    top, left, height, width = crop_boxes(torch.stack(u[:4]), images.shape[-2], images.shape[-1], recipe)
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
        base = x.mean((-1, -2, -3), keepdim=True) * (1 - factor) if by_mean else x.new_zeros(())
        x = torch.addcmul(base, x, factor).clamp_(0, 1)
    mean, std = channel_constants(recipe.mean, recipe.std, x.device)
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
    place = (torch.arange(size, device=start.device) + 0.5).expand(len(start), -1)
    if flip is not None:
        place = torch.where(flip[:, None], size - place, place)
    step = (length / size)[:, None]
    centre = (start[:, None] + place * step)[..., None]
    pixel = torch.arange(full, device=start.device) + 0.5
    weights = ((pixel - centre).abs_() / -step.clamp(min=1)[..., None]).add_(1).clamp_(min=0)
    # torchvision crops before it resizes: pixels outside the box must have no effect.
    inside = (pixel > start[:, None]) & (pixel < (start + length)[:, None])
    weights *= inside[:, None]
    return weights / weights.sum(-1, keepdim=True)


def blur_weights(sigma: Tensor, size: int, kernel: int) -> Tensor:
    """Matrices (N, size, size) of a Gaussian blur, borders reflected; sigma (N,) px, 0 = none."""
    offsets = torch.arange(kernel, device=sigma.device) - kernel // 2
    taps = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]) ** 2)
    taps = taps / taps.sum(1, keepdim=True)
    return (taps @ _reflection(size, kernel, sigma.device)).view(-1, size, size)


@lru_cache(maxsize=8)
def _reflection(size: int, kernel: int, device: torch.device) -> Tensor:
    """(kernel, size * size): which pixel tap k of output pixel i reads, borders reflected."""
    reach = torch.arange(size) + (torch.arange(kernel) - kernel // 2)[:, None]
    reach = (size - 1) - ((size - 1) - reach.abs()).abs()
    return F.one_hot(reach, size).float().flatten(1).to(device)
