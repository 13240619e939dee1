"""Serve a page in the browser: a picture in; boxes, masks, segments and classes out.

    pinas demo
    pinas demo --model configs/coco/....py --checkpoint FILE --device cuda:0

Without --model, the nano networks of the project answer: a detector, a segmentor and a classifier. The page needs
gradio (pip install 'pinas-zoo[demo]'). It has no password: with --host 0.0.0.0 everyone who reaches this machine may
use it. Ctrl-C ends it and deletes the pictures that were sent.
"""

import argparse
from importlib.util import find_spec

from pinas_cli.options import CommandError, add_cfg_options, config_path, errors_as_line, overrides


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `pinas demo`."""
    parser.add_argument('--model', help='as in pinas infer: name or config of one network; default: three nano ones')
    parser.add_argument('--checkpoint', help="weights of --model; default: the name's own")
    parser.add_argument('--device', help='such as cpu or cuda:1; default: a GPU if there is one')
    parser.add_argument('--host', default='127.0.0.1', help='address to listen on; default 127.0.0.1')
    parser.add_argument('--port', type=int, help='default: the first free one from 7860')
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> int:
    """Serves the page."""
    if missing := [name for name in ('gradio', 'mmdet', 'mmseg') if find_spec(name) is None]:
        raise CommandError(f"the page needs {', '.join(missing)}, not installed here: pip install 'pinas-zoo[demo]'")
    with errors_as_line(ValueError, OSError, ImportError, RuntimeError):
        from pinas_zoo.data.tiles import limit_pictures
        from pinas_zoo.mm.demo import open_networks, serve

        limit_pictures(178)
        model = None if args.model is None else config_path(args.model)
        serve(open_networks(model, args.checkpoint, args.device, overrides(args.cfg_options)), args.host, args.port)
    return 0
