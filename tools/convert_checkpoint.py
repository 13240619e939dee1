"""Convert a checkpoint that the authors of Pi-NAS released into a file of this project.

    python tools/convert_checkpoint.py PiNAS_cls.pth.tar pinas_a.safetensors
    python tools/convert_checkpoint.py PiNAS_trans_ade.pth.tar deeplabv3_ade20k.pth --kind deeplabv3 --arch pinas_b

The kind is recognised and the architecture found; both are checked against what is asked for. The report is printed.
Where a weight is left over, missing or misshapen, nothing is written and the exit status is 1. The real files could not
be had here: the names come from the released code.
"""

import argparse
import sys
from collections.abc import Sequence

import pinas_zoo.weights.entry_points as backbone
from pinas_zoo.space import SPACES
from pinas_zoo.weights.released.convert import KINDS, convert_file

ARCHS = {'pinas_a': backbone.PINAS_A, 'pinas_b': backbone.PINAS_B}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='SRC', help='released checkpoint')
    parser.add_argument('destination', metavar='DST', help='.safetensors, or .pth as mmengine loads it')
    parser.add_argument('--kind', choices=KINDS, help='refuse any other kind')
    parser.add_argument('--arch', help='refuse any other architecture; pinas_a, pinas_b, or one by stage')
    parser.add_argument('--space', choices=sorted(SPACES), help='default: the known space that fits')
    args = parser.parse_args(argv)
    try:
        converted = convert_file(
            args.source,
            args.destination,
            args.kind,
            ARCHS.get(args.arch, args.arch),
            args.space and SPACES[args.space],
        )
    except (ValueError, OSError) as error:
        print(f'convert_checkpoint: error: {error}', file=sys.stderr)
        return 1
    print(converted.report.summary())
    print(f'wrote {args.destination}: {converted.kind}, architecture {converted.metadata["arch"] or "any (supernet)"}')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
