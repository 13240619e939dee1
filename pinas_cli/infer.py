"""Draw predictions on an image, a folder of images or a video.

    pinas infer photo.jpg --model pinas_nano_a.fmnist
    pinas infer folder/ --model configs/coco/....py --checkpoint FILE --out drawn --batch-size 8
    pinas infer film.mp4 --model NAME --score-thr 0.5
    pinas infer scan.tif --model NAME --tile 1024

The pictures or the video and predictions.jsonl are written to --out. Images that do not decode are named and skipped;
the exit status is then 1. docs/tools.md describes the lines.
"""

import argparse
import sys

from pinas_cli.options import add_cfg_options, config_path, errors_as_line, overrides


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `pinas infer`."""
    parser.add_argument('source', help='image, folder or video')
    parser.add_argument(
        '--model',
        required=True,
        help='name of the manifest (pinas download --list), timm name of this project, or config',
    )
    parser.add_argument('--checkpoint', help="weights; default: the name's own")
    parser.add_argument('--out', default='work_dirs/infer', help='folder for the results; default work_dirs/infer')
    parser.add_argument('--batch-size', type=int, default=1, help='images per batch; default 1')
    parser.add_argument('--device', help='such as cpu or cuda:1; default: a GPU if there is one')
    parser.add_argument('--score-thr', type=float, default=0.3, help='smallest score of an object; default 0.3')
    parser.add_argument('--topk', type=int, default=5, help='number of classes that a classifier names; default 5')
    parser.add_argument(
        '--max-megapixels',
        type=int,
        help='larger pictures are skipped: a small file may decode to gigabytes; default 178, with --tile 1000',
    )
    parser.add_argument(
        '--tile', type=int, metavar='SIDE', help='cut pictures into tiles of this side in px, for large ones'
    )
    parser.add_argument(
        '--tile-overlap', type=int, metavar='PX', help='smallest overlap of neighbouring tiles; default SIDE / 4'
    )
    add_cfg_options(parser)
    parser.add_argument('--quiet', action='store_true', help='no progress bar')


def run(args: argparse.Namespace) -> int:
    """Predicts and draws."""
    with errors_as_line(ValueError, OSError, ImportError, RuntimeError):
        from pinas_zoo.data.tiles import Tiling, limit_pictures
        from pinas_zoo.mm.inference.infer import infer
        from pinas_zoo.mm.inference.predictors import PredictionSettings, open_predictor

        if args.tile is None and args.tile_overlap is not None:
            raise ValueError('--tile-overlap has no effect without --tile')
        tiling = None if args.tile is None else Tiling(args.tile, args.tile_overlap)
        limit_pictures((178 if tiling is None else 1000) if args.max_megapixels is None else args.max_megapixels)
        settings = PredictionSettings(args.score_thr, args.topk)
        model, changes = config_path(args.model), overrides(args.cfg_options)
        predictor = open_predictor(model, args.checkpoint, args.device, settings, changes)
        outcome = infer(args.source, predictor, args.out, args.batch_size, not args.quiet, tiling)
    where = f', predictions in {outcome.predictions}' if outcome.written else ''
    print(f'{args.out}: {outcome.written} drawn{where}')
    if outcome.left_out:
        print(f'{args.out}: left out {outcome.left_out}')
    for name, reason in outcome.failed.items():
        print(f'{args.prog}: {name} skipped: {reason}', file=sys.stderr)
    if outcome.failed:
        print(f'{args.prog}: {len(outcome.failed)} could not be read whole', file=sys.stderr)
    return 1 if outcome.failed else 0
