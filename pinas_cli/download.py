"""Download weights, verify them, convert the authors' files, and print where they are.

    pinas download pinas_a.in1k            pinas download --list            pinas download --all

$PINAS_ZOO_HOME is the cache, $PINAS_ZOO_MIRROR a URL or folder that is tried first. The authors publish no hashes of
their files, so the first download is trusted; --sha256 or $PINAS_ZOO_SHA256 ('NAME=HEX NAME=HEX') pin a hash.
"""

import argparse
import sys

from pinas_cli.options import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `pinas download`."""
    parser.add_argument('names', nargs='*', metavar='NAME', help='weights by name')
    parser.add_argument('--list', action='store_true', help='list all weights')
    parser.add_argument('--sha256', metavar='HEX', help='hash that the file must have; needs exactly one NAME')
    parser.add_argument('--all', action='store_true', help='download everything')


def print_list() -> None:
    """All weights of the manifest, one line each, and the cache's folder."""
    from pinas_zoo.weights.download import cache_dir
    from pinas_zoo.weights.manifest import entries

    for entry in entries().values():
        results = '; '.join(
            ', '.join(f'{name} {value}' for name, value in result.values.items()) + f' ({result.reported_by})'
            for result in entry.results
        )
        size = 'size unknown' if entry.size is None else f'{entry.size / 1e6:.1f} MB'
        released = entry.released or entry
        trust = '; sha256 not published, trusted on first use' if released.sha256 is None else ''
        print(f'{entry.name:32} {entry.task}, {entry.dataset}; {results or "no results"}; {size}{trust}')
    print(f'cache: {cache_dir()}')


def run(args: argparse.Namespace) -> int:
    """Downloads."""
    if not (args.list or args.all or args.names):
        raise UsageError('give a NAME, --list or --all')
    if args.sha256 and (args.all or len(args.names) != 1):
        raise UsageError('--sha256 needs exactly one NAME')
    from pinas_zoo.weights.download import DownloadError, fetch
    from pinas_zoo.weights.manifest import entries

    if args.list:
        print_list()
        return 0
    failed = 0
    for name in list(entries()) if args.all else args.names:
        try:
            print(f'{name}: {fetch(name, sha256=args.sha256)}')
        except (DownloadError, ValueError) as error:
            print(f'{args.prog}: error: {error}', file=sys.stderr)
            failed += 1
    return 1 if failed else 0
