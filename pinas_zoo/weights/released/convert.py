"""Converts the authors' released checkpoints to files of this project.

A file is recognised by its names and shapes, and its architecture is found from the shapes. Everything in it must be
accounted for: renamed, or listed in `NON_WEIGHTS`; and everything that the network needs must be there in the right
shape. We have never seen the real files: only their code is known. So a real file may bring a surprise, which is then
an error that names it and never a silent loss.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pinas_zoo
from pinas_zoo.files import file_sha256, write_atomic
from pinas_zoo.space import SearchSpace
from pinas_zoo.weights.load import Checkpoint, LoadReport, read_checkpoint, save_weights
from pinas_zoo.weights.released.plans import Plan, plan_of
from pinas_zoo.weights.released.remap import strip_module
from pinas_zoo.weights.shapes import Shapes, shapes_of

__all__ = ['KINDS', 'Converted', 'convert', 'convert_file', 'recognise']

KINDS = ('classifier', 'deeplabv3', 'mask-rcnn', 'supernet', 'supernet-training')
#: The names that identify a kind, as a pattern of their beginning; the first that matches counts.
SIGNS = {
    'supernet-training': r'encoder_q\.',
    'mask-rcnn': r'backbone\.bottom_up\.',
    'deeplabv3': r'pretrained\.layer',
    'supernet': r'layer\d+\.\d+\.\d+\.',
    'classifier': r'layer\d+\.\d+\.(conv|bn)',
}

#: What training files contain beside the weights (names at the top level) and among them (patterns).
NON_WEIGHTS = (
    'optimizer', 'epoch', 'iteration', 'scheduler', 'best_pred', 'author', 'meta', 'amp',
)  # fmt: skip
NON_WEIGHTS_AMONG = (r'pixel_mean', r'pixel_std', r'proposal_generator\.anchor_generator\.cell_anchors\.\d+')

LICENCE_NOTE = (
    'weights trained and released by the authors of Pi-NAS without a stated licence; converted, not relicensed'
)


@dataclass
class Converted:
    """A converted checkpoint.

    Args:
        kind: One of `KINDS`.
        state: Tensors by our names.
        metadata: Kind, arch, space, origin, licence note, version.
        report: What happened to each released weight.
    """

    kind: str
    state: dict[str, Tensor]
    metadata: dict[str, Any]
    report: LoadReport = field(repr=False)


def recognise(shapes: Shapes) -> str:
    """The kind of a released checkpoint, by its names.

    Args:
        shapes: Shapes by released names, without `module.`.

    Raises:
        ValueError: It is none of them.
    """
    for kind, sign in SIGNS.items():
        if any(re.match(sign, name) for name in shapes):
            return kind
    some = ', '.join(list(shapes)[:3])
    raise ValueError(
        f'this is not a known released checkpoint: its {len(shapes)} tensors begin with {some}. Known kinds: '
        + ', '.join(f'{kind} (names like {sign})' for kind, sign in SIGNS.items())
    )


def convert(
    content: Checkpoint,
    source: str,
    kind: str | None = None,
    arch: str | None = None,
    space: SearchSpace | None = None,
) -> Converted:
    """Converts the content of a released checkpoint.

    Args:
        content: The file's content.
        source: Its name, for messages and metadata.
        kind: Required kind; None for any.
        arch: Required architecture; None for any.
        space: Required space; None for any known one.

    Raises:
        ValueError: It is of another kind, space or architecture, or a weight is unexpected, missing or mismatched. The
            message contains the report.
    """
    report = LoadReport(source)
    released = _drop_non_weights(content, report)
    found = recognise(shapes_of(released))
    if kind is not None and kind != found:
        raise ValueError(f'{source} is of kind {found!r}, requested was {kind!r}; allowed: {KINDS}')
    plan = plan_of(found, released, space)
    if arch is not None:
        if plan.arch is None:
            raise ValueError(f'{source} is a {found}, which has no architecture; requested was {arch}')
        if plan.space.parse(arch) != plan.space.parse(plan.arch):
            wanted = plan.space.format(arch)
            raise ValueError(f'{source} has architecture {plan.arch} by its shapes, requested was {wanted}')
    state = _renamed(released, plan, report)
    _check(state, plan.expected, report)
    if not report.fits:
        raise ValueError(f'{source} was not converted, it does not fit a {found}:\n{report.summary()}')
    metadata = {
        'kind': found,
        'arch': plan.arch,
        'space': json.dumps(plan.space.to_dict()),
        'num_classes': plan.num_classes,
        'source': source,
        'licence': LICENCE_NOTE,
        'version': pinas_zoo.__version__,
    }
    return Converted(found, state, metadata, report)


def convert_file(
    source: str | Path,
    destination: str | Path,
    kind: str | None = None,
    arch: str | None = None,
    space: SearchSpace | None = None,
) -> Converted:
    """Converts a file; writes the complete result or nothing.

    Args:
        source: Released checkpoint.
        destination: `.safetensors`, or `.pth` as mmengine loads it; the suffix selects the form.
        kind: See `convert`.
        arch: See `convert`.
        space: See `convert`.

    Raises:
        FileNotFoundError: The source does not exist.
        ValueError: The source is refused, see `convert`, or the suffix is neither of the two.
    """
    source, destination = Path(source), Path(destination)
    if destination.suffix not in ('.safetensors', '.pth'):
        raise ValueError(f'{destination} must end in .safetensors or .pth')
    if destination.resolve() == source.resolve():
        raise ValueError(f'{destination} is the source itself: choose another destination')
    converted = convert(read_checkpoint(source), source.name, kind, arch, space)
    converted.metadata['source_sha256'] = file_sha256(source)
    if destination.suffix == '.safetensors':
        save_weights(destination, converted.state, converted.metadata)
    else:
        meta = {key: str(value) for key, value in converted.metadata.items() if value is not None}
        content = {'state_dict': converted.state, 'meta': meta}
        write_atomic(destination, lambda temporary: torch.save(content, temporary))
    return converted


# ---- accounting for everything --------------------------------------------------------------------------------------


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_tensors, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_holds_tensors, value))
    return isinstance(value, Tensor)


def _drop_non_weights(content: Checkpoint, report: LoadReport) -> dict[str, Tensor]:
    for name, value in content.extras.items():
        if name in NON_WEIGHTS:
            report.dropped.append(name)
        elif _holds_tensors(value):
            report.unexpected.append(f'{name} (beside the state dict, with tensors in it)')
        else:
            report.dropped.append(name)
            report.notes.append(f'{name!r} is not in the list of non-weights, but contains no tensor')
    state = strip_module(content.state)
    for name in [name for name in state if any(re.fullmatch(pattern, name) for pattern in NON_WEIGHTS_AMONG)]:
        del state[name]
        report.dropped.append(name)
    for name in [
        name for name in state if name in NON_WEIGHTS
    ]:  # a plain state dict with such entries beside its tensors
        del state[name]
        report.dropped.append(name)
    return state


def _renamed(released: Mapping[str, Tensor], plan: Plan, report: LoadReport) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    unequal = 0
    for name, tensor in released.items():
        if plan.alias is not None and name.startswith(plan.alias[0]):
            twin = plan.alias[1] + name.removeprefix(plan.alias[0])
            if twin not in released or not _same(released[twin], tensor):
                report.mismatched.append(f'{name} is not equal to {twin}')
            continue
        new = plan.rename(name)
        if new is None or new not in plan.expected:
            report.unexpected.append(name)
            continue
        if new in out and not _same(out[new], tensor):
            unequal += 1
        if new != name:
            report.remapped.append(f'{name} -> {new}')
        out[new] = tensor
    if unequal:
        report.notes.append(f'{unequal} shared shortcut weights differ between the candidates; the last one counts')
    return out


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and first.dtype == second.dtype and torch.equal(first, second)


def _check(state: dict[str, Tensor], expected: Shapes, report: LoadReport) -> None:
    filled = 0
    for name, shape in expected.items():
        if name not in state and name.endswith('num_batches_tracked'):
            state[name], filled = torch.tensor(0), filled + 1
        elif name not in state:
            report.missing.append(name)
        elif tuple(state[name].shape) != shape:
            report.mismatched.append(f'{name} {tuple(state[name].shape)} for {shape}')
        elif not state[name].isfinite().all():
            report.mismatched.append(f'{name} is not finite')
        else:
            report.matched.append(name)
    if filled:
        report.notes.append(f'{filled} counters num_batches_tracked are missing and were set to 0')
