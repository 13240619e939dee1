"""Racing: which paths continue, what scores mean, the prefix cache, groups, and a search that is killed in a group."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import run_on_ranks
from torch import nn

from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.search.evaluate import Evaluator
from pinas_zoo.search.loop import best_told, run_race
from pinas_zoo.search.prefix_tree import PathScore, PrefixCache, PrefixTree
from pinas_zoo.search.racing import Race, RaceSettings, group_of, paired_difference, scores_of, survivors
from pinas_zoo.search.strategies import build_searcher
from pinas_zoo.space import Arch, Candidate, SearchSpace
from pinas_zoo.speed.racing import markdown

SPACE = SearchSpace(
    'raced',
    depths=(1, 2),
    planes=(16, 32),
    strides=(1, 2),
    stem_widths=(8, 8, 8),
    stem_pool=False,
    candidates=(Candidate(), Candidate(radix=2), Candidate(skip=True), Candidate(2, 2, 40)),
)
SETTINGS = RaceSettings((16, 32, 64), z=1.0, group=16, cache_gib=1.0)


def problem() -> tuple[SuperNet, nn.Linear, list, list]:
    torch.manual_seed(0)
    net, head = SuperNet(SPACE, zero_init_last=False), nn.Linear(SPACE.num_features, 5)
    calibration = [torch.randn(8, 3, 8, 8) * (i + 1) for i in range(2)]
    evaluation = [(torch.randn(8, 3, 8, 8), torch.randint(5, (8,))) for _ in range(8)]
    return net, head, calibration, evaluation


def archs_of(count: int) -> list[Arch]:
    rng, found = np.random.default_rng(0), dict[Arch, None]()
    while len(found) < count:
        found[SPACE.sample(rng)] = None
    return list(found)


def losses(mean: float, noise: np.ndarray) -> np.ndarray:
    return np.stack([mean + noise, np.zeros_like(noise)])


# ---- decisions -----------------------------------------------------------------------------------------------------


def test_pairing_sees_what_means_hide() -> None:
    """Losses vary by 1 per image, equally for two paths that differ by 0.05: pairs separate them, means do not."""
    rng = np.random.default_rng(0)
    shared, own = rng.normal(size=400), rng.normal(scale=0.1, size=(2, 400))
    worse, better = losses(1.05, shared + own[0]), losses(1.0, shared + own[1])
    difference, error = paired_difference(worse, better)
    assert abs(difference - 0.05) < 3 * error and difference > 4 * error
    assert worse[0].std() / 20 > 5 * error
    short = better[:, :100]
    assert paired_difference(worse, short) == paired_difference(worse[:, :100], short)


def test_who_goes_on() -> None:
    rng = np.random.default_rng(1)
    shared = rng.normal(size=200)
    archs = [(0,), (1,), (2,), (3,)]
    means = dict(zip(archs, (1.0, 1.01, 1.02, 2.0), strict=True))
    results = {arch: losses(means[arch], shared + rng.normal(scale=0.5, size=200)) for arch in archs}
    every = RaceSettings((200,), z=2, keep=1.0)
    assert survivors(results, archs, None, every) == sorted(archs[:3], key=lambda arch: results[arch][0].mean())
    assert len(survivors(results, archs, None, RaceSettings((200,), z=2, keep=0.5))) == 2
    assert (
        survivors(results, archs, None, RaceSettings((200,), z=0, keep=1.0))
        == survivors(results, archs, None, every)[:1]
    )
    # A rival that is clearly better ends the race of all; one that is far worse changes nothing.
    results[(9,)] = losses(0.2, np.concatenate([shared, shared]))
    assert survivors(results, archs, (9,), every) == []
    results[(9,)] = losses(9.0, np.concatenate([shared, shared]))
    assert survivors(results, archs, (9,), every) == survivors(results, archs, None, every)


def test_scores_are_on_the_scale_of_all_images() -> None:
    """The first images are harder: this biases the mean over the images that a path saw, but not its score."""
    images = np.where(np.arange(100) < 20, 3.0, 1.0)
    whole, dropped = losses(0.0, images), losses(0.5, images[:20])
    one, other = scores_of({(0,): whole, (1,): dropped}, [(0,), (1,)])
    assert one == PathScore((0,), 0.0, pytest.approx(1.4), 100) and other.images == 20
    assert other.loss == pytest.approx(1.9) and dropped[0].mean() == pytest.approx(3.5)


@pytest.mark.parametrize(
    'values', [dict(images=()), dict(images=(4, 4)), dict(images=(8, 4)), dict(images=(1, 4)), dict(images=(4,), z=-1),
               dict(images=(4,), keep=0), dict(images=(4,), keep=1.5), dict(images=(4,), group=0)],
)  # fmt: skip
def test_malformed_settings(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match='allowed for a race'):
        RaceSettings(**values)


def test_groups() -> None:
    bounds = [group_of(index, 80, 8, 32) for index in (0, 31, 32, 79, 80, 87, 88)]
    assert bounds == [(0, 32), (0, 32), (32, 64), (64, 80), (80, 88), (80, 88), (88, 96)]
    with pytest.raises(ValueError, match='multiple of the block of 8'):
        group_of(0, 80, 8, 20)


# ---- networks ------------------------------------------------------------------------------------------------------


def test_a_race_of_everyone_is_the_full_evaluation() -> None:
    net, head, calibration, evaluation = problem()
    archs = archs_of(8)
    full = Evaluator(net, head, calibration, evaluation)(archs)
    race = Evaluator(net, head, calibration, evaluation).race(RaceSettings((16, 64), z=1e9, keep=1.0))
    for ours, expected in zip(race(archs), full, strict=True):
        assert (ours.arch, ours.images) == (expected.arch, expected.images)
        assert ours.loss == pytest.approx(expected.loss, abs=1e-12) and ours.top1 == pytest.approx(expected.top1)


def test_a_race_spends_less_and_its_best_is_scored_on_all() -> None:
    net, head, calibration, evaluation = problem()
    archs = archs_of(16)
    race = Race(net, head, calibration, evaluation, SETTINGS)
    scores = race(archs)
    images = [score.images for score in scores]
    assert set(images) <= {16, 32, 64} and 64 in images and images.count(16) >= 8
    full = {score.arch: score for score in Evaluator(net, head, calibration, evaluation)(archs)}
    best = min((score for score in scores if score.images == 64), key=lambda score: score.loss)
    assert best.loss == pytest.approx(full[best.arch].loss, abs=1e-12)
    # The rival's losses come from the last group or, in a new process, from its images: the same to the last bit.
    again = race(archs[:5], best.arch)
    assert again == Race(net, head, calibration, evaluation, SETTINGS)(archs[:5], best.arch)
    with pytest.raises(ValueError, match='at least one image'):
        Race(net, head, calibration, [], SETTINGS)(archs)


@pytest.mark.parametrize(('gib', 'depth'), [(1.0, 0), (1.0, 2), (40e-6, 3)])
def test_the_cache_changes_nothing_and_runs_less(gib: float, depth: int) -> None:
    """Trees with a cache against trees without, bit for bit; also with room for a part of the outputs."""
    net, head, calibration, evaluation = problem()
    archs, cache = archs_of(24), PrefixCache(gib, depth)
    calls: list[int] = []
    for module in (net.conv1, *(block for position in net.blocks for block in position.candidates)):
        module.register_forward_hook(lambda *_: calls.append(1))
    counts = []
    for block in (archs[:8], archs[8:16], archs[16:]):
        results = []
        for kept in (None, cache):
            calls.clear()
            tree = PrefixTree(net, block, kept)
            tree.calibrate(calibration)
            results.append(tree.per_image(evaluation, head))
            counts.append(len(calls))
        plain, ours = results
        assert plain.keys() == ours.keys() and all(torch.equal(plain[leaf], ours[leaf]) for leaf in plain)
    assert counts[0] == counts[1] and counts[3] < counts[2] and counts[5] < counts[4]
    assert cache.room >= 0


def test_pruned_paths_do_not_run() -> None:
    net, head, calibration, evaluation = problem()
    archs = archs_of(6)
    tree = PrefixTree(net, archs)
    tree.calibrate(calibration)
    whole = tree.per_image(evaluation, head)
    assert tree.prune({1, 4})
    left = tree.per_image(evaluation, head)
    assert set(left) == {1, 4} and all(torch.equal(left[leaf], whole[leaf]) for leaf in left)
    assert not tree.prune(set())


# ---- a search ------------------------------------------------------------------------------------------------------


def raced(
    budget: int, stop: int | None = None, told: list[tuple[Arch, float, int | None]] | None = None
) -> list[PathScore]:
    """A search by racing; `stop` kills it after that many recorded paths, `told` continues it."""
    net, head, calibration, evaluation = problem()
    searcher = build_searcher('evolution', SPACE, seed=3, block=4, population=16, sample=4)
    race = Race(net, head, calibration, evaluation, SETTINGS)
    told, paths = told or [], list[PathScore]()
    searcher.replay((arch, score) for arch, score, _ in told)

    def record(scores: Any, evaluated: int) -> None:
        assert evaluated >= len(scores)
        paths.extend(scores)
        if stop is not None and len(paths) >= stop:
            raise InterruptedError

    try:
        run_race(searcher, race, budget, 'loss', told, record)
    except InterruptedError:
        return paths[:stop]
    return paths


def test_a_search_continues_exactly_wherever_it_stopped() -> None:
    reference = raced(30)
    assert len(reference) == 30 and len({path.arch for path in reference}) == 30
    assert len({path.images for path in reference}) > 1
    for stop in (5, 16, 21):  # within the random group, between groups, within a block
        before = raced(30, stop)
        assert before == reference[:stop]
        told = [(path.arch, -path.loss, path.images) for path in before]
        assert before + raced(30, told=told) == reference
    assert raced(22) == reference[:22]  # a budget that ends within a block
    told = [(path.arch, -path.loss, path.images) for path in reference]
    best = best_told(told)
    assert best is not None and best[2] == 64


def _rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2)
    scores = raced(24)
    torch.save([[*s.arch, s.top1, s.loss, s.images] for s in scores], f'{folder}/{rank}.pt')
    dist.destroy_process_group()


@pytest.mark.processes
def test_two_ranks_race_alike(tmp_path: Path) -> None:
    run_on_ranks(_rank_main, str(tmp_path))
    ours = [torch.load(tmp_path / f'{rank}.pt', weights_only=True) for rank in (0, 1)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = [[*s.arch, s.top1, s.loss, s.images] for s in raced(24)]
    torch.set_num_threads(threads)
    assert ours[0] == ours[1] == expected


def test_the_table_of_the_docs_is_that_of_the_measured_figures() -> None:
    root = Path(__file__).parents[1]
    cases = json.loads((root / 'benchmarks' / 'cpu-2-cores_racing.json').read_text())['cases']
    assert markdown(cases) in (root / 'docs' / 'benchmark.md').read_text()
    assert set(cases) == {'ranking', 'nano'} and all(case['images_per_path']['race'] > 0 for case in cases.values())
