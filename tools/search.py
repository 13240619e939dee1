"""Search a supernet for its best architecture; continues what the work dir holds of the same search.

    python tools/search.py configs/quickstart/....py --checkpoint work_dirs/linear/iter_300.pth

Writes archs.jsonl (one line an evaluation), best.json, trace.png and pareto.png; tools/derive.py takes best.json on.
"""

import argparse
from collections.abc import Sequence

from mmengine.config import DictAction

from pinas_zoo.mm.engine.launch import LAUNCHERS, Options
from pinas_zoo.mm.search import search


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of configs/search/ or configs/quickstart/')
    parser.add_argument('--checkpoint', required=True, help='checkpoint of the linear stage')
    parser.add_argument('--work-dir', help='default work_dirs/<config name>')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE')
    parser.add_argument('--seed', type=int, help="default: the config's, else 0")
    parser.add_argument('--launcher', choices=LAUNCHERS, help='default: from the environment')
    args = parser.parse_args(argv)
    options = Options(args.work_dir, None, args.cfg_options, False, args.seed, args.launcher)
    best = search(args.config, args.checkpoint, options)
    if best.loss is not None:  # rank 0 has the log
        print(f'best of the search: {best.arch}, score {best.score:.4f}, loss {best.loss:.4f} in the supernet')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
