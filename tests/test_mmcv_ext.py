"""How mmcv finds its operators: compiled ones before ours, ours whatever is imported first."""

from __future__ import annotations

import importlib.machinery
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from project_copy import ROOT

from pinas_zoo import mmcv_ext
from pinas_zoo.mmcv_ext import __main__ as command
from pinas_zoo.mmcv_ext import operators

SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]


@pytest.fixture
def lite(tmp_path: Path) -> Path:
    """A folder with mmcv as mmcv-lite installs it: without compiled operators and without our file."""
    package = tmp_path / 'site' / 'mmcv'
    shutil.copytree(mmcv_ext.mmcv_folder(), package, ignore=shutil.ignore_patterns('_ext*', '__pycache__'))
    return package


def run(code: str, package: Path) -> list[str]:
    """Runs code in a Python that finds this mmcv before the environment's; returns the printed lines."""
    env = {
        **os.environ,
        'PYTHONPATH': os.pathsep.join(map(str, (package.parent, ROOT))),
        'PYTHONDONTWRITEBYTECODE': '1',
    }
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


# ---- the order of imports --------------------------------------------------------------------------------------------


@pytest.mark.mm
def test_pinas_zoo_first_is_enough(lite: Path) -> None:
    code = """
try:
    import mmcv.ops
except ImportError as error:  # else the rest shows nothing
    print(error)
import pinas_zoo, mmcv.ops, mmcv.utils
print(mmcv._ext.__file__, pinas_zoo.mmcv_ext.source())
print(mmcv.utils.collect_env()['MMCV Compiler'])
"""
    error, where, report = run(code, lite)
    assert error == "No module named 'mmcv._ext'"
    assert where == f'{operators.__file__} imported'
    assert 'operators of pinas_zoo over torchvision' in report


@pytest.mark.mm
def test_mmdet_may_be_first_where_the_file_is_installed(lite: Path) -> None:
    assert command.install(lite).startswith('wrote') and command.install(lite).endswith('exists already')
    code = 'import mmdet.apis, mmseg.apis, mmcv, pinas_zoo; print(mmcv._ext.__file__, pinas_zoo.mmcv_ext.source())'
    assert run(code, lite) == [f'{operators.__file__} installed']


def test_the_finder_is_asked_last_and_once():
    mmcv_ext.register()
    finders = [finder for finder in sys.meta_path if isinstance(finder, mmcv_ext.OperatorFinder)]
    assert len(finders) == 1
    assert finders[0].find_spec('mmcv', None) is None and finders[0].find_spec('mmcv._flow', None) is None
    assert finders[0].find_spec('mmcv._ext', None).origin == operators.__file__


# ---- compiled operators win ------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is taken for mmcv's, with no mmcv imported before."""
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv' / '__init__.py').touch()
    monkeypatch.syspath_prepend(tmp_path)
    modules = dict(sys.modules)
    for name in modules:
        if name.split('.')[0] == 'mmcv':
            del sys.modules[name]
    yield tmp_path / 'mmcv'
    sys.modules.pop('mmcv', None)
    sys.modules.update(modules)


def test_compiled_operators_win_over_finder_and_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mmcv_ext.source() == 'imported' and find_spec('mmcv._ext').origin == operators.__file__
    assert command.main(['install']) == 0
    assert mmcv_ext.source() == 'installed' and find_spec('mmcv._ext').origin == str(folder / '_ext.py')
    binary = folder / f'_ext{SUFFIX}'
    binary.touch()
    assert mmcv_ext.source() == 'compiled' and mmcv_ext.compiled(folder) == binary
    assert importlib.machinery.PathFinder.find_spec('mmcv._ext', [str(folder)]).origin == str(binary)
    assert command.main(['install']) == 0
    assert 'nothing to install' in capsys.readouterr().out and not (folder / '_ext.py').exists()


def test_only_our_own_file_is_removed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(['install']) == command.main(['remove']) == 0
    assert not (folder / '_ext.py').exists()
    (folder / '_ext.py').write_text('# of somebody else')
    assert command.main(['remove']) == 0 and (folder / '_ext.py').exists()
    assert 'has no file of pinas_zoo' in capsys.readouterr().out


def test_errors_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, 'mmcv_folder', lambda: None)
    assert command.main(['install']) == 1
    monkeypatch.setattr(command, 'mmcv_folder', lambda: Path('/proc/mmcv'))
    assert command.main(['install']) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and 'pip install mmcv-lite==2.1.0' in lines[0] and '/proc/mmcv' in lines[1]


# ---- through mmcv's own functions ------------------------------------------------------------------------------------


@pytest.mark.mm
def test_every_operator_that_mmcv_asks_for_exists():
    """mmcv asserts it when `mmcv.ops` is imported; ours are in use unless this environment has compiled ones."""
    import mmcv.ops

    assert mmcv.ops.nms is not None
    ours = getattr(sys.modules['mmcv._ext'], '__file__', '') == operators.__file__
    assert ours == (mmcv_ext.source() in ('installed', 'imported'))


@pytest.mark.mm
def test_gradients_through_mmcv(monkeypatch: pytest.MonkeyPatch) -> None:
    """By finite differences, and in half types under autocast as mmdet runs them."""
    from mmcv import ops

    for module in ('roi_align', 'focal_loss', 'nms'):
        monkeypatch.setattr(sys.modules[f'mmcv.ops.{module}'], 'ext_module', operators)
    image = torch.randn(1, 2, 9, 8, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 1.2, 1.7, 6.1, 7.4]], dtype=torch.float64)
    align = ops.RoIAlign((2, 2), 1.0, 2)
    assert torch.autograd.gradcheck(lambda x: align(x, rois), image)
    logits, target = torch.randn(5, 4, dtype=torch.float64, requires_grad=True), torch.arange(5) % 4
    assert torch.autograd.gradcheck(lambda x: ops.sigmoid_focal_loss(x, target, 2.0, 0.25), logits)
    assert torch.autograd.gradcheck(lambda x: ops.softmax_focal_loss(x, target, 2.0, 0.25), logits)
    for dtype in (torch.float16, torch.bfloat16):
        half = torch.randn(1, 2, 9, 8, dtype=dtype, requires_grad=True)
        with torch.autocast('cpu', dtype=dtype):
            pooled = align(half, rois.to(dtype))
            ops.nms(torch.rand(6, 4).to(dtype), torch.rand(6).to(dtype), 0.5)
        pooled.sum().backward()
        assert pooled.dtype == half.grad.dtype == dtype
