"""mmdet's CocoDataset and CocoMetric with labels in the order of `classes`, whatever the file's order.

mmdet numbers labels in the order of the annotation file's categories, so another order of `classes` would give every
object a wrong name. Configs keep mmdet's names: `sample_checks.check_samples` replaces them by these classes.
"""

from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

from mmdet.datasets import CocoDataset as _CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation import CocoMetric as _CocoMetric
from mmengine.fileio import get_local_path
from mmengine.logging import MMLogger

from pinas_zoo.mm.preflight.coco_json import load, uncollected
from pinas_zoo.mm.preflight.masks import usable_polygons
from pinas_zoo.registry import DATASETS, METRICS

__all__ = ['CocoDataset', 'CocoMetric']


class _Coco(COCO):
    """Annotations read as the preflight reads them, and category ids in the order of the requested names."""

    def __init__(self, annotation_file: str | None = None) -> None:
        super().__init__()
        if annotation_file is not None:
            with uncollected(), redirect_stdout(None):  # pycocotools prints
                self.dataset = load(annotation_file)
                self.createIndex()
            self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs

    def get_cat_ids(
        self, cat_names: Sequence[str] = (), sup_names: Sequence[str] = (), cat_ids: Sequence[Any] = ()
    ) -> list[Any]:
        ids = super().get_cat_ids(cat_names, sup_names, cat_ids)
        place = {name: number for number, name in enumerate(cat_names or ())}
        return sorted(ids, key=lambda cat: place[self.cats[cat]['name']]) if place else ids


@DATASETS.register_module()
class CocoDataset(_CocoDataset):
    """mmdet's, with label k for the k-th of `metainfo.classes`."""

    COCOAPI = _Coco
    FOLLOWS_CLASSES = True


@METRICS.register_module()
class CocoMetric(_CocoMetric):
    """mmdet's, for labels in the order of `classes`, and for files that lack what pycocotools relies on.

    An annotation without iscrowd counts as 0, polygons of fewer than three points are left out as in training, and
    annotations are renumbered: pycocotools uses the id 0 for "not found" and cannot store text ids.
    """

    def __init__(self, ann_file: str | None = None, *args: Any, **kwargs: Any) -> None:
        as_checked = ann_file is not None and not kwargs.get('sort_categories')  # mmdet sorts while it reads
        super().__init__(None if as_checked else ann_file, *args, **kwargs)
        if as_checked:
            with get_local_path(ann_file, backend_args=self.backend_args) as path:
                self._coco_api = _Coco(path)
        if self._coco_api is not None:
            _complete(self._coco_api)

    def results2json(self, results: Sequence[dict[str, Any]], outfile_prefix: str) -> dict[str, Any]:
        ids = {category['name']: number for number, category in self._coco_api.cats.items()}
        self.cat_ids = [ids[name] for name in self.dataset_meta['classes']]
        files = super().results2json(results, outfile_prefix)
        self.cat_ids = sorted(self.cat_ids)  # as in COCOeval, whose results the table of classes pairs with them
        return files

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        metrics = super().compute_metrics(results)
        if metrics and self._coco_api is not None:
            counted = {a['category_id'] for a in self._coco_api.anns.values() if not a['iscrowd']}
            names = self.dataset_meta['classes']
            shown = {self._coco_api.cats[number]['name'] for number in counted if number in self._coco_api.cats}
            if unseen := [repr(name) for name in names if name not in shown]:
                MMLogger.get_current_instance().warning(
                    f'the mean is over {len(names) - len(unseen)} of {len(names)} classes: no object of '
                    f'{", ".join(unseen[:10])}{" ..." if len(unseen) > 10 else ""}'
                )
        return metrics


def _complete(api: COCO) -> None:
    for number, annotation in enumerate(api.dataset.get('annotations', ()), 1):
        annotation['id'] = number
        annotation.setdefault('iscrowd', 0)
        mask = annotation.get('segmentation')
        if isinstance(mask, list) and mask and isinstance(mask[0], list):
            annotation['segmentation'] = usable_polygons(mask) or mask
    api.createIndex()
    api.img_ann_map, api.cat_img_map = api.imgToAnns, api.catToImgs
