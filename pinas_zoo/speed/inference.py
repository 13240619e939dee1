"""Inference of pinas_a beside timm's resnest50d."""

from typing import Any

import timm
import torch
from torch import nn

import pinas_zoo  # noqa: F401  registers the names
from pinas_zoo.models.typed import to_memory_format
from pinas_zoo.speed.timing import Contestant, Settings, alternate, compare, row

__all__ = ['measure']

LAYOUTS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}


def calls(net: nn.Module, images: torch.Tensor) -> Contestant:
    """A contestant that runs a network on images."""
    return lambda _: net(images)


def measure(settings: Settings) -> dict[str, Any]:
    """Times of a forward pass in eval mode, random weights, both memory formats."""
    batch, side = (1, 64) if settings.quick else (8, 224)
    torch.manual_seed(settings.seed)
    images = torch.randn(batch, 3, side, side)
    contestants: dict[str, Contestant] = {}
    for name in ('pinas_a', 'resnest50d'):
        for layout, memory_format in LAYOUTS.items():
            net = to_memory_format(timm.create_model(name).eval(), memory_format)
            x = images.to(memory_format=memory_format)
            contestants[f'{name}, {layout}'] = calls(net, x)
    with torch.inference_mode():
        times = alternate(contestants, settings, 'inference')
    ratios = {f'resnest50d / pinas_a, {k}': compare(times[f'resnest50d, {k}'], times[f'pinas_a, {k}']) for k in LAYOUTS}
    return {
        'settings': dict(batch=batch, side=side, dtype='float32'),
        'rows': [row(name, t, batch) for name, t in times.items()],
        'ratios': ratios,
    }
