"""Latency tables: what they hold, the limits and the cost term that use them, the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pinas_cli.main import command
from pinas_zoo.methods.fpnas import FPNAS
from pinas_zoo.methods.knapsack import best_arch
from pinas_zoo.models.latency import Check, Interval, LatencyTable, measure_table
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.search.limits import Limits
from pinas_zoo.search.strategies import build_searcher
from pinas_zoo.space import Candidate, SearchSpace

SPACE = SearchSpace(
    'timed',
    depths=(1, 2),
    planes=(16, 32),
    strides=(1, 2),
    stem_widths=(8, 8, 8),
    input_size=16,
    candidates=(Candidate(), Candidate(radix=2), Candidate(skip=True), Candidate(2, 2, 40)),
)
LEAST = 1e-3


@pytest.fixture(scope='module')
def table() -> LatencyTable:
    net = SuperNet(SPACE).train()
    made = measure_table(net, 'a processor', batch=2, num_classes=5, checks=3, min_seconds=LEAST)
    assert net.training
    return made


def with_seconds(table: LatencyTable, seconds: list[list[float | None]]) -> LatencyTable:
    rows = tuple(tuple(None if s is None else Interval(s, s, s) for s in row) for row in seconds)
    return replace(table, fixed={'stem': Interval(1.0, 1.0, 1.0)}, table=rows, checks=(), scale=1.0)


@pytest.fixture(scope='module')
def known(table: LatencyTable) -> LatencyTable:
    return with_seconds(table, [[1, 2, None, 3], [1, 2, None, 3], [1, 2, 0, 3]])


def test_a_table_is_of_its_space_and_adds_up(table: LatencyTable) -> None:
    for position, row in enumerate(table.table):
        assert [one is not None for one in row] == [choice in SPACE.choices(position) for choice in range(4)]
        assert all(0 < one.low <= one.median <= one.high for one in row if one is not None)
    assert set(table.fixed) == {'stem', 'head'} and table.conditions.batch == 2 and table.conditions.size == (16, 16)
    rows = [table.table[p][c] for p, c in enumerate((0, 3, 2))]
    total = sum(part.median for part in table.fixed.values()) + sum(one.median for one in rows if one is not None)
    assert table.of('0-32') == table.of((0, 3, 2)) == pytest.approx(table.scale * total)
    assert table.scale > 0 and table.scale != 1
    assert len(table.checks) == 3 and all(check.total == table.of(check.arch) for check in table.checks)
    with pytest.raises(ValueError):
        table.of('2-00')  # a skip does not fit the first position
    with pytest.raises(ValueError, match="precision='int8', allowed: float32, bfloat16, float16"):
        measure_table(SuperNet(SPACE), 'x', precision='int8')
    with pytest.raises(ValueError, match="clock must be 'wall', or 'processor' on a CPU with one thread; got 'sun'"):
        measure_table(SuperNet(SPACE), 'x', clock='sun')


def test_what_the_checks_say(known: LatencyTable) -> None:
    checked = replace(known, checks=tuple(
        Check('0-00', Interval(whole, whole, whole), total) for whole, total in ((1.0, 1.1), (2.0, 1.6), (4.0, 4.0))
    ))  # fmt: skip
    assert checked.errors() == {'median': pytest.approx(0.1), 'worst': pytest.approx(0.2), 'tau': 1.0}
    with pytest.raises(ValueError, match='no whole network'):
        known.errors()


def test_the_file_makes_the_round_trip(table: LatencyTable, tmp_path: Path) -> None:
    table.save(tmp_path / 'table.json')
    again = LatencyTable.read(tmp_path / 'table.json')
    assert again == table and again.identity() == table.identity()
    assert json.loads((tmp_path / 'table.json').read_text())['errors']['worst'] >= 0
    for text in ('[]', '{', '{"space": 3}'):
        (tmp_path / 'bad.json').write_text(text)
        with pytest.raises(ValueError, match='is not a latency table'):
            LatencyTable.read(tmp_path / 'bad.json')


def limits(table: LatencyTable, seconds: float, **more: float) -> Limits:
    cost = lambda arch: SimpleNamespace(macs=sum(arch), params=1)  # noqa: E731
    return Limits(cost, max_latency=seconds, latency=table.of, latency_of=table.identity(), **more)


def test_a_search_stays_below_its_latency(known: LatencyTable) -> None:
    """Every proposal, and the exact choice by an additive score."""
    bound = limits(known, 6.0)
    searcher = build_searcher('evolution', SPACE, constraint=bound, population=8, sample=4)
    for _ in range(3):
        archs = searcher.ask()
        assert archs and all(known.of(arch) <= 6.0 for arch in archs)
        searcher.tell(archs, [float(sum(arch)) for arch in archs])
    header = searcher.header('abc')['settings']['limits']
    assert header['max_latency'] == 6.0 and header['of']['sha256'] == known.identity()['sha256']
    assert str(bound) == 'latency <= 6'
    within = [arch for arch in SPACE.all_archs() if known.of(arch) <= 6.0]
    scores = [[0.0, 1.0, 2.0, 3.0], [0.0, 1.5, 0.0, 2.0], [1.0, 1.2, 0.5, 2.0]]
    best = best_arch(scores, SPACE, bound)
    assert best in within
    total = lambda arch: sum(row[choice] for row, choice in zip(scores, arch, strict=True))  # noqa: E731
    assert total(best) == max(map(total, within))
    with pytest.raises(ValueError, match='needs a latency table'):
        Limits(lambda arch: SimpleNamespace(macs=1, params=1), max_latency=1.0)
    with pytest.raises(ValueError, match='no architecture of'):
        best_arch(scores, SPACE, limits(known, 1.0))


def test_fpnas_pays_for_latency(known: LatencyTable, tmp_path: Path) -> None:
    known.save(tmp_path / 'table.json')
    settings = dict(num_classes=5, cost_weight=0.3, target_latency=5.0)
    method = FPNAS(SuperNet(SPACE), latency_table=str(tmp_path / 'table.json'), **settings)
    assert method.cost((0, 0, 2)) == 0 and method.cost((3, 3, 3)) == pytest.approx(10 / 5 - 1)
    with pytest.raises(ValueError, match="target_latency needs a latency_table of 'timed', got None"):
        FPNAS(SuperNet(SPACE), **settings)
    with pytest.raises(ValueError, match='target_macs or target_latency above 0, got 3 and 5'):
        FPNAS(SuperNet(SPACE), latency_table=str(tmp_path / 'table.json'), target_macs=3, **settings)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    out = tmp_path / 'latency.json'
    words = f'pinas_patch --out {out} --seconds 1e-4 --checks 2 --classes 55 --threads 1 --processor-time'.split()
    assert command('latency')(words) == 0
    torch.set_num_threads(threads)
    made = LatencyTable.read(out)
    assert made.space.name == 'pinas_patch' and made.conditions.clock == 'processor' and len(made.checks) == 2
    assert made.conditions.device and made.conditions.torch == torch.__version__
    assert 'sums against 2 whole networks' in capsys.readouterr().out
    assert command('latency')(['nothing', '--out', str(out)]) == 1
