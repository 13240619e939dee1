"""The options of a run, beside its config."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ['LAUNCHERS', 'Options']

LAUNCHERS = ('none', 'pytorch', 'slurm')


@dataclass(frozen=True)
class Options:
    """What all commands that run a config have in common.

    Args:
        work_dir: Where logs and checkpoints go; default: the config's, else work_dirs/<config name>.
        resume: None, 'auto' (the last checkpoint of the work_dir, if any) or a checkpoint.
        cfg_options: Dotted keys that override the config.
        amp: Mixed precision.
        seed: Seed of this run; None takes the checkpoint's, the config's, else 0.
        launcher: 'none', 'pytorch' (torchrun) or 'slurm'; None detects it from the environment.
        wandb: Project of Weights & Biases; None keeps TensorBoard.
        requeue: Save and exit with a separate status on a signal of the cluster (`PreemptionHook`); implies 'auto'.
        resume_with_config: Whether the config's settings of optimisers and schedules replace those of the checkpoint.
    """

    work_dir: str | None = None
    resume: str | None = None
    cfg_options: dict[str, Any] = field(default_factory=dict)
    amp: bool = False
    seed: int | None = None
    launcher: str | None = None
    wandb: str | None = None
    requeue: bool = False
    resume_with_config: bool = False
