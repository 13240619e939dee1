"""The manifest: which weights exist, where they come from and what results they have. Data in `manifest.json`.

A checkpoint is a row there, never a branch in code: timm's weight rows, the metafiles' weights and results and the
README's table are generated from it or checked against it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pinas_zoo
from pinas_zoo.files import write_text
from pinas_zoo.space import get_space

__all__ = ['MANIFEST', 'Entry', 'Released', 'Result', 'entries', 'find_entry', 'package_file', 'put_rows', 'read_rows']

#: The packaged manifest.
MANIFEST = Path(__file__).with_name('manifest.json')

SOURCE_KEYS = ({'url'}, {'drive_folder', 'file'}, {'package'})


@dataclass(frozen=True)
class Result:
    """Metrics of a weight file on one data set.

    Args:
        dataset: Data set and split.
        protocol: How they were measured.
        reported_by: 'paper' or 'us'; never mixed.
        values: Metric by name.
        hardware: What we measured it on, if we did.
        scenes: Settings of the composed scenes that it was measured on (`SceneSettings`), and their `sha256`.
    """

    dataset: str
    protocol: str
    reported_by: str
    values: dict[str, float]
    hardware: str | None = None
    scenes: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.reported_by not in ('paper', 'us'):
            raise ValueError(f"reported_by must be 'paper' or 'us', got {self.reported_by!r}")


@dataclass(frozen=True)
class Released:
    """A file of the authors that is converted to an entry's file.

    Args:
        file: Its name.
        kind: Kind for `pinas_zoo.weights.released.convert`.
        size: Bytes; None until known.
        sha256: None until known; the observed hash is recorded beside the file and checked from then on.
    """

    file: str
    kind: str
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Entry:
    """One weight file.

    Args:
        name: Name of the weights; a timm name if `timm` is true.
        model: timm model, or the kind of mm model.
        task: Task as in metafiles.
        dataset: Data it was trained on.
        arch: Architecture by stage; None for a supernet, which has all of its space.
        space: Name of the space.
        num_classes: Classes.
        file: File name in the cache.
        licence: Licence of the weights.
        sources: Where it, or the released file, comes from, in order: {'url'}, {'drive_folder', 'file'}, or
            {'package'} for a path within the project.
        released: The authors' file that it is converted from.
        config: Config that builds and evaluates the model.
        card: Its model card.
        size: Bytes; None until known.
        sha256: None until known.
        results: Metrics.
        preprocess: timm's settings of the input, if they differ from ImageNet's.
        timm: Whether it is a weight row of timm.

    Raises:
        ValueError: A source is malformed, or the architecture is not in the space.
    """

    name: str
    model: str
    task: str
    dataset: str
    arch: str | None
    space: str
    num_classes: int
    file: str
    licence: str
    sources: tuple[dict[str, str], ...]
    released: Released | None = None
    config: str | None = None
    card: str | None = None
    size: int | None = None
    sha256: str | None = None
    results: tuple[Result, ...] = ()
    preprocess: dict[str, Any] = field(default_factory=dict)
    timm: bool = False

    def __post_init__(self) -> None:
        if not self.sources or any(set(source) not in SOURCE_KEYS for source in self.sources):
            allowed = [sorted(keys) for keys in SOURCE_KEYS]
            raise ValueError(f'{self.name}: sources must be one of {allowed}, got {self.sources}')
        space = get_space(self.space)
        if self.arch is not None:
            space.parse(self.arch)

    @property
    def own(self) -> bool:
        """Whether the file is part of the project, which trained it."""
        return any('package' in source for source in self.sources)

    @property
    def url(self) -> str:
        """Where a person finds the file; a timm row needs one in order to count as pretrained."""
        for source in self.sources:
            if 'url' in source:
                return source['url']
            if 'drive_folder' in source:
                return f'https://drive.google.com/drive/folders/{source["drive_folder"]}'
        return f'pinas://{self.name}'

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Entry:
        """Builds an entry from the manifest's JSON."""
        values = dict(values)
        if values.get('released'):
            values['released'] = Released(**values['released'])
        values['results'] = tuple(Result(**result) for result in values.get('results', ()))
        values['sources'] = tuple(values['sources'])
        return cls(**values)


@lru_cache
def _read(path: Path) -> dict[str, Entry]:
    rows = [Entry.from_dict(values) for values in read_rows(path)]
    out = {entry.name: entry for entry in rows}
    if len(out) != len(rows) or len({entry.file for entry in rows}) != len(rows):
        raise ValueError(f'{path}: a name or file occurs twice: {sorted(entry.name for entry in rows)}')
    return out


def entries() -> dict[str, Entry]:
    """Every weight file, by name."""
    return _read(MANIFEST)


def find_entry(name: str) -> Entry:
    """One weight file.

    Raises:
        ValueError: There is none with that name; the message lists the names.
    """
    known = entries()
    if name not in known:
        raise ValueError(f'unknown weights {name!r}; known: {", ".join(known)}')
    return known[name]


def read_rows(path: Path = MANIFEST) -> list[dict[str, Any]]:
    """The rows of a manifest as in the file."""
    return json.loads(path.read_text(encoding='utf-8'))['weights']


def put_rows(rows: Sequence[dict[str, Any]], path: Path = MANIFEST, drop: Sequence[str] = ()) -> None:
    """Writes rows into a manifest atomically, replacing those with the same name.

    Args:
        rows: The rows.
        path: The manifest.
        drop: Names of rows to delete.

    Raises:
        ValueError: A row is malformed; then nothing is written.
    """
    new = {Entry.from_dict(row).name: row for row in rows}
    merged = [new.pop(row['name'], row) for row in read_rows(path) if row['name'] not in drop] + list(new.values())
    write_text(path, json.dumps({'weights': merged}, indent=1) + '\n')
    _read.cache_clear()


def package_file(relative: str) -> Path | None:
    """A file that is part of the project, in the installed package or in the checkout; None if it does not exist."""
    package = Path(pinas_zoo.__file__).resolve().parent
    return next((path for path in (package / '.mim' / relative, package.parent / relative) if path.is_file()), None)
