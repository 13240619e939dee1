"""Loads weight files into networks: a backbone, or the supernet of a checkpoint of any stage."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pinas_zoo.models.network import STAGES, PiNASNet
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.space import SearchSpace, get_space
from pinas_zoo.weights.download import find_weights
from pinas_zoo.weights.load import LoadReport, load_weights, read_weights
from pinas_zoo.weights.released.remap import strip_module
from pinas_zoo.weights.shapes import find_arch, shapes_of

__all__ = ['last_checkpoint', 'load_backbone', 'load_supernet', 'stated_facts']

_logger = logging.getLogger('pinas_zoo')

#: Prefix of every name in a checkpoint of the retraining stage.
RETRAINED = 'net.'
#: Prefix of the backbone in checkpoints of pre-training (the student; the peers'), linear stage, and weights alone.
PREFIXES = ('method.student.backbone.', 'method.supernet.', 'supernet.', '')


def stated_facts(model: nn.Module) -> dict[str, str]:
    """What a checkpoint states about the network in a model, so that it loads without being told: space and `arch`.

    Args:
        model: A model, possibly wrapped, that contains a network or a supernet (space only).

    Returns:
        Strings as in the metadata of `.safetensors` files; empty if the model contains neither.
    """
    for module in model.modules():
        if isinstance(module, (PiNASNet, SuperNet)):
            facts = {'space': json.dumps(module.space.to_dict())}
            return facts | {'arch': module.space.format(module.arch)} if isinstance(module, PiNASNet) else facts
    return {}


def load_backbone(
    net: PiNASNet, checkpoint: str | Path, prefix: str = '', optional: tuple[str, ...] = ('fc.',)
) -> LoadReport:
    """Loads a weight file into a network; its features have to fit exactly.

    The classifier is loaded if the file has one of the same shape; otherwise it is unchanged and the report says so.

    Args:
        net: The network.
        checkpoint: `.safetensors` or `.pth` file, the authors' classifier included, or ``pinas://NAME``.
        prefix: Prefix of the network's names in the file; other names are then ignored. That of a checkpoint of the
            retraining stage is found.
        optional: Prefixes of the network's names that need not fit.

    Returns:
        The load report, which is also logged.

    Raises:
        ValueError: The file has another architecture or space, or a feature weight is missing, unexpected or
            mismatched.
    """
    checkpoint = find_weights(checkpoint)
    state, metadata = read_weights(checkpoint)
    space = SearchSpace.from_dict(json.loads(metadata['space'])) if 'space' in metadata else net.space
    # Name and image size do not concern weights.
    if dataclasses.replace(space, name=net.space.name, input_size=net.space.input_size) != net.space:
        raise ValueError(f'{checkpoint} is of space {space}, but the network is of space {net.space}')
    names = list(strip_module(state))
    if not prefix and all(name.startswith(RETRAINED) for name in names):
        prefix = RETRAINED
    old = {k.removeprefix(prefix): name for k, name in zip(names, state) if k.startswith(prefix)}
    bare = {name: state[full] for name, full in old.items()}
    if not bare:
        raise ValueError(
            f'{checkpoint}: no name begins with {prefix!r}; the first names are {", ".join(list(state)[:5])}'
        )
    came = metadata.get('arch') or _arch_of_shapes(bare, net)
    wanted = net.space.format(net.arch)
    if came is not None and came != wanted:
        raise ValueError(f'{checkpoint} has architecture {came}, but the network has {wanted}')
    report = load_weights(net, bare, str(checkpoint), optional, old)
    unfilled = any(name.startswith('fc.') for name in report.skipped) and net.num_classes > 0
    _logger.log(logging.WARNING if unfilled else logging.INFO, report.summary())
    return report


def _arch_of_shapes(state: dict[str, Tensor], net: PiNASNet) -> str | None:
    """The architecture of a file that does not state it; None if its shapes are ambiguous or stages are left out."""
    built = [name for name in STAGES[: len(net.space.depths)] if len(getattr(net, name))]
    if len(built) < len(net.space.depths):
        return None
    try:
        return net.space.format(find_arch(shapes_of(state), net.space))
    except ValueError:
        return None  # the load report will say what does not fit


def last_checkpoint(work_dir: str | Path) -> Path | None:
    """The checkpoint that a training saved last; None if nothing was saved yet.

    Raises:
        FileNotFoundError: The file that `last_checkpoint` names is missing.
    """
    pointer = Path(work_dir, 'last_checkpoint')
    if not pointer.is_file():
        return None
    saved = Path(pointer.read_text().strip())
    # The work_dir may have been moved since.
    for candidate in (saved, pointer.with_name(saved.name)):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f'{pointer} names {saved}, which is missing')


def load_supernet(checkpoint: str | Path, space: str | dict[str, Any] | SearchSpace) -> SuperNet:
    """Reads the supernet from a checkpoint of any stage: pre-training (the student), linear stage, or weights alone.

    Args:
        checkpoint: The file, ``pinas://NAME``, or the work_dir of a training, whose last checkpoint is used.
        space: The space.

    Raises:
        FileNotFoundError: It does not exist, or nothing was saved in the folder.
        ValueError: The weights do not fit the space.
    """
    if Path(checkpoint).is_dir():
        if (last := last_checkpoint(checkpoint)) is None:
            raise FileNotFoundError(
                f'{checkpoint} has no last_checkpoint; give a checkpoint file, or run the training first'
            )
        checkpoint = last
    else:
        checkpoint = find_weights(checkpoint)
    state, _ = read_weights(checkpoint)
    prefix = next(p for p in PREFIXES if any(name.startswith(f'{p}conv1.') for name in state) or not p)
    net = SuperNet(get_space(space))
    inner = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    load_weights(net, inner, str(checkpoint))
    return net
