"""The networks by name: loading weight files into a network, timm's weight rows, and the entry points.

`models/network.py` has the network itself. The manifest is the only place that describes a network: its weight row, and
for the small networks that were searched here also the architecture, from which their entry points are made.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import PretrainedCfg, build_model_with_cfg, generate_default_cfgs, is_model, register_model
from torch import nn

from pinas_zoo.models.network import PINAS_A, PINAS_B, STAGES, PiNASNet, stage_geometry
from pinas_zoo.space import PINAS, PINAS_NANO, SearchSpace, get_space
from pinas_zoo.weights.download import find_weights
from pinas_zoo.weights.load import read_weights
from pinas_zoo.weights.loading import load_backbone
from pinas_zoo.weights.manifest import Entry, entries
from pinas_zoo.weights.pretrained import check_pretrained, with_pretrained_file
from pinas_zoo.weights.released.remap import strip_module
from pinas_zoo.weights.shapes import find_arch, find_space, shapes_of

__all__ = ['PINAS_A', 'PINAS_B', 'STAGES', 'PiNASNet', 'stage_geometry']

#: The default arch of `pinas_nano`: the paper's Pi-NAS-cls candidates where both spaces have a block.
NANO_DEFAULT = '30-32-20-03'

# ---- timm's weight rows ----------------------------------------------------------------------------------------------


def _cfg(space: SearchSpace = PINAS, url: str = '', **kwargs: Any) -> dict[str, Any]:
    side = space.input_size
    reduction = stage_geometry(space, 32)[-1][-1]
    return {
        'url': url,
        'num_classes': 1000,
        'input_size': (3, side, side),
        'pool_size': (-(-side // reduction),) * 2,
        'crop_pct': 0.875,
        'interpolation': 'bicubic',
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'conv1.0',
        'classifier': 'fc',
        'paper_ids': 'Pi-NAS, ICCV 2021',
        **kwargs,
    }


def _rows() -> dict[str, dict[str, Any] | PretrainedCfg]:
    """timm's weight rows: the manifest's, and one without weights for the names that have none."""
    rows: dict[str, dict[str, Any] | PretrainedCfg] = {}
    for entry in entries().values():
        if entry.timm:
            settings = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.preprocess.items()}
            settings |= dict(num_classes=entry.num_classes, license=entry.licence)
            rows[entry.name] = _cfg(get_space(entry.space), entry.url, **settings)
    nano = _cfg(PINAS_NANO, num_classes=10, crop_pct=1.0)
    for name, row in (('pinas_b', _cfg()), ('pinas', _cfg()), ('pinas_nano', nano)):
        rows[f'{name}.untrained'] = row
    return rows


default_cfgs = generate_default_cfgs(_rows())


# ---- entry points ----------------------------------------------------------------------------------------------------


def _network(checkpoint: str | Path | None = None, **kwargs: Any) -> PiNASNet:
    net = PiNASNet(**kwargs)
    if checkpoint is not None:
        load_backbone(net, checkpoint)
    return net


def _create(variant: str, pretrained: bool, pretrained_sha256: str | None = None, **kwargs: Any) -> nn.Module:
    if pretrained_sha256 is not None and not pretrained:
        raise ValueError('pretrained_sha256 is the hash of what pretrained=True fetches, but pretrained is False')
    if pretrained:
        if kwargs.get('checkpoint') is not None:
            raise ValueError(f'got both pretrained=True and checkpoint={kwargs["checkpoint"]}: give only one of them')
        kwargs = with_pretrained_file(variant, kwargs, pretrained_sha256)
    depths = get_space(kwargs.get('space', PINAS)).depths
    feature_cfg = dict(out_indices=tuple(range(len(depths) + 1)))
    build: Callable[..., PiNASNet] = _network
    return build_model_with_cfg(
        build, variant, pretrained, feature_cfg=feature_cfg, pretrained_filter_fn=check_pretrained, **kwargs
    )


def _with_checkpoint_arch(kwargs: dict[str, Any], default: str, space: SearchSpace | None = None) -> dict[str, Any]:
    """Fills in architecture and space: as requested, else from the checkpoint (stated or found), else the default."""
    checkpoint, metadata = kwargs.get('checkpoint'), {}
    if checkpoint is not None:
        kwargs['checkpoint'] = checkpoint = find_weights(checkpoint)
        metadata = read_weights(checkpoint, tensors=False)[1]
        if 'arch' not in metadata and kwargs.get('arch') is None:
            shapes = shapes_of(strip_module(read_weights(checkpoint)[0]))
            found = space or (get_space(kwargs['space']) if 'space' in kwargs else find_space(shapes))
            metadata['arch'] = found.format(find_arch(shapes, found))
            kwargs['space'] = found
    if kwargs.get('arch') is None:
        kwargs['arch'] = metadata.get('arch', default)
    if 'space' in metadata:
        kwargs.setdefault('space', SearchSpace.from_dict(json.loads(metadata['space'])))
    return kwargs


def _fixed(variant: str, kwargs: dict[str, Any], arch: str, space: SearchSpace) -> dict[str, Any]:
    """The arguments with the architecture that the name stands for; another one is an error, never ignored."""
    general = 'pinas_nano' if space is PINAS_NANO else 'pinas'
    for key, value, own in (('arch', kwargs.get('arch'), arch), ('space', kwargs.get('space'), space)):
        same = value is None or (get_space(value) == own if key == 'space' else space.parse(value) == space.parse(arch))
        if not same:
            raise ValueError(
                f"{variant} is {arch} of space {space.name!r}, got {key}={value!r}: '{general}' is the name that takes "
                'any architecture'
            )
    return {**kwargs, 'arch': arch, 'space': space}


@register_model
def pinas_a(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Pi-NAS-cls: 27.05 M parameters, 5.33 GMACs at 224 px."""
    return _create('pinas_a', pretrained, **_fixed('pinas_a', kwargs, PINAS_A, PINAS))


@register_model
def pinas_b(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Pi-NAS-trans: 27.04 M parameters, 5.25 GMACs at 224 px."""
    return _create('pinas_b', pretrained, **_fixed('pinas_b', kwargs, PINAS_B, PINAS))


@register_model
def pinas(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Any architecture: ``timm.create_model('pinas', arch='301-3231-203213-032', space='pinas')``."""
    return _create('pinas', pretrained, **_with_checkpoint_arch(kwargs, PINAS_A))


@register_model
def pinas_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Any architecture of the nano space, for 28-32 px images on a CPU."""
    if kwargs.get('space') is not None and (space := get_space(kwargs['space'])) != PINAS_NANO:
        raise ValueError(f"pinas_nano is of space 'pinas_nano', got space {space.name!r}: 'pinas' takes any space")
    kwargs = _with_checkpoint_arch(kwargs, NANO_DEFAULT, PINAS_NANO)
    return _create('pinas_nano', pretrained, **dict(kwargs, space=PINAS_NANO))


def _searched(entry: Entry) -> Callable[..., nn.Module]:
    """The entry point of a network whose architecture is in the manifest."""
    assert entry.arch is not None
    arch, space = entry.arch, get_space(entry.space)

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _create(entry.model, pretrained, **_fixed(entry.model, kwargs, arch, space))

    create.__name__ = create.__qualname__ = entry.model
    create.__doc__ = f'Architecture {entry.arch} of space {entry.space!r}, searched and trained here ({entry.dataset}).'
    return create


for _entry in entries().values():
    if _entry.timm and not is_model(_entry.model):
        globals()[_entry.model] = register_model(_searched(_entry))
