"""Train a config of this project, of mmdetection or of mmsegmentation.

    pinas train configs/quickstart/....py --work-dir work_dirs/run --resume

Several processes: tools/dist_train.sh, or torchrun --nproc_per_node 8 -m pinas_cli train CONFIG. With --resume an
interrupted run continues exactly.
"""

import argparse

from pinas_cli.options import add_config, add_run_options, config_path, errors_as_line, run_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `pinas train`."""
    add_config(parser)
    add_run_options(parser, 'logs and checkpoints', "the checkpoint's, the config's, else 0")
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from the last checkpoint of the work dir, or from this one',
    )
    parser.add_argument(
        '--resume-with-config',
        action='store_true',
        help="continue, with the config's optimiser and schedule settings instead of the checkpoint's",
    )
    parser.add_argument(
        '--requeue',
        action='store_true',
        help='on SIGUSR1 or SIGTERM save and exit with status 75, to be started again; implies --resume',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision (bfloat16 on a CPU)')
    parser.add_argument(
        '--wandb',
        nargs='?',
        const='pinas_zoo',
        metavar='PROJECT',
        help='log to Weights & Biases instead of TensorBoard; the default project is pinas_zoo',
    )


def run(args: argparse.Namespace) -> int:
    """Trains."""
    from pinas_zoo.mm.engine.launch import train
    from pinas_zoo.mm.preflight.findings import BadInputError

    with errors_as_line(BadInputError, ImportError, FileNotFoundError):
        train(config_path(args.config), run_options(args))
    return 0
