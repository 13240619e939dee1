"""Four views an image: the paper's recipe from JPEG files, and the batched one for small grey images."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from pinas_zoo.data import BatchedViews, FourViews, collate_views, open_source
from pinas_zoo.speed.timing import Settings, Times, alternate, compare, row

__all__ = ['measure', 'write_photos']


def write_photos(folder: Path, count: int, seed: int) -> None:
    """Writes JPEG files of 500 x 375 px that decode like photos: smooth shapes, some grain, about 75 kB."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.float32)
        grain = rng.normal(0, 8, (375, 500, 1))
        pixels = (smooth + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f'{index:04d}.jpg', quality=90)


def measure(settings: Settings) -> dict[str, Any]:
    """Images a second (four views each) with the main process and with one worker process."""
    photos, small = (4, 16) if settings.quick else (64, 2560)
    digits = open_source({'kind': 'fashion-mnist', 'split': 'train', 'limit': small})
    with TemporaryDirectory() as folder:
        write_photos(Path(folder), photos, settings.seed)
        kilobytes = sum(file.stat().st_size for file in Path(folder).iterdir()) / photos / 1000
        cases: dict[str, tuple[Dataset, int]] = {
            'FourViews, 224 px, JPEG': (FourViews({'kind': 'folder', 'root': folder}), min(8, photos)),
            'BatchedViews, 28 px, grey': (BatchedViews(digits), min(128, small)),
        }
        times = _measure_cases(cases, settings)
    return {
        'settings': dict(photos=photos, kilobytes_a_photo=kilobytes, small=digits.description, views=4),
        'rows': [row(name, t, len(cases[name.rsplit(', ', 1)[0]][0])) for name, t in times.items()],
        'ratios': {
            f'{case}, main process / one worker': compare(
                times[f'{case}, main process'], times[f'{case}, one worker'], cpu=False
            )
            for case in cases
        },
    }


def _measure_cases(cases: dict[str, tuple[Dataset, int]], settings: Settings) -> dict[str, Times]:
    contestants, generator = {}, torch.Generator().manual_seed(settings.seed)
    for case, (data, batch) in cases.items():
        for workers, who in enumerate(('main process', 'one worker')):
            # Persistent: the warm-ups have started the worker.
            loader = DataLoader(
                data, batch, num_workers=workers, persistent_workers=workers > 0, collate_fn=collate_views,
                generator=generator,
            )  # fmt: skip
            contestants[f'{case}, {who}'] = lambda _, loader=loader: [None for _ in loader]
    return alternate(contestants, settings, 'loading')
