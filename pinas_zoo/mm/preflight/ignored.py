"""The label that a segmentation config ignores: one value in heads, metric, padding and data set."""

from collections.abc import Iterator
from typing import Any

from mmengine.config import Config

from pinas_zoo.mm.engine.machine import config_paths
from pinas_zoo.mm.preflight.bad_input import IGNORED_LABEL
from pinas_zoo.mm.preflight.findings import Findings

__all__ = ['check_ignored', 'ignored_label']

_HEADS = ('decode_head', 'auxiliary_head')
#: Steps of a training pipeline that fill labels, with the key of their value.
_FILLING = {'RandomRotate': 'seg_pad_val'}


def ignored_label(cfg: Config) -> int | None:
    """The label for which the heads compute no loss; None if they have none, or the model has no head."""
    return next((value for _, value, _ in _of_heads(cfg)), IGNORED_LABEL)


def check_ignored(cfg: Config, splits: tuple[str, ...], findings: Findings) -> None:
    """Check that all parts of a segmentation config ignore the same label.

    Args:
        cfg: Config of a training or a test.
        splits: Some of 'train', 'val', 'test'.
        findings: Receives a line that lists all parts, if they differ.
    """
    parts = list(_of_heads(cfg))
    if not parts:
        return
    wanted = parts[0][1]
    findings.errors += _unusable(cfg)
    if 'train' in splits:
        parts += _of_losses(cfg)
        preprocessor = cfg.model.get('data_preprocessor') or {}
        parts.append(('model.data_preprocessor.seg_pad_val', *_value(preprocessor, 'seg_pad_val')))
    for split in splits:
        evaluators = cfg.get(f'{split}_evaluator') or []
        for evaluator in evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]:
            if str(evaluator.get('type')).rsplit('.', 1)[-1] == 'IoUMetric' and not evaluator.get('format_only'):
                parts.append((f'{split}_evaluator.ignore_index', *_value(evaluator, 'ignore_index')))
        loader = f'{split}_dataloader'
        for path, node in config_paths((cfg.get(loader) or {}).get('dataset'), f'{loader}.dataset'):
            key = _FILLING.get(str(node.get('type')).rsplit('.', 1)[-1])
            parts += [(f'{path}.{key}', *_value(node, key))] if key and split == 'train' else []
            # mmseg's data sets and crops have their own value, which has little effect: it counts only if it is set.
            if isinstance(node.get('ignore_index'), int):
                parts.append((f'{path}.ignore_index', *_value(node, 'ignore_index')))
            if node.get('reduce_zero_label') and wanted not in (None, IGNORED_LABEL):
                findings.errors.append(
                    f'{path}.reduce_zero_label turns label 0 into {IGNORED_LABEL}, but the ignored label is {wanted}'
                )
    if wanted is not None and any(value != wanted for _, value, _ in parts):
        listed = ', '.join(f'{path} is {value!r}{"" if given else " (not set)"}' for path, value, given in parts)
        findings.errors.append(f'the ignored label has to be one: {listed}')


def _of_heads(cfg: Config) -> Iterator[tuple[str, int | None, bool]]:
    """(key, value, whether it is set) of every head."""
    for path, head in _heads(cfg):
        yield f'{path}.ignore_index', *_value(head, 'ignore_index')


def _of_losses(cfg: Config) -> Iterator[tuple[str, int | None, bool]]:
    """Values that losses have of their own."""
    for path, head in _heads(cfg):
        for place, node in config_paths(head.get('loss_decode'), f'{path}.loss_decode'):
            if 'ignore_index' in node:
                yield f'{place}.ignore_index', *_value(node, 'ignore_index')


def _unusable(cfg: Config) -> Iterator[str]:
    for path, head in _heads(cfg):
        value, _ = _value(head, 'ignore_index')
        losses = [node for _, node in config_paths(head.get('loss_decode') or {'type': 'CrossEntropyLoss'}, '')]
        plain = any(node.get('type') == 'CrossEntropyLoss' and not node.get('use_sigmoid') for node in losses)
        if type(value) is not int and (value is not None or plain):
            hint = '; -100 ignores no label' if value is None else ''
            yield f'{path}.ignore_index is {value!r}, which must be an integer{hint}'


def _heads(cfg: Config) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in _HEADS:
        heads = (cfg.get('model') or {}).get(name) or []
        several = isinstance(heads, (list, tuple))
        for number, head in enumerate(heads if several else [heads]):
            yield f'model.{name}{f".{number}" if several else ""}', head


def _value(node: dict[str, Any], key: str) -> tuple[int | None, bool]:
    return node.get(key, IGNORED_LABEL), key in node
