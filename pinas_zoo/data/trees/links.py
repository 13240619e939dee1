"""A tree of links to data elsewhere."""

import os
from dataclasses import replace
from pathlib import Path

from pinas_zoo.data.trees.layout import Part, Tree, TreeError

_DEPTH = 3  # folders between what the user names and a part of the tree: SRC/archive/ADEChallengeData2016/images


def link_tree(tree: Tree, root: str | Path, source: str | Path) -> int:
    """Link every part of a tree to where it is found below `source`.

    Parts are found by the end of their path: leftImg8bit/train as SRC/leftImg8bit/train, as
    SRC/leftImg8bit_trainvaltest/leftImg8bit/train and so on; the least deep one counts. If files are made beside
    others (Cityscapes' train ids) every file is linked and the folder is a real one, so that nothing is written into
    the source. Existing links are kept.

    Args:
        tree: The layout.
        root: Where the links are created.
        source: Folder that contains the data in some usual layout.

    Returns:
        The number of links.

    Raises:
        TreeError: A part is not found, or found twice, or something else is in the way; the message lists all of them.
    """
    root, source = Path(root), Path(source)
    if not source.is_dir():
        raise TreeError(f'--link {source}: no such folder')
    made_beside = {part.folder for part in tree.parts if not part.download}
    wrong: list[str] = []
    pairs: list[tuple[Path, Path]] = []
    for part in tree.parts:
        if not part.download:
            continue
        found = _find(source, part)
        if len(found) != 1:
            places = ', '.join(map(str, found)) + ': name the folder that is meant' if found else 'not found'
            wrong.append(f'{part.pattern}: {places}')
        elif part.single:
            pairs.append((root / part.folder / part.suffix, found[0]))
        elif part.folder in made_beside:
            pairs += [(root / part.folder / name, found[0] / name) for name in _names(part, found[0])]
        else:
            pairs.append((root / part.folder, found[0]))
    wrong += [line for link, target in pairs if (line := _in_the_way(link, target))]
    if wrong:
        raise TreeError('\n'.join([f'--link {source}: nothing was linked', *(f'  - {line}' for line in wrong)]))
    for link, target in pairs:
        _link(link, target)
    return len(pairs)


def _names(part: Part, folder: Path) -> list[str]:
    """Names of a part's files in a folder that is used as the part."""
    return replace(part, folder='.').scan(folder)[0]


def _find(source: Path, part: Part) -> list[Path]:
    """The folders of a part at the smallest depth at which there is one."""
    tail = f'{part.folder}/{part.suffix}' if part.single else part.folder
    for depth in range(_DEPTH):
        places = sorted(source.glob('/'.join(['*'] * depth + [tail])))
        if part.single and not places:
            places = sorted(source.glob('/'.join(['*'] * depth + [part.suffix])))
        found = {place.resolve(): place for place in places if place.is_file() == part.single and place.exists()}
        if found:
            return list(found)
    return []


def _in_the_way(link: Path, target: Path) -> str:
    if link.is_symlink() and link.resolve() != target.resolve():
        return f'{link}: already links to {os.readlink(link)}; remove that link first'
    if link.exists() and not link.is_symlink() and link.resolve() != target.resolve():
        return f'{link}: already exists and is not a link'
    return ''


def _link(link: Path, target: Path) -> None:
    if link.is_symlink() or link.exists():
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target.resolve())
