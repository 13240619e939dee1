"""The configs of docs/own_data.md run on generated data, unchanged."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from downstream import ROOT, make_small, write_data
from PIL import Image

pytestmark = [pytest.mark.mm, pytest.mark.slow]

TEXT = (ROOT / 'docs/own_data.md').read_text()
CONFIGS = {
    Path(name).stem: code for name, code in re.findall(r'```python\n# (configs/own/\S+\.py)\n(.*?)```', TEXT, re.DOTALL)
}


def load(name: str, root: Path, tmp_path: Path):
    """A config of the page, as if it were in configs/own and its data under `root`."""
    from mmengine.config import Config

    import pinas_zoo.registry  # noqa: F401

    code = re.sub(r"_base_ = '\.\./(.*)'", rf"_base_ = '{ROOT}/configs/\1'", CONFIGS[name])
    file = tmp_path / f'{name}.py'
    file.write_text(re.sub(r"'data/\w+/", f"'{root}/", code))
    return Config.fromfile(file)


def run(cfg, tmp_path: Path):
    """Trains a config through the tool's own function; returns the lines of its log."""
    from pinas_zoo.mm.engine.launch import train
    from pinas_zoo.mm.engine.options import Options

    cfg.default_hooks.checkpoint = None
    cfg.default_hooks.logger.interval = 1
    cfg.dump(tmp_path / 'small.py')
    runner = train(tmp_path / 'small.py', Options(work_dir=str(tmp_path / 'run')))
    assert runner.iter == 2
    (log,) = (tmp_path / 'run').glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [line['loss'] for line in lines if 'loss' in line]
    assert len(losses) == 2 and np.isfinite(losses).all()
    return lines


def write_folder(root: Path, classes: tuple[str, ...], count: int, size: int = 40) -> None:
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f'{number}.jpg')


def test_the_page_has_four_configs():
    assert sorted(CONFIGS) == ['flowers', 'pets', 'roads', 'space']


def test_folder_of_classes(tmp_path):
    write_folder(tmp_path / 'data', ('daisy', 'rose', 'tulip'), count=4)
    cfg = load('flowers', tmp_path / 'data', tmp_path)
    for loader, batch in ((cfg.train_dataloader, 6), (cfg.val_dataloader, 12)):
        loader.update(batch_size=batch, num_workers=0)
        loader.dataset.get('dataset', loader.dataset).size = 32
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    assert any('accuracy/top1' in line for line in run(cfg, tmp_path))


def test_custom_coco(tmp_path):
    root = tmp_path / 'data'
    write_data(root, 'coco')
    for split in ('train', 'val'):
        file = root / 'annotations' / f'instances_{split}2017.json'
        document = json.loads(file.read_text())
        document['categories'] = [{'id': 7, 'name': 'cat'}, {'id': 3, 'name': 'dog'}]
        for number, annotation in enumerate(document['annotations']):
            annotation['category_id'] = (3, 7)[number % 2]
        (root / 'annotations' / f'{split}.json').write_text(json.dumps(document))
        (root / f'{split}2017').rename(root / split)
    cfg = load('pets', root, tmp_path)
    make_small(cfg)
    assert any('coco/segm_mAP' in line for line in run(cfg, tmp_path))


def test_custom_masks(tmp_path):
    root, rng = tmp_path / 'data', np.random.default_rng(0)
    for split, count in (('train', 4), ('val', 1)):
        for folder in ('images', 'masks'):
            (root / folder / split).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / 'images' / split / f'{number}.jpg')
            labels = rng.choice(np.array([0, 1, 2, 255], np.uint8), (96, 96))
            Image.fromarray(labels).save(root / 'masks' / split / f'{number}.png')
    cfg = load('roads', root, tmp_path)
    make_small(cfg)
    assert any('mIoU' in line for line in run(cfg, tmp_path))


def test_own_space(tmp_path):
    from mmengine.registry import MODELS, init_default_scope

    write_folder(tmp_path / 'data', ('daisy', 'rose'), count=4)
    cfg = load('space', tmp_path / 'data', tmp_path)
    cfg.train_dataloader.update(batch_size=4, num_workers=0)
    cfg.train_dataloader.dataset.dataset.size = 32
    cfg.model.method.queue_length = 32
    cfg.train_cfg.max_epochs = 1
    run(cfg, tmp_path)
    init_default_scope('mmdet')
    backbone = MODELS.build(
        dict(type='pinas_zoo.PiNASBackbone', space=cfg.model.space, arch='01-22-10', out_indices=(0, 1, 2))
    )
    assert backbone.space.name == 'wide_kernels'
