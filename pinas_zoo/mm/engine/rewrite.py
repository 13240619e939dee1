"""Rewrites of configs that inherit from mmdetection or mmsegmentation, before their Runner is built.

What the user set is kept: samplers keep their order and batch samplers, hooks their intervals; only the parts that
cannot resume exactly, or cannot run on this machine, are exchanged, and every change is a line of `notes`, for the log
of the run. A config that names `ExactIterLoop`, as all of this project do, is none of `make_exact`'s business.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from mmengine.config import Config, ConfigDict

_SYNC_NORMS = ('SyncBN', 'MMSyncBN', 'SyncBatchNorm')
_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
_AMP = 'pinas_zoo.AmpOptimWrapper'
#: What `make_exact` may change.
_EXACT = ('train_cfg', 'train_dataloader', 'val_dataloader', 'default_hooks', 'log_processor', 'custom_hooks')


def type_name(cfg: dict[str, Any]) -> str:
    """The class name of a config's `type`, without scope; '' where there is none."""
    kind = cfg.get('type', '')
    return kind.rsplit('.', 1)[-1] if isinstance(kind, str) else kind.__name__


def _dicts(node: Any) -> Iterator[dict[str, Any]]:
    """All dicts inside a config value, outermost first."""
    if isinstance(node, dict):
        yield node
        children: Iterable[Any] = list(node.values())
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


def use_amp(cfg: Config) -> None:
    """Mixed precision in every optimiser wrapper of a config, by option.

    mmdet's and mmseg's models stay at float16 on a GPU: compiled operators of mmcv have no bfloat16 form.

    Raises:
        ValueError: When the config uses a wrapper for which there is no mixed form.
    """
    allowed = ('OptimWrapper', 'AmpOptimWrapper', 'BFloat16OptimWrapper')
    for node in _wrappers(cfg):
        kind = type_name(node) or 'OptimWrapper'
        if kind not in allowed:
            raise ValueError(f'--amp got the optimiser wrapper {kind}, allowed are {allowed}')
        if kind == 'OptimWrapper':
            node['type'] = _AMP
            node.setdefault('loss_scale', 'dynamic')
            if cfg.get('default_scope') in ('mmdet', 'mmseg'):
                node.setdefault('dtype', 'float16')


def _wrappers(cfg: Config) -> Iterator[dict[str, Any]]:
    """The configs of optimiser wrappers, one or several."""
    return (node for node in _dicts(cfg.get('optim_wrapper')) if 'optimizer' in node)


def fit_machine(cfg: Config, on_cpu: bool, notes: list[str]) -> None:
    """What a config of mmdet or mmseg needs to run on this machine.

    Args:
        cfg: Any config of theirs.
        on_cpu: SyncBN becomes BN there, and mixed precision autocast to bfloat16.
        notes: Receives what was rewritten.
    """
    if on_cpu:
        replace_sync_bn(cfg, notes)
        for node in _wrappers(cfg):
            if type_name(node) == 'AmpOptimWrapper':
                node['type'] = _AMP
    fit_workers(cfg)
    fill_runtime(cfg)


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
        cfg: A config; the wrapper for seeds stays outside.
        splits: Of 'train', 'val', 'test'.
        num_classes: See NamedDataset.
    """
    for name in (f'{split}_dataloader' for split in splits):
        loader = cfg.get(name)
        if loader is None:
            continue
        seeded = loader['dataset'] if type_name(loader['dataset']) == 'SeededDataset' else None
        node = loader['dataset'] if seeded is None else seeded['dataset']
        if type_name(node) != 'NamedDataset':
            node = ConfigDict(type='pinas_zoo.NamedDataset', dataset=node)
        node['num_classes'] = num_classes
        cfg[name] = ConfigDict({**loader, 'dataset': node if seeded is None else {**seeded, 'dataset': node}})


# ---- exact training -------------------------------------------------------------------------


def make_exact(cfg: Config, seed: int, notes: list[str]) -> None:
    """Exchange loop, samplers, data sets and hooks for those with which a run continues exactly.

    Epochs stay epochs: `ExactIterLoop` and `ExactCheckpointHook` know them. May be applied to its own result.

    Args:
        cfg: A training config.
        seed: Of this run.
        notes: Receives a line per change, and what stays inexact.
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
    notes += [f'rewritten: {line}' for key in _EXACT for line in _changes(before[key], cfg.get(key), key)]


def _changes(old: Any, new: Any, name: str) -> Iterator[str]:
    """One line per difference between two config values: dotted key, old value, new value."""
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        if new.get('dataset') == old:
            yield f'{name} is wrapped in {new["type"]}'
            return
        for key in dict.fromkeys([*old, *new]):
            yield from _changes(old.get(key), new.get(key), f'{name}.{key}')
    elif isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)) and list(new[: len(old)]) == list(old):
        yield from (f'{name} + {dict(added)}' for added in new[len(old) :])
    else:
        yield f'{name}: {"not set" if old is None else old} -> {"not set" if new is None else new}'


def _convert_loop(cfg: Config, notes: list[str]) -> None:
    """Exchange the train loop."""
    train = dict(cfg.train_cfg)
    known = ('', 'EpochBasedTrainLoop', 'IterBasedTrainLoop', 'ExactIterLoop')
    if type_name(train) not in known:
        notes.append(f'train loop {type_name(train)}: kept, resuming is not exact')
        return
    train.pop('by_epoch', None)
    cfg.train_cfg = ConfigDict(train, type='pinas_zoo.ExactIterLoop')


def _seed_data(loader: dict[str, Any], seed: int, notes: list[str]) -> None:
    """Wrap the data set and exchange the sampler of a training loader."""
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
    """Exchange the checkpoint hook, unless the config switched it off."""
    default = {'type': 'CheckpointHook', 'by_epoch': epochs, 'interval': 1 if epochs else 1000}
    hook = dict(hooks.get('checkpoint', default) or ())
    if not hook:
        return
    kind = type_name(hook)
    if kind not in ('CheckpointHook', 'ExactCheckpointHook'):
        notes.append(f'checkpoint hook {kind}: kept, resuming is not exact')
        return
    hook.setdefault('by_epoch', kind == 'CheckpointHook')  # mmengine's counts epochs unless told
    hooks['checkpoint'] = ConfigDict(hook, type='pinas_zoo.ExactCheckpointHook')
