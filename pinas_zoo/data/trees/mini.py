"""A small set of links that keeps every class."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from pinas_zoo.data.trees.layout import MINI_FILE, SPLITS, Progress, Tree
from pinas_zoo.data.trees.listing import shorten
from pinas_zoo.files import read_json


def choose_covering(presence: np.ndarray, count: int) -> list[int]:
    """Images that show every class that occurs, and evenly spaced others up to a count.

    The cover is greedy: it takes the image with the most classes still missing, the first of equal ones.

    Args:
        presence: Which class occurs in which image.
        count: Number of images; at most all of them are taken.

    Shape:
        presence: bool (images, classes).

    Returns:
        Indices in ascending order.

    Raises:
        ValueError: The cover alone takes more images.
    """
    missing, chosen = presence.any(0), []
    while missing.any():
        best = int((presence & missing).sum(1).argmax())
        chosen.append(best)
        missing = missing & ~presence[best]
    if len(chosen) > count:
        raise ValueError(
            f'{count} image(s) cannot show all {int(presence.any(0).sum())} classes, {len(chosen)} can: '
            f'give --mini {len(chosen)} or more'
        )
    others = np.setdiff1d(np.arange(len(presence)), chosen)
    rest = min(count - len(chosen), len(others))
    spaced = others[np.arange(rest) * len(others) // max(rest, 1)]
    return sorted([*chosen, *spaced.tolist()])


def make_mini(
    tree: Tree,
    root: str | Path,
    out: str | Path,
    count: int,
    workers: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], bool]:
    """Make a mini set of links as a tree of the same layout, so that a config needs only another data_root.

    It is written beside its destination and renamed when complete. Repeating the same call does nothing.

    Args:
        tree: Layout of the complete set.
        root: The complete set, already checked.
        out: Folder to create.
        count: Images per split; every class that occurs in a split of the full set also occurs in the mini set.
        workers: Processes that read label maps.
        overwrite: Replace another mini set at `out`.
        progress: Called with (step, done, total).

    Returns:
        The content of its mini.json, and whether anything was written.

    Raises:
        ValueError: `count` is too small, or `out` contains something else.
    """
    root, out = Path(root).resolve(), Path(os.path.abspath(out))
    wanted = {'data': tree.name, 'of': str(root), 'images': count}
    if (found := _read_mini(out, wanted, overwrite)) is not None:
        return found, False
    partial = out.with_name(f'.{out.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    counts, classes = [], []
    for split in SPLITS:
        names, presence, class_names = tree.presence(root, split, workers, progress)
        if not presence.any():
            raise ValueError(f'{tree.name} {split}: no image shows any of {shorten(class_names)}')
        try:
            chosen = choose_covering(presence, count)
        except ValueError as error:
            raise ValueError(f'{tree.name} {split}: {error}') from None
        counts.append(len(chosen))
        classes.append(int(presence.any(0).sum()))
        _write(partial, root, *tree.subset(root, split, [names[index] for index in chosen]))
    content = {**wanted, 'counts': counts, 'classes': classes}
    (partial / MINI_FILE).write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    os.sync()  # one for thousands of links
    if out.exists():
        shutil.rmtree(out)  # a mini set, as _read_mini has checked
    partial.rename(out)
    return content, True


def _read_mini(out: Path, wanted: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The record of an equal mini set; None if one has to be written."""
    if not out.exists():
        return None
    file = out / MINI_FILE
    if not file.is_file():
        raise ValueError(f'{out} exists and is not a mini set (no {MINI_FILE}); give another --out')
    content = read_json(file)
    differing = [
        f'{key} is {content.get(key)!r}, requested {value!r}'
        for key, value in wanted.items()
        if content.get(key) != value
    ]
    if not differing:
        return content
    if not overwrite:
        raise ValueError(f'{out} contains another mini set: {"; ".join(differing)}. Give --overwrite or another --out')
    return None


def _write(partial: Path, root: Path, links: list[str], documents: dict[str, Any]) -> None:
    for path in links:
        link = partial / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((root / path).resolve())
    for path, document in documents.items():
        file = partial / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(document), encoding='utf-8')
