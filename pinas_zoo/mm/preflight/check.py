"""Finds what is wrong with the data of an mmdet or mmseg run before it starts.

The annotation file is read completely, and files are searched in the listings of their folders; of the pixels only a
few images and label maps per loader are decoded. Later errors in samples are reported while they are read.
`preflight=False` in the config, or as an option, skips the check. What counts as wrong: docs/own_data.md.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.config import Config, ConfigDict

from pinas_zoo.data.trees import Listing
from pinas_zoo.mm.engine.machine import data_set_configs
from pinas_zoo.mm.preflight.coco import check_coco, check_evaluator
from pinas_zoo.mm.preflight.findings import Findings
from pinas_zoo.mm.preflight.ignored import check_ignored, ignored_label
from pinas_zoo.mm.preflight.maps import check_maps
from pinas_zoo.mm.preflight.stacking import check_crop, check_stacking
from pinas_zoo.registry import DATASETS

__all__ = ['find_problems', 'head_classes']

_HEADS = ('decode_head', 'auxiliary_head', 'bbox_head', 'mask_head')


def find_problems(cfg: Config, splits: Sequence[str]) -> Findings:
    """All that is wrong with the data of some loaders, in this process."""
    findings, listing = Findings(), Listing()
    reduced: dict[str, bool] = {}
    if cfg.get('default_scope') == 'mmseg':
        check_ignored(cfg, tuple(splits), findings)
        _check_mode((cfg.get('model') or {}).get('test_cfg') or {}, findings)
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if loader is None:
            continue
        boxed = None
        for node in data_set_configs(loader['dataset']):
            try:
                dataset = _open(node)
            except (TypeError, ValueError, KeyError, AttributeError) as error:
                reason = ' '.join(str(error).split())
                findings.errors.append(f'{split}_dataloader: its data set {node.get("type")} cannot be built: {reason}')
                continue
            if dataset is None:
                continue
            _check_classes(cfg, dataset, f'{split}_dataloader', findings)
            if _reads_as(dataset, 'mmdet', 'CocoDataset'):
                boxed = dataset
                check_coco(dataset, node, _evaluators(cfg, split), listing, findings)
            else:
                reduced[split] = bool(dataset.reduce_zero_label)
                entries = check_maps(dataset, node, head_classes(cfg), ignored_label(cfg), listing, findings)
                check_stacking(cfg, split, node, entries, findings)
                if split == 'train':
                    check_crop(cfg, node, findings)
        if split != 'train':
            check_evaluator(_evaluators(cfg, split), list(data_set_configs(loader['dataset'])), boxed, findings)
    if len(set(reduced.values())) > 1:
        listed = ', '.join(f'{value} in {split}_dataloader' for split, value in reduced.items())
        findings.warnings.append(f'reduce_zero_label is {listed}: one label map would have two meanings')
    return findings


def _check_mode(test_cfg: dict[str, Any], findings: Findings) -> None:
    """How mmseg predicts: on the whole picture, or in windows, whose size and step the config states."""
    mode = test_cfg.get('mode', 'whole')
    if mode not in ('slide', 'whole'):
        findings.errors.append(f"model.test_cfg.mode is {mode!r}; allowed: 'slide', 'whole'")
    elif mode == 'slide' and (missing := [key for key in ('crop_size', 'stride') if key not in test_cfg]):
        findings.errors.append(f"model.test_cfg.mode is 'slide', which needs {' and '.join(missing)} in model.test_cfg")


def head_classes(cfg: Config) -> int | None:
    """The number of classes of the segmentation head; None for other models."""
    counts = [count for path, count in _class_counts(cfg.get('model', {})) if 'decode_head' in path]
    return counts[0] if counts else None


def _class_counts(node: Any, path: str = 'model') -> Iterator[tuple[str, int]]:
    """(dotted key, num_classes) of every head that predicts the data set's classes."""
    if isinstance(node, dict):
        inside = next((key for key in reversed(path.split('.')) if not key.isdigit()), '') in _HEADS
        if inside and isinstance(node.get('num_classes'), int) and not node.get('class_agnostic'):
            yield f'{path}.num_classes', node['num_classes']
        items = list(node.items())
    else:
        items = list(enumerate(node)) if isinstance(node, (list, tuple)) else []
    for key, child in items:
        yield from _class_counts(child, f'{path}.{key}')


def _reads_as(dataset: Any, package: str, name: str) -> bool:
    """Whether a data set finds its files as mmdet's CocoDataset or mmseg's BaseSegDataset does."""
    bases = [base for base in type(dataset).__mro__ if base.__name__ == name and base.__module__.startswith(package)]
    own = ('load_data_list', 'parse_data_info')
    return bool(bases) and all(getattr(type(dataset), n, None) is getattr(bases[0], n, None) for n in own)


def _open(node: ConfigDict) -> Any:
    """The data set of a config, without reading its files; None for kinds and paths that are unknown here."""
    if node.get('backend_args') or '://' in str(node.get('data_root', '')):
        return None
    with DATASETS.switch_scope_and_registry(None) as registry:  # the default scope's, as build() does
        kind = registry.get(node['type']) if isinstance(node.get('type'), str) else node.get('type')
    if kind is None or not hasattr(kind, 'load_data_list'):
        return None
    dataset = DATASETS.build(dict(node, lazy_init=True, pipeline=[]))
    known = _reads_as(dataset, 'mmdet', 'CocoDataset') or _reads_as(dataset, 'mmseg', 'BaseSegDataset')
    return dataset if known else None


def _evaluators(cfg: Config, split: str) -> list[dict[str, Any]]:
    found = cfg.get(f'{split}_evaluator') or []
    return list(found) if isinstance(found, (list, tuple)) else [found]


def _check_classes(cfg: Config, dataset: Any, loader: str, findings: Findings) -> None:
    names = dataset.metainfo.get('classes')
    if names is None:
        return
    if isinstance(names, str):
        findings.errors.append(f'{loader}.dataset.metainfo.classes is the text {names!r}: write a tuple, ({names!r},)')
        return
    for key, count in _class_counts(cfg.get('model', {})):
        if count != len(names):
            kind = type(dataset).__name__
            findings.errors.append(
                f'{key} is {count}, but {kind} of {loader} has {len(names)} classes ({names[0]}, ...)'
            )
