"""Download weights, verify them, convert what the authors released, and print where they are.

    python tools/download.py pinas_a.in1k            python tools/download.py --list            --all

$PINAS_ZOO_HOME is the cache, $PINAS_ZOO_MIRROR an address or folder that is tried first.
"""

import argparse
import sys
from collections.abc import Sequence

from pinas_zoo.weights.download import DownloadError, cache_dir, fetch
from pinas_zoo.weights.manifest import entries


def print_list() -> None:
    for entry in entries().values():
        results = '; '.join(
            ', '.join(f'{name} {value}' for name, value in result.values.items()) + f' ({result.reported_by})'
            for result in entry.results
        )
        size = 'size unknown' if entry.size is None else f'{entry.size / 1e6:.1f} MB'
        print(f'{entry.name:32} {entry.task}, {entry.dataset}; {results or "no results"}; {size}')
    print(f'cache: {cache_dir()}')


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', metavar='NAME', help='weights by name')
    parser.add_argument('--list', action='store_true', help='what there is')
    parser.add_argument('--all', action='store_true', help='download everything')
    args = parser.parse_args(argv)
    if args.list:
        print_list()
        return 0
    names = list(entries()) if args.all else args.names
    if not names:
        parser.error('give a NAME, --list or --all')
    failed = 0
    for name in names:
        try:
            print(f'{name}: {fetch(name)}')
        except (DownloadError, ValueError) as error:
            print(f'download: error: {error}', file=sys.stderr)
            failed += 1
    return 1 if failed else 0


if __name__ == '__main__':
    raise SystemExit(main())
