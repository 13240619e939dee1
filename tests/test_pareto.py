"""The Pareto front of a search's log: which architectures, as a table and a file, by one command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pinas_cli import derive as cli
from pinas_cli.main import command
from pinas_zoo.search.log import SearchLog, SearchRecord
from pinas_zoo.search.pareto import COSTS, front_of, table_of

RECORDS = [
    SearchRecord(0, '00', -1.0, 1.0, macs=5e6, params=2e6, top1=60.0, images=100, latency=0.004),
    SearchRecord(1, '01', -0.8, 0.8, macs=7e6, params=1e6, top1=66.0, images=100, latency=0.003),
    SearchRecord(2, '10', -0.9, 0.9, macs=8e6, params=3e6, top1=64.0, images=100, latency=0.002),
    SearchRecord(3, '11', -0.1, 0.1, macs=1e6, params=1e5, top1=90.0, images=10, latency=0.001),
]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    with SearchLog(tmp_path / 'archs.jsonl', {'objective': 'loss'}) as log:
        for record in RECORDS:
            log.append(record)
    return tmp_path


@pytest.mark.parametrize(('cost', 'expected'), [('macs', ['00', '01']), ('params', ['01']), ('latency', ['10', '01'])])
def test_front(cost: str, expected: list[str]) -> None:
    """The last record would be on every front, but a race dropped it after 10 of 100 images."""
    front = front_of({'objective': 'loss'}, RECORDS, cost)
    assert [row['arch'] for row in front] == expected
    assert front[0]['score'] == -front[0]['loss'] and all(name in front[0] for name in COSTS)
    lines = table_of(front, cost).splitlines()
    assert len(lines) == len(expected) + 1 and lines[1].startswith(expected[0])


def test_errors() -> None:
    with pytest.raises(ValueError, match="cost 'flops' is unknown, allowed: macs, params, latency"):
        front_of({}, RECORDS, 'flops')
    with pytest.raises(
        ValueError, match='none of the 1 evaluations of the log states its latency; search with limits.latency_table'
    ):
        front_of({}, [SearchRecord(0, '00', 1.0, macs=3.0)], 'latency')


def test_an_older_log_that_ranked_by_accuracy() -> None:
    front = front_of({}, [SearchRecord(0, '00', 61.0, 1.0, macs=3.0)], 'macs')
    assert front[0]['top1'] == 61.0 and front[0]['images'] is None


def test_command(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tuple(COSTS) == cli.COSTS
    out = tmp_path / 'front'
    assert command('derive')(['--pareto', 'latency', '--search', str(log), '--out', str(out)]) == 0
    written = json.loads((out / 'pareto.json').read_text())
    assert written == {'cost': 'latency', 'front': front_of({'objective': 'loss'}, RECORDS, 'latency')}
    assert '2 of 4 architectures' in capsys.readouterr().out
    for words in (['--pareto', 'macs'], ['--arch', '00'], ['--arch', '00', '--pareto', 'macs', '--search', str(log)]):
        assert command('derive')([*words, '--out', str(out)]) == 2
