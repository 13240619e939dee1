"""Replaces data sets, metrics and loading steps of mmdet and mmseg by ours, so that every sample is checked."""

from collections.abc import Sequence
from typing import Any

from mmengine.config import Config, ConfigDict

from pinas_zoo.mm.engine.machine import config_dicts
from pinas_zoo.mm.preflight.bad_input import IGNORED_LABEL
from pinas_zoo.mm.preflight.check import head_classes
from pinas_zoo.mm.preflight.ignored import ignored_label
from pinas_zoo.registry import type_name

__all__ = ['check_samples', 'name_bad_input']

SPLITS = ('train', 'val', 'test')
#: By default scope: the replacements, by type.
_OURS = {
    'mmdet': {
        'CocoDataset': 'pinas_zoo.mm.detection.CocoDataset',
        'CocoMetric': 'pinas_zoo.mm.detection.CocoMetric',
    },
    'mmseg': {
        'LoadAnnotations': 'pinas_zoo.mm.segmentation.LoadAnnotations',
        'IoUMetric': 'pinas_zoo.mm.segmentation.IoUMetric',
    },
}
_CHECK = 'pinas_zoo.mm.preflight.check_image.CheckImage'


def check_samples(cfg: Config, splits: Sequence[str] = SPLITS) -> None:
    """Replace what mmdet and mmseg call by its plain name by ours; subclasses are kept. May be applied twice.

    A RandomCrop of mmseg that names no ignored label, and would count it as a class, takes that of the heads.

    Args:
        cfg: Config with its default scope set.
        splits: Some of `SPLITS`: those that are read. The test pipeline of a training is left as it is, since mmdet's
            and mmseg's Inferencers take it from the dumped config and know only their own loading steps.
    """
    scope = cfg.default_scope
    ours = {name: new for old, new in _OURS[scope].items() for name in (old, f'{scope}.{old}')}
    mean = (cfg.model.get('data_preprocessor') or {}).get('mean')
    channels = len(mean) if isinstance(mean, (list, tuple)) and len(mean) > 1 else None
    ignored = ignored_label(cfg) if scope == 'mmseg' else None
    keys = [f'{split}_{part}' for split in splits for part in ('dataloader', 'evaluator')]
    for node in config_dicts([cfg.get(key) for key in keys]):
        if isinstance(node.get('type'), str):
            node['type'] = ours.get(node['type'], node['type'])
            if node['type'] in ('RandomCrop', 'mmseg.RandomCrop') and ignored not in (None, IGNORED_LABEL):
                node.setdefault('ignore_index', ignored)
        if isinstance(node.get('pipeline'), (list, tuple)):
            node['pipeline'] = _with_checks(node['pipeline'], channels)


def name_bad_input(cfg: Config, splits: Sequence[str]) -> None:
    """Let mmdet's and mmseg's data sets name the file that a sample failed on.

    Args:
        cfg: A config; the seeding wrapper stays outermost.
        splits: Some of 'train', 'val', 'test'.
    """
    for name in (f'{split}_dataloader' for split in splits):
        loader = cfg.get(name)
        if loader is None:
            continue
        seeded = loader['dataset'] if type_name(loader['dataset']) == 'SeededDataset' else None
        node = loader['dataset'] if seeded is None else seeded['dataset']
        if type_name(node) != 'NamedDataset':
            node = ConfigDict(type='pinas_zoo.NamedDataset', dataset=node)
        node['num_classes'], node['ignored'] = head_classes(cfg), ignored_label(cfg)
        cfg[name] = ConfigDict({**loader, 'dataset': node if seeded is None else {**seeded, 'dataset': node}})


def _with_checks(steps: Any, channels: int | None) -> list[Any]:
    found: list[Any] = []
    for step, after in zip(steps, [*steps[1:], {}], strict=True):
        found.append(step)
        if type_name(step) == 'LoadImageFromFile' and type_name(after) != 'CheckImage':
            found.append(ConfigDict(type=_CHECK, channels=channels))
    return found
