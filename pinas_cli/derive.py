"""Write the backbone that a search found: backbone.safetensors, with its architecture and origin.

    pinas derive SEARCH_CONFIG --checkpoint linear.pth --arch best.json --out backbone.safetensors
    pinas derive --pareto macs --search work_dirs/search --out work_dirs/front
    pinas derive SEARCH_CONFIG --checkpoint linear.pth --pareto latency --search work_dirs/search --out work_dirs/front

With --pareto: all architectures of the search that no other one beats in both score and cost, as a table and as
pareto.json in the folder --out; with a config and a checkpoint, also the backbone of each, ARCH.safetensors.
"""

import argparse
import json
from pathlib import Path

from pinas_cli.options import UsageError, add_cfg_options, config_path, errors_as_line, run_options

#: As in pinas_zoo.search.pareto; tests/test_pareto.py compares.
COSTS = ('macs', 'params', 'latency')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `pinas derive`."""
    parser.add_argument('config', nargs='?', help='config of the search; also found in the installed package')
    parser.add_argument('--checkpoint', help='checkpoint of the supernet: linear stage or pre-training')
    parser.add_argument('--arch', help='best.json of the search, or an architecture')
    parser.add_argument('--pareto', choices=COSTS, help='the Pareto front of score and this cost instead of one --arch')
    parser.add_argument('--search', metavar='DIR', help='with --pareto: work dir of the search, or its archs.jsonl')
    parser.add_argument('--out', required=True, help='.safetensors file to write; with --pareto a folder')
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> int:
    """Derives."""
    if (args.arch is None) == (args.pareto is None) or (args.pareto is None) != (args.search is None):
        raise UsageError('give either --arch, or --pareto with --search')
    if bool(args.config) != bool(args.checkpoint) or (args.arch and not args.config):
        raise UsageError('a backbone needs both a config and --checkpoint')
    if args.pareto:
        return run_pareto(args)
    from pinas_zoo.mm.derive import derive_best

    with errors_as_line(ValueError, OSError):
        arch = derive_best(config_path(args.config), args.checkpoint, args.arch, args.out, run_options(args))
    print(f'wrote {args.out}, the path {arch} of the supernet')
    print(f'to train this network from scratch: pinas train CONFIG --cfg-options model.model.arch={arch}')
    return 0


def run_pareto(args: argparse.Namespace) -> int:
    """Writes and prints a Pareto front, and the backbones on it."""
    from pinas_zoo.files import write_text
    from pinas_zoo.search.log import SearchLog
    from pinas_zoo.search.pareto import front_of, table_of

    log, out = Path(args.search), Path(args.out)
    with errors_as_line(ValueError, OSError):
        header, records = SearchLog.read(log / 'archs.jsonl' if log.is_dir() else log)
        front = front_of(header, records, args.pareto)
    write_text(out / 'pareto.json', json.dumps({'cost': args.pareto, 'front': front}, indent=1) + '\n')
    print(table_of(front, args.pareto))
    if args.config:
        from pinas_zoo.mm.derive import derive_all

        files = {row['arch']: out / f'{row["arch"]}.safetensors' for row in front}
        with errors_as_line(ValueError, OSError):
            derive_all(config_path(args.config), args.checkpoint, files, run_options(args))
    print(f'{len(front)} of {len(records)} architectures, written: {out}')
    return 0
