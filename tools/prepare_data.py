"""Make data sets ready: `prepare_data.py scenes` composes detection and segmentation sets from real pixels."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence

from pinas_zoo.data import open_source
from pinas_zoo.scenes import FORMATS, SceneSettings, prepare_scenes


class ProgressLine:
    """One line on stderr per step, rewritten in place; into a file only its last state goes."""

    def __init__(self) -> None:
        self.start, self.last, self.step = time.monotonic(), 0.0, ''

    def __call__(self, step: str, done: int, total: int) -> None:
        now = time.monotonic()
        if step != self.step:
            self.start, self.step = now, step
        if done < total and (now - self.last < 0.1 or not sys.stderr.isatty()):
            return
        self.last = now
        bar = '#' * (30 * done // total)
        rate = done / max(now - self.start, 1e-9)
        end = '\n' if done == total else ''
        print(f'\r{step:<18} [{bar:<30}] {done}/{total}  {rate:.0f}/s ', end=end, file=sys.stderr, flush=True)


def run_scenes(args: argparse.Namespace) -> None:
    settings = SceneSettings(args.size, args.train, args.val, args.seed, tuple(args.formats))
    train, val = (open_source({'kind': args.data, 'split': split}) for split in ('train', 'test'))
    start = time.monotonic()
    manifest, written = prepare_scenes(args.root, settings, train, val, args.overwrite, ProgressLine())
    what = f'{", ".join(settings.formats)}: {args.train} + {args.val} scenes each, from {train.description["data"]}'
    if written:
        print(f'{args.root}: wrote {manifest["files"]} files in {time.monotonic() - start:.1f} s ({what})')
    else:
        print(f'{args.root}: already there with these settings, nothing to do ({what})')
    print(json.dumps({'root': args.root, 'written': written, 'sha256': manifest['sha256']}))


def add_scenes_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser('scenes', help='compose COCO, ADE20K and Cityscapes style sets from small real images')
    parser.add_argument('--root', default='data/scenes', help='folder to make')
    parser.add_argument('--size', type=int, default=SceneSettings.size, help='height of a scene in px')
    parser.add_argument('--train', type=int, default=SceneSettings.train, help='training scenes per format')
    parser.add_argument('--val', type=int, default=SceneSettings.val, help='validation scenes per format')
    parser.add_argument('--seed', type=int, default=SceneSettings.seed)
    parser.add_argument('--formats', nargs='+', choices=FORMATS, default=list(FORMATS))
    parser.add_argument('--data', choices=('fashion-mnist', 'digits'), default='fashion-mnist', help='where items are')
    parser.add_argument('--overwrite', action='store_true', help='replace a set that has other settings')
    parser.set_defaults(run=run_scenes)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    add_scenes_parser(commands)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except (ValueError, ImportError, OSError) as error:
        print(f'prepare_data.py {args.command}: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
