"""Lets mmengine read our weights in every `checkpoint=`: ``pinas://NAME`` (downloaded, verified) and `.safetensors`."""

import json
from typing import Any

import torch
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader

from pinas_zoo.weights.download import SCHEME, find_weights
from pinas_zoo.weights.load import read_weights

__all__ = ['load_from_pinas_zoo']


@CheckpointLoader.register_scheme(prefixes=(SCHEME, r'.*\.safetensors$'), force=True)
def load_from_pinas_zoo(filename: str, map_location: str | torch.device | None = None) -> dict[str, Any]:
    """A checkpoint as mmengine expects it.

    A classifier's names get the `net.` of `pinas_zoo.Classifier`, the only model that loads one through mmengine. An
    Inferencer that found a model in our model-index.yml (``scope='pinas_zoo'``) reads its weights before it builds the
    model. The default scope is therefore set to the one in the file, mmdet or mmseg, whose modules the config uses.

    Args:
        filename: ``pinas://NAME``, or a `.safetensors` file.
        map_location: Device for the tensors.

    Returns:
        'state_dict', and 'meta' with the file's metadata (its ``dataset_meta`` decoded, for inferencers).
    """
    state, meta = read_weights(find_weights(filename))
    if meta.get('kind') == 'classifier':
        state = {f'net.{name}': tensor for name, tensor in state.items()}
    if map_location is not None:
        state = {name: tensor.to(map_location) for name, tensor in state.items()}
    if 'dataset_meta' in meta:
        meta = {**meta, 'dataset_meta': json.loads(meta['dataset_meta'])}
    current = DefaultScope.get_current_instance()
    if 'default_scope' in meta and current is not None and current.scope_name == 'pinas_zoo':
        init_default_scope(meta['default_scope'])
    return {'state_dict': state, 'meta': meta}
