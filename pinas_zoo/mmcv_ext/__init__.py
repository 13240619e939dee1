"""mmcv's operators without a compiler: mmcv-lite lacks only the compiled `mmcv._ext`, which `operators` replaces.

`import pinas_zoo` appends a finder to `sys.meta_path` that answers for `mmcv._ext` only if nothing else does, so a
compiled one always wins. `python -m pinas_zoo.mmcv_ext install` makes it independent of the order of imports: it puts a
file `_ext.py` into mmcv's folder, where Python prefers a compiled `_ext` too. Nothing here imports torch or mmcv.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

NAME = 'mmcv._ext'
#: Builds mmcv with all of its operators.
BUILD = 'bash tools/setup_env.sh --mmcv-ops'
#: Makes the operators independent of the order of imports.
INSTALL = 'python -m pinas_zoo.mmcv_ext install'


class OperatorFinder(MetaPathFinder):
    """Loads `operators.py` as `mmcv._ext`; it is the last finder, so it is used only if mmcv's folder has no `_ext`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return spec_from_file_location(fullname, Path(__file__).with_name('operators.py')) if fullname == NAME else None


def register() -> None:
    """Appends the finder once per process."""
    if not any(isinstance(finder, OperatorFinder) for finder in sys.meta_path):
        sys.meta_path.append(OperatorFinder())


def mmcv_folder() -> Path | None:
    """Where mmcv (or mmcv-lite) is installed; None if it is not. Imports nothing."""
    spec = find_spec('mmcv')
    # A folder without __init__.py, such as one that an uninstalled mmcv left, is a namespace, not mmcv.
    return Path(spec.origin).parent if spec and spec.origin else None


def compiled(folder: Path) -> Path | None:
    """The compiled operators in mmcv's `folder` that this Python can load, or None."""
    files = (folder / f'_ext{suffix}' for suffix in EXTENSION_SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def source() -> str:
    """Which operators `import mmcv.ops` gets: 'none' (mmcv is missing), 'compiled', 'installed' or 'imported'.

    'installed' are ours whatever is imported first, 'imported' are ours only after `import pinas_zoo`.
    """
    folder = mmcv_folder()
    if folder is None:
        return 'none'
    if compiled(folder):
        return 'compiled'
    return 'installed' if (folder / '_ext.py').is_file() else 'imported'
