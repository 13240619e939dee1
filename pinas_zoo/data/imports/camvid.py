"""CamVid as published for SegNet: pictures in train/ and val/, their label maps in trainannot/ and valannot/."""

from pathlib import Path

from pinas_zoo.data.images import find_images
from pinas_zoo.data.imports.coco_file import AnnotationError, picture_size
from pinas_zoo.data.labels import read_labels

__all__ = ['CLASSES', 'VOID', 'check_camvid']

CLASSES = ('sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'fence', 'car', 'pedestrian', 'bicyclist')
#: The label of pixels without a class, which training and metric ignore.
VOID = 11


def check_camvid(root: Path, origin: str) -> tuple[dict[str, int], str]:
    """Check that every picture has a label map of its size with labels of 0 to 11.

    Args:
        root: Folder that contains these folders.
        origin: Where to get the set, for the message.

    Returns:
        Pictures by split, and their suffix.

    Raises:
        AnnotationError: One line per problem.
    """
    wrong: list[str] = []
    counts: dict[str, int] = {}
    suffixes: set[str] = set()
    for split in ('train', 'val', 'test'):
        if not (root / split).is_dir():
            wrong += [f'{root / split}: no such folder{origin}'] if split != 'test' else []
            continue
        names = find_images(root / split).paths
        counts[split] = len(names)
        suffixes |= {Path(name).suffix for name in names}
        for name in names:
            path = (root / f'{split}annot' / name).with_suffix('.png')
            try:
                size, labels = picture_size(root / split / name), read_labels(path)
            except ValueError as error:
                wrong.append(str(error))
                continue
            if labels.shape != (size[1], size[0]):
                found = f'{labels.shape[1]}x{labels.shape[0]}'
                wrong.append(f'{path}: is {found} px, its picture {size[0]}x{size[1]}')
            elif labels.max() > VOID:
                wrong.append(f'{path}: label {labels.max()}, allowed are 0 to {VOID}')
        if not names:
            wrong.append(f'{root / split}: no pictures')
    if len(suffixes) > 1:
        wrong.append(f'{root}: pictures of several suffixes ({", ".join(sorted(suffixes))}): a data set reads only one')
    if wrong:
        raise AnnotationError('\n'.join(wrong[:20] + ([f'and {len(wrong) - 20} more'] if len(wrong) > 20 else [])))
    return counts, suffixes.pop()
