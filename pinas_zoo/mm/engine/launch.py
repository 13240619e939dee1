"""What tools/train.py and tools/test.py do: rewrite the config, check its data, run."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from pinas_zoo.mm.engine import rewrite
from pinas_zoo.mm.engine.checkpoint_content import AtomicBackend, to_plain
from pinas_zoo.mm.engine.from_data import dataset_meta, fill_from_data, is_open
from pinas_zoo.mm.engine.process import LAUNCHERS, set_up
from pinas_zoo.mm.engine.trackers import use_wandb
from pinas_zoo.mm.preflight.bad_input import BadInputError, last_line
from pinas_zoo.mm.preflight.check import check_data, head_classes
from pinas_zoo.weights.download import find_weights
from pinas_zoo.weights.load import read_checkpoint
from pinas_zoo.weights.loading import last_checkpoint

__all__ = [
    'DEFAULT_SEED',
    'LAUNCHERS',
    'BadInputError',
    'Options',
    'choose_seed',
    'find_checkpoint',
    'load_config',
    'prepare_training',
    'set_up',
    'test',
    'train',
]

DEFAULT_SEED = 0


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
    fill_from_data(cfg)
    world_size = set_up(cfg, options.launcher, notes)
    if options.wandb:
        use_wandb(cfg, options.wandb)
    resume = options.resume or ('auto' if cfg.get('resume') else None)
    checkpoint = find_checkpoint(cfg.work_dir, resume) if resume else None
    if resume and checkpoint is None:
        notes.append(f'--resume: nothing saved in {cfg.work_dir} yet, starting anew')
    splits = ('train', 'val') if cfg.get('val_cfg') is not None else ('train',)
    check_data(cfg, splits, notes)
    seed = choose_seed(cfg, options, checkpoint)
    notes.append(f'seed {seed}')
    cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed)
    cfg.resume = checkpoint is not None
    if checkpoint is not None:
        cfg.load_from = checkpoint
    on_cpu = get_device() == 'cpu'
    rewrite.set_amp(cfg, options.amp, on_cpu, notes)
    rewrite.make_exact(cfg, seed, world_size, notes)
    rewrite.name_bad_input(cfg, splits, head_classes(cfg))
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

    Raises:
        BadInputError: When data or config do not fit; what was saved before stays.
    """
    notes: list[str] = []
    runner = _build_runner(prepare_training(path, options, notes), notes)
    with _bad_input_in_log(runner):
        runner.train()
    return runner


@contextmanager
def _bad_input_in_log(runner: Runner) -> Iterator[None]:
    """An error of the data becomes the last line of the log, without the traceback of a data worker."""
    try:
        yield
    except BadInputError as error:
        line = last_line(error)
        runner.logger.error(line)
        raise BadInputError(line) from None


# ---- testing --------------------------------------------------------------------------------


def _class_names(checkpoint: str) -> list[str] | None:
    """Those that a checkpoint was trained with, where it says them."""
    content = read_checkpoint(find_weights(checkpoint))
    return dataset_meta(content.extras.get('meta') or content.metadata).get('classes')


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

    Raises:
        BadInputError: When data or config do not fit.
    """
    notes: list[str] = []
    cfg = load_config(path, options)
    if is_open(cfg):
        fill_from_data(cfg, ('test',), _class_names(checkpoint))
    set_up(cfg, options.launcher, notes)
    check_data(cfg, ('test',), notes)
    cfg.load_from, cfg.resume = checkpoint, False
    if options.seed is not None:
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=options.seed)
    if show_dir:
        _use_show_dir(cfg, show_dir)
    if out:
        _use_out(cfg, out)
    if tta:
        _use_tta(cfg)
    rewrite.name_bad_input(cfg, ('test',), head_classes(cfg))
    for key in [key for key in cfg if key.startswith('train_') or key == 'optim_wrapper']:
        cfg.pop(key)  # no training data has to be there to test
    cfg.pop('param_scheduler', None)
    runner = _build_runner(cfg, notes)
    with _bad_input_in_log(runner), torch.autocast(get_device(), torch.bfloat16, enabled=options.amp):
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
