"""Image lists, one 'path [label]' per line; docs/data.md, 'Sources', defines the grammar."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from pinas_zoo.data.images import FileSource
from pinas_zoo.data.sources import MOST_CLASSES, SOURCES, few_names

__all__ = ['ListSource', 'read_list']

_LABEL = re.compile(r'[+-]?[0-9]{1,18}')
_COMMA = re.compile(r'[,;]\s*[+-]?[0-9]+$')


def read_list(root: str | Path, list_file: str | Path) -> tuple[list[str], list[int], list[str]]:
    """Paths, labels and notes of an image list; labels are -1 if the list has none.

    Args:
        root: Folder that the paths are relative to.
        list_file: Text file.

    Raises:
        ValueError: The list is missing or empty, or a line does not follow the grammar.
    """
    where = f'image list {str(list_file)!r}'
    if not Path(list_file).is_file():
        raise ValueError(f"{where} is not a file; give one with 'path [label]' lines")
    try:
        text = Path(list_file).read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise ValueError(f'{where} is not UTF-8: {error}; save it as UTF-8') from None
    lines = {number: line.strip() for number, line in enumerate(text.split('\n'), 1) if line.strip()}
    if not lines:
        raise ValueError(f"{where} is empty; give 'path [label]' lines")
    known: dict[str, int | None] = {}
    paths: list[str] = []
    labels: list[int | None] = []
    repeated = 0
    for place, (number, line) in enumerate(lines.items()):
        path, label = _split_line(line)
        fault = ''
        if label is not None and not 0 <= label < MOST_CLASSES:
            fault = f'has label {label}, allowed are 0 to {MOST_CLASSES - 1}'
        elif labels and (label is None) != (labels[0] is None):
            fault = (
                'has no label, earlier lines have one; the label is the last word, an integer'
                if label is None
                else 'has a label, earlier lines have none'
            )
        elif known.get(file := _plain(path), label) != label:
            fault = f'gives {path!r} label {label}, an earlier line gives it {known[file]}'
        elif (place == 0 or '\\' in path or _COMMA.search(line)) and not os.path.isfile(os.path.join(root, path)):
            hint = (
                "paths are written with '/'"
                if '\\' in path
                else "the form is 'path label', the label a number, without header, quotes or comma"
            )
            fault = f'names no file below {str(root)!r}; {hint}'
        if fault:
            raise ValueError(f'{where}, line {number}: {line!r} {fault}')
        repeated += (file := _plain(path)) in known
        known[file] = label
        paths.append(path)
        labels.append(label)
    notes = [f'{where}: {repeated} lines repeat an earlier one; those images count twice'] if repeated else []
    return paths, [-1 if label is None else label for label in labels], notes


def _split_line(line: str) -> tuple[str, int | None]:
    words = line.rsplit(maxsplit=1)
    labelled = len(words) == 2 and _LABEL.fullmatch(words[1])
    return (words[0], int(words[1])) if labelled else (line, None)


def _plain(path: str) -> str:
    """A path without './' and the like, by which two lines may name one file."""
    return os.path.normpath(path) if './' in path or '//' in path else path


class ListSource(FileSource):
    """Images named in a list, one 'path [label]' per line; docs/data.md defines the grammar.

    Args:
        root: Folder that the paths are relative to.
        list_file: Text file, UTF-8 with or without BOM; blank lines are skipped.
        classes: Names by label; None uses the labels' numbers.

    Raises:
        ValueError: The list is missing or empty, or a line does not follow the grammar; the message has its number.
    """

    def __init__(self, root: str | Path, list_file: str | Path, classes: Sequence[str] | None = None) -> None:
        paths, labels, self.notes = read_list(root, list_file)
        self.list_file = list_file
        self._fill(Path(root), paths, labels)
        count = int(self.labels.max()) + 1
        if classes is not None and count > len(classes):
            line = int(self.labels.argmax())
            raise ValueError(
                f'image list {str(list_file)!r}: {paths[line]!r} has label {count - 1}, allowed are 0 to '
                f'{len(classes) - 1}, the {len(classes)} classes {few_names(classes)}'
            )
        self.classes = tuple(map(str, range(count))) if classes is None or not count else tuple(classes)
        self.description = {'data': 'list', 'list': str(list_file), 'root': str(root), 'images': len(self)}

    def look(self) -> list[str]:
        """See `Source.look`; files are searched in the listings of their folders.

        Raises:
            ValueError: A line names no file, or no checked image decodes.
        """
        from pinas_zoo.data.trees.listing import Listing  # trees imports this package

        names = [os.fsdecode(bytes(path)) for path in self.paths]
        places = [os.path.join(self.root, name) for name in names]
        if lost := Listing().missing(places):
            name = names[places.index(lost[0])]
            text = Path(self.list_file).read_text(encoding='utf-8-sig')
            line = next(k for k, line in enumerate(text.split('\n'), 1) if _split_line(line.strip())[0] == name)
            raise ValueError(
                f'image list {str(self.list_file)!r}: {len(lost)} of its {len(names)} lines name no file below '
                f'{str(self.root)!r}, the first is line {line}: {name!r}; remove them, or restore the files'
            )
        return super().look()


SOURCES['list'] = (ListSource, ('root', 'list_file', 'classes'))
