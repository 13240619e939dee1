"""The shortlist stage: trains a search's best and some random architectures alone; writes `shortlist.json`.

The random ones can be trained before the search has run.

The trainings are ordinary runs of tools/train.py. Each has a folder and leaves a result there; an interrupted stage
keeps its results and continues the trainings that were interrupted.

    python -m pinas_zoo.mm.shortlist PLAN ARCH    # one network of a plan, as each of several processes runs it
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmengine.config import Config

from pinas_zoo.files import read_json, write_text
from pinas_zoo.mm.engine.from_data import fill_from_data
from pinas_zoo.mm.engine.launch import load_config, train
from pinas_zoo.mm.engine.options import Options
from pinas_zoo.mm.search import searcher_of
from pinas_zoo.mm.side_by_side import train_side_by_side
from pinas_zoo.search.log import SearchLog, objective_of
from pinas_zoo.search.shortlist import Outcome, draw_random, draw_shortlist, summarise
from pinas_zoo.search.strategies import random_records

__all__ = ['shortlist', 'train_one', 'train_random']

RESULT, PLAN, SUMMARY, RANDOM = 'result.json', 'plan.json', 'shortlist.json', 'random.json'
#: The parts of a plan that a training's result depends on, besides the architecture.
RECIPE = ('training_sha256', 'options', 'arch_key', 'seed')
#: Called with (networks that are done, all of them, the one that was finished last).
Progress = Callable[[int, int, str], None]


def shortlist(
    config: str | Path,
    search: str | Path,
    options: Options,
    workers: int | None = None,
    progress: Progress | None = None,
    trained: str | Path | None = None,
) -> dict[str, Any]:
    """Trains a search's best architectures and some random ones alone, and chooses one.

    Args:
        config: Config with `training` (config of the short training), `top`, `random`; optionally
            `training_options` (what to change in that config), `arch_key`, `metric`, `seed`, `workers` and
            `processes`, and for `train_random` `search` (config of the search) and `search_options`; see
            configs/quickstart and configs/search.
        search: Folder of the search, or its `archs.jsonl`.
        options: See `Options`; `resume` has no effect, since the stage always continues.
        workers: Number of parallel trainings; None takes the config's.
        progress: Called after each network.
        trained: Folder of an earlier `train_random` of the same config, whose trainings are reused.

    Returns:
        Content of `shortlist.json` in the work_dir, see `summarise`.

    Raises:
        ValueError: The work_dir contains another shortlist, or the settings do not fit the search or the machine.
    """
    cfg = load_config(config, options)
    root, log = Path(cfg.work_dir), Path(search)
    header, records = SearchLog.read(log / 'archs.jsonl' if log.is_dir() else log)
    seed = cfg.get('seed', 0) if options.seed is None else options.seed
    listed = draw_shortlist(header, records, cfg.top, cfg.random, seed)
    plan = _plan(cfg, seed, [asdict(one) for one in listed])
    _keep_plan(root, plan)
    archs = [one.arch for one in listed]
    if trained is not None:
        _take_over(Path(trained), root, plan, archs)
    outcomes = _train_all(root, archs, cfg.get('workers', 1) if workers is None else workers, plan, progress)
    objective = objective_of(header)
    summary = summarise(listed, outcomes, objective, cfg.get('metric', 'accuracy/top1')) | {'seed': seed}
    write_text(root / SUMMARY, json.dumps(summary, indent=1) + '\n')
    return summary


def train_random(
    config: str | Path, options: Options, workers: int | None = None, progress: Progress | None = None
) -> list[str]:
    """Trains the random networks of a shortlist alone, whose search need not have run.

    A search begins with random architectures that follow from its config and seed, so they can be trained beside it or
    before it; `shortlist` reuses these trainings (`trained`).

    Args:
        config: As for `shortlist`, with `search`.
        options: As for `shortlist`; the seed is the search's too.
        workers: As for `shortlist`.
        progress: As for `shortlist`.

    Returns:
        The architectures; `random.json` of the work_dir has their results.

    Raises:
        ValueError: The config names no search, or the settings do not fit it or the machine.
    """
    cfg = load_config(config, options)
    if 'search' not in cfg:
        raise ValueError(f'{config} has no `search`, whose random architectures would be trained: add it')
    seed = cfg.get('seed', 0) if options.seed is None else options.seed
    search = load_config(cfg.search, Options(cfg_options=_flatten(cfg.get('search_options') or {})))
    fill_from_data(search)
    searcher, _ = searcher_of(search, search.get('seed', 0) if options.seed is None else options.seed)
    initial = searcher.ask(min(search.budget, random_records(searcher.header(''))))
    archs = [searcher.space.format(initial[index]) for index in draw_random(len(initial), cfg.random, seed)]
    root, plan = Path(cfg.work_dir), _plan(cfg, seed, [{'arch': arch, 'groups': ['random']} for arch in archs])
    _keep_plan(root, plan)
    outcomes = _train_all(root, archs, cfg.get('workers', 1) if workers is None else workers, plan, progress)
    results = {arch: asdict(outcome) for arch, outcome in zip(archs, outcomes, strict=True)}
    write_text(root / RANDOM, json.dumps(results, indent=1) + '\n')
    return archs


def _take_over(source: Path, root: Path, plan: dict[str, Any], archs: Sequence[str]) -> None:
    """Copies the results from another folder that was made with the same recipe."""
    if not (source / PLAN).is_file():
        raise ValueError(f'{source} has no {PLAN}: it is not a folder of such trainings')
    other = read_json(source / PLAN)
    if differing := [key for key in RECIPE if other.get(key) != plan[key]]:
        raise ValueError(f'the trainings in {source} differ from those of this shortlist in {", ".join(differing)}')
    for arch in archs:
        if (source / arch / RESULT).is_file() and not (root / arch / RESULT).is_file():
            (root / arch).mkdir(parents=True, exist_ok=True)
            write_text(root / arch / RESULT, (source / arch / RESULT).read_text())


def _plan(cfg: Config, seed: int, listed: list[dict[str, Any]]) -> dict[str, Any]:
    """What all trainings of a shortlist depend on."""
    training = Path(cfg.training)
    values = Config.fromfile(training, format_python_code=False).to_dict()
    text = json.dumps(values, sort_keys=True, default=str)
    return {
        'training': str(training.resolve()),
        'training_sha256': hashlib.sha256(text.encode()).hexdigest(),
        'options': _flatten(cfg.get('training_options') or {}),
        'arch_key': cfg.get('arch_key', 'model.model.arch'),
        'seed': seed,
        'processes': cfg.get('processes', 1),
        'listed': json.loads(json.dumps(listed)),
    }


def _flatten(values: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    """Nested settings with dotted keys, as in --cfg-options."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= _flatten(value, f'{prefix}{key}.') if isinstance(value, dict) else {f'{prefix}{key}': value}
    return out


def _keep_plan(root: Path, plan: dict[str, Any]) -> None:
    """Writes the plan, or compares it with the existing one: results of two plans are never mixed."""
    file = root / PLAN
    if file.is_file():
        recorded = read_json(file)
        # The config's location and the number of processes may change.
        differing = [k for k in plan if k not in ('training', 'processes') and recorded.get(k) != plan[k]]
        if differing:
            raise ValueError(
                f'{root} contains another shortlist, which differs in {", ".join(differing)}: use another work dir, or '
                f'remove {file} and the folders beside it'
            )
    root.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(plan, indent=1) + '\n')


# ---- one training ------------------------------------------------------------------------------------------------


def train_one(plan_file: str | Path, arch: str) -> None:
    """Trains one network of a plan, continuing from what its folder contains, and writes its result.

    Runs in every process of the training; rank 0 writes.
    """
    plan, root = read_json(plan_file), Path(plan_file).parent / arch
    start = time.perf_counter()
    values = plan['options'] | {plan['arch_key']: arch, 'experiment_name': f'shortlist_{arch}'}
    runner = train(plan['training'], Options(str(root), 'auto', cfg_options=values, seed=plan['seed']))
    val = {
        name.removeprefix('val/'): float(runner.message_hub.get_scalar(name).current())
        for name in runner.message_hub.log_scalars
        if name.startswith('val/') and not name.endswith('time')
    } or runner.val()  # already trained to its end: nothing was validated now
    test = runner.test()
    if runner.rank == 0:
        outcome = Outcome(_plain(val), _plain(test), time.perf_counter() - start)
        write_text(root / RESULT, json.dumps(asdict(outcome)) + '\n')


def _plain(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _read_result(root: Path) -> Outcome | None:
    file = root / RESULT
    return Outcome(**read_json(file)) if file.is_file() else None


# ---- all of them -------------------------------------------------------------------------------------------------


def _train_all(
    root: Path, archs: Sequence[str], workers: int, plan: dict[str, Any], progress: Progress | None
) -> list[Outcome]:
    """Trains what has no result yet; returns the results of all."""
    processes = plan['processes']
    if workers < 1 or processes < 1:
        raise ValueError(f'workers and processes must be at least 1, got {workers} and {processes}')
    left = [arch for arch in archs if _read_result(root / arch) is None]
    done = len(archs) - len(left)
    if progress and done:
        progress(done, len(archs), 'from an earlier call')
    if left:
        for arch in train_side_by_side(train_one, root / PLAN, left, min(workers, len(left)), processes):
            done += 1
            if progress:
                progress(done, len(archs), arch)
    outcomes = [outcome for arch in archs if (outcome := _read_result(root / arch)) is not None]
    assert len(outcomes) == len(archs), 'a training ended without a result and without an error'
    return outcomes


if __name__ == '__main__':
    train_one(*sys.argv[1:])
