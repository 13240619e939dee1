"""Whether the images of a batch of a segmentation run can be stacked: crops, and images of several sizes."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from mmengine.config import Config, ConfigDict
from PIL import Image

from pinas_zoo.data.images import orientation
from pinas_zoo.mm.preflight.findings import Findings

__all__ = ['check_crop', 'check_stacking']

#: Steps that do not change the size of an image.
_KEEPING = {
    'CheckImage', 'LoadAnnotations', 'LoadImageFromFile', 'PackSegInputs', 'PhotoMetricDistortion', 'RandomFlip',
    'CLAHE', 'AdjustGamma', 'RandomCutOut', 'GenerateEdge', 'Rerange', 'RGB2Gray',
}  # fmt: skip


def check_crop(cfg: Config, node: ConfigDict, findings: Findings) -> None:
    """Check that a batch of crops can be stacked.

    A crop that is larger than its image is legal: mmseg uses the whole image and pads it to data_preprocessor.size,
    with ignored labels. So that size must not be smaller than the crop.

    Args:
        cfg: Config of the run.
        node: Config of its training set.
        findings: Receives the lines.
    """
    for step in node.get('pipeline', ()):
        if step.get('type') not in ('RandomCrop', 'mmseg.RandomCrop'):
            continue
        crop = step['crop_size']
        crop = (crop, crop) if isinstance(crop, int) else tuple(crop)
        size = (cfg.model.get('data_preprocessor') or {}).get('size')
        if size is not None and (size[0] < crop[0] or size[1] < crop[1]):
            findings.errors.append(
                f'crop_size {crop} of the training pipeline is larger than model.data_preprocessor.size {tuple(size)}, '
                'to which smaller images are padded: set both to one size'
            )


def check_stacking(
    cfg: Config, split: str, node: ConfigDict, entries: Sequence[dict[str, Any]], findings: Findings
) -> None:
    """Check that the pipeline gives all images of a set one size, if batches have several.

    Only pipelines of known steps are checked; of the images, only their headers are read.

    Args:
        cfg: Config of the run.
        split: 'train', 'val' or 'test'.
        node: Config of the data set.
        entries: Its samples.
        findings: Receives the line.
    """
    batch = cfg[f'{split}_dataloader'].get('batch_size', 1)
    preprocessor = cfg.model.get('data_preprocessor') or {}
    scales = _scales(node.get('pipeline', ()))
    if batch <= 1 or not entries or scales is None:
        return
    import mmcv  # only mmseg's data come here

    size = preprocessor.get('size') if split == 'train' else None
    sizes: Counter[tuple[int, int]] = Counter()
    first: dict[tuple[int, int], str] = {}
    for entry in entries:
        found = _upright_size(entry['img_path'])
        if found is None:  # reported elsewhere
            continue
        for scale in scales:
            found = mmcv.rescale_size(found, scale)
        sizes[found] += 1
        first.setdefault(found, entry['img_path'])
    if len(sizes) < 2 or (size and all(width <= size[1] and height <= size[0] for width, height in sizes)):
        return
    listed = ', '.join(f'{w}x{h} px as {first[w, h]}' for (w, h), _ in sizes.most_common(2))
    hint = (
        'a RandomCrop and model.data_preprocessor.size of one size make them equal'
        if split == 'train'
        else f'set {split}_dataloader.batch_size to 1'
    )
    findings.errors.append(
        f'{split}_dataloader: batches of {batch}, but its images come in {len(sizes)} sizes ({listed}), which mmseg '
        f'does not stack: {hint}'
    )


def _scales(pipeline: Sequence[dict[str, Any]]) -> list[Any] | None:
    """Scales of a pipeline that keeps the aspect ratio; None if all sizes are equal, or if it is unknown."""
    scales: list[Any] = []
    for step in pipeline:
        name = str(step.get('type')).rsplit('.', 1)[-1]
        if name == 'Resize' and step.get('keep_ratio') and step.get('scale'):
            scales.append(step['scale'])
        elif name not in _KEEPING:
            return None
    return scales


def _upright_size(path: str) -> tuple[int, int] | None:
    """Width and height as mmcv sees them."""
    try:
        with Image.open(path) as file:
            width, height = file.size
            return (height, width) if orientation(file) >= 5 else (width, height)
    except Exception:  # a damaged file can raise anything
        return None
