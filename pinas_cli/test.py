"""Evaluate a checkpoint with a config of this project, of mmdetection or of mmsegmentation.

    pinas test configs/quickstart/....py work_dirs/run/iter_1000.pth
    pinas test checkpoints/pinas_nano_a.fmnist.py pinas://pinas_nano_a.fmnist

With the config of a search, one path of a supernet is evaluated: `--cfg-options arch=30-32-20-03`. The metrics are
printed and written to test_metrics.json in the work dir.
"""

import argparse

from pinas_cli.options import UsageError, add_config, add_run_options, config_path, errors_as_line, run_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `pinas test`."""
    add_config(parser)
    parser.add_argument('checkpoint', help='weights: a file, or pinas://NAME')
    add_run_options(parser, 'logs and metrics', "the config's")
    parser.add_argument('--out', help='predictions: FILE.pkl, or a folder of PNG masks (mmseg)')
    parser.add_argument('--show-dir', help='folder for drawn predictions, of every image')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation of the config')
    parser.add_argument('--amp', action='store_true', help='autocast to bfloat16')


def run(args: argparse.Namespace) -> int:
    """Evaluates."""
    from pinas_zoo.mm.engine.testing import test
    from pinas_zoo.mm.preflight.bad_input import read_config
    from pinas_zoo.mm.search import score_path

    path = config_path(args.config)
    with errors_as_line(ValueError):
        single = 'model' in read_config(path)
    if not single:
        if args.out or args.show_dir or args.tta or args.amp:
            raise UsageError('--out, --show-dir, --tta and --amp do not apply to a path of a supernet')
        with errors_as_line(ValueError, OSError):
            score_path(path, args.checkpoint, run_options(args))
        return 0
    with errors_as_line(ValueError, OSError):
        test(path, args.checkpoint, run_options(args), args.out, args.show_dir, args.tta)
    return 0
