"""Finds what is wrong with the labels that classification, search and k-nearest neighbours read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.config import Config

from pinas_zoo.data.sources import Source, few_names, open_source
from pinas_zoo.data.supervised import require_labels
from pinas_zoo.data.timm_stream import TimmStream
from pinas_zoo.mm.engine.class_list import class_counts, views
from pinas_zoo.mm.preflight.findings import Findings

__all__ = ['check_views']


def check_views(cfg: Config, keys: Sequence[str], findings: Findings) -> None:
    """Checks labels and counts of a run's sources.

    Args:
        cfg: Config with its class list in its sources.
        keys: Parts of the config that the run uses, such as 'train_dataloader' or 'evaluation'.
        findings: Receives the lines. Sources that do not open are left out: `check_data` has reported them.
    """
    counts = class_counts(cfg)
    for path, node, labelled in views(cfg, keys):
        try:
            source = open_source(node['source'])
        except (OSError, ValueError):
            continue
        _check_batches(cfg, path, source, findings)
        if not labelled:
            continue
        if isinstance(source, TimmStream):  # its labels are known once it is read
            continue
        try:
            require_labels(source)
        except ValueError as error:
            findings.errors.append(f'{path}: {error}')
            continue
        wrong = _wrong_counts(counts, node['source'], source)
        findings.errors += [line for line in wrong if line not in findings.errors]
        _check_classes(path, source, findings)
    _check_topk(cfg, keys, counts, findings)


def _check_batches(cfg: Config, path: str, source: Source, findings: Findings) -> None:
    part = cfg.get(path.partition('.')[0])
    if not isinstance(part, dict) or not part.get('batches'):
        return
    size, batches = part.get('batch_size', 1), part.get('batches')
    if batches > len(source) // size:
        findings.errors.append(
            f'{path}: {batches} batches of {size} were requested, {len(source)} images give {len(source) // size}'
        )


def _wrong_counts(counts: dict[str, int], spec: dict[str, Any], source: Source) -> list[str]:
    shown = len(source.classes)
    what = {'folder': 'folder', 'list': 'list', 'shards': 'set of shards'}.get(spec['kind'], f'source {spec["kind"]!r}')
    fewer = spec['kind'] in ('list', 'shards') and not spec.get('classes')  # its highest labels need not occur
    hint = '; classes=(...) of its source names them all where some have no image'
    return [
        f'{key} is {count}, the {what} has {shown} classes {few_names(source.classes)}{hint if count > shown else ""}'
        for key, count in counts.items()
        if count < shown or (count > shown and not fewer)
    ]


def _check_classes(path: str, source: Source, findings: Findings) -> None:
    """Classes with few images: one image is too few to separate training and evaluation, and none teaches nothing."""
    found = np.bincount(source.labels, minlength=len(source.classes))
    for count, text in ((0, 'no image'), (1, 'only one image')):
        named = [source.classes[label] for label in np.flatnonzero(found == count)]
        if named and (count == 0 or path.startswith('train_dataloader')):
            findings.warnings.append(f'{path}: {text} of class {few_names(named)}')


def _check_topk(cfg: Config, keys: Sequence[str], counts: dict[str, int], findings: Findings) -> None:
    for key in keys:
        name = key.replace('dataloader', 'evaluator')
        evaluator = cfg.get(name) if name != key else None
        topk = evaluator.get('topk', ()) if isinstance(evaluator, dict) else ()
        if isinstance(topk, int):
            findings.errors.append(f'{name}.topk is {topk}: write a list, [{topk}]')
        elif counts and (high := [k for k in topk if k >= min(counts.values())]):
            findings.warnings.append(f'{name}.topk {high}: of {min(counts.values())} classes that is always 100 %')
