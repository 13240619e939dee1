"""Evaluate a checkpoint with a config of this project, of mmdetection or of mmsegmentation.

    python tools/test.py configs/quickstart/....py work_dirs/run/iter_1000.pth
    python tools/test.py checkpoints/pinas_nano_a.fmnist.py pinas://pinas_nano_a.fmnist

With a config of the search one path of a supernet is evaluated: `--cfg-options arch=30-32-20-03`. The metrics are
printed and written to test_metrics.json in the work dir.
"""

import argparse
import sys
from collections.abc import Sequence

from mmengine.config import Config, DictAction

from pinas_zoo.mm.engine.launch import LAUNCHERS, BadInputError, Options
from pinas_zoo.mm.engine.testing import test
from pinas_zoo.mm.path_score import score_path


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='weights: a file, or pinas://NAME')
    parser.add_argument('--work-dir', help='logs and metrics; default work_dirs/<config name>')
    parser.add_argument('--out', help='predictions: FILE.pkl, or a folder of PNG masks (mmseg)')
    parser.add_argument('--show-dir', help='folder for drawn predictions')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation of the config')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='override config entries',
    )
    parser.add_argument('--amp', action='store_true', help='autocast to bfloat16')
    parser.add_argument('--seed', type=int, help="default: the config's")
    parser.add_argument('--launcher', choices=LAUNCHERS, help='default: from the environment')
    args = parser.parse_args(argv)
    options = Options(
        work_dir=args.work_dir,
        cfg_options=args.cfg_options,
        amp=args.amp,
        seed=args.seed,
        launcher=args.launcher,
    )
    if 'model' not in Config.fromfile(args.config):
        if args.out or args.show_dir or args.tta or args.amp:
            parser.error('a path of a supernet has no --out, --show-dir, --tta or --amp')
        score_path(args.config, args.checkpoint, options)
        return 0
    try:
        test(args.config, args.checkpoint, options, args.out, args.show_dir, args.tta)
    except BadInputError as error:
        print(f'test.py: error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
