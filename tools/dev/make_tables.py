"""Write the tables of the READMEs and model cards from metafiles and manifest, or check that they are up to date.

    python tools/dev/make_tables.py            python tools/dev/make_tables.py --check

A table is between `<!-- table: FILE -->` and `<!-- end of table -->`; FILE is a metafile, the weights' manifest, or a
script whose function `table` returns it.
Parameters and MACs of a metafile are checked against the cost table of its space, its results and weights against the
manifest. Results of the paper and ours are in separate columns. checkpoints/metafile.yml, by which mmdet's and mmseg's
Inferencers find our own weights, is generated completely.
"""

import argparse
import os
import re
import runpy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from pinas_zoo.files import write_text
from pinas_zoo.models.cost import Cost, CostTable
from pinas_zoo.space import get_space
from pinas_zoo.weights.download import SCHEME
from pinas_zoo.weights.manifest import Entry, entries

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r'(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)', re.DOTALL)
OWN = ROOT / 'checkpoints' / 'metafile.yml'
CARDS = ('README.md', 'MODEL_CARD.md', 'checkpoints/*.md', 'configs/*/README.md', 'docs/cluster.md')
WEIGHTS_HEADER = ['weights', 'task, data', 'architecture', 'file', 'results: paper', 'results: us', 'sha256']
HEADER = ['model', 'architecture', 'parameters', 'MACs', 'results: paper', 'results: us', 'weights']


def check_cost(model: dict[str, Any]) -> None:
    """Compares a metafile's parameters and MACs with the cost table.

    Raises:
        ValueError: They differ.
    """
    data = model['Metadata']
    space, size = get_space(data['Space']), data['Input Size']
    cost = CostTable(space, size, data.get('Classes', 1000)).of(data['Arch'])
    claimed = Cost(data['MACs'], data['Parameters'])
    if cost != claimed:
        raise ValueError(f'{model["Name"]}: the metafile says {claimed}, the cost table {cost} ({cost!r})')


def weights_of(model: dict[str, Any]) -> list[Entry]:
    """The manifest's weights of a metafile's model: those that name its config."""
    return [entry for entry in entries().values() if entry.config == model['Config']]


def check_weights(model: dict[str, Any]) -> None:
    """Compares a metafile's model with the manifest: architecture, space, results, and weights by the manifest's name.

    Raises:
        ValueError: They differ.
    """
    allowed = [None, *(f'{SCHEME}{entry.name}' for entry in weights_of(model))]
    if model['Weights'] not in allowed:
        raise ValueError(f'{model["Name"]}: Weights are {model["Weights"]!r}, by the manifest allowed: {allowed}')
    data = model['Metadata']
    for entry in weights_of(model):
        if (entry.arch, entry.space) != (data['Arch'], data['Space']):
            raise ValueError(f'{model["Name"]}: {data["Arch"]} of {data["Space"]}, the manifest has {entry}')
        for who in ('paper', 'us'):
            there = {
                k: v
                for result in model['Results']
                if result['Reported by'] == who
                for k, v in result['Metrics'].items()
            }
            here = {k: v for result in entry.results if result.reported_by == who for k, v in result.values.items()}
            if any(there.get(name) != value for name, value in here.items()):
                raise ValueError(f'{model["Name"]}, reported by {who}: {there}, the manifest of {entry.name}: {here}')


def own_metafile() -> str:
    """The metafile of the weights that this project trained; a supernet, which is not a single network, has no row."""
    models = []
    for entry in entries().values():
        if not entry.own or entry.arch is None:
            continue
        space, classes = get_space(entry.space), entry.num_classes if entry.timm else 0
        cost = CostTable(space, space.input_size, classes).of(entry.arch)
        data = {'Arch': entry.arch, 'Space': entry.space, 'Input Size': space.input_size, 'Classes': classes}
        results = [
            {'Task': entry.task, 'Dataset': r.dataset, 'Reported by': r.reported_by, 'Metrics': dict(r.values)}
            for r in entry.results
        ]
        models.append(
            {
                'Name': entry.name,
                'In Collection': 'Pi-NAS',
                'Config': entry.config,
                'Metadata': data | {'Parameters': cost.params, 'MACs': cost.macs},
                'Results': results,
                'Weights': f'{SCHEME}{entry.name}',
            }
        )
    head = (
        '# Written by tools/dev/make_tables.py from the manifest. Parameters and MACs of detection and segmentation\n'
        '# are those of the backbone.\n'
    )
    return head + yaml.safe_dump({'Models': models}, sort_keys=False, allow_unicode=True)


def _results(model: dict[str, Any], who: str) -> str:
    rows = [
        f'{result["Dataset"]}: ' + ', '.join(f'{name} {value}' for name, value in result['Metrics'].items())
        for result in model['Results']
        if result['Reported by'] == who
    ]
    return '; '.join(rows) or '-'


def _entry_results(entry: Entry, who: str) -> str:
    rows = [
        f'{result.dataset} ({result.protocol}): '
        + ', '.join(f'{name} {value}' for name, value in result.values.items())
        for result in entry.results
        if result.reported_by == who
    ]
    return '; '.join(rows) or '-'


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ['---'] * len(header), *rows]
    return ''.join(
        '|' + '|'.join(line if line is lines[1] else [f' {cell} ' for cell in line]) + '|\n' for line in lines
    )


def weights_table() -> str:
    """The Markdown table of the manifest."""
    return _markdown(
        WEIGHTS_HEADER,
        [
            [
                f'`{entry.name}`',
                f'{entry.task}, {entry.dataset}',
                f'{f"`{entry.arch}`" if entry.arch else "all"} of `{entry.space}`',
                f'[{entry.released.file}]({entry.url}), converted' if entry.released else f'`{entry.file}`',
                _entry_results(entry, 'paper'),
                _entry_results(entry, 'us'),
                f'`{entry.sha256[:8]}`' if entry.sha256 else 'recorded at the first download',
            ]
            for entry in entries().values()
        ],
    )


def table(source: Path, page: Path) -> str:
    """The Markdown table of a metafile's models, or of the manifest's weights, with links as seen from `page`."""
    if source.suffix == '.json':
        return weights_table()
    if source.suffix == '.py':
        return str(runpy.run_path(str(source))['table']())
    rows = []
    for model in yaml.safe_load(source.read_text())['Models']:
        check_cost(model)
        check_weights(model)
        data = model['Metadata']
        rows.append(
            [
                f'[`{model["Name"]}`]({os.path.relpath(ROOT / model["Config"], page.parent)})',
                f'`{data["Arch"]}`',
                f'{data["Parameters"] / 1e6:.2f} M',
                f'{data["MACs"] / 1e9:.3f} G at {data["Input Size"]} px',
                _results(model, 'paper'),
                _results(model, 'us'),
                ', '.join(
                    f'`{entry.name}` ({"the authors; not verified here" if entry.released else "ours"})'
                    for entry in weights_of(model)
                )
                or 'not trained here',
            ]
        )
    return _markdown(HEADER, rows)


def filled(page: Path, text: str) -> str:
    """A page's text with its tables as they should be now."""
    return BLOCK.sub(lambda match: match[1] + table(ROOT / match[2], page) + match[3], text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='write nothing, exit 1 if a table is out of date')
    args = parser.parse_args(argv)
    stale = []

    def settle(path: Path, old: str, new: str) -> None:
        if new != old:
            stale.append(str(path.relative_to(ROOT)))
            if not args.check:
                write_text(path, new)

    settle(OWN, OWN.read_text() if OWN.is_file() else '', own_metafile())
    for path in [path for pattern in CARDS for path in sorted(ROOT.glob(pattern))]:
        old = path.read_text()
        settle(path, old, filled(path, old))
    verb = 'out of date' if args.check else 'rewritten'
    print(f'tables: {verb} in {", ".join(stale)}' if stale else 'tables: all up to date')
    return 1 if args.check and stale else 0


if __name__ == '__main__':
    raise SystemExit(main())
