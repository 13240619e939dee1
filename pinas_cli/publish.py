"""Write a checkpoint as files for publication: timm's hub folder with a model card, and mmengine's form.

    pinas publish work_dirs/retrain/iter_1000.pth published/nano \\
        --data Fashion-MNIST --metric "top-1=91.2" --protocol "test set, 28 px"

`timm.create_model('local-dir:published/nano', pretrained=True)` loads the folder.
"""

import argparse
import json

from pinas_cli.options import errors_as_line


def _metric(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition('=')
    if not name:
        raise argparse.ArgumentTypeError(f'must be NAME=VALUE, got {text!r}')
    return name, float(value)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `pinas publish`."""
    parser.add_argument('checkpoint', metavar='CKPT', help='.safetensors or .pth')
    parser.add_argument('folder', metavar='DIR', help='folder to write')
    parser.add_argument('--name', help="stem of the mmengine file; default: the folder's name")
    parser.add_argument('--data', default='not stated', help='training data')
    parser.add_argument('--recipe', default='not stated', help='config, seed, hardware')
    parser.add_argument(
        '--metric', type=_metric, action='append', default=[], metavar='NAME=VALUE', help='a result; may be repeated'
    )
    parser.add_argument('--protocol', default='not stated', help='how the metrics were measured')
    parser.add_argument('--limits', default='not stated', help='what the network should not be used for')
    parser.add_argument('--licence', help="licence of the weights; default: the file's")
    parser.add_argument(
        '--preprocess',
        type=json.loads,
        default={},
        metavar='JSON',
        help="input_size, mean, std, crop_pct as JSON; default: the checkpoint's, or the manifest's",
    )
    parser.add_argument(
        '--push', metavar='USER/NAME', help='also upload the folder to the Hugging Face Hub; needs `hf auth login`'
    )
    parser.add_argument('--private', action='store_true', help='make a repository that --push creates private')


def run(args: argparse.Namespace) -> int:
    """Publishes."""
    from pinas_zoo.weights.model_card import Card
    from pinas_zoo.weights.publish import publish, push_to_hub

    card = Card(args.data, args.recipe, dict(args.metric), args.protocol, args.limits, args.licence)
    with errors_as_line(ValueError, OSError):
        published = publish(args.checkpoint, args.folder, card, args.preprocess, args.name)
    print(f"timm:     timm.create_model('local-dir:{published.folder}', pretrained=True)")
    print(f'mmengine: {published.mmengine}')
    if args.push:
        with errors_as_line(ValueError, OSError):
            print(f'hub:      {push_to_hub(published.folder, args.push, args.private)}')
    return 0
