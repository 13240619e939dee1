"""What is wrong with the sources of folders, lists and arrays that pre-training, classification and search read."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dist import get_world_size

from pinas_zoo.data import BrokenImageError, FileSource, Source, open_source
from pinas_zoo.data.image_list import few_names
from pinas_zoo.data.supervised import require_labels
from pinas_zoo.mm.engine.class_list import class_counts, views
from pinas_zoo.mm.preflight.findings import Findings, spaced

__all__ = ['check_views']


def check_views(cfg: Config, keys: tuple[str, ...], findings: Findings) -> None:
    """Opens the sources of a run, and looks at labels, counts and a few images.

    Args:
        cfg: With its class list in its sources.
        keys: Parts of the config that the run uses, such as 'train_dataloader' or 'evaluation'.
        findings: Receives the lines.
    """
    counts = class_counts(cfg)
    for path, node, labelled in views(cfg, keys):
        try:
            source = open_source(node['source'])
            if labelled:
                require_labels(source)
        except (OSError, ValueError) as error:
            findings.errors.append(f'{path}: {error}')
            continue
        findings.warnings += [f'{path}: {note}' for note in source.notes]
        _check_size(cfg, path, source, findings)
        if isinstance(source, FileSource):
            _look(path, source, findings)
        if labelled:
            wrong = _wrong_counts(counts, node['source'], source)
            findings.errors += [line for line in wrong if line not in findings.errors]
            _check_classes(path, source, findings)
    _check_topk(cfg, keys, counts, findings)


def _check_size(cfg: Config, path: str, source: Source, findings: Findings) -> None:
    part = cfg.get(path.partition('.')[0])
    if not isinstance(part, dict):
        return
    size, batches = part.get('batch_size', 1), part.get('batches')
    if path.startswith('train_dataloader') and len(source) < size * get_world_size():
        findings.warnings.append(
            f'{path}: {len(source)} images are fewer than a batch of {size} on {get_world_size()} process(es): they '
            'repeat within it, and an epoch is one batch'
        )
    if batches and batches > len(source) // size:
        findings.errors.append(
            f'{path}: {batches} batches of {size} were asked for, {len(source)} images give {len(source) // size}'
        )


def _look(path: str, source: Source, findings: Findings) -> None:
    """Decodes a few images."""
    faults = []
    looked = spaced(len(source))
    for index in looked:
        try:
            source.load(index)
        except BrokenImageError as error:
            faults.append(str(error))
    if faults:
        lines = findings.errors if len(faults) == len(looked) else findings.warnings
        lines.append(f'{path}: {len(faults)} of {len(looked)} images that were looked at do not decode: {faults[0]}')


def _wrong_counts(counts: dict[str, int], spec: dict[str, Any], source: Source) -> list[str]:
    shown = len(source.classes)
    what = {'folder': 'folder', 'list': 'list'}.get(spec['kind'], f'source {spec["kind"]!r}')
    fewer = spec['kind'] == 'list' and not spec.get('classes')  # its highest labels need not occur
    return [
        f'{key} is {count}, the {what} has {shown} classes {few_names(source.classes)}'
        for key, count in counts.items()
        if count < shown or (count > shown and not fewer)
    ]


def _check_classes(path: str, source: Source, findings: Findings) -> None:
    """Classes of few images: one cannot be told from its only image, and of none nothing is learnt."""
    found = np.bincount(source.labels, minlength=len(source.classes))
    for count, text in ((0, 'no image'), (1, 'only one image')):
        named = [source.classes[label] for label in np.flatnonzero(found == count)]
        if named and (count == 0 or path.startswith('train_dataloader')):
            findings.warnings.append(f'{path}: {text} of class {few_names(named)}')


def _check_topk(cfg: Config, keys: tuple[str, ...], counts: dict[str, int], findings: Findings) -> None:
    for key in keys:
        name = key.replace('dataloader', 'evaluator')
        evaluator = cfg.get(name) if name != key else None
        topk = evaluator.get('topk', ()) if isinstance(evaluator, dict) else ()
        if counts and (high := [k for k in topk if k >= min(counts.values())]):
            findings.warnings.append(f'{name}.topk {high}: of {min(counts.values())} classes that is always 100 %')
