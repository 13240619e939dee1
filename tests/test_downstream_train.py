"""Every distinct detection and segmentation model trains two iterations and tests one image, on generated data."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from downstream import dicts, make_small, model_name, one_per_model, read, write_data

pytestmark = [pytest.mark.mm, pytest.mark.slow]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Roots of the generated sets, by folder of configs."""
    root = tmp_path_factory.mktemp('downstream')
    for folder in ('coco', 'ade20k', 'cityscapes'):
        write_data(root / folder, folder)
    return root


def make_narrow(node: Any) -> None:
    """Fewer channels inside the heads, which are most of a step; the tests of configs build them whole."""
    for part in dicts(node):
        for key in {'channels', 'fc_out_channels'} & part.keys():
            part[key] = min(part[key], 64)


@pytest.mark.parametrize('path', one_per_model(), ids=model_name)
def test_model_trains_and_tests(path: Path, data: Path, tmp_path: Path):
    from pinas_zoo.mm.engine.launch import train
    from pinas_zoo.mm.engine.options import Options

    cfg = read(path)
    make_small(cfg, data / path.parent.name)
    make_narrow(cfg.model)
    file = tmp_path / path.name
    cfg.dump(file)
    work_dir = tmp_path / 'run'
    runner = train(file, Options(work_dir=str(work_dir)))
    assert runner.iter == 2
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [value for line in lines for key, value in line.items() if key == 'loss' or 'loss_' in key]
    assert sum('loss' in line for line in lines) == 2 and all(map(math.isfinite, losses))
    metrics = [line for line in lines if any(key.startswith(('coco/', 'mIoU')) for key in line)]
    assert len(metrics) == 1, f'one test iteration, got {metrics}'
    shutil.rmtree(tmp_path)
