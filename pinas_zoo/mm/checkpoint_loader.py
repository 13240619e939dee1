"""Lets mmengine read our weights in every `checkpoint=`: ``pinas://NAME`` (downloaded, verified) and `.safetensors`.

Damaged files of every kind are one line that names them.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader

from pinas_zoo.mm.preflight.findings import BadInputError
from pinas_zoo.weights.download import SCHEME, find_weights
from pinas_zoo.weights.load import read_archive, read_weights

__all__ = ['load_from_local', 'load_from_pinas_zoo']


@contextmanager
def _bad_files_as_line() -> Iterator[None]:
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise BadInputError(str(error)) from error


@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_local(filename: str | Path, map_location: Any = 'cpu', mmap: bool = False) -> dict[str, Any]:
    """A local checkpoint, for everything that mmengine loads: `resume`, `load_from`, `init_cfg`.

    Args:
        filename: Path of the file.
        map_location: As for `torch.load`.
        mmap: Leave tensors on disk until they are used.

    Raises:
        BadInputError: It is missing, damaged, needs code, or is not a checkpoint; the message names it.
    """
    path = Path(filename).expanduser()
    with _bad_files_as_line():
        if not path.is_file():
            raise ValueError(f'checkpoint {path} does not exist')
        content = read_archive(path, map_location, mmap)
        if not isinstance(content, dict):
            raise ValueError(f'{path} contains a {type(content).__name__}; a checkpoint is a dict')
    return content


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

    Raises:
        BadInputError: It is missing or damaged; the message names it.
    """
    with _bad_files_as_line():
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
