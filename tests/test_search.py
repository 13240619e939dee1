"""Search: better than random on a toy, deterministic, resumable, within limits, never twice."""

from __future__ import annotations

import builtins
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pinas_zoo.search.limits import Limits
from pinas_zoo.search.log import SearchLog, SearchRecord
from pinas_zoo.search.partition_tree import PartitionTree, TreeSettings
from pinas_zoo.search.searcher import Searcher
from pinas_zoo.search.strategies import RandomSearch, build_searcher
from pinas_zoo.space import PINAS, PINAS_NANO, Arch, Candidate, SearchSpace

Objective = Callable[[Arch], float]
#: 16 architectures: small enough to run out.
MINI = SearchSpace(
    'mini',
    depths=(1, 1),
    planes=(16, 32),
    strides=(1, 2),
    stem_widths=(4, 4, 8),
    stem_pool=False,
    min_attention_width=8,
    input_size=16,
)
#: Each searcher with settings that leave the random start early.
QUICK = {
    'random': {},
    'tree': {'initial': 16, 'max_draws': 2048, 'estimators': 10, 'depth': 2, 'min_samples': 4},
    'evolution': {'population': 16, 'sample': 4, 'crossover': 0.5},
}


def toy(seed: int) -> tuple[Objective, Arch]:
    """A sum over positions plus one over neighbouring pairs; its optimum scores exactly 1."""
    rng = np.random.default_rng(seed)
    best = rng.integers(4, size=PINAS.num_positions)
    here = np.arange(PINAS.num_positions)
    single = rng.random((len(here), 4))
    single[here, best] = 1
    single *= 0.85 ** rng.permutation(len(here))[:, None]
    pair = 0.2 * rng.random((len(here) - 1, 4, 4))
    pair[here[:-1], best[:-1], best[1:]] = 0.2

    def total(arch: Arch) -> float:
        digits = np.array(arch)
        pairs = pair[here[:-1], digits[:-1], digits[1:]]
        return float(single[here, digits].sum() + pairs.sum())

    optimum = tuple(map(int, best))
    return lambda arch: total(arch) / total(optimum), optimum


def run(searcher: Searcher, objective: Objective, budget: int) -> list[tuple[Arch, float]]:
    while len(searcher.history) < budget and (archs := searcher.ask()):
        searcher.tell(archs, [objective(arch) for arch in archs])
    return searcher.history


def mini_score(arch: Arch) -> float:
    return float(sum(digit * (place + 1) for place, digit in enumerate(arch)))


def cost(arch: Arch) -> SimpleNamespace:
    return SimpleNamespace(macs=10.0 + sum(arch), params=100.0 + 2 * sum(arch))


def test_the_toy_has_its_optimum_where_it_says() -> None:
    for seed in range(5):
        objective, optimum = toy(seed)
        assert objective(optimum) == 1
        rng = np.random.default_rng(1000 + seed)
        assert max(objective(PINAS.sample(rng)) for _ in range(200)) < 1


def test_tree_and_evolution_beat_random_at_equal_budget() -> None:
    budget, seeds = 144, range(20)
    # The tree's heights are the paper's bounds scaled to this budget.
    tree = {'initial': 40, 'max_draws': 2048, 'estimators': 8, 'depth': 2}
    settings = {
        'random': {},
        'tree': {**tree, 'heights': (50, 65, 80, 100), 'min_samples': 8},
        'evolution': {'population': 32, 'sample': 8},
    }
    best: dict[str, np.ndarray] = {}
    for name, values in settings.items():
        scores = []
        for seed in seeds:
            history = run(build_searcher(name, PINAS, seed=seed, **values), toy(100 + seed)[0], budget)
            assert len({arch for arch, _ in history}) == len(history) == budget
            scores.append(max(score for _, score in history))
        best[name] = np.array(scores)
    for name in ('tree', 'evolution'):
        wins = int((best[name] > best['random']).sum())
        gain = float((best[name] - best['random']).mean())
        assert wins >= 15 and gain > 0.02, (name, wins, gain)


@pytest.mark.parametrize('name', QUICK)
def test_deterministic_per_seed_and_however_asked(name: str) -> None:
    objective, _ = toy(0)
    whole = run(build_searcher(name, PINAS, seed=3, **QUICK[name]), objective, 48)
    assert whole == run(build_searcher(name, PINAS, seed=3, **QUICK[name]), objective, 48)
    assert whole != run(build_searcher(name, PINAS, seed=4, **QUICK[name]), objective, 48)
    # Asked for in odd portions, told one by one, as ranks of any number would do it.
    portions = build_searcher(name, PINAS, seed=3, **QUICK[name])
    while len(portions.history) < 48:
        for arch in portions.ask(3):
            portions.tell([arch], [objective(arch)])
    assert portions.history[:48] == whole


def test_global_random_state_is_left_alone() -> None:
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()
    run(build_searcher('tree', PINAS, **QUICK['tree']), toy(0)[0], 32)
    assert np.random.get_state()[1].tolist() == before


@pytest.mark.parametrize('name', QUICK)
@pytest.mark.parametrize('stop', [5, 16, 27])
@pytest.mark.parametrize('incomplete', [b'', b'{"index": 9', b'\x00\x00\x00'])
def test_resumed_search_equals_an_uninterrupted_one(name: str, stop: int, incomplete: bytes, tmp_path: Path) -> None:
    objective, _ = toy(1)
    whole = run(build_searcher(name, PINAS, seed=7, **QUICK[name]), objective, 40)
    path = tmp_path / 'archs.jsonl'
    evaluated: list[Arch] = []

    def search_until(budget: int) -> Searcher:
        searcher = build_searcher(name, PINAS, seed=7, **QUICK[name])
        with SearchLog(path, searcher.header('abc')) as log:
            searcher.replay((record.arch, record.score) for record in log.records)
            while len(log) < budget:
                for arch in searcher.ask(min(8, budget - len(log))):
                    evaluated.append(arch)
                    record = SearchRecord(len(log), PINAS.format(arch), objective(arch))
                    log.append(record)
                    searcher.tell([arch], [record.score])
        return searcher

    search_until(stop)
    with path.open('ab') as file:
        file.write(incomplete)
    resumed = search_until(40)
    assert resumed.history == whole
    assert evaluated == [arch for arch, _ in whole]
    _, records = SearchLog.read(path)
    assert [record.index for record in records] == list(range(40))
    assert [(PINAS.parse(r.arch), r.score) for r in records] == whole


@pytest.mark.parametrize('name', QUICK)
def test_small_space_is_exhausted_without_repeats(name: str) -> None:
    searcher = build_searcher(name, MINI, block=6, **QUICK[name])
    history = run(searcher, mini_score, 1000)
    assert {arch for arch, _ in history} == set(MINI.all_archs())
    assert len(history) == MINI.num_archs == 16
    assert searcher.ask(5) == [] and searcher.ask() == []
    assert searcher.best == ((3, 3), 9.0)


def test_ask_returns_fewer_than_asked_when_the_space_ends() -> None:
    assert len(RandomSearch(MINI).ask(100)) == 16


@pytest.mark.parametrize('name', QUICK)
def test_limits_hold_for_every_proposal(name: str) -> None:
    limits = Limits(cost, max_macs=10 + 20, max_params=100 + 44)
    searcher = build_searcher(name, PINAS, constraint=limits, **QUICK[name])
    history = run(searcher, lambda arch: float(sum(arch)), 48)
    assert len(history) == 48
    assert all(limits(arch) and sum(arch) <= 20 for arch, _ in history)


def test_limits_that_draws_rarely_meet_are_met_by_making_archs_cheaper() -> None:
    searcher = RandomSearch(PINAS, constraint=Limits(cost, max_macs=12))
    archs = searcher.ask(24)
    assert len(set(archs)) == 24 and all(sum(arch) <= 2 for arch in archs)


def test_a_predicate_is_a_constraint_too() -> None:
    searcher = build_searcher('random', MINI, constraint=lambda arch: arch[0] == 2)
    assert sorted(searcher.ask(50)) == [(2, c) for c in range(4)]


@pytest.mark.parametrize('space', [MINI, PINAS])
def test_infeasible_limits_name_the_limits_and_the_cheapest(space: SearchSpace) -> None:
    searcher = build_searcher('tree', space, constraint=Limits(cost, max_macs=9, max_params=500))
    cheapest = space.format((0,) * space.num_positions)
    with pytest.raises(ValueError, match=rf'macs <= 9, params <= 500 .*{cheapest} .*macs 10,'):
        searcher.ask()
    with pytest.raises(ValueError, match='satisfies the constraint'):
        build_searcher('random', space, constraint=lambda arch: False).ask()


def test_ucb_explores_where_greedy_does_not() -> None:
    objective, _ = toy(2)
    histories = {
        ucb: run(build_searcher('tree', PINAS, ucb=ucb, **QUICK['tree']), objective, 96) for ucb in (0.0, 0.1, 10.0)
    }
    assert histories[0.0][:16] == histories[0.1][:16]
    assert histories[0.0] != histories[0.1]
    late = {ucb: np.mean([s for _, s in history[16:]]) for ucb, history in histories.items()}
    # A huge constant visits the bad side as often as the good one.
    assert late[10.0] < late[0.0]


def test_tree_copes_with_tied_scores() -> None:
    for objective in (lambda arch: 0.5, lambda arch: float(sum(arch) > 40)):
        searcher = build_searcher('tree', PINAS, **QUICK['tree'])
        assert len(run(searcher, objective, 40)) == 40


def test_tree_height_follows_the_number_of_evaluations() -> None:
    fits: list[int] = []

    class Constant:
        def __init__(self, **_: object) -> None: ...

        def fit(self, codes: np.ndarray, labels: np.ndarray) -> None:
            fits.append(len(labels))
            assert abs(int(labels.sum()) - len(labels) / 2) <= 1

        def predict(self, codes: np.ndarray) -> np.ndarray:
            return np.ones(len(codes), dtype=bool)

    for samples, levels in ((400, 1), (408, 2), (800, 2), (1600, 3), (3200, 4), (3208, 5)):
        tree = PartitionTree(PINAS, settings=TreeSettings())
        tree._classifier = Constant
        rng = np.random.default_rng(0)
        archs = list(dict.fromkeys(tuple(a) for a in tree.uniform(rng, samples).tolist()))
        assert len(archs) == samples
        tree.replay((arch, float(place)) for place, arch in enumerate(archs))
        fits.clear()
        tree.ask()
        assert fits == [-(-samples // 2**level) for level in range(levels)]


def test_a_node_at_chance_is_not_split() -> None:
    """The quality gate: scores without structure give no split, those of a toy do; without the gate both do."""
    rng = np.random.default_rng(5)
    archs = list(dict.fromkeys(tuple(a) for a in PartitionTree(PINAS).uniform(rng, 160).tolist()))
    noise = rng.permutation(len(archs))
    splits = {}
    for folds in (0, 5):
        for name, scores in (('toy', [float(sum(arch)) for arch in archs]), ('noise', noise.tolist())):
            made = []
            for start in (0, 80):  # two samples of each
                tree = PartitionTree(PINAS, settings=TreeSettings(folds=folds))
                tree.replay(zip(archs[start : start + 80], scores[start : start + 80], strict=True))
                tree._codes, tree._values = tree._encode(np.array(tree._proposed)), np.array(tree._scores)
                made.append(bool(tree._split(tree._node(np.arange(80), ()), np.random.default_rng(0))))
            splits[folds, name] = made
    assert all(splits[0, 'noise']) and all(splits[0, 'toy']) and all(splits[5, 'toy'])
    assert not all(splits[5, 'noise'])
    with pytest.raises(ValueError, match='folds must be 0 or at least 2'):
        TreeSettings(folds=1)
    plain, gated = (PartitionTree(PINAS, settings=TreeSettings(folds=n)).header('') for n in (0, 5))
    assert 'folds' not in plain['settings'] and gated['settings']['folds'] == 5  # logs from before it go on


def test_non_finite_scores_are_refused_and_nothing_is_recorded() -> None:
    searcher = RandomSearch(PINAS)
    archs = searcher.ask(2)
    for score in (math.nan, math.inf):
        with pytest.raises(ValueError, match='must be finite'):
            searcher.tell(archs, [0.5, score])
    assert searcher.history == []
    with pytest.raises(ValueError, match='finite'):
        SearchRecord(0, '0', math.nan)
    with pytest.raises(ValueError, match='finite'):
        SearchRecord(0, '0', 0.5, loss=math.inf)


def test_results_are_told_in_proposal_order() -> None:
    searcher = RandomSearch(PINAS)
    first, second = searcher.ask(2)
    with pytest.raises(ValueError, match='in the order of the proposals'):
        searcher.tell([second], [0.1])
    with pytest.raises(ValueError, match='one score per arch'):
        searcher.tell([first, second], [0.1])
    searcher.tell([first], [0.1])
    searcher.tell([second], [0.2])
    with pytest.raises(ValueError, match='next proposal is none'):
        searcher.tell([second], [0.2])
    assert searcher.best == (second, 0.2)


def test_asking_on_needs_the_results() -> None:
    searcher = build_searcher('evolution', PINAS, population=8, sample=2)
    assert len(searcher.ask(20)) == 8
    with pytest.raises(ValueError, match='8 proposals are pending'):
        searcher.ask()
    with pytest.raises(ValueError, match='n of at least 1'):
        searcher.ask(0)


def test_replay_refuses_what_the_search_would_not_propose() -> None:
    searcher = RandomSearch(PINAS, seed=0)
    foreign = [(arch, 0.5) for arch in RandomSearch(PINAS, seed=1).ask(3)]
    with pytest.raises(ValueError, match='these settings propose'):
        searcher.replay(foreign)
    with pytest.raises(ValueError, match='new searcher'):
        searcher.replay(foreign)
    with pytest.raises(ValueError, match='more than once'):
        RandomSearch(PINAS).replay(foreign + foreign[:1])
    with pytest.raises(ValueError, match='constraint'):
        RandomSearch(PINAS, constraint=lambda arch: False).replay(foreign)


def test_unknown_names_and_settings_list_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'annealing'.*evolution.*random.*tree"):
        build_searcher('annealing', PINAS)
    with pytest.raises(ValueError, match=r"'sample'.*initial.*ucb"):
        build_searcher('tree', PINAS, sample=3)
    with pytest.raises(ValueError, match='population'):
        build_searcher('evolution', PINAS, population=4, sample=8)
    with pytest.raises(ValueError, match=r'TreeSettings\.ucb must be at least 0, got -1'):
        build_searcher('tree', PINAS, ucb=-1)
    with pytest.raises(ValueError, match='seed'):
        build_searcher('random', PINAS, seed=-1)


def test_missing_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith('sklearn'):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', refuse)
    with pytest.raises(ImportError, match=r"pip install 'pinas-zoo\[search\]'"):
        build_searcher('tree', PINAS)


def test_skips_are_proposed_where_they_fit_only() -> None:
    skip = replace(PINAS_NANO, name='skip', candidates=(*PINAS_NANO.candidates, Candidate(skip=True)))
    searcher = build_searcher('evolution', skip, population=16, sample=4)
    history = run(searcher, lambda arch: float(sum(arch)), 64)
    archs = np.array([arch for arch, _ in history])
    assert (archs[:, 0::2] < 4).all() and (archs[:, 1::2] == 4).any()


def test_header_is_plain_and_carries_the_limits() -> None:
    tree = build_searcher('tree', PINAS, seed=2, constraint=Limits(cost, max_macs=40), ucb=0.1)
    values = json.loads(json.dumps(tree.header('abc')))
    assert values['searcher'] == 'tree' and values['seed'] == 2 and values['checkpoint'] == 'abc'
    assert values['settings']['limits'] == {'max_macs': 40, 'max_params': None}
    assert values['settings']['ucb'] == 0.1 and values['settings']['block'] == 8
    assert SearchSpace.from_dict(values['space']) == PINAS
