"""Class names and counts that follow from the data: a config leaves them out (None), the run fills them in."""

from __future__ import annotations

import json
from pathlib import Path

from mmengine.config import Config

from pinas_zoo.data import open_source
from pinas_zoo.data.scenes.prepare import CLASS_NAMES
from pinas_zoo.mm.engine.rewrite import LOADERS, all_dicts
from pinas_zoo.mm.preflight.bad_input import BadInputError

__all__ = ['fill_classes']


def fill_classes(cfg: Config, notes: list[str]) -> None:
    """Fills in what a config leaves open: `num_classes=None` of the model or its heads, and `metainfo.classes=None`.

    Names come from the labels of the images' source, from a COCO file's categories, or from the `classes.txt` beside
    label maps. A config that says its classes is left as it is.

    Args:
        cfg: The config of a training or a test.
        notes: Receives a line about what was filled in.

    Raises:
        BadInputError: The data say no classes.
    """
    heads = [node for node in all_dicts(cfg.get('model')) if node.get('num_classes', 0) is None]
    leaves = [leaf for name in LOADERS if cfg.get(name) for leaf in _leaves(cfg[name]['dataset'])]
    unnamed = [leaf for leaf in leaves if 'metainfo' in leaf and leaf['metainfo'].get('classes', ()) is None]
    if not heads and not unnamed:
        return
    if not leaves:
        raise BadInputError('num_classes is None and the config has no data to take it from')
    names = _names(leaves[0])
    for head in heads:
        head['num_classes'] = len(names)
    for leaf in unnamed:
        leaf['metainfo']['classes'] = names
    if 'classes' in cfg and cfg.classes is None:
        cfg.classes = names
    notes.append(f'{len(names)} classes by the data')


def _leaves(node: dict) -> list[dict]:
    """Data sets inside wrappers."""
    inner = [node['dataset']] if 'dataset' in node else list(node.get('datasets', ()))
    return [leaf for child in inner for leaf in _leaves(child)] if inner else [node]


def _names(leaf: dict) -> tuple[str, ...]:
    """Class names of a data set's config."""
    root = Path(leaf.get('data_root') or '')
    if 'source' in leaf:
        names = open_source(leaf['source']).classes
        where = f'source {dict(leaf["source"])}'
    elif leaf.get('ann_file'):
        file = root / leaf['ann_file']
        where = str(file)
        names = _categories(file)
    else:
        file = root / CLASS_NAMES
        where = str(file)
        names = tuple(file.read_text(encoding='utf-8').split('\n')[:-1]) if file.is_file() else ()
    if not names:
        raise BadInputError(f'num_classes is None, and {where} says no classes: set num_classes, or prepare the data')
    return tuple(names)


def _categories(file: Path) -> tuple[str, ...]:
    """Names of a COCO file's categories by their number; none where it cannot be read (preflight says why)."""
    try:
        categories = json.loads(file.read_text(encoding='utf-8'))['categories']
    except (OSError, ValueError, KeyError):
        return ()
    return tuple(category['name'] for category in sorted(categories, key=lambda category: category['id']))
