"""Networks of configs: found by name, built for a single process, loaded strictly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import nn

from pinas_zoo.mm.engine.from_data import FROM_DATA, fill_from_data, is_open
from pinas_zoo.mm.engine.machine import replace_sync_bn
from pinas_zoo.mm.engine.overrides import override
from pinas_zoo.mm.preflight.bad_input import read_config
from pinas_zoo.mm.preflight.findings import BadInputError
from pinas_zoo.registry import type_name
from pinas_zoo.weights.download import SCHEME, find_weights
from pinas_zoo.weights.load import load_weights, read_checkpoint
from pinas_zoo.weights.manifest import entries, package_file
from pinas_zoo.weights.released.remap import strip_module

__all__ = ['Dense', 'build_network', 'load_network', 'named_classes', 'open_config', 'open_dense']


def open_config(
    name: str, checkpoint: str | Path | None = None, cfg_options: dict[str, Any] | None = None
) -> tuple[Config, str | Path]:
    """The config of a single network and its weights.

    Args:
        name: A config file, or a name of the manifest that has one.
        checkpoint: Weights; required with a config file.
        cfg_options: Dotted keys that override the config.

    Raises:
        ValueError: The config does not exist or is that of a supernet, or the weights are missing.
    """
    entry = entries().get(name)
    if entry is not None:
        file = package_file(entry.config or '')
        if file is None:
            raise ValueError(f'{name}: its config {entry.config} does not exist')
        cfg, checkpoint = read_config(file), checkpoint or f'{SCHEME}{name}'
    else:
        cfg = read_config(name)
    if 'model' not in cfg:
        raise ValueError(f'{name} is not a single network but a supernet: pinas derive extracts one from it')
    if checkpoint is None:
        raise ValueError(f'{name} is a config: give its weights with --checkpoint')
    override(cfg, cfg_options or {})
    return cfg, checkpoint


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


def named_classes(classes: Sequence[str] | None, count: int, origin: str) -> Sequence[str]:
    """The class names, or numbers if there are none."""
    if not classes:
        return [str(index) for index in range(count)]
    if len(classes) != count:
        raise ValueError(f'{origin} names {len(classes)} classes, the model has {count}')
    return classes


@dataclass(frozen=True)
class Dense:
    """A detector or segmentor with what its config and weights say about its input and classes.

    Args:
        model: mmdet's or mmseg's model.
        steps: The test pipeline without annotations.
        classes: Names by label.
        palette: RGB by label, if the weights or the data set define it.
    """

    model: BaseModel
    steps: list[dict[str, Any]]
    classes: Sequence[str]
    palette: Sequence[Sequence[int]] | None


def open_dense(cfg: Config, checkpoint: str | Path, device: str) -> Dense:
    """Loads mmdet's or mmseg's model of a config, strictly.

    Raises:
        ValueError: The weights are unreadable or do not fit, or name another number of classes.
    """
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    steps = [dict(step) for step in dataset.pipeline if 'Annotations' not in type_name(step)]
    model, meta = load_network(cfg, checkpoint, device)
    sources = {str(checkpoint): meta, 'the config': dataset.get('metainfo') or {}, 'the data set': _usual(dataset)}
    origin, known = next(((origin, said) for origin, said in sources.items() if said.get('classes')), ('', {}))
    classes = named_classes(known.get('classes'), _num_classes(model), origin)
    return Dense(model, steps, classes, known.get('palette'))


def _usual(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """What the data set's class defines about its classes."""
    kind = DATASETS.get(dataset['type']) if isinstance(dataset['type'], str) else dataset['type']
    return getattr(kind, 'METAINFO', {})


def _num_classes(model: BaseModel) -> int:
    """Number of classes of the final head: the segmentor's, the last box head's, or the one-stage detector's."""
    head: Any = getattr(model, 'decode_head', None) or getattr(getattr(model, 'roi_head', None), 'bbox_head', None)
    head = head or model.bbox_head
    last: Any = head[-1] if isinstance(head, nn.ModuleList) else head
    return last.num_classes
