"""Write the backbone that a search found: backbone.safetensors, with its architecture and origin.

pinas derive SEARCH_CONFIG --checkpoint linear.pth --arch best.json --out backbone.safetensors
"""

import argparse

from pinas_cli.options import add_cfg_options, add_config, config_path, errors_as_line, run_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `pinas derive`."""
    add_config(parser, 'config of the search')
    parser.add_argument('--checkpoint', required=True, help='checkpoint of the supernet: linear stage or pre-training')
    parser.add_argument('--arch', required=True, help='best.json of the search, or an architecture')
    parser.add_argument('--out', required=True, help='.safetensors file to write')
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> int:
    """Derives."""
    from pinas_zoo.mm.preflight.findings import BadInputError
    from pinas_zoo.mm.search import derive_best

    with errors_as_line(BadInputError):
        derive_best(config_path(args.config), args.checkpoint, args.arch, args.out, run_options(args))
    print(f'wrote {args.out}')
    return 0
