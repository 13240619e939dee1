"""examples/: what a researcher copies runs, is short, and needs no more than torch."""

import ast
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fork_server import python
from PIL import Image

from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.weights.loading import load_supernet

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / 'examples/pretrain.py'


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng, folder = np.random.default_rng(0), tmp_path / 'images'
    folder.mkdir()
    for index in range(8):
        Image.fromarray(rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(folder / f'{index}.png')
    return folder


def run(*words: str) -> subprocess.CompletedProcess:
    environment = dict(os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='', PYTHONPATH=str(ROOT))
    command = [python(), str(EXAMPLE), *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)


def test_pretraining_runs(images: Path, tmp_path: Path) -> None:
    out, small = tmp_path / 'new/supernet.pth', ('--space', 'pinas_nano', '--size', '28', '--workers', '0')
    done = run(str(images), '--out', str(out), *small, '--epochs', '2', '--batch-size', '4', '--queue', '16',
               '--log-every', '1')  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    losses = [float(value) for value in re.findall(r"'loss': '([\d.]+)'", done.stdout)]
    assert len(losses) == 4 and all(math.isfinite(loss) and loss > 0 for loss in losses)
    paths = re.findall(r'paths ([\d-]+) ([\d-]+)', done.stdout)
    assert len(set(paths)) == 4
    assert all(a != b for first, second in paths for a, b in zip(first, second) if a != '-')
    trained = load_supernet(out, 'pinas_nano').state_dict()  # as the linear stage and the search read it
    torch.manual_seed(0)
    fresh = SuperNet('pinas_nano').state_dict()
    moved = [key for key, value in trained.items() if not torch.equal(value, fresh[key])]
    assert 'conv1.0.weight' in moved and len(moved) < len(trained)  # the drawn paths, not all of it


def test_too_few_images(images: Path) -> None:
    done = run(str(images), '--space', 'pinas_nano', '--size', '28', '--batch-size', '9')
    assert done.returncode == 1 and '8 images are fewer than one batch of 9' in done.stderr


def test_it_is_short_and_plain() -> None:
    text = EXAMPLE.read_text()
    assert len(text.splitlines()) <= 100
    tree = ast.parse(text)
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    ours = {name for name in modules if name.startswith('pinas_zoo')}
    assert ours == {'pinas_zoo.data', 'pinas_zoo.methods.pinas', 'pinas_zoo.models.supernet', 'pinas_zoo.space'}
    assert {name.split('.')[0] for name in modules - ours} <= {'torch', *sys.stdlib_module_names}
