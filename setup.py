"""The build step that pyproject.toml cannot say: configs, tools and small weights become `pinas_zoo/.mim`.

mmengine resolves `_base_ = 'pinas_zoo::...'` in that folder. A wheel gets copies; an editable install gets links, so
that an edited config is the one that is read.
"""

import os
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SHIPPED = ('configs', 'tools', 'checkpoints', 'model-index.yml')


class BuildWithMim(build_py):
    """`build_py` that also fills `pinas_zoo/.mim`."""

    def run(self):
        super().run()
        base = ROOT if self.editable_mode else Path(self.build_lib)
        mim = base / 'pinas_zoo' / '.mim'
        shutil.rmtree(mim, ignore_errors=True)
        mim.mkdir(parents=True)
        for name in SHIPPED:
            source = ROOT / name
            if not source.exists():
                continue
            if self.editable_mode:
                os.symlink(Path('..', '..', name), mim / name, target_is_directory=source.is_dir())
            elif source.is_dir():
                shutil.copytree(source, mim / name, ignore=shutil.ignore_patterns('__pycache__'))
            else:
                shutil.copy2(source, mim / name)


setup(cmdclass={'build_py': BuildWithMim})
