"""Labelled images, one view each: linear stage, retraining, evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from pinas_zoo.data.sources import ArraySource, ImageReader, Source, channel_constants
from pinas_zoo.data.specs import SubsetSource, open_source


class SupervisedView(Dataset):
    """Labelled images: linear stage, retraining, evaluation.

    Args:
        source: a source, or a spec for open_source.
        size: side in px, or height and width.
        train: random views, or the evaluation geometry (see centre_view).
        mean, std: normalisation; default: the source's.
        shift: for small images: a random shift by up to so many px instead of the random crop.
        scale: area share of the random resized crop.
        augment: None, 'autoaugment' or 'randaugment'.
        crop_pct: share of the short side in evaluation.
        broken_rate_limit: see ImageReader.

    Returns:
        Per index a dict: `image` (3, height, width) float, `label`, `index`, `name`, `broken`.

    Raises:
        ValueError: an unknown augment.
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
    ) -> None:
        self.source = open_source(source)
        self.size = size if isinstance(size, int) else tuple(size)
        self.train, self.shift, self.crop_pct = train, shift, crop_pct
        if augment is not None and augment not in self.AUGMENTS:
            raise ValueError(f'augment={augment!r}; allowed: None, {", ".join(self.AUGMENTS)}')
        self.reader = ImageReader(self.source, broken_rate_limit)
        steps: list[torch.nn.Module] = []
        if shift is None:
            steps = [v2.RandomResizedCrop(self.size, tuple(scale), antialias=True), v2.RandomHorizontalFlip()]
        if augment:
            steps.append(self.AUGMENTS[augment]())
        self.random = torch.nn.Sequential(*steps)
        self.mean, self.std = (
            torch.tensor(v).view(-1, 1, 1) for v in (mean or self.source.mean, std or self.source.std)
        )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, facts = self.reader.sample(index)
        if self.train:
            image = self.random(image)
        image = centre_view(image, self.size, self.crop_pct)
        x = (image.float() / 255 - self.mean) / self.std
        if self.train and self.shift is not None:
            x = _shift_flip(x, self.shift, self.mean / -self.std)
        return {'image': x, **facts}


def centre_view(image: Tensor, size: int | tuple[int, int], crop_pct: float = 0.875) -> Tensor:
    """Released evaluation geometry: centre crop of crop_pct of the short side, resized bicubic.

    An image of the right size stays as it is. For a height and width that differ, the crop is crop_pct of the largest
    box of their aspect.

    Shape: uint8 (3, H, W) to uint8 (3, size, size), or the height and width that are given as size.
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


def _shift_flip(x: Tensor, shift: int, fill: Tensor) -> Tensor:
    top, left = torch.randint(0, 2 * shift + 1, (2,)).tolist()
    # Padding with a black pixel's normalised value: the shifted image must not gain a frame.
    x = F.pad(x - fill, [shift] * 4) + fill
    x = x[:, top : x.shape[1] - 2 * shift + top, left : x.shape[2] - 2 * shift + left]
    return x.flip(-1) if torch.rand(()) < 0.5 else x
