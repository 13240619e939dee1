"""The report page of the main job: the gain of the search, what was learnt, and pictures of what is found.

python -m pinas_zoo.mm.quickstart.report ROOT
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from PIL.Image import Image

from pinas_zoo.data.small_sets import DataSetInfo, resolve_fashion_mnist
from pinas_zoo.files import write_text
from pinas_zoo.mm.engine.machine import replace_sync_bn
from pinas_zoo.mm.inference.pictures import draw_instances, draw_segments, predict, sheet
from pinas_zoo.mm.quickstart.commands import (
    DETECTION,
    LINEAR,
    PRETRAIN,
    RETRAIN,
    SEARCH,
    SEGMENTATION,
    SHORT,
    SPACE,
    Job,
)
from pinas_zoo.mm.quickstart.job import STAGES
from pinas_zoo.mm.quickstart.record import Records
from pinas_zoo.mm.quickstart.results import Results
from pinas_zoo.models.cost import CostTable
from pinas_zoo.report.figures import LINES
from pinas_zoo.report.page import (
    Facts,
    Figure,
    Note,
    Section,
    Step,
    Steps,
    arch_figure,
    curve_figure,
    search_trace_figure,
    write_report,
)
from pinas_zoo.report.shortlist import estimate_figure, group_figure, networks_of
from pinas_zoo.search.log import SearchLog
from pinas_zoo.space import get_space

__all__ = ['write_page']

#: Held-out scenes that are shown: always the first ones, whatever the result.
SHOWN = range(4)
#: Smallest score of a drawn object.
SCORE = 0.3
#: Colours of the curves by what they show.
LOSS, FEATURES, OTHER = LINES[3], LINES[2], LINES[4]


def write_page(root: Path) -> Path:
    """Writes `table.txt` and `report.html` of a finished run; returns the page."""
    results, job, data = Results(root), Job(root), resolve_fashion_mnist()
    write_text(root / 'table.txt', results.text())
    sections = [
        Section('What the search found', _search_effect(results)),
        Section('What the supernet learnt', _pretraining(results)),
        Section('Detection', _detection_pictures(job)),
        Section('Segmentation', _segmentation_pictures(job)),
        Section('The chosen architecture', _architecture(results)),
        Section('All results', [results.table(), Note(LIMITS)]),
        Section('Training', _curves(results)),
        Section('Stages', _stages(root)),
        Section('Data and budget', [Facts(_facts(results, data))]),
    ]
    lead = (
        'An unsupervised Pi-NAS supernet, the architecture found in it, and what that network does in detection and '
        f'segmentation. Data: {data.title}, {data.sizes["train"]:,} training and {data.sizes["test"]:,} test images, '
        f'{len(data.classes)} classes.'
    )
    return write_report(root / 'report.html', f'Pi-NAS on {data.title}', sections, lead)


LIMITS = (
    'Minutes on two CPU cores, small grey images, one seed: this shows that every part works, and what it achieves '
    'at this size. It is not comparable with the results that the paper reports.'
)


# ---- search and supernet ---------------------------------------------------------------------------------------------


def _search_effect(results: Results) -> list[Any]:
    listed = results.shortlist
    chosen, random, top, tau = listed['chosen'], listed['random'], listed['top'], listed['kendall_tau']
    networks = networks_of(listed)
    worse = sum('random' in net.groups and net.accuracy < chosen['value'] for net in networks)
    beats = 'beats' if chosen['gain'] > 0 else 'does not beat'
    spread = (
        '' if random['std'] is None else f', {abs(chosen["gain"] / random["std"]):.1f} times their standard deviation'
    )
    text = (
        f'{chosen["networks"]} networks were trained alone with the same budget: the best {top["count"]} of the search '
        f'and {random["count"]} random ones. The chosen one has {chosen["value"]:.2f} % and is number {chosen["rank"]} '
        f'of them. It {beats} the mean of the random networks, {random["mean"]:.2f} %: the difference is '
        f'{chosen["gain"]:+.2f} points{spread}. It is better than {worse} of the {random["count"]} random networks.'
    )
    deviation = '' if random['std'] is None else f' ± {random["std"]:.1f}'
    defined = tau['tau'] is not None
    tiles = {
        'chosen network': f'{chosen["value"]:.1f} %',
        f'mean and deviation of random networks, n = {random["count"]}': f'{random["mean"]:.1f}{deviation} %',
        'rank of the chosen network': f'{chosen["rank"]} of {chosen["networks"]}',
        f'Kendall tau of the estimates, n = {tau["count"]}': f'{tau["tau"]:.2f}' if defined else 'not defined',
    }
    n = f'Kendall tau = {tau["tau"]:.2f}, n = {tau["count"]}, p = {tau["p"]:.2g}' if defined else f'n = {tau["count"]}'
    return [
        text,
        Facts(tiles, large=True),
        group_figure(networks, caption='Accuracy of each network, trained alone'),
        estimate_figure(networks, caption=f'Their loss in the supernet against it: {n}'),
    ]


def _pretraining(results: Results) -> list[Any]:
    scalars, knn = results.scalars('pretrain'), results.knn
    items: list[Any] = []
    if knn:
        start, end = knn[0][1], knn[-1][1]
        change = 'rises' if end > start else 'does not rise'
        items.append(
            'No label was used here. The nearest neighbours show whether the features become useful: the share '
            f'of held-out images whose neighbours name their class {change} from {start:.1f} % with random weights to '
            f'{end:.1f} %.'
        )
    items.append(
        curve_figure({'loss': scalars['loss']}, caption='Cross-path loss', ylabel='loss', smooth=5, colours=[LOSS])
    )
    if knn:
        items.append(
            curve_figure(
                {'supernet': knn},
                caption='Nearest neighbours on held-out images',
                ylabel='accuracy / %',
                lines={'random weights': knn[0][1]},
                colours=[FEATURES],
            )
        )
    return items


def _architecture(results: Results) -> list[Any]:
    space, listed, best = get_space(SPACE), results.shortlist, results.best
    header, records = SearchLog.read(results.root / 'search/archs.jsonl')
    height, width = size = tuple(Config.fromfile(SEARCH).size)
    cost = CostTable(space, size, 0).of(listed['arch'])
    objective = header.get('objective', 'top1')
    facts = {
        'architecture': listed['arch'],
        'parameters': f'{cost.params / 1e6:.3f} M',
        f'MACs at {height} × {width} px': f'{cost.macs / 1e6:.2f} M',
        'place in the search': f'{listed["chosen"]["search_rank"]} of {best["evaluations"]}',
    }
    figure = arch_figure(space, listed['arch'], size=size, caption='Candidates by stage')
    caption = f'The search: {best["evaluations"]} of {space.num_archs:,} paths'
    trace = search_trace_figure(records, objective=objective, caption=caption)
    return [Facts(facts, large=True), figure, trace]


def _curves(results: Results) -> list[Figure]:
    pretrain = results.scalars('pretrain')
    figures = []
    if 'top1_batch' in pretrain:
        caption = 'Supernet: a query finds its key among those of its batch'
        series = {'top-1': pretrain['top1_batch']}
        figures.append(curve_figure(series, caption=caption, ylabel='top-1 / %', smooth=5, colours=[FEATURES]))
    spread = {'feature std': pretrain['feature_std'], 'teacher distance': pretrain['teacher_distance']}
    caption = 'Supernet: spread of the embeddings (0 is collapse, 1 is even), and distance of the teacher'
    figures.append(curve_figure(spread, caption=caption, ylabel='', colours=[FEATURES, OTHER]))
    labels = {
        name: results.scalars(folder)['top1']
        for name, folder in (('linear stage', 'linear'), ('retraining', 'retrain'))
    }
    caption = 'Accuracy on training batches'
    figures.append(curve_figure(labels, caption=caption, ylabel='top-1 / %', smooth=5, colours=LINES))
    for title, name in (('Detection', 'detection'), ('Segmentation', 'segmentation')):
        series = {'loss': results.scalars(name)['loss']}
        figures.append(curve_figure(series, caption=f'{title}: training loss', ylabel='loss', smooth=5, colours=[LOSS]))
    return figures


# ---- pictures --------------------------------------------------------------------------------------------------------


def _transfer_config(job: Job, config: Path, name: str) -> tuple[Config, list[str]]:
    """The config as the stage ran it, written by mmengine into its folder, and the names of its classes."""
    cfg = Config.fromfile(job.root / name / config.name)
    replace_sync_bn(cfg, [])
    return cfg, list(cfg.test_dataloader.dataset.metainfo.classes)


def _detection_pictures(job: Job) -> list[Any]:
    cfg, classes = _transfer_config(job, DETECTION, 'detection')
    figures: list[Figure] = []
    for image, sample in predict(cfg, job.checkpoint('detection'), SHOWN):
        gt, pred = sample.gt_instances, sample.pred_instances
        pred = pred[pred.scores > SCORE]
        masks = torch.from_numpy(gt.masks.masks.astype(bool))
        boxes = gt.bboxes.tensor if hasattr(gt.bboxes, 'tensor') else gt.bboxes
        truth = draw_instances(image, boxes, gt.labels, masks, None, classes)
        found = draw_instances(image, pred.bboxes, pred.labels, pred.masks, pred.scores, classes)
        figures.append(_pair(len(figures) + 1, truth, found))
    text = f'The first {len(figures)} held-out scenes. Left: the truth. Right: what is found with a score over {SCORE}.'
    return [text, *figures]


def _segmentation_pictures(job: Job) -> list[Any]:
    cfg, classes = _transfer_config(job, SEGMENTATION, 'segmentation')
    figures: list[Figure] = []
    for image, sample in predict(cfg, job.checkpoint('segmentation'), SHOWN):
        maps = (maps.data[0].numpy().astype(np.uint8) for maps in (sample.gt_sem_seg, sample.pred_sem_seg))
        pictures = (draw_segments(image, labels, classes=classes) for labels in maps)
        figures.append(_pair(len(figures) + 1, *pictures))
    return [f'The first {len(figures)} held-out scenes. Left: the true label map. Right: the predicted one.', *figures]


def _pair(number: int, truth: Image, found: Image) -> Figure:
    """A scene twice, side by side on a narrow screen too, where the scenes follow each other."""
    return Figure(f'Scene {number}', sheet([[truth, found]]), alt=f'Scene {number}: truth and prediction')


# ---- stages and facts ------------------------------------------------------------------------------------------------


def _stages(root: Path) -> list[Any]:
    records = Records(root / 'stages.json')
    steps = []
    for stage in STAGES:
        entry = records.entries.get(stage.name)
        if stage.name == 'report' or entry is None:
            continue
        outcome = f'{stage.threads} threads' if stage.threads > 1 else '1 thread'
        steps.append(
            Step(stage.title, entry.seconds, outcome + (', interrupted and continued' if entry.continued else ''))
        )
    text = f'Stages run side by side where they fit: all of them took {records.wall_clock():.0f} s of wall-clock time.'
    return [Steps(steps), text]


def _facts(results: Results, data: DataSetInfo) -> dict[str, object]:
    """As each stage ran, quick runs included."""
    scenes = json.loads((results.root / 'scenes/manifest.json').read_text())['settings']
    lengths = {}
    for title, name, config in (
        ('supernet', 'pretrain', PRETRAIN),
        ('linear stage', 'linear', LINEAR),
        ('retraining', 'retrain', RETRAIN),
        ('detection', 'detection', DETECTION),
        ('segmentation', 'segmentation', SEGMENTATION),
    ):
        cfg = Config.fromfile(results.root / name / config.name)
        lengths[title] = f'{cfg.train_cfg.max_iters:,} steps of {cfg.train_dataloader.batch_size} images'
    best = results.best
    return {
        'data': str(data),
        'scenes': f'{scenes["train"]} for training and {scenes["val"]} held out, {scenes["size"]} px, no common items',
        **lengths,
        'search': f'{best["evaluations"]} paths, ranked by {best["objective"]} on held-out images',
        'shortlist': f'recipe {SHORT.stem}, accuracy on images that neither search nor choice has seen',
        'seed': best['seed'],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page of a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('root', type=Path, help='folder of the run')
    print(write_page(parser.parse_args(argv).root))
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
