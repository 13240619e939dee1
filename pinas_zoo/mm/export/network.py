"""A config's detector or segmentor as a file: opened, described, written, and compared with mmdet's or mmseg's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import BaseModel
from torch import Tensor
from torchvision.ops import box_iou

from pinas_zoo.mm.export.detectors import OneStage, TwoStage, detector, with_frozen_norms
from pinas_zoo.mm.export.segmentors import Segmentor
from pinas_zoo.mm.inference.networks import Dense, open_config, open_dense
from pinas_zoo.models.description import Preprocessing, describe
from pinas_zoo.models.export import compare, export_onnx, export_program, run_onnx, save_program
from pinas_zoo.registry import type_name

__all__ = ['DenseExport', 'Difference', 'dense_export', 'difference', 'open_export', 'preprocessing_of']


@dataclass(frozen=True)
class DenseExport:
    """A detector or segmentor that can be written as a file.

    Args:
        model: mmdet's or mmseg's model.
        network: The network that is exported.
        preprocessing: Of its input.
        metadata: What the file says about itself.
    """

    model: BaseModel
    network: Segmentor | OneStage | TwoStage
    preprocessing: Preprocessing
    metadata: Mapping[str, str]

    @property
    def detects(self) -> bool:
        """Whether it is a detector: one image at a time, boxes as output."""
        return not isinstance(self.network, Segmentor)

    def write(self, out: str | Path, example: Tensor) -> None:
        """Writes ONNX or torch.export, by the suffix; height and width are dynamic, and a segmentor's batch.

        Args:
            out: File to write, .onnx or .pt2.
            example: Normalised images, (N, 3, H, W); one for a detector.
        """
        batch = not self.detects
        if Path(out).suffix == '.onnx':
            export_onnx(self.network, example, out, True, self.metadata, self.network.outputs, batch)
        else:
            network = with_frozen_norms(self.network) if isinstance(self.network, TwoStage) else self.network
            save_program(export_program(network, example, True, batch), out, self.metadata)

    def run(self, out: str | Path, x: Tensor) -> list[Tensor]:
        """What the file gives for images."""
        if Path(out).suffix == '.onnx':
            return run_onnx(out, x)
        found = torch.export.load(out).module()(x)
        return list(found) if isinstance(found, tuple) else [found]

    def eager(self, x: Tensor) -> list[Tensor]:
        """What mmdet's or mmseg's own prediction gives for the same images, at their size.

        Masks are given as margins: probability minus threshold, in steps of 1/255 (mmdet's form for display).
        """
        height, width = x.shape[-2:]
        facts = dict(img_shape=(height, width), ori_shape=(height, width), scale_factor=(1.0, 1.0))
        with torch.no_grad():
            if isinstance(self.network, Segmentor):
                logits = self.model.encode_decode(x, [facts] * len(x))
                return [logits.argmax(dim=1) if self.network.labels else logits]
            from mmdet.structures import DetDataSample

            divisor = self.model.data_preprocessor.pad_size_divisor
            padded = F.pad(x, (0, -width % divisor, 0, -height % divisor))
            sample = DetDataSample(metainfo={**facts, 'batch_input_shape': tuple(padded.shape[-2:])})
            with _mask_probabilities(self.model) as threshold:
                found = self.model.predict(padded, [sample])[0].pred_instances
        margins = [(found.masks.float() + 0.5) / 255 - threshold] if 'masks' in found else []
        return [found.bboxes, found.scores, found.labels, *margins]


@contextmanager
def _mask_probabilities(model: Any) -> Iterator[float]:
    """Lets a detector give its masks as probabilities (uint8, 255 p); the value is the threshold of its config."""
    if not getattr(model, 'with_mask', False):
        yield 0.0
        return
    settings = model.roi_head.test_cfg
    threshold = settings.mask_thr_binary
    settings.mask_thr_binary = -1
    try:
        yield threshold
    finally:
        settings.mask_thr_binary = threshold


def open_export(
    name: str,
    checkpoint: str | Path | None = None,
    cfg_options: dict[str, Any] | None = None,
    labels: bool = False,
) -> DenseExport:
    """Opens a detector or segmentor for export.

    Args:
        name: A config file, or a name of the manifest that has one.
        checkpoint: Its weights; required with a config file.
        cfg_options: Dotted keys that override the config.
        labels: Whether a segmentor gives labels instead of logits.

    Raises:
        ValueError: The network is unknown, its weights do not fit, or a part of it cannot be exported.
    """
    cfg, checkpoint = open_config(name, checkpoint, cfg_options)
    if type_name(cfg.model) == 'Classifier':
        raise ValueError(f'{name} is a classifier: export it by its timm name, with --checkpoint')
    return dense_export(cfg, open_dense(cfg, checkpoint, 'cpu'), labels)


def dense_export(cfg: Config, dense: Dense, labels: bool = False) -> DenseExport:
    """A loaded detector or segmentor for export; arguments as in `open_export`."""
    preprocessing = preprocessing_of(cfg, dense.steps)
    segments = hasattr(dense.model, 'decode_head')
    network: Any = Segmentor(dense.model, labels) if segments else detector(dense.model)
    task = 'segmentation' if segments else 'detection'
    return DenseExport(dense.model, network, preprocessing, describe(task, preprocessing, dense.classes, dense.palette))


def preprocessing_of(cfg: Config, steps: Sequence[dict[str, Any]]) -> Preprocessing:
    """What a config's test pipeline and data preprocessor do to a picture.

    Args:
        cfg: Config of a detector or segmentor.
        steps: The steps of its test pipeline.

    Raises:
        ValueError: A step changes pictures in a way that cannot be described.
    """
    size: dict[str, Any] = {}
    for step in steps:
        if type_name(step) == 'Resize' and step.get('scale'):
            if step.get('keep_ratio'):
                size = dict(short=min(step['scale']), long=max(step['scale']))
            else:
                size = dict(size=(step['scale'][1], step['scale'][0]))
        elif not type_name(step).startswith(('Load', 'Pack')):
            raise ValueError(f'step {type_name(step)} of the test pipeline cannot be described in an exported file')
    given = cfg.model.data_preprocessor
    swapped = given.get('bgr_to_rgb') or given.get('rgb_to_bgr')  # mm's loaders give BGR
    return Preprocessing(
        tuple(given.get('mean') or (0.0, 0.0, 0.0)),
        tuple(given.get('std') or (1.0, 1.0, 1.0)),
        'RGB' if swapped else 'BGR',
        **size,
    )


@dataclass(frozen=True)
class Difference:
    """How far an exported network is from eager mode.

    Args:
        value: Largest difference of logits, or of the scores of matched boxes.
        objects: Boxes of eager mode; 0 for a segmentor.
        unmatched: Boxes of either side without a partner of the same class.
        iou: Smallest overlap of matched boxes, and of their masks. Pixels within 1/255 of the masks' threshold are not
            compared: rounding decides them, and of a mask of 29 pixels a single one is 3 % of the overlap.
    """

    value: float
    objects: int = 0
    unmatched: int = 0
    iou: float = 1.0

    def holds(self, tolerance: float = 1e-3) -> bool:
        """Whether it is small enough: values within the tolerance, every object matched by more than 0.99."""
        return self.value <= tolerance and self.unmatched == 0 and self.iou > 0.99

    def __add__(self, other: Difference) -> Difference:
        return Difference(
            max(self.value, other.value),
            self.objects + other.objects,
            self.unmatched + other.unmatched,
            min(self.iou, other.iou),
        )


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Difference:
    """Compares outputs: logits or labels by their values, boxes after matching those of the same class by overlap.

    Args:
        ours: Outputs of the exported network.
        theirs: Outputs of `DenseExport.eager`.
    """
    if len(theirs) == 1:
        return Difference(compare([x.float() for x in ours], [x.float() for x in theirs]))
    overlap = box_iou(theirs[0], ours[0]) * (theirs[2][:, None] == ours[2])
    free, worst, apart, pairs = set(range(len(ours[0]))), 1.0, 0.0, 0
    for index, row in enumerate(overlap.tolist()):  # best scores first, as the outputs are sorted
        best = max(free, key=row.__getitem__, default=None)
        if best is None or row[best] < 0.5:
            continue
        free.remove(best)
        pairs, worst = pairs + 1, min(worst, row[best])
        apart = max(apart, float((theirs[1][index] - ours[1][best]).abs()))
        if len(theirs) == 4:
            decided = theirs[3][index].abs() > 1 / 255
            theirs_mask, ours_mask = decided & (theirs[3][index] > 0), decided & ours[3][best]
            if union := int((theirs_mask | ours_mask).sum()):
                worst = min(worst, int((theirs_mask & ours_mask).sum()) / union)
    return Difference(apart, len(theirs[0]), len(theirs[0]) + len(ours[0]) - 2 * pairs, worst)
