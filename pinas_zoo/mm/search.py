"""The search: from a linear-stage checkpoint to `archs.jsonl`, `best.json` and pictures; and the score of one path."""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import broadcast_object_list, get_world_size, is_main_process
from torch import nn
from tqdm import tqdm

from pinas_zoo.data.fixed_batches import FixedBatches
from pinas_zoo.data.sources import opened_once
from pinas_zoo.data.supervised import SupervisedView
from pinas_zoo.files import file_sha256, write_text
from pinas_zoo.mm.engine.allowed_keys import require_settings
from pinas_zoo.mm.engine.from_data import class_names, fill_from_data
from pinas_zoo.mm.engine.launch import check_data, load_config, set_up, tell
from pinas_zoo.mm.engine.options import Options
from pinas_zoo.models.cost import CostTable
from pinas_zoo.models.latency import LatencyTable
from pinas_zoo.models.precision import half_type
from pinas_zoo.models.typed import to_memory_format
from pinas_zoo.report.page import pareto_figure, search_trace_figure
from pinas_zoo.search.evaluate import Evaluator, PathScore, ScoreCache
from pinas_zoo.search.jobs import JobEvaluator
from pinas_zoo.search.limits import Limits
from pinas_zoo.search.log import SearchLog, SearchRecord, ranked, score_of
from pinas_zoo.search.loop import Told, best_told, run_race, run_search
from pinas_zoo.search.racing import RaceSettings
from pinas_zoo.search.searcher import Searcher
from pinas_zoo.search.strategies import build_searcher, random_records
from pinas_zoo.space import SearchSpace, get_space
from pinas_zoo.weights.download import find_weights
from pinas_zoo.weights.load import load_weights, read_weights
from pinas_zoo.weights.loading import load_supernet

__all__ = ['score_path', 'search', 'searcher_of']

#: Parts of a search's config that read images.
PARTS = ('calibration', 'evaluation')


def searcher_of(cfg: Config, seed: int) -> tuple[Searcher, CostTable]:
    """A new searcher from a search's config, and the costs of its architectures.

    Args:
        cfg: See `search`; its classes are known (`fill_from_data`).
        seed: Seed of the searcher.
    """
    space = get_space(cfg.space)
    size = cfg.get('size', space.input_size)
    costs = CostTable(space, size if isinstance(size, int) else tuple(size), cfg.num_classes)
    limits = limits_of(space, costs, cfg.limits) if cfg.get('limits') else None
    return build_searcher(**cfg.searcher, space=space, seed=seed, constraint=limits), costs


def limits_of(space: SearchSpace, costs: CostTable, values: Mapping[str, Any]) -> Limits:
    """The limits of a search's config, with its latency table if it names one.

    Raises:
        ValueError: The table is of another space, or a limit is malformed.
    """
    values = dict(values)
    file = values.pop('latency_table', None)
    require_settings(Limits, values, 'limits', own=('cost', 'latency', 'latency_of'))
    if file is None:
        return Limits(costs.of, **values)
    table = LatencyTable.read(file)
    if table.space != space:
        raise ValueError(f'{file} is of the space {table.space.name!r}, but the search is of {space.name!r}')
    return Limits(costs.of, **values, latency=table.of, latency_of=table.identity())


def build_evaluator(cfg: Config, space: SearchSpace, checkpoint: str, sha256: str, scores: Path) -> Evaluator:
    device = get_device()
    supernet = load_supernet(checkpoint, space)
    head = nn.Linear(space.num_features, cfg.num_classes)
    state, _ = read_weights(checkpoint)
    inner = {name.removeprefix('head.'): tensor for name, tensor in state.items() if name.startswith('head.')}
    if not inner:
        raise ValueError(f'{checkpoint} has no linear head; train one with a config of configs/linear/ first')
    load_weights(head, inner, checkpoint)
    if cfg.get('channels_last'):
        to_memory_format(supernet, torch.channels_last)
    calibration = FixedBatches(**cfg.calibration, device=device)
    evaluation = FixedBatches(**cfg.evaluation, device=device, labelled=True)
    precision = cfg.get('precision', 'float32')
    half = half_type(precision)
    # Scores computed in another precision are not scores of this run; files that do not state one hold a CPU's float32.
    where = () if (device, half) == ('cpu', None) else (f'{device} {precision}',)
    cache = ScoreCache(scores, (sha256, calibration.name, evaluation.name, *where))
    return Evaluator(supernet.to(device), head.to(device), calibration, evaluation, cache, half)


class _Log:
    """What happens to new scores: lines of the log, and the progress bar. Rank 0 writes."""

    def __init__(
        self, searcher: Searcher, costs: CostTable, objective: str, log: SearchLog | None, budget: int
    ) -> None:
        self.searcher, self.costs, self.objective, self.log = searcher, costs, objective, log
        done = len(searcher.history)
        self.bar = tqdm(total=budget, initial=done, unit='path', disable=log is None, dynamic_ncols=True)
        self.start, self.best = time.perf_counter(), -math.inf

    def __call__(self, paths: Sequence[PathScore], evaluated: int) -> None:
        now = time.perf_counter()
        seconds, self.start = (now - self.start) / evaluated, now
        space = self.searcher.space
        for path in paths:
            score = score_of(self.objective, path.top1, path.loss)
            if self.log is not None:
                self.log.append(self._record(len(self.log), path, score, seconds))
            if score > self.best:
                self.best = score
                shown = f'loss {-score:.4f}' if self.objective == 'loss' else f'{score:.2f} %'
                self.bar.set_postfix_str(f'best {shown} {space.format(path.arch)}')
        self.bar.update(len(paths))

    def _record(self, index: int, path: PathScore, score: float, seconds: float) -> SearchRecord:
        cost, limits = self.costs.of(path.arch), self.searcher.constraint
        latency = limits.latency(path.arch) if isinstance(limits, Limits) and limits.latency else None
        arch = self.searcher.space.format(path.arch)
        return SearchRecord(
            index, arch, score, path.loss, cost.macs, cost.params, seconds, path.top1, path.images, latency
        )


def _write_results(work_dir: Path, log: SearchLog, facts: dict[str, Any]) -> SearchRecord:
    """`best.json` and the two pictures."""
    records = log.records
    best, facts = ranked(records)[0], facts | _random_means(records[: random_records(log.header)])
    top1 = best.score if best.top1 is None else best.top1  # a log without objective
    result = {**vars(best), 'top1': top1, **facts, 'evaluations': len(records)}
    text = json.dumps(result, indent=1) + '\n'
    write_text(work_dir / 'best.json', text)
    objective = facts['objective']
    random_mean = facts['random_mean_loss' if objective == 'loss' else 'random_mean']
    trace = search_trace_figure(records, objective=objective, random_mean=random_mean, kind='png')
    trace.save(work_dir / 'trace.png')
    pareto_figure(records, objective=objective, kind='png').save(work_dir / 'pareto.png')
    return best


def _random_means(initial: list[SearchRecord]) -> dict[str, float | int]:
    """Means over the random paths with which a search begins."""
    top1, loss = ([getattr(record, name) for record in initial] for name in ('top1', 'loss'))
    if None in top1:  # a log that ranked by accuracy
        top1 = [record.score for record in initial]
    mean, mean_loss = sum(top1) / len(top1), sum(loss) / len(loss)
    return {'random_mean': mean, 'random_mean_loss': mean_loss, 'random_paths': len(initial)}


@opened_once()
def search(config: str | Path, checkpoint: str, options: Options, shard: tuple[int, int] | None = None) -> SearchRecord:
    """Searches a supernet, resuming the same search if the work_dir contains one.

    Args:
        config: Config with `space`, `num_classes`, `searcher`, `budget`, `calibration`, `evaluation`; optionally
            `objective` ('loss', the held-out cross-entropy, is the default; 'top1' as released), `limits`, `size`,
            `seed`, `channels_last`, `precision` (see `models.precision`) and `paths_per_pass`: how many paths a pass
            over the images evaluates if no result is needed first (default: a block per rank). They share their
            prefixes and are written together; the results are the same. With `race` (fields of `RaceSettings`) bad
            paths are scored on fewer images, and a group is a pass. `limits` may have `max_latency` in seconds, with
            `latency_table`, the file that `pinas latency` writes.
        checkpoint: Checkpoint of the linear stage.
        options: See `Options`; `resume` has no effect, since a search always continues.
        shard: Number of this job and number of jobs that share the search and its work_dir; see `JobEvaluator`. Job 0
            writes the log and the results.

    Returns:
        The best record.

    Raises:
        ValueError: The work_dir contains another search, the checkpoint does not fit, or a race has a shard.
    """
    checkpoint = str(find_weights(checkpoint))
    cfg, data = _open_config(config, checkpoint, options)
    work_dir, space = Path(cfg.work_dir), get_space(cfg.space)
    seed = cfg.get('seed', 0) if options.seed is None else options.seed
    objective = cfg.get('objective', 'loss')
    score_of(objective, 0.0, 0.0)  # refuses an unknown one before anything is loaded
    searcher, costs = searcher_of(cfg, seed)
    race = RaceSettings(**cfg.race) if cfg.get('race') else None
    if race is not None and shard is not None:
        raise ValueError('jobs cannot share a race, as they would wait in every group: leave out --shard, or `race`')
    sha256 = file_sha256(checkpoint)
    header = _header(searcher, sha256, data, objective, race)
    writes = is_main_process() and (shard is None or shard[0] == 0)
    log = SearchLog(work_dir / 'archs.jsonl', header) if writes else None
    with ExitStack() as stack:
        if log is not None:
            stack.enter_context(log)
        elif is_main_process():
            SearchLog.check(work_dir / 'archs.jsonl', header)
        done = [[] if log is None else [(record.arch, record.score, record.images) for record in log.records]]
        broadcast_object_list(done)  # all ranks propose the same
        searcher.replay((arch, score) for arch, score, _ in done[0])
        scores = work_dir / ('scores.jsonl' if shard is None else f'scores.job-{shard[0]}.jsonl')
        evaluate = build_evaluator(cfg, space, checkpoint, sha256, scores)
        record = _Log(searcher, costs, objective, log, cfg.budget)
        if race is None:
            wanted = cfg.get('paths_per_pass') or searcher.block * get_world_size()
            first = len(done[0])
            paths = evaluate if shard is None else stack.enter_context(JobEvaluator(evaluate, *shard, first=first))
            run_search(searcher, paths, cfg.budget, objective, wanted, record)
        else:
            told: list[Told] = [(space.single(arch), score, images) for arch, score, images in done[0]]
            told = run_race(searcher, evaluate.race(race), cfg.budget, objective, told, record)
        if log is None:
            arch, score = searcher.best if race is None else cast(Told, best_told(told))[:2]
            return SearchRecord(searcher.history.index((arch, score)), space.format(arch), score)
        facts = {'seed': seed, 'checkpoint': os.path.basename(checkpoint), 'checkpoint_sha256': sha256}
        facts |= {'objective': objective, 'space': space.name}
        return _write_results(work_dir, log, facts)


def _header(
    searcher: Searcher, sha256: str, data: list[dict[str, Any]], objective: str, race: RaceSettings | None
) -> dict[str, Any]:
    """What the scores of a log depend on; a search whose header differs is another one."""
    header = searcher.header(sha256) | {'data': data}
    if objective != 'top1':  # logs without an objective ranked by accuracy: such a search can be continued
        header['objective'] = objective
    if race is not None:
        header['race'] = race.facts()
    return dict(json.loads(json.dumps(header)))


def _open_config(config: str | Path, checkpoint: str, options: Options) -> tuple[Config, list[dict[str, Any]]]:
    """The config of a search, with its process set up and its images checked; and the images its scores depend on.

    The latter as the config has it, without the class list; how the images are read may change.
    """
    cfg = load_config(config, options)
    for part in PARTS:
        require_settings(FixedBatches, cfg.get(part), part, own=('device', 'labelled'))
        require_settings(SupervisedView, cfg[part]['view'], f'{part}.view', own=('train', 'finish', 'labelled'))
    if cfg.get('race'):
        require_settings(RaceSettings, cfg.race, 'race')
    if 'budget' in cfg and (not isinstance(cfg.budget, int) or cfg.budget < 1):
        raise ValueError(f'budget is {cfg.budget!r}, which must be an integer of at least 1')
    fill_from_data(cfg, names=class_names(checkpoint))
    notes: list[str] = []
    set_up(cfg, options.launcher, notes)
    data = [{k: cfg[part][k] for k in ('view', 'batch_size', 'batches') if k in cfg[part]} for part in PARTS]
    data = json.loads(json.dumps(data))
    check_data(cfg, PARTS, notes, checkpoint)
    if is_main_process():
        tell(notes)
    return cfg, data


@opened_once()
def score_path(config: str | Path, checkpoint: str, options: Options) -> dict[str, float]:
    """Top-1 of the config's `arch` in a supernet with its linear head, after BN re-estimation.

    Args:
        config: Config of a search, with `arch`.
        checkpoint: Checkpoint of the linear stage, or ``pinas://NAME``.
        options: See `Options`; `resume` is not used.

    Returns:
        The metrics, which are also in test_metrics.json of the work_dir.

    Raises:
        ValueError: The config names no architecture, or the checkpoint does not fit.
    """
    file = str(find_weights(checkpoint))
    cfg, _ = _open_config(config, file, options)
    if cfg.get('arch') is None:
        raise ValueError(f'{config} is the config of a search: select a path with --cfg-options arch=DIGITS')
    space, work_dir = get_space(cfg.space), Path(cfg.work_dir)
    evaluate = build_evaluator(cfg, space, file, file_sha256(file), work_dir / 'scores.jsonl')
    (score,) = evaluate([space.parse(str(cfg.arch))])
    metrics = {'accuracy/top1': score.top1, 'accuracy/loss': score.loss}
    report = {'config': str(config), 'checkpoint': str(checkpoint), 'arch': str(cfg.arch), 'metrics': metrics}
    write_text(work_dir / 'test_metrics.json', json.dumps(report, indent=1) + '\n')
    print(f'{cfg.arch}: top-1 {score.top1:.2f} %, loss {score.loss:.4f}, {score.images} images')
    return metrics
