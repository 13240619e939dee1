"""From a config file to its training: this process, its data, the seed, the Runner.

A config that names `ExactIterLoop` runs as it is written; its sources are checked before anything is built.
`rewrite` and `preflight.check` are for the others: configs that inherit from mmdetection or mmsegmentation. No
checkpoint is ever loaded in a way that can run code.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import all_gather_object
from mmengine.logging import MMLogger
from mmengine.registry import RUNNERS, init_default_scope
from mmengine.runner import Runner

from pinas_zoo.data.sources import find_views, open_source, opened_once
from pinas_zoo.mm.engine import machine, rewrite
from pinas_zoo.mm.engine.checkpoint_content import find_start, saved_seed
from pinas_zoo.mm.engine.class_list import pin_classes
from pinas_zoo.mm.engine.from_data import FROM_DATA, class_names, fill_from_data
from pinas_zoo.mm.engine.options import LAUNCHERS, Options
from pinas_zoo.mm.engine.overrides import override
from pinas_zoo.mm.engine.preemption import PreemptionHook
from pinas_zoo.mm.engine.resume_config import compare_config
from pinas_zoo.mm.engine.sample_checks import check_samples, name_bad_input
from pinas_zoo.mm.engine.trackers import use_wandb
from pinas_zoo.mm.preflight.bad_input import last_line, unreadable_config
from pinas_zoo.mm.preflight.check import find_problems
from pinas_zoo.mm.preflight.findings import BadInputError, Findings
from pinas_zoo.mm.preflight.views import check_views
from pinas_zoo.registry import drop_own_scope
from pinas_zoo.weights.load import PLAIN_GLOBALS

__all__ = [
    'bad_input_in_log', 'build_runner', 'check_data', 'load_config', 'prepare_training', 'set_up', 'tell', 'train',
]  # fmt: skip

DEFAULT_SEED = 0
#: Beginning of the notes that are warnings.
WARNS = 'preflight: '


def load_config(path: str | Path, options: Options) -> Config:
    """Read a config, apply the options that override it, and set its work_dir.

    Raises:
        BadInputError: The config is not readable, or an override has no effect.
    """
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # configs are Python
        raise unreadable_config(path, error) from error
    if '::' in cfg.text:
        drop_own_scope(cfg._cfg_dict)
    _reach_inside(cfg)
    if options.cfg_options:
        override(cfg, options.cfg_options)
    cfg.work_dir = options.work_dir or cfg.get('work_dir') or str(Path('work_dirs', Path(path).stem))
    return cfg


def _reach_inside(cfg: Config) -> None:
    """Moves keys that a config sets on the seeding wrapper of its training data into the wrapped data set."""
    node = (cfg.get('train_dataloader') or {}).get('dataset') or {}
    if str(node.get('type')).endswith('SeededDataset') and isinstance(node.get('dataset'), dict):
        beside = {key: node.pop(key) for key in list(node) if key not in ('type', 'dataset', 'seed', 'max_refetch')}
        node['dataset'] = Config._merge_a_into_b(beside, node['dataset'])


def build_runner(cfg: Config, notes: list[str]) -> Runner:
    """The Runner of a config, with the notes in its log."""
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    tell(notes, runner.logger.info)
    return runner


def tell(notes: Sequence[str], inform: Callable[[str], Any] = print) -> None:
    """Passes on the notes of a run, as `check_data` and others left them; the warnings go to the log, at the end."""
    for note in sorted(notes, key=lambda note: note.startswith(WARNS)):
        (MMLogger.get_current_instance().warning if note.startswith(WARNS) else inform)(note)


# ---- this process ---------------------------------------------------------------------------


def _enforce_safe_loading() -> None:
    """Make every torch.load of this process weights-only, including those of other packages."""
    os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    # Published files of mmdet and mmseg may contain numpy arrays and scalars as metadata: no code.
    torch.serialization.add_safe_globals(PLAIN_GLOBALS)


def _set_ranks(launcher: str | None) -> str:
    """Find the launcher and set torch's variables from Slurm's ranks. Returns the launcher."""
    env = os.environ
    if launcher is None:
        launcher = 'pytorch' if {'RANK', 'WORLD_SIZE', 'LOCAL_RANK'} <= set(env) else 'none'
    if launcher not in LAUNCHERS:
        raise ValueError(f'launcher must be one of {LAUNCHERS}, got {launcher!r}')
    if launcher == 'slurm':
        machine.set_ranks_of_slurm()
    return launcher


def _set_threads(launcher: str) -> int:
    """Threads of this process: PINAS_THREADS, else the cores divided among the local processes.

    torchrun sets OMP_NUM_THREADS=1 for its processes unless the user set it, which cannot be
    distinguished here: tools/dist_train.sh passes the user's value as PINAS_THREADS.
    """
    wanted = os.environ.get('PINAS_THREADS')
    if wanted is None and launcher == 'none':
        wanted = os.environ.get('OMP_NUM_THREADS')
    threads = int(wanted) if wanted else machine.own_cores(launcher)
    torch.set_num_threads(threads)
    os.environ['OMP_NUM_THREADS'] = os.environ['MKL_NUM_THREADS'] = str(threads)
    return threads


def set_up(cfg: Config, launcher: str | None, notes: list[str]) -> int:
    """Set up this process for a config: safe loading, ranks, threads, gloo on a CPU, the scope.

    Args:
        cfg: Its launcher and default scope are set; a config of mmdet or mmseg is adapted to the machine.
        launcher: See `Options`.
        notes: Receives lines for the log.

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
    cfg.default_scope = cfg.get('default_scope') or 'pinas_zoo'
    init_default_scope(cfg.default_scope)
    if distributed:
        machine.join_processes(cfg, on_cpu)
    if cfg.default_scope in machine.FOREIGN_SCOPES:
        machine.fit_machine(cfg, on_cpu, notes)
    elif on_cpu and cfg.get('sync_bn'):
        machine.replace_sync_bn(cfg, notes)
    if not on_cpu:
        machine.finish_on_device(cfg, notes)
    notes.append(f'{world_size} process(es) on {get_device()}, {threads} thread(s) each')
    return world_size


# ---- its data -------------------------------------------------------------------------------


def check_data(cfg: Config, parts: Sequence[str], notes: list[str], checkpoint: str | None = None) -> None:
    """Checks the data of a run: what is missing, does not decode or does not fit.

    One process per machine checks; all of them stop together. If labels are read, every process first writes one class
    list into all sources. ``preflight=False`` in the config skips the check.

    Args:
        cfg: With its default scope set.
        parts: Parts of the config that the run reads; for mmdet's and mmseg's configs 'train', 'val', 'test'.
        notes: Receives warnings.
        checkpoint: The one that is continued, tested or searched; its class list is the run's.

    Raises:
        BadInputError: One line per problem.
    """
    own = cfg.get('default_scope') not in machine.FOREIGN_SCOPES
    labelled = own and any(labelled for *_, labelled in find_views(cfg._cfg_dict))
    if labelled:
        pin_classes(cfg, class_names(checkpoint) if checkpoint else None)
    if not own:
        check_samples(cfg, parts)
    if not cfg.get('preflight', True):
        notes.append('preflight=False: the data were not checked')
        return
    found = Findings()
    if os.environ.get('LOCAL_RANK', '0') == '0':
        if own:
            _look_at_sources(cfg, parts, found)
        else:
            found = find_problems(cfg, parts)
        if labelled:
            check_views(cfg, parts, found)
    gathered = all_gather_object(found)
    errors = list(dict.fromkeys(line for one in gathered for line in one.errors))
    notes += dict.fromkeys(f'{WARNS}{line}' for one in gathered for line in one.warnings)
    if errors:
        head = [f'{len(errors)} problems with the data:'] if len(errors) > 1 else []
        raise BadInputError('\n'.join([*head, *errors]))


def _look_at_sources(cfg: Config, parts: Sequence[str], found: Findings) -> None:
    for path, view, _ in find_views(cfg._cfg_dict, parts):
        try:
            found.warnings += [f'{path}: {line}' for line in open_source(view['source']).look()]
        except (OSError, ValueError) as error:
            found.errors.append(f'{path}: {error}')


# ---- training -------------------------------------------------------------------------------


def choose_seed(cfg: Config, options: Options, checkpoint: str | None) -> int:
    """The seed of a run; if it continues another, that one's: the sampler is built from it.

    Raises:
        BadInputError: --seed differs from the checkpoint's, or the config's is not an integer.
    """
    saved = None if checkpoint is None else saved_seed(checkpoint)
    if saved is not None and options.seed not in (None, saved):
        raise BadInputError(
            f'--seed {options.seed}, but {checkpoint} was written with seed {saved}: '
            'leave --seed out to continue that run'
        )
    for seed in (saved, options.seed, (cfg.get('randomness') or {}).get('seed')):
        if seed is not None:
            if type(seed) is not int:
                raise BadInputError(f'randomness.seed is {seed!r}, which must be an integer')
            return seed
    return DEFAULT_SEED


def prepare_training(path: str | Path, options: Options, notes: list[str]) -> Config:
    """The config that `train` runs, with the process set up for it; `notes` receives lines for the log."""
    cfg = load_config(path, options)
    if missing := [key for key in ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper') if not cfg.get(key)]:
        raise BadInputError(f'{path}: a training needs {", ".join(missing)}, which the config does not have')
    if FROM_DATA in str(cfg._cfg_dict):
        fill_from_data(cfg)
    set_up(cfg, options.launcher, notes)
    if options.wandb:
        use_wandb(cfg, options.wandb)
    resume = options.resume or ('auto' if cfg.get('resume') or options.resume_with_config or options.requeue else None)
    checkpoint = find_start(cfg.work_dir, resume, notes) if resume else None
    foreign = cfg.default_scope in machine.FOREIGN_SCOPES
    splits = ('train',) if cfg.get('val_cfg') is None else ('train', 'val')
    parts = tuple(f'{split}_dataloader' for split in splits)
    check_data(cfg, splits if foreign else (*parts, 'custom_hooks'), notes, checkpoint)
    seed = choose_seed(cfg, options, checkpoint)
    notes.append(f'seed {seed}')
    if checkpoint and options.seed is None and (given := (cfg.get('randomness') or {}).get('seed', seed)) != seed:
        notes.append(f'{WARNS}randomness.seed is {given}, but the run continues with seed {seed} of {checkpoint}')
    cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed)
    cfg.resume = checkpoint is not None
    if options.amp:
        machine.use_amp(cfg)
    if cfg.train_cfg.get('type') != 'pinas_zoo.ExactIterLoop':
        rewrite.make_exact(cfg, seed, notes)
    elif cfg.randomness.get('diff_rank_seed'):  # mmengine then gives samplers no seed; ours needs the same everywhere
        cfg.train_dataloader.sampler.setdefault('seed', seed)
    if foreign:
        name_bad_input(cfg, splits)
    if checkpoint is not None:
        cfg.load_from = checkpoint
        compare_config(cfg, checkpoint, options.resume_with_config, notes)
    if get_device() != 'cpu' and not cfg.randomness.get('deterministic'):
        notes.append('GPU: resuming is bit for bit only with randomness.deterministic=True')
    return cfg


@opened_once()
def train(path: str | Path, options: Options) -> Runner:
    """Train a config file to its end; returns its runner.

    Raises:
        BadInputError: Data or config do not fit; what was saved before is kept.
    """
    notes: list[str] = []
    cfg = prepare_training(path, options, notes)
    with bad_input_in_log():
        runner = build_runner(cfg, notes)
        if options.requeue:
            runner.register_hook(PreemptionHook())
        runner.train()
    return runner


@contextmanager
def bad_input_in_log() -> Iterator[None]:
    """Logs an error in the data or the config as the last line, without the traceback of a data worker."""
    try:
        yield
    except Exception as error:
        if not (line := last_line(error)):
            raise
        MMLogger.get_current_instance().error(line)
        raise BadInputError(line) from error
