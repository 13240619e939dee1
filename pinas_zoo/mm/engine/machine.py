"""What a config needs to run on this machine, before its Runner is built: a CPU, one or several processes, options.

Every change is reported by a line in `notes`, for the log of the run.
"""

import atexit
import multiprocessing as mp
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import init_dist, is_distributed

from pinas_zoo.dist import cores
from pinas_zoo.registry import type_name

__all__ = [
    'FOREIGN_SCOPES',
    'config_dicts',
    'config_paths',
    'data_set_configs',
    'fill_runtime',
    'finish_on_device',
    'fit_machine',
    'fit_workers',
    'join_processes',
    'own_cores',
    'replace_sync_bn',
    'set_ranks_of_slurm',
    'use_amp',
]

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
#: Default scopes whose configs are checked before they run and adapted to the machine.
FOREIGN_SCOPES = ('mmdet', 'mmseg')
_SYNC_NORMS = ('SyncBN', 'MMSyncBN', 'SyncBatchNorm')
_AMP = 'pinas_zoo.AmpOptimWrapper'


def config_paths(node: Any, path: str = '') -> Iterator[tuple[str, dict[str, Any]]]:
    """All dicts inside a config value, outermost first, each with its path, as in 'model.decode_head.0'."""
    if isinstance(node, dict):
        yield path, node
        items: list[tuple[Any, Any]] = list(node.items())
    else:
        items = list(enumerate(node)) if isinstance(node, (list, tuple)) else []
    for key, child in items:
        yield from config_paths(child, f'{path}.{key}' if path else str(key))


def data_set_configs(node: Any) -> Iterator[Any]:
    """Configs of the data sets inside wrappers (repeated, concatenated, seeded); none of what is not a dict."""
    if not isinstance(node, dict):
        return
    inner = [node['dataset']] if 'dataset' in node else list(node.get('datasets', ()))
    if not inner:
        yield node
    for child in inner:
        yield from data_set_configs(child)


def config_dicts(node: Any) -> Iterator[dict[str, Any]]:
    """All dicts inside a config value, outermost first."""
    return (found for _, found in config_paths(node))


def replace_sync_bn(cfg: Config, notes: list[str]) -> None:
    """SyncBN becomes BN everywhere, since it raises on CPU tensors."""
    norms = [node for node in config_dicts(cfg._cfg_dict) if type_name(node) in _SYNC_NORMS]
    for node in norms:
        node['type'] = 'BN'
    if cfg.get('sync_bn'):
        cfg.sync_bn = None
    if norms:
        notes.append(f'CPU: {len(norms)} SyncBN of the config became BN (statistics per process)')


def set_ranks_of_slurm() -> None:
    """Sets torch's variables of a process group from those of a Slurm task."""
    env = os.environ
    env['RANK'], env['WORLD_SIZE'] = env['SLURM_PROCID'], env['SLURM_NTASKS']
    env['LOCAL_RANK'] = env.get('SLURM_LOCALID', '0')
    env.setdefault('LOCAL_WORLD_SIZE', env.get('SLURM_NTASKS_PER_NODE', '1'))
    env.setdefault('MASTER_PORT', '29500')
    if torch.cuda.device_count() == 1:  # Slurm bound a GPU to each task, which every task calls 0
        env['SLURM_LOCALID'] = env['LOCAL_RANK'] = '0'


def own_cores(launcher: str) -> int:
    """Cores of this process: those that Slurm assigned to its task, else an equal share of the usable ones."""
    usable = cores()
    if launcher == 'none':
        return usable
    task = os.environ.get('SLURM_CPUS_PER_TASK')  # srun may have bound the task to them: not divided again
    if launcher == 'slurm' and task:
        return max(1, min(usable, int(task)))
    return max(1, usable // int(os.environ.get('LOCAL_WORLD_SIZE', '1')))


def _leave() -> None:
    """Destroys the process group of a run that ended well; otherwise NCCL warns at exit."""
    if torch.distributed.is_initialized() and not hasattr(sys, 'last_value'):
        torch.distributed.destroy_process_group()


def join_processes(cfg: Config, on_cpu: bool) -> None:
    """Start the process group of a run with several processes: gloo on a CPU, otherwise as in the config."""
    if on_cpu:
        if not torch.distributed.is_initialized():
            # mmengine's own set-up calls torch.cuda and fails here.
            torch.distributed.init_process_group('gloo')
        wrap_for_cpu(cfg)
    elif not is_distributed():
        # A Runner would do it, but the search has none, and would change the start method that this sets.
        env = cfg.get('env_cfg') or {}
        if (method := (env.get('mp_cfg') or {}).get('mp_start_method')) and not mp.get_start_method(allow_none=True):
            mp.set_start_method(method)
        init_dist(cfg.launcher, **env.get('dist_cfg', {}))
        atexit.register(_leave)


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

    mmdet's and mmseg's models keep float16 on a GPU: mmcv's compiled operators have no bfloat16 form.

    Raises:
        ValueError: The config uses a wrapper that has no mixed-precision form.
    """
    allowed = ('OptimWrapper', 'AmpOptimWrapper', 'BFloat16OptimWrapper')
    for node in _wrappers(cfg):
        kind = type_name(node) or 'OptimWrapper'
        if kind not in allowed:
            raise ValueError(f'--amp got the optimiser wrapper {kind}, allowed are {allowed}')
        if kind == 'OptimWrapper':
            node['type'] = _AMP
            node.setdefault('loss_scale', 'dynamic')
            if cfg.get('default_scope') in FOREIGN_SCOPES:
                node.setdefault('dtype', 'float16')


def _wrappers(cfg: Config) -> Iterator[dict[str, Any]]:
    """The configs of optimiser wrappers, one or several."""
    return (node for node in config_dicts(cfg.get('optim_wrapper')) if 'optimizer' in node)


def fit_machine(cfg: Config, on_cpu: bool, notes: list[str]) -> None:
    """What a config of mmdet or mmseg needs to run on this machine.

    Args:
        cfg: Any config of theirs.
        on_cpu: On a CPU SyncBN becomes BN, and mixed precision autocast to bfloat16.
        notes: Receives a line per change.
    """
    if on_cpu:
        replace_sync_bn(cfg, notes)
        for node in _wrappers(cfg):
            if type_name(node) == 'AmpOptimWrapper':
                node['type'] = _AMP
    fit_workers(cfg)
    fill_runtime(cfg)


def finish_on_device(cfg: Config, notes: list[str]) -> None:
    """With a GPU, workers return uint8 images in pinned memory, and the rest is done on the device.

    Settings of the config are kept: a data set's `finish`, a loader's `pin_memory`, a preprocessor of another type.
    """
    preprocessor = type_name((cfg.get('model') or {}).get('data_preprocessor') or {})
    if preprocessor not in ('', 'BatchPreprocessor'):
        return
    found = False
    for loader in filter(None, map(cfg.get, LOADERS)):
        dataset = loader['dataset']
        while 'dataset' in dataset:
            dataset = dataset['dataset']
        if type_name(dataset) in ('FourViews', 'BatchedViews', 'SupervisedView', 'HalvedView'):
            dataset.setdefault('finish', False)
            loader.setdefault('pin_memory', True)
            found = True
    if found:
        notes.append('GPU: workers leave uint8 images; colours, blur and normalisation are done on the device')


def fit_workers(cfg: Config) -> None:
    """Removes options for workers if a loader has none, since torch then refuses them."""
    for name in LOADERS:
        loader = cfg.get(name)
        if loader is not None and not loader.get('num_workers', 0):
            loader['num_workers'] = 0
            for key in ('persistent_workers', 'prefetch_factor', 'timeout'):
                loader.pop(key, None)


def fill_runtime(cfg: Config) -> None:
    """JSON lines and, if it is installed, TensorBoard, unless the config has a visualizer."""
    if cfg.get('visualizer') is None:
        names = ['LocalVisBackend']
        if find_spec('tensorboard'):
            names.append('TensorboardVisBackend')
        cfg.visualizer = {'type': 'Visualizer', 'vis_backends': [{'type': n} for n in names]}
