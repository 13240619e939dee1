"""Run timm's own model tests over the names of this project.

    pip download --no-deps --no-binary timm timm==1.0.31 && tar xzf timm-1.0.31.tar.gz
    python tools/dev/timm_tests.py timm-1.0.31/tests [pytest's options]

timm's wheel has no tests, so its source distribution is needed, of the installed version. `list_models` is replaced, so
that the tests run over our names instead of timm's. Tests of names that timm lists by hand are left out. Two of
`pinas_a.in1k` download the authors' weights and fail without them.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import timm

import pinas_zoo  # noqa: F401  # registers the names

_list_models = timm.list_models


def list_ours(filter: str | list[str] = '', module: str | list[str] = '', *args: Any, **kwargs: Any) -> list[str]:
    """`timm.list_models` without timm's names; `module`, by which timm selects its own families, has no effect."""
    return [name for name in _list_models(filter, '', *args, **kwargs) if name.startswith('pinas')]


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or not (file := Path(words[0], 'test_models.py')).is_file():
        print(__doc__, file=sys.stderr)
        return 2
    timm.list_models = list_ours  # type: ignore[assignment] # the parameters that the tests use
    return int(pytest.main([str(file), '-k', 'pinas', '-q', '-W', 'ignore', '-p', 'no:cacheprovider', *words[1:]]))


if __name__ == '__main__':
    sys.exit(main())
