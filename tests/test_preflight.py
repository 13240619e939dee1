"""Bad data, and configs that do not fit them: one line each that names file and value."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from downstream import ROOT, make_small, read, write_data
from PIL import Image

pytestmark = pytest.mark.mm
pytest.importorskip('mmengine')

CONFIGS = {
    'coco': 'coco/mask-rcnn_pinas-a_fpn_1x_coco.py',
    'ade20k': 'ade20k/fcn_pinas-a-d8_4xb4-80k_ade20k-512x512.py',
    'cityscapes': 'cityscapes/fcn_pinas-a-d8_4xb2-80k_cityscapes-769x769.py',
}
TRAIN_FILE, VAL_FILE = 'annotations/instances_train2017.json', 'annotations/instances_val2017.json'


@pytest.fixture(scope='module')
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('sets')
    for folder in CONFIGS:
        write_data(root / folder, folder)
    return root


@pytest.fixture
def case(sets: Path, tmp_path: Path) -> Callable[[str], tuple[Any, Path]]:
    """A small config and a copy of its data, by folder of configs."""

    def make(folder: str) -> tuple[Any, Path]:
        root = tmp_path / folder
        shutil.copytree(sets / folder, root)
        cfg = read(ROOT / 'configs' / CONFIGS[folder])
        make_small(cfg, root)
        return cfg, root

    return make


def found(cfg: Any, *splits: str) -> tuple[list[str], list[str]]:
    """Errors and warnings."""
    from pinas_zoo.mm.engine.sample_checks import check_samples
    from pinas_zoo.mm.preflight.check import find_problems

    check_samples(cfg)
    findings = find_problems(cfg, splits or ('train', 'val'))
    return findings.errors, findings.warnings


def the_error(cfg: Any, *splits: str) -> str:
    (error,), warnings = found(cfg, *splits)
    assert not warnings and '\n' not in error
    return error


def change(file: Path, edit: Callable[[dict], Any]) -> None:
    document = json.loads(file.read_text())
    edit(document)
    file.write_text(json.dumps(document))


# ---- any set ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('folder', CONFIGS)
def test_good_data_pass_silently(folder: str, case):
    cfg, _ = case(folder)
    assert found(cfg, 'train', 'val', 'test') == ([], [])


@pytest.mark.parametrize('folder', CONFIGS)
def test_missing_data_root(folder: str, case):
    cfg, root = case(folder)
    shutil.rmtree(root)
    error = the_error(cfg, 'train')
    assert error.startswith(f'{root}: no such folder (data_root)')
    assert f'pinas prepare {folder} --root {root} says what belongs there' in error


@pytest.mark.parametrize(('folder', 'part'), [('coco', 'train2017'), ('ade20k', 'images'), ('cityscapes', 'gtFine')])
def test_wrong_layout(folder: str, part: str, case):
    cfg, root = case(folder)
    (root / part).rename(root / 'pictures')
    error = the_error(cfg, 'train')
    assert error.startswith(f'{root / part}') and f': does not exist; {root} contains' in error and 'pictures' in error


@pytest.mark.parametrize(
    ('folder', 'pattern'),
    [('coco', 'train2017/*'), ('ade20k', 'images/training/*'), ('cityscapes', 'leftImg8bit/train/*/*')],
)
def test_image_that_does_not_decode(folder: str, pattern: str, case):
    cfg, root = case(folder)
    file = min(root.glob(pattern))
    file.write_bytes(file.read_bytes()[:20])
    assert the_error(cfg) == f'{file}: the image does not decode (20 bytes)'


@pytest.mark.parametrize(
    ('folder', 'pattern', 'what'),
    [('coco', 'train2017/*', 'boxes and masks'), ('ade20k', 'images/training/*', 'label maps')],
)
def test_a_picture_that_asks_to_be_turned(folder: str, pattern: str, what: str, case):
    cfg, root = case(folder)
    file, exif = min(root.glob(pattern)), Image.Exif()
    exif[0x0112] = 3
    with Image.open(file) as picture:
        picture.load()
    picture.save(file, exif=exif)
    errors, warnings = found(cfg, 'train')
    assert not errors
    assert warnings == [
        f'{file}: EXIF orientation 3: mmcv turns the picture upright and leaves {what} as they are, which fit only if '
        'they were drawn on the upright picture'
    ]


def test_number_of_classes(case):
    cfg, _ = case('coco')
    cfg.merge_from_dict({'model.roi_head.bbox_head.num_classes': 7})
    errors, _ = found(cfg)
    assert errors[0] == (
        'model.roi_head.bbox_head.num_classes is 7, but CocoDataset of train_dataloader has 80 classes (person, ...)'
    )
    assert len(errors) == 2 and 'val_dataloader' in errors[1]
    cfg, _ = case('ade20k')
    cfg.merge_from_dict({'model.auxiliary_head.num_classes': 19})
    assert 'model.auxiliary_head.num_classes is 19, but ADE20KDataset of train' in the_error(cfg, 'train')


def test_classes_as_a_text(case):
    cfg, _ = case('coco')
    cfg.train_dataloader.dataset.metainfo = {'classes': 'cat'}
    assert "metainfo.classes is the text 'cat': write a tuple, ('cat',)" in found(cfg, 'train')[0][0]


def test_heads_of_cascades_are_found():
    from mmengine.config import ConfigDict

    from pinas_zoo.mm.preflight.check import _class_counts

    heads = [{'num_classes': 80}, {'num_classes': 81}]
    model = {
        'roi_head': {'bbox_head': heads},
        'rpn_head': {'num_classes': 1},
        'bbox_head': {'loss': {'num_classes': 3}},
    }
    assert list(_class_counts(ConfigDict(model))) == [
        ('model.roi_head.bbox_head.0.num_classes', 80),
        ('model.roi_head.bbox_head.1.num_classes', 81),
    ]


def test_wrapped_sets_are_checked(case):
    cfg, root = case('coco')
    inner = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = {
        'type': 'ConcatDataset',
        'datasets': [inner, {'type': 'RepeatDataset', 'dataset': inner}],
    }
    (root / TRAIN_FILE).unlink()
    errors, _ = found(cfg, 'train')
    assert len(errors) == 2 and len(set(errors)) == 1


def test_own_data_sets_are_left_alone(case):
    cfg, _ = case('ade20k')
    cfg.train_dataloader.dataset = {'type': 'pinas_zoo.SupervisedData', 'source': {'kind': 'folder', 'root': '/none'}}
    assert found(cfg, 'train') == ([], [])
    cfg, root = case('coco')
    shutil.rmtree(root)
    cfg.train_dataloader.dataset.backend_args = {'backend': 'petrel'}
    assert found(cfg, 'train') == ([], [])  # nobody knows what lies there


# ---- COCO ------------------------------------------------------------------------------------------------------------


def test_annotation_file_without_images(case):
    cfg, root = case('coco')
    for file in sorted((root / 'train2017').iterdir())[1:]:
        file.unlink()
    error = the_error(cfg)
    assert error.startswith(f'{root}/{TRAIN_FILE}: 3 of its 4 images are missing: {root}/train2017/000000000002.jpg')
    change(root / TRAIN_FILE, lambda document: document.update(images=[], annotations=[]))
    assert f'{root}/{TRAIN_FILE}: names no image' in found(cfg)[0]


def test_empty_annotation(case):
    cfg, root = case('coco')
    change(root / TRAIN_FILE, lambda document: document.update(annotations=[]))
    assert the_error(cfg) == f'{root}/{TRAIN_FILE}: contains no annotation (0 for 4 images)'
    change(root / TRAIN_FILE, lambda document: document.pop('annotations'))
    assert the_error(cfg) == f'{root}/{TRAIN_FILE}: contains no annotation (0 for 4 images)'
    (root / TRAIN_FILE).write_bytes(b'')
    assert the_error(cfg).startswith(f'{root}/{TRAIN_FILE}: not JSON (Expecting value')


def test_images_without_boxes_are_legal_and_a_test_set_without_boxes_too(case):
    cfg, root = case('coco')
    change(root / TRAIN_FILE, lambda document: document.update(annotations=document['annotations'][:1]))
    assert found(cfg) == ([], [])
    change(root / VAL_FILE, lambda document: document.pop('annotations'))
    cfg.test_evaluator.format_only = True
    assert found(cfg, 'test') == ([], []) and 'contains no annotation' in the_error(cfg, 'val')


BOXES = [
    ([96.0, 0, 0, 20], 'warning', 'a box without area, which mmdet leaves out, of annotation 3'),
    ([10, 10, -5, 20], 'warning', 'a box without area'),
    (
        [200, 10, 30, 20],
        'error',
        'a box entirely outside the image, of annotation 3 in image 2 (96x96 px): bbox [200, 10, ',
    ),
    ([-40, 10, 30, 20], 'error', 'a box entirely outside the image'),
    ([90, 90, 30, 20], None, ''),  # cut at the border by mmdet
    ([10, 10, 30], 'error', 'annotation 3 has bbox [10, 10, 30], which must be four numbers'),
    ([10, 10, float('nan'), 20], 'error', 'a box that is not finite, of annotation 3'),
]


@pytest.mark.parametrize(('box', 'level', 'text'), BOXES)
def test_boxes(box: list, level: str | None, text: str, case):
    cfg, root = case('coco')
    change(root / TRAIN_FILE, lambda document: document['annotations'][2].update(bbox=box))
    errors, warnings = found(cfg)
    lines = {'error': errors, 'warning': warnings}
    if level:
        (line,) = [line for line in lines.pop(level) if 'box' in line]
        assert line.startswith(f'{root}/{TRAIN_FILE}: ') and text in line
    assert not [line for rest in lines.values() for line in rest if level != 'error' or 'without area' not in line]


def test_boxes_as_corners(case):
    cfg, root = case('coco')

    def as_corners(document: dict) -> None:
        for annotation in document['annotations']:
            x, y, w, h = 50, 50, 40, 40
            annotation['bbox'] = [x, y, x + w, y + h]

    change(root / TRAIN_FILE, as_corners)
    errors, (warning,) = found(cfg)
    assert not errors and '8 of 8 boxes reach beyond their image; COCO writes x, y, width, height' in warning


def test_categories(case):
    cfg, root = case('coco')
    change(root / TRAIN_FILE, lambda document: document['annotations'][2].update(category_id=99))
    assert the_error(cfg) == f'{root}/{TRAIN_FILE}: annotation 3 has category_id 99, the 80 categories are 1 to 80'
    change(root / TRAIN_FILE, lambda document: document['annotations'][2].update(category_id=1))
    change(root / TRAIN_FILE, lambda document: document['categories'][0].update(name='human'))
    assert "no category 'person'; its 80 categories are 'human', 'bicycle', 'car' and 77 more" in the_error(cfg)


def test_labels_follow_classes_whatever_the_files_order(case):
    from mmengine.registry import DATASETS

    cfg, root = case('coco')
    change(root / TRAIN_FILE, lambda document: document['categories'].reverse())
    dataset = DATASETS.build({**cfg.train_dataloader.dataset, 'pipeline': []})
    assert dataset.cat2label[80] == 0 and dataset.metainfo['classes'][0] == 'person'  # mmdet's own: a toothbrush
    assert found(cfg) == ([], [])
    dataset = DATASETS.build({**cfg.train_dataloader.dataset, 'pipeline': []})
    assert dataset.cat2label[1] == 0 and dataset.cat2label[80] == 79


def test_order_of_categories_is_told_for_data_sets_of_others(case):
    from mmdet.datasets import CocoDataset
    from mmengine.registry import DATASETS

    @DATASETS.register_module(force=True)
    class OthersDataset(CocoDataset):
        pass

    cfg, root = case('coco')
    change(root / TRAIN_FILE, lambda document: document['categories'].reverse())
    cfg.train_dataloader.dataset.type = 'OthersDataset'
    errors, (warning,) = found(cfg)
    assert not errors and "what it calls 'person' in pictures and tables is 'toothbrush'" in warning


def test_references(case):
    cfg, root = case('coco')
    change(root / TRAIN_FILE, lambda document: document['annotations'][2].update(image_id=77))
    errors, (warning,) = found(cfg)
    assert not errors and '1 annotation(s) belong to images that it does not name, such as image_id 77' in warning
    change(root / TRAIN_FILE, lambda document: document['annotations'][2].update(image_id=2, id=1))
    assert the_error(cfg) == f'{root}/{TRAIN_FILE}: annotation id 1 occurs twice'
    change(root / TRAIN_FILE, lambda document: document['annotations'][2].pop('area'))
    assert the_error(cfg) == f'{root}/{TRAIN_FILE}: annotation 1 has no area'


def test_boxes_without_masks_and_a_detector_with(case):
    cfg, root = case('coco')
    change(root / TRAIN_FILE, lambda document: document['annotations'][2].pop('segmentation'))
    assert 'annotation 3 has no segmentation, but the pipeline loads masks' in the_error(cfg)
    cfg = read(ROOT / 'configs/coco/retinanet_pinas-a_fpn_1x_coco.py')
    make_small(cfg, root)
    assert found(cfg) == ([], [])


def test_nothing_left_by_the_filter(case):
    cfg, _ = case('coco')
    cfg.train_dataloader.dataset.filter_cfg.min_size = 100
    assert 'none of its 4 images is left to train on' in the_error(cfg)


def test_size_that_the_file_tells_wrong(case):
    cfg, root = case('coco')
    change(root / TRAIN_FILE, lambda document: document['images'][0].update(height=200))
    assert f'is 96x96 px, {root}/{TRAIN_FILE} says 96x200: its boxes and masks do not belong to' in the_error(cfg)


def test_evaluator_of_another_set(case, tmp_path: Path):
    cfg, root = case('coco')
    cfg.val_evaluator.ann_file = str(tmp_path / 'none.json')
    assert the_error(cfg) == f'{tmp_path}/none.json: no such file (ann_file of the evaluator)'
    other = json.loads((root / VAL_FILE).read_text())
    other['images'][0]['id'] = 5
    (tmp_path / 'other.json').write_text(json.dumps(other))
    cfg.val_evaluator.ann_file = str(tmp_path / 'other.json')
    assert 'lacks 1 of the 1 images' in the_error(cfg)


def test_evaluator_of_other_names_or_pictures(case, tmp_path: Path):
    cfg, root = case('coco')
    cfg.val_evaluator.ann_file = path = str(tmp_path / 'other.json')
    good = (root / VAL_FILE).read_text()
    (tmp_path / 'other.json').write_text(good)
    assert not found(cfg)[0]
    other = json.loads(good)
    other['categories'][0]['name'] = 'CAT'
    (tmp_path / 'other.json').write_text(json.dumps(other))
    assert the_error(cfg).startswith(f'{path}: no category ')
    other = json.loads(good)
    for annotation in other['annotations']:
        annotation['bbox'][0] += 3
    (tmp_path / 'other.json').write_text(json.dumps(other))
    assert 'whose boxes in 1 of 1 images are not those of' in the_error(cfg)


# ---- label maps ------------------------------------------------------------------------------------------------------


def test_images_without_label_maps(case):
    cfg, root = case('ade20k')
    file = min((root / 'annotations/training').iterdir())
    file.unlink()
    assert the_error(cfg) == f'{root}/annotations/training: 1 of 4 images have no label map there: {file}'
    cfg, root = case('cityscapes')
    for file in root.rglob('*_labelTrainIds.png'):
        file.rename(file.with_name(file.name.replace('TrainIds', 'Ids')))
    errors, _ = found(cfg)
    assert len(errors) == 2 and f'make them: pinas prepare cityscapes --root {root}' in errors[0]


def test_folder_without_images(case):
    cfg, root = case('ade20k')
    for file in (root / 'images/training').iterdir():
        file.rename(file.with_suffix('.jpeg'))
    assert the_error(cfg) == f'{root}/images/training: no image *.jpg'


def test_list_of_images(case):
    cfg, root = case('ade20k')
    (root / 'list.txt').write_text('0\n1\nnone\n')
    cfg.train_dataloader.dataset.ann_file = 'list.txt'
    errors, _ = found(cfg, 'train')
    assert errors[0] == f'{root}/list.txt: 1 of its images are missing: {root}/images/training/none.jpg'
    (root / 'list.txt').write_text('')
    assert the_error(cfg, 'train') == f'{root}/list.txt: no image named'


@pytest.mark.parametrize(
    ('folder', 'value', 'text'),
    [
        ('ade20k', 151, 'label value 151, allowed are 1 to 150 (150 classes) and, ignored, 255, 0'),
        ('cityscapes', 19, 'label value 19, allowed are 0 to 18 (19 classes) and, ignored, 255'),
    ],
)
def test_label_value(folder: str, value: int, text: str, case):
    cfg, root = case(folder)
    file = min(file for file in root.rglob('*.png') if 'train' in str(file) and 'leftImg8bit' not in file.name)
    Image.fromarray(np.full((96, 96), value, np.uint8)).save(file)
    assert the_error(cfg).partition('; if labels begin with 1')[0] == f'{file}: {text}'
    Image.fromarray(np.zeros((96, 96, 3), np.uint8)).save(file)
    assert the_error(cfg) == f'{file}: a label map has one value per pixel, this one has 3 channels'
    Image.fromarray(np.zeros((48, 96), np.uint8)).save(file)
    assert the_error(cfg) == f'{file}: the label map is 96x48 px, its image 96x96 px'
    file.write_bytes(b'no picture')
    assert the_error(cfg).startswith(f'{file}: the label map does not decode (cannot identify')


def test_crop_and_padding(case):
    cfg, _ = case('ade20k')
    cfg.model.data_preprocessor.size = (128, 128)  # larger than crop and image: padded, legal
    (crop,) = [step for step in cfg.train_dataloader.dataset.pipeline if step.type == 'RandomCrop']
    crop.crop_size = (128, 128)
    assert found(cfg) == ([], [])
    crop.crop_size = (128, 160)
    assert the_error(cfg) == (
        'crop_size (128, 160) of the training pipeline is larger than model.data_preprocessor.size (128, 128), '
        'to which smaller images are padded: set both to one size'
    )


def test_mmseg_pads_what_is_smaller_than_the_crop(case):
    """The reason for the checks of crops: mmseg pads smaller images to the size of the preprocessor."""
    from mmengine.registry import DATASETS, MODELS

    cfg, root = case('ade20k')
    pipeline = [
        step for step in cfg.train_dataloader.dataset.pipeline if step.type not in ('RandomResize', 'RandomFlip')
    ]
    pipeline[2].crop_size = (128, 128)
    Image.new('RGB', (160, 160)).save(root / 'images/training/1.jpg')
    Image.new('L', (160, 160)).save(root / 'annotations/training/1.png')
    samples = DATASETS.build({**cfg.train_dataloader.dataset, 'pipeline': pipeline})
    settings = {**cfg.model.data_preprocessor, 'size': (128, 128)}
    batch = [samples[0], samples[1]]
    data = {key: [sample[key] for sample in batch] for key in batch[0]}
    out = MODELS.build(settings)(data, training=True)
    assert out['inputs'].shape == (2, 3, 128, 128)
    assert (out['data_samples'][0].gt_sem_seg.data[:, 96:] == 255).all()
    data['data_samples'] = [sample['data_samples'] for sample in (samples[0], samples[1])]
    with pytest.raises(RuntimeError, match='stack expects each tensor to be equal size'):
        MODELS.build({**settings, 'size': (64, 64)})(data, training=True)


# ---- while samples are read ------------------------------------------------------------------------------------------


def dataset_of(cfg: Any, split: str, **settings: Any) -> Any:
    from mmengine.registry import DATASETS

    return DATASETS.build({'type': 'pinas_zoo.NamedDataset', 'dataset': cfg[f'{split}_dataloader'].dataset, **settings})


def test_samples_name_their_files(case):
    from pinas_zoo.mm.preflight.bad_input import BadInputError

    cfg, root = case('ade20k')
    dataset = dataset_of(cfg, 'train', num_classes=150)
    assert len(dataset) == 4 and dataset.metainfo['classes'][0] == 'wall' and dataset[0]['inputs'].shape[0] == 3
    images, maps = (sorted((root / folder / 'training').iterdir()) for folder in ('images', 'annotations'))
    Image.fromarray(np.full((96, 96), 200, np.uint8)).save(maps[0])
    with pytest.raises(BadInputError, match=f'{maps[0]}: label value 200, allowed are 1 to 150'):
        dataset[0]
    images[1].write_bytes(b'no picture')
    with pytest.raises(BadInputError, match=f'{images[1]}: the image does not decode .10 bytes'):
        dataset[1]
    maps[2].write_bytes(b'no picture')
    with pytest.raises(BadInputError, match=f'{maps[2]}: the label map does not decode'):
        dataset[2]
    images[3].unlink()
    with pytest.raises(BadInputError, match=f'{images[3]}: no such file'):
        dataset[3]


def test_other_errors_name_the_image_and_keep_their_cause(case):
    cfg, _ = case('coco')
    dataset = dataset_of(cfg, 'train')
    dataset.pipeline = lambda _: 1 // 0  # as PipelineSwitchHook assigns it: forwarded
    with pytest.raises(RuntimeError, match=r'train2017/000000000001.jpg: ZeroDivisionError') as caught:
        dataset[0]
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_validation_labels_are_checked(case):
    from pinas_zoo.mm.preflight.bad_input import BadInputError

    cfg, root = case('cityscapes')
    dataset = dataset_of(cfg, 'val', num_classes=19)
    dataset[0]
    (file,) = root.glob('gtFine/val/*/*')
    Image.fromarray(np.full((96, 96), 33, np.uint8)).save(file)
    with pytest.raises(BadInputError, match='label value 33, allowed are 0 to 18'):
        dataset[0]


def test_last_line_of_a_worker():
    from torch._utils import ExceptionWrapper

    from pinas_zoo.mm.preflight.bad_input import BadInputError, last_line

    try:
        raise BadInputError('a.jpg: broken')
    except BadInputError:
        wrapped = ExceptionWrapper(where='in DataLoader worker process 0')
    with pytest.raises(BadInputError, match='Traceback') as caught:
        wrapped.reraise()
    assert last_line(caught.value) == 'a.jpg: broken' == last_line(BadInputError('a.jpg: broken'))


# ---- whole runs ------------------------------------------------------------------------------------------------------


def launch(cfg: Any, work_dir: Path, **options: Any) -> Any:
    from pinas_zoo.mm.engine.launch import train
    from pinas_zoo.mm.engine.options import Options

    work_dir.mkdir(exist_ok=True)
    cfg.dump(work_dir.parent / 'config.py')
    return train(work_dir.parent / 'config.py', Options(work_dir=str(work_dir), launcher='none', **options))


def test_the_tool_stops_before_it_builds_anything(case, tmp_path: Path):
    from pinas_zoo.mm.preflight.bad_input import BadInputError

    cfg, root = case('coco')
    (root / TRAIN_FILE).unlink()
    change(root / VAL_FILE, lambda document: document.update(annotations=[]))
    with pytest.raises(BadInputError) as caught:
        launch(cfg, tmp_path / 'run')
    first, *lines = str(caught.value).splitlines()
    assert first == '2 problems with the data:' and len(lines) == 2
    assert lines[0].startswith(f'{root}/{TRAIN_FILE}: does not exist') and lines[1].startswith(
        f'{root}/{VAL_FILE}: contains no'
    )
    assert not list((tmp_path / 'run').iterdir())


def test_the_test_tool_looks_at_the_test_set_only(case, tmp_path: Path):
    from pinas_zoo.mm.engine.options import Options
    from pinas_zoo.mm.engine.testing import test
    from pinas_zoo.mm.preflight.findings import BadInputError

    cfg, root = case('ade20k')
    shutil.rmtree(root / 'images/training')
    (file,) = (root / 'annotations/validation').iterdir()
    file.unlink()
    cfg.dump(tmp_path / 'config.py')
    with pytest.raises(BadInputError) as caught:
        test(tmp_path / 'config.py', 'no.pth', Options(work_dir=str(tmp_path / 'run'), launcher='none'))
    assert str(caught.value).startswith(f'{root}/annotations/validation: 1 of 1 images have no label map')


def test_switched_off(case):
    from pinas_zoo.mm.engine.launch import check_data

    cfg, root = case('coco')
    shutil.rmtree(root)
    cfg.merge_from_dict({'preflight': False})
    notes: list[str] = []
    check_data(cfg, ('train',), notes)
    assert notes == ['preflight=False: the data were not checked']


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 1])
def test_bad_sample_in_a_run_loses_nothing(workers: int, case, tmp_path: Path):
    from pinas_zoo.mm.preflight.bad_input import BadInputError

    cfg, root = case('ade20k')
    cfg.model.backbone = dict(type='pinas_zoo.PiNASBackbone', space='pinas_nano', arch='30-32-20-03', output_stride=8)
    cfg.model.decode_head.in_channels, cfg.model.auxiliary_head.in_channels = 384, 256
    cfg.model.decode_head.channels = cfg.model.auxiliary_head.channels = 16
    cfg.train_dataloader.num_workers, cfg.train_cfg.max_iters, cfg.preflight = workers, 3, False
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=1)
    cfg.train_dataloader.persistent_workers = bool(workers)
    cfg.train_dataloader.sampler.shuffle = False  # the last two of four images come in iteration 2
    file = root / 'images/training/3.jpg'
    content = file.read_bytes()
    file.write_bytes(b'no picture')
    with pytest.raises(BadInputError) as caught:
        launch(cfg, tmp_path / 'run')
    line = f'{file}: the image does not decode (10 bytes)'
    assert str(caught.value) == line
    (log,) = (tmp_path / 'run').glob('*/*.log')
    assert line in log.read_text().splitlines()[-1]
    assert (tmp_path / 'run/last_checkpoint').read_text().endswith('iter_1.pth')
    file.write_bytes(content)
    assert launch(cfg, tmp_path / 'run', resume='auto').iter == 3


def test_a_batch_of_one_image_is_one_line(monkeypatch):
    """Batch norm and split attention cannot normalise a single value; the run stops with one line."""
    from types import SimpleNamespace

    import torch
    from mmengine.logging import MMLogger
    from torch import nn

    from pinas_zoo.mm.engine.launch import bad_input_in_log
    from pinas_zoo.mm.preflight.bad_input import BadInputError
    from pinas_zoo.models.blocks import several_images

    lines: list[str] = []
    monkeypatch.setattr(MMLogger, 'get_current_instance', lambda: SimpleNamespace(error=lines.append))
    one = torch.zeros(1, 2, 1, 1)
    for norm in (nn.BatchNorm2d(2), lambda pooled: several_images(pooled, True)):
        with pytest.raises(BadInputError, match='one image per device.*raise train_dataloader.batch_size'):
            with bad_input_in_log():
                norm(one)
    assert len(lines) == 2 and not any('\n' in line for line in lines)
    with pytest.raises(ValueError, match='^other$'), bad_input_in_log():
        raise ValueError('other')


def test_a_config_that_cannot_be_built_is_one_line(monkeypatch):
    from types import SimpleNamespace

    from mmengine.logging import MMLogger
    from mmengine.registry import HOOKS, Registry

    from pinas_zoo.mm.engine.launch import bad_input_in_log
    from pinas_zoo.mm.preflight.bad_input import BadInputError

    monkeypatch.setattr(MMLogger, 'get_current_instance', lambda: SimpleNamespace(error=print, log=lambda *_: None))
    parts = Registry('part')

    @parts.register_module()
    class Part:
        def __init__(self, size: int) -> None:
            self.half = size / 2

    for registry, node, text in (
        (
            parts,
            {'type': 'Part', 'size': 'x'},
            r'TypeError: .*unsupported operand.* \(\w+\.py, line \d+\)',
        ),
        (HOOKS, {'type': 'NoHook'}, 'KeyError: .*NoHook is not in the .*hook registry'),
    ):
        with pytest.raises(BadInputError, match=f'^the config cannot be built: {text}'), bad_input_in_log():
            registry.build(node)


def test_a_folder_in_place_of_a_picture(tmp_path: Path):
    from pinas_zoo.mm.preflight.bad_input import BadInputError, read_image

    with pytest.raises(BadInputError, match=f'{tmp_path}: Is a directory'):
        read_image(str(tmp_path))


def test_a_data_set_that_cannot_be_built_is_named(case):
    from pinas_zoo.mm.preflight.check import find_problems

    cfg, _ = case('coco')
    cfg.train_dataloader.dataset.data_prefx = dict(img='x')
    errors = find_problems(cfg, ('train',)).errors
    assert [line for line in errors if 'CocoDataset cannot be built' in line and "'data_prefx'" in line] == errors
