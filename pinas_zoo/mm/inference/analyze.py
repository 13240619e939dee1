"""The cost of a network: parameters, MACs at a size, latency. For backbones, classifiers, detectors and segmentors."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import pinas_zoo  # noqa: F401  registers the timm names
from pinas_zoo.mm.engine.overrides import override
from pinas_zoo.mm.inference.networks import build_network, load_network
from pinas_zoo.mm.preflight.bad_input import read_config
from pinas_zoo.models.cost import Cost
from pinas_zoo.registry import type_name

__all__ = ['Analysis', 'Timing', 'analyze', 'table']


@dataclass(frozen=True)
class Timing:
    """How latency is measured.

    Args:
        warmup: Calls before the measurement.
        seconds: Minimum measuring time; the median of its calls counts. With 0 calls and 0 seconds nothing is measured.
        batch_size: Images per call.
    """

    warmup: int = 3
    seconds: float = 2.0
    batch_size: int = 1


@dataclass(frozen=True)
class Analysis:
    """The cost of one network.

    Args:
        name: The name as given.
        size: Height and width of the image in px.
        params: Parameters.
        macs: MACs of one image, convolutions and linear layers only.
        parts: The same for each child of the model, if it is a detector or segmentor.
        kept: Proposals and detections that a two-stage detector was counted with: all that its config allows.
        latency: Median seconds of a call, with post-processing; None if it was not measured.
        spread: Distance between the quartiles of these seconds.
        batch_size: Images per call.
        notes: What the figures leave out.
    """

    name: str
    size: tuple[int, int]
    params: int
    macs: int
    parts: dict[str, Cost] = field(default_factory=dict)
    kept: tuple[int, int] | None = None
    latency: float | None = None
    spread: float | None = None
    batch_size: int = 1
    notes: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def analyze(
    name: str,
    size: Sequence[int] | None = None,
    device: str = 'cpu',
    timing: Timing | None = None,
    checkpoint: str | Path | None = None,
    cfg_options: dict[str, Any] | None = None,
) -> Analysis:
    """Counts and times a network.

    Args:
        name: A timm name, ours included, or a config file of a classifier, detector or segmentor.
        size: Side, or height and width, in px; None takes the network's own test size.
        device: Device for the timing.
        timing: How to time; None does not time.
        checkpoint: Weights. A detector's latency depends on them: without them, the objects that it finds are random.
        cfg_options: Dotted keys that override the config.

    Raises:
        ValueError: The name is unknown, or the size is malformed.
    """
    if size is not None and (len(size) not in (1, 2) or min(size) < 1):
        raise ValueError(f'size must be a side, or a height and a width, in px; got {tuple(size)}')
    if not name.endswith('.py'):
        if not timm.is_model(name.partition('.')[0]):
            raise ValueError(f'{name!r} is neither a config file (.py) nor a model that timm {timm.__version__} knows')
        net = timm.create_model(name, checkpoint_path=checkpoint).eval()
        return _plain(name, net, size, device, timing)
    cfg = read_config(name)
    override(cfg, cfg_options or {})
    model: BaseModel = build_network(cfg) if checkpoint is None else load_network(cfg, checkpoint, 'cpu')[0]
    if type_name(cfg.model) == 'Classifier':
        return _plain(name, model.net, size or [cfg.test_dataloader.dataset.size], device, timing)
    return _dense(name, model, _pair(size) if size else _test_size(cfg), device, timing)


def _pair(size: Sequence[int]) -> tuple[int, int]:
    return size[0], size[-1]


def _plain(name: str, net: Any, size: Sequence[int] | None, device: str, timing: Timing | None) -> Analysis:
    """A network from images to features or logits."""
    chans, *own = net.default_cfg['input_size']
    height, width = _pair(size or own)
    macs, _ = _count(lambda: net(torch.zeros(1, chans, height, width)))
    times = {}
    if timing is not None:
        net = net.to(device)
        images = torch.rand(timing.batch_size, chans, height, width, generator=torch.Generator().manual_seed(0))
        images = images.to(device)
        times = _time(lambda: net(images), timing)
    return Analysis(name, (height, width), _params(net), macs, notes=_notes(net), **times)


# ---- detectors and segmentors ----------------------------------------------------------------------------------------


def _test_size(cfg: Config) -> tuple[int, int]:
    """A segmentor's crop; otherwise the largest image of a detector's test pipeline, in landscape format."""
    if (crop := cfg.model.get('data_preprocessor', {}).get('size')) is not None:
        return _pair(crop)
    dataset = cfg.test_dataloader.dataset
    for step in dataset.pipeline:
        if type_name(step) == 'Resize':
            return min(step.scale), max(step.scale)
    raise ValueError('the config has no test size (data_preprocessor.size or Resize): give --size HEIGHT [WIDTH]')


def _batch(model: BaseModel, size: tuple[int, int], count: int) -> dict[str, Any]:
    """Noise of a size, as the model's preprocessor returns it."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for _ in range(count)]
    facts = dict(img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1.0, 1.0), flip=False)
    kind = _sample_type(model)
    return model.data_preprocessor({'inputs': images, 'data_samples': [kind(metainfo=facts) for _ in images]}, False)


def _sample_type(model: nn.Module) -> type[BaseDataElement]:
    if hasattr(model, 'decode_head'):
        from mmseg.structures import SegDataSample

        return SegDataSample
    from mmdet.structures import DetDataSample

    return DetDataSample


def _dense(name: str, model: nn.Module, size: tuple[int, int], device: str, timing: Timing | None) -> Analysis:
    image = _batch(model, size, 1)
    proposals: list[int] = []
    with _all_kept(model, proposals):
        macs, by_part = _count(lambda: model(**image, mode='predict'))
    parts = {
        part: Cost(by_part.get(part, 0), _params(child)) for part, child in model.named_children() if _params(child)
    }
    times = {}
    if timing is not None:
        model = model.to(device)
        images = _batch(model, size, timing.batch_size)
        times = _time(lambda: model(**images, mode='predict'), timing)
    kept = (proposals[0], len(image['data_samples'][0].pred_instances)) if proposals else None
    return Analysis(name, size, _params(model), macs, parts, kept, notes=_notes(model), **times)


@contextmanager
def _all_kept(model: BaseModel, proposals: list[int]) -> Iterator[None]:
    """Lets a two-stage detector keep all the proposals and detections that its config allows.

    The cost of its heads depends on these numbers, which would be random with random weights.
    """
    if not hasattr(model, 'rpn_head') or not hasattr(model, 'roi_head'):
        yield
        return
    head = model.roi_head.bbox_head
    head = head[0] if isinstance(head, nn.ModuleList) else head
    hook = head.register_forward_hook(lambda module, inputs, output: proposals.append(len(inputs[0])))
    before = model.rpn_head.test_cfg, model.roi_head.test_cfg
    everything = dict(nms=dict(type='nms', iou_threshold=1.0))
    model.rpn_head.test_cfg = ConfigDict({**before[0], **everything})
    model.roi_head.test_cfg = ConfigDict({**before[1], **everything, 'score_thr': -1.0})
    try:
        yield
    finally:
        model.rpn_head.test_cfg, model.roi_head.test_cfg = before
        hook.remove()


# ---- counting and timing ---------------------------------------------------------------------------------------------


def _params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _count(call: Callable[[], Any]) -> tuple[int, dict[str, int]]:
    """MACs of a call on a model, and those of each child by name."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    # Names are CLASS.child.grandchild. A head whose forward is not called as a module has only its children's entries.
    counts = {
        name.split('.', 1)[1]: sum(flops.values()) for name, flops in counter.get_flop_counts().items() if '.' in name
    }
    parts: dict[str, int] = {}
    for name, flops in counts.items():
        above = name.split('.')[:-1]
        if not any('.'.join(above[:end]) in counts for end in range(1, len(above) + 1)):
            parts[name.split('.')[0]] = parts.get(name.split('.')[0], 0) + flops // 2
    return counter.get_total_flops() // 2, parts


def _time(call: Callable[[], Any], timing: Timing) -> dict[str, Any]:
    from torch.utils.benchmark import Timer  # searches for compilers when it is imported

    with torch.no_grad():
        for _ in range(timing.warmup):
            call()
        timer = Timer('call()', globals={'call': call}, num_threads=torch.get_num_threads())
        measured = timer.blocked_autorange(min_run_time=timing.seconds)
    return {'latency': measured.median, 'spread': measured.iqr, 'batch_size': timing.batch_size}


def _notes(model: nn.Module) -> tuple[str, ...]:
    kinds = sorted({type(module).__name__ for module in model.modules() if 'DeformConv' in type(module).__name__})
    return (f'MACs leave out {", ".join(kinds)}',) if kinds else ()


# ---- text output ----------------------------------------------------------------------------------------------------


def table(rows: Sequence[Analysis]) -> str:
    """The figures as text; a detector's or segmentor's parts follow it."""
    cells = [['model', 'input', 'parameters', 'MACs', 'latency', 'images/s']]
    for row in rows:
        timed = ['-', '-']
        if row.latency is not None and row.spread is not None:
            timed = [f'{1e3 * row.latency:.1f} ms ± {500 * row.spread:.1f}', f'{row.batch_size / row.latency:.1f}']
        size = f'{row.batch_size} x {row.size[0]} x {row.size[1]}'
        cells.append(
            [row.name.removesuffix('.py').rsplit('/', 1)[-1], size, _millions(row.params), _giga(row.macs), *timed]
        )
        for part, cost in row.parts.items():
            cells.append([f'  {part}', '', _millions(cost.params), _giga(cost.macs), '', ''])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        '  '.join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    notes = [f'{row.name}: counted with {row.kept[0]} proposals, {row.kept[1]} detections' for row in rows if row.kept]
    notes += [f'{row.name}: {note}' for row in rows for note in row.notes]
    return '\n'.join([lines[0], '-' * len(lines[0]), *lines[1:], *notes])


def _millions(count: int) -> str:
    return f'{count / 1e6:.3f} M'


def _giga(macs: int) -> str:
    return f'{macs / 1e9:.4f} G'
