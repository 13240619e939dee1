"""A COCO annotation file as it is read: its lists, the fields of their entries, and the uniqueness of ids."""

from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any

from pinas_zoo.data.trees import shorten
from pinas_zoo.mm.preflight.coco_json import load_used
from pinas_zoo.mm.preflight.findings import repeated

_ID, _NUMBER, _TEXT, _LIST = (int, str), (int, float), (str,), (list,)
_WANTED = {_ID: 'an integer or a text', _NUMBER: 'a number', _TEXT: 'a text', _LIST: 'a list'}
#: Keys that mmdet and pycocotools read from every entry, and the types of their values.
FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    'image': {'id': _ID, 'file_name': _TEXT, 'height': _NUMBER, 'width': _NUMBER},
    'category': {'id': _ID, 'name': _TEXT},
    'annotation': {'id': _ID, 'image_id': _ID, 'category_id': _ID, 'bbox': _LIST, 'area': _NUMBER},
}


class AnnotationFile:
    """A COCO annotation file, read once.

    Attributes:
        errors: What is wrong with fields and ids, one line each; if there are none, the entries are reliable.

    Args:
        path: JSON file.

    Raises:
        BadInputError: It is not such a file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        document, typed = load_used(path, FIELDS)
        self.images, self.annotations = document['images'], document['annotations']
        self.categories = document['categories']
        self.errors: list[str] = []
        for what, entries in (
            ('image', self.images),
            ('category', self.categories),
            ('annotation', self.annotations),
        ):
            if typed or self._check_fields(what, entries):
                self._check_ids(what, list(map(itemgetter('id'), entries)))
        if not self.errors:
            self._check_sizes()
        self.image_ids = set() if self.errors else {image['id'] for image in self.images}

    def say(self, wrong: Sequence[dict[str, Any]], what: str, text: str) -> str:
        """A line about the first of some entries.

        Args:
            wrong: The entries; the line counts them.
            what: 'image', 'category' or 'annotation'.
            text: What is wrong with the first.
        """
        first = f' {wrong[0].get("id", "without id")}' if isinstance(wrong[0], dict) else ''
        more = f'; {len(wrong) - 1:,} more like it' if len(wrong) > 1 else ''
        return f'{self.path}: {what}{first} {text}{more}'

    def _check_fields(self, what: str, entries: list[Any]) -> bool:
        """Returns whether ids can be checked."""
        if not _only(entries, (dict,)):
            wrong = [entry for entry in entries if type(entry) is not dict]
            self.errors.append(self.say(wrong, what, f'is {brief(wrong[0])}, but must be an object with keys'))
            return False
        before = len(self.errors)
        for key, types in FIELDS[what].items():
            try:
                sound = _only(map(itemgetter(key), entries), types)
            except KeyError:
                self._say_missing(what, entries)
                return False
            if not sound:
                wrong = [entry for entry in entries if type(entry.get(key)) not in types]
                text = f'has {key} {brief(wrong[0].get(key))}, which must be {_WANTED[types]}'
                self.errors.append(self.say(wrong, what, text))
        return len(self.errors) == before

    def _say_missing(self, what: str, entries: list[dict[str, Any]]) -> None:
        missing = [entry for entry in entries if not entry.keys() >= FIELDS[what].keys()]
        keys = [key for key in FIELDS[what] if key not in missing[0]]
        self.errors.append(self.say(missing, what, f'has no {", ".join(keys)}'))

    def _check_ids(self, what: str, ids: list[Any]) -> None:
        if what != 'annotation' and len(set(map(type, ids))) > 1:
            text = next(value for value in ids if type(value) is str)
            number = next(value for value in ids if type(value) is int)
            self.errors.append(f'{self.path}: {what} ids mix integers and texts, such as {number} and {text!r}')
        if len(set(ids)) < len(ids):
            twice = repeated(ids)
            more = f'; {len(twice) - 1:,} more like it' if len(twice) > 1 else ''
            self.errors.append(f'{self.path}: {what} id {brief(twice[0])} occurs twice{more}')

    def _check_sizes(self) -> None:
        # NaN compares false, and so is not positive.
        wrong = [image for image in self.images if not (0 < image['height'] < 1e6 and 0 < image['width'] < 1e6)]
        if wrong:
            size = f'has width {wrong[0]["width"]} and height {wrong[0]["height"]}, which must be positive'
            self.errors.append(self.say(wrong, 'image', size))

    def category_ids(self, classes: Sequence[str] | None) -> set[Any]:
        """Ids of the categories that a data set keeps; adds to the errors if `classes` and categories differ.

        Args:
            classes: Those of the data set; None keeps all categories.
        """
        named: dict[str, list[Any]] = {}
        for category in self.categories:
            named.setdefault(category['name'], []).append(category['id'])
        kept = list(named) if classes is None else list(classes)
        if missing := [name for name in kept if name not in named]:
            self.errors.append(
                f'{self.path}: no category {shorten(map(repr, missing))}; its {len(named)} categories are '
                f'{shorten(map(repr, named)) or "none"}, metainfo.classes names {len(kept)}'
            )
        for name in kept:
            if len(ids := named.get(name, ())) > 1:
                known = ', '.join(map(str, ids))
                self.errors.append(f'{self.path}: category name {name!r} occurs {_times(len(ids))} (ids {known})')
        for name in {name for name in kept if kept.count(name) > 1} if len(set(kept)) < len(kept) else ():
            self.errors.append(f'metainfo.classes names {name!r} {_times(kept.count(name))}')
        return {category['id'] for category in self.categories if category['name'] in set(kept)}


def brief(value: Any) -> str:
    """A value of a file, shortened to fit a line."""
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'


def _only(values: Iterable[Any], types: tuple[type, ...]) -> bool:
    """Whether all values are of these types; True does not count as a number."""
    return set(map(type, values)) <= set(types)


def _times(count: int) -> str:
    return 'twice' if count == 2 else f'{count} times'
