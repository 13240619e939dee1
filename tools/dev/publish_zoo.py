"""Publish finished trainings as the small weights of this project: checkpoints/ and the manifest's rows.

    bash tools/dev/nano_weights.sh && python tools/dev/publish_zoo.py work_dirs/nano [ANOTHER_RUN ...]
    python tools/dev/make_tables.py

A RUN is a folder of trainings: classifiers, a linear stage with its pre-training and search, detectors and segmentors
with their scenes. Missing ones are left out. Each is written as NAME.safetensors, NAME.py (config), NAME.log (JSON
lines) and NAME.md (model card); tools/test.py measures the file, and its result is written to card and row.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pinas_zoo.mm.release.zoo import publish_zoo
from pinas_zoo.weights.manifest import MANIFEST


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'runs', nargs='+', type=Path, metavar='RUN', help='folder of trainings, as written by nano_weights.sh'
    )
    parser.add_argument('--out', type=Path, default=Path('checkpoints'), help='default: checkpoints')
    parser.add_argument('--hardware', default='hardware not stated', help='what they were trained on, for the cards')
    parser.add_argument('--manifest', type=Path, default=MANIFEST, help="default: the project's")
    parser.add_argument('--anew', action='store_true', help='remove earlier rows of our own weights from the manifest')
    args = parser.parse_args(argv)
    try:
        rows = publish_zoo(args.runs, args.out, args.hardware, args.manifest, args.anew)
    except (ValueError, OSError, RuntimeError) as error:
        print(f'publish_zoo: error: {error}', file=sys.stderr)
        return 1
    for row in rows:
        print(f'{row["name"]}: {row["size"]} bytes, {row["results"][0]["values"]}')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
