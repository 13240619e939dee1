"""Folders of masks, one per object, read into files of COCO's format."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from pinas_zoo.data.images import find_images
from pinas_zoo.data.imports.coco_file import SPLITS, AnnotationError, CocoFile, collect, picture_size
from pinas_zoo.data.more_bits import LOSSY

__all__ = ['read_masks']


def read_masks(root: Path, share: float) -> tuple[dict[str, CocoFile], str]:
    """One mask PNG per object: images/{train,val}/NAME.jpg and masks/{train,val}/NAME/CLASS_1.png.

    Pixels that are neither black nor transparent are the object. The class is the file's name without its number, or
    'object' if that is empty.

    Args:
        root: Folder that contains these folders.
        share: Not used: the folders define the splits.

    Returns:
        Files by split; the folder of the images relative to the root.

    Raises:
        AnnotationError: One line per file that cannot be used.
    """
    del share
    splits = {s: find_images(root / 'images' / s).paths for s in SPLITS if (root / 'images' / s).is_dir()}
    if missing := {'train', 'val'} - set(splits):
        raise AnnotationError(f'{root}/images: needs train and val, lacks {" and ".join(sorted(missing))}')
    names = {split: [f'{split}/{name}' for name in found] for split, found in splits.items()}
    for found in names.values():
        if twice := [
            stem for stem, count in Counter(Path(name).with_suffix('') for name in found).items() if count > 1
        ]:
            raise AnnotationError(
                f'{root}/images: two pictures {twice[0]} with different suffixes share one folder of masks'
            )
    files = collect(names, lambda file, name: _masks(file, root, name))
    for split, file in files.items():
        used = {str(Path(name).with_suffix('')) for name in names[split]}
        masks = root / 'masks' / split
        found = find_images(masks).paths if masks.is_dir() else []
        alone = sum(f'{split}/{name}'.rpartition('/')[0] not in used for name in found)
        file.left_out['masks in folders of no picture'] += alone
    return files, 'images'


def _masks(file: CocoFile, root: Path, name: str) -> None:
    from pycocotools import mask as coco_mask  # not in the core environment

    file.add_image(name, size := picture_size(root / 'images' / name))
    folder = (root / 'masks' / name).with_suffix('')
    if not folder.is_dir():
        file.left_out['images without masks'] += 1
        return
    files = find_images(folder)
    for kind, count in files.left_out.items():
        file.left_out[f'beside masks: {kind}'] += count
    for path in (folder / name for name in files.paths):
        try:
            with Image.open(path) as picture:
                lossy, found, several = picture.format in LOSSY, _pixels(picture), _values(picture)
        except (OSError, SyntaxError, ValueError) as error:
            raise AnnotationError(f'{path}: the mask does not decode ({error})') from None
        if lossy:
            raise AnnotationError(f'{path}: a JPEG does not keep the values of a mask: write it as PNG')
        if found.shape != (size[1], size[0]):
            raise AnnotationError(f'{path}: is {found.shape[1]}x{found.shape[0]} px, its image {size[0]}x{size[1]}')
        if len(several) > 1 and several == list(range(1, len(several) + 1)):
            raise AnnotationError(
                f'{path}: has the values 1 to {len(several)}, which seem to number objects: write one PNG per object'
            )
        if not found.any():
            file.left_out['empty masks'] += 1
            continue
        file.noted['masks of several values, each read as one object'] += len(several) > 1
        code = coco_mask.encode(np.asfortranarray(found, np.uint8))
        x, y, width, height = coco_mask.toBbox(code).tolist()
        label = re.sub(r'[\s_.-]*\d+$', '', path.stem) or 'object'
        file.add_object(
            label,
            (x, y, x + width, y + height),
            segmentation={'size': list(code['size']), 'counts': code['counts'].decode()},
            area=float(coco_mask.area(code)),
        )


def _values(picture: Image.Image) -> list[int]:
    """The values above 0 of a mask with neither colours nor alpha."""
    if picture.mode != 'L' and not picture.mode.startswith('I'):
        return []
    return [value for value in np.unique(np.asarray(picture)).tolist() if value > 0]


def _pixels(picture: Image.Image) -> np.ndarray:
    """Which pixels are the object: neither black nor transparent.

    Shape: bool (H, W)
    """
    colours = np.asarray(picture.convert('RGBA') if picture.mode in ('P', 'PA', 'RGBA', 'LA') else picture)
    if colours.ndim == 2:
        return colours > 0
    found = np.asarray(colours[..., :3].any(-1))
    return found & (colours[..., 3] > 0) if colours.shape[2] == 4 else found
