"""Export a network to ONNX or torch.export, and compare the result with eager on other sizes than the example's.

    python tools/export.py pinas_a pinas_a.onnx --pretrained
    python tools/export.py pinas_b features.onnx --features --output-stride 8
    python tools/export.py pinas_nano nano.pt2 --checkpoint FILE --fold

The suffix chooses the form: .onnx, or .pt2 for torch.export. The exit status is 1 when an output differs by more than
the tolerance.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import timm
import torch

from pinas_zoo.files import write_atomic
from pinas_zoo.models.export import Features, compare, export_onnx, export_program, fold_batch_norms, run_onnx


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', help='timm name, with a tag for its weights')
    parser.add_argument('out', help='.onnx or .pt2')
    parser.add_argument('--arch', help='architecture, for pinas and pinas_nano')
    parser.add_argument('--pretrained', action='store_true')
    parser.add_argument('--checkpoint', help='weight file')
    parser.add_argument('--features', action='store_true', help="all stages' features, of any size")
    parser.add_argument('--output-stride', type=int, default=32, choices=(8, 16, 32))
    parser.add_argument('--fold', action='store_true', help='fold BN into the convolutions')
    parser.add_argument('--size', type=int, help="side of the example; default: the model's")
    parser.add_argument('--tolerance', type=float, default=1e-4)
    args = parser.parse_args(argv)
    suffix = Path(args.out).suffix
    if suffix not in ('.onnx', '.pt2'):
        parser.error(f'OUT must end in .onnx or .pt2, got {args.out}')
    net = timm.create_model(
        args.model,
        pretrained=args.pretrained,
        arch=args.arch,
        checkpoint=args.checkpoint,
        output_stride=args.output_stride,
    ).eval()
    side = args.size or net.default_cfg['input_size'][-1]
    chans = net.conv1[0].in_channels
    module = Features(net) if args.features else net
    exported = fold_batch_norms(module) if args.fold else module
    example = torch.randn(2, chans, side, side)
    check = torch.randn(3, chans, *((side + 32, side + 64) if args.features else (side, side)))
    if suffix == '.onnx':
        export_onnx(exported, example, args.out, args.features)
        outputs = run_onnx(args.out, check)
    else:
        program = export_program(exported, example, args.features)
        write_atomic(args.out, lambda temporary: torch.export.save(program, open(temporary, 'wb')))  # noqa: SIM115
        outputs = torch.export.load(args.out).module()(check)
    with torch.no_grad():
        apart = compare(module(check), outputs)
    print(f'wrote {args.out}; largest difference from eager: {apart:.2e}')
    return 0 if apart <= args.tolerance else 1


if __name__ == '__main__':
    raise SystemExit(main())
