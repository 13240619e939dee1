"""Write the backbone that a search found: backbone.safetensors, with its architecture and origin.

python tools/derive.py SEARCH_CONFIG --checkpoint linear.pth --arch best.json --out backbone.safetensors
"""

import argparse
from collections.abc import Sequence

from mmengine.config import DictAction

from pinas_zoo.mm.engine.launch import Options
from pinas_zoo.mm.search import derive_best


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of the search')
    parser.add_argument('--checkpoint', required=True, help='checkpoint of the supernet: linear stage or pre-training')
    parser.add_argument('--arch', required=True, help='best.json of the search, or an architecture')
    parser.add_argument('--out', required=True, help='.safetensors file to write')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE')
    args = parser.parse_args(argv)
    derive_best(args.config, args.checkpoint, args.arch, args.out, Options(cfg_options=args.cfg_options))
    print(f'wrote {args.out}')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
