"""Segmentation sets: the ignored label, sizes of batches, maps that do not fit, classes that never occur."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.mm
pytest.importorskip('mmseg')

NAMES = ('ground', 'road', 'house')
SIDE = 16


def write_maps(root: Path, values: Any, count: int = 12, size: tuple[int, int] = (SIDE, SIDE)) -> None:
    rng = np.random.default_rng(0)
    for folder in ('images', 'masks'):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / f'images/{number:03d}.jpg')
        labels = rng.permutation(np.resize(np.array(values, np.uint8), size[0] * size[1])).reshape(size)
        Image.fromarray(labels).save(root / f'masks/{number:03d}.png')


def config(root: Path, ignored: int | None = None, names: tuple[str, ...] = NAMES, batch: int = 2) -> Any:
    """The parts of a segmentor's config that concern its data."""
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    init_default_scope('mmseg')
    given = {} if ignored is None else {'ignore_index': ignored}
    load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
    dataset = dict(
        type='BaseSegDataset',
        data_root=str(root),
        metainfo=dict(classes=names),
        data_prefix=dict(img_path='images', seg_map_path='masks'),
        img_suffix='.jpg',
        seg_map_suffix='.png',
        pipeline=load,
        **given,
    )
    return Config(
        dict(
            default_scope='mmseg',
            model=dict(
                data_preprocessor=dict(
                    mean=[0.0] * 3, size=(SIDE, SIDE), seg_pad_val=255 if ignored is None else ignored
                ),
                decode_head=dict(num_classes=len(names), **given),
                auxiliary_head=[dict(num_classes=len(names), **given)],
            ),
            train_dataloader=dict(batch_size=batch, dataset=dataset),
            val_dataloader=dict(batch_size=batch, dataset=dict(dataset, test_mode=True)),
            val_evaluator=dict(type='IoUMetric', **given),
        )
    )


def found(cfg: Any, *splits: str) -> tuple[list[str], list[str]]:
    from pinas_zoo.mm.engine.sample_checks import check_samples
    from pinas_zoo.mm.preflight.check import find_problems

    check_samples(cfg)
    findings = find_problems(cfg, splits or ('train', 'val'))
    return findings.errors, findings.warnings


def sample(cfg: Any, index: int, split: str = 'train') -> Any:
    """One sample as a run reads it."""
    from mmengine.registry import DATASETS

    from pinas_zoo.mm.engine.sample_checks import check_samples, name_bad_input

    check_samples(cfg)
    name_bad_input(cfg, (split,))
    return DATASETS.build(cfg[f'{split}_dataloader'].dataset)[index]


# ---- the ignored label -----------------------------------------------------------------------------------------------


def test_the_ignored_label_is_the_configs(tmp_path: Path):
    from pinas_zoo.mm.preflight.bad_input import BadInputError

    write_maps(tmp_path, (0, 1, 2, 11))
    assert found(config(tmp_path, 11)) == ([], [])
    labels = sample(config(tmp_path, 11), 0)['data_samples'].gt_sem_seg.data
    assert set(labels.unique().tolist()) == {0, 1, 2, 11}
    Image.fromarray(np.full((SIDE, SIDE), 255, np.uint8)).save(tmp_path / 'masks/000.png')
    line = f'{tmp_path}/masks/000.png: label value 255, allowed are 0 to 2 (3 classes) and, ignored, 11'
    assert found(config(tmp_path, 11), 'train') == ([line], [])
    with pytest.raises(BadInputError) as caught:
        sample(config(tmp_path, 11), 0)
    assert str(caught.value) == line


def test_labels_are_checked_where_they_are_loaded_and_after_steps_that_may_write_others(tmp_path: Path):
    from mmengine.registry import DATASETS

    from pinas_zoo.mm.preflight.bad_input import BadInputError

    write_maps(tmp_path, (0, 1, 2, 11))
    cfg = config(tmp_path, 11)
    sample(cfg, 0)
    data = DATASETS.build(cfg.train_dataloader.dataset)
    assert not data.checks_samples and data[0]['data_samples'].gt_sem_seg.data.max() == 11
    cfg = config(tmp_path, 11)
    cfg.train_dataloader.dataset.pipeline.insert(2, dict(type='Pad', size=(SIDE + 8, SIDE + 8)))  # with 255
    with pytest.raises(BadInputError, match='label value 255, allowed are 0 to 2'):
        sample(cfg, 0)


def test_parts_that_ignore_different_labels_are_listed(tmp_path: Path):
    write_maps(tmp_path, (0, 1, 2))
    cfg = config(tmp_path, 11)
    del cfg.val_evaluator['ignore_index']
    cfg.model.auxiliary_head[0].ignore_index = 3
    (error,), _ = found(cfg)
    assert error.startswith(
        'the ignored label has to be one: model.decode_head.ignore_index is 11, model.auxiliary_head.0.ignore_index is '
        '3, model.data_preprocessor.seg_pad_val is 11, '
    )
    assert 'val_evaluator.ignore_index is 255 (not set)' in error
    assert not found(config(tmp_path), 'train')[0]
    cfg = config(tmp_path, 11)
    cfg.train_dataloader.dataset.reduce_zero_label = True
    assert 'train_dataloader.dataset.reduce_zero_label turns label 0 into 255, but the ignored' in found(cfg)[0][0]


def test_what_heads_and_losses_ignore_is_an_integer_and_the_same(tmp_path: Path):
    from pinas_zoo.mm.preflight.bad_input import BadInputError

    write_maps(tmp_path, (0, 1, 2))
    for value, text in (
        (None, 'None, which must be an integer; -100'),
        ([255], '[255], which'),
        ('255', "'255', which"),
    ):
        cfg = config(tmp_path)
        cfg.model.decode_head.ignore_index = value
        assert f'model.decode_head.ignore_index is {text}' in found(cfg, 'train')[0][0]
    cfg = config(tmp_path)
    cfg.model.decode_head.loss_decode = [dict(type='CrossEntropyLoss'), dict(type='DiceLoss', ignore_index=0)]
    assert 'model.decode_head.loss_decode.1.ignore_index is 0' in found(cfg, 'train')[0][0]
    cfg = config(tmp_path)
    cfg.train_dataloader.dataset.pipeline[1].reduce_zero_label = True
    with pytest.raises(BadInputError, match='reduce_zero_label is True in LoadAnnotations, but False in the data set'):
        sample(cfg, 0)


def test_a_crop_ignores_what_the_heads_ignore(tmp_path: Path):
    """mmseg's crop would count another ignored label than 255 as a class; the value of a config is compared."""
    from pinas_zoo.mm.engine.sample_checks import check_samples

    write_maps(tmp_path, (0, 1, 2, 11))
    for ignored in (11, None):
        cfg = config(tmp_path, ignored)
        steps = cfg.train_dataloader.dataset.pipeline
        steps.insert(2, dict(type='RandomCrop', crop_size=(8, 8), cat_max_ratio=0.75))
        check_samples(cfg)
        crop = next(step for step in cfg.train_dataloader.dataset.pipeline if step['type'] == 'RandomCrop')
        assert crop.get('ignore_index') == ignored
        assert bool(found(cfg)[0]) == (ignored is None)  # label 11
    cfg = config(tmp_path, 11)
    cfg.train_dataloader.dataset.pipeline.insert(2, dict(type='RandomCrop', crop_size=(8, 8), ignore_index=255))
    assert 'train_dataloader.dataset.pipeline.3.ignore_index is 255' in found(cfg)[0][0]


# ---- while reading ---------------------------------------------------------------------------------------------------


def test_a_late_map_that_does_not_fit_is_named(tmp_path: Path):
    from pinas_zoo.mm.preflight.bad_input import BadInputError

    write_maps(tmp_path, (0, 1, 2))
    file = tmp_path / 'masks/002.png'  # not among the eight that are opened first
    bad = {
        'the label map is 8x16 px, its image 16x16 px': np.zeros((16, 8), np.uint8),
        'a label map has one value per pixel, this one has 3 channels': np.zeros((16, 16, 3), np.uint8),
        'label value 256, but mmseg reads 8 bits': np.full((16, 16), 256, np.uint16),
        'label value 9, allowed are 0 to 2 (3 classes) and, ignored, 255': np.full((16, 16), 9, np.uint8),
        'label value 1.5, labels must be integers': np.full((16, 16), 1.5, np.float32),
    }
    for split in ('train', 'val'):
        for text, labels in bad.items():
            Image.fromarray(labels).save(file, 'TIFF' if labels.dtype == np.float32 else 'PNG')
            assert found(config(tmp_path)) == ([], [])
            with pytest.raises(BadInputError) as caught:
                sample(config(tmp_path), 2, split)
            assert str(caught.value) == f'{file}: {text}'


def test_jpeg_maps_are_refused_whatever_their_name(tmp_path: Path):
    """Their labels are approximate: a run on them would give a plausible number."""
    from pinas_zoo.data.labels import LOSSY_MAP
    from pinas_zoo.mm.preflight.findings import BadInputError

    write_maps(tmp_path, (0, 1, 2))
    for number in (2, 3):  # the first is not among the eight that are opened first
        file = tmp_path / f'masks/{number:03d}.png'
        Image.open(file).save(file, 'JPEG', quality=100)
        with pytest.raises(BadInputError) as caught:
            sample(config(tmp_path), number)
        assert str(caught.value) == f'{file}: {LOSSY_MAP}'
        assert found(config(tmp_path), 'train')[0] == ([f'{file}: {LOSSY_MAP}'] if number == 3 else [])


def test_files_that_a_data_set_does_not_see_are_counted(tmp_path: Path):
    write_maps(tmp_path, (0, 1, 2))
    (tmp_path / 'images/000.jpg').rename(tmp_path / 'images/000.JPG')
    Image.open(tmp_path / 'images/001.jpg').save(tmp_path / 'images/001.png')
    (tmp_path / 'images/001.jpg').unlink()
    (tmp_path / 'images/._002.jpg').write_bytes(b'AppleDouble')
    errors, warnings = found(config(tmp_path), 'train')
    assert not errors and warnings == [
        f"{tmp_path}/images: 2 pictures are not read, since their names do not end with img_suffix '.jpg': 000.JPG, "
        '001.png',
        f'{tmp_path}/masks: 2 label maps have no picture in {tmp_path}/images, and are not read: 000.png, 001.png',
    ]


def test_hidden_folders_are_read_by_mmseg(tmp_path: Path):
    write_maps(tmp_path, (0, 1, 2))
    for folder, name in (('images', '001.jpg'), ('masks', '001.png')):
        (tmp_path / folder / '.ipynb_checkpoints').mkdir()
        shutil.copy(tmp_path / folder / name, tmp_path / folder / '.ipynb_checkpoints')
    errors, (warning,) = found(config(tmp_path), 'train')
    assert not errors and '1 pictures are in hidden folders, and are read by mmseg: .ipynb_che' in warning
    (tmp_path / 'masks/.ipynb_checkpoints/001.png').unlink()
    (error,), _ = found(config(tmp_path), 'train')
    assert '.ipynb_checkpoints/001.png; mmseg reads hidden folders, too: delete them' in error


LISTS = {
    b'002\r\n003\r\n': ('', ''),
    b'\xef\xbb\xbf002\n003\n': ('1 of its images are missing', '; the list begins with a byte order mark: save it'),
    b'002.jpg\n003.jpg\n': ('2 of its images', "; names are listed without the suffix, which img_suffix '.jpg' adds"),
    b'002\n\n003\n': ('1 of its images are missing', '; line 2 is blank'),
    b'002\n002\n': ('', 'list.txt: names 1 images more than once'),
}


@pytest.mark.parametrize('content', LISTS)
def test_lists_of_images(content: bytes, tmp_path: Path):
    write_maps(tmp_path, (0, 1, 2))
    (tmp_path / 'list.txt').write_bytes(content)
    cfg = config(tmp_path)
    cfg.train_dataloader.dataset.ann_file = 'list.txt'
    errors, warnings = found(cfg, 'train')
    error, text = LISTS[content]
    assert len(errors) == 2 * bool(error) and error in ''.join(errors[:1])  # the maps are missing too
    assert text in ''.join(errors[:1] + warnings) and len(warnings) == (not error and bool(text))


def test_palette_and_one_bit_maps_are_read_as_mmseg_reads_them(tmp_path: Path):
    from mmseg.datasets.transforms import LoadAnnotations

    from pinas_zoo.mm import segmentation

    write_maps(tmp_path, (0, 1, 7, 255), count=1)
    labels = np.asarray(Image.open(tmp_path / 'masks/000.png'))
    palette = Image.fromarray(labels, 'P')
    palette.putpalette([*range(256)] * 3)
    palette.save(tmp_path / 'palette.png')
    Image.fromarray(labels > 0).save(tmp_path / 'bits.png')
    Image.fromarray(labels[:1]).save(tmp_path / 'row.png')
    for path in ('masks/000.png', 'palette.png', 'bits.png', 'row.png'):
        for reduced, mapping in ((False, None), (True, None), (False, {1: 0, 7: 1, 0: 255})):
            results = [
                {
                    'seg_map_path': str(tmp_path / path),
                    'reduce_zero_label': reduced,
                    'label_map': mapping,
                    'seg_fields': [],
                    'ori_shape': (1 if path == 'row.png' else SIDE, SIDE),
                }
                for _ in range(2)
            ]
            segmentation.LoadAnnotations()._load_seg_map(results[0])
            LoadAnnotations()._load_seg_map(results[1])
            ours, theirs = (entry['gt_seg_map'] for entry in results)
            assert ours.dtype == theirs.dtype and (ours == theirs).all() and ours.ndim == 2


def test_channels_and_size_of_every_image_are_compared():
    from pinas_zoo.mm.preflight.bad_input import BadInputError
    from pinas_zoo.mm.preflight.check_image import CheckImage

    results = {'img': np.zeros((4, 6, 3)), 'img_path': 'a.jpg', 'height': 4, 'width': 6}
    assert CheckImage(3)(dict(results)) == results or True
    with pytest.raises(BadInputError, match=r'a.jpg: is 6x4 px, its annotation says 4x6: its boxes and masks do not'):
        CheckImage(3)(results | {'height': 6, 'width': 4})
    with pytest.raises(BadInputError, match=r'a.jpg: has 4 channel\(s\), the model expects 3'):
        CheckImage(3)(results | {'img': np.zeros((4, 6, 4))})


# ---- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('split', ['train', 'val'])
def test_images_of_several_sizes_in_a_batch(split: str, tmp_path: Path):
    write_maps(tmp_path, (0, 1, 2))
    for folder, suffix in (('images', 'jpg'), ('masks', 'png')):
        file = tmp_path / folder / f'002.{suffix}'  # not among the eight that are opened first
        Image.open(file).resize((32, SIDE), Image.Resampling.NEAREST).save(file)
    (error,), _ = found(config(tmp_path), split)
    assert error.startswith(
        f'{split}_dataloader: batches of 2, but its images come in 2 sizes (16x16 px as {tmp_path}/images/000.jpg, '
        f'32x16 px as {tmp_path}/images/002.jpg), which mmseg does not stack: '
    )
    assert found(config(tmp_path, batch=1), split) == ([], [])
    cfg = config(tmp_path)
    cfg[f'{split}_dataloader'].dataset.pipeline.insert(1, dict(type='Resize', scale=(8, 8), keep_ratio=False))
    assert found(cfg, split) == ([], [])
    cfg = config(tmp_path)
    cfg.model.data_preprocessor.size = (64, 64)  # training pads to it
    assert bool(found(cfg, split)[0]) == (split == 'val')


# ---- classes that nothing shows --------------------------------------------------------------------------------------


def test_masks_of_0_and_255(tmp_path: Path):
    write_maps(tmp_path, (0, 255))
    errors, warnings = found(config(tmp_path, names=('background', 'lesion')), 'train')
    assert not warnings
    assert errors == [
        f"{tmp_path}/masks: 12 of 12 label maps were checked and show class 'background' and the ignored label 255 "
        'only, of 2 classes; in masks of 0 and 255 the second class has to become 1'
    ]
    Image.fromarray(np.ones((SIDE, SIDE), np.uint8)).save(tmp_path / 'masks/002.png')  # shown late
    assert found(config(tmp_path, names=('background', 'lesion')), 'train') == ([], [])


def test_a_class_that_no_map_shows(tmp_path: Path):
    write_maps(tmp_path, (0, 1))
    errors, warnings = found(config(tmp_path), 'train')
    assert not errors
    assert warnings == [f"{tmp_path}/masks: no pixel of class 'house' in the 12 of 12 label maps that were looked at"]


def test_classes_without_a_value_are_named_beside_the_mean(monkeypatch: pytest.MonkeyPatch):
    import torch

    from pinas_zoo.mm import segmentation

    said: list[str] = []
    logger = SimpleNamespace(warning=said.append)
    monkeypatch.setattr(segmentation, 'MMLogger', SimpleNamespace(get_current_instance=lambda: logger))
    metric = segmentation.IoUMetric()
    metric.dataset_meta = {'classes': NAMES}
    labels = torch.tensor([[0, 0], [0, 255]])
    for predicted in ([[0, 0], [1, 0]], [[0, 0], [1, 2]]):
        areas = metric.intersect_and_union(torch.tensor(predicted), labels, 3, 255)
        metric.compute_metrics([areas])
    text = "no label of 'road', 'house': mAcc is the mean over 1 of 3 classes, mIoU over 2"
    assert said == [text, text]
    said.clear()
    full = torch.tensor([[0, 1], [2, 2]])
    metric.compute_metrics([metric.intersect_and_union(full, full, 3, 255)])
    assert not said
