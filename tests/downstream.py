"""The detection and segmentation configs by name, and small generated sets in the formats that they read."""

from __future__ import annotations

import ast
import copy
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

ROOT = Path(__file__).parents[1]
FOLDERS = ('coco', 'ade20k', 'cityscapes')
ARCHS = {'pinas-a': '301-3231-203213-032', 'pinas-b': '333-3113-330011-021'}
ALL = {folder: sorted((ROOT / 'configs' / folder).glob('*.py')) for folder in FOLDERS}
#: Networks whose training recipe is not published: they are tested only, so they have no schedule.
RELEASED = [path for folder in FOLDERS for path in ALL[folder] if '_released_' in path.name]
TRAINED = [path for folder in FOLDERS for path in ALL[folder] if '_released_' not in path.name]


def label(path: Path) -> str:
    return f'{path.parent.name}/{path.stem}'


def model_name(path: Path) -> str:
    """The part of the name that describes the model: everything except schedule and crop."""
    parts = path.stem.split('_')
    return f'{path.parent.name}/' + '_'.join(parts[: 3 if path.parent.name == 'coco' else 2])


def backbone_name(path: Path) -> str:
    return path.stem.split('_')[1]


def like(path: Path, backbone: str) -> Path:
    """The same config with another backbone; the form at a stride of 8 keeps its suffix."""
    parts = path.stem.split('_')
    suffix = '-d8' if parts[1].endswith('-d8') else ''
    return path.with_name('_'.join([parts[0], backbone + suffix, *parts[2:]]) + '.py')


def one_per_model() -> list[Path]:
    """One config of every distinct model."""
    return list({model_name(path): path for path in reversed(TRAINED)}.values())[::-1]


# ---- reading ---------------------------------------------------------------------------------------------------------


@cache
def _parse(path: Path):
    from mmengine.config import Config

    import pinas_zoo.registry  # noqa: F401

    return Config.fromfile(path)


def read(path: Path):
    """A separate copy of a config, with its default scope set."""
    from mmengine.registry import DefaultScope, init_default_scope

    cfg = copy.deepcopy(_parse(path))
    if DefaultScope.check_instance_created('mmengine'):
        current = DefaultScope.get_current_instance()
        if current is not None and current.scope_name == cfg.default_scope:
            return cfg
    init_default_scope(cfg.default_scope)
    return cfg


def build(cfg) -> nn.Module:
    """The model without memory for its weights."""
    from mmengine.registry import MODELS

    with torch.device('meta'):
        return MODELS.build(copy.deepcopy(cfg.model))  # mmseg writes into the config it builds


def own_bases(path: Path) -> list[Path]:
    """Files of this project that a config inherits from directly."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '_base_':
            bases = ast.literal_eval(node.value)
            bases = [bases] if isinstance(bases, str) else bases
            return [(path.parent / base).resolve() for base in bases if '::' not in base]
    return []


def dicts(node: Any) -> Iterator[dict]:
    """All dicts inside a config value."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ():
        yield from dicts(child)


# ---- generated data --------------------------------------------------------------------------------------------------


def _image(rng: np.random.Generator, size: int) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))


def _write_coco(root: Path, rng: np.random.Generator, counts: dict[str, int], size: int) -> None:
    from mmdet.datasets import CocoDataset

    categories = [{'id': i + 1, 'name': name} for i, name in enumerate(CocoDataset.METAINFO['classes'])]
    (root / 'annotations').mkdir(parents=True)
    for split, count in counts.items():
        folder = f'{split}2017'
        (root / folder).mkdir()
        images, annotations = [], []
        for number in range(1, count + 1):
            name = f'{number:012d}.jpg'
            _image(rng, size).save(root / folder / name)
            images.append({'id': number, 'file_name': name, 'height': size, 'width': size})
            for x, y in ((4, 4), (size // 2, size // 3)):
                side = size // 3
                annotations.append(
                    {
                        'id': len(annotations) + 1,
                        'image_id': number,
                        'category_id': int(rng.integers(1, 81)),
                        'bbox': [x, y, side, side],
                        'area': side * side,
                        'iscrowd': 0,
                        'segmentation': [[x, y, x + side, y, x + side, y + side, x, y + side]],
                    }
                )
        document = {'info': {}, 'images': images, 'annotations': annotations, 'categories': categories}
        (root / 'annotations' / f'instances_{folder}.json').write_text(json.dumps(document))


def _write_labels(rng: np.random.Generator, values: np.ndarray, size: int, file: Path) -> None:
    blocks = rng.choice(values, (4, 4)).astype(np.uint8)
    Image.fromarray(np.kron(blocks, np.ones((size // 4, size // 4), np.uint8))).save(file)


def _write_segmentation(
    root: Path, rng: np.random.Generator, counts: dict[str, int], size: int, values: np.ndarray, files: str
) -> None:
    """Images and label maps at the two places that `files` names, separated by a space."""
    for split, count in counts.items():
        for number in range(count):
            image, labels = (root / name for name in files.format(split=split, number=number).split())
            for file in (image, labels):
                file.parent.mkdir(parents=True, exist_ok=True)
            _image(rng, size).save(image)
            _write_labels(rng, values, size, labels)


def write_data(root: Path, folder: str, train: int = 4, val: int = 1, size: int = 96) -> None:
    """A small set in the format of COCO, ADE20K or Cityscapes.

    Args:
        root: Of the set.
        folder: 'coco', 'ade20k' or 'cityscapes'.
        train: Training images.
        val: Validation images.
        size: Side of an image in px, a multiple of 4.
    """
    rng, counts = np.random.default_rng(0), {'train': train, 'val': val}
    if folder == 'coco':
        _write_coco(root, rng, counts, size)
    elif folder == 'ade20k':
        names = {'training': train, 'validation': val}
        files = 'images/{split}/{number}.jpg annotations/{split}/{number}.png'
        _write_segmentation(root, rng, names, size, np.arange(151), files)
    else:
        values = np.array([*range(19), 255])
        files = (
            'leftImg8bit/{split}/bonn/bonn_{number}_leftImg8bit.png '
            'gtFine/{split}/bonn/bonn_{number}_gtFine_labelTrainIds.png'
        )
        _write_segmentation(root, rng, counts, size, values, files)


# ---- smaller ---------------------------------------------------------------------------------------------------------

_SMALL_STEPS = {
    'Resize': {'scale': (96, 96)},
    'RandomChoiceResize': {'scales': [(96, 96)]},
    'RandomCrop': {'crop_size': (64, 64)},
}
_FEW = {'nms_pre': 100, 'max_per_img': 20, 'score_thr': 0.0}


def make_small(cfg: Any, root: Path | None = None) -> None:
    """A config for two iterations and one validation image of `write_data`'s set, without downloads.

    The model stays what it is, but for SyncBN, which the launcher turns to BN on a CPU, and public weights.

    Args:
        cfg: Is changed.
        root: Of the set; None keeps the config's paths.
    """
    for node in dicts(cfg._cfg_dict):
        if root and 'data_root' in node:
            node['data_root'] = str(root)
        node.update(_SMALL_STEPS.get(node.get('type'), {}))
        if node.get('type') == 'RandomResize':  # mmseg's takes one scale and a range of ratios, mmdet's two scales
            node['scale'] = [(96, 96)] * 2 if isinstance(node['scale'], list) else (96, 96)
        if node.get('type') == 'RepeatDataset':
            node['times'] = 1
        if root and node.get('type') == 'CocoMetric':
            node['ann_file'] = str(root / 'annotations' / 'instances_val2017.json')
        if node.get('num_workers'):
            node['num_workers'] = 0
        if node.get('type') == 'RandomSampler':
            node['num'] = 32
        if 'max_per_img' in node:  # few proposals and detections, and some even of an untrained network
            node.update({key: value for key, value in _FEW.items() if key in node})
    cfg.model.pop('pretrained', None)
    cfg.model.backbone.pop('init_cfg', None)
    if cfg.default_scope == 'mmseg':
        cfg.model.data_preprocessor.size = (64, 64)
        if cfg.model.test_cfg.mode == 'slide':
            cfg.model.test_cfg.update(crop_size=(64, 64), stride=(42, 42))
    cfg.train_dataloader.batch_size = 2
    cfg.train_cfg.update({'max_iters': 2, 'val_interval': 2} if 'max_iters' in cfg.train_cfg else {'max_epochs': 1})
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint = None
    cfg.visualizer.vis_backends = [{'type': 'LocalVisBackend'}]
