"""This process, set up for a config: safe loading, ranks, threads, gloo on a CPU.

A checkpoint is never loaded in a way that can run code: weights_only is enforced for the process.
"""

import os

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import init_dist, is_distributed
from mmengine.registry import init_default_scope

from pinas_zoo.mm.engine import rewrite
from pinas_zoo.weights.load import PLAIN_GLOBALS

LAUNCHERS = ('none', 'pytorch', 'slurm')


def _enforce_safe_loading() -> None:
    """Make every torch.load of this process weights-only, also those of other packages."""
    os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    # Published files of mmdet and mmseg may hold numpy arrays and scalars as metadata: no code.
    torch.serialization.add_safe_globals(PLAIN_GLOBALS)


def _set_ranks(launcher: str | None) -> str:
    """Find the launcher and give slurm's ranks torch's names. Returns the launcher."""
    env = os.environ
    if launcher is None:
        launcher = 'pytorch' if {'RANK', 'WORLD_SIZE', 'LOCAL_RANK'} <= set(env) else 'none'
    if launcher not in LAUNCHERS:
        raise ValueError(f'launcher {launcher!r}, allowed are {LAUNCHERS}')
    if launcher == 'slurm':
        env['RANK'], env['WORLD_SIZE'] = env['SLURM_PROCID'], env['SLURM_NTASKS']
        env['LOCAL_RANK'] = env.get('SLURM_LOCALID', '0')
        env.setdefault('LOCAL_WORLD_SIZE', env.get('SLURM_NTASKS_PER_NODE', '1'))
        env.setdefault('MASTER_PORT', '29500')
    return launcher


def _set_threads(launcher: str) -> int:
    """Threads of this process: PINAS_THREADS, else the cores divided among the local processes.

    torchrun sets OMP_NUM_THREADS=1 for its processes unless the user set it, which cannot be told
    apart here: tools/dist_train.sh passes the user's value on as PINAS_THREADS.
    """
    wanted = os.environ.get('PINAS_THREADS')
    if wanted is None and launcher == 'none':
        wanted = os.environ.get('OMP_NUM_THREADS')
    threads = int(wanted) if wanted else _own_cores(launcher)
    torch.set_num_threads(threads)
    os.environ['OMP_NUM_THREADS'] = os.environ['MKL_NUM_THREADS'] = str(threads)
    return threads


def _own_cores(launcher: str) -> int:
    """Cores of this process: those that Slurm gave to its task, else an equal share of what may be used."""
    affinity = getattr(os, 'sched_getaffinity', None)  # what a container may use; Linux only
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    if launcher == 'none':
        return cores
    task = os.environ.get('SLURM_CPUS_PER_TASK')  # srun may have bound the task to them: not divided again
    if launcher == 'slurm' and task:
        return max(1, min(cores, int(task)))
    return max(1, cores // int(os.environ.get('LOCAL_WORLD_SIZE', '1')))


def set_up(cfg: Config, launcher: str | None, notes: list[str]) -> int:
    """Set up this process for a config: safe loading, ranks, threads, gloo on a CPU, the scope.

    Args:
        cfg: Its launcher, default scope and (on a CPU) norms and model wrapper are set.
        launcher: See `Options`.
        notes: Receives what the log should say about it.

    Returns:
        The number of processes.
    """
    _enforce_safe_loading()
    cfg.launcher = _set_ranks(launcher)
    distributed = cfg.launcher != 'none'
    threads = _set_threads(cfg.launcher)
    world_size = int(os.environ['WORLD_SIZE']) if distributed else 1
    if cfg.get('default_scope') is None:
        cfg.default_scope = 'pinas_zoo'
    init_default_scope(cfg.default_scope)
    if get_device() == 'cpu':
        if distributed and not torch.distributed.is_initialized():
            # mmengine's own set-up calls torch.cuda and fails here.
            torch.distributed.init_process_group('gloo')
        if distributed:
            rewrite.wrap_for_cpu(cfg)
        rewrite.replace_sync_bn(cfg, notes)
    elif distributed and not is_distributed():
        # A Runner would do it, but the search has none.
        init_dist(cfg.launcher, **(cfg.get('env_cfg') or {}).get('dist_cfg', {}))
    if get_device() != 'cpu':
        rewrite.finish_on_device(cfg, notes)
    rewrite.fit_workers(cfg)
    rewrite.fill_runtime(cfg)
    notes.append(f'{world_size} process(es) on {get_device()}, {threads} thread(s) each')
    return world_size
