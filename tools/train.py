"""Train a config of this project, of mmdetection or of mmsegmentation.

    python tools/train.py configs/quickstart/....py --work-dir work_dirs/run --resume

Several processes: tools/dist_train.sh. A run that was stopped goes on exactly with --resume.
"""

import argparse
import sys
from collections.abc import Sequence

from mmengine.config import DictAction

from pinas_zoo.mm.engine.launch import LAUNCHERS, BadInputError, Options, train


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='logs and checkpoints; default work_dirs/<config name>')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from the last checkpoint of the work dir, or from this one',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='override config entries, such as train_dataloader.num_workers=0',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision (bfloat16 on a CPU)')
    parser.add_argument('--seed', type=int, help="default: the checkpoint's, the config's, else 0")
    parser.add_argument(
        '--wandb',
        nargs='?',
        const='pinas_zoo',
        metavar='PROJECT',
        help="log to Weights & Biases in TensorBoard's place",
    )
    parser.add_argument('--launcher', choices=LAUNCHERS, help='default: from the environment')
    args = parser.parse_args(argv)
    options = Options(
        work_dir=args.work_dir,
        resume=args.resume,
        cfg_options=args.cfg_options,
        amp=args.amp,
        seed=args.seed,
        launcher=args.launcher,
        wandb=args.wandb,
    )
    try:
        train(args.config, options)
    except (BadInputError, ImportError) as error:
        print(f'train.py: error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
