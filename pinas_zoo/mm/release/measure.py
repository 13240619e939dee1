"""Results of tools/test.py for published weights, in points."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from mmengine.config import Config

from pinas_zoo.weights.manifest import package_file

__all__ = ['METRICS', 'measure', 'scene_options']

#: Metrics of tools/test.py: their names in metafiles, and the factor to points.
METRICS = {
    'accuracy/top1': ('Top 1 Accuracy', 1),
    'coco/bbox_mAP': ('box AP', 100),
    'coco/segm_mAP': ('mask AP', 100),
    'mIoU': ('mIoU', 1),
    'aAcc': ('Pixel Accuracy', 1),
}


def measure(config: str | Path, checkpoint: str, options: dict[str, Any], work_dir: Path) -> dict[str, float]:
    """Results of tools/test.py for a checkpoint, in points, by the metafiles' names.

    Args:
        config: Config.
        checkpoint: Weights, as the tool accepts them.
        options: Its --cfg-options.
        work_dir: Folder for its output.

    Raises:
        RuntimeError: The tool failed.
    """
    tool = package_file('tools/test.py')
    assert tool is not None
    command = [sys.executable, str(tool), str(config), str(checkpoint), '--work-dir', str(work_dir)]
    if options:
        command += ['--cfg-options', *(f'{key}={value}' for key, value in options.items())]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f'{" ".join(command)} failed with {done.returncode}:\n{done.stdout[-3000:]}')
    found = json.loads((work_dir / 'test_metrics.json').read_text())['metrics']
    return {name: round(found[key] * factor, 2) for key, (name, factor) in METRICS.items() if key in found}


def scene_options(config: str | Path, scenes: Path) -> dict[str, str]:
    """The --cfg-options with which a shipped config is tested on scenes in another folder; empty if it needs none."""
    cfg = Config.fromfile(config)
    places = {
        'test_dataloader.dataset.data_root': cfg.get('test_dataloader', {}).get('dataset', {}).get('data_root'),
        'test_evaluator.ann_file': cfg.get('test_evaluator', {}).get('ann_file'),
    }
    return {key: f'{scenes}/{place.rpartition("/scenes/")[2]}' for key, place in places.items() if place is not None}
