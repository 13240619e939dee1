"""Labelled images, one view each: linear stage, retraining, evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from pinas_zoo.data.colour import channel_constants
from pinas_zoo.data.small_sets import ArraySource
from pinas_zoo.data.sources import ImageReader, Source, few_names, open_source
from pinas_zoo.data.specs import SubsetSource
from pinas_zoo.data.timm_stream import TimmStream
from pinas_zoo.data.views import resized_crop, shrink_box, sides


class SupervisedView(Dataset[dict[str, Any]]):
    """Labelled images for the linear stage, retraining and evaluation.

    Args:
        source: A source, or a spec for open_source.
        size: Side in px, or height and width.
        train: Random views, or the evaluation geometry (see centre_view).
        mean: Mean of the normalisation; default: the source's.
        std: Standard deviation of the normalisation; default: the source's.
        shift: For small images: a random shift by up to this many px instead of the random crop.
        scale: Area share of the random resized crop.
        augment: None, 'autoaugment' or 'randaugment'.
        crop_pct: Share of the short side in evaluation.
        broken_rate_limit: See ImageReader.
        finish: False keeps the image uint8 and leaves the normalisation to the device, see `finish_images`.
        labelled: False also accepts images without a label, which get label -1.

    An item is a dict: `image` (3, height, width) float, `label`, `index`, `name`, `broken`. Unfinished: `image` uint8,
    and `statistics` (2, channels), mean and std.

    Raises:
        ValueError: An unknown augment, or images without a label.
    """

    AUGMENTS: ClassVar[dict[str, type]] = {'autoaugment': v2.AutoAugment, 'randaugment': v2.RandAugment}

    def __init__(
        self,
        source: Source | Mapping[str, Any],
        size: int | Sequence[int] = 224,
        train: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        shift: int | None = None,
        scale: tuple[float, float] = (0.08, 1.0),
        augment: str | None = None,
        crop_pct: float = 0.875,
        broken_rate_limit: float = 0.01,
        finish: bool = True,
        labelled: bool = True,
    ) -> None:
        self.source = open_source(source)
        if labelled:
            require_labels(self.source)
        self.size = size if isinstance(size, int) else cast('tuple[int, int]', tuple(size))
        if min(sides(self.size)) < 1:
            raise ValueError(f'size must be at least 1 px, got {size}')
        self.train, self.shift, self.crop_pct, self.finish = train, shift, crop_pct, finish
        if augment is not None and augment not in self.AUGMENTS:
            raise ValueError(f'augment={augment!r}; allowed: None, {", ".join(self.AUGMENTS)}')
        self.reader = ImageReader(self.source, broken_rate_limit)
        # Drawn before the image is read: a JPEG file is decoded no larger than its crop needs.
        self.crop = v2.RandomResizedCrop(self.size, tuple(scale), antialias=True) if train and shift is None else None
        steps = [] if shift is not None else [v2.RandomHorizontalFlip()]
        self.random = torch.nn.Sequential(*steps, *([self.AUGMENTS[augment]()] if augment else []))
        self.mean, self.std = (
            torch.tensor(v).view(-1, 1, 1) for v in (mean or self.source.mean, std or self.source.std)
        )
        self.statistics = torch.stack([v.expand(len(self.mean), 1, 1).flatten() for v in (self.mean, self.std)])

    @property
    def metainfo(self) -> dict[str, Any]:
        """What checkpoints store: the class names, and how an image becomes the input (`preprocess`)."""
        return {'classes': self.source.classes, 'preprocess': self.preprocess}

    @property
    def preprocess(self) -> dict[str, Any]:
        """The evaluation geometry and normalisation in timm's terms: input_size, mean, std, crop_pct, interpolation."""
        height, width = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        whole = self.source.source if isinstance(self.source, SubsetSource) else self.source
        as_they_are = isinstance(whole, ArraySource) and tuple(whole.images.shape[-2:]) == (height, width)
        mean, std = ([round(v, 6) for v in values.flatten().expand(3).tolist()] for values in (self.mean, self.std))
        return {
            'input_size': [3, height, width],
            'mean': mean,
            'std': std,
            'crop_pct': 1.0 if as_they_are else self.crop_pct,
            'interpolation': 'bicubic',
        }

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, facts = self._read(index)
        if self.train:
            image = self.random(image)
        image = centre_view(image, self.size, self.crop_pct)
        shift = self.shift if self.train else None
        if not self.finish:
            image = image if shift is None else _shift_flip(image, shift)
            return {'image': image, 'statistics': self.statistics, **facts}
        x = (image.float() / 255 - self.mean) / self.std
        return {'image': x if shift is None else _shift_flip(x, shift, self.mean / -self.std), **facts}

    def _read(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        crop = self.crop
        if crop is None:
            return self.reader.sample(index)
        box: list[int] = []

        def reduction(height: int, width: int) -> float:
            drawn = crop.make_params([torch.zeros(()).expand(3, height, width)])
            box[:] = [drawn[key] for key in ('top', 'left', 'height', 'width')]
            return min(box[2:]) / max(sides(self.size))

        (image, factor), facts = self.reader.sample(index, lambda i: self.source.load_reduced(i, reduction))
        return resized_crop(image, shrink_box(box, factor, image), self.size), facts


def require_labels(source: Source) -> None:
    """Raises a ValueError if images of a source have no label, and names some."""
    if isinstance(source, TimmStream):  # it knows them once it reads
        return
    missing = np.flatnonzero(np.asarray(source.labels) < 0)
    if len(missing) == len(source):
        raise ValueError(
            f'none of the {len(source)} images has a label (first: {source.name(0)}); a labelled stage needs class '
            'folders, or a list with labels'
        )
    if len(missing):
        names = few_names([source.name(int(index)) for index in missing])
        raise ValueError(
            f'{len(missing)} of {len(source)} images are outside the class folders and have no class {names}'
        )


def centre_view(image: Tensor, size: int | tuple[int, int], crop_pct: float = 0.875) -> Tensor:
    """Released evaluation geometry: centre crop of crop_pct of the short side, resized bicubic.

    An image of the right size is unchanged. If height and width differ, the crop is crop_pct of the largest
    box with their aspect ratio.

    Shape: uint8 (3, H, W) to uint8 (3, size, size); size may be a height and width.
    """
    wanted = (size, size) if isinstance(size, int) else size
    if tuple(image.shape[-2:]) == wanted:
        return image
    largest = min(side * max(wanted) / own for side, own in zip(image.shape[-2:], wanted, strict=True))
    box = [max(1, round(largest * own / max(wanted) * crop_pct)) for own in wanted]
    image = v2.functional.center_crop(image, box)
    return v2.functional.resize(image, list(wanted), v2.InterpolationMode.BICUBIC, antialias=True)


def load_tensor(source: Source | Mapping[str, Any], size: int) -> tuple[Tensor, Tensor]:
    """A small labelled set at once, in evaluation geometry; `normalise` makes it network input.

    Shape: images uint8 (N, 3, size, size), grey ones an expanded view; labels long (N,).
    """
    source = open_source(source)
    whole = source.source if isinstance(source, SubsetSource) else source
    if isinstance(whole, ArraySource) and tuple(whole.images.shape[-2:]) == (size, size):
        return source.tensors()
    images = torch.stack([centre_view(source.load(i), size) for i in range(len(source))])
    return images, torch.as_tensor(source.labels, dtype=torch.long)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (..., 3, H, W) to float, minus mean, by std (one value or three)."""
    centre, spread = channel_constants(mean, std, images.device)
    return (images.float() / 255 - centre) / spread


def finish_images(
    batch: dict[str, Any], dtype: torch.dtype = torch.float32, channels_last: bool = False
) -> dict[str, Any]:
    """Normalise the uint8 images of an unfinished batch on its device; finished batches are returned unchanged.

    Args:
        batch: A collated batch of SupervisedView; its tensors are on one device.
        dtype: Type of the images.
        channels_last: Memory format of the images.
    """
    if 'statistics' not in batch:
        return batch
    rest = {key: value for key, value in batch.items() if key != 'statistics'}
    mean, std = batch['statistics'][..., None, None].unbind(1)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = batch['image'].to(torch.float32, memory_format=layout) / 255
    return {**rest, 'image': images.sub_(mean).div_(std).to(dtype)}


def _shift_flip(x: Tensor, shift: int, fill: Tensor | None = None) -> Tensor:
    top, left = torch.randint(0, 2 * shift + 1, (2,)).tolist()
    # Padded with the normalised value of a black pixel: the shifted image must not gain a frame.
    x = F.pad(x, [shift] * 4) if fill is None else F.pad(x - fill, [shift] * 4) + fill
    x = x[:, top : x.shape[1] - 2 * shift + top, left : x.shape[2] - 2 * shift + left]
    return x.flip(-1) if torch.rand(()) < 0.5 else x
