"""From a config file to its training: options, this process, the seed, the Runner.

A config that names `ExactIterLoop` runs as it is written. `rewrite` serves the others: configs that inherit from
mmdetection or mmsegmentation. A checkpoint is never loaded in a way that can run code.
"""

import atexit
import multiprocessing as mp
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import init_dist, is_distributed
from mmengine.registry import RUNNERS, init_default_scope
from mmengine.runner import Runner

from pinas_zoo.mm.engine import rewrite
from pinas_zoo.mm.engine.class_list import pin_classes
from pinas_zoo.mm.engine.from_data import FROM_DATA, class_names, fill_from_data
from pinas_zoo.mm.engine.overrides import override
from pinas_zoo.mm.engine.trackers import use_wandb
from pinas_zoo.mm.preflight.bad_input import BadInputError, last_line
from pinas_zoo.mm.preflight.check import check_data, tell
from pinas_zoo.weights.load import PLAIN_GLOBALS
from pinas_zoo.weights.loading import last_checkpoint

__all__ = [
    'DEFAULT_SEED',
    'FOREIGN_SCOPES',
    'LAUNCHERS',
    'BadInputError',
    'Options',
    'bad_input_in_log',
    'build_runner',
    'choose_seed',
    'find_checkpoint',
    'load_config',
    'prepare_training',
    'set_up',
    'train',
]

DEFAULT_SEED = 0
LAUNCHERS = ('none', 'pytorch', 'slurm')
#: Default scopes whose configs are checked before they run and fitted to the machine.
FOREIGN_SCOPES = ('mmdet', 'mmseg')


@dataclass(frozen=True)
class Options:
    """Options that both tools share.

    Args:
        work_dir: Where logs and checkpoints go; the config's, else work_dirs/<config name>.
        resume: None, 'auto' (the last checkpoint of the work_dir, if any) or a checkpoint.
        cfg_options: Dotted keys that override the config.
        amp: Mixed precision.
        seed: Of this run; None takes the checkpoint's, the config's, else 0.
        launcher: 'none', 'pytorch' (torchrun) or 'slurm'; None looks at the environment.
        wandb: Project of Weights & Biases; None keeps TensorBoard.
    """

    work_dir: str | None = None
    resume: str | None = None
    cfg_options: dict[str, Any] = field(default_factory=dict)
    amp: bool = False
    seed: int | None = None
    launcher: str | None = None
    wandb: str | None = None


def load_config(path: str | Path, options: Options) -> Config:
    """Read a config, apply the options that override it, and set its work_dir.

    Raises:
        BadInputError: An override has no effect.
    """
    cfg = Config.fromfile(path)
    _reach_inside(cfg)
    if options.cfg_options:
        override(cfg, options.cfg_options)
    if options.work_dir is not None:
        cfg.work_dir = options.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs', Path(path).stem))
    return cfg


def _reach_inside(cfg: Config) -> None:
    """Keys that a config sets on the seeding wrapper of its training data, and that are the data set's, go inside."""
    node = (cfg.get('train_dataloader') or {}).get('dataset') or {}
    if str(node.get('type')).endswith('SeededDataset') and isinstance(node.get('dataset'), dict):
        beside = {key: node.pop(key) for key in list(node) if key not in ('type', 'dataset', 'seed', 'max_refetch')}
        node['dataset'] = Config._merge_a_into_b(beside, node['dataset'])


def build_runner(cfg: Config, notes: list[str]) -> Runner:
    """The Runner of a config, with the notes in its log."""
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    tell(notes, runner.logger.info)
    return runner


# ---- this process ---------------------------------------------------------------------------


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
        if torch.cuda.device_count() == 1:  # Slurm bound a card to each task, which every task calls 0
            env['SLURM_LOCALID'] = env['LOCAL_RANK'] = '0'
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


def _leave() -> None:
    """Ends the process group of a run that ended well: NCCL warns of one that is left to the exit."""
    if torch.distributed.is_initialized() and not hasattr(sys, 'last_value'):
        torch.distributed.destroy_process_group()


def set_up(cfg: Config, launcher: str | None, notes: list[str]) -> int:
    """Set up this process for a config: safe loading, ranks, threads, gloo on a CPU, the scope.

    Args:
        cfg: Its launcher and default scope are set; one of mmdet or mmseg is fitted to the machine.
        launcher: See `Options`.
        notes: Receives what the log should say about it.

    Returns:
        The number of processes.
    """
    _enforce_safe_loading()
    if (cfg.get('randomness') or {}).get('deterministic'):
        # Read when CUDA starts; without it the first matrix product may raise.
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    cfg.launcher = _set_ranks(launcher)
    distributed, on_cpu = cfg.launcher != 'none', get_device() == 'cpu'
    threads = _set_threads(cfg.launcher)
    world_size = int(os.environ['WORLD_SIZE']) if distributed else 1
    if cfg.get('default_scope') is None:
        cfg.default_scope = 'pinas_zoo'
    init_default_scope(cfg.default_scope)
    if distributed and on_cpu:
        if not torch.distributed.is_initialized():
            # mmengine's own set-up calls torch.cuda and fails here.
            torch.distributed.init_process_group('gloo')
        rewrite.wrap_for_cpu(cfg)
    elif distributed and not is_distributed():
        # A Runner would do it, but the search has none, and would change the start method that this sets.
        env = cfg.get('env_cfg') or {}
        if (method := (env.get('mp_cfg') or {}).get('mp_start_method')) and not mp.get_start_method(allow_none=True):
            mp.set_start_method(method)
        init_dist(cfg.launcher, **env.get('dist_cfg', {}))
        atexit.register(_leave)
    if cfg.default_scope in FOREIGN_SCOPES:
        rewrite.fit_machine(cfg, on_cpu, notes)
    elif on_cpu and cfg.get('sync_bn'):
        rewrite.replace_sync_bn(cfg, notes)
    if not on_cpu:
        rewrite.finish_on_device(cfg, notes)
    notes.append(f'{world_size} process(es) on {get_device()}, {threads} thread(s) each')
    return world_size


# ---- training -------------------------------------------------------------------------------


def find_checkpoint(work_dir: str | Path, resume: str) -> str | None:
    """The checkpoint to continue from.

    Args:
        work_dir: Of the run.
        resume: 'auto' or a file.

    Returns:
        Its path; None for 'auto' where nothing was saved yet.

    Raises:
        FileNotFoundError: When the named file, or the one that last_checkpoint names, is missing.
    """
    if resume != 'auto':
        if not Path(resume).is_file():
            raise FileNotFoundError(f'--resume got {resume}, which is not a file; or give auto')
        return str(resume)
    try:
        saved = last_checkpoint(work_dir)
    except FileNotFoundError as error:
        raise FileNotFoundError(f'{error}; --resume may name another') from None
    return None if saved is None else str(saved)


def choose_seed(cfg: Config, options: Options, checkpoint: str | None) -> int:
    """The seed of a run; when it continues another, that one's: the sampler is built from it.

    Raises:
        ValueError: When --seed differs from the checkpoint's.
    """
    if checkpoint is not None:
        content = torch.load(checkpoint, map_location='cpu', weights_only=True, mmap=True)
        saved = content.get('engine', {}).get('seed', content.get('meta', {}).get('seed'))
        if saved is not None:
            if options.seed not in (None, saved):
                raise ValueError(
                    f'--seed {options.seed}, but {checkpoint} was written with seed {saved}: '
                    'leave --seed out to continue that run'
                )
            return int(saved)
    if options.seed is not None:
        return options.seed
    configured = (cfg.get('randomness') or {}).get('seed')
    return DEFAULT_SEED if configured is None else int(configured)


def prepare_training(path: str | Path, options: Options, notes: list[str]) -> Config:
    """The config that `train` runs, and the process set up for it.

    Args:
        path: Config file.
        options: See `Options`.
        notes: Receives what the log should say about both.
    """
    cfg = load_config(path, options)
    if FROM_DATA in str(cfg._cfg_dict):
        fill_from_data(cfg)
    set_up(cfg, options.launcher, notes)
    if options.wandb:
        use_wandb(cfg, options.wandb)
    resume = options.resume or ('auto' if cfg.get('resume') else None)
    checkpoint = find_checkpoint(cfg.work_dir, resume) if resume else None
    if resume and checkpoint is None:
        notes.append(f'--resume: nothing saved in {cfg.work_dir} yet, starting anew')
    foreign, splits = cfg.default_scope in FOREIGN_SCOPES, ('train', 'val')[: 1 + (cfg.get('val_cfg') is not None)]
    if foreign:
        from pinas_zoo.mm.engine.samples import check_samples, name_bad_input  # other trainings do without

        check_samples(cfg)
    else:
        pin_classes(cfg, class_names(checkpoint) if checkpoint else None)
        splits = (*splits, 'custom_hooks')
    check_data(cfg, splits, notes)
    seed = choose_seed(cfg, options, checkpoint)
    notes.append(f'seed {seed}')
    cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed)
    cfg.resume = checkpoint is not None
    if checkpoint is not None:
        cfg.load_from = checkpoint
    if options.amp:
        rewrite.use_amp(cfg)
    if cfg.train_cfg.get('type') != 'pinas_zoo.ExactIterLoop':
        rewrite.make_exact(cfg, seed, notes)
    elif cfg.randomness.get(
        'diff_rank_seed'
    ):  # mmengine then gives samplers no seed, and ours needs the same everywhere
        cfg.train_dataloader.sampler.setdefault('seed', seed)
    if foreign:
        name_bad_input(cfg, splits)
    if get_device() != 'cpu' and not cfg.randomness.get('deterministic'):
        notes.append('GPU: resuming is bit for bit only with randomness.deterministic=True')
    return cfg


def train(path: str | Path, options: Options) -> Runner:
    """Train a config to its end.

    Args:
        path: Config file.
        options: See `Options`.

    Returns:
        The runner, trained.

    Raises:
        BadInputError: When data or config do not fit; what was saved before stays.
    """
    notes: list[str] = []
    runner = build_runner(prepare_training(path, options, notes), notes)
    with bad_input_in_log(runner):
        runner.train()
    return runner


@contextmanager
def bad_input_in_log(runner: Runner) -> Iterator[None]:
    """An error of the data becomes the last line of the log, without the traceback of a data worker."""
    try:
        yield
    except BadInputError as error:
        line = last_line(error)
        runner.logger.error(line)
        raise BadInputError(line) from None
