"""Export a network to ONNX or torch.export, and compare the result with eager mode at other sizes than the example's.

    pinas export pinas_a pinas_a.onnx --pretrained
    pinas export pinas_b features.onnx --features --output-stride 8
    pinas export pinas_nano nano.pt2 --checkpoint FILE --fold

The suffix selects the form: .onnx, or .pt2 for torch.export. If the weights state the names of the classes, these are
stored as JSON: metadata `classes` of the ONNX file, extra file `classes.json` of torch.export. The exit status is 1 if
an output differs by more than the tolerance.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def _out(text: str) -> str:
    if Path(text).suffix not in ('.onnx', '.pt2'):
        raise argparse.ArgumentTypeError(f'must end in .onnx or .pt2, got {text}')
    return text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `pinas export`."""
    parser.add_argument('model', help='timm name, with a tag for its weights')
    parser.add_argument('out', type=_out, help='file to write, .onnx or .pt2')
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
    parser.add_argument('--size', type=int, help="side of the example; default: the model's")
    parser.add_argument('--tolerance', type=float, default=1e-4, help='largest difference from eager; default 1e-4')


def run(args: argparse.Namespace) -> int:
    """Exports and compares."""
    import timm
    import torch

    import pinas_zoo  # noqa: F401  its model names
    from pinas_zoo.models.export import Features, compare, fold_batch_norms

    weights = {'pretrained': args.pretrained, 'checkpoint': args.checkpoint}
    count, classes = _classifier(args.checkpoint) if args.checkpoint else ({}, [])
    net: Any = timm.create_model(
        args.model, arch=args.arch, output_stride=args.output_stride, **weights, **count
    ).eval()
    classes = classes or list(net.pretrained_cfg.get('label_names') or ())
    side = args.size or net.default_cfg['input_size'][-1]
    chans = net.conv1[0].in_channels
    module = Features(net) if args.features else net
    exported = fold_batch_norms(module) if args.fold else module
    example = torch.randn(2, chans, side, side)
    check = torch.randn(3, chans, *((side + 32, side + 64) if args.features else (side, side)))
    outputs = _export(exported, example, check, args.out, args.features, [] if args.features else classes)
    with torch.no_grad():
        apart = compare(module(check), outputs)
    print(f'wrote {args.out}; largest difference from eager: {apart:.2e}')
    return 0 if apart <= args.tolerance else 1


def _classifier(checkpoint: str) -> tuple[dict[str, Any], list[str]]:
    """What `create_model` has to know about the classes of a weight file, and their names if it states them."""
    from pinas_zoo.weights.download import find_weights
    from pinas_zoo.weights.load import read_checkpoint

    content = read_checkpoint(find_weights(checkpoint))
    count = next((len(content.state[key]) for key in ('fc.weight', 'net.fc.weight') if key in content.state), 0)
    return ({'num_classes': count} if count else {}), (content.classes if len(content.classes) == count else [])


def _export(
    module: nn.Module, example: Tensor, check: Tensor, out: str, features: bool, classes: list[str]
) -> list[Tensor]:
    """Writes the file; returns what it gives for `check`."""
    import json

    import torch

    from pinas_zoo.files import write_atomic
    from pinas_zoo.models.export import export_onnx, export_program, run_onnx

    if Path(out).suffix == '.onnx':
        export_onnx(module, example, out, features, classes)
        return run_onnx(out, check)
    program = export_program(module, example, features)
    extra = {'classes.json': json.dumps(classes, ensure_ascii=False)} if classes else None
    write_atomic(out, lambda path: torch.export.save(program, open(path, 'wb'), extra_files=extra))  # noqa: SIM115
    return torch.export.load(out).module()(check)
