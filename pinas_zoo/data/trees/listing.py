"""Folder contents, each read once: a hundred thousand names cost one listing, not a hundred thousand look-ups."""

import os
from collections.abc import Iterable
from pathlib import Path


class Listing:
    """Answers whether files exist, from listings of their folders.

    It sees a folder as it was at the first query.
    """

    def __init__(self) -> None:
        self._names: dict[str, frozenset[str]] = {}

    def names(self, folder: str | Path) -> frozenset[str]:
        """The names in a folder; none if the folder does not exist."""
        key = os.fspath(folder)
        if key not in self._names:
            try:
                self._names[key] = frozenset(os.listdir(key or '.'))
            except (FileNotFoundError, NotADirectoryError):
                self._names[key] = frozenset()
        return self._names[key]

    def missing(self, paths: Iterable[str]) -> list[str]:
        """Those of `paths` that do not exist, in order."""
        return [path for path in paths if os.path.basename(path) not in self.names(os.path.dirname(path))]


def shorten(names: Iterable[str], limit: int = 3) -> str:
    """The first names of a list, and the number of the others."""
    names = list(names)
    rest = f' and {len(names) - limit:,} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + rest
