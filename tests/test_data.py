"""Sources, views and broken images, without downloads or root: digits, and files that the tests write."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from pinas_zoo import data
from pinas_zoo.data import (
    ArraySource,
    BatchedViews,
    BrokenImageError,
    BrokenRateError,
    DigitsSource,
    FolderSource,
    FourViews,
    ImageReader,
    ListSource,
    SubsetSource,
    SupervisedView,
    ViewRecipe,
    batched,
    collate_views,
    load_tensor,
    normalise,
    open_source,
    sources,
)


@pytest.fixture(scope='module')
def digits() -> DigitsSource:
    return DigitsSource('train')


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of colour images, one of them broken."""
    rng = np.random.default_rng(0)
    for name in ('cat', 'dog'):
        (tmp_path / name).mkdir()
        for i in range(6):
            pixels = rng.integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f'{i}.png')
    (tmp_path / 'dog' / '2.png').write_bytes((tmp_path / 'dog' / '2.png').read_bytes()[:90])
    return tmp_path


class Seeded(Dataset):
    """What the engine does: seeds every sample from its own number."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        torch.manual_seed(1000 + index)
        return self.dataset[index]


def seeded(dataset: Dataset, indices: list[int]) -> dict:
    return collate_views([Seeded(dataset)[i] for i in indices])


# ---- sources ---------------------------------------------------------------------------------------------------------


def test_digits_source(digits: DigitsSource) -> None:
    image = digits.load(3)
    assert image.shape == (3, 28, 28) and image.dtype == torch.uint8 and image.stride(0) == 0
    assert digits.name(3) == 'digits/train/3' and 0 <= digits.label(3) < 10
    assert len(digits) + len(DigitsSource('test')) == 1797
    assert digits.description['images'] == len(digits) == 1437
    part = DigitsSource('train', limit=5, start=10)
    assert len(part) == 5 and part.name(0) == 'digits/train/10'
    assert torch.equal(part.load(0), digits.load(10))


def test_digits_statistics(digits: DigitsSource) -> None:
    pixels = digits.images.float() / 255
    assert pixels.mean().item() == pytest.approx(digits.mean[0], abs=1e-3)
    assert pixels.std().item() == pytest.approx(digits.std[0], abs=1e-3)


def test_folder_source(folder: Path) -> None:
    source = FolderSource(folder)
    assert source.classes == ('cat', 'dog') and len(source) == 12
    assert source.label(0) == 0 and source.label(11) == 1
    assert source.name(7) == str(folder / 'dog' / '1.png')
    assert source.load(7).shape == (3, 41, 50)
    with pytest.raises(BrokenImageError, match=r'dog/2\.png'):
        source.load(8)
    flat = FolderSource(folder / 'cat')
    assert flat.classes == () and flat.label(0) == -1


def test_list_source(folder: Path) -> None:
    listing = folder / 'list.txt'
    listing.write_text('cat/1.png 4\n\ndog/5.png 1\ncat/no such.png 0\n')
    source = ListSource(folder, listing)
    assert [source.label(i) for i in range(3)] == [4, 1, 0] and len(source.classes) == 5
    assert source.load(1).shape == (3, 45, 50)
    with pytest.raises(BrokenImageError, match='no such'):
        source.load(2)


def test_parts_are_disjoint_and_deterministic(digits: DigitsSource) -> None:
    parts = {p: SubsetSource(digits, p, holdout=0.2, seed=3) for p in ('train', 'holdout')}
    names = {p: {s.name(i) for i in range(len(s))} for p, s in parts.items()}
    assert not names['train'] & names['holdout'] and len(parts['holdout']) == 287
    assert len(names['train'] | names['holdout']) == len(digits)
    again = SubsetSource(digits, 'holdout', holdout=0.2, seed=3)
    assert np.array_equal(again.indices, parts['holdout'].indices)
    assert not np.array_equal(SubsetSource(digits, 'holdout', 0.2, 4).indices, again.indices)
    first, second = (SubsetSource(digits, 'train', 100, 0, start, 50) for start in (0, 50))
    assert not set(first.indices) & set(second.indices)
    images, labels = first.tensors()
    assert images[7].equal(first.load(7)) and int(labels[7]) == first.label(7)


def test_open_source(folder: Path) -> None:
    spec = {'kind': 'digits', 'split': 'train', 'start': 5, 'limit': 10}
    assert open_source(spec).name(0) == 'digits/train/5' and len(open_source(spec)) == 10
    assert len(open_source({'kind': 'folder', 'root': str(folder), 'part': 'train'})) == 11
    source = DigitsSource('test')
    assert open_source(source) is source


@pytest.mark.parametrize(
    ('spec', 'message'),
    [
        ({'kind': 'cifar'}, 'allowed: cifar10, cifar100, digits, fashion-mnist, folder, list, pairs'),
        ('digits', "'digits' is unknown; give a dict"),
        ({'kind': 'digits', 'split': 'train', 'sise': 3}, r"\['sise'\]; allowed: split, size"),
        ({'kind': 'folder'}, r"needs \['root'\]"),
        ({'kind': 'folder', 'root': '/nowhere'}, 'not a folder'),
        ({'kind': 'digits', 'split': 'val'}, 'allowed: train, test'),
        ({'kind': 'digits', 'split': 'test', 'start': 400}, 'allowed: 1 or more of its 360'),
        ({'kind': 'digits', 'split': 'test', 'part': 'half'}, 'allowed parts: all, train, holdout'),
        ({'kind': 'digits', 'split': 'test', 'holdout': 9}, "holdout=9 has no effect on all images: add part='train'"),
    ],
)
def test_open_source_names_the_fault(spec: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(spec)


# ---- views -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('cls', [FourViews, BatchedViews])
def test_views_follow_the_seed(cls: type, digits: DigitsSource) -> None:
    dataset = cls(digits, 28, ViewRecipe.small_grey(digits.mean, digits.std))
    batch = seeded(dataset, [4, 9, 2])
    assert batch['views'].shape == (3, 4, 3, 28, 28) and batch['views'].dtype == torch.float32
    assert batch['index'].tolist() == [4, 9, 2] and batch['name'][1] == 'digits/train/9'
    assert batch['label'].tolist() == [digits.label(i) for i in (4, 9, 2)]
    low, high = ((bound - digits.mean[0]) / digits.std[0] for bound in (0, 1))
    assert low - 1e-4 <= batch['views'].min() and batch['views'].max() <= high + 1e-4
    again = seeded(dataset, [9, 4])
    assert again['views'][1].equal(batch['views'][0])
    views = batch['views'][0]
    assert all(not views[i].equal(views[j]) for i in range(4) for j in range(i))


@pytest.mark.parametrize('cls', [FourViews, BatchedViews])
def test_views_do_not_depend_on_workers(cls: type, digits: DigitsSource) -> None:
    dataset = Seeded(cls(digits, 28, ViewRecipe.small_grey(digits.mean, digits.std)))
    load = partial(DataLoader, dataset, batch_size=4, collate_fn=collate_views, sampler=range(8))
    for one, two in zip(load(num_workers=0), load(num_workers=2)):
        assert one['views'].equal(two['views']) and one['name'] == two['name']


def test_batched_bits_depend_on_the_sample_alone(digits: DigitsSource) -> None:
    """Workers run one thread, the main process more; a last batch is smaller: the views stay bit-equal."""
    dataset = Seeded(BatchedViews(digits))
    samples = [dataset[i] for i in range(70)]
    whole = collate_views(samples)['views']
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        assert collate_views(samples)['views'].equal(whole)
    finally:
        torch.set_num_threads(threads)
    assert torch.cat([collate_views(samples[i : i + 9])['views'] for i in range(0, 70, 9)]).equal(whole)


def test_view_order_is_the_draw_order(digits: DigitsSource) -> None:
    """Query a, key a, query b, key b are drawn one after the other: plain MoCo's pair is path a's."""
    four, two = (Seeded(FourViews(digits, 28, ViewRecipe.small_grey(), views=n)) for n in (4, 2))
    assert four[0]['views'][:2].equal(two[0]['views'])
    with pytest.raises(ValueError, match='views must be 2 or 4'):
        FourViews(digits, 28, views=3)


def test_paper_recipe(folder: Path) -> None:
    recipe = ViewRecipe()
    assert (recipe.scale, recipe.jitter_p, recipe.grey_p, recipe.hue) == ((0.2, 1.0), 0.8, 0.2, 0.4)
    dataset = FourViews(FolderSource(folder), 64, broken_rate_limit=0.5)
    sample = Seeded(dataset)[0]
    assert sample['views'].shape == (4, 3, 64, 64) and sample['views'].isfinite().all()
    assert FourViews(FolderSource(folder), 64, {'hue': 0.1}).recipe.hue == 0.1


def test_views_leave_other_generators_alone(digits: DigitsSource) -> None:
    random.seed(1)
    np.random.seed(1)
    states = random.getstate(), np.random.get_state()[1].copy()
    seeded(FourViews(digits, 28, ViewRecipe.small_grey()), [0])
    seeded(BatchedViews(digits), [0])
    assert random.getstate() == states[0] and np.array_equal(np.random.get_state()[1], states[1])


@pytest.mark.parametrize('size', [20, 28, 40])
def test_batched_geometry_equals_torchvision(size: int, digits: DigitsSource) -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.rand(4, 24, generator=generator)
    boxes = batched.crop_boxes(numbers, 28, 28, ViewRecipe(scale=(0.1, 1.0)))
    flip = torch.rand(24, generator=generator) < 0.5
    rows = batched.resize_weights(boxes[0], boxes[2], size, 28)
    columns = batched.resize_weights(boxes[1], boxes[3], size, 28, flip)
    image = digits.load(5)[:1].float()
    for i, (top, left, height, width) in enumerate(torch.stack(boxes, 1).int().tolist()):
        assert top >= 0 and top + height <= 28 and left >= 0 and left + width <= 28
        expected = v2.functional.resized_crop(image, top, left, height, width, [size, size], antialias=True)
        expected = expected.flip(-1) if flip[i] else expected
        torch.testing.assert_close(rows[i] @ image @ columns[i].T, expected, atol=2e-3, rtol=1e-4)


def test_blurs_equal_torchvision(digits: DigitsSource) -> None:
    image = torch.rand(3, 30, 30, generator=torch.Generator().manual_seed(0))
    expected = v2.functional.gaussian_blur(image, [5, 5], [0.7, 0.7])
    weights = batched.blur_weights(torch.tensor([0.7, 0.0]), 30, 5)
    torch.testing.assert_close(weights[0] @ image @ weights[0].T, expected)
    torch.testing.assert_close(weights[1], torch.eye(30))


def test_batched_without_strength_is_the_image(digits: DigitsSource) -> None:
    recipe = ViewRecipe(
        (1.0, 1.0), (1.0, 1.0), 0.0, 0.0, 0.0, 0.0, grey_p=0.0, blur_p=0.0, flip_p=0.0,
        mean=digits.mean, std=digits.std,
    )  # fmt: skip
    views = seeded(BatchedViews(digits, 28, recipe), [1])['views'][0]
    torch.testing.assert_close(views[2], normalise(digits.load(1), digits.mean, digits.std))
    torch.testing.assert_close(views, Seeded(FourViews(digits, 28, recipe))[1]['views'])


def test_batched_jitter(digits: DigitsSource) -> None:
    recipe = ViewRecipe(
        (1.0, 1.0), (1.0, 1.0), 0.4, 0.4, 0.0, 0.0, jitter_p=1.0, grey_p=0.0, blur_p=0.0,
        flip_p=0.0, mean=(0.0,), std=(1.0,),
    )  # fmt: skip
    numbers = torch.rand(1, 4, 10, generator=torch.Generator().manual_seed(2))
    image = digits.load(1)[None, :1]
    views = data.augment_batch(image, numbers, 28, recipe)
    for view, n in zip(views[0], numbers[0]):
        x = v2.functional.adjust_brightness(image[0].float() / 255, 1 + 0.4 * (2 * n[6].item() - 1))
        x = v2.functional.adjust_contrast(x, 1 + 0.4 * (2 * n[7].item() - 1))
        torch.testing.assert_close(view, x.expand(3, -1, -1), atol=1e-5, rtol=1e-4)


def test_batched_colour_images() -> None:
    recipe = ViewRecipe(saturation=0.0, hue=0.0, grey_p=0.0)
    images = torch.randint(0, 256, (2, 3, 32, 40), dtype=torch.uint8)
    assert data.augment_batch(images, torch.rand(2, 4, 10), 24, recipe).shape == (2, 4, 3, 24, 24)


def test_batched_views_need_not_be_square() -> None:
    """Rotating an image by 90 degrees, with the numbers of rows and columns exchanged, rotates the views."""
    recipe = ViewRecipe(saturation=0.0, hue=0.0, grey_p=0.0, blur_p=1.0, flip_p=0.0, ratio=(1.0, 1.0))
    images, numbers = torch.randint(0, 256, (2, 3, 32, 40), dtype=torch.uint8), torch.rand(2, 4, 10)
    wide = data.augment_batch(images, numbers, (16, 24), recipe)
    high = data.augment_batch(images.mT, numbers[..., [0, 1, 3, 2, 4, 5, 6, 7, 8, 9]], (24, 16), recipe)
    assert wide.shape == (2, 4, 3, 16, 24)
    torch.testing.assert_close(wide, high.mT)


def test_batched_refuses(digits: DigitsSource, folder: Path) -> None:
    with pytest.raises(ValueError, match=r'hue=0\.4'):
        BatchedViews(digits, 28, ViewRecipe())
    dataset = BatchedViews(FolderSource(folder / 'cat'), 28)
    with pytest.raises(ValueError, match='one shape'):
        collate_views([dataset[0], dataset[1]])


# ---- broken images ---------------------------------------------------------------------------------------------------


def test_broken_image_is_replaced(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = FourViews(FolderSource(folder), 24, broken_rate_limit=0.02)
    sample = Seeded(dataset)[8]
    assert sample['broken'] == 1 and sample['index'] == 8 and 'dog/2.png' in caplog.text
    other = FourViews(FolderSource(folder), 24, broken_rate_limit=0.02)
    other[3]
    again = Seeded(other)[8]
    assert again['name'] == sample['name'] and again['views'].equal(sample['views'])
    assert dataset.reader.failures == 1 and list(dataset.reader.broken) == [str(folder / 'dog/2.png')]
    assert sample['label'] == (0 if 'cat' in sample['name'] else 1)


def test_broken_rate_stops(folder: Path) -> None:
    dataset = FourViews(FolderSource(folder), 24, broken_rate_limit=0.0)
    with pytest.raises(BrokenRateError, match=r'1 of 1 reads failed \(1 files\).*dog/2\.png'):
        dataset[8]
    for file in (folder / 'cat').iterdir():
        file.write_bytes(b'')
    reader = ImageReader(FolderSource(folder / 'cat'), 1.0)
    with pytest.raises(BrokenRateError, match='none of 6'):
        reader.read(0)
    with pytest.raises(ValueError, match='allowed: 0 to 1'):
        ImageReader(FolderSource(folder), 2)


def test_broken_rate_stops_from_a_worker(folder: Path) -> None:
    loader = DataLoader(FourViews(FolderSource(folder), 24, broken_rate_limit=0.0), 4, num_workers=1)
    with pytest.raises(BrokenRateError, match=r'dog/2\.png'):
        list(loader)


# ---- supervised ------------------------------------------------------------------------------------------------------


def test_supervised_eval_small_is_direct(digits: DigitsSource) -> None:
    sample = SupervisedView(digits, 28)[4]
    assert sample['label'] == digits.label(4) and sample['name'] == 'digits/train/4'
    torch.testing.assert_close(sample['image'], normalise(digits.load(4), digits.mean, digits.std))


def test_supervised_train_small() -> None:
    images = np.zeros((8, 28, 28), dtype=np.uint8)
    images[:, 4:20, 6:22] = np.arange(1, 257, dtype=np.uint16).reshape(16, 16) % 256
    source = ArraySource(images, np.arange(8), [str(i) for i in range(8)], 'box', 0, None)
    source.mean, source.std = (0.3,), (0.2,)
    dataset = Seeded(SupervisedView(source, 28, train=True, shift=2))
    views = [dataset[i]['image'] for i in range(8)]
    assert all(v.shape == (3, 28, 28) for v in views) and dataset[3]['image'].equal(views[3])
    plain = SupervisedView(source, 28)[0]['image']
    # A shift by up to 2 px and a flip move the pixels of the box, they do not change them.
    for view in views:
        torch.testing.assert_close(view.flatten().sort()[0], plain.flatten().sort()[0])
    assert len({tuple(v[0].flatten().tolist()) for v in views}) > 4


@pytest.mark.parametrize('augment', [None, 'randaugment', 'autoaugment'])
def test_supervised_large(folder: Path, augment: str | None) -> None:
    train = Seeded(SupervisedView(FolderSource(folder), 32, train=True, augment=augment))
    assert train[0]['image'].shape == (3, 32, 32) and train[0]['image'].equal(train[0]['image'])
    sample = SupervisedView(FolderSource(folder), 32)[1]
    side = round(41 * 0.875)
    crop = v2.functional.center_crop(FolderSource(folder).load(1), [side, side])
    crop = v2.functional.resize(crop, [32, 32], v2.InterpolationMode.BICUBIC, antialias=True)
    expected = normalise(crop, sources.IMAGENET_MEAN, sources.IMAGENET_STD)
    torch.testing.assert_close(sample['image'], expected)


def test_supervised_refuses(digits: DigitsSource) -> None:
    with pytest.raises(ValueError, match='allowed: None, autoaugment, randaugment'):
        SupervisedView(digits, 28, augment='mixup')


def test_load_tensor(digits: DigitsSource, folder: Path) -> None:
    images, labels = load_tensor(digits, 28)
    assert images.shape == (1437, 3, 28, 28) and images.dtype == torch.uint8
    assert images.stride(1) == 0 and labels.dtype == torch.long
    small, _ = load_tensor({'kind': 'digits', 'split': 'test', 'limit': 6}, 32)
    assert small.shape == (6, 3, 32, 32)
    colour, _ = load_tensor(FolderSource(folder / 'cat'), 24)
    assert colour.shape == (6, 3, 24, 24)
