"""Rewrites of configs that inherit from mmdetection or mmsegmentation, before their Runner is built.

The user's settings are kept: samplers keep their order and batch samplers, hooks their intervals. Only the parts that
cannot resume exactly are replaced, and every change is a line of `notes`, for the log of the run. A config that names
`ExactIterLoop`, as all configs of this project do, is never rewritten.
"""

import copy
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config, ConfigDict

from pinas_zoo.registry import type_name

__all__ = ['changes', 'make_exact']

#: What `make_exact` may change.
_EXACT = ('train_cfg', 'train_dataloader', 'val_dataloader', 'default_hooks', 'log_processor', 'custom_hooks')


def make_exact(cfg: Config, seed: int, notes: list[str]) -> None:
    """Replace loop, samplers, data sets and hooks by those with which a run continues exactly.

    Epochs stay epochs: `ExactIterLoop` and `ExactCheckpointHook` support them. Applying it twice changes nothing more.

    Args:
        cfg: A training config.
        seed: Seed of this run.
        notes: Receives a line per change, and what remains inexact.
    """
    before = {key: copy.deepcopy(cfg.get(key)) for key in _EXACT}
    _convert_loop(cfg, notes)
    _seed_data(cfg.train_dataloader, seed, notes)
    for loader in filter(None, (cfg.train_dataloader, cfg.get('val_dataloader'))):
        if loader.get('num_workers', 0):
            tied = ConfigDict(type='pinas_zoo.end_with_parent', seed=seed)
            loader.setdefault('worker_init_fn', tied)
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    _convert_checkpoints(hooks, 'max_epochs' in cfg.train_cfg, notes)
    if hooks.get('logger') is not None or 'logger' not in hooks:
        hooks.setdefault('logger', ConfigDict(type='LoggerHook'))['log_metric_by_epoch'] = False
    hooks.setdefault('runtime_info', ConfigDict(type='pinas_zoo.LateInfoHook'))
    cfg.setdefault('log_processor', ConfigDict(type='LogProcessor'))['by_epoch'] = False
    custom = list(cfg.get('custom_hooks') or ())
    for name in ('NonFiniteGuardHook', 'PathLogHook'):
        if name not in map(type_name, custom):
            custom.append({'type': f'pinas_zoo.{name}'})
    cfg.custom_hooks = custom
    notes += [f'rewritten: {line}' for key in _EXACT for line in changes(before[key], cfg.get(key), key)]


def changes(old: Any, new: Any, name: str) -> Iterator[str]:
    """One line per difference between two config values: dotted key, old value, new value."""
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        if new.get('dataset') == old:
            yield f'{name} is wrapped in {new["type"]}'
            return
        for key in dict.fromkeys([*old, *new]):
            yield from changes(old.get(key), new.get(key), f'{name}.{key}')
    elif isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)) and list(new[: len(old)]) == list(old):
        yield from (f'{name} + {dict(added)}' for added in new[len(old) :])
    else:
        yield f'{name}: {"not set" if old is None else old} -> {"not set" if new is None else new}'


def _convert_loop(cfg: Config, notes: list[str]) -> None:
    """Replace the train loop."""
    train = dict(cfg.train_cfg)
    known = ('', 'EpochBasedTrainLoop', 'IterBasedTrainLoop', 'ExactIterLoop')
    if type_name(train) not in known:
        notes.append(f'train loop {type_name(train)}: kept, resuming is not exact')
        return
    train.pop('by_epoch', None)
    cfg.train_cfg = ConfigDict(train, type='pinas_zoo.ExactIterLoop')


def _seed_data(loader: dict[str, Any], seed: int, notes: list[str]) -> None:
    """Wrap the data set and replace the sampler of a training loader."""
    if type_name(loader['dataset']) == 'SeededDataset':
        loader['dataset']['seed'] = seed
    else:
        loader['dataset'] = ConfigDict(type='pinas_zoo.SeededDataset', dataset=loader['dataset'], seed=seed)
    sampler = loader.get('sampler') or ConfigDict(type='DefaultSampler')
    stateless = type_name(sampler) in ('DefaultSampler', 'InfiniteSampler', 'StatelessSampler')
    if stateless:
        shuffle = sampler.get('shuffle', True)
        sampler = {'type': 'pinas_zoo.StatelessSampler', 'shuffle': shuffle, 'seed': seed}
    else:
        notes.append(
            f'sampler {type_name(sampler)}: kept, its samples are not seeded and resuming is exact '
            'only if its own order follows from the seed'
        )
    loader['sampler'] = ConfigDict(sampler)
    batches = loader.get('batch_sampler')
    if type_name(batches or {}) != 'SkippingBatchSampler' and (batches or not stateless):
        loader['batch_sampler'] = ConfigDict(
            type='pinas_zoo.SkippingBatchSampler',
            batch_sampler=batches,
            drop_last=loader.pop('drop_last', (batches or {}).get('drop_last', False)),
        )


def _convert_checkpoints(hooks: dict[str, Any], epochs: bool, notes: list[str]) -> None:
    """Replace the checkpoint hook, unless the config disabled it."""
    default = {'type': 'CheckpointHook', 'by_epoch': epochs, 'interval': 1 if epochs else 1000}
    hook = dict(hooks.get('checkpoint', default) or ())
    if not hook:
        return
    kind = type_name(hook)
    if kind not in ('CheckpointHook', 'ExactCheckpointHook'):
        notes.append(f'checkpoint hook {kind}: kept, resuming is not exact')
        return
    hook.setdefault('by_epoch', kind == 'CheckpointHook')  # mmengine's counts epochs by default
    hooks['checkpoint'] = ConfigDict(hook, type='pinas_zoo.ExactCheckpointHook')
