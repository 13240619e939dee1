"""The network of a config: built for a single process, with weights loaded strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope

from pinas_zoo.mm.engine.from_data import FROM_DATA, fill_from_data, is_open
from pinas_zoo.mm.engine.machine import replace_sync_bn
from pinas_zoo.mm.preflight.findings import BadInputError
from pinas_zoo.weights.download import find_weights
from pinas_zoo.weights.load import load_weights, read_checkpoint
from pinas_zoo.weights.released.remap import strip_module

__all__ = ['build_network', 'load_network']


def build_network(cfg: Config) -> BaseModel:
    """Builds a config's model for a single process, in eval mode, with random weights.

    Args:
        cfg: Config with a model. If it takes its classes from the data, the training set has to be there. Norms
            become ones that need no process group, and the pre-trained backbone is not loaded.

    Raises:
        BadInputError: The data that define the classes are missing.
    """
    if is_open(cfg.model):
        try:
            fill_from_data(cfg)
        except BadInputError as error:
            hint = f'or give a number for every num_classes={FROM_DATA!r} by --cfg-options'
            raise BadInputError(f'{error}; {hint}') from None
    init_default_scope(cfg.get('default_scope') or 'pinas_zoo')
    replace_sync_bn(cfg, [])
    for node in (cfg.model, cfg.model.get('backbone') or {}):
        for key in ('pretrained', 'init_cfg'):
            if node.get(key):
                node[key] = None
    return MODELS.build(cfg.model).eval()


def load_network(cfg: Config, checkpoint: str | Path, device: str) -> tuple[BaseModel, dict[str, Any]]:
    """Builds a config's model with `build_network` and loads weights; everything has to fit.

    Args:
        cfg: Config with a model.
        checkpoint: Weight file, or ``pinas://NAME``.
        device: Where the model goes.

    Returns:
        The model in eval mode, and the file's description of the data (`dataset_meta`: classes, palette).

    Raises:
        ValueError: The file is unreadable or does not fit.
    """
    file = find_weights(checkpoint)
    content = read_checkpoint(file)
    state, meta = strip_module(content.state), content.dataset_meta
    if is_open(cfg):
        numbers = [str(index) for name in ('fc.weight', 'net.fc.weight') for index in range(len(state.get(name, ())))]
        fill_from_data(cfg, ('test', 'train'), meta.get('classes') or numbers or None)
    model = build_network(cfg)
    if content.metadata.get('kind') == 'classifier':
        state = {f'net.{name.removeprefix("net.")}': tensor for name, tensor in state.items()}
    load_weights(model, state, str(file))
    return model.to(device), meta
