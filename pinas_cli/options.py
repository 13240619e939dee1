"""What several commands share: options, and errors printed as one line. Only the standard library is imported here."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pinas_zoo.mm.engine.options import Options

#: As in pinas_zoo.mm.engine.options; the help does not import it (tests/test_cli.py compares all such copies).
LAUNCHERS = ('none', 'pytorch', 'slurm')


class CommandError(Exception):
    """An error of the user's input: one line on stderr and an exit status, without a traceback."""

    status = 1


class UsageError(CommandError):
    """Arguments that do not go together; argparse's exit status."""

    status = 2


@contextmanager
def errors_as_line(*kinds: type[Exception]) -> Iterator[None]:
    """Turns these exceptions into a `CommandError`."""
    try:
        yield
    except kinds as error:
        raise CommandError(error) from error


# ---- configs ---------------------------------------------------------------------------------------------------------


def _override(text: str) -> str:
    key, separator, _ = text.partition('=')
    if not key.strip() or not separator:
        raise argparse.ArgumentTypeError(f'must be KEY=VALUE, got {text!r}')
    return text


def add_part(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, line: str
) -> argparse.ArgumentParser:
    """The parser of a part of a command; `line` explains it in both helps."""
    return commands.add_parser(name, help=line, description=f'{line[0].upper()}{line[1:]}.')


def add_config(parser: argparse.ArgumentParser, what: str = 'config file') -> None:
    """The positional argument CONFIG."""
    parser.add_argument(
        'config', help=f'{what}; one under configs/ or checkpoints/ is also found in the installed package'
    )


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """--cfg-options."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action='extend',
        type=_override,
        default=[],
        metavar='KEY=VALUE',
        help='override entries of the config, such as train_dataloader.num_workers=0',
    )


def add_run_options(parser: argparse.ArgumentParser, written: str, seed: str) -> None:
    """Options of every command that runs a config.

    Args:
        parser: Parser of a command.
        written: What is written to the work dir.
        seed: Where the seed comes from without --seed.
    """
    parser.add_argument('--work-dir', help=f'folder for {written}; default work_dirs/<config name>')
    add_cfg_options(parser)
    parser.add_argument('--seed', type=int, help=f'seed of all random numbers; default {seed}')
    parser.add_argument(
        '--launcher', choices=LAUNCHERS, help='how the processes were started; default: detected from the environment'
    )


def config_path(path: str) -> str:
    """The path, or the file with that relative path in the installed package."""
    if Path(path).is_file():
        return path
    from pinas_zoo.weights.manifest import package_file

    return str(package_file(path) or path)


def overrides(words: Sequence[str]) -> dict[str, Any]:
    """The values of --cfg-options, read as mmengine reads them."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser()
    parser.add_argument('values', nargs='*', action=DictAction, default={})
    return parser.parse_args(['--', *words]).values if words else {}


def run_options(args: argparse.Namespace) -> Options:
    """The values of `add_run_options` and of options with the same names."""
    from pinas_zoo.mm.engine.options import Options

    names = ('work_dir', 'resume', 'resume_with_config', 'amp', 'seed', 'launcher', 'wandb', 'requeue')
    given = {name: getattr(args, name) for name in names if name in args}
    return Options(cfg_options=overrides(args.cfg_options), **given)
