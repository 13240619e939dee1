"""Draw predictions onto an image, a folder of images or a video.

    python tools/infer.py photo.jpg --model pinas_nano_a.fmnist
    python tools/infer.py folder/ --model configs/coco/....py --checkpoint FILE --out drawn --batch-size 8
    python tools/infer.py film.mp4 --model NAME --score-thr 0.5

The folder --out gets the pictures or the video, and predictions.jsonl. Images that do not decode are named and skipped;
the exit status is then 1. docs/tools.md describes the lines.
"""

import argparse
import sys
from collections.abc import Sequence

from mmengine.config import DictAction

from pinas_zoo.mm.inference.infer import infer
from pinas_zoo.mm.inference.predictors import Choice, open_predictor


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', help='image, folder or video')
    parser.add_argument(
        '--model', required=True, help='name of the manifest, timm name of this project, or config file'
    )
    parser.add_argument('--checkpoint', help="weights; default: the name's own")
    parser.add_argument('--out', default='work_dirs/infer', help='folder for what is written; default work_dirs/infer')
    parser.add_argument('--batch-size', type=int, default=1, help='images per batch')
    parser.add_argument('--device', help='such as cpu or cuda:1; default: a GPU where there is one')
    parser.add_argument('--score-thr', type=float, default=Choice.score_thr, help='least score of an object')
    parser.add_argument('--topk', type=int, default=Choice.topk, help='classes that a classifier names')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE', help='override config entries'
    )
    parser.add_argument('--quiet', action='store_true', help='no progress bar')
    args = parser.parse_args(argv)
    try:
        choice = Choice(args.score_thr, args.topk)
        predictor = open_predictor(args.model, args.checkpoint, args.device, choice, args.cfg_options)
        outcome = infer(args.source, predictor, args.out, args.batch_size, not args.quiet)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f'infer.py: {error}', file=sys.stderr)
        return 1
    print(f'{args.out}: {outcome.written} drawn, predictions in {outcome.predictions}')
    for name, reason in outcome.failed.items():
        print(f'infer.py: {name} skipped: {reason}', file=sys.stderr)
    if outcome.failed:
        print(f'infer.py: {len(outcome.failed)} could not be read whole', file=sys.stderr)
    return 1 if outcome.failed else 0


if __name__ == '__main__':
    raise SystemExit(main())
