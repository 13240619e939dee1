"""One path of a supernet, evaluated as in the search: tools/test.py with a config of a search."""

from __future__ import annotations

import json
from pathlib import Path

from pinas_zoo.files import file_sha256, write_text
from pinas_zoo.mm.engine.from_data import class_names, fill_from_data
from pinas_zoo.mm.engine.launch import Options, check_data, load_config, set_up
from pinas_zoo.mm.search import PARTS, build_evaluator
from pinas_zoo.space import get_space
from pinas_zoo.weights.download import find_weights

__all__ = ['score_path']


def score_path(path: str | Path, checkpoint: str, options: Options) -> dict[str, float]:
    """Top-1 of the config's `arch` in a supernet with its linear head, after BN re-estimation.

    Args:
        path: Config of a search, with `arch`.
        checkpoint: Checkpoint of the linear stage, or ``pinas://NAME``.
        options: See `Options`; `resume` is not used.

    Returns:
        The metrics, which are also in test_metrics.json of the work_dir.

    Raises:
        ValueError: The config names no architecture, or the checkpoint does not fit.
    """
    cfg = load_config(path, options)
    if cfg.get('arch') is None:
        raise ValueError(f'{path} is a config of a search: say which path, --cfg-options arch=DIGITS')
    file = str(find_weights(checkpoint))
    notes: list[str] = []
    fill_from_data(cfg, names=class_names(file))
    set_up(cfg, options.launcher, notes)
    check_data(cfg, PARTS, notes, file)
    print(*notes, sep='\n')
    space, work_dir = get_space(cfg.space), Path(cfg.work_dir)
    evaluate = build_evaluator(cfg, space, file, file_sha256(file), work_dir)
    (score,) = evaluate([space.parse(str(cfg.arch))])
    metrics = {'accuracy/top1': score.top1, 'accuracy/loss': score.loss}
    report = {'config': str(path), 'checkpoint': str(checkpoint), 'arch': str(cfg.arch), 'metrics': metrics}
    write_text(work_dir / 'test_metrics.json', json.dumps(report, indent=1) + '\n')
    print(f'{cfg.arch}: top-1 {score.top1:.2f} %, loss {score.loss:.4f}, {score.images} images')
    return metrics
