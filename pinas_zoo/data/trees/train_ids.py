"""Makes Cityscapes' *_labelTrainIds.png from *_labelIds.png."""

from pathlib import Path

import numpy as np
from PIL import Image

from pinas_zoo.data.labels import read_labels
from pinas_zoo.data.trees.label_maps import LabelMapTree
from pinas_zoo.data.trees.layout import SPLITS, Progress
from pinas_zoo.data.trees.listing import shorten
from pinas_zoo.data.trees.parallel import in_processes
from pinas_zoo.files import write_atomic

#: By label id, 0 to 33, as in the data set's own table; 255 is ignored.
TRAIN_IDS = {
    **dict.fromkeys(range(34), 255),
    **{7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10},
    **{24: 11, 25: 12, 26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18},
}
_IDS, _TRAIN_IDS = '_labelIds.png', '_labelTrainIds.png'


def convert(file: Path) -> None:
    """Write a map of train ids beside a map of label ids.

    Raises:
        ValueError: A label id is not in the table, or the file is not a label map.
    """
    labels = read_labels(file)
    shown = np.flatnonzero(np.bincount(labels.ravel()))
    unknown = sorted(set(shown.tolist()) - set(TRAIN_IDS))
    if unknown:
        raise ValueError(f'{file}: label {shorten(map(str, unknown))}, allowed are 0 to {max(TRAIN_IDS)}')
    table = np.array([TRAIN_IDS[label] for label in sorted(TRAIN_IDS)], np.uint8)
    picture = Image.fromarray(table[labels])
    write_atomic(_made(file), lambda path: picture.save(path, 'PNG', compress_level=3))


def _made(file: Path) -> Path:
    return file.with_name(file.name.removesuffix(_IDS) + _TRAIN_IDS)


def make_train_ids(root: str | Path, tree: LabelMapTree, workers: int, progress: Progress | None = None) -> int:
    """Make the maps that are missing; existing ones are kept, so an interrupted call can be continued.

    Args:
        root: Root of a Cityscapes tree.
        tree: Its layout.
        workers: Number of processes.
        progress: Called with (step, done, total).

    Returns:
        How many were made.
    """
    todo: list[Path] = []
    for split in SPLITS:
        for file in sorted(Path(root, tree.map_part(split).folder).glob(f'*/*{_IDS}')):
            made = _made(file)
            if not made.is_file() or not made.stat().st_size:
                todo.append(file)
    in_processes(convert, todo, workers, 'labelTrainIds', progress)
    return len(todo)
