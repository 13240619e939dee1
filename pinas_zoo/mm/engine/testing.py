"""The work of tools/test.py: evaluate a checkpoint on the config's test set."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.runner import CheckpointLoader

from pinas_zoo.data.sources import few_names, opened_once
from pinas_zoo.mm.engine.checkpoint_content import AtomicBackend, to_plain
from pinas_zoo.mm.engine.from_data import class_names, fill_from_data, is_open
from pinas_zoo.mm.engine.launch import bad_input_in_log, build_runner, check_data, load_config, set_up
from pinas_zoo.mm.engine.machine import FOREIGN_SCOPES, data_set_configs
from pinas_zoo.mm.engine.options import Options
from pinas_zoo.mm.engine.sample_checks import name_bad_input
from pinas_zoo.mm.preflight.findings import BadInputError
from pinas_zoo.registry import type_name

__all__ = ['test']


def _half_type(cfg: Config) -> torch.dtype:
    """The precision of --amp: bfloat16; float16 on a GPU without it, and for mmdet's and mmseg's models on a GPU."""
    if get_device() == 'cpu':
        return torch.bfloat16
    # mmcv's compiled operators have no bfloat16 form.
    if cfg.default_scope in FOREIGN_SCOPES or not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def _use_tta(cfg: Config) -> None:
    missing = [key for key in ('tta_model', 'tta_pipeline') if key not in cfg]
    if missing:
        raise ValueError(f'--tta needs tta_model and tta_pipeline in the config, but it has no {missing}')
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def _use_show_dir(cfg: Config, folder: str) -> None:
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise ValueError('--show-dir needs default_hooks.visualization in the config')
    hook.update(draw=True, interval=1)  # mmseg's default draws one image of 50
    if type_name(hook) == 'DetVisualizationHook':
        hook['test_out_dir'] = str(Path(folder).absolute())  # a relative one would be below the log's folder
    else:
        cfg.visualizer['save_dir'] = folder


def _use_out(cfg: Config, out: str) -> None:
    """Predictions as a pickle file, or (mmseg) as PNG masks in a folder."""
    if out.endswith(('.pkl', '.pickle')):
        kind = 'DumpDetResults' if cfg.default_scope == 'mmdet' else 'DumpResults'
        evaluator = cfg.test_evaluator
        metrics = list(evaluator) if isinstance(evaluator, (list, tuple)) else [evaluator]
        cfg.test_evaluator = [*metrics, {'type': kind, 'out_file_path': out}]
    elif type_name(cfg.test_evaluator) in ('IoUMetric', 'CityscapesMetric'):
        cfg.test_evaluator.update(output_dir=out, keep_results=True)
    else:
        raise ValueError(f'--out got {out}, allowed are FILE.pkl, or a folder with an mmseg metric')


def _require_order(cfg: Config, names: Sequence[str]) -> None:
    """Refuses a test set that numbers the checkpoint's classes in another order."""
    for node in data_set_configs(cfg.test_dataloader.dataset):
        given = (node.get('metainfo') or {}).get('classes')
        if isinstance(given, (list, tuple)) and list(given) != list(names) and sorted(given) == sorted(names):
            raise BadInputError(
                f'test_dataloader: its classes {few_names(given)} are those of the checkpoint in another order, '
                f'{few_names(names)}: write them in the order of the checkpoint'
            )


def _require_weights(model: torch.nn.Module, checkpoint: str) -> None:
    """Refuses a checkpoint that lacks weights of the model, for which mmengine would keep random ones."""
    content = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    state = {name.removeprefix('module.'): value for name, value in content.get('state_dict', content).items()}
    fault = ''
    try:
        missing, _ = getattr(model, 'module', model).load_state_dict(state, strict=False)
        if missing := [name for name in missing if not name.endswith('num_batches_tracked')]:
            fault = f'{len(missing)} are missing, such as {missing[0]}'
    except RuntimeError as error:  # of another shape
        fault = ' '.join(str(error).split('\n\t')[1].split()) if '\n\t' in str(error) else str(error)
    if fault:
        raise BadInputError(f'{checkpoint}: its weights are not those of the model of the config: {fault}')


@opened_once()
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
        checkpoint: Weights in any form that mmengine can load.
        options: See `Options`; `resume` is not used.
        out: See `_use_out`.
        show_dir: Folder for drawn predictions.
        tta: Test-time augmentation.

    Returns:
        The metrics, which are also in test_metrics.json of the work_dir.

    Raises:
        BadInputError: Data or config do not fit.
    """
    notes: list[str] = []
    cfg = load_config(path, options)
    if is_open(cfg):
        fill_from_data(cfg, ('test',), class_names(checkpoint))
    set_up(cfg, options.launcher, notes)
    foreign = cfg.default_scope in FOREIGN_SCOPES
    if foreign and Path(checkpoint).is_file():
        _require_order(cfg, class_names(checkpoint) or [])
    check_data(cfg, ('test' if foreign else 'test_dataloader',), notes, checkpoint)
    cfg.load_from, cfg.resume = checkpoint, False
    if options.seed is not None:
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=options.seed)
    if show_dir:
        _use_show_dir(cfg, show_dir)
    if out:
        _use_out(cfg, out)
    if tta:
        _use_tta(cfg)
    if foreign:
        name_bad_input(cfg, ('test',))
    for key in [key for key in cfg if key.startswith('train_') or key == 'optim_wrapper']:
        cfg.pop(key)  # testing must not require training data
    cfg.pop('param_scheduler', None)
    with bad_input_in_log(), torch.autocast(get_device(), _half_type(cfg), enabled=options.amp):
        runner = build_runner(cfg, notes)
        _require_weights(runner.model, checkpoint)
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
