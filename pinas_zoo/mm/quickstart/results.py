"""Results of the stages of the main job: logged scalars, the published network, and the table of results.

python -m pinas_zoo.mm.quickstart.results publish ROOT     writes ROOT/retrained.safetensors
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pinas_zoo.files import read_json, write_text
from pinas_zoo.mm.engine.checkpoint_content import find_checkpoint
from pinas_zoo.models.network import PiNASNet
from pinas_zoo.report.figures import Points, read_scalars
from pinas_zoo.report.page import Table
from pinas_zoo.search.derive import save_backbone
from pinas_zoo.weights.load import load_weights, read_weights
from pinas_zoo.weights.publish import find_network

__all__ = ['Results', 'publish']


class Results:
    """The figures of a finished run.

    Args:
        root: Folder of the run.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def scalars(self, name: str) -> Mapping[str, Points]:
        """All logged scalars of a training, across its interruptions."""
        return read_scalars(*sorted((self.root / name).glob('*/vis_data/scalars.json')))

    def last(self, name: str, scalar: str) -> float:
        """The last value of a scalar."""
        return self.scalars(name)[scalar][-1][1]

    @property
    def shortlist(self) -> dict[str, Any]:
        """The content of `shortlist.json`."""
        return read_json(self.root / 'shortlist/shortlist.json')

    @property
    def best(self) -> dict[str, Any]:
        """The content of the search's `best.json`."""
        return read_json(self.root / 'search/best.json')

    @property
    def knn(self) -> Points:
        """Accuracy of nearest neighbours among the supernet's features, in percent by step; the first is of random
        weights."""
        return self.scalars('pretrain').get('knn_top1', [])

    def table(self) -> Table:
        """The results, each with a value to compare with; all in points."""
        listed = self.shortlist
        chosen, random, top = listed['chosen'], listed['random'], listed['top']
        rows: list[list[object]] = [
            _row('chosen network, trained alone', chosen['value'], random['mean'], f'mean of {random["count"]} random'),
            _row(f'mean of the best {top["count"]}', top['mean'], random['mean'], f'mean of {random["count"]} random'),
        ]
        if knn := self.knn:
            rows.append(_row('supernet: nearest neighbours', knn[-1][1], knn[0][1], 'random weights'))
        rows += [
            _row('chosen network, retrained', self.last('retrain', 'accuracy/top1')),
            _row('detection: box AP', 100 * self.last('detection', 'coco/bbox_mAP')),
            _row('detection: mask AP', 100 * self.last('detection', 'coco/segm_mAP')),
            _row('segmentation: mIoU', self.last('segmentation', 'mIoU')),
        ]
        return Table(['result, in points', 'value', 'compared with', 'difference', 'which is'], rows)

    def text(self) -> str:
        """The table as lines for a terminal."""
        table = self.table()
        cells = [[str('-' if cell is None else cell) for cell in row] for row in [table.header, *table.rows]]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            '  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
        ]
        return '\n'.join([lines[0], '-' * len(lines[0]), *lines[1:]]) + '\n'


def _row(title: str, value: float, other: float | None = None, what: str = '') -> list[object]:
    if other is None:
        return [title, round(value, 2), None, None, '']
    return [title, round(value, 2), round(other, 2), round(value - other, 2), what]


def publish(root: Path) -> Path:
    """Writes the retrained network (its averaged weights) as `retrained.safetensors`.

    Args:
        root: Folder with the training `retrain`.

    Raises:
        FileNotFoundError: The training is not finished.
        ValueError: Its checkpoint contains no network of a known space.
    """
    checkpoint = find_checkpoint(root / 'retrain', 'auto')
    if checkpoint is None:
        raise FileNotFoundError(f'{root / "retrain"} has no checkpoint')
    state, metadata = read_weights(checkpoint)
    inner, space, arch = find_network(state, metadata, Path(checkpoint))
    net = PiNASNet(arch, space, num_classes=inner['fc.weight'].shape[0])
    load_weights(net, inner, checkpoint)
    out = root / 'retrained.safetensors'
    save_backbone(out, net, checkpoint, top1=Results(root).last('retrain', 'accuracy/top1'))
    return out


if __name__ == '__main__':
    action, folder = sys.argv[1:]
    {'publish': publish, 'table': lambda root: write_text(root / 'table.txt', Results(root).text())}[action](
        Path(folder)
    )
