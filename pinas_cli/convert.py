"""Convert a checkpoint that the authors of Pi-NAS released into a file of this project.

    pinas convert PiNAS_cls.pth.tar pinas_a.safetensors
    pinas convert PiNAS_trans_ade.pth.tar deeplabv3_ade20k.pth --kind deeplabv3 --arch pinas_b

The kind and the architecture are recognised, and checked against the options. The report is printed. If a weight is
unexpected, missing or mismatched, nothing is written and the exit status is 1. The real files could not be obtained
here: the names come from the released code.
"""

import argparse

from pinas_cli.options import errors_as_line

KINDS = ('classifier', 'deeplabv3', 'mask-rcnn', 'supernet', 'supernet-training')
SPACES = ('nas_bench_macro', 'pinas', 'pinas_nano', 'pinas_patch', 'pinas_tiny')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `pinas convert`."""
    parser.add_argument('source', metavar='SRC', help='released checkpoint')
    parser.add_argument('destination', metavar='DST', help='.safetensors, or .pth as mmengine loads it')
    parser.add_argument('--kind', choices=KINDS, help='refuse any other kind')
    parser.add_argument('--arch', help='refuse any other architecture; pinas_a, pinas_b, or one by stage')
    parser.add_argument('--space', choices=SPACES, help='default: the known space that fits')


def run(args: argparse.Namespace) -> int:
    """Converts and reports."""
    from pinas_zoo.models.network import PINAS_A, PINAS_B
    from pinas_zoo.space import get_space
    from pinas_zoo.weights.released.convert import convert_file

    arch = {'pinas_a': PINAS_A, 'pinas_b': PINAS_B}.get(args.arch, args.arch)
    space = args.space and get_space(args.space)
    with errors_as_line(ValueError, OSError):
        converted = convert_file(args.source, args.destination, args.kind, arch, space)
    print(converted.report.summary())
    print(f'wrote {args.destination}: {converted.kind}, architecture {converted.metadata["arch"] or "any (supernet)"}')
    return 0
