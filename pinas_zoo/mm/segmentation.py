"""mmseg's LoadAnnotations and IoUMetric, extended to report what mmseg ignores: misfit maps, classes without pixels.

Configs keep mmseg's names: `samples.check_samples` replaces them by these classes.
"""

from typing import Any

import mmcv
import numpy as np
from mmengine import fileio
from mmengine.logging import MMLogger
from mmseg.datasets.transforms import LoadAnnotations as _LoadAnnotations
from mmseg.evaluation import IoUMetric as _IoUMetric

from pinas_zoo.data.labels import LOSSY_MAP
from pinas_zoo.mm.preflight.bad_input import check_labels, check_whole
from pinas_zoo.mm.preflight.findings import BadInputError
from pinas_zoo.registry import METRICS, TRANSFORMS

__all__ = ['IoUMetric', 'LoadAnnotations']


@TRANSFORMS.register_module()
class LoadAnnotations(_LoadAnnotations):
    """Reads a label map and compares it with its image."""

    #: Number of classes, and the label that is none of them; a data set sets them. None does not check labels.
    known_labels: tuple[int, int | None] | None = None
    reduce_zero_label: bool | None

    def _load_seg_map(self, results: dict[str, Any]) -> None:
        """See mmseg.

        Raises:
            BadInputError: The map is a JPEG, has several channels, another size than the image, or values that are not
                integers from 0 to 255, or not classes.
        """
        path = results['seg_map_path']
        content = fileio.get(path, backend_args=self.backend_args)
        if content.startswith(b'\xff\xd8'):
            raise BadInputError(f'{path}: {LOSSY_MAP}')
        labels = mmcv.imfrombytes(content, flag='unchanged', backend=self.imdecode_backend).squeeze()
        height, width = results.get('ori_shape', labels.shape)[:2]
        if labels.shape != (height, width) and labels.size == height * width:
            labels = labels.reshape(height, width)  # squeeze() took a side of one pixel
        if labels.ndim != 2:
            raise BadInputError(
                f'{path}: a label map has one value per pixel, this one has {labels.shape[-1]} channels'
            )
        if labels.shape != (height, width):
            found = f'{labels.shape[1]}x{labels.shape[0]}'
            raise BadInputError(f'{path}: the label map is {found} px, its image {width}x{height} px')
        if labels.dtype.itemsize > 1 and (labels.max() > 255 or labels.min() < 0):
            raise BadInputError(f'{path}: label value {labels.max()}, but mmseg reads 8 bits')
        check_whole(path, labels)
        labels = labels.astype(np.uint8)
        if self.reduce_zero_label is None:
            self.reduce_zero_label = results['reduce_zero_label']
        if bool(self.reduce_zero_label) != bool(results['reduce_zero_label']):
            raise BadInputError(
                f'reduce_zero_label is {self.reduce_zero_label} in LoadAnnotations, but '
                f'{results["reduce_zero_label"]} in the data set: write it in the data set only'
            )
        if self.reduce_zero_label:
            labels = labels - 1  # with 8 bits: 0 becomes 255, which is ignored like 255
            labels[labels == 254] = 255
        if mapping := results.get('label_map'):
            table = np.arange(256)
            table[list(mapping)] = list(mapping.values())
            labels = table[labels].astype(np.uint8)
        if self.known_labels is not None:
            classes, ignored = self.known_labels
            check_labels(path, labels, classes, bool(self.reduce_zero_label), ignored)
        results['gt_seg_map'] = labels
        results['seg_fields'].append('gt_seg_map')


@METRICS.register_module()
class IoUMetric(_IoUMetric):
    """mmseg's, with a line about the classes that its means leave out.

    Raises:
        ValueError: A metric is none of mmseg's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if unknown := sorted(set(self.metrics) - {'mIoU', 'mDice', 'mFscore'}):
            raise ValueError(f'iou_metrics contains {unknown[0]!r}; allowed: mIoU, mDice, mFscore')

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        metrics = super().compute_metrics(results)
        if not self.format_only:
            names = self.dataset_meta['classes']
            _, union, _, labels = (sum(areas).tolist() for areas in zip(*results, strict=True))
            silent = [(name, seen) for name, seen, count in zip(names, union, labels, strict=True) if not count]
            if silent:
                unseen = ', '.join(repr(name) for name, _ in silent[:10]) + (' ...' if len(silent) > 10 else '')
                absent = sum(not seen for _, seen in silent)
                MMLogger.get_current_instance().warning(
                    f'no label of {unseen}: mAcc is the mean over {len(names) - len(silent)} of {len(names)} classes, '
                    f'mIoU over {len(names) - absent}'
                )
        return metrics
