"""Racing against the full procedure: paths per hour and the agreement of their orders, on two supernets.

The full procedure is that of the release: BN re-estimation on 6,272 images and 50,000 scored images for every path (the
nano space has 10,000 images that its supernet has not seen), one path after another. Its order of the paths is
computed with shared prefixes, which gives the same scores; its time is that of a few paths, measured one by one
between two halves of the race, in the same process.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pinas_zoo.data.fixed_batches import FixedBatches
from pinas_zoo.files import write_atomic, write_text
from pinas_zoo.methods.pinas import PiNAS
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.models.typed import to_memory_format
from pinas_zoo.ranking.contestants import CONTESTANTS, build_method, training_units
from pinas_zoo.ranking.recipe import SupernetRecipe
from pinas_zoo.ranking.spaces import RANK_SPACE
from pinas_zoo.ranking.statistics import agreement, attainable_tau
from pinas_zoo.ranking.task import PairTask, compose, normalise
from pinas_zoo.ranking.train import cosine, optimise, train_linear_head, view_batches
from pinas_zoo.search.loop import Told, best_told
from pinas_zoo.search.prefix_tree import PathScore, PrefixTree
from pinas_zoo.search.racing import Race, RaceSettings, group_of
from pinas_zoo.space import PINAS_NANO, Arch
from pinas_zoo.speed.rank import evaluate_alone
from pinas_zoo.weights.download import find_weights
from pinas_zoo.weights.load import load_weights, read_weights
from pinas_zoo.weights.loading import load_supernet

__all__ = ['CASES', 'Case', 'markdown', 'measure']

#: Images per calibration batch, as released, and batches of the full procedure.
BATCH, FULL_BATCHES = 128, 49
#: Paths that are drawn at random, raced as one group; then proposals of a block race each other and the best so far.
PATHS, INITIAL, BLOCK = 96, 48, 8
#: Paths per file of the full scores, so that a stopped run continues.
CHUNK = 8
#: Paths that are scored on two disjoint halves of the images too, to see how much of the full order is noise.
NOISE = 32
#: Paths whose full procedure is timed one by one.
TIMED = 4


@dataclass(frozen=True)
class Case:
    """A supernet with its images.

    Args:
        supernet: The supernet.
        head: Its linear head.
        calibration: All batches of the full procedure.
        evaluation: All held-out batches.
        race_batches: Calibration batches of the race.
        race: Its settings.
    """

    supernet: SuperNet
    head: nn.Module
    calibration: list[Tensor]
    evaluation: list[tuple[Tensor, Tensor]]
    race_batches: int
    race: RaceSettings

    @property
    def held_out(self) -> int:
        """Number of held-out images."""
        return sum(len(labels) for _, labels in self.evaluation)


def ranking_case(folder: Path, quick: bool) -> Case:
    """The study's Pi-NAS supernet with seed 0, trained by its recipe (70 s on one core), on 50,000 held-out pairs."""
    recipe, task = SupernetRecipe(), PairTask(heldout=1_000 if quick else 50_000)
    recipe = replace(recipe, units=20, linear_steps=20, warmup=2) if quick else recipe
    file = folder / ('ranking_quick.pth' if quick else 'ranking.pth')
    torch.manual_seed(0)
    net = SuperNet(RANK_SPACE, in_chans=task.in_chans, zero_init_last=recipe.zero_init_last)
    head = nn.Linear(RANK_SPACE.num_features, task.num_classes)
    if file.is_file():
        state = torch.load(file, weights_only=True)
        net.load_state_dict(state['supernet'])
        head.load_state_dict(state['head'])
        to_memory_format(net, torch.channels_last)
    else:
        contestant = CONTESTANTS['pinas']
        method = build_method(contestant, recipe, net, task.num_classes, seed=0)
        assert isinstance(method, PiNAS)
        to_memory_format(method, torch.channels_last).train()
        units = training_units(contestant, recipe)
        rates: dict[str, Any] = dict(lr=recipe.contrast_lr, weight_decay=recipe.contrast_decay, warmup=recipe.warmup)
        optimise(method, view_batches(task, recipe, 4, 0), units, rate=cosine, **rates)
        head = train_linear_head(net, task, recipe, recipe.linear_steps, 0)
        state = {'supernet': net.state_dict(), 'head': head.state_dict()}
        write_atomic(file, lambda temporary: torch.save(state, temporary))
    train, held = compose(task, 'train'), compose(task, 'heldout')
    batches = 2 if quick else FULL_BATCHES
    calibration = [normalise(x, task.patch) for x in train.images[: batches * BATCH].split(BATCH)]
    pairs = zip(held.images.split(500), held.labels.split(500), strict=True)
    evaluation = [(normalise(x, task.patch), y) for x, y in pairs]
    race = RaceSettings((500, 1000) if quick else (3000, 12_000, 50_000), group=INITIAL, cache_gib=1.0)
    return Case(net, head, calibration, evaluation, 1 if quick else 8, race)


def nano_case(folder: Path, quick: bool) -> Case:
    """The published nano supernet, on the 10,000 training images of Fashion-MNIST that no earlier stage has seen."""
    file = find_weights('pinas://pinas_nano_supernet_fmnist')
    net, head = load_supernet(file, PINAS_NANO), nn.Linear(PINAS_NANO.num_features, 10)
    state, _ = read_weights(file)
    inner = {name.removeprefix('head.'): tensor for name, tensor in state.items() if name.startswith('head.')}
    load_weights(head, inner, str(file))
    source = dict(kind='fashion-mnist', split='train')
    batches, images = (2, 1000) if quick else (FULL_BATCHES, 10_000)
    calibration = FixedBatches(dict(source=dict(source, limit=50_000), size=28), BATCH, batches)
    held = dict(source=dict(source, start=50_000, limit=images), size=28)
    evaluation = FixedBatches(held, 500, labelled=True)
    race = RaceSettings((500, 1000) if quick else (1000, 2500, 5000), group=INITIAL, cache_gib=1.0)
    to_memory_format(net, torch.channels_last)
    layout = torch.channels_last
    return Case(
        net,
        head,
        [x.contiguous(memory_format=layout) for x in calibration],
        [(x.contiguous(memory_format=layout), y) for x, y in evaluation],
        1 if quick else 4,
        race,
    )


#: What is measured, by name.
CASES: dict[str, Callable[[Path, bool], Case]] = {'ranking': ranking_case, 'nano': nano_case}


def measure(
    folder: Path, quick: bool = False, names: Sequence[str] = (), seed: int = 0, paths: int = PATHS
) -> dict[str, Any]:
    """Measures the cases; a stopped run continues where it was.

    Args:
        folder: Where supernets, full scores and results are kept.
        quick: Tiny sizes, to see that everything runs.
        names: Keys of `CASES`; none means all.
        seed: Seed of the paths.
        paths: Number of paths.

    Returns:
        The results by case; each is also written to the folder.
    """
    results = {}
    for name in names or CASES:
        file = folder / f'{name}.json'
        if file.is_file():
            results[name] = json.loads(file.read_text())
            continue
        folder.mkdir(parents=True, exist_ok=True)
        case = CASES[name](folder, quick)
        archs = _draw(case, 2 * BLOCK if quick else paths, seed)
        full = _full_losses(case, archs, folder / f'{name}_full')
        some = archs[:NOISE]
        halves = [_full_losses(_half(case, i), some, folder / f'{name}_half{i}') for i in (0, 1)]
        results[name] = _compare(case, archs, full, quick) | {'noise': _noise(*halves)}
        write_text(file, json.dumps(results[name], indent=1) + '\n')
    return results


def _draw(case: Case, count: int, seed: int) -> list[Arch]:
    rng, found = np.random.default_rng(seed), dict[Arch, None]()
    while len(found) < count:
        found[case.supernet.space.sample(rng)] = None
    return list(found)


def _full_losses(case: Case, archs: list[Arch], folder: Path) -> np.ndarray:
    """Mean loss of every path by the full procedure, a few paths at a time, each on disk before the next."""
    rows: list[float] = []
    for start in range(0, len(archs), CHUNK):
        file = folder / f'{start}.json'
        if not file.is_file():
            begin = time.perf_counter()
            tree = PrefixTree(case.supernet, archs[start : start + CHUNK])
            tree.calibrate(case.calibration)
            losses = [score.loss for score in tree.evaluate(case.evaluation, case.head)]
            write_text(file, json.dumps(losses) + '\n')
            spent = time.perf_counter() - begin
            print(f'full procedure: {start + len(losses)} of {len(archs)} paths, {spent:.0f} s', file=sys.stderr)
        rows += json.loads(file.read_text())
    return np.array(rows)


def _half(case: Case, parity: int) -> Case:
    """Every second batch, for calibration and for scores: the two halves share no image."""
    return replace(case, calibration=case.calibration[parity::2], evaluation=case.evaluation[parity::2])


def _noise(first: np.ndarray, second: np.ndarray) -> dict[str, int | float]:
    """How far the full procedure's own order can be trusted, from two evaluations on disjoint halves of its images.

    'attainable_tau' (see `statistics.attainable_tau`) is what an estimate without noise would have with the full
    procedure, 'tau_of_repetition' what a second full procedure on other images would have; 'loss_noise' is the standard
    deviation of the full loss of a path over sets of images.
    """
    attainable = attainable_tau(first, second)
    return {
        'paths': len(first),
        'tau_of_halves': agreement([first, second])['mean'],
        'tau_of_repetition': 2 / math.pi * math.asin(math.sin(math.pi / 2 * attainable) ** 2),
        'attainable_tau': attainable,
        'loss_noise': float((first - second).std(ddof=1)) / 2,  # of a half sqrt(2) times as much
    }


def _compare(case: Case, archs: list[Arch], full: np.ndarray, quick: bool) -> dict[str, Any]:
    """The race, between timings of the full procedure; and what its scores say."""
    from scipy.stats import kendalltau  # slow to import

    timed = archs[:: max(1, len(archs) // (2 if quick else TIMED))][: 2 if quick else TIMED]
    alone = [_time_alone(case, arch) for arch in timed[: len(timed) // 2]]
    scores, seconds = _race(case, archs)
    alone += [_time_alone(case, arch) for arch in timed[len(timed) // 2 :]]
    losses = np.array([score.loss for score in scores])
    calibration = BATCH * case.race_batches
    images = float(np.mean([score.images for score in scores])) + calibration
    full_images = case.held_out + BATCH * len(case.calibration)
    whole = max(score.images for score in scores)
    best = min((i for i, score in enumerate(scores) if score.images == whole), key=lambda i: losses[i])
    rates = {'full': 3600 / median(alone), 'race': 3600 * len(archs) / seconds}
    return {
        'space': case.supernet.space.name,
        'paths': len(archs),
        'full': {'calibration': BATCH * len(case.calibration), 'held_out': case.held_out},
        'race': {
            'calibration': calibration,
            **case.race.facts(),
            'initial': INITIAL,
            'block': BLOCK,
            'cache_gib': case.race.cache_gib,
        },
        'images_per_path': {'full': full_images, 'race': images},
        'paths_by_images': {str(n): sum(s.images == n for s in scores) for n in sorted({s.images for s in scores})},
        'seconds_full_one_by_one': alone,
        'seconds_race': seconds,
        'paths_per_hour': rates,
        'speedup': rates['race'] / rates['full'],
        'fewer_images': full_images / images,
        'tau': float(kendalltau(losses, full).statistic),
        'best_of_the_race': {'rank': 1 + int((full < full[best]).sum()), 'regret_loss': float(full[best] - full.min())},
        'loss_spread': float(full.std()),
        'torch': {'version': torch.__version__, 'threads': torch.get_num_threads()},
    }


def _time_alone(case: Case, arch: Arch) -> float:
    """Seconds of the full procedure for one path."""
    begin = time.perf_counter()
    evaluate_alone(case.supernet, case.head, arch, case.calibration, case.evaluation)
    print(f'one path: {time.perf_counter() - begin:.1f} s', file=sys.stderr)
    return time.perf_counter() - begin


def _race(case: Case, archs: list[Arch]) -> tuple[list[PathScore], float]:
    """Races the paths as a search would whose proposals they are: a first group, then blocks."""
    race = Race(case.supernet, case.head, case.calibration[: case.race_batches], case.evaluation, case.race)
    begin, scores, told = time.perf_counter(), list[PathScore](), list[Told]()
    while len(scores) < len(archs):
        rival = best_told(told)
        _, end = group_of(len(scores), INITIAL, BLOCK, case.race.group)
        scores += race(archs[len(scores) : end], None if rival is None else rival[0])
        told = [(score.arch, -score.loss, score.images) for score in scores]
    return scores, time.perf_counter() - begin


def markdown(cases: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of docs/benchmark.md."""
    names = ('supernet', 'images per path', 'paths per hour', 'ratio', 'tau', "rank of the race's best")
    lines = [f'| {" | ".join(names)} |', f'|{"---|" * len(names)}']
    for name, case in cases.items():
        images, rates = case['images_per_path'], case['paths_per_hour']
        cells = (
            f'{name}, {case["paths"]} paths',
            f'{images["full"]:,.0f} / {images["race"]:,.0f}',
            f'{rates["full"]:,.0f} / {rates["race"]:,.0f}',
            f'**{case["speedup"]:.1f}**',
            f'**{case["tau"]:.3f}**',
            f'{case["best_of_the_race"]["rank"]}',
        )
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)
