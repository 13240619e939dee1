"""What the quickstart ends with: the published network, the table and the page."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from mmengine.config import Config

from pinas_zoo.files import write_text
from pinas_zoo.mm.engine.rewrite import replace_sync_bn
from pinas_zoo.mm.inference.pictures import draw_instances, draw_segments, predict, sheet
from pinas_zoo.mm.quickstart.job import DETECTION, LINEAR, PRETRAIN, RETRAIN, SEARCH, SEGMENTATION, STEPS, Job
from pinas_zoo.models.cost import CostTable
from pinas_zoo.report.page import (
    Facts,
    Figure,
    Note,
    Section,
    Step,
    Steps,
    Table,
    arch_figure,
    curve_figure,
    pareto_figure,
    read_scalars,
    search_trace_figure,
    write_report,
)
from pinas_zoo.search.derive import save_backbone
from pinas_zoo.search.log import SearchLog
from pinas_zoo.space import get_space
from pinas_zoo.weights.load import load_weights, read_weights

__all__ = ['publish', 'report']


def publish(job: Job) -> None:
    """Writes the retrained network (its averaged weights) as `retrained.safetensors`."""
    checkpoint = job.checkpoint('retrain')
    state, _ = read_weights(checkpoint)
    net = timm.create_model('pinas_nano', arch=job.arch, num_classes=10)
    inner = {name.removeprefix('net.'): tensor for name, tensor in state.items() if name.startswith('net.')}
    load_weights(net, inner, checkpoint)
    save_backbone(job.root / 'retrained.safetensors', net, checkpoint, top1=_last(job, 'retrain', 'accuracy/top1'))


def _scalars(job: Job, name: str) -> dict[str, list[tuple[float, float]]]:
    """All logged scalars of a step, over its interruptions."""
    files = sorted((job.root / name).glob('*/vis_data/scalars.json'))
    return read_scalars(*files)


def _last(job: Job, name: str, scalar: str) -> float:
    return _scalars(job, name)[scalar][-1][1]


def _percent(value: float) -> float:
    """mmdet's AP are fractions; everything here is in points."""
    return round(100 * value, 2)


def _results(job: Job, best: dict[str, Any]) -> Table:
    gain = best['top1'] - best['random_mean']
    rows: list[list[object]] = [
        ['search: found / mean of random paths', round(best['top1'], 2), round(best['random_mean'], 2), round(gain, 2)],
        ['retrained from scratch: top-1', round(_last(job, 'retrain', 'accuracy/top1'), 2), None, None],
    ]
    for title, name, scalar, scale in (
        ('detection: box AP', 'det', 'coco/bbox_mAP', _percent),
        ('detection: mask AP', 'det', 'coco/segm_mAP', _percent),
        ('segmentation: mIoU', 'seg', 'mIoU', lambda value: round(value, 2)),
    ):
        pair = [scale(_last(job, f'{name}-{start}', scalar)) for start in ('pretrained', 'random')]
        rows.append([title, *pair, round(pair[0] - pair[1], 2)])
    header = ['figure, in points', 'found or pre-trained', 'random', 'difference']
    return Table(
        header, rows, caption='One seed; differences of a point or two are within the noise of such short runs.'
    )


def _text(table: Table) -> str:
    cells = [[str('-' if cell is None else cell) for cell in row] for row in [table.header, *table.rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return '\n'.join([lines[0], '-' * len(lines[0]), *lines[1:]]) + '\n'


def _transfer_config(job: Job, config: Path, name: str) -> Config:
    """The config as the step ran it, written by mmengine into its folder."""
    cfg = Config.fromfile(job.root / name / config.name)
    replace_sync_bn(cfg, [])
    return cfg


def _detection_picture(job: Job) -> Figure:
    name = 'det-pretrained'
    cfg = _transfer_config(job, DETECTION, name)
    truth, found = [], []
    for image, sample in predict(cfg, job.checkpoint(name), range(4)):
        gt, pred = sample.gt_instances, sample.pred_instances
        pred = pred[pred.scores > 0.3]
        masks = torch.from_numpy(gt.masks.masks.astype(bool))
        boxes = gt.bboxes.tensor if hasattr(gt.bboxes, 'tensor') else gt.bboxes
        truth.append(draw_instances(image, boxes, gt.labels, masks, None, cfg.classes))
        found.append(draw_instances(image, pred.bboxes, pred.labels, pred.masks, pred.scores, cfg.classes))
    caption = 'Held-out scenes: truth above, boxes and masks with a score over 0.3 below (pre-trained backbone)'
    return Figure(caption, sheet([truth, found]), wide=True)


def _segmentation_picture(job: Job) -> Figure:
    name = 'seg-pretrained'
    cfg = _transfer_config(job, SEGMENTATION, name)
    truth, found = [], []
    for image, sample in predict(cfg, job.checkpoint(name), range(4)):
        truth.append(draw_segments(image, sample.gt_sem_seg.data[0].numpy().astype(np.uint8)))
        found.append(draw_segments(image, sample.pred_sem_seg.data[0].numpy().astype(np.uint8)))
    caption = 'Held-out scenes: true label maps above, predicted ones below (pre-trained backbone)'
    return Figure(caption, sheet([truth, found]), wide=True)


def _curves(job: Job) -> list[Figure]:
    pretrain, linear, retrain = (_scalars(job, name) for name in ('pretrain', 'linear', 'retrain'))
    figures = [
        curve_figure({'loss': pretrain['loss']}, caption='Supernet: cross-path loss', smooth=3),
        curve_figure(
            {'feature std': pretrain['feature_std'], 'teacher distance': pretrain['teacher_distance']},
            caption='Supernet: spread of the embeddings (0 is collapse, 1 is even) and distance of the teacher',
        ),
        curve_figure(
            {'top-1 / %': pretrain['top1']}, caption='Supernet: query finds its key among the queue', smooth=3
        ),
        curve_figure(
            {'linear stage': linear['top1'], 'retraining': retrain['top1']},
            caption='Top-1 on training batches (retraining: with mixup)',
            ylabel='%',
            smooth=3,
        ),
    ]
    for title, name, scalar in (('Detection', 'det', 'loss'), ('Segmentation', 'seg', 'loss')):
        series = {start: _scalars(job, f'{name}-{start}')[scalar] for start in ('pretrained', 'random')}
        figures.append(curve_figure(series, caption=f'{title}: training loss', smooth=3))
    return figures


def _facts(job: Job, best: dict[str, Any]) -> dict[str, object]:
    # As each step ran, quick runs and interrupted ones included.
    pretrain = Config.fromfile(job.root / 'pretrain' / PRETRAIN.name)
    batch, iters = pretrain.train_dataloader.batch_size, pretrain.train_cfg.max_iters
    scenes = json.loads((job.root / 'scenes' / 'manifest.json').read_text())
    space = get_space('pinas_nano')
    lengths = {
        name: Config.fromfile(job.root / folder / config.name).train_cfg.max_iters
        for name, folder, config in (
            ('linear stage', 'linear', LINEAR),
            ('retraining', 'retrain', RETRAIN),
            ('detection', 'det-random', DETECTION),
            ('segmentation', 'seg-random', SEGMENTATION),
        )
    }
    source = dict(_inner_dataset(pretrain.train_dataloader.dataset).source)
    settings = scenes.get('settings', scenes)
    return {
        'data': f'{source["kind"]}, {source.get("limit", "all")} training images, 28 px; scenes of 128 px made from it',
        'scenes': f'{settings["train"]} for training, {settings["val"]} held out, disjoint items',
        'supernet': f'{iters} steps of {batch} images in four views',
        **{name: f'{count} iterations' for name, count in lengths.items()},
        'search': f'{best["evaluations"]} of {space.num_archs:,} paths, {Config.fromfile(SEARCH).searcher.name}',
        'seed': best['seed'],
    }


def _inner_dataset(dataset: Any) -> Any:
    """The data set inside the seeding wrapper that training puts round it."""
    return dataset.dataset if 'dataset' in dataset else dataset


def report(job: Job) -> Path:
    """Writes `table.txt` and `report.html`; returns the page."""
    best = json.loads((job.root / 'search/best.json').read_text())
    _, records = SearchLog.read(job.root / 'search/archs.jsonl')
    space, table = get_space('pinas_nano'), _results(job, best)
    write_text(job.root / 'table.txt', _text(table))
    cost = CostTable(space, 28, 10).of(best['arch'])
    steps = [Step(step.title, job.seconds.get(step.name)) for step in STEPS if step.name != 'report']
    note = Note(
        'These are minutes on two CPU cores and small grey images: they show that the whole way works, not how good '
        'the method is. Published results of the paper are not comparable.'
    )
    sections = [
        Section('Result', [table, note]),
        Section(
            'The found architecture',
            [
                Facts(
                    {
                        'architecture': best['arch'],
                        'parameters': f'{cost.params / 1e6:.3f} M',
                        'MACs at 28 px': f'{cost.macs / 1e6:.2f} M',
                        'top-1 in the supernet': f'{best["top1"]:.2f} %',
                    },
                    large=True,
                ),
                arch_figure(space, best['arch'], caption='Candidates by stage'),
            ],
        ),
        Section(
            'Search',
            [
                search_trace_figure(records, ylabel='top-1 / %', random_mean=best['random_mean']),
                pareto_figure(records, ylabel='top-1 / %'),
            ],
        ),
        Section('Predictions', [_detection_picture(job), _segmentation_picture(job)]),
        Section('Training', _curves(job)),
        Section('Data and budget', [Facts(_facts(job, best))]),
        Section('Steps', [Steps(steps)]),
    ]
    lead = (
        'An unsupervised Pi-NAS supernet, the architecture found in it, and what it does in detection and segmentation.'
    )
    return write_report(job.root / 'report.html', 'pinas_zoo quickstart', sections, lead)


if __name__ == '__main__':
    action, folder = sys.argv[1:]
    steps = Path(folder) / 'steps.json'
    quick = steps.is_file() and json.loads(steps.read_text())['quick']
    {'publish': publish, 'report': report}[action](Job(Path(folder), quick))
