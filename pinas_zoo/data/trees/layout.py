"""A data set as a tree of folders: its parts, their counts, and what is wrong with a tree on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pinas_zoo.data.trees.listing import shorten
from pinas_zoo.files import read_json

SPLITS = ('train', 'val')
#: File in the root of a mini set that records what it was made from; its counts are then the expected ones.
MINI_FILE = 'mini.json'
#: Called with (step, done, total).
Progress = Callable[[str, int, int], None]


class TreeError(ValueError):
    """A tree is not complete; the message lists everything that is wrong."""


@dataclass(frozen=True)
class Part:
    """Files of one kind and split.

    Args:
        split: 'train' or 'val'.
        folder: Relative to the root.
        suffix: End of the files' names.
        count: Number of files in the full data set.
        download: Archive that contains them; '' for files that are made here.
        nested: Whether they are one folder deeper, one folder per city.
    """

    split: str
    folder: str
    suffix: str
    count: int
    download: str
    nested: bool = False

    @property
    def single(self) -> bool:
        """Whether the suffix is the full name of a single file."""
        return self.suffix[0] not in '._'

    @property
    def pattern(self) -> str:
        """The files as a shell pattern."""
        return f'{self.folder}/{"*/" if self.nested else ""}{"" if self.single else "*"}{self.suffix}'

    def scan(self, root: Path) -> tuple[list[str], list[str]]:
        """Names of this part's files, relative to its folder and sorted, and the empty ones among them."""
        folder = root / self.folder
        if not folder.is_dir():
            return [], []
        folders = sorted(e.name for e in os.scandir(folder) if e.is_dir()) if self.nested else ['']
        found, empty = [], []
        for inner in folders:
            for entry in os.scandir(folder / inner):
                if entry.name.endswith(self.suffix) and entry.is_file():
                    name = f'{inner}/{entry.name}' if inner else entry.name
                    found.append(name)
                    if entry.stat().st_size == 0:
                        empty.append(name)
        return sorted(found), sorted(empty)


@dataclass(frozen=True)
class Problem:
    """One line about what is wrong, and the archive that repairs it ('': none)."""

    line: str
    download: str = ''


@dataclass(frozen=True)
class Tree:
    """A data set's layout; subclasses know its annotations.

    Args:
        name: 'coco', 'ade20k' or 'cityscapes'.
        root: Where mmdet's or mmseg's configs look for it.
        page: The official download page.
        parts: The parts that it consists of.
        images: Pattern of the suffix of image files, by which images are counted.
    """

    name: str
    root: str
    page: str
    parts: tuple[Part, ...]
    images: str

    def image_part(self, split: str) -> Part:
        """The images of a split."""
        (part,) = (p for p in self.parts if p.split == split and p.suffix == self.images)
        return part

    def expecting(self, root: Path, counts: Sequence[int] | None = None) -> Tree:
        """The same layout with other numbers of images.

        Args:
            root: Root of a tree; if it is a mini set, its own counts are expected.
            counts: Numbers of training and validation images, instead of the data set's.
        """
        file = root / MINI_FILE
        if counts is None and file.is_file():
            counts = read_json(file, 'counts')['counts']
        if counts is None:
            return self
        wanted = dict(zip(SPLITS, counts))
        parts = [p if p.single else replace(p, count=wanted[p.split]) for p in self.parts]
        return replace(self, parts=tuple(parts))

    def problems(self, root: Path, made: bool = True) -> list[Problem]:
        """Everything that is missing or wrong below a root.

        Args:
            root: Root of the tree.
            made: Whether the files that are made here are required.
        """
        if not root.is_dir():
            return [Problem(f'{root}: no such folder', part.download) for part in self.parts]
        found: dict[Part, list[str]] = {}
        lines: list[Problem] = []
        for part in self.parts:
            if not part.download and not made:
                continue
            found[part], empty = part.scan(root)
            if line := _count_line(root, part, len(found[part])):
                lines.append(Problem(line, part.download))
            if empty:
                lines.append(Problem(f'{part.folder}: {len(empty):,} empty file(s): {shorten(empty)}', part.download))
        return lines + self.annotation_problems(root, found)

    def require(self, root: Path, made: bool = True) -> None:
        """Check a tree.

        Args:
            root: Root of the tree.
            made: Whether the files that are made here are required.

        Raises:
            TreeError: One message that lists everything missing or wrong and where to get it.
        """
        problems = self.problems(root, made)
        if not problems:
            return
        lines = dict.fromkeys(problem.line for problem in problems)
        text = [f'{root} is not a complete {self.name}:', *(f'  - {line}' for line in lines)]
        if inner := self._inner(root):
            text.append(f'{inner} looks like it: give --root {inner}')
        elif archives := list(dict.fromkeys(p.download for p in problems if p.download)):
            text.append(f'Get {", ".join(archives)} from {self.page} and unpack into {root},')
            text.append(f'or link data from elsewhere: pinas prepare {self.name} --root {root} --link FOLDER')
        raise TreeError('\n'.join(text))

    def _inner(self, root: Path) -> Path | None:
        """A folder below the root that contains what the root should."""
        folders = [part.folder for part in self.parts]
        if not root.is_dir() or any((root / folder).exists() for folder in folders):
            return None
        inner = [child for child in sorted(root.iterdir()) if all((child / folder).is_dir() for folder in folders)]
        return inner[0] if inner else None

    def annotation_problems(self, root: Path, found: dict[Part, list[str]]) -> list[Problem]:
        """Mismatches between annotations and images.

        Args:
            root: Root of the tree.
            found: Names by part, relative to its folder.
        """
        raise NotImplementedError

    def presence(
        self, root: Path, split: str, workers: int, progress: Progress | None
    ) -> tuple[list[str], np.ndarray, list[str]]:
        """Which class occurs in which image of a split.

        Returns:
            Image names relative to their folder; bool (images, classes); names of the classes.
        """
        raise NotImplementedError

    def subset(self, root: Path, split: str, names: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        """The content of a mini set with these images.

        Returns:
            Paths below the root to link to; JSON documents to write, by path.
        """
        raise NotImplementedError


def _count_line(root: Path, part: Part, count: int) -> str:
    if count == part.count:
        return ''
    if not (root / part.folder).is_dir():
        return f'{part.folder}: no such folder, it should have {part.count:,} of {part.pattern}'
    if not count:
        content = shorten(sorted(os.listdir(root / part.folder))) or 'nothing'
        return f'{part.pattern}: none of {part.count:,}; the folder contains {content}'
    difference = f'{part.count - count:,} missing' if count < part.count else f'{count - part.count:,} too many'
    return f'{part.pattern}: {count:,} of {part.count:,}, {difference}'
