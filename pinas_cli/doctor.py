"""The checks of `pinas env`, in parts: each returns rows of name, state, value and the line that fixes it."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pinas_cli.machine import cores, cpu_model
from pinas_cli.requirements import EXTRAS, wanted

__all__ = ['Row', 'examine']

SET_UP = 'bash tools/setup_env.sh'
#: The newest Python that mmengine runs on, and the oldest that the project supports.
PYTHONS = ((3, 11), (3, 13))


@dataclass(frozen=True)
class Row:
    """One finding.

    Args:
        part: Its heading.
        name: What was checked.
        state: 'ok'; 'optional' for what only some commands need; 'wrong' for what the project needs.
        value: What was found.
        fix: Command or step that fixes it; '' if there is nothing to do.
    """

    part: str
    name: str
    state: Literal['ok', 'optional', 'wrong']
    value: str
    fix: str = ''

    def record(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


def _output(*command: str) -> str:
    """The output of a program; '' if it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ''


# ---- machine ---------------------------------------------------------------------------------------------------------


def _machine() -> Iterator[Row]:
    part, now = 'machine', sys.version_info[:2]
    low, high = ('.'.join(map(str, version)) for version in PYTHONS)
    value = f'{platform.python_version()} at {sys.executable}'
    if now < PYTHONS[0]:
        yield Row(part, 'Python', 'wrong', value, f'install Python {low} to {high}, then: {SET_UP}')
    elif now > PYTHONS[1]:
        yield Row(
            part, 'Python', 'optional', f'{value}; mmengine needs at most {high}', f'PINAS_PYTHON=python{high} {SET_UP}'
        )
    else:
        yield Row(part, 'Python', 'ok', value)
    try:
        system = platform.freedesktop_os_release()['PRETTY_NAME']
    except (OSError, KeyError):
        system = platform.system()
    yield Row(part, 'system', 'ok', f'{system}, {platform.machine()}, kernel {platform.release()}')
    yield Row(part, 'processor', 'ok', f'{cpu_model()}, {cores()} cores for this process')
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    fix = '' if free >= 5 else 'free some space, or work in another folder'
    yield Row(part, 'disk', 'optional' if fix else 'ok', f'{free:.0f} GB free here', fix)


def _torch() -> Iterator[Row]:
    part = 'GPU'
    query = ('--query-gpu=name,memory.total,driver_version', '--format=csv,noheader')
    cards = _output('nvidia-smi', *query).splitlines()
    for number, card in enumerate(cards):
        yield Row(part, f'GPU {number}', 'ok', card)
    if not find_spec('torch'):
        return
    import torch

    build = f'CUDA {torch.version.cuda}' if torch.version.cuda else 'no CUDA'
    if torch.cuda.is_available():
        yield Row(part, 'torch', 'ok', f'{torch.__version__} ({build}) uses {torch.cuda.device_count()} GPU(s)')
    elif cards:
        fix = 'bash tools/setup_env.sh in a new environment, without --cpu'
        fix = 'install a newer driver' if torch.version.cuda else fix
        yield Row(part, 'torch', 'wrong', f'{torch.__version__} ({build}) cannot use the GPU', fix)
    else:
        yield Row(part, 'torch', 'ok', f'{torch.__version__} ({build}); no GPU found, everything runs on the CPU')


# ---- packages --------------------------------------------------------------------------------------------------------


def _packages() -> Iterator[Row]:
    for row in wanted():
        part = f'packages: {row.extra or "core"}'
        state: Literal['ok', 'optional', 'wrong'] = 'ok'
        if not row.fits:
            state = 'optional' if row.extra else 'wrong'
        value = row.found or f'missing ({EXTRAS[row.extra]})' if row.extra else row.found or 'missing'
        if row.found and row.provider != row.name:
            value += f' ({row.provider})'
        elif row.found and state != 'ok':
            value += f', wanted: {row.bounds}'
        yield Row(part, row.name, state, value, '' if state == 'ok' else f"pip install '{row.name}{row.bounds}'")


def _operators() -> Iterator[Row]:
    part, name = 'mmcv', 'operators'
    if not (find_spec('torch') and find_spec('timm')):
        return
    from pinas_zoo import mmcv_ext

    source = mmcv_ext.source()
    says = {
        'compiled': 'compiled',
        'installed': "torchvision's (pinas_zoo.mmcv_ext), whatever is imported first",
        'imported': "torchvision's (pinas_zoo.mmcv_ext), where pinas_zoo is imported before mmdet and mmseg",
    }
    if source == 'none':
        yield Row(part, name, 'optional', 'mmcv is missing', "pip install 'mmcv-lite==2.1.0'")
    else:
        yield Row(part, name, 'ok', says[source], mmcv_ext.INSTALL if source == 'imported' else '')
    if source != 'compiled':
        compiler = shutil.which(os.environ.get('CXX', 'c++'))
        if compiler and subprocess.run([compiler, '--version'], capture_output=True, check=False).returncode:
            compiler = None  # a name that compiles nothing, such as CXX=false
        value = compiler or 'none found; needed only to compile mmcv (deformable convolutions)'
        yield Row(part, 'C++ compiler', 'ok', value, mmcv_ext.BUILD if compiler else '')


# ---- data and weights ------------------------------------------------------------------------------------------------


def _data() -> Iterator[Row]:
    part = 'data'
    if not all(map(find_spec, ('torch', 'torchvision', 'timm'))):
        return
    from pinas_zoo.data.fashion_mnist import locate
    from pinas_zoo.data.trees import TREES

    found = locate(download=False)
    if found.folder is None:
        yield Row(part, 'Fashion-MNIST', 'optional', 'not found', 'pinas prepare fashion-mnist')
    else:
        yield Row(part, 'Fashion-MNIST', 'ok', str(found.folder))
    for name, tree in TREES.items():
        if Path(tree.root).is_dir():
            yield Row(part, name, 'ok', f'{Path(tree.root).resolve()}; `pinas prepare {name} --check` looks inside')
        else:
            fix = f'pinas prepare {name} --link FOLDER'
            yield Row(part, name, 'optional', f'no folder {tree.root} here', fix)


def _weights() -> Iterator[Row]:
    part = 'weights'
    if not (find_spec('torch') and find_spec('timm')):
        return
    from pinas_zoo.weights.download import cache_dir
    from pinas_zoo.weights.manifest import entries, package_file

    own = [entry for entry in entries().values() if entry.own]
    there = [e for e in own if any('package' in s and package_file(s['package']) for s in e.sources)]
    state: Literal['ok', 'wrong'] = 'ok' if len(there) == len(own) else 'wrong'
    fix = '' if state == 'ok' else 'git checkout -- checkpoints, or install the wheel again'
    yield Row(part, 'shipped', state, f'{len(there)} of {len(own)}', fix)
    folder = cache_dir()
    files = [path for path in folder.rglob('*') if path.is_file()] if folder.is_dir() else []
    size = sum(path.stat().st_size for path in files) / 1e6
    yield Row(part, 'cache', 'ok', f'{folder}: {len(files)} files, {size:.0f} MB ($PINAS_ZOO_HOME chooses another)')


PARTS: tuple[Callable[[], Iterator[Row]], ...] = (_machine, _packages, _torch, _operators, _data, _weights)


def examine() -> list[Row]:
    """Checks everything; a part that fails becomes a row that says so."""
    rows: list[Row] = []
    for part in PARTS:
        try:
            rows += part()
        except Exception as error:  # a broken installation may raise anything, and is what this is for
            name = part.__name__.strip('_')
            rows.append(Row(name, name, 'wrong', f'{type(error).__name__}: {error}', SET_UP))
    return rows


def report(rows: list[Row]) -> dict[str, Any]:
    """The findings as JSON: rows by part, and whether everything that the project needs is there."""
    return {'ok': all(row.state != 'wrong' for row in rows), 'rows': [row.record() for row in rows]}
