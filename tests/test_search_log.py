"""Limits, the append-only log under cuts and damage, and the Pareto front."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pinas_zoo.search.limits import Limits
from pinas_zoo.search.log import SearchLog, SearchRecord, finished, ranked
from pinas_zoo.search.pareto import pareto_front
from pinas_zoo.search.shortlist import draw_shortlist
from pinas_zoo.search.strategies import RandomSearch
from pinas_zoo.space import PINAS


@pytest.mark.parametrize(
    'values',
    [{}, {'max_macs': 0}, {'max_macs': -1}, {'max_params': math.nan}, {'max_params': math.inf}],
)
def test_malformed_limits(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match='Limits'):
        Limits(len, **values)


def header(**changes: object) -> dict[str, object]:
    return {**RandomSearch(PINAS).header('abc'), **changes}


def test_log_refuses_another_search_and_names_both(tmp_path: Path) -> None:
    path = tmp_path / 'deep' / 'archs.jsonl'
    SearchLog(path, header()).close()
    SearchLog(path, header()).close()
    for change in ({'seed': 5}, {'checkpoint': 'def'}, {'settings': {}}, {'searcher': 'tree'}):
        (key, value), *_ = change.items()
        with pytest.raises(ValueError, match=f'{key}: recorded .*, running ') as info:
            SearchLog(path, header(**change))
        assert repr(value) in str(info.value) and repr(header()[key]) in str(info.value)
    assert len(path.read_text().splitlines()) == 1


@pytest.mark.parametrize('cut', range(1, 40, 3))
def test_log_survives_any_cut_of_its_last_line(cut: int, tmp_path: Path) -> None:
    path = tmp_path / 'archs.jsonl'
    records = [SearchRecord(i, '0' * 16, 0.1 * i, 1.0, 2.0, 3.0, 0.5) for i in range(3)]
    with SearchLog(path, header()) as log:
        for record in records:
            log.append(record)
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    left = records if cut == 1 else records[:2]
    assert SearchLog.read(path)[1] == left
    assert path.read_bytes() == data[:-cut], 'reading changed the file'
    with SearchLog(path, header()) as log:
        assert log.records == left
        for record in records[len(left) :]:
            log.append(record)
    assert path.read_bytes() == data


def test_log_cut_within_its_header_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / 'archs.jsonl'
    path.write_bytes(b'{"format": 1, "spa')
    with pytest.raises(ValueError, match='no header'):
        SearchLog.read(path)
    with SearchLog(path, header()) as log:
        assert len(log) == 0
    assert SearchLog.read(path)[0]['seed'] == 0


def test_log_refuses_gaps_and_damage(tmp_path: Path) -> None:
    path = tmp_path / 'archs.jsonl'
    with SearchLog(path, header()) as log:
        for index in range(3):
            log.append(SearchRecord(index, '0' * 16, 0.5))
        with pytest.raises(ValueError, match='index 3, got 5'):
            log.append(SearchRecord(5, '0' * 16, 0.5))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b''.join([lines[0], b'garbage\n', *lines[2:]]))
    with pytest.raises(ValueError, match='line 2 is unreadable'):
        SearchLog(path, header())
    path.write_bytes(b''.join([lines[0], *lines[2:]]))
    with pytest.raises(ValueError, match='line 2 has index 1, expected 0'):
        SearchLog.read(path)
    path.write_bytes(b'{"some": "thing"}\n' + lines[1])
    with pytest.raises(ValueError, match='not a search log'):
        SearchLog(path, header())


def test_every_append_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr('pinas_zoo.search.log.os.fsync', synced.append)
    with SearchLog(tmp_path / 'archs.jsonl', header()) as log:
        before = len(synced)
        log.append(SearchRecord(0, '0' * 16, 0.5))
        assert len(synced) == before + 1


def test_pareto_front_against_a_naive_search() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = [tuple(map(float, p)) for p in rng.integers(12, size=(60, 2))]
        naive = {p for p in points if not any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points)}
        front = [points[i] for i in pareto_front(points)]
        assert front == sorted(naive)
    assert pareto_front([]) == []
    with pytest.raises(ValueError, match='finite'):
        pareto_front([(1.0, math.nan)])


def test_paths_that_a_race_dropped_rank_behind_the_others():
    """Their scores are estimates from fewer images: none of them may be the best or on a shortlist before others."""
    scores = ((0.9, 100), (0.5, 400), (0.7, 400), (0.8, 200), (0.7, 400))
    records = [SearchRecord(index, f'{index}', score, images=images) for index, (score, images) in enumerate(scores)]
    assert [record.index for record in finished(records)] == [1, 2, 4]
    assert [record.index for record in ranked(records)] == [2, 4, 1, 0, 3]
    listed = draw_shortlist(RandomSearch(PINAS, seed=0).header(''), records, top=2, random=0)
    assert [one.arch for one in listed] == ['2', '4']
    assert [record.index for record in ranked([replace(record, images=None) for record in records])] == [0, 3, 2, 4, 1]
