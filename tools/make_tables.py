"""Write the tables of README.md from the metafiles, or check that they are up to date.

    python tools/make_tables.py            python tools/make_tables.py --check

A table stands between `<!-- table: METAFILE -->` and `<!-- end of table -->`. Parameters and MACs of a metafile are
checked against the cost table of its space.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pinas_zoo.cost import Cost, CostTable
from pinas_zoo.space import get_space
from pinas_zoo.weights.load import write_atomic

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r'(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)', re.DOTALL)
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


def _results(model: dict[str, Any], who: str) -> str:
    rows = [
        f'{result["Dataset"]}: ' + ', '.join(f'{name} {value}' for name, value in result['Metrics'].items())
        for result in model['Results']
        if result['Reported by'] == who
    ]
    return '; '.join(rows) or '-'


def table(metafile: Path) -> str:
    """The Markdown table of a metafile's models."""
    lines = ['| ' + ' | '.join(HEADER) + ' |', '|' + '---|' * len(HEADER)]
    for model in yaml.safe_load(metafile.read_text())['Models']:
        check_cost(model)
        data, weights = model['Metadata'], model['Weights']
        cells = [
            f'[`{model["Name"]}`]({model["Config"]})',
            f'`{data["Arch"]}`',
            f'{data["Parameters"] / 1e6:.2f} M',
            f'{data["MACs"] / 1e9:.3f} G at {data["Input Size"]} px',
            _results(model, 'paper'),
            _results(model, 'us'),
            'not trained here' if weights is None else f'[file]({weights["file"]}), sha256 {weights["sha256"][:8]}',
        ]
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='write nothing, exit 1 where a table is out of date')
    args = parser.parse_args(argv)
    stale = []
    for path in [ROOT / 'README.md', *sorted(ROOT.glob('configs/*/README.md'))]:
        old = path.read_text()
        new = BLOCK.sub(lambda match: match[1] + table(ROOT / match[2]) + match[3], old)
        if new != old:
            stale.append(str(path.relative_to(ROOT)))
            if not args.check:
                write_atomic(path, lambda temporary, text=new: temporary.write_text(text))
    verb = 'out of date' if args.check else 'rewritten'
    print(f'tables: {verb} in {", ".join(stale)}' if stale else 'tables: all up to date')
    return 1 if args.check and stale else 0


if __name__ == '__main__':
    raise SystemExit(main())
