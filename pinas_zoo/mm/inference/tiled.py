"""Predictions on pictures that are too large for one pass: tile by tile, then joined.

Objects: what two tiles found in the part that both show is compared there. Objects of one class that agree are one
object, whose mask is the union; so an object on a border is found once, and whole. Label maps: every pixel takes the
label of the tile in which it is furthest from the border. Memory grows with the objects, not with their number times
the picture: masks are run lengths.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice, product

import numpy as np
import torch
from pycocotools import mask as coco_mask
from tqdm import tqdm

from pinas_zoo.data.tiles import Tile, TiledPicture, Tiling
from pinas_zoo.mm.inference.predictors import Instances, Prediction, Predictor, Ranking, RunLengths, Segments

__all__ = ['AGREEMENT', 'OVERVIEW', 'Tiled', 'predict_tiled']

#: Share of the smaller mask, or of the union of two boxes, from which on two tiles show the same object.
AGREEMENT = 0.5
#: Longest side of the picture that is drawn, in px.
OVERVIEW = 4096


@dataclass(frozen=True)
class Tiled:
    """The result on one picture.

    Args:
        size: Height and width of the picture.
        image: BGR for drawing, uint8 (h, w, 3): every `step`-th pixel, so that the sides are at most `OVERVIEW`.
        prediction: In px of the picture; masks of instances as run lengths.
        shown: In px of `image`.
    """

    size: tuple[int, int]
    image: np.ndarray
    prediction: Prediction
    shown: Prediction


def predict_tiled(
    picture: TiledPicture, predictor: Predictor, tiling: Tiling, batch_size: int, progress: bool = False
) -> Tiled:
    """Runs a predictor over the tiles of a picture.

    Args:
        picture: The open picture.
        predictor: A detector or a segmentor.
        tiling: How the picture is cut.
        batch_size: Tiles per batch.
        progress: Show a bar of the tiles.

    Raises:
        TypeError: The predictor is a classifier.
        BrokenImageError: A tile does not decode.
    """
    size = picture.height, picture.width
    step = math.ceil(max(size) / OVERVIEW)
    image = np.zeros((*(-(-side // step) for side in size), 3), np.uint8)
    labels: np.ndarray | None = None
    joined = _Joined(size, step)
    count = len(tiling.grid(*size))
    bar = tqdm(picture.tiles(tiling), total=count, disable=not progress or count == 1, unit='tile', leave=False)
    tiles = iter(bar)
    while batch := list(islice(tiles, batch_size)):
        pixels = [np.ascontiguousarray(found[..., ::-1]) for _, _, found in batch]
        for (tile, core, _), shown, prediction in zip(batch, pixels, predictor.run(pixels), strict=True):
            _put(image, shown, tile, tile, step)
            if isinstance(prediction, Ranking):
                raise TypeError('the predictor ranks classes of whole pictures; tiles need boxes or label maps')
            if isinstance(prediction, Instances):
                joined.add(tile, prediction)
                continue
            if labels is None:  # column by column, as masks are coded
                labels = np.zeros(size, np.min_scalar_type(max(255, len(predictor.classes))), order='F')
            _put(labels, prediction.labels, tile, core, 1)
    if labels is not None:
        return Tiled(size, image, Segments(labels), Segments(labels[::step, ::step]))
    return Tiled(size, image, *joined.result())


def _put(whole: np.ndarray, part: np.ndarray, tile: Tile, core: Tile, step: int) -> None:
    """Copies every `step`-th pixel of a tile's core into the picture."""
    left, top = -(-core.left // step), -(-core.top // step)
    inside = part[
        top * step - tile.top : core.bottom - tile.top : step, left * step - tile.left : core.right - tile.left : step
    ]
    whole[top : top + inside.shape[0], left : left + inside.shape[1]] = inside


# ---- objects ---------------------------------------------------------------------------------------------------------


@dataclass
class _Part:
    """What one tile shows of an object.

    Args:
        box: x1 y1 x2 y2 in px of the picture.
        label: Its class.
        score: Its score.
        mask: Run lengths in the picture; None without masks.
        drawn: Run lengths in the drawn picture.
        parent: Index of another part of the same object, or its own.
    """

    box: np.ndarray
    label: int
    score: float
    mask: RunLengths | None
    drawn: RunLengths | None
    parent: int


@dataclass
class _Joined:
    """Objects of a picture, joined while its tiles come in.

    Args:
        size: Height and width of the picture.
        step: The drawn picture has every `step`-th pixel.
    """

    size: tuple[int, int]
    step: int
    parts: list[_Part] = field(default_factory=list)
    tiles: list[tuple[Tile, range]] = field(default_factory=list)

    def add(self, tile: Tile, found: Instances) -> None:
        """Takes the objects of one tile, and joins them with those of the tiles that it overlaps."""
        offset = np.array([tile.left, tile.top, tile.left, tile.top], np.float64)
        first = len(self.parts)
        for index, box in enumerate(found.boxes.double().numpy()):
            mask, drawn = (None, None) if found.masks is None else self._place(np.asarray(found.masks[index]), tile)
            label, score = int(found.labels[index]), float(found.scores[index])
            self.parts.append(_Part(box + offset, label, score, mask, drawn, len(self.parts)))
        new = range(first, len(self.parts))
        for other, old in self.tiles:
            if (common := tile.common(other)) is not None:
                self._join(new, old, common)
        self.tiles.append((tile, new))

    def _place(self, mask: np.ndarray, tile: Tile) -> tuple[RunLengths, RunLengths]:
        """A tile's mask in the picture, and in the drawn picture."""
        step = self.step
        whole = _run_lengths(mask, tile.top, tile.left, self.size)
        if step == 1:
            return whole, whole
        top, left = -(-tile.top // step), -(-tile.left // step)
        coarse = mask[top * step - tile.top :: step, left * step - tile.left :: step]
        return whole, _run_lengths(coarse, top, left, (-(-self.size[0] // step), -(-self.size[1] // step)))

    def _join(self, new: range, old: range, common: Tile) -> None:
        """Joins parts of two tiles that agree in what both tiles show."""
        window: RunLengths | None = None
        seen: dict[int, RunLengths] = {}
        clipped = {index: _clip(self.parts[index].box, common) for index in (*new, *old)}
        inside = {index: box for index, box in clipped.items() if box is not None}
        for one, other in product(new, old):
            a, b = self.parts[one], self.parts[other]
            if a.label != b.label or not {one, other} <= inside.keys():
                continue
            agreement = _box_iou(inside[one], inside[other])
            if a.mask is not None and b.mask is not None and agreement > 0:
                if window is None:
                    whole = np.ones((common.height, common.width), bool)
                    window = _run_lengths(whole, common.top, common.left, self.size)
                for index in {one, other} - seen.keys():
                    seen[index] = coco_mask.merge([self.parts[index].mask, window], intersect=True)
                agreement = _mask_agreement(seen[one], seen[other], agreement)
            if agreement >= AGREEMENT:
                self.parts[self._root(one)].parent = self._root(other)

    def _root(self, index: int) -> int:
        while self.parts[index].parent != index:
            index = self.parts[index].parent
        return index

    def result(self) -> tuple[Instances, Instances]:
        """The objects in px of the picture, and of the drawn one; the best scores first."""
        groups: dict[int, list[_Part]] = {}
        for index, part in enumerate(self.parts):
            groups.setdefault(self._root(index), []).append(part)
        objects = sorted(groups.values(), key=lambda parts: -max(part.score for part in parts))
        boxes = torch.tensor(np.array([_union(parts) for parts in objects]).reshape(-1, 4), dtype=torch.float32)
        labels = torch.tensor([parts[0].label for parts in objects], dtype=torch.long)
        scores = torch.tensor([max(part.score for part in parts) for parts in objects], dtype=torch.float32)
        masked = bool(self.parts) and self.parts[0].mask is not None
        whole = [_merged([part.mask for part in parts]) for parts in objects] if masked else None
        drawn = [_merged([part.drawn for part in parts]) for parts in objects] if masked else None
        return Instances(boxes, labels, scores, whole), Instances(boxes / self.step, labels, scores, drawn)


def _union(parts: Sequence[_Part]) -> np.ndarray:
    boxes = np.array([part.box for part in parts])
    return np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])


def _merged(masks: Sequence[RunLengths | None]) -> RunLengths:
    merged: RunLengths = coco_mask.merge(list(masks))
    return merged


def _clip(box: np.ndarray, tile: Tile) -> np.ndarray | None:
    """The part of a box inside a tile; None if there is none."""
    low, high = np.maximum(box[:2], (tile.left, tile.top)), np.minimum(box[2:], (tile.right, tile.bottom))
    return np.concatenate([low, high]) if (low < high).all() else None


def _box_iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    if (sides <= 0).any():
        return 0.0
    common = float(sides.prod())
    return common / float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - common)


def _mask_agreement(a: RunLengths, b: RunLengths, otherwise: float) -> float:
    """Share of the smaller mask that both cover; `otherwise` if one is empty."""
    smaller = min(int(coco_mask.area(a)), int(coco_mask.area(b)))
    if not smaller:
        return otherwise
    return int(coco_mask.area(coco_mask.merge([a, b], intersect=True))) / smaller


def _run_lengths(mask: np.ndarray, top: int, left: int, size: tuple[int, int]) -> RunLengths:
    """Run lengths of a mask at its place in a picture of a size, column by column as COCO counts."""
    height, width = size
    columns, rows = np.nonzero(mask.T)
    places = (columns.astype(np.int64) + left) * height + rows + top
    edges = np.flatnonzero(np.diff(places) != 1)
    firsts, lasts = (places[[0, *(edges + 1)]], places[[*edges, -1]] + 1) if len(places) else (places, places)
    bounds = np.stack([firsts, lasts], 1).reshape(-1)
    counts = np.diff(np.concatenate([[0], bounds, [height * width]]))
    if counts[-1] == 0:  # as pycocotools codes a mask that reaches the last pixel
        counts = counts[:-1]
    coded: RunLengths = coco_mask.frPyObjects({'counts': counts.tolist(), 'size': [height, width]}, height, width)
    return coded
