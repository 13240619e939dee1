"""Flip, colour jitter, grey, blur and normalisation of uint8 views, a whole batch at once, on any device.

Every view has its own numbers, drawn with the sample: nothing is drawn here, nothing waits for the device, and the
kernels launched do not depend on the numbers. Brightness, contrast and saturation have one form,

    x <- clamp(f x + s grey(x) + c mean(grey(x))),

so that views with different orders of the jitter share a step. A view takes at most three such steps before its hue
is rotated and at most three after it; unused steps have f = 1 and s = c = 0, which change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from pinas_zoo.data.views import ViewRecipe

__all__ = ['COLOUR_NUMBERS', 'augment', 'channel_constants', 'colour_plan']

#: Uniform numbers per view: jitter or not, brightness, contrast, saturation, hue, order, grey, blur, sigma, flip.
COLOUR_NUMBERS = 10
_ORDERS = list(permutations(range(4)))  # of brightness 0, contrast 1, saturation 2, hue 3
_CONTRAST, _SATURATION, _NOTHING = 1, 2, 3
_STEPS = 3  # before the hue rotation, and after it
_GREY = (0.2989, 0.587, 0.114)
_CHUNK = 128  # views of 224 px: 77 MB per float32 copy, of which at most five exist at a time


def _steps_of(order: tuple[int, ...]) -> list[int]:
    """Which of the three operations happens in each of the six steps before and after the hue."""
    hue = order.index(3)
    before, after = order[:hue], order[hue + 1 :]
    return [*before, *[_NOTHING] * (_STEPS - hue), *after, *[_NOTHING] * hue]


def colour_plan(numbers: Tensor, recipe: ViewRecipe, size: int | tuple[int, int]) -> Tensor:
    """What `augment` does to each view, from its uniform numbers.

    Jitter has torchvision's distribution: factors are uniform, and the order of the four operations is uniform over the
    24 orders, per view.

    Args:
        numbers: In [0, 1), (..., COLOUR_NUMBERS).
        recipe: Strengths and probabilities.
        size: Side of the views in px, or height and width.

    Returns:
        float32 (..., 23 + kernel): flip, hue in turns, seven times (f, s, c), the taps of the blur.
    """
    jitter, *factors, hue, order, grey, blur, width, flip = numbers.unbind(-1)
    on = jitter < recipe.jitter_p
    amounts = (recipe.brightness, recipe.contrast, recipe.saturation)
    scaled = [torch.where(on, _between(max(0.0, 1 - a), 1 + a, u), 1.0) for a, u in zip(amounts, factors, strict=True)]
    table = torch.tensor([_steps_of(o) for o in _ORDERS], device=numbers.device)
    operations = table[(order * len(_ORDERS)).long()]
    f = torch.stack([*scaled, torch.ones_like(hue)], -1).gather(-1, operations)
    s, c = (torch.where(operations == kind, 1 - f, 0.0) for kind in (_SATURATION, _CONTRAST))
    is_grey = (grey < recipe.grey_p).float()
    last = torch.stack([1 - is_grey, is_grey, torch.zeros_like(is_grey)], -1)
    steps = torch.cat([torch.stack([f, s, c], -1), last[..., None, :]], -2).flatten(-2)
    turns = torch.where(on, recipe.hue * (2 * hue - 1), 0.0)
    head = torch.stack([(flip < recipe.flip_p).float(), turns], -1)
    # A blur of (almost) zero width is a single tap of 1, which leaves the view unchanged.
    sigma = torch.where(blur < recipe.blur_p, _between(*recipe.blur_sigma, width), 1e-3)
    return torch.cat([head, steps, _taps(sigma, recipe.kernel(size))], -1)


def _between(low: float, high: float, u: Tensor) -> Tensor:
    return low + (high - low) * u


def _taps(sigma: Tensor, kernel: int) -> Tensor:
    """Taps of a Gaussian that sum to 1. Shape: sigma (...) in px, above 0 -> (..., kernel)"""
    offsets = torch.arange(kernel, device=sigma.device) - kernel // 2
    return torch.softmax(-0.5 * (offsets / sigma[..., None]) ** 2, -1)


@torch.no_grad()
def augment(
    views: Tensor,
    plan: Tensor,
    recipe: ViewRecipe,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    chunk: int | None = None,
) -> Tensor:
    """Flip, jitter, grey, blur and normalise; always in float32, even under autocast.

    Args:
        views: uint8 (B, V, 3, s, s), in any memory format.
        plan: Result of `colour_plan`, (B, V, ...), on the same device.
        recipe: Steps whose probability is 0 are left out; also gives mean and std.
        dtype: Type of the result.
        channels_last: Memory format of the result's images.
        chunk: Views at a time. None: on a CPU one, which fits its caches, and steps that do nothing are skipped;
            otherwise 128.

    Returns:
        (B, V, 3, s, s); views come first in memory, so that `result[:, v]` is contiguous.
    """
    batch, count, *image = views.shape
    on_cpu = views.device.type == 'cpu'
    skip = on_cpu and chunk is None
    chunk = chunk or (1 if on_cpu else _CHUNK)
    plan = plan.transpose(0, 1).flatten(0, 1)
    ordered = views.transpose(0, 1).flatten(0, 1)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.empty((count * batch, *image), dtype=dtype, device=views.device, memory_format=layout)
    with torch.autocast(views.device.type, enabled=False):
        mean, std = channel_constants(recipe.mean, recipe.std, views.device)
        for start in range(0, len(out), chunk):
            part = slice(start, start + chunk)
            x = _augment_chunk(ordered[part], plan[part], recipe, skip)
            torch.div(x.sub_(mean), std, out=out[part])
    return out.unflatten(0, (count, batch)).transpose(0, 1)


def _augment_chunk(views: Tensor, plan: Tensor, recipe: ViewRecipe, skip: bool) -> Tensor:
    """All but the normalisation. Shape: uint8 (n, 3, s, s), (n, ...) -> float32 (n, 3, s, s), contiguous"""
    flip, turns, steps = plan[:, 0], plan[:, 1], plan[:, 2:23].view(-1, 7, 3, 1, 1, 1)
    taps = plan[:, 23:]
    x = torch.where(flip.bool().view(-1, 1, 1, 1), views.flip(-1), views) if recipe.flip_p else views
    x = x.to(torch.float32, memory_format=torch.contiguous_format).mul_(1 / 255)
    live = [not skip or bool((step[:, 0] != 1).any()) for step in steps.unbind(1)]
    jitters = bool(recipe.brightness or recipe.contrast or recipe.saturation)
    for index in range(7):
        if index == _STEPS and recipe.hue and not (skip and not turns.any()):
            x = _turn_hue(x, turns)
        wanted = recipe.grey_p > 0 if index == 2 * _STEPS else jitters
        if wanted and live[index]:
            x = _blend(x, *steps[:, index].unbind(1))
    if recipe.blur_p and not (skip and bool((taps.amax(-1) == 1).all())):
        x = _blur(x, taps)
    return x


def _blend(x: Tensor, f: Tensor, s: Tensor, c: Tensor) -> Tensor:
    """clamp(f x + s grey(x) + c mean(grey(x))), in place. Shape: (n, 3, H, W), (n, 1, 1, 1) each"""
    red, green, blue = x.split(1, 1)
    grey = (red * _GREY[0]).add_(green, alpha=_GREY[1]).add_(blue, alpha=_GREY[2])
    base = grey.mean((-1, -2), keepdim=True).mul_(c)
    base = torch.addcmul(base, grey, s)
    return torch.addcmul(base, x, f, out=x).clamp_(0, 1)


def _turn_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Rotates the hue, keeping value and chroma. Shape: (n, 3, H, W) in [0, 1], (n,) in turns"""
    red, green, blue = x.unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    # Sixths of a turn from red; if two channels are the largest, both forms give the same.
    hue = torch.where(high == green, (blue - red).add_(2 * chroma), (red - green).add_(chroma, alpha=4))
    hue = torch.where(high == red, green - blue, hue).div_(chroma.clamp(min=1e-12))
    hue = hue.add_(6 * turns.view(-1, 1, 1))
    hue = hue.sub_((hue / 6).floor_().mul_(6))
    out = torch.empty_like(x)
    for channel, (centre, sign, offset) in enumerate(((3, 1, -1), (2, -1, 2), (4, -1, 2))):
        share = (hue - centre).abs_().mul_(sign).add_(offset).clamp_(0, 1)
        torch.addcmul(low, chroma, share, out=out[:, channel])
    return out


def _blur(x: Tensor, taps: Tensor) -> Tensor:
    """Gaussian blur along columns, then rows, borders reflected. Shape: (n, 3, H, W), (n, kernel)"""
    count, channels, height, width = x.shape
    kernel = taps.shape[1]
    weight = taps.repeat_interleave(channels, 0)[:, None]
    reach = kernel // 2
    x = F.pad(x, [0, 0, reach, reach], mode='reflect').view(1, count * channels, height + 2 * reach, width)
    x = F.conv2d(x, weight[..., None], groups=count * channels)
    x = F.pad(x, [reach, reach, 0, 0], mode='reflect')
    x = F.conv2d(x, weight[:, :, None], groups=count * channels)
    return x.view(count, channels, height, width)


def channel_constants(mean: Sequence[float], std: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and std as (C, 1, 1) each, read-only; cached per device, since a copy from the host synchronises."""
    return _channel_constants(tuple(mean), tuple(std), device)


@lru_cache(maxsize=16)
def _channel_constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.tensor(mean, device=device).view(-1, 1, 1), torch.tensor(std, device=device).view(-1, 1, 1)
