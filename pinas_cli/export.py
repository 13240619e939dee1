"""Export a network to ONNX or torch.export, and compare the result with eager mode at other sizes than the example's.

    pinas export pinas_a pinas_a.onnx --pretrained
    pinas export pinas_b features.onnx --features --output-stride 8
    pinas export pinas_nano nano.pt2 --checkpoint FILE --fold
    pinas export pinas_nano_a.fmnist int8.onnx --pretrained --int8 --images FOLDER
    pinas export configs/coco/....py detector.onnx --checkpoint FILE --images FOLDER
    pinas export pinas_nano_a_deeplabv3_scenes segmentor.pt2

A config or a name of the manifest that has one is a detector or a segmentor: any height and width, a segmentor any
batch size, a detector one image, with NMS and RoIAlign in the file. docs/export.md lists what can be exported.

The suffix selects the form: .onnx, or .pt2 for torch.export. The file states its task, pre-processing and class names
as JSON: metadata of the ONNX file, extra files NAME.json of torch.export. The exit status is 1 if an output differs by
more than the tolerance, or a box is unmatched.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pinas_cli.options import UsageError, add_cfg_options, config_path, errors_as_line, overrides

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

#: Pictures that the result is compared on, and that int8 is calibrated with, at most.
COMPARED, CALIBRATED = 8, 512
_BOXES = (
    ', and every box needs a partner with an overlap above 0.99. Boxes with nearly equal scores, as an untrained head '
    'gives, may change places'
)


def _out(text: str) -> str:
    if Path(text).suffix not in ('.onnx', '.pt2'):
        raise argparse.ArgumentTypeError(f'must end in .onnx or .pt2, got {text}')
    return text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `pinas export`."""
    parser.add_argument(
        'model', nargs='?', help='timm name with a tag for its weights, config, or name of the manifest'
    )
    parser.add_argument('out', nargs='?', type=_out, help='file to write, .onnx or .pt2')
    parser.add_argument('--config', help='config of a detector or segmentor, instead of MODEL')
    parser.add_argument('--out', dest='file', type=_out, help='file to write, instead of OUT')
    parser.add_argument('--arch', help='architecture, for pinas and pinas_nano')
    parser.add_argument('--pretrained', action='store_true', help="use the name's own weights")
    parser.add_argument('--checkpoint', help='weight file')
    parser.add_argument('--features', action='store_true', help="all stages' features, of any size")
    parser.add_argument(
        '--output-stride',
        type=int,
        default=32,
        choices=(8, 16, 32),
        help='px of the input per last feature; default 32',
    )
    parser.add_argument('--fold', action='store_true', help='fold BN into the convolutions')
    parser.add_argument('--labels', action='store_true', help="a segmentor's class of each pixel instead of the logits")
    parser.add_argument('--int8', action='store_true', help='quantise a classifier or features, with --images; .onnx')
    parser.add_argument('--images', help='folder of pictures: compared on the first 8, calibrated with up to 512')
    parser.add_argument('--size', type=int, help="side of the example; default: the model's")
    parser.add_argument(
        '--tolerance', type=float, help='largest difference from eager; default 1e-4, of mm models 1e-3'
    )
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> int:
    """Exports and compares."""
    name, out = args.config or args.model, args.file or args.out
    if name is None or out is None:
        raise UsageError('needs a model and a file to write: pinas export MODEL OUT')
    if args.int8 and (Path(out).suffix != '.onnx' or not args.images):
        raise UsageError('--int8 writes an .onnx file and needs --images FOLDER to calibrate with')
    with errors_as_line(ValueError, OSError, ImportError):
        paths = _paths(args.images) if args.images else []
        if args.config or _has_config(name):
            return _dense(args, config_path(name), out, paths)
        return _timm(args, name, out, paths)


def _has_config(name: str) -> bool:
    """Whether a name is a config, or one of the manifest that timm does not know."""
    from pinas_zoo.weights.manifest import entries

    entry = entries().get(name)
    return name.endswith('.py') or (entry is not None and not entry.timm)


def _paths(folder: str) -> list[Path]:
    from pinas_zoo.data.images import find_images

    found = find_images(folder)
    if not found.paths:
        raise ValueError(f'{folder} has no images; give a folder of pictures')
    return [Path(folder) / path for path in found.paths]


def _pictures(paths: list[Path], count: int) -> Iterator[Image.Image]:
    from PIL import Image

    from pinas_zoo.data.images import read_picture

    for path in paths[:: max(1, len(paths) // count)][:count]:  # evenly: folders are often sorted by class
        yield Image.fromarray(read_picture(path)[0])


# ---- detectors and segmentors ----------------------------------------------------------------------------------------


def _dense(args: argparse.Namespace, name: str, out: str, paths: list[Path]) -> int:
    import torch

    from pinas_zoo.mm.export.network import difference, open_export

    if args.int8 or args.features or args.fold:
        raise UsageError('--int8, --features and --fold are for timm names')
    network = open_export(name, args.checkpoint, overrides(args.cfg_options), args.labels)
    side = args.size or 128
    count = 1 if network.detects else 2
    network.write(out, torch.randn(count, 3, side, side))
    if paths:
        pictures = _pictures(paths, COMPARED)
        checks = [torch.from_numpy(network.preprocessing(picture))[None] for picture in pictures]
    else:
        checks = [torch.randn(1, 3, side + 32, side + 50)]
    parts = [difference(network.run(out, x), network.eager(x)) for x in checks]
    apart = sum(parts[1:], parts[0])
    on = f'{len(checks)} pictures' if paths else 'noise (--images FOLDER compares on pictures)'
    if network.detects:
        print(f'wrote {out}; {apart.objects} boxes on {on}, {apart.unmatched} unmatched, smallest overlap '
              f'{apart.iou:.4f}, scores within {apart.value:.1e}')  # fmt: skip
    else:
        print(f'wrote {out}; largest difference from eager on {on}: {apart.value:.2e}')
    tolerance = args.tolerance or 1e-3
    return 0 if apart.holds(tolerance) else _differs(tolerance, _BOXES if network.detects else '')


def _differs(tolerance: float, more: str = '') -> int:
    """Says on stderr why the exit status is 1, and returns it."""
    print(f'the file differs from eager mode: the tolerance is {tolerance:g}{more}', file=sys.stderr)
    return 1


# ---- timm names ------------------------------------------------------------------------------------------------------


def _timm(args: argparse.Namespace, name: str, out: str, paths: list[Path]) -> int:
    import timm
    import torch

    import pinas_zoo  # noqa: F401  its model names
    from pinas_zoo.models.description import describe, timm_preprocessing
    from pinas_zoo.models.export import Features, compare, fold_batch_norms
    from pinas_zoo.models.int8 import quantise_onnx
    from pinas_zoo.weights.download import SCHEME

    weights = {'pretrained': args.pretrained, 'checkpoint': args.checkpoint}
    count, classes, stated = _classifier(args.checkpoint) if args.checkpoint else ({}, [], {})
    if name.partition('.')[0] not in (known := timm.list_models('pinas*')):
        raise ValueError(f'unknown model {name!r}; known: {", ".join(known)}, or a config or name of the manifest')
    with errors_as_line(RuntimeError):  # timm's, for a tag that it does not know
        net: Any = timm.create_model(name, arch=args.arch, output_stride=args.output_stride, **weights, **count).eval()
    own = str(net.pretrained_cfg.get('url') or '')
    if args.pretrained and own.startswith(SCHEME):
        classes = _classifier(own)[1]
    classes = classes or list(net.pretrained_cfg.get('label_names') or ())
    side = args.size or net.default_cfg['input_size'][-1]
    chans = net.conv1[0].in_channels
    module = Features(net) if args.features else net
    exported = fold_batch_norms(module) if args.fold else module
    example = torch.randn(2, chans, side, side)
    check = torch.randn(3, chans, *((side + 32, side + 64) if args.features else (side, side)))
    view = timm_preprocessing({**net.pretrained_cfg, **stated}, side)
    task = 'features' if args.features else 'classification'
    outputs = _export(
        exported, example, check, out, args.features, describe(task, view, [] if args.features else classes)
    )
    with torch.no_grad():
        apart = compare(module(check), outputs)
    print(f'wrote {out}; largest difference from eager: {apart:.2e}')
    if apart > (tolerance := args.tolerance or 1e-4):
        return _differs(tolerance)
    if args.int8:
        quantise_onnx(out, out, (view(picture) for picture in _pictures(paths, CALIBRATED)))
        print(f'quantised {out}: {_agreement(module, out, [view(p) for p in _pictures(paths, COMPARED)])}')
    return 0


def _agreement(module: Any, out: str, images: list[Any]) -> str:
    """How near an int8 file is to eager mode in float32."""
    import torch

    from pinas_zoo.models.export import run_onnx

    x = torch.stack([torch.from_numpy(image) for image in images])
    with torch.no_grad():
        expected = module(x)
    found = run_onnx(out, x)
    if not isinstance(expected, torch.Tensor):
        ratio = float((found[-1] - expected[-1]).norm() / expected[-1].norm())
        return f'last features within {ratio:.1%} of float32 on {len(x)} pictures'
    same = int((found[0].argmax(1) == expected.argmax(1)).sum())
    return f'{same} of {len(x)} pictures get the class of float32'


def _classifier(checkpoint: str) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """What `create_model` has to know about a weight file's classes, their names, and the input, if it states them."""
    from pinas_zoo.weights.download import find_weights
    from pinas_zoo.weights.load import read_checkpoint

    content = read_checkpoint(find_weights(checkpoint))
    count = next((len(content.state[key]) for key in ('fc.weight', 'net.fc.weight') if key in content.state), 0)
    stated = content.dataset_meta.get('preprocess') or {}
    return ({'num_classes': count} if count else {}), (content.classes if len(content.classes) == count else []), stated


def _export(
    module: Any, example: Tensor, check: Tensor, out: str, features: bool, metadata: dict[str, str]
) -> list[Tensor]:
    """Writes the file; returns what it gives for `check`."""
    import torch

    from pinas_zoo.models.export import export_onnx, export_program, run_onnx, save_program

    if Path(out).suffix == '.onnx':
        export_onnx(module, example, out, features, metadata)
        return run_onnx(out, check)
    save_program(export_program(module, example, features), out, metadata)
    return torch.export.load(out).module()(check)
