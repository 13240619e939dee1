"""Four views per image: the paper's recipe from JPEG files in three forms, and the batched form for small images."""

from collections.abc import Sized
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from pinas_zoo.data import (
    COLOUR_NUMBERS,
    BatchedViews,
    FolderSource,
    FourViews,
    ViewRecipe,
    augment,
    collate_views,
    colour_plan,
    finish_views,
    open_source,
)
from pinas_zoo.speed.timing import Contestant, Settings, Times, alternate, compare, row

__all__ = ['PHOTO', 'TorchvisionViews', 'measure', 'unfinished_batch', 'write_photos']

#: Width and height in px of a photo as in ImageNet, and of one from a camera, halved.
PHOTO, LARGE_PHOTO = (500, 375), (2000, 1500)


def write_photos(folder: Path, count: int, seed: int, side: tuple[int, int] = PHOTO) -> None:
    """Writes JPEG files that decode like photos: smooth shapes, some grain; 75 kB each at 500 x 375 px."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(side, Image.Resampling.BICUBIC), dtype=np.float32)
        grain = rng.normal(0, 8, (side[1], side[0], 1))
        pixels = (smooth + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f'{index:04d}.jpg', quality=90)


class TorchvisionViews(Dataset[dict[str, Any]]):
    """The recipe image by image with torchvision alone and full decoding, views of 224 px: the baseline for FourViews.

    Args:
        source: Images.

    Returns:
        Per index the result of FourViews.
    """

    def __init__(self, source: FolderSource) -> None:
        self.source = source
        r = ViewRecipe()
        jitter = v2.ColorJitter(r.brightness, r.contrast, r.saturation, r.hue)
        blur = _SeparableBlur(r.kernel(224), r.blur_sigma)
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(224, r.scale, r.ratio, antialias=True),
                v2.ToDtype(torch.float32, scale=True),
                v2.RandomApply([jitter], r.jitter_p),
                v2.RandomGrayscale(r.grey_p),
                v2.RandomApply([blur], r.blur_p),
                v2.RandomHorizontalFlip(r.flip_p),
                v2.Normalize(list(r.mean), list(r.std)),
            ]
        )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.source.load(index)
        facts = {'index': index, 'label': -1, 'broken': 0, 'name': ''}
        return {'views': torch.stack([self.transform(image) for _ in range(4)]), **facts}


class _SeparableBlur(torch.nn.Module):
    """v2.GaussianBlur by rows, then by columns: equal, and six times as fast at 224 px."""

    def __init__(self, kernel: int, sigma: tuple[float, float]) -> None:
        super().__init__()
        self.kernel, self.sigma = kernel, sigma

    def forward(self, image: Tensor) -> Tensor:
        sigma = [float(torch.empty(()).uniform_(*self.sigma))] * 2
        image = v2.functional.gaussian_blur(image, [self.kernel, 1], sigma)
        return v2.functional.gaussian_blur(image, [1, self.kernel], sigma)


def measure(settings: Settings) -> dict[str, Any]:
    """Images per second (four views each), the device's part measured on this device, and the bytes of a batch."""
    photos, large, small = (4, 4, 16) if settings.quick else (64, 16, 2560)
    digits = open_source({'kind': 'fashion-mnist', 'split': 'train', 'limit': small})
    with TemporaryDirectory() as place:
        sizes = {}
        cases: dict[str, tuple[Dataset[dict[str, Any]], int]] = {}
        for name, count, side in (('500 x 375', photos, PHOTO), ('2000 x 1500', large, LARGE_PHOTO)):
            folder = Path(place, name)
            folder.mkdir()
            write_photos(folder, count, settings.seed, side)
            sizes[name] = sum(file.stat().st_size for file in folder.iterdir()) / count / 1000
            source, batch = FolderSource(folder), min(8, count)
            cases[f'{name}, torchvision'] = TorchvisionViews(source), batch
            cases[f'{name}, FourViews'] = FourViews(source), batch
            cases[f'{name}, FourViews, unfinished'] = FourViews(source, finish=False), batch
        cases['BatchedViews, 28 px, grey'] = BatchedViews(digits), min(128, small)
        times = _measure_cases(cases, settings)
        raw = collate_views([cases['500 x 375, FourViews, unfinished'][0][i] for i in range(2)])
    rows = [row(name, t, len(cast(Sized, cases[name.rsplit(', ', 1)[0]][0]))) for name, t in times.items()]
    for line in rows:
        if 'main process' in line['name']:
            line['views_per_core_second'] = 4 * line['images_per_second'] * line['seconds'] / line['cpu_seconds']
    ratios = {}
    for case in cases:
        here, there = (times[f'{case}, {who}'] for who in ('main process', 'one worker'))
        ratios[f'{case}, main process / one worker'] = compare(here, there, cpu=False)
    for name in sizes:
        for who in ('main process', 'one worker'):
            before = times[f'{name}, torchvision, {who}']
            for form in ('FourViews', 'FourViews, unfinished'):
                ratio = compare(before, times[f'{name}, {form}, {who}'], cpu=who == 'main process')
                ratios[f'{name}, torchvision / {form}, {who}'] = ratio
    return {
        'settings': dict(photos=photos, kilobytes_a_photo=sizes, small=digits.description, views=4),
        'rows': [*rows, _measure_augment(settings)],
        'ratios': ratios,
        'bytes_an_image': {'float views': _bytes(finish_views(raw)) // 2, 'unfinished': _bytes(raw) // 2},
    }


def _bytes(batch: dict[str, Any]) -> int:
    return sum(value.nbytes for value in batch.values() if isinstance(value, Tensor))


def unfinished_batch(batch: int, size: int) -> dict[str, Any]:
    """A batch for `finish_views` as FourViews returns it: random uint8 views in its memory format, with their plan."""
    generator = torch.Generator().manual_seed(0)
    views = torch.randint(0, 256, (batch, 4, size, size, 3), dtype=torch.uint8, generator=generator).movedim(-1, 2)
    numbers = torch.rand(batch, 4, COLOUR_NUMBERS, generator=generator)
    recipe = ViewRecipe()
    return {'views': views, 'plan': colour_plan(numbers, recipe, size), 'spec': (size, recipe)}


def _measure_augment(settings: Settings) -> dict[str, Any]:
    """One row: flip, colours, blur and normalisation of the views of 4 images on this processor."""
    raw = unfinished_batch(4, 32 if settings.quick else 224)
    times = alternate({'augment': lambda _: augment(raw['views'], raw['plan'], raw['spec'][1])}, settings, 'loading')
    return row('augment, 4 images, one process', times['augment'], 4)


def _measure_cases(cases: dict[str, tuple[Dataset[dict[str, Any]], int]], settings: Settings) -> dict[str, Times]:
    contestants: dict[str, Contestant] = {}
    generator = torch.Generator().manual_seed(settings.seed)
    for case, (data, batch) in cases.items():
        for workers, who in enumerate(('main process', 'one worker')):
            # Persistent: the warm-ups have started the worker.
            loader = DataLoader(
                data, batch, num_workers=workers, persistent_workers=workers > 0, collate_fn=collate_views,
                generator=generator,
            )  # fmt: skip
            contestants[f'{case}, {who}'] = _reading(loader)
    return alternate(contestants, settings, 'loading')


def _reading(loader: DataLoader[dict[str, Any]]) -> Contestant:
    return lambda _: [None for _ in loader]
