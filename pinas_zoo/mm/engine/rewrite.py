"""Rewrites of a training or test config, ours, mmdet's or mmseg's, before its Runner is built.

What the user set is kept: samplers keep their order and batch samplers, hooks their intervals; only
the parts that cannot resume exactly, or cannot run on a CPU, are exchanged. Every rewrite may be
applied to its own result. What a user should know goes to `notes`, for the log of the run.
"""

import math
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from mmengine.config import Config, ConfigDict

from pinas_zoo.mm.engine.sampling import build_and_keep

_SYNC_NORMS = ('SyncBN', 'MMSyncBN', 'SyncBatchNorm')
_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def type_name(cfg: dict) -> str:
    """The class name of a config's `type`, without scope; '' where there is none."""
    kind = cfg.get('type', '')
    return kind.rsplit('.', 1)[-1] if isinstance(kind, str) else kind.__name__


def _dicts(node: Any) -> Iterator[dict]:
    """All dicts inside a config value, outermost first."""
    if isinstance(node, dict):
        yield node
        children = list(node.values())
    else:
        children = node if isinstance(node, (list, tuple)) else ()
    for child in children:
        yield from _dicts(child)


# ---- machine --------------------------------------------------------------------------------


def replace_sync_bn(cfg: Config, notes: list[str]) -> None:
    """SyncBN becomes BN everywhere: it raises on CPU tensors."""
    norms = [node for node in _dicts(cfg._cfg_dict) if type_name(node) in _SYNC_NORMS]
    for node in norms:
        node['type'] = 'BN'
    if cfg.get('sync_bn'):
        cfg.sync_bn = None
    if norms:
        notes.append(f'CPU: {len(norms)} SyncBN of the config became BN (statistics per process)')


def wrap_for_cpu(cfg: Config) -> None:
    """Let DistributedDataParallel run on CPU tensors (gloo), keeping what the config sets."""
    wrapper = dict(cfg.get('model_wrapper_cfg') or {})
    wrapper.setdefault('type', 'MMDistributedDataParallel')
    wrapper.setdefault('broadcast_buffers', False)
    wrapper.setdefault('find_unused_parameters', cfg.get('find_unused_parameters', False))
    wrapper['device_ids'] = None
    cfg.model_wrapper_cfg = wrapper


def set_amp(cfg: Config, requested: bool, on_cpu: bool, notes: list[str]) -> None:
    """Mixed precision by option or by config, with the wrapper that the device has.

    Args:
        cfg: Its `optim_wrapper` is rewritten.
        requested: Whether --amp was given.
        on_cpu: bfloat16 autocast without loss scaling there; mmengine's wrapper asserts a GPU.
        notes: Receives what was rewritten.

    Raises:
        ValueError: When the config uses a wrapper for which there is no mixed form.
    """
    allowed = ('OptimWrapper', 'AmpOptimWrapper', 'CPUAmpOptimWrapper')
    for node in _dicts(cfg.optim_wrapper):
        if 'optimizer' not in node:
            continue
        kind = type_name(node) or 'OptimWrapper'
        if kind not in allowed:
            if requested:
                raise ValueError(f'--amp got the optimiser wrapper {kind}, allowed are {allowed}')
        elif on_cpu and (requested or kind == 'AmpOptimWrapper'):
            node['type'] = 'pinas_zoo.CPUAmpOptimWrapper'
            for key in ('loss_scale', 'dtype', 'use_fsdp'):
                node.pop(key, None)
            notes.append('CPU: mixed precision is autocast to bfloat16, without loss scaling')
        elif not on_cpu and requested and kind != 'AmpOptimWrapper':
            node['type'] = 'AmpOptimWrapper'
            node.setdefault('loss_scale', 'dynamic')


def fit_workers(cfg: Config) -> None:
    """Options of workers go where a loader has none: torch refuses them there."""
    for name in _LOADERS:
        loader = cfg.get(name)
        if loader is not None and not loader.get('num_workers', 0):
            loader['num_workers'] = 0
            for key in ('persistent_workers', 'prefetch_factor', 'timeout'):
                loader.pop(key, None)


def finish_on_device(cfg: Config, notes: list[str]) -> None:
    """Where there is a card, workers leave uint8 images and pinned memory, and the rest is done there.

    What the config sets stays: a data set's `finish`, a loader's `pin_memory`, a preprocessor of another type.
    """
    preprocessor = type_name((cfg.get('model') or {}).get('data_preprocessor') or {})
    if preprocessor not in ('', 'BatchPreprocessor'):
        return
    found = False
    for loader in filter(None, map(cfg.get, _LOADERS)):
        dataset = loader['dataset']
        while 'dataset' in dataset:
            dataset = dataset['dataset']
        if type_name(dataset) in ('FourViews', 'BatchedViews', 'SupervisedView', 'HalvedView'):
            dataset.setdefault('finish', False)
            loader.setdefault('pin_memory', True)
            found = True
    if found:
        notes.append('GPU: workers leave uint8 images; colours, blur and normalisation are done on the device')


def fill_runtime(cfg: Config) -> None:
    """JSON lines and, where it is installed, TensorBoard, unless the config has a visualizer."""
    if cfg.get('visualizer') is None:
        names = ['LocalVisBackend']
        if find_spec('tensorboard'):
            names.append('TensorboardVisBackend')
        cfg.visualizer = {'type': 'Visualizer', 'vis_backends': [{'type': n} for n in names]}


def name_bad_input(cfg: Config, splits: Sequence[str], num_classes: int | None) -> None:
    """Let mmdet's and mmseg's data sets name the file that a sample failed on.

    Args:
        cfg: A config; its data set for training was seeded before.
        splits: Of 'train', 'val', 'test'.
        num_classes: See NamedDataset.
    """
    if cfg.default_scope not in ('mmdet', 'mmseg'):
        return
    for name in (f'{split}_dataloader' for split in splits):
        loader = cfg.get(name)
        if loader is None:
            continue
        node = loader['dataset']
        if type_name(node) not in ('NamedDataset', 'SeededDataset'):
            node = ConfigDict(type='pinas_zoo.NamedDataset', dataset=node)
        node['num_classes'] = num_classes
        cfg[name] = ConfigDict({**loader, 'dataset': node})


# ---- exact training -------------------------------------------------------------------------


def make_exact(cfg: Config, seed: int, world_size: int, notes: list[str]) -> None:
    """Install the stateless data, the loop and the hooks with which a run continues exactly.

    Epoch-based configs become iteration-based: loop, validation, checkpoints, EMA, schedulers
    (those that mmengine can convert; a smooth curve is then followed per iteration) and logs. Hooks
    that count epochs still see them: ExactIterLoop gets the length of one.

    Args:
        cfg: A training config.
        seed: Of this run.
        world_size: Number of processes.
        notes: Receives what was rewritten and what stays inexact.
    """
    per_epoch = _convert_loop(cfg, world_size, notes)
    if per_epoch:
        _convert_schedulers(cfg.get('param_scheduler'))
        for hook in cfg.get('custom_hooks') or ():
            if type_name(hook) == 'EMAHook' and 'begin_epoch' in hook:
                hook['begin_iter'] = hook.pop('begin_epoch') * per_epoch
    _seed_data(cfg.train_dataloader, seed, notes)
    for loader in filter(None, (cfg.train_dataloader, cfg.get('val_dataloader'))):
        if loader.get('num_workers', 0):
            tied = ConfigDict(type='pinas_zoo.end_with_parent', seed=seed)
            loader.setdefault('worker_init_fn', tied)
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    _convert_checkpoints(hooks, per_epoch, notes)
    if hooks.get('logger') is not None or 'logger' not in hooks:
        hooks.setdefault('logger', ConfigDict(type='LoggerHook'))['log_metric_by_epoch'] = False
    cfg.setdefault('log_processor', ConfigDict(type='LogProcessor'))['by_epoch'] = False
    custom = list(cfg.get('custom_hooks') or ())
    for name in ('NonFiniteGuardHook', 'PathLogHook'):
        if name not in map(type_name, custom):
            custom.append({'type': f'pinas_zoo.{name}'})
    cfg.custom_hooks = custom


def epoch_length(cfg: Config, world_size: int) -> int:
    """Iterations an epoch on one rank; builds the training data set for its length.

    Args:
        cfg: A training config whose default scope is set.
        world_size: Number of processes.

    Returns:
        What len() of the training loader would be.
    """
    loader = cfg.train_dataloader
    if loader.get('num_batch_per_epoch'):
        return loader.num_batch_per_epoch
    dataset = build_and_keep(loader.dataset)
    batches = loader.get('batch_sampler') or {}
    batch_size = loader.get('batch_size') or batches['batch_size']
    drop_last = loader.get('drop_last', False) or batches.get('drop_last', False)
    count = math.ceil(len(dataset) / world_size) / batch_size
    return max(1, math.floor(count) if drop_last else math.ceil(count))


def _convert_loop(cfg: Config, world_size: int, notes: list[str]) -> int | None:
    """Exchange the train loop; returns the epoch's length where it counted epochs."""
    train = dict(cfg.train_cfg)
    by_epoch = train.pop('by_epoch', type_name(train) == 'EpochBasedTrainLoop')
    known = ('', 'EpochBasedTrainLoop', 'IterBasedTrainLoop', 'ExactIterLoop')
    if type_name(train) not in known:
        notes.append(f'train loop {type_name(train)}: kept, resuming is not exact')
        return None
    train['type'] = 'pinas_zoo.ExactIterLoop'
    length = None
    if by_epoch:
        length = epoch_length(cfg, world_size)
        train['max_iters'] = train.pop('max_epochs') * length
        train['val_interval'] = train.get('val_interval', 1) * length
        train['val_begin'] = train.get('val_begin', 1) * length
        if train.get('dynamic_intervals'):
            # mmengine compares the milestone with the count of the coming epoch or iteration.
            train['dynamic_intervals'] = [
                ((begin - 1) * length + 1, every * length) for begin, every in train['dynamic_intervals']
            ]
        train['epoch_length'] = length
        notes.append(f'epochs became iterations: {length} each, {train["max_iters"]} in all')
    cfg.train_cfg = ConfigDict(train)
    return length


def _convert_schedulers(schedulers: Any) -> None:
    """Let mmengine build epoch-based schedulers per iteration; those it cannot stay as they are."""
    from mmengine.registry import PARAM_SCHEDULERS

    for node in _dicts(schedulers):
        if not type_name(node) or not node.get('by_epoch', True):
            continue
        if hasattr(PARAM_SCHEDULERS.get(node['type']), 'build_iter_from_epoch'):
            node['by_epoch'] = True
            node['convert_to_iter_based'] = True


def _seed_data(loader: dict, seed: int, notes: list[str]) -> None:
    """Wrap the data set and exchange the sampler of a training loader."""
    if type_name(loader['dataset']) == 'SeededDataset':
        loader['dataset']['seed'] = seed
    else:
        wrapped = {'type': 'pinas_zoo.SeededDataset', 'dataset': loader['dataset'], 'seed': seed}
        loader['dataset'] = ConfigDict(wrapped)
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


def _convert_checkpoints(hooks: dict, per_epoch: int | None, notes: list[str]) -> None:
    """Exchange the checkpoint hook, unless the config switched it off."""
    default = {'type': 'CheckpointHook', 'by_epoch': False, 'interval': per_epoch or 1000}
    hook = dict(hooks.get('checkpoint', default) or ())
    if not hook:
        return
    kind = type_name(hook)
    if kind not in ('CheckpointHook', 'ExactCheckpointHook'):
        notes.append(f'checkpoint hook {kind}: kept, resuming is not exact')
        return
    if hook.pop('by_epoch', kind == 'CheckpointHook'):  # mmengine's counts epochs unless told
        # In an iteration-based run the whole is one epoch, saved by save_last.
        hook['interval'] = hook.get('interval', -1) * per_epoch if per_epoch else -1
        hook['save_begin'] = hook.get('save_begin', 0) * (per_epoch or 0)
    hook['type'] = 'pinas_zoo.ExactCheckpointHook'
    hooks['checkpoint'] = ConfigDict(hook, by_epoch=False)
