"""The part of the augmentation that runs on the device: equal to torchvision, image by image, for the same numbers."""

from __future__ import annotations

import math
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from pinas_zoo.data import (
    COLOUR_NUMBERS,
    BatchedViews,
    DigitsSource,
    FolderSource,
    FourViews,
    ViewRecipe,
    augment,
    collate_views,
    colour_plan,
    draw_box,
    finish_views,
)

STRONG = dict(jitter_p=1.0, grey_p=0.5, blur_p=1.0)


def one_view(view: Tensor, numbers: Tensor, recipe: ViewRecipe) -> Tensor:
    """torchvision's recipe on one uint8 view: jitter in the order drawn, grey, blur, flip, normalise."""
    jitter, brightness, contrast, saturation, hue, order, grey, blur, width, flip = numbers.tolist()
    x = F.to_dtype(view, torch.float32, scale=True)
    steps = (
        lambda x: F.adjust_brightness(x, 1 + recipe.brightness * (2 * brightness - 1)),
        lambda x: F.adjust_contrast(x, 1 + recipe.contrast * (2 * contrast - 1)),
        lambda x: F.adjust_saturation(x, 1 + recipe.saturation * (2 * saturation - 1)),
        lambda x: F.adjust_hue(x, recipe.hue * (2 * hue - 1)),
    )
    if jitter < recipe.jitter_p:
        for index in list(permutations(range(4)))[int(order * 24)]:
            x = steps[index](x)
    if grey < recipe.grey_p:
        x = F.rgb_to_grayscale(x, 3)
    if blur < recipe.blur_p:
        low, high = recipe.blur_sigma
        x = F.gaussian_blur(x, [recipe.kernel(view.shape[-1])] * 2, [low + (high - low) * width] * 2)
    if flip < recipe.flip_p:
        x = F.horizontal_flip(x)
    return F.normalize(x, list(recipe.mean), list(recipe.std))


def numbers_of(*shape: int) -> Tensor:
    return torch.rand(*shape, COLOUR_NUMBERS, generator=torch.Generator().manual_seed(3))


def coarse_views(batch: int, side: int) -> Tensor:
    """Random ones, and the special cases of a hue: equal channels, black, white, two highest channels."""
    views = torch.randint(0, 256, (batch, 4, 3, side, side), dtype=torch.uint8)
    views[0, :, :, : side // 2] = views[0, :, :1, : side // 2]
    views[1] = views[1] // 128 * 255
    return views


@pytest.mark.parametrize('changes', [{}, STRONG, dict(hue=0.0, **STRONG), dict(jitter_p=0.0), dict(blur_p=0.0)])
@pytest.mark.parametrize('chunk', [None, 7])
def test_augment_equals_torchvision(changes: dict, chunk: int | None) -> None:
    """With and without the CPU's short cuts; the goal is 1/255 of the range, seen is 2e-6."""
    recipe, views, numbers = ViewRecipe(**changes), coarse_views(12, 40), numbers_of(12, 4)
    result = augment(views, colour_plan(numbers, recipe, 40), recipe, chunk=chunk)
    expected = torch.stack([torch.stack([one_view(*pair, recipe) for pair in zip(*x)]) for x in zip(views, numbers)])
    std = torch.tensor(recipe.std).view(-1, 1, 1)
    assert ((result - expected) * std).abs().max() < 1e-5 < 1 / 255


def test_every_order_of_the_jitter_is_drawn_and_right() -> None:
    recipe, numbers = ViewRecipe(**STRONG), numbers_of(24, 1)
    numbers[:, 0, 5] = (torch.arange(24) + 0.5) / 24
    views = coarse_views(24, 16)[:, :1]
    result = augment(views, colour_plan(numbers, recipe, 16), recipe, chunk=24)
    for row, view, drawn in zip(result, views, numbers):
        torch.testing.assert_close(row[0], one_view(view[0], drawn[0], recipe), atol=2e-5, rtol=1e-5)
    numbers[:] = torch.where(torch.arange(COLOUR_NUMBERS) == 5, numbers, numbers[:1])
    orders = augment(views[:1].expand(24, -1, -1, -1, -1), colour_plan(numbers, recipe, 16), recipe)
    assert len({tuple(o.flatten().tolist()) for o in orders}) > 12


def test_augment_layouts_types_and_autocast() -> None:
    recipe, views, plan = ViewRecipe(), coarse_views(3, 24), colour_plan(numbers_of(3, 4), ViewRecipe(), 24)
    plain = augment(views, plan, recipe)
    assert plain.shape == (3, 4, 3, 24, 24) and all(plain[:, v].is_contiguous() for v in range(4))
    last = augment(views.movedim(2, -1).contiguous().movedim(-1, 2), plan, recipe, channels_last=True)
    assert all(last[:, v].is_contiguous(memory_format=torch.channels_last) for v in range(4)) and last.equal(plain)
    with torch.autocast('cpu', torch.bfloat16):
        assert augment(views, plan, recipe).equal(plain)
    assert augment(views, plan, recipe, torch.bfloat16).equal(plain.bfloat16())


def test_bits_of_a_view_depend_on_its_sample_alone() -> None:
    recipe, views, numbers = ViewRecipe(), coarse_views(9, 32), numbers_of(9, 4)
    whole = augment(views, colour_plan(numbers, recipe, 32), recipe)
    alone = [augment(v[None], colour_plan(n[None], recipe, 32), recipe)[0] for v, n in zip(views, numbers)]
    assert torch.stack(alone).equal(whole)


# ---- crop and decode -------------------------------------------------------------------------------------------------


def test_boxes_have_torchvisions_distribution() -> None:
    """Means of 4,000 draws of both, within four standard errors."""
    height, width, count = 120, 200, 4000
    generator = torch.Generator().manual_seed(0)
    ours = [draw_box(u, height, width, ViewRecipe()) for u in torch.rand(count, 22, generator=generator).tolist()]
    torch.manual_seed(0)
    crop, image = v2.RandomResizedCrop(8, (0.2, 1.0)), torch.zeros(1, 1, 1).expand(3, height, width)
    theirs = [tuple(crop.make_params([image])[key] for key in ('top', 'left', 'height', 'width')) for _ in range(count)]
    one, two = np.array(ours, float), np.array(theirs, float)
    error = np.sqrt((one.var(0) + two.var(0)) / count)
    assert (np.abs(one.mean(0) - two.mean(0)) < 4 * error).all()
    assert (one[:, 0] + one[:, 2]).max() <= height and (one[:, 1] + one[:, 3]).max() <= width and one.min() >= 0
    whole = draw_box([0.99] * 22, 10, 100, ViewRecipe())  # no box of that area fits: the middle
    assert whole == (0, 43, 10, 13)


@pytest.fixture(scope='module')
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth JPEG files, wide, high and grey, and a PNG file, all 6 to 9 times as large as the views."""
    root, rng = tmp_path_factory.mktemp('photos'), np.random.default_rng(0)
    for index, side in enumerate(((300, 240), (200, 281), (240, 240))):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(side, Image.Resampling.BICUBIC)
        coarse.save(root / f'{index}.jpg', quality=92)
        coarse.convert('L').save(root / f'grey{index}.jpg', quality=92)
    coarse.save(root / 'plain.png')
    return root


def test_four_views_are_crops_of_the_image(photos: Path) -> None:
    """Against a full decode: 1e-5, and where the file is decoded smaller 8 of 255 on average (boxes in whole px)."""
    source, recipe, size = FolderSource(photos), ViewRecipe(), 32
    plain = torch.tensor(recipe.std).view(-1, 1, 1)
    reduced = 0
    for index in range(len(source)):
        torch.manual_seed(index)
        views = FourViews(source, size, recipe)[index]['views']
        torch.manual_seed(index)
        numbers = torch.rand(4, 22 + COLOUR_NUMBERS)
        image = source.load(index)
        boxes = [draw_box(u, *image.shape[-2:], recipe) for u in numbers[:, :22].tolist()]
        least = min(min(box[2:]) for box in boxes) / size
        reduced += (is_reduced := least >= 2 and source.name(index).endswith('jpg'))
        for view, box, drawn in zip(views, boxes, numbers[:, 22:]):
            crop = F.resized_crop(image, *box, [size, size], antialias=True)
            apart = ((view - one_view(crop, drawn, recipe)) * plain).abs()
            assert apart.max() < 1e-5 or (is_reduced and apart.mean() < 8 / 255)
    assert reduced >= 3


def test_reduced_decodes(photos: Path) -> None:
    source = FolderSource(photos)
    names = [Path(source.name(i)).name for i in range(len(source))]
    asked: list[tuple[int, int]] = []
    for wanted, factor in ((1.0, 1), (1.99, 1), (2.0, 2), (3.9, 2), (4.0, 4), (7.0, 4), (9.0, 8), (50.0, 8)):
        image, found = source.load_reduced(names.index('1.jpg'), lambda h, w, k=wanted: asked.append((h, w)) or k)
        assert (
            found == factor
            and image.shape == (3, math.ceil(281 / found), math.ceil(200 / found))
            and asked[-1] == (281, 200)
        )
    whole, factor = source.load_reduced(names.index('plain.png'), lambda h, w: 8.0)
    assert factor == 1 and whole.shape == (3, 240, 240)
    grey, factor = source.load_reduced(names.index('grey0.jpg'), lambda h, w: 2.0)
    assert factor == 2 and grey.shape == (3, 120, 150) and grey[0].equal(grey[2])


# ---- batches ---------------------------------------------------------------------------------------------------------


class Seeded(Dataset):
    """What the engine does: seeds every sample from its own number."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        torch.manual_seed(1000 + index)
        return self.dataset[index]


@pytest.mark.parametrize('kind', ['photos', 'digits'])
def test_unfinished_batches_become_the_finished_ones(kind: str, photos: Path) -> None:
    """Collated in workers or here, finished afterwards or at once: the same views."""
    digits = DigitsSource('train')

    def loader(workers: int, finish: bool) -> DataLoader:
        if kind == 'photos':
            data: Dataset = FourViews(FolderSource(photos), 32, finish=finish)
        else:
            data = BatchedViews(digits, 28, finish=finish)
        return DataLoader(Seeded(data), 3, sampler=range(6), num_workers=workers, collate_fn=collate_views)

    for now, later, worker in zip(loader(0, True), loader(0, False), loader(1, False)):
        unfinished = later['views' if kind == 'photos' else 'image']
        assert unfinished.dtype == torch.uint8 and unfinished.is_contiguous() == (kind == 'digits')
        for batch in (later, worker):
            done = finish_views(batch)
            assert done['views'].equal(now['views']) and done.keys() == now.keys()
            assert done['name'] == now['name'] and done['index'].equal(now['index'])
            assert finish_views(done) is done


def test_an_unfinished_batch_is_a_quarter_of_the_bytes(photos: Path) -> None:
    batch = collate_views([FourViews(FolderSource(photos), 64, finish=False)[i] for i in range(3)])
    sent = sum(t.nbytes for t in batch.values() if isinstance(t, Tensor))
    assert sent < 1.02 * finish_views(batch)['views'].nbytes / 4
