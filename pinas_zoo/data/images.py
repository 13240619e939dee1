"""Pictures and folders of pictures, read by one rule, as a source; docs/data.md, 'Pictures', defines it.

Training sources and inference read with `read_picture`; mmcv reads for detection and segmentation, and a test compares
the two. Both follow that rule.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO
from unicodedata import normalize

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pinas_zoo.data.more_bits import from_more_bits
from pinas_zoo.data.sources import SOURCES, BrokenImageError, Reduction, Source, few_names

__all__ = [
    'UPRIGHT',
    'FileSource',
    'FolderSource',
    'ImageFiles',
    'eight_bits',
    'find_images',
    'naming_damage',
    'orientation',
    'read_picture',
    'spaced',
    'suffixes',
]

ORIENTATION = 0x0112
#: How to turn a stored picture upright, by the value of the tag.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: Formats that Pillow only recognises, or passes to another program.
_NO_PIXELS = frozenset({'BUFR', 'EPS', 'GRIB', 'HDF5', 'IPTC', 'MPEG', 'WMF'})
#: Files that operating systems create beside images; names that begin with a dot are skipped as well.
_LITTER = frozenset({'__macosx', 'thumbs.db', 'ehthumbs.db', 'desktop.ini', '@eadir', '#recycle', 'lost+found'})
_LITTER |= {'$recycle.bin', 'system volume information'}
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError)  # by format


@lru_cache(maxsize=1)
def suffixes() -> frozenset[str]:
    """Suffixes of the files that are read, in lower case: everything that this Pillow decodes itself."""
    known = Image.registered_extensions()
    return frozenset(end for end, kind in known.items() if kind in Image.OPEN and kind not in _NO_PIXELS)


# ---- one picture -----------------------------------------------------------------------------------------------------


def read_picture(
    path: str | Path | IO[bytes], reduction: Reduction | None = None, name: Callable[[], str] | None = None
) -> tuple[np.ndarray, float]:
    """Decode one picture, upright.

    Args:
        path: Path of the file, or the file, open.
        reduction: Called with the upright picture's height and width; returns the factor by which it may be smaller.
            JPEG files decode at 1/2, 1/4 or 1/8. None reads the full size.
        name: Returns the picture's name for messages; None uses the path.

    Returns:
        RGB, uint8 (H, W, 3), and the factor by which it is smaller; 1 for the full size.

    Raises:
        BrokenImageError: The file is missing, damaged, or of a kind whose range is unknown.
    """
    with naming_damage(name or path), Image.open(path) as file:
        width, height = file.size
        turn = UPRIGHT.get(orientation(file)) if file.format != 'TIFF' else None  # Pillow turns TIFF itself
        sideways = turn is not None and turn not in (UPRIGHT[2], UPRIGHT[3], UPRIGHT[4])
        wanted = 1.0 if reduction is None else reduction(*((width, height) if sideways else (height, width)))
        if wanted >= 2:
            power = 2 ** min(3, int(math.log2(wanted)))
            file.draft(None, (max(1, width // power), max(1, height // power)))
        pixels = eight_bits(file)
        # A reduced side is rounded up.
        factor = next(k for k in (1.0, 2.0, 4.0, 8.0) if math.ceil(width / k) == pixels.width)
        return np.array(pixels if turn is None else pixels.transpose(turn)), factor


@contextmanager
def naming_damage(name: object) -> Iterator[None]:
    """Raises a BrokenImageError for a picture that does not decode; `name` is its path, or returns its name."""
    try:
        yield
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        what = str(name() if callable(name) else name)
        if isinstance(error, Image.DecompressionBombError):
            raise BrokenImageError(f'image {what!r} is implausibly large: {error}') from error
        raise BrokenImageError(f'cannot read image {what!r}: {error or type(error).__name__}') from error


def orientation(file: Image.Image) -> int:
    """EXIF orientation of an open picture, 1 to 8; 1, upright, if it has none or it is unreadable."""
    try:
        value = file.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged metadata of a good picture can raise anything, including struct.error
        return 1
    return value if value in UPRIGHT else 1


def eight_bits(file: Image.Image) -> Image.Image:
    """A decoded picture, or a part of one, as RGB with 8 bits per channel, without alpha; see `from_more_bits`."""
    if file.mode.startswith(('I', 'F')):
        return from_more_bits(file)
    if file.mode == 'RGB':
        file.load()
        return file
    return file.convert('RGB')


# ---- folders ---------------------------------------------------------------------------------------------------------


@dataclass
class ImageFiles:
    """Result of a walk through a folder.

    Args:
        paths: Images, relative to the folder, with '/', in the order of their parts.
        left_out: Number of other files by their kind.
        empty: Folders directly below the root without any image in or below them.
    """

    paths: list[str]
    left_out: Counter[str] = field(default_factory=Counter)
    empty: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """What was left out, in one line; '' if nothing was."""
        return ', '.join(f'{count} {kind}' for kind, count in self.left_out.most_common())


def find_images(root: str | Path, skip: Iterable[Path] = ()) -> ImageFiles:
    """Images in a folder and everything below it.

    Names that begin with a dot, files of operating systems and suffixes that are not read are skipped. Links
    are followed. Every folder is entered once, however many links lead to it, real folders before links, so cycles
    end.

    Args:
        root: The folder.
        skip: Folders that are not entered.
    """
    found = ImageFiles([])
    entered = {_identity(str(path)): 'folders of results' for path in skip if Path(path).is_dir()}
    links: list[tuple[str, str]] = []
    children: list[str] = []
    waiting = [('', str(root))]
    while waiting or links:
        prefix, folder = waiting.pop() if waiting else links.pop(0)
        if (identity := _identity(folder)) in entered:
            found.left_out[entered[identity]] += bool(prefix)
            continue
        entered[identity] = 'linked folders that were read already'
        folders, linked = _sort_entries(prefix, folder, found)
        if not prefix:
            children = [name.rstrip('/') for name, _ in (*folders, *linked)]
        waiting += reversed(folders)
        links += linked
    found.paths.sort(key=lambda path: path.split('/'))
    full = {path.split('/', 1)[0] for path in found.paths}
    found.empty = sorted(name for name in children if name not in full)
    found.left_out += Counter()  # drops zeros
    return found


def _sort_entries(prefix: str, folder: str, found: ImageFiles) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Adds a folder's files to `found`; returns its folders and its linked folders as (name below the root, path)."""
    folders: list[tuple[str, str]] = []
    linked: list[tuple[str, str]] = []
    known = suffixes()
    with os.scandir(folder) as listing:
        entries = sorted(listing, key=lambda entry: entry.name)
    for entry in entries:
        name, link = f'{prefix}{entry.name}', entry.is_symlink()  # a link to itself raises for is_dir, not for isdir
        if entry.name.startswith('.') or entry.name.lower() in _LITTER:
            found.left_out['hidden or system files and folders'] += 1
        elif os.path.isdir(entry.path) if link else entry.is_dir():
            (linked if link else folders).append((f'{name}/', entry.path))
        elif not (os.path.isfile(entry.path) if link else entry.is_file()):
            found.left_out['broken links or special files'] += 1
        elif (suffix := os.path.splitext(entry.name)[1].lower()) in known:
            found.paths.append(name)
        else:
            found.left_out[f'{suffix} files' if suffix else 'files without suffix'] += 1
    return folders, linked


def _identity(folder: str) -> tuple[int, int]:
    facts = os.stat(folder)
    return facts.st_dev, facts.st_ino


# ---- sources ---------------------------------------------------------------------------------------------------------

#: Images, or label maps, of a set that are decoded before a run.
SAMPLES = 8


def spaced(count: int) -> list[int]:
    """Evenly spaced indices below a count, at most `SAMPLES`."""
    taken = min(SAMPLES, count)
    return [number * count // taken for number in range(taken)]


class FileSource(Source):
    """Images in files; subclasses (`ListSource`, `FolderSource`) define which."""

    def _fill(self, root: Path, paths: Sequence[str], labels: Sequence[int]) -> None:
        self.root = root
        # One block of bytes: a million Python strings would be copied into every worker process.
        self.paths = np.array([os.fsencode(p) for p in paths])
        self.labels = np.asarray(labels, dtype=np.int64)

    def name(self, index: int) -> str:
        return str(self.root / os.fsdecode(bytes(self.paths[index])))

    def look(self) -> list[str]:
        looked, faults = spaced(len(self)), []
        for index in looked:
            try:
                self.load(index)
            except BrokenImageError as error:
                faults.append(str(error))
        if not faults:
            return list(self.notes)
        line = f'{len(faults)} of {len(looked)} checked images do not decode: {faults[0]}'
        if len(faults) == len(looked):
            raise ValueError(line)
        return [*self.notes, line]

    def load(self, index: int) -> Tensor:
        return torch.from_numpy(read_picture(self.name(index))[0]).permute(2, 0, 1)

    def load_reduced(self, index: int, reduction: Reduction) -> tuple[Tensor, float]:
        pixels, factor = read_picture(self.name(index), reduction)
        return torch.from_numpy(pixels).permute(2, 0, 1), factor


class FolderSource(FileSource):
    """All images below a folder: class folders (root/class/...) or flat (root/*), without labels.

    Which files are images, and how links and hidden names are treated: see `find_images`.

    Args:
        root: The folder.
        classes: Names of the class folders in the order of their labels; some may have no images here. None
            numbers the folders with images in the order of their names.

    Raises:
        ValueError: The folder is missing or has no images, or a class folder is not in `classes`.
    """

    def __init__(self, root: str | Path, classes: Sequence[str] | None = None) -> None:
        root = Path(root)
        if not root.is_dir():
            raise ValueError(f'image folder {str(root)!r} is not a folder; give one with images or class folders')
        found = find_images(root)
        summary = found.summary()
        if not found.paths:
            raise ValueError(f'folder {str(root)!r} has no images' + (f'; left out: {summary}' if summary else ''))
        owners = [normalize('NFC', path.partition('/')[0]) if '/' in path else '' for path in found.paths]
        classes = None if classes is None else [normalize('NFC', name) for name in classes]  # macOS writes NFD
        folders = sorted(set(owners) - {''})
        if classes is not None and (unknown := [name for name in folders if name not in classes]):
            raise ValueError(
                f'folder {str(root)!r} has class folders {few_names(unknown)} that are not among the '
                f'{len(classes)} classes {few_names(classes)}; rename or remove them, or list every class in '
                'classes=(...) of the training source'
            )
        self.classes = tuple(folders if classes is None or not folders else classes)
        numbers = {name: i for i, name in enumerate(self.classes)}
        self._fill(root, found.paths, [numbers.get(owner, -1) for owner in owners])
        self.notes = [f'folder {str(root)!r}: left out {summary}'] if summary else []
        if folders and found.empty and classes is None:
            self.notes.append(f'folder {str(root)!r}: no image in {few_names(found.empty)}')
        self.description = {'data': 'folder', 'root': str(root), 'images': len(self), 'classes': len(self.classes)}


SOURCES['folder'] = (FolderSource, ('root', 'classes'))
