"""What tools/train.py and tools/test.py do: set up the process, rewrite the config, run.

A checkpoint is never loaded in a way that can run code: weights_only is enforced for the process.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.dist import init_dist, is_distributed, is_main_process
from mmengine.registry import RUNNERS, init_default_scope
from mmengine.runner import Runner

from pinas_zoo.mm import rewrite
from pinas_zoo.mm.state import AtomicBackend, to_plain

DEFAULT_SEED = 0
LAUNCHERS = ('none', 'pytorch', 'slurm')


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
    """

    work_dir: str | None = None
    resume: str | None = None
    cfg_options: dict[str, Any] = field(default_factory=dict)
    amp: bool = False
    seed: int | None = None
    launcher: str | None = None


# ---- process --------------------------------------------------------------------------------


def _enforce_safe_loading() -> None:
    """Make every torch.load of this process weights-only, also those of other packages."""
    os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    # Published files of mmdet and mmseg may hold numpy arrays and scalars as metadata: no code.
    number_types = [type(np.dtype(name)) for name in ('float64', 'float32', 'int64', 'int32')]
    allowed = [np.ndarray, np.dtype, *number_types]
    core = np._core if hasattr(np, '_core') else np.core  # numpy 2, numpy 1
    for name in ('_reconstruct', 'scalar'):
        function = getattr(core.multiarray, name)
        allowed += [function, (function, f'numpy.core.multiarray.{name}')]
    torch.serialization.add_safe_globals(allowed)


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


def _set_threads(distributed: bool) -> int:
    """Threads of this process: PINAS_THREADS, else the cores divided among the local processes.

    torchrun sets OMP_NUM_THREADS=1 for its processes unless the user set it, which cannot be told
    apart here: tools/dist_train.sh passes the user's value on as PINAS_THREADS.
    """
    local = int(os.environ.get('LOCAL_WORLD_SIZE', '1')) if distributed else 1
    wanted = os.environ.get('PINAS_THREADS')
    if wanted is None and not distributed:
        wanted = os.environ.get('OMP_NUM_THREADS')
    affinity = getattr(os, 'sched_getaffinity', None)  # what a container may use; Linux only
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    threads = int(wanted) if wanted else max(1, cores // local)
    torch.set_num_threads(threads)
    os.environ['OMP_NUM_THREADS'] = os.environ['MKL_NUM_THREADS'] = str(threads)
    return threads


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
    threads = _set_threads(distributed)
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
    rewrite.fit_workers(cfg)
    rewrite.fill_runtime(cfg)
    notes.append(f'{world_size} process(es) on {get_device()}, {threads} thread(s) each')
    return world_size


def load_config(path: str | Path, options: Options) -> Config:
    """Read a config, apply the options that override it, and set its work_dir."""
    cfg = Config.fromfile(path)
    if options.cfg_options:
        cfg.merge_from_dict(options.cfg_options)
    if options.work_dir is not None:
        cfg.work_dir = options.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs', Path(path).stem))
    return cfg


def _build_runner(cfg: Config, notes: list[str]) -> Runner:
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    for note in notes:
        runner.logger.info(note)
    return runner


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
            raise FileNotFoundError(f'--resume got {resume}, which is no file; or give auto')
        return str(resume)
    pointer = Path(work_dir, 'last_checkpoint')
    if not pointer.is_file():
        return None
    saved = Path(pointer.read_text().strip())
    # The work_dir may have been moved since.
    for candidate in (saved, Path(work_dir, saved.name)):
        if candidate.is_file():
            return str(candidate)
    raise FileNotFoundError(f'{pointer} names {saved}, which is missing; --resume may name another')


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
    world_size = set_up(cfg, options.launcher, notes)
    resume = options.resume or ('auto' if cfg.get('resume') else None)
    checkpoint = find_checkpoint(cfg.work_dir, resume) if resume else None
    if resume and checkpoint is None:
        notes.append(f'--resume: nothing saved in {cfg.work_dir} yet, starting anew')
    seed = choose_seed(cfg, options, checkpoint)
    notes.append(f'seed {seed}')
    cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed)
    cfg.resume = checkpoint is not None
    if checkpoint is not None:
        cfg.load_from = checkpoint
    on_cpu = get_device() == 'cpu'
    rewrite.set_amp(cfg, options.amp, on_cpu, notes)
    rewrite.make_exact(cfg, seed, world_size, notes)
    if not on_cpu and not cfg.randomness.get('deterministic'):
        notes.append('GPU: resuming is bit for bit only with randomness.deterministic=True')
    return cfg


def train(path: str | Path, options: Options) -> Runner:
    """Train a config to its end.

    Args:
        path: Config file.
        options: See `Options`.

    Returns:
        The runner, trained.
    """
    notes: list[str] = []
    runner = _build_runner(prepare_training(path, options, notes), notes)
    runner.train()
    return runner


# ---- testing --------------------------------------------------------------------------------


def _use_tta(cfg: Config) -> None:
    missing = [key for key in ('tta_model', 'tta_pipeline') if key not in cfg]
    if missing:
        raise ValueError(f'--tta needs tta_model and tta_pipeline in the config, no {missing}')
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def _use_show_dir(cfg: Config, folder: str) -> None:
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise ValueError('--show-dir needs default_hooks.visualization in the config')
    hook['draw'] = True
    if rewrite.type_name(hook) == 'DetVisualizationHook':
        hook['test_out_dir'] = folder
    else:
        cfg.visualizer['save_dir'] = folder


def _use_out(cfg: Config, out: str) -> None:
    """Predictions as a pickle file, or (mmseg) as PNG masks in a folder."""
    if out.endswith(('.pkl', '.pickle')):
        kind = 'DumpDetResults' if cfg.default_scope == 'mmdet' else 'DumpResults'
        evaluator = cfg.test_evaluator
        metrics = list(evaluator) if isinstance(evaluator, (list, tuple)) else [evaluator]
        cfg.test_evaluator = [*metrics, {'type': kind, 'out_file_path': out}]
    elif rewrite.type_name(cfg.test_evaluator) in ('IoUMetric', 'CityscapesMetric'):
        cfg.test_evaluator.update(output_dir=out, keep_results=True)
    else:
        raise ValueError(f'--out got {out}, allowed are FILE.pkl, or a folder with an mmseg metric')


def test(
    path: str | Path,
    checkpoint: str,
    options: Options,
    out: str | None = None,
    show_dir: str | None = None,
    tta: bool = False,
) -> dict[str, Any]:
    """Evaluate a checkpoint on the config's test set.

    Args:
        path: Config file.
        checkpoint: Weights, any that mmengine can load.
        options: See `Options`; `resume` is not used.
        out: See `_use_out`.
        show_dir: Folder for drawn predictions.
        tta: Test-time augmentation.

    Returns:
        The metrics, which are also in test_metrics.json of the work_dir.
    """
    notes: list[str] = []
    cfg = load_config(path, options)
    set_up(cfg, options.launcher, notes)
    cfg.load_from, cfg.resume = checkpoint, False
    if options.seed is not None:
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=options.seed)
    if show_dir:
        _use_show_dir(cfg, show_dir)
    if out:
        _use_out(cfg, out)
    if tta:
        _use_tta(cfg)
    for key in [key for key in cfg if key.startswith('train_') or key == 'optim_wrapper']:
        cfg.pop(key)  # no training data has to be there to test
    cfg.pop('param_scheduler', None)
    runner = _build_runner(cfg, notes)
    with torch.autocast(get_device(), torch.bfloat16, enabled=options.amp):
        metrics = runner.test()
    if is_main_process():
        report = {'config': str(path), 'checkpoint': str(checkpoint), 'tta': tta}
        dropped: list[str] = []
        report['metrics'] = to_plain(dict(metrics), dropped)
        for name in dropped:
            runner.logger.warning(f'not in test_metrics.json: {name}')
        text = json.dumps(report, indent=1, default=lambda tensor: tensor.tolist())
        AtomicBackend().put_text(text + '\n', Path(cfg.work_dir, 'test_metrics.json'))
    return metrics
