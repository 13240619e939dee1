"""The published table of NAS-Bench-Macro (Su et al., CVPR 2021) as a truth: 6,561 networks, CIFAR-10, three seeds.

The table (1.2 MB, Apache-2.0) is not part of this project: it is read from a file of the user.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pinas_zoo.files import file_sha256, read_json
from pinas_zoo.models.cost import Cost, CostTable
from pinas_zoo.ranking.truth import Study, Truth, TruthRow, draw_paths
from pinas_zoo.space import Arch, SearchSpace

__all__ = ['ADDRESS', 'SHA256', 'TABLE_VARIABLE', 'differing_costs', 'find_table', 'published_truth', 'read_table']

#: Names the file, unless an option does.
TABLE_VARIABLE = 'PINAS_NAS_BENCH_MACRO'
ADDRESS = 'nas-bench-macro_cifar10.json of https://github.com/xiusu/NAS-Bench-Macro'
SHA256 = '686dee8363cc21cca8c1f321ad5749454f2d9b9ca5972682e137e539bc522297'
#: Fields of an entry: test accuracies in percent, parameters, and MACs ("flops").
FIELDS = ('test_acc', 'params', 'flops')


def find_table(file: str | Path | None = None) -> Path:
    """The table's file: as given, else by `TABLE_VARIABLE`.

    Raises:
        ValueError: It is not given, or does not exist.
    """
    path = file or os.environ.get(TABLE_VARIABLE)
    if not path or not Path(path).is_file():
        what = f'{path} is not a file' if path else 'no file is given'
        raise ValueError(f'the table of NAS-Bench-Macro: {what}; get {ADDRESS}, and set --table or {TABLE_VARIABLE}')
    return Path(path)


def read_table(file: str | Path, space: SearchSpace, sha256: str | None = SHA256) -> dict[Arch, Mapping[str, Any]]:
    """Reads the table: its entries by architecture.

    Args:
        file: The file.
        space: The space of the architectures.
        sha256: Hash that the file must have; None checks none.

    Raises:
        ValueError: It has another hash, or is not such a table.
    """
    if sha256 is not None and (found := file_sha256(file)) != sha256:
        raise ValueError(f'{file} is not the published table: its sha256 is {found}, expected {sha256}; get {ADDRESS}')
    try:
        table = read_json(file)
        entries: dict[Arch, Mapping[str, Any]] = {
            space.parse(name): {key: entry[key] for key in FIELDS} for name, entry in table.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{file} is not a table with {", ".join(FIELDS)} per architecture ({error!r})') from error
    return entries


def differing_costs(table: Mapping[Arch, Mapping[str, Any]], space: SearchSpace) -> dict[Arch, tuple[Cost, Cost]]:
    """The architectures whose parameters or MACs differ from ours, with the table's and our cost.

    The table's convention: multiply-accumulates of convolutions and of the linear layer of ten classes, without its
    bias, BN, activations and pooling; its parameters include BN's scales and shifts and the linear layer's bias.
    """
    costs = CostTable(space, space.input_size, num_classes=10)
    pairs = {arch: (Cost(entry['flops'], entry['params']), costs.of(arch)) for arch, entry in table.items()}
    return {arch: pair for arch, pair in pairs.items() if pair[0] != pair[1]}


def published_truth(file: str | Path, study: Study, paths: int, sha256: str | None = SHA256) -> Truth:
    """The table as a truth: the first paths of a study, each with the published accuracies.

    Args:
        file: The table.
        study: Space, images and draw; its recipe is not used.
        paths: Number of paths.
        sha256: As for `read_table`.

    Raises:
        ValueError: A path is missing, or its cost differs from the table's; also see `read_table`.
    """
    table, archs = read_table(file, study.space, sha256), draw_paths(study, paths)
    if missing := [arch for arch in archs if arch not in table]:
        raise ValueError(f'{file} lacks {len(missing)} paths, the first is {study.space.format(missing[0])}')
    if differing := differing_costs({arch: table[arch] for arch in archs}, study.space):
        arch, (theirs, ours) = next(iter(differing.items()))
        raise ValueError(f'{file}: {study.space.format(arch)} has {theirs} there, {ours} here')
    header = {
        'kind': 'published table',
        'space': study.space.to_dict(),
        'task': asdict(study.task),
        'seeds': study.seeds,
        'draw': study.draw,
        'source': ADDRESS,
        'sha256': sha256,
    }
    rows = [
        TruthRow(number, arch, tuple(table[arch]['test_acc']), (), table[arch]['flops'], table[arch]['params'], ())
        for number, arch in enumerate(archs)
    ]
    return Truth(json.loads(json.dumps(header)), study, tuple(rows))  # lists, as in the lines of scores
