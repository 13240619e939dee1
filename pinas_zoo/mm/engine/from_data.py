"""Class names and their number, for configs that take them from the data.

A config may write ``'from data'`` for `classes` in a data set's metainfo and for any `num_classes`. Before anything is
built the names are filled in: from the checkpoint if one is tested or used, else from the first data set of the split.
They are then part of the dumped config and, as always, of the checkpoint. A data set defines them in one of these ways:

- names in its own metainfo;
- our views: the source's classes;
- a COCO file: its categories, in the file's order;
- label maps: ``classes.txt`` in `data_root`, one name per line, in the order of the labels that the network learns.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from pinas_zoo.data import open_source
from pinas_zoo.data.scenes.prepare import CLASS_NAMES
from pinas_zoo.mm.engine.machine import data_set_configs
from pinas_zoo.mm.preflight.coco_json import read_categories
from pinas_zoo.mm.preflight.findings import BadInputError
from pinas_zoo.weights.download import find_weights
from pinas_zoo.weights.load import read_checkpoint

__all__ = ['FROM_DATA', 'class_names', 'fill_from_data', 'is_open']

FROM_DATA = 'from data'


def is_open(node: Config | dict[str, Any]) -> bool:
    """Whether a config, or a part of one, takes class names or counts from the data."""
    return any(True for _ in _open_keys(node))


def fill_from_data(cfg: Config, splits: Sequence[str] = ('train',), names: Sequence[str] | None = None) -> None:
    """Replace every 'from data' in a config.

    Args:
        cfg: Config of a training, a test or a search.
        splits: Some of 'train', 'val', 'test', whose data sets define the names; the first one that the config has.
        names: The class names, if they are known: those of a checkpoint.

    Raises:
        BadInputError: The data do not define them.
    """
    places = list(_open_keys(cfg))
    if not places:
        return
    names = _names(cfg, splits) if names is None else names
    for node, key in places:
        node[key] = len(names) if key == 'num_classes' else list(names)


def class_names(checkpoint: str | Path) -> list[str] | None:
    """The class names that a checkpoint was trained with, if it states them.

    Raises:
        BadInputError: The checkpoint is damaged.
    """
    try:
        return read_checkpoint(find_weights(checkpoint), tensors=False).classes or None
    except ValueError as error:
        raise BadInputError(str(error)) from error


def _open_keys(node: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """(dict, key) of every 'from data'."""
    node = node._cfg_dict if isinstance(node, Config) else node
    if isinstance(node, dict):
        yield from ((node, key) for key in ('classes', 'num_classes') if node.get(key) == FROM_DATA)
    children = node.values() if isinstance(node, dict) else node if _is_list(node) else ()
    for child in list(children):
        yield from _open_keys(child)


def _is_list(node: Any) -> bool:
    return isinstance(node, (list, tuple))


def _names(cfg: Config, splits: Sequence[str]) -> Sequence[str]:
    loaders = [cfg[f'{split}_dataloader'].dataset for split in splits if cfg.get(f'{split}_dataloader')]
    roots = loaders[:1] or [cfg[key]['view'] for key in ('evaluation', 'calibration') if cfg.get(key)]
    found = {tuple(_names_of(leaf)): leaf for root in roots for leaf in data_set_configs(root)}
    if len(found) > 1:
        raise BadInputError(
            f'classes={FROM_DATA!r}: the data sets have different classes: {" and ".join(map(str, found))}'
        )
    if not found:
        raise BadInputError(f'classes={FROM_DATA!r}: the config has no data set that defines them')
    return next(iter(found))


def _names_of(node: dict[str, Any]) -> Sequence[str]:
    if 'source' in node:
        if not (names := open_source(node['source']).classes):
            raise BadInputError(f'num_classes={FROM_DATA!r}: the images of {dict(node["source"])} have no labels')
        return names
    known = (node.get('metainfo') or {}).get('classes')
    if known is not None and _is_list(known):
        return known
    if isinstance(known, str) and known != FROM_DATA:
        raise BadInputError(
            f'metainfo.classes of {node.get("type")} is the text {known!r}: write a tuple, ({known!r},)'
        )
    if known != FROM_DATA:
        raise BadInputError(
            f'num_classes={FROM_DATA!r} needs classes={FROM_DATA!r}, or names, in the metainfo of {node.get("type")}'
        )
    file = str(node.get('ann_file') or '')
    listed = file.endswith('.json')
    path = os.path.join(str(node.get('data_root') or ''), file if listed else CLASS_NAMES)
    try:
        content = Path(path).read_bytes()
        text = '' if listed and content.isascii() else content.decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f'not UTF-8 ({error})'
        raise BadInputError(f'{path}: {reason}; classes={FROM_DATA!r} takes the class names from it') from None
    listing = _categories(path, content) if listed else [line.strip() for line in text.splitlines() if line.strip()]
    if not listing:
        raise BadInputError(f'{path}: contains no class names')
    return listing


def _categories(path: str, content: bytes) -> list[str]:
    try:
        return [str(category['name']) for category in read_categories(content)]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInputError(f'{path}: no categories with names, as annotation files of COCO have ({error!r})') from None
