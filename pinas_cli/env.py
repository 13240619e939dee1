"""Say what is installed, what is missing, and the command that fixes it.

    pinas env             pinas env --json

Python, system, packages and their requirements, GPUs and driver, mmcv's operators, data, weights. A line begins with
`ok`; with `-` if something is missing that only some commands need; or with `!!` if the project needs it, and the exit
status is then 1. It also runs where packages are missing, and downloads nothing.
"""

import argparse
import json

from pinas_cli.doctor import Row, examine, report

MARKS = {'ok': 'ok', 'optional': '-', 'wrong': '!!'}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `pinas env`."""
    parser.add_argument('--json', action='store_true', help='the same as JSON, for bug reports and scripts')


def _print(rows: list[Row]) -> None:
    width, part = max(len(row.name) for row in rows), ''
    for row in rows:
        if row.part != part:
            part = row.part
            print(f'\n{part}' if row is not rows[0] else part)
        print(f'  {MARKS[row.state]:2}  {row.name:{width}}  {row.value}')
        if row.fix:
            print(f'  {"":2}  {"":{width}}    {row.fix}')


def run(args: argparse.Namespace) -> int:
    """Examines and prints; returns 1 if something that the project needs is missing."""
    rows = examine()
    values = report(rows)
    if args.json:
        print(json.dumps(values, indent=1))
    else:
        _print(rows)
        if values['ok']:
            print('\nEverything that the project needs is installed.')
        else:
            print('\nLines with !! are missing or too old; in a clone, `bash tools/setup_env.sh` installs everything.')
    return 0 if values['ok'] else 1
