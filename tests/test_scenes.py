"""Composed scenes: exact masks, the three formats, and the manifest; items are scikit-learn's digits."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pinas_zoo.data import DigitsSource, SubsetSource
from pinas_zoo.data.scenes import images as scene_images
from pinas_zoo.data.scenes import prepare as scenes
from pinas_zoo.data.scenes.prepare import (
    FLOOR,
    RIM,
    WALL,
    SceneSettings,
    compose,
    cut_items,
    prepare_scenes,
    run_lengths,
)

SMALL = SceneSettings(size=64, train=6, val=3, seed=1, pool=60)
CLASSES = tuple(str(i) for i in range(10))


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('data') / 'scenes'
    _, written = prepare_scenes(root, SMALL, DigitsSource('train'), DigitsSource('test'))
    assert written
    return root


@pytest.fixture(scope='module')
def items() -> scenes.Items:
    return cut_items(DigitsSource('train'), 100, 0)


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob('*')) if p.is_file()}


def png(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


# ---- masks and composing ---------------------------------------------------------------------------------------------


def test_solid_masks_fill_holes() -> None:
    pixels = np.zeros((2, 12, 12), dtype=np.uint8)
    pixels[0, 2:9, 3:10] = 200
    pixels[0, 4:7, 5:8] = 0  # a hole: part of the item
    pixels[1, 0:6, 0:6] = 90
    pixels[1, 0:3, 2:4] = 0  # a notch that is open to the border: outside
    masks = scenes.solid_masks(pixels)
    assert masks[0].sum() == 49 and masks[0, 4:7, 5:8].all()
    assert masks[1].sum() == 30 and not masks[1, 0:3, 2:4].any()


@pytest.mark.parametrize('seed', range(8))
def test_scene_is_consistent(seed: int, items: scenes.Items) -> None:
    settings = SceneSettings(size=96)
    scene = compose(items, np.random.default_rng(seed), 96, 120, settings)
    assert scene.image.shape == (96, 120, 3) and scene.image.dtype == np.uint8
    assert len(scene.categories) == len(scene.names) >= 1
    assert set(np.unique(scene.ids)) == {-1, *range(len(scene.names))}
    inner = np.s_[1:-1, 1:-1]  # the rim of 96 // 64 px is ignored
    for number, category in enumerate(scene.categories):
        mask = scene.ids[inner] == number
        assert (scene.labels[inner][mask] == category).all()
        assert int(items.categories[items.names.index(scene.names[number])]) == category
    assert set(np.unique(scene.labels[inner][scene.ids[inner] < 0])) <= {WALL, FLOOR}
    assert (scene.labels[0] == RIM).all() and (scene.labels[:, -1] == RIM).all()


def test_visible_pixels_show_the_item(items: scenes.Items) -> None:
    """Where the map says item n, the picture differs from the same scene's background."""
    scene = compose(items, np.random.default_rng(3), 96, 96, SceneSettings(size=96))
    background, floor = scenes.paint_background(np.random.default_rng(3), 96, 96)
    changed = np.abs(scene.image / 255 - background).max(-1) > 0.02
    assert changed[scene.ids >= 0].mean() > 0.95
    assert (scene.labels[2:-2, 2:-2] == np.where(floor, FLOOR, WALL)[2:-2, 2:-2])[scene.ids[2:-2, 2:-2] < 0].all()


def test_items_are_partly_hidden_but_visible_enough(items: scenes.Items, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    visible = scene_images._visible

    def watched(sprites: list, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        ids, areas = visible(sprites, height, width)
        watched.last = np.bincount(ids[ids >= 0], minlength=len(sprites)) / areas
        return ids, areas

    monkeypatch.setattr(scene_images, '_visible', watched)
    for seed in range(20):
        compose(items, np.random.default_rng(seed), 96, 96, SceneSettings(size=96))
        shares.extend(watched.last)
    shares = np.array(shares)
    assert shares.min() >= 0.35 and 0.1 < (shares < 0.98).mean() < 0.9


def test_run_lengths() -> None:
    mask = np.zeros((3, 2), dtype=bool)
    mask[1:, 0] = mask[0, 1] = True
    assert run_lengths(mask) == {'size': [3, 2], 'counts': [1, 3, 2]}
    assert run_lengths(~mask)['counts'] == [0, 1, 3, 2]
    assert run_lengths(np.ones((2, 2), dtype=bool))['counts'] == [0, 4]


def test_the_classes_follow_from_the_source(tmp_path: Path) -> None:
    """A source of four classes gives scenes of four, and of wall and floor behind them."""
    parts = [DigitsSource('train', 300), DigitsSource('test')]
    for source in parts:
        source.labels = source.labels % 4
        source.classes = ('north', 'east', 'south', 'west')
    settings = SceneSettings(64, 4, 2, 0, ('coco', 'ade20k', 'cityscapes'), pool=60)
    manifest, _ = prepare_scenes(tmp_path / 's', settings, *parts)
    assert manifest['ade20k_classes'] == ['north', 'east', 'south', 'west', 'wall', 'floor']
    document = json.loads((tmp_path / 's/coco/annotations/instances_train2017.json').read_text())
    assert [c['name'] for c in document['categories']] == manifest['classes']
    seen = {v for p in (tmp_path / 's/ade20k/annotations').rglob('*.png') for v in np.unique(png(p)).tolist()}
    assert seen == set(range(7))
    assert (tmp_path / 's/ade20k/classes.txt').read_text().splitlines() == manifest['ade20k_classes']
    seen = {v for p in (tmp_path / 's/cityscapes').rglob('*TrainIds.png') for v in np.unique(png(p)).tolist()}
    assert seen == {11, 12, 13, 14, 3, 0, 255}


def test_sources_that_do_not_fit(tmp_path: Path) -> None:
    train, val = DigitsSource('train', 50), DigitsSource('test', 50)
    train.classes = ()
    with pytest.raises(ValueError, match='1 to 253 classes, got 0'):
        cut_items(train, 5, 0)
    with pytest.raises(ValueError, match='have different classes'):
        prepare_scenes(tmp_path / 's', SMALL, train, val)
    train.classes = val.classes = tuple(map(str, range(11)))
    with pytest.raises(ValueError, match='Cityscapes has 10 countable classes, the source has 11; leave cityscapes'):
        prepare_scenes(tmp_path / 's', SMALL, train, val)


def test_an_earlier_set_gets_its_class_names(root: Path) -> None:
    file = root / 'ade20k' / scenes.CLASS_NAMES
    content = file.read_text()
    file.unlink()
    _, written = prepare_scenes(root, SMALL, DigitsSource('train'), DigitsSource('test'))
    assert not written and file.read_text() == content
    assert content.splitlines() == [*CLASSES, 'wall', 'floor']


@pytest.mark.parametrize(
    'values', [{'size': 8}, {'train': 0}, {'formats': ('voc',)}, {'items': (5, 2)}, {'min_visible': 0}, {'seed': -1}]
)
def test_settings_refuse(values: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        SceneSettings(**values)


# ---- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('split', ['train', 'val'])
def test_coco_format(root: Path, split: str) -> None:
    coco = pytest.importorskip('pycocotools.coco')
    api = coco.COCO(str(root / 'coco' / 'annotations' / f'instances_{split}2017.json'))
    assert len(api.imgs) == getattr(SMALL, split) and len(api.cats) == 10
    assert [c['name'] for c in api.loadCats(api.getCatIds())] == list(CLASSES)
    for image in api.imgs.values():
        assert Image.open(root / 'coco' / f'{split}2017' / image['file_name']).size == (64, 64)
        annotations = api.imgToAnns[image['id']]
        masks = np.stack([api.annToMask(a) for a in annotations])
        assert masks.shape[1:] == (64, 64) and masks.sum(0).max() == 1
        for mask, annotation in zip(masks, annotations):
            left, top, width, height = annotation['bbox']
            assert mask.sum() == annotation['area'] >= 30 and annotation['iscrowd'] == 0
            assert mask[top : top + height, left : left + width].sum() == annotation['area']
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert (rows[0], rows[-1], columns[0], columns[-1]) == (top, top + height - 1, left, left + width - 1)


def test_coco_scores_its_own_truth_perfectly(root: Path) -> None:
    coco, evaluation = pytest.importorskip('pycocotools.coco'), pytest.importorskip('pycocotools.cocoeval')
    truth = coco.COCO(str(root / 'coco' / 'annotations' / 'instances_val2017.json'))
    found = [
        {**{k: a[k] for k in ('image_id', 'category_id', 'bbox')}, 'segmentation': truth.annToRLE(a), 'score': 1.0}
        for a in truth.anns.values()
    ]
    for kind in ('bbox', 'segm'):
        metric = evaluation.COCOeval(truth, truth.loadRes([dict(f) for f in found]), kind)
        metric.evaluate(), metric.accumulate(), metric.summarize()
        assert metric.stats[0] == pytest.approx(1.0)


def test_ade20k_format(root: Path) -> None:
    images = sorted((root / 'ade20k' / 'images' / 'training').iterdir())
    assert len(images) == SMALL.train
    seen = set()
    for image in images:
        labels = png(root / 'ade20k' / 'annotations' / 'training' / f'{image.stem}.png')
        assert labels.dtype == np.uint8 and labels.shape == (64, 64) and (labels[0] == 0).all()
        assert (labels[1:-1, 1:-1] > 0).all()
        seen |= set(np.unique(labels).tolist())
    assert {0, 11, 12} < seen <= set(range(13))


def test_cityscapes_format(root: Path) -> None:
    table = dict(zip(scenes.CITYSCAPES_IDS.tolist(), scenes.CITYSCAPES_TRAIN_IDS.tolist()))
    images = sorted((root / 'cityscapes' / 'leftImg8bit' / 'val' / 'scenes').iterdir())
    assert len(images) == SMALL.val
    for image in images:
        stem = image.name.removesuffix('_leftImg8bit.png')
        folder = root / 'cityscapes' / 'gtFine' / 'val' / 'scenes'
        ids, train_ids = (png(folder / f'{stem}_gtFine_{kind}.png') for kind in ('labelIds', 'labelTrainIds'))
        assert ids.shape == train_ids.shape == (64, 128)
        assert np.array_equal(np.vectorize(table.get)(ids), train_ids) and (train_ids[0] == 255).all()
        assert set(np.unique(train_ids)) <= {0, 3, 6, 7, *range(11, 19), 255}


def test_cityscapes_table_is_the_official_one() -> None:
    official = {7: 0, 12: 3, 19: 6, 20: 7, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18, 3: 255}
    assert dict(zip(scenes.CITYSCAPES_IDS.tolist(), scenes.CITYSCAPES_TRAIN_IDS.tolist())) == official


def test_train_and_val_share_no_item(root: Path) -> None:
    names = {}
    for split in ('train', 'val'):
        document = json.loads((root / 'coco' / 'annotations' / f'instances_{split}2017.json').read_text())
        names[split] = {a['item'] for a in document['annotations']}
    assert all(n.startswith('digits/train/') for n in names['train'])
    assert all(n.startswith('digits/test/') for n in names['val'])


@pytest.mark.mm
def test_mmdet_reads_coco(root: Path) -> None:
    pytest.importorskip('mmcv')
    from mmcv.transforms import LoadImageFromFile
    from mmdet.datasets import CocoDataset
    from mmdet.datasets.transforms import LoadAnnotations

    pipeline = [{'type': LoadImageFromFile}, {'type': LoadAnnotations, 'with_bbox': True, 'with_mask': True}]
    dataset = CocoDataset(
        data_root=str(root / 'coco'),
        ann_file='annotations/instances_train2017.json',
        data_prefix={'img': 'train2017/'},
        metainfo={'classes': CLASSES},
        pipeline=pipeline,
    )
    document = json.loads((root / 'coco' / 'annotations' / 'instances_train2017.json').read_text())
    areas = [int(m.sum()) for i in range(len(dataset)) for m in dataset[i]['gt_masks'].masks]
    assert areas == [a['area'] for a in document['annotations']]
    labels = [int(x) for i in range(len(dataset)) for x in dataset[i]['gt_bboxes_labels']]
    assert labels == [a['category_id'] - 1 for a in document['annotations']]


@pytest.mark.mm
def test_mmseg_reads_ade20k_and_cityscapes(root: Path) -> None:
    pytest.importorskip('mmcv')
    from mmcv.transforms import LoadImageFromFile
    from mmseg.datasets import ADE20KDataset, BaseSegDataset, CityscapesDataset
    from mmseg.datasets.transforms import LoadAnnotations

    pipeline = [{'type': LoadImageFromFile}, {'type': LoadAnnotations}]  # classes: no default scope matters
    ade = ADE20KDataset(
        data_root=str(root / 'ade20k'),
        data_prefix={'img_path': 'images/training', 'seg_map_path': 'annotations/training'},
        pipeline=pipeline,
    )
    assert len(ade) == SMALL.train
    raw = png(sorted((root / 'ade20k' / 'annotations' / 'training').iterdir())[0])
    read = ade[0]['gt_seg_map']
    assert np.array_equal(read, np.where(raw == 0, 255, raw - 1))
    named = BaseSegDataset(
        data_root=str(root / 'ade20k'),
        data_prefix={'img_path': 'images/validation', 'seg_map_path': 'annotations/validation'},
        metainfo={'classes': str(root / 'ade20k' / scenes.CLASS_NAMES)},  # mmengine reads such a file
        reduce_zero_label=True,
        pipeline=pipeline,
    )
    seen = np.unique(np.stack([named[i]['gt_seg_map'] for i in range(len(named))]))
    assert set(seen.tolist()) <= {*range(len(named.metainfo['classes'])), 255} and {10, 11, 255} <= set(seen.tolist())
    city = CityscapesDataset(
        data_root=str(root / 'cityscapes'),
        data_prefix={'img_path': 'leftImg8bit/val', 'seg_map_path': 'gtFine/val'},
        pipeline=pipeline,
    )
    assert len(city) == SMALL.val and city[0]['gt_seg_map'].shape == (64, 128)


# ---- manifest --------------------------------------------------------------------------------------------------------


def test_byte_for_byte_deterministic(root: Path, tmp_path: Path) -> None:
    prepare_scenes(tmp_path / 'again', SMALL, DigitsSource('train'), DigitsSource('test'))
    assert contents(tmp_path / 'again') == contents(root)
    one = SceneSettings(size=64, train=2, val=1, seed=2, pool=60, formats=('coco',))
    prepare_scenes(tmp_path / 'other', one, DigitsSource('train'), DigitsSource('test'))
    path = 'coco/train2017/000000000001.jpg'
    assert (tmp_path / 'other' / path).read_bytes() != (root / path).read_bytes()


def test_second_call_and_overwrite(tmp_path: Path) -> None:
    train, val = DigitsSource('train'), DigitsSource('test')
    make = {'train': 2, 'val': 1, 'size': 32, 'pool': 30}
    steps: list[tuple[str, int, int]] = []
    first, written = prepare_scenes(
        tmp_path / 'a' / 's', SceneSettings(**make), train, val, progress=lambda *x: steps.append(x)
    )
    assert written and steps[:2] == [('coco train', 1, 2), ('coco train', 2, 2)] and len(steps) == 9
    before = contents(tmp_path / 'a')
    again, written = prepare_scenes(tmp_path / 'a' / 's', SceneSettings(**make), train, val)
    assert not written and again == first and contents(tmp_path / 'a') == before
    with pytest.raises(ValueError, match=r'seed is 0, requested 5.*--overwrite'):
        prepare_scenes(tmp_path / 'a' / 's', SceneSettings(**make, seed=5), train, val)
    with pytest.raises(ValueError, match='data is'):
        prepare_scenes(tmp_path / 'a' / 's', SceneSettings(**make), SubsetSource(train, limit=500), val)
    third, written = prepare_scenes(tmp_path / 'a' / 's', SceneSettings(**make, seed=5), train, val, overwrite=True)
    assert written and third['sha256'] != first['sha256']
    assert sorted(p.name for p in (tmp_path / 'a').iterdir()) == ['.s.lock', 's']


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(ValueError, match='not a scene set'):
        prepare_scenes(tmp_path, SMALL, DigitsSource('train'), DigitsSource('test'), overwrite=True)
    assert (tmp_path / 'notes.txt').read_text() == 'mine'


def test_a_killed_run_leaves_nothing_half(tmp_path: Path) -> None:
    make = SceneSettings(train=2, val=1, size=32, pool=30)

    def kill(step: str, done: int, total: int) -> None:
        if step == 'ade20k train':
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_scenes(tmp_path / 's', make, DigitsSource('train'), DigitsSource('test'), progress=kill)
    assert not (tmp_path / 's').exists()
    _, written = prepare_scenes(tmp_path / 's', make, DigitsSource('train'), DigitsSource('test'))
    assert written and not list(tmp_path.glob('.*.partial'))


def test_tool(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = Path(__file__).parent.parent / 'tools' / 'prepare_data.py'
    spec = importlib.util.spec_from_file_location('prepare_data', path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    common = ['scenes', '--root', str(tmp_path / 's'), '--data', 'digits', '--size', '32', '--train', '2', '--val', '1']
    assert tool.main([*common, '--formats', 'coco']) == 0
    out = capsys.readouterr()
    assert json.loads(out.out.splitlines()[-1])['written'] and 'coco train' in out.err
    assert tool.main([*common, '--formats', 'coco']) == 0
    assert 'nothing to do' in capsys.readouterr().out
    assert tool.main([*common, '--seed', '3']) == 1
    assert '--overwrite' in capsys.readouterr().err
