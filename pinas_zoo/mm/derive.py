"""Backbones of architectures, derived from a supernet as the config of a search says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mmengine.device import get_device

from pinas_zoo.data.fixed_batches import FixedBatches
from pinas_zoo.files import read_json
from pinas_zoo.mm.engine.launch import load_config, set_up
from pinas_zoo.mm.engine.options import Options
from pinas_zoo.search.derive import derive, save_backbone
from pinas_zoo.space import get_space
from pinas_zoo.weights.download import find_weights
from pinas_zoo.weights.loading import load_supernet

__all__ = ['derive_all', 'derive_best']


def derive_best(config: str | Path, checkpoint: str, arch: str, out: str | Path, options: Options) -> str:
    """Writes the backbone of one architecture, its BN re-estimated on the config's calibration images.

    Args:
        config: Config of the search.
        checkpoint: Checkpoint with the supernet.
        arch: The architecture, or a `best.json` that names it.
        out: `.safetensors` file to write.
        options: See `Options`.

    Returns:
        The architecture.

    Raises:
        ValueError: The architecture is malformed or the checkpoint does not fit.
    """
    if arch.endswith('.json'):
        if not Path(arch).is_file():
            raise ValueError(f'{arch} does not exist: give the best.json of a search, or an architecture')
        arch = str(read_json(arch, 'arch')['arch'])
    derive_all(config, checkpoint, {arch: out}, options)
    return arch


def derive_all(config: str | Path, checkpoint: str, files: Mapping[str, str | Path], options: Options) -> None:
    """As `derive_best`, for several architectures; `files` has the file to write of each."""
    checkpoint = str(find_weights(checkpoint))
    cfg = load_config(config, options)
    set_up(cfg, 'none', [])
    supernet = load_supernet(checkpoint, get_space(cfg.space)).to(get_device())
    calibration = FixedBatches(**cfg.calibration, device=get_device())
    for arch, out in files.items():
        save_backbone(out, derive(supernet, arch, calibration), checkpoint)
