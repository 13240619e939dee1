"""`pinas`: the table of commands, and how one is called."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

from pinas_cli.options import CommandError

#: Every command, with its line in `pinas --help`. A new one is a row here and a module of that name with
#: `add_arguments(parser)` and `run(args)`, which returns the exit status.
COMMANDS = {
    'quickstart': 'the whole method in minutes on two CPU cores, with a report',
    'train': 'train a config of this project, of mmdetection or of mmsegmentation',
    'test': 'evaluate a checkpoint with a config',
    'search': 'search a supernet for its best architecture',
    'shortlist': 'train the best architectures of a search and random ones stand-alone, and choose one',
    'derive': 'write the backbone that a search found, or those of its Pareto front',
    'latency': 'measure a latency table of a search space on this device',
    'infer': 'draw predictions on an image, a folder of images or a video',
    'demo': 'serve a page in the browser: a picture in, predictions out',
    'probe': 'evaluate frozen features by kNN and linear probes',
    'analyze': 'parameters, MACs and latency of networks; learning curves of runs',
    'export': 'write a network as ONNX or torch.export',
    'download': 'download weights by name',
    'convert': 'convert a checkpoint that the authors of Pi-NAS released',
    'publish': 'write a checkpoint as files for publication',
    'prepare': 'prepare data sets',
    'benchmark': 'measure the speed of training, ranking, inference and loading',
    'rank': 'measure how well supernets rank architectures',
    'env': 'say what is installed, what is missing, and how to fix it',
}


class Main(Protocol):
    """The main function of a command."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


def _fill(parser: argparse.ArgumentParser, name: str) -> None:
    module = import_module(f'pinas_cli.{name}')
    parser.description, parser.formatter_class = module.__doc__, argparse.RawDescriptionHelpFormatter
    parser.set_defaults(prog=parser.prog, run=module.run)
    module.add_arguments(parser)


def _call(args: argparse.Namespace) -> int:
    # On importing mmengine, which still uses it; a user of a command cannot change that.
    warnings.filterwarnings('ignore', 'pkg_resources is deprecated', UserWarning)
    try:
        return args.run(args)
    except CommandError as error:
        print(f'{args.prog}: error: {error}', file=sys.stderr)
        return error.status


def command(name: str) -> Main:
    """The main function of one command, for tools/*.py; help and errors then have the name of the script."""

    def main(argv: Sequence[str] | None = None) -> int:
        parser = argparse.ArgumentParser()
        _fill(parser, name)
        return _call(parser.parse_args(argv))

    return main


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `pinas`.

    Args:
        argv: Words after the program's name; None takes those of this process.

    Returns:
        The exit status.
    """
    words = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog='pinas',
        description='Pi-NAS: supernets, architecture search, and searched backbones in timm, mmdet and mmseg.',
    )
    parser.add_argument('--version', action='store_true', help='print the version and exit')
    commands = parser.add_subparsers(metavar='COMMAND', title='commands (pinas COMMAND --help explains one)')
    for name, line in COMMANDS.items():
        subparser = commands.add_parser(name, help=line)
        if name in words[:1]:  # of the others, only their lines in the help are needed
            _fill(subparser, name)
    args = parser.parse_args(words)
    if args.version:
        print(f'pinas_zoo {_version()}')
        return 0
    if 'run' not in args:
        parser.print_help()
        return 2
    return _call(args)


def _version() -> str:
    try:
        return version('pinas-zoo')
    except PackageNotFoundError:  # on PYTHONPATH only
        from pinas_zoo import __version__

        return __version__
