"""The shortlist: what is on it, what it reports, and that a killed stage loses and repeats nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fork_server import python
from PIL import Image
from scipy.stats import kendalltau

from pinas_zoo.search.log import SearchLog, SearchRecord
from pinas_zoo.search.shortlist import Outcome, draw_shortlist, summarise
from pinas_zoo.search.strategies import build_searcher
from pinas_zoo.space import PINAS_PATCH, SearchSpace

ROOT = Path(__file__).resolve().parents[1]
SPACE = SearchSpace('small', (1, 2), (16, 32), (1, 2), (8, 8, 16), stem_pool=False, input_size=16)


def searched(space: SearchSpace, name: str, count: int, objective: str = 'loss', **settings: int) -> tuple[dict, list]:
    """Header and records of a search with made-up scores."""
    searcher, records = build_searcher(name, space, seed=0, **settings), []
    while len(records) < count:
        archs = searcher.ask()
        losses = [3 - 0.2 * np.sin(sum((7 * i + 3) * c for i, c in enumerate(arch))) for arch in archs]
        for arch, loss in zip(archs, losses, strict=True):
            top1 = 100 * float(np.exp(-loss))
            score = -loss if objective == 'loss' else top1
            records.append(SearchRecord(len(records), space.format(arch), score, loss, 1.0, 1.0, 0.1, top1))
        searcher.tell(archs, [record.score for record in records[-len(archs) :]])
    return searcher.header('abc') | ({'objective': 'loss'} if objective == 'loss' else {}), records


def test_the_best_and_random_ones_of_the_random_part() -> None:
    header, records = searched(PINAS_PATCH, 'tree', 64, initial=20)
    listed = draw_shortlist(header, records, top=5, random=8, seed=3)
    ranked = [record.arch for record in sorted(records, key=lambda record: -record.score)]
    assert [one.arch for one in listed if 'top' in one.groups] == ranked[:5]
    drawn = [one for one in listed if 'random' in one.groups]
    assert len(drawn) == 8 and {one.arch for one in drawn} <= {record.arch for record in records[:24]}  # whole blocks
    assert len({one.arch for one in listed}) == len(listed) <= 13
    assert all(ranked[one.search_rank - 1] == one.arch for one in listed)
    estimates = {record.arch: {'top1': record.top1, 'loss': record.loss} for record in records}
    assert all(one.estimate == estimates[one.arch] for one in listed)
    assert listed == draw_shortlist(header, records, 5, 8, 3) != draw_shortlist(header, records, 5, 8, 4)


def test_a_random_one_may_be_among_the_best() -> None:
    header, records = searched(PINAS_PATCH, 'random', 16)
    listed = draw_shortlist(header, records, top=4, random=16)
    assert len(listed) == 16 and [one.groups for one in listed[:4]] == [('top', 'random')] * 4
    with pytest.raises(ValueError, match='17 random architectures were requested, the log has 16 evaluations, 16'):
        draw_shortlist(header, records, 4, 17)
    with pytest.raises(ValueError, match='top must be at least 1'):
        draw_shortlist(header, records, 0, 4)


def test_what_is_said() -> None:
    header, records = searched(PINAS_PATCH, 'random', 40)
    listed = draw_shortlist(header, records, top=3, random=6)
    rng = np.random.default_rng(0)
    outcomes = [
        Outcome({'accuracy/top1': float(v)}, {'accuracy/top1': float(t)}, 1.0)
        for v, t in rng.normal(50, 5, (len(listed), 2))
    ]
    said = summarise(listed, outcomes, 'loss')
    top = [i for i, one in enumerate(listed) if 'top' in one.groups]
    random = [i for i, one in enumerate(listed) if 'random' in one.groups]
    winner = max(top, key=lambda i: outcomes[i].val['accuracy/top1'])  # chosen by one set of images
    values = [outcome.test['accuracy/top1'] for outcome in outcomes]  # and reported on another
    assert said['arch'] == listed[winner].arch and said['chosen']['value'] == values[winner]
    assert said['chosen']['rank'] == 1 + sorted(values, reverse=True).index(values[winner])
    drawn = [values[i] for i in random]
    assert said['random'] == {
        'count': 6,
        'mean': pytest.approx(np.mean(drawn)),
        'std': pytest.approx(np.std(drawn, ddof=1)),
    }
    gain = values[winner] - np.mean(drawn)
    assert said['chosen']['gain'] == pytest.approx(gain)
    assert said['chosen']['gain_in_deviations'] == pytest.approx(gain / np.std(drawn, ddof=1))
    tau = kendalltau([-one.estimate['loss'] for one in listed], values).statistic
    assert said['kendall_tau']['tau'] == pytest.approx(tau) and said['kendall_tau']['count'] == len(listed)
    assert json.loads(json.dumps(said))['networks'][0]['arch'] == listed[0].arch
    with pytest.raises(ValueError, match="has no metric 'accuracy/top5', only .'accuracy/top1'."):
        summarise(listed, outcomes, 'loss', 'accuracy/top5')
    alone = summarise(listed[:1], outcomes[:1], 'loss')
    assert alone['kendall_tau']['tau'] is None and alone['top']['std'] is None


# ---- the stage itself ------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search's log, and a shortlist config whose trainings take four steps on 48 images."""
    pytest.importorskip('mmengine')
    root = tmp_path_factory.mktemp('shortlist')
    rng = np.random.default_rng(0)
    for index in range(48):
        folder = root / 'images' / f'class{index % 3}'
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 80 + 60 * (index % 3), (16, 16, 3), dtype=np.uint8)).save(
            folder / f'{index}.png'
        )
    header, records = searched(SPACE, 'random', 24)
    with SearchLog(root / 'search' / 'archs.jsonl', header) as log:
        for record in records:
            log.append(record)
    short = (ROOT / 'configs/quickstart/pinas-patch-short_b32-coslr_pairs.py').as_posix()
    data = dict(
        _delete_=True, type='pinas_zoo.SupervisedView', source=dict(kind='folder', root=str(root / 'images')), size=16
    )
    lines = [
        f'_base_ = {short!r}',
        f'model = dict(model=dict(space={dict(SPACE.to_dict(), _delete_=True)!r}))',
        f'train_dataloader = dict(batch_size=8, dataset=dict(dataset={data!r}))',
        f'val_dataloader = dict(batch_size=16, dataset={data!r})',
        f'test_dataloader = dict(batch_size=16, dataset={data!r})',
        'train_cfg = dict(max_iters=4, val_interval=4)',
        'default_hooks = dict(checkpoint=dict(interval=2))',
    ]
    (root / 'short.py').write_text('\n'.join(lines) + '\n')
    (root / 'list.py').write_text(
        "training = '{{ fileDirname }}/short.py'\nsearch = '{{ fileDirname }}/search.py'\n"
        'top = 2\nrandom = 4\nworkers = 2\n'
    )
    searcher = "dict(name='random')"
    (root / 'search.py').write_text(
        f'space = {SPACE.to_dict()!r}\nsearcher = {searcher}\nbudget = 24\nnum_classes = 3\n'
    )
    return root


def command(case: Path, work_dir: Path, *more: str) -> list[str]:
    source = [] if '--random-only' in more else ['--search', str(case / 'search')]
    arguments = [str(case / 'list.py'), *source, '--work-dir', str(work_dir), *more]
    return [sys.executable, str(ROOT / 'tools/shortlist.py'), *arguments]


def run(case: Path, work_dir: Path, *more: str) -> subprocess.CompletedProcess:
    environment = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT), PYTHON_EXEC=python())
    _, *words = command(case, work_dir, *more)
    return subprocess.run([python(), *words], capture_output=True, text=True, env=environment)


def without_clock(summary: dict) -> dict:
    return summary | {'networks': [{k: v for k, v in one.items() if k != 'seconds'} for one in summary['networks']]}


def call(case: Path, work_dir: Path, **settings: Any) -> tuple[dict, list[tuple[int, int, str]]]:
    """The stage without its tool, one training at a time; its summary, and what it reported on the way."""
    from pinas_zoo.mm.engine.options import Options
    from pinas_zoo.mm.shortlist import shortlist

    seen: list[tuple[int, int, str]] = []
    trained = settings.pop('trained', None)
    options = Options(str(work_dir), **settings)
    shortlist(case / 'list.py', case / 'search', options, 1, lambda *progress: seen.append(progress), trained=trained)
    return json.loads((work_dir / 'shortlist.json').read_text()), seen


@pytest.mark.mm
@pytest.mark.slow
def test_a_kill_loses_and_repeats_nothing(
    case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked_processes: None
) -> None:
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    expected, seen = call(case, tmp_path / 'whole')
    assert [progress[:2] for progress in seen] == [(count, 6) for count in range(1, 7)]
    assert len({one['arch'] for one in expected['networks']}) == len(expected['networks'])
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    words = command(case, tmp_path / 'run', '--workers', '1')  # not forks: a worker's parent has to be the killed one
    killed = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    while killed.poll() is None and not list((tmp_path / 'run').glob('*/result.json')):
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)  # its workers go with it
    killed.wait()
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / 'run').glob('*/result.json')}
    assert kept and not (tmp_path / 'run' / 'shortlist.json').exists()
    summary, seen = call(case, tmp_path / 'run')
    assert seen[0][1:] == (6, 'from an earlier call') and seen[0][0] >= len(kept)
    assert all(file.stat().st_mtime_ns == then for file, then in kept.items()), 'a finished training was repeated'
    assert without_clock(summary) == without_clock(expected)
    with pytest.raises(ValueError, match='contains another shortlist, which differs in listed'):
        call(case, tmp_path / 'run', cfg_options={'random': 3})


@pytest.mark.mm
@pytest.mark.slow
def test_the_random_ones_can_be_trained_before_the_search(case: Path, tmp_path: Path) -> None:
    ahead = run(case, tmp_path / 'random', '--random-only', '--workers', '1')
    assert ahead.returncode == 0, ahead.stderr[-3000:]
    assert '4 of 4 networks' in ahead.stdout
    results = json.loads((tmp_path / 'random' / 'random.json').read_text())
    for arch in results:
        assert f"arch='{arch}'" in (tmp_path / 'random' / arch / 'short.py').read_text(), 'another network was trained'
    whole = run(case, tmp_path / 'run', '--trained', str(tmp_path / 'random'))
    assert whole.returncode == 0, whole.stderr[-3000:]
    assert '6 of 6 networks' in whole.stdout
    summary = json.loads((tmp_path / 'run' / 'shortlist.json').read_text())
    random = {one['arch']: one['test'] for one in summary['networks'] if 'random' in one['groups']}
    assert random == {arch: result['test'] for arch, result in results.items()} and len(random) == 4
    assert not [file for arch in random for file in (tmp_path / 'run' / arch).glob('*.pth')], 'trained twice'
    with pytest.raises(ValueError, match='differ from those of this shortlist in seed'):
        call(case, tmp_path / 'other', trained=tmp_path / 'random', seed=1)
    with pytest.raises(ValueError, match='is not a folder of such trainings'):
        call(case, tmp_path / 'another', trained=tmp_path)


@pytest.mark.mm
@pytest.mark.slow
def test_several_processes_a_network(case: Path, tmp_path: Path) -> None:
    result = run(case, tmp_path, '--workers', '1', '--cfg-options', 'processes=2', 'top=1', 'random=0')
    assert result.returncode == 0, result.stderr[-3000:]
    summary = json.loads((tmp_path / 'shortlist.json').read_text())
    assert [set(one['test']) for one in summary['networks']] == [{'accuracy/top1', 'accuracy/loss'}]
    assert summary['random'] == {'count': 0, 'mean': None, 'std': None} and summary['chosen']['gain'] is None
