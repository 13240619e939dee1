"""Where a run's scalars go besides its JSON lines: TensorBoard by default, Weights & Biases by one option."""

from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config, ConfigDict

from pinas_zoo.mm.engine.machine import fill_runtime
from pinas_zoo.registry import type_name

__all__ = ['use_wandb']


def use_wandb(cfg: Config, project: str) -> None:
    """Replaces TensorBoard by Weights & Biases; the JSON lines are kept.

    Args:
        cfg: A training config, ours or mmdet's or mmseg's; the run has the name of its work_dir.
        project: Name of the project there.

    Raises:
        ImportError: wandb is not installed.
    """
    if find_spec('wandb') is None:
        raise ImportError('Weights & Biases needs its package: pip install wandb')
    fill_runtime(cfg)
    kept = [
        backend
        for backend in cfg.visualizer.get('vis_backends') or ()
        if type_name(backend) not in ('TensorboardVisBackend', 'WandbVisBackend')
    ]
    settings = dict(project=project)
    if cfg.get('work_dir'):
        settings['name'] = Path(cfg.work_dir).name
    cfg.visualizer.vis_backends = [*kept, ConfigDict(type='WandbVisBackend', init_kwargs=settings)]
