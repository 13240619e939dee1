"""`python -m pinas_zoo.mmcv_ext install`: mmcv finds our operators whatever is imported first."""

import argparse
import sys
from pathlib import Path

from pinas_zoo.files import write_text
from pinas_zoo.mmcv_ext import BUILD, compiled, mmcv_folder

MARK = '# Written by `python -m pinas_zoo.mmcv_ext install`.'
STUB = f"""{MARK}
# Operators for mmcv-lite; a compiled _ext beside this file is preferred by Python. Useless without pinas_zoo.
import sys

from pinas_zoo.mmcv_ext import operators

sys.modules[__name__] = operators
"""


def install(folder: Path) -> str:
    """Puts `_ext.py` into mmcv's `folder`, or removes an old one if there are compiled operators; says what it did."""
    binary, file = compiled(folder), folder / '_ext.py'
    if binary:
        remove(folder)
        return f'mmcv has compiled operators ({binary.name}): nothing to install'
    if file.is_file() and file.read_text() == STUB:
        return f'{file} exists already'
    write_text(file, STUB)
    return f'wrote {file}: mmcv takes its operators from pinas_zoo'


def remove(folder: Path) -> str:
    """Removes the file that `install` wrote; says what it did."""
    file = folder / '_ext.py'
    if not file.is_file() or not file.read_text().startswith(MARK):
        return f'{folder} has no file of pinas_zoo'
    file.unlink()
    return f'removed {file}'


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog='python -m pinas_zoo.mmcv_ext', description=__doc__)
    parser.add_argument('action', choices=('install', 'remove'), help='write _ext.py into mmcv, or remove it')
    action = {'install': install, 'remove': remove}[parser.parse_args(arguments).action]
    folder = mmcv_folder()
    try:
        if folder is None:
            raise OSError(f'mmcv is not installed here: pip install mmcv-lite==2.1.0, or {BUILD}')
        print(action(folder))
    except OSError as error:
        print(f'pinas_zoo.mmcv_ext: error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
