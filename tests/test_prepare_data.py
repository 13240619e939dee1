"""Trees of COCO, ADE20K and Cityscapes: every message, train ids, links, mini sets."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pinas_zoo.data import DigitsSource
from pinas_zoo.data.scenes.prepare import SceneSettings, prepare_scenes
from pinas_zoo.data.trees import (
    ADE20K,
    CITYSCAPES,
    COCO,
    TREES,
    TreeError,
    choose_covering,
    link_tree,
    make_mini,
    make_train_ids,
)

COUNTS = (6, 3)


@pytest.fixture(scope='module')
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('trees') / 'scenes'
    prepare_scenes(root, SceneSettings(32, *COUNTS), DigitsSource('train'), DigitsSource('test'))
    return root


@pytest.fixture
def tree(scenes: Path, tmp_path: Path):
    """Copies a scene set as a separate tree."""

    def copy(name: str) -> Path:
        shutil.copytree(scenes / name, tmp_path / name)
        return tmp_path / name

    return copy


def tool():
    path = Path(__file__).parent.parent / 'tools' / 'prepare_data.py'
    spec = importlib.util.spec_from_file_location('prepare_data', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    counts = [] if '--counts' in arguments else ['--counts', *COUNTS]
    code = tool().main([str(a) for a in (*arguments, *counts, '--workers', 1)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def problems(name: str, root: Path) -> str:
    with pytest.raises(TreeError) as caught:
        TREES[name].expecting(root, COUNTS).require(root)
    return str(caught.value)


# ---- checking --------------------------------------------------------------------------------------------------------


def test_counts_and_places_are_those_of_the_data_sets():
    counts = {name: [tree.image_part(split).count for split in ('train', 'val')] for name, tree in TREES.items()}
    assert counts == {'coco': [118_287, 5_000], 'ade20k': [20_210, 2_000], 'cityscapes': [2_975, 500]}


@pytest.mark.mm
@pytest.mark.parametrize(
    ('name', 'base'),
    [
        ('coco', 'mmdet::_base_/datasets/coco_instance.py'),
        ('ade20k', 'mmseg::_base_/datasets/ade20k.py'),
        ('cityscapes', 'mmseg::_base_/datasets/cityscapes.py'),
    ],
)
def test_layout_is_that_of_the_installed_configs(name: str, base: str, tmp_path: Path):
    from mmengine.config import Config

    (tmp_path / 'leaf.py').write_text(f'_base_ = {base!r}\n')
    cfg = Config.fromfile(tmp_path / 'leaf.py')
    for split in ('train', 'val'):
        dataset = cfg[f'{split}_dataloader'].dataset
        assert Path(dataset.data_root) == Path(TREES[name].root)
        wanted = {Path(folder) for folder in dataset.data_prefix.values()}
        if 'ann_file' in dataset:
            wanted.add(Path(dataset.ann_file))
        parts = [part for part in TREES[name].parts if part.split == split]
        assert wanted == {Path(part.folder, part.suffix if part.single else '') for part in parts}


@pytest.mark.parametrize('name', TREES)
def test_complete_tree(name: str, scenes: Path, capsys):
    code, out, err = run(capsys, name, '--root', scenes / name, '--check')
    assert (code, err) == (0, '') and f'complete {name}, 6 + 3 images' in out
    assert json.loads(out.splitlines()[-1])['train_ids'] == 0


def test_missing_root_names_page_and_archives(tmp_path: Path, capsys):
    code, _, err = run(capsys, 'coco', '--root', tmp_path / 'none')
    assert code == 1 and f'{tmp_path}/none: no such folder' in err
    assert 'Get annotations_trainval2017.zip, train2017.zip, val2017.zip from' in err and 'cocodataset.org' in err
    assert err.count('no such folder') == 1 and '--link' in err


def test_one_message_lists_everything(tree):
    root = tree('coco')
    (root / 'annotations/instances_val2017.json').write_text('{"images": [')
    name = min(file.name for file in (root / 'train2017').iterdir())
    (root / 'train2017' / name).unlink()
    (root / 'val2017/more.jpg').touch()
    text = problems('coco', root)
    assert 'train2017/*.jpg: 5 of 6, 1 missing' in text
    assert f'train2017: 1 images of annotations/instances_train2017.json are missing: {name}' in text
    assert 'val2017/*.jpg: 4 of 3, 1 too many' in text and 'val2017: 1 empty file(s): more.jpg' in text
    assert 'instances_val2017.json: not JSON' in text and 'a broken download?' in text
    assert 'Get train2017.zip, val2017.zip, annotations_trainval2017.zip' in text


def test_coco_annotation_files(tree):
    root = tree('coco')
    file = root / 'annotations/instances_train2017.json'
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, 'images': document['images'][:2], 'annotations': []}))
    text = problems('coco', root)
    assert 'names 2 images, 6 are expected' in text and 'contains no annotation' in text
    assert 'train2017.zip' not in text.replace('trainval2017.zip', '')
    file.write_text(json.dumps({'images': []}))
    assert 'has no annotations, categories; COCO annotation files have' in problems('coco', root)
    file.unlink()
    assert 'annotations/instances_train2017.json: none of 1; the folder contains instances_val2017' in problems(
        'coco', root
    )


@pytest.mark.parametrize('name', ['ade20k', 'cityscapes'])
def test_image_without_map_and_map_without_image(name: str, tree):
    root = tree(name)
    images, maps = TREES[name].image_part('train'), TREES[name].map_part('train')
    lost_map, lost_image = sorted((root / maps.folder).rglob(f'*{maps.suffix}'))[:2]
    lost_map.unlink()
    stem = str(lost_image.relative_to(root / maps.folder)).removesuffix(maps.suffix)
    (root / images.folder / f'{stem}{images.suffix}').unlink()
    text = problems(name, root)
    stem = str(lost_map.relative_to(root / maps.folder)).removesuffix(maps.suffix)
    assert f'{maps.pattern}: 1 images have none: {stem}' in text
    assert (
        f'{images.pattern}: 5 of 6, 1 missing' in text and f'{images.pattern}: 1 files of {maps.pattern} have' in text
    )


def test_tree_one_folder_deeper(tree, tmp_path: Path):
    (tmp_path / 'ade').mkdir()
    tree('ade20k').rename(tmp_path / 'ade/ADEChallengeData2016')
    text = problems('ade20k', tmp_path / 'ade')
    assert text.endswith(f'give --root {tmp_path}/ade/ADEChallengeData2016')
    assert 'images/training: no such folder, it should have 6 of images/training/*.jpg' in text


# ---- train ids -------------------------------------------------------------------------------------------------------


def forget_train_ids(root: Path) -> dict[Path, np.ndarray]:
    maps = {file: np.asarray(Image.open(file)) for file in root.rglob('*_labelTrainIds.png')}
    for file in maps:
        file.unlink()
    return maps


@pytest.mark.parametrize('workers', [1, 2])
def test_train_ids_are_those_of_the_scenes(workers: int, tree):
    root = tree('cityscapes')
    expected = forget_train_ids(root)
    seen: list[tuple] = []
    assert make_train_ids(root, CITYSCAPES, workers, lambda *state: seen.append(state)) == len(expected) == 9
    assert seen[-1] == ('labelTrainIds', 9, 9)
    for file, pixels in expected.items():
        assert np.array_equal(np.asarray(Image.open(file)), pixels)
    assert not list(root.rglob('.*'))


def test_every_label_id_has_its_train_id(tmp_path: Path):
    root = tmp_path / 'gtFine/train/city'
    root.mkdir(parents=True)
    Image.fromarray(np.arange(34, dtype=np.uint8)[None]).save(root / 'a_gtFine_labelIds.png')
    make_train_ids(tmp_path, CITYSCAPES, 1)
    made = np.asarray(Image.open(root / 'a_gtFine_labelTrainIds.png'))[0]
    learned = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert made[learned].tolist() == list(range(19))
    assert (np.delete(made, learned) == 255).all()


def test_train_ids_go_on_where_they_stopped(tree, capsys):
    root = tree('cityscapes')
    first, second, *_ = sorted(forget_train_ids(root))
    make_train_ids(root, CITYSCAPES, 1)
    before = first.stat().st_mtime_ns
    second.write_bytes(b'')  # as another tool leaves it when the disk is full
    code, out, _ = run(capsys, 'cityscapes', '--root', root)
    assert code == 0 and '1 maps made' in out and first.stat().st_mtime_ns == before and second.stat().st_size


def test_check_asks_for_train_ids_and_makes_none(tree, capsys):
    root = tree('cityscapes')
    forget_train_ids(root)
    code, _, err = run(capsys, 'cityscapes', '--root', root, '--check')
    assert code == 1 and 'gtFine/train/*/*_gtFine_labelTrainIds.png: none of 6' in err
    assert not list(root.rglob('*_labelTrainIds.png'))


def test_bad_label_maps_are_named(tree, capsys):
    root = tree('cityscapes')
    forget_train_ids(root)
    file = min((root / 'gtFine/train').rglob('*_labelIds.png'))
    Image.fromarray(np.full((4, 4), 40, np.uint8)).save(file)
    code, _, err = run(capsys, 'cityscapes', '--root', root)
    assert code == 1 and f'{file}: label 40, allowed are 0 to 33' in err
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(file)
    assert (
        f'{file}: a label map has one value per pixel, this one has 3 channels'
        in run(capsys, 'cityscapes', '--root', root)[2]
    )
    file.write_bytes(b'no picture')
    assert f'{file}: the label map does not decode' in run(capsys, 'cityscapes', '--root', root)[2]


# ---- links -----------------------------------------------------------------------------------------------------------

SOURCES = {
    'coco': {'train2017': 'images/train2017', 'val2017': 'images/val2017', 'annotations': 'annotations'},
    'ade20k': {'images': 'ADEChallengeData2016/images', 'annotations': 'ADEChallengeData2016/annotations'},
    'cityscapes': {
        'leftImg8bit': 'leftImg8bit_trainvaltest/leftImg8bit',
        'gtFine': 'gtFine_trainvaltest/gtFine',
    },
}


@pytest.mark.parametrize('name', TREES)
def test_links_to_unpacked_archives(name: str, tree, tmp_path: Path, capsys):
    old, source = tree(name), tmp_path / 'archive'
    for inner, outer in SOURCES[name].items():
        (source / outer).parent.mkdir(parents=True, exist_ok=True)
        (old / inner).rename(source / outer)
    forget_train_ids(source)
    before = sorted(source.rglob('*'))
    for _ in range(2):  # the second call finds its own links
        code, out, err = run(capsys, name, '--root', tmp_path / 'root', '--link', source)
        assert code == 0 and f'complete {name}' in out, err
    assert sorted(source.rglob('*')) == before  # nothing is written into the source
    assert any(file.is_symlink() for file in (tmp_path / 'root').rglob('*'))


def test_annotation_files_beside_the_images(tree, tmp_path: Path):
    source = tree('coco')
    for file in (source / 'annotations').iterdir():
        file.rename(source / file.name)
    (source / 'annotations').rmdir()
    assert link_tree(COCO, tmp_path / 'root', source) == 4
    assert not COCO.expecting(tmp_path / 'root', COUNTS).problems(tmp_path / 'root')


def test_what_cannot_be_linked(tree, tmp_path: Path):
    source, root = tree('coco'), tmp_path / 'root'
    with pytest.raises(TreeError, match='nowhere: no such folder'):
        link_tree(COCO, root, tmp_path / 'nowhere')
    shutil.rmtree(source / 'val2017')
    (tmp_path / 'other').mkdir()
    (root / 'train2017').mkdir(parents=True)
    root.joinpath('annotations').mkdir()
    root.joinpath('annotations/instances_train2017.json').symlink_to(tmp_path / 'other')
    with pytest.raises(TreeError) as caught:
        link_tree(COCO, root, source)
    text = str(caught.value)
    assert 'nothing was linked' in text and 'val2017/*.jpg: not found' in text
    assert f'{root}/train2017: already exists and is not a link' in text
    assert f'instances_train2017.json: already links to {tmp_path}/other' in text
    shutil.copytree(source, tmp_path / 'both/a')
    shutil.copytree(source, tmp_path / 'both/b')
    with pytest.raises(TreeError, match=r'both/a/train2017, .*both/b/train2017: name the folder that is meant'):
        link_tree(COCO, tmp_path / 'third', tmp_path / 'both')


# ---- mini sets -------------------------------------------------------------------------------------------------------


def test_cover_is_greedy_and_deterministic():
    presence = np.array([[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]], bool)
    assert choose_covering(presence, 2) == [0, 1]  # the last class occurs nowhere
    assert choose_covering(presence, 4) == [0, 1, 2, 4]
    assert choose_covering(presence, 99) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match='1 image.s. cannot show all 3 classes, 2 can: give --mini 2 or more'):
        choose_covering(presence, 1)


def shown(name: str, root: Path, split: str) -> set[int]:
    return set(np.flatnonzero(TREES[name].presence(root, split, 1, None)[1].any(0)))


@pytest.mark.parametrize('name', TREES)
def test_mini_set_keeps_every_class(name: str, scenes: Path, tmp_path: Path, capsys):
    root, out = scenes / name, tmp_path / 'mini'
    code, text, err = run(capsys, name, '--root', root, '--mini', 5, '--out', out)
    assert code == 0, err
    assert f'data_root={out}' in text and ('ann_file' in text) == (name == 'coco')
    layout = TREES[name].expecting(out)  # a mini set says how many images it has
    layout.require(out)
    assert [layout.image_part(split).count for split in ('train', 'val')] == [5, 3]
    for split in ('train', 'val'):
        assert shown(name, out, split) == shown(name, root, split) != set()
    again = run(capsys, name, '--root', root, '--mini', 5, '--out', out)
    assert again[0] == 0 and 'nothing to do' in again[1]
    code, _, err = run(capsys, name, '--root', root, '--mini', 4, '--out', out)
    assert code == 1 and 'images is 5, requested 4. Give --overwrite or another --out' in err
    assert run(capsys, name, '--root', root, '--mini', 4, '--out', out, '--overwrite')[0] == 0
    assert not list(tmp_path.glob('.*'))


@pytest.mark.mm
@pytest.mark.parametrize(
    ('name', 'config'),
    [
        ('coco', 'quickstart/mask-rcnn_pinas-nano_fpn_b8-lin_scenes.py'),
        ('ade20k', 'ade20k/fcn_pinas-a-d8_4xb4-80k_ade20k-512x512.py'),
        ('cityscapes', 'cityscapes/fcn_pinas-a-d8_4xb2-80k_cityscapes-769x769.py'),
    ],
)
def test_mini_set_needs_another_data_root_only(name: str, config: str, scenes: Path, tmp_path: Path):
    from downstream import ROOT, read
    from mmengine.registry import DATASETS

    make_mini(TREES[name], scenes / name, tmp_path / 'mini', 5)
    cfg = read(ROOT / 'configs' / config)
    for split, count in (('train', 5), ('val', 3)):
        settings = {**cfg[f'{split}_dataloader'].dataset, 'data_root': str(tmp_path / 'mini')}
        if name == 'coco':  # the scenes here are of digits
            settings['metainfo'] = {'classes': tuple(map(str, range(10)))}
        dataset = DATASETS.build({**settings, 'pipeline': settings['pipeline'][:2]})
        assert len(dataset) == count and dataset[0]['img'].shape[2] == 3


def test_mini_annotations_belong_to_its_images(scenes: Path, tmp_path: Path):
    make_mini(COCO, scenes / 'coco', tmp_path / 'mini', 4)
    whole, mini = (
        json.loads((root / 'annotations/instances_train2017.json').read_text())
        for root in (scenes / 'coco', tmp_path / 'mini')
    )
    ids = {image['id'] for image in mini['images']}
    assert len(ids) == 4 and mini['categories'] == whole['categories']
    assert mini['annotations'] == [a for a in whole['annotations'] if a['image_id'] in ids]


def test_mini_refuses(scenes: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r'ade20k train: 1 image.s. cannot show all \d+ classes'):
        make_mini(ADE20K, scenes / 'ade20k', tmp_path / 'mini', 1)
    assert not (tmp_path / 'mini').exists()
    (tmp_path / 'mine').mkdir()
    with pytest.raises(ValueError, match='mine exists and is not a mini set'):
        make_mini(ADE20K, scenes / 'ade20k', tmp_path / 'mine', 5, overwrite=True)
    assert (tmp_path / 'mine').is_dir()
