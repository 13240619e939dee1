"""Detection and segmentation, killed with SIGKILL at a random iteration and continued: bit-equal results."""

from __future__ import annotations

import random
from pathlib import Path

import engine_utils
import pytest

for package in ('mmengine', 'mmcv', 'mmdet', 'mmseg'):
    pytest.importorskip(package)
pytestmark = [pytest.mark.mm, pytest.mark.slow]

from downstream_runs import short_config, write_scenes  # noqa: E402

ITERATIONS = 6
#: What a run that continues is given at the end: losses, and the figures of both validations.
LAST = {'detection': 'coco/segm_mAP', 'segmentation': 'mIoU'}


@pytest.mark.parametrize('seed, kind', enumerate(LAST))
def test_a_kill_changes_nothing(kind: str, seed: int, tmp_path: Path) -> None:
    cfg = short_config(
        kind, write_scenes(tmp_path / 'scenes', 12, 3), ITERATIONS, default_hooks__checkpoint__interval=2
    )
    cfg.train_cfg.val_interval = ITERATIONS // 2
    cfg.dump(tmp_path / 'config.py')
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    result = engine_utils.run_train(tmp_path / 'config.py', whole)
    assert result.returncode == 0, result.stdout[-3000:]
    chooser = random.Random(seed)
    kill = (chooser.randrange(3, ITERATIONS), chooser.choice(('step', 'saved', 'write')))
    engine_utils.run_killed(tmp_path / 'config.py', killed, [kill])
    assert len(list(killed.glob('*/vis_data/scalars.json'))) == 2, f'{kill}: it was not continued'
    assert engine_utils.differences(whole, killed) == [], kill  # weights, optimiser, schedule, random states, logs
    values = engine_utils.logged(whole)
    assert engine_utils.logged(killed) == values, kill
    steps = {step for step, name in values if name == 'loss'}
    assert steps == set(range(1, ITERATIONS + 1))
    assert {step for step, name in values if name == LAST[kind]} == {ITERATIONS // 2, ITERATIONS}
    names = [sorted(path.name for path in folder.glob('*.pth')) for folder in (whole, killed)]
    assert names[0] == names[1]
