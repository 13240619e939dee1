"""What is probed: timm models, derived networks, and paths of a supernet, each as a network that gives features."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from pinas_zoo.models.network import PiNASNet
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.search.derive import derive
from pinas_zoo.space import SPACES, SearchSpace, get_space
from pinas_zoo.weights.download import SCHEME, find_weights
from pinas_zoo.weights.load import read_checkpoint
from pinas_zoo.weights.loading import PREFIXES, last_checkpoint, load_supernet
from pinas_zoo.weights.manifest import entries
from pinas_zoo.weights.shapes import shapes_of, supernet_shapes

__all__ = ['Paths', 'Target', 'open_targets']


@dataclass(frozen=True)
class Target:
    """One network to probe.

    Args:
        name: Name for tables.
        kind: 'timm', 'derived' or 'path'.
        net: (N, 3, H, W) -> (N, D), in eval mode.
        preprocess: timm's settings of the input that the network states; empty if it states none.
        arch: Its architecture, if it is one of ours.
    """

    name: str
    kind: str
    net: nn.Module
    preprocess: dict[str, Any]
    arch: str | None = None


@dataclass(frozen=True)
class Paths:
    """Which paths of a supernet are probed.

    Args:
        archs: Architectures; none draws some.
        count: How many are drawn.
        seed: Seed of the draw.
        space: The space; None finds it by the weights' shapes.
    """

    archs: Sequence[str] = ()
    count: int = 4
    seed: int = 0
    space: str | None = None


def open_targets(
    what: str, paths: Paths, calibration: Callable[[dict[str, Any]], Iterable[Tensor]], pretrained: bool = True
) -> Iterator[Target]:
    """The networks that a name or a file stands for.

    Args:
        what: A timm name, a file or name of weights (``pinas://`` may be left out), or the work_dir of a training.
        paths: Which paths, if it is a supernet.
        calibration: Called with the preprocessing of a supernet; gives the image batches on which the BN statistics of
            its paths are re-estimated.
        pretrained: Whether a timm name gets its weights.

    Raises:
        ValueError: It is none of these, or its weights are not those of a classifier, backbone or supernet.
        RuntimeError: A timm name has no weights.
    """
    entry = entries().get(what.removeprefix(SCHEME))
    if entry is not None and not entry.timm:
        what = f'{SCHEME}{entry.name}'
    if what.startswith(SCHEME) or Path(what).exists():
        file = last_checkpoint(what) if Path(what).is_dir() else find_weights(what)
        if file is None:
            raise ValueError(f'{what} is a folder without last_checkpoint; give a checkpoint, or the work_dir of a run')
        yield from _of_file(what, file, paths, calibration)
    elif timm.is_model(what.partition('.')[0]):
        net = timm.create_model(what, pretrained=pretrained, num_classes=0).eval()
        settings = resolve_model_data_config(net)
        yield Target(what if pretrained else f'{what} (random)', 'timm', net, settings)
    else:
        raise ValueError(f'{what!r} is neither a file, nor a timm model, nor one of pinas download --list')


def _of_file(
    what: str, file: Path, paths: Paths, calibration: Callable[[dict[str, Any]], Iterable[Tensor]]
) -> Iterator[Target]:
    content = read_checkpoint(file)
    preprocess = dict(content.dataset_meta.get('preprocess') or {})
    shapes = shapes_of(content.state)
    prefix = next((p for p in PREFIXES if any(name.startswith(f'{p}blocks.') for name in shapes)), None)
    name = what.removeprefix(SCHEME) if not Path(what).is_file() else Path(what).name
    if prefix is None:
        net = cast(PiNASNet, timm.create_model('pinas', checkpoint=file, num_classes=0)).eval()
        yield Target(name, 'derived', net, preprocess or {'input_size': _side(net.space)}, net.space.format(net.arch))
        return
    inner = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
    space = _space_of(paths.space or content.metadata.get('space'), inner, file)
    supernet: SuperNet = load_supernet(file, space)
    preprocess = preprocess or {'input_size': _side(space)}
    draw = np.random.default_rng([paths.seed, 17])
    archs = [space.parse(arch) for arch in paths.archs] or [space.sample(draw) for _ in range(paths.count)]
    for arch in archs:
        net = derive(supernet, arch, calibration(preprocess))
        text = space.format(arch)
        yield Target(f'{name} {text}', 'path', net, preprocess, text)


def _side(space: SearchSpace) -> tuple[int, int, int]:
    return 3, space.input_size, space.input_size


def _space_of(stated: str | None, shapes: dict[str, tuple[int, ...]], file: Path) -> SearchSpace:
    if stated is not None:
        return get_space(SearchSpace.from_dict(json.loads(stated)) if stated.startswith('{') else stated)
    for space in SPACES.values():
        if supernet_shapes(space) == shapes:
            return space
    raise ValueError(f'{file} fits the supernet of none of the spaces {sorted(SPACES)}; give its space (--space)')
