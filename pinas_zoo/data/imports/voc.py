"""Pascal-VOC XML, read into files of COCO's format."""

import math
from glob import escape
from pathlib import Path
from xml.etree import ElementTree

from pinas_zoo.data.images import find_images, suffixes
from pinas_zoo.data.imports.coco_file import (
    SPLITS,
    AnnotationError,
    CocoFile,
    check_size,
    collect,
    hold_out,
    picture_size,
)

__all__ = ['read_voc']


def read_voc(root: Path, share: float) -> tuple[dict[str, CocoFile], str]:
    """Boxes of Pascal VOC: Annotations/NAME.xml, JPEGImages/, and ImageSets/Main/{train,val,trainval,test}.txt if any.

    VOC counts pixels from 1 and a box includes its last one: x1 is xmin - 1, x2 is xmax. Difficult objects become
    crowds, which neither training nor the metric counts. Of a list trainval, or train alone, images are held out.

    Args:
        root: Folder that contains these folders.
        share: Share of the images that is held out without lists of train and val.

    Returns:
        Files by split; the folder of the images relative to the root.

    Raises:
        AnnotationError: One line per file that cannot be used.
    """
    lists = {split: root / 'ImageSets/Main' / f'{split}.txt' for split in (*SPLITS, 'trainval')}
    files_of = [path for path in sorted((root / 'Annotations').glob('*')) if path.suffix.lower() == '.xml']
    found = {path.stem: path for path in files_of if not path.name.startswith('.')}
    if not found:
        raise AnnotationError(f'{root}/Annotations: no XML files')
    # Lists of VOC's classes have a number after the name, which may contain spaces.
    splits = {
        split: [line if line in found else line.split()[0] for line in _lines(path)]
        for split, path in lists.items()
        if path.is_file()
    }
    files = collect(
        _complete(splits, list(found), share),
        lambda file, name: _voc(file, root, found.get(name, root / f'Annotations/{name}.xml')),
    )
    pictures = find_images(root / 'JPEGImages').paths if (root / 'JPEGImages').is_dir() else []
    used = {image['file_name'] for file in files.values() for image in file.images}
    first = next(iter(files.values()))
    first.left_out['pictures that no list or annotation names'] += len(set(pictures) - used)
    first.left_out['hidden files'] += len(files_of) - len(found)
    return files, 'JPEGImages'


def _complete(splits: dict[str, list[str]], names: list[str], share: float) -> dict[str, list[str]]:
    """Lists of 'train' and 'val', and 'test' as it is."""
    whole = splits.pop('trainval', None)
    if {'train', 'val'} <= set(splits):
        return splits
    if 'val' in splits:
        taken = {name for found in splits.values() for name in found}
        return {'train': whole or [name for name in names if name not in taken], **splits}
    tested = splits.get('test', [])
    whole = whole or splits.get('train') or [name for name in names if name not in set(tested)]
    return {**hold_out(whole, share), **({'test': tested} if tested else {})}


def _voc(file: CocoFile, root: Path, path: Path) -> None:
    try:
        tree = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise AnnotationError(f'{path}: no such file') from None
    except OSError as error:
        raise AnnotationError(f'{path}: {error.strerror}') from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the last two: an unknown encoding
        raise AnnotationError(f'{path}: not XML ({error})') from None
    picture = _voc_picture(root / 'JPEGImages', path.stem, tree)
    size = picture_size(root / 'JPEGImages' / picture)
    check_size(path, [tree.findtext(f'size/{key}') for key in ('width', 'height')], size)
    file.add_image(picture, size)
    for number, found in enumerate(tree.iter('object'), 1):
        corners = {key: (found.findtext(f'bndbox/{key}') or '').strip() for key in ('xmin', 'ymin', 'xmax', 'ymax')}
        box = ', '.join(f'{key} {text or "missing"}' for key, text in corners.items())
        label = (found.findtext('name') or '').strip()
        try:
            x1, y1, x2, y2 = map(float, corners.values())
        except ValueError:
            raise AnnotationError(f'{path}: object {number} has the box {box}, which must be four numbers') from None
        if not label:
            raise AnnotationError(f'{path}: object {number} has no name')
        if not all(map(math.isfinite, (x1, y1, x2, y2))) or x2 < x1 or y2 < y1:
            raise AnnotationError(
                f'{path}: object {number} ({label}) has the box {box}, whose maximum must not be below its minimum'
            )
        file.add_object(label, (x1 - 1, y1 - 1, x2, y2), crowd=(found.findtext('difficult') or '0').strip() == '1')


def _voc_picture(folder: Path, name: str, tree: ElementTree.Element) -> str:
    """The picture of an annotation: that of its name; else the one that it states, which copies often state wrongly."""
    stated = (tree.findtext('filename') or '').strip().replace('\\', '/').rpartition('/')[2]
    if Path(stated).stem == name and (folder / stated).is_file():
        return stated
    named = [path.name for path in sorted(folder.glob(f'{escape(name)}.*')) if path.suffix.lower() in suffixes()]
    if len(named) > 1:
        raise AnnotationError(f'{folder}: {named[0]} and {named[1]} both belong to the annotation {name}.xml')
    if named:
        return named[0]
    return stated if stated and (folder / stated).is_file() else f'{name}.jpg'


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text('utf-8-sig').splitlines() if line.strip()]
