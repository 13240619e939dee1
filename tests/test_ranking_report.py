"""The report: halves kept apart, tables, figures, the page; and the whole study once, very small, through the tool."""

import copy
import dataclasses
import importlib.util
import itertools
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau
from serial_pool import use_serial_pool

from pinas_zoo.files import append_lines, read_lines
from pinas_zoo.models.cost import CostTable
from pinas_zoo.ranking import study
from pinas_zoo.ranking.contestants import CONTESTANTS, TRIVIAL
from pinas_zoo.ranking.curves import curves, trials
from pinas_zoo.ranking.further_seeds import with_further_seeds
from pinas_zoo.ranking.proxies import PROXIES
from pinas_zoo.ranking.publish import fill_page, write_report
from pinas_zoo.ranking.recipe import SupernetRecipe
from pinas_zoo.ranking.report import SOURCE, VIEWS, compute, of_recipe
from pinas_zoo.ranking.standalone import Recipe
from pinas_zoo.ranking.statistics import bootstrap_difference, ceiling, summarise
from pinas_zoo.ranking.study import Job, is_result_of
from pinas_zoo.ranking.tables import markdown
from pinas_zoo.ranking.task import PairTask
from pinas_zoo.ranking.truth import Study, Truth, draw_paths, extend, read_truth
from pinas_zoo.search.log import SearchLog, SearchRecord
from pinas_zoo.space import SearchSpace

SPACE = SearchSpace('small', (2, 2), (16, 32), (1, 2), (8, 8, 16), stem_pool=False, expansion=1, input_size=12)
STUDY = Study(
    SPACE, PairTask(item=8, patch=2, train=256, heldout=64, test=64), Recipe(steps=4, batch=16, calibration=2)
)
RECIPE = SupernetRecipe()
PATHS = 72


#: Contestants that were run with one seed so far.
def line(contestant: str, seed: int, scores: dict[str, list[float]], **changes: Any) -> dict[str, Any]:
    """A line of scores.jsonl without the training."""
    recipe = dataclasses.replace(RECIPE, **changes)
    shift = dict.fromkeys(('mean', 'variance', 'cka', 'cosine'), 0.1 * (seed + 1))
    names = list(scores)[::2][:8]
    row = dict(contestant=contestant, seed=seed, recipe=recipe.id, settings=dataclasses.asdict(recipe))
    row |= dict(space=SPACE.to_dict(), task=dataclasses.asdict(STUDY.task), data=STUDY.header()['data'])
    row |= dict(code='1', torch='2', threads=1)
    row |= dict(steps=10, units={'train': 27.0, 'linear': 3.0}, peak_memory_mb=100 + seed, loss=[1.0])
    row |= dict(seconds={'train': 1.0, 'observe': 2.0, 'linear_and_score': 3.0}, scores=scores)
    row['shifts'] = [
        {'step': s, 'units': 9.0 * s, 'feature': [shift, shift], 'update_cosine': s or None, 'teacher_distance': None}
        for s in range(3)
    ]
    row['on_the_way'] = [{'step': 5, 'units': 13.5, 'scores': {name: scores[name] for name in names}}]
    return json.loads(json.dumps(row))


@pytest.fixture(scope='module')
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Truth, list[dict[str, Any]], Path]:
    """A truth with noise between its seeds; Pi-NAS ranks well, SPOS badly, the others are missing."""
    folder, rng = tmp_path_factory.mktemp('rank'), np.random.default_rng(0)
    archs, costs = draw_paths(STUDY, PATHS), CostTable(SPACE, STUDY.task.input_size, 55, STUDY.task.in_chans)
    good = rng.normal(60, 3, PATHS)
    with SearchLog(folder / 'truth.jsonl', STUDY.header()) as log:
        for arch, value in zip(archs, good, strict=True):
            for noise in rng.normal(0, 0.5, 2):
                cost, top1 = costs.of(arch), value + noise
                log.append(SearchRecord(len(log), SPACE.format(arch), top1, 5 - top1 / 30, cost.macs, cost.params, 1.0))
    for name, noise in (('pinas', 1.0), ('spos', 8.0)):
        for seed in range(3):
            found = good + rng.normal(0, noise, PATHS)
            scores = {SPACE.format(a): [v, 5 - v / 25] for a, v in zip(archs, found, strict=True)}
            append_lines(folder / 'scores.jsonl', [line(name, seed, scores)])
    return read_truth(folder / 'truth.jsonl'), read_lines(folder / 'scores.jsonl'), folder


@pytest.fixture(scope='module', autouse=True)
def _fewer_samples() -> Iterator[None]:
    """Intervals from a tenth of the bootstrap samples; test_ranking_statistics.py is about those."""
    with pytest.MonkeyPatch.context() as patch:
        for function in (summarise, ceiling, bootstrap_difference):
            patch.setattr(f'pinas_zoo.ranking.report.{function.__name__}', partial(function, resamples=200))
        yield


def without_rendering(patch: pytest.MonkeyPatch) -> None:
    """Pictures are drawn, but what is saved is an empty one."""
    patch.setattr('matplotlib.figure.Figure.savefig', lambda self, buffer, **_: buffer.write(b'\x89PNG\r\n\x1a\n'))


@pytest.fixture(scope='module')
def computed(files: Any) -> dict[str, Any]:
    """The report of the reporting half."""
    return compute(files[0], files[1], RECIPE)


def taus(truth: Truth, rows: list[dict[str, Any]], half: int, contestant: str) -> list[float]:
    """Kendall's tau of each seed on a half, straight from the files."""
    paths = [row for row in truth.rows if row.path % 2 == half]
    true = [sum(row.top1) / 2 for row in paths]
    lines = [row for row in rows if row['contestant'] == contestant]
    return [kendalltau(true, [row['scores'][SPACE.format(p.arch)][0] for p in paths])[0] for row in lines]


def test_figures_are_those_of_the_asked_half(files: Any) -> None:
    truth, rows, _ = files
    for half, parity in (('tuning', 0), ('reporting', 1)):
        report = compute(truth, rows, RECIPE, half)
        assert report['half'] == half and report['paths'] == PATHS // 2 and report['warning'] is None
        for name in ('pinas', 'spos'):
            seeds = report['accuracy']['contestants'][name]['tau']['seeds']
            assert seeds == pytest.approx(taus(truth, rows, parity, name), abs=1e-12)
        mine = [row for row in truth.rows if row.path % 2 == parity]
        expected = kendalltau([row.top1[0] for row in mine], [row.top1[1] for row in mine])[0]
        assert report['accuracy']['ceiling']['tau']['mean'] == pytest.approx(expected)
    with pytest.raises(ValueError, match="unknown half 'all'"):
        compute(truth, rows, RECIPE, 'all')


def test_the_loss_against_accuracy_and_the_agreement_of_seeds(files: Any, computed: dict[str, Any]) -> None:
    truth, rows, _ = files
    part, paths = computed['loss_to_accuracy'], truth.half('reporting')
    true = [sum(row.top1) / 2 for row in paths]
    lines = [row for row in rows if row['contestant'] == 'spos']
    losses = [[-row['scores'][SPACE.format(p.arch)][1] for p in paths] for row in lines]
    entry = part['contestants']['spos']
    assert entry['tau']['seeds'] == pytest.approx([kendalltau(true, loss)[0] for loss in losses], abs=1e-12)
    pairs = [kendalltau(losses[i], losses[j])[0] for i, j in ((0, 1), (0, 2), (1, 2))]
    assert entry['agreement']['pairs'] == pytest.approx(pairs, abs=1e-12)
    assert entry['agreement']['mean'] == pytest.approx(sum(pairs) / 3)
    assert entry['tau_of_mean']['mean'] == pytest.approx(kendalltau(true, np.mean(losses, axis=0))[0], abs=1e-12)
    assert entry['tau_of_mean']['mean'] > entry['tau']['mean']  # independent noise averages out
    assert 'agreement' not in part['contestants']['macs']


def test_reporting_does_not_look_at_the_tuning_half(files: Any, computed: dict[str, Any]) -> None:
    truth, rows, _ = files
    spoiled = copy.deepcopy(rows)
    for row in spoiled:
        for path in truth.half('tuning'):
            row['scores'][SPACE.format(path.arch)] = [0.0, 99.0]
    assert compute(truth, spoiled, RECIPE) == computed


def test_lines_of_other_constants_do_not_count(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line without constants counts if its contestant's have not changed since; one with them, if they are equal."""
    truth, rows, _ = files
    assert 'constants' not in rows[0] and set(of_recipe(rows, truth, RECIPE.id)) == {'pinas', 'spos'}
    archs = tuple(row.arch for row in truth.rows)
    job = Job('spos', 0, SPACE, STUDY.task, RECIPE, archs)
    row = next(row for row in rows if row['contestant'] == 'spos')
    assert is_result_of(job, row) and is_result_of(job, row | {'constants': CONTESTANTS['spos'].constants})
    assert not is_result_of(job, row | {'constants': 'other'})
    for change in (dict(lr_factor=2.0), dict(switches={'x': 1}), dict(scaled=lambda units: {'steps': units})):
        monkeypatch.setitem(CONTESTANTS, 'spos', dataclasses.replace(CONTESTANTS['spos'], **change))
        assert not is_result_of(job, row) and set(of_recipe(rows, truth, RECIPE.id)) == {'pinas'}
        now = [line | {'constants': CONTESTANTS[line['contestant']].constants} for line in rows]
        assert set(of_recipe(now, truth, RECIPE.id)) == {'pinas', 'spos'}
        monkeypatch.undo()


def test_training_free_scores_and_a_source_are_rows(files: Any) -> None:
    truth, rows, _ = files
    names = [SPACE.format(row.arch) for row in truth.rows]
    good = {name: sum(row.top1) for name, row in zip(names, truth.rows, strict=True)}
    line = {'seed': 0, 'space': truth.header['space'], 'proxies': dict.fromkeys(PROXIES, good)}
    other = line | {'space': {}, 'seed': 1}
    paths = truth.half('reporting')
    report = compute(truth, [*rows, line, other], RECIPE, source=paths)
    part = report['loss_to_accuracy']
    assert part['contestants']['naswot']['tau']['seeds'] == pytest.approx([1.0])
    expected = kendalltau([sum(row.top1) for row in paths], [-sum(row.loss) for row in paths])[0]
    assert part['contestants'][SOURCE]['tau']['seeds'] == pytest.approx([expected])
    assert 'pinas - aznas' in part['differences'] and set(report['runs']) == {'pinas', 'spos'}
    assert report['labels']['aznas'] == 'AZ-NAS'


def test_contestants_and_differences(files: Any, computed: dict[str, Any]) -> None:
    truth, report = files[0], computed
    assert set(report['accuracy']['contestants']) == {'pinas', 'spos', *TRIVIAL}
    macs = report['accuracy']['contestants']['macs']['tau']['seeds']
    paths = truth.half('reporting')
    assert macs == pytest.approx([kendalltau([sum(p.top1) for p in paths], [p.macs for p in paths])[0]])
    for view in ('accuracy', 'minus_loss'):
        assert list(report[view]['differences']) == ['pinas - spos', 'pinas - macs', 'pinas - params']
        entry = report[view]['differences']['pinas - spos']['tau']
        assert entry['interval'][0] > 0  # built so
        assert report[view]['contestants']['pinas']['tau']['mean'] > 0.6
    assert report['runs']['pinas'] | {'seconds': 0} == {
        'seeds': [0, 1, 2], 'steps': 10, 'units': {'train': 27.0, 'linear': 3.0}, 'seconds': 0, 'total_seconds': 6.0,
        'threads': [1], 'peak_memory_mb': 102, 'code': ['1'], 'derived': [], 'at_the_end': [],
    }  # fmt: skip
    json.dumps(report, allow_nan=False)


def test_lines_of_other_recipes_and_tasks_do_not_count(files: Any) -> None:
    truth, rows, _ = files
    other = line('fairnas', 0, rows[0]['scores'], units=999.0)
    strange = [line('fairnas', 0, rows[0]['scores']) | change for change in ({'task': {'item': 1}}, {'data': 'others'})]
    assert set(of_recipe([*rows, other, *strange], truth, RECIPE.id)) == {'pinas', 'spos'}
    again = rows[0] | {'steps': 11}
    assert [row['steps'] for row in of_recipe([*rows, again], truth, RECIPE.id)['pinas']] == [11, 10, 10]
    short = copy.deepcopy(rows[0])
    short['scores'].popitem()
    with pytest.raises(ValueError, match='1 paths have no score'):
        compute(truth, [short], RECIPE)


def test_few_paths_are_warned_of_in_words(files: Any) -> None:
    truth, rows, _ = files
    few = dataclasses.replace(truth, rows=truth.rows[:40])
    with pytest.warns(UserWarning, match='only 20 paths'):
        report = compute(few, rows, RECIPE)
    assert '**Warning: only 20 paths' in markdown(report)


def test_trials_stay_on_the_tuning_half(files: Any) -> None:
    truth, rows, _ = files
    tried = line('pinas', 0, rows[3]['scores'], queue_length=1024)
    found = trials(truth, [*rows, tried])
    assert [(t['contestant'], t['seeds'], t['changed']) for t in found] == [
        ('pinas', 3, {}), ('spos', 3, {}), ('pinas', 1, {'queue_length': 1024}),
    ]  # fmt: skip
    assert found[0]['tau_accuracy'] == pytest.approx(np.mean(taus(truth, rows, 0, 'pinas')))


def test_curves(files: Any) -> None:
    truth, rows, _ = files
    moved = curves(truth, rows, RECIPE)
    assert 'teacher_distance' not in moved  # no line has one
    assert moved['feature_cka']['pinas'][1] == [[0.0, 0.2], [9.0, 0.2], [18.0, 0.2]]
    assert moved['update_cosine']['spos'][0] == [[0.0, None], [9.0, 1], [18.0, 2]]
    ((first, last),) = moved['tau_accuracy']['pinas'][:1]
    assert (first[0], last[0]) == (13.5, 27.0) and first[1] == last[1]  # the same scores on the same eight paths


def test_tables(computed: dict[str, Any]) -> None:
    text = markdown(computed)
    assert 'higher is better' in text and RECIPE.id in text
    tables = [block for block in text.split('\n\n') if block.startswith('|')]
    assert len(tables) == len(VIEWS) + 2
    for table in tables:
        assert len({row.count('|') for row in table.splitlines()}) == 1
    for label in ('one seed of the truth', 'Pi-NAS', 'SPOS', 'random', 'MACs', 'parameters'):
        assert all(f'| {label} |' in table for table in tables[:-2])
    assert '| Pi-NAS minus SPOS |' in tables[-2] and '| Pi-NAS | 3 | 10 | 27 + 3 | 6 | 1 |' in tables[-1]


def test_native_scores_have_rows_of_their_own(files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('matplotlib')
    without_rendering(monkeypatch)
    truth, rows, _ = files
    best = {SPACE.format(row.arch): sum(row.top1) for row in truth.rows}
    peers = [line('fpnas', seed, rows[3]['scores']) | {'native': best} for seed in range(2)]
    report = write_report(tmp_path, truth, [*rows, *peers], RECIPE)
    entry = report['accuracy']['contestants']['fpnas:native']
    assert entry['tau']['mean'] == pytest.approx(1) and entry['regret']['mean'] == 0
    assert 'pinas - fpnas:native' in report['accuracy']['differences']
    assert '| FP-NAS*, native score |' in markdown(report)
    assert len(list(tmp_path.glob('*.png'))) == 11 and len({p.stem for p in tmp_path.glob('*_peers.png')}) == 5


def test_everything_is_written(files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('matplotlib')
    truth, rows, _ = files
    page = tmp_path / 'docs' / 'ranking.md'
    page.parent.mkdir()
    names = ('result', 'trials', 'choice', 'registered')
    marks = [f'<!-- {n} written by tools/rank.py report -->\nold\n<!-- end of {n} -->\n' for n in names]
    page.write_text('before\n' + 'between\n'.join(marks) + 'after\n')
    report = write_report(tmp_path / 'out', truth, rows, RECIPE, page=page)
    assert json.loads((tmp_path / 'out' / 'report.json').read_text()) == json.loads(json.dumps(report))
    names = {f'{name}.png' for name in ('forest', 'tau', 'shifts', *(f'scatter_{view}' for view in VIEWS))}
    assert {path.name for path in (tmp_path / 'out').glob('*.png')} == names
    text = page.read_text()
    assert text.startswith('before\n') and text.endswith('after\n') and 'between' in text and 'old' not in text
    assert all(f'](../out/{name})' in text for name in names) and markdown(report) in text
    assert all(path.stat().st_size > 5000 for path in (tmp_path / 'out').glob('*.png'))
    without_rendering(monkeypatch)
    write_report(tmp_path / 'out', truth, rows, RECIPE, page=page)
    assert page.read_text() == text
    write_report(tmp_path / 'out', truth, rows, RECIPE, 'tuning')
    assert (tmp_path / 'out' / 'tuning_report.json').is_file() and page.read_text() == text


def test_a_page_without_markers(tmp_path: Path) -> None:
    (tmp_path / 'page.md').write_text('nothing')
    with pytest.raises(ValueError, match='lacks the marker lines'):
        fill_page(tmp_path / 'page.md', {'result': ''})


# ---- the tool -----------------------------------------------------------------------------------


def tool() -> ModuleType:
    path = Path(__file__).parents[1] / 'tools' / 'rank.py'
    spec = importlib.util.spec_from_file_location('rank_tool', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_trials_are_printed(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, folder = files
    common = ['--truth', str(folder / 'truth.jsonl'), '--scores', str(folder / 'scores.jsonl')]
    assert tool().main(['trials', *common]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 4 and out[2].startswith('| Pi-NAS | 3 | none |')


@pytest.mark.slow
def test_the_whole_study_in_small(tmp_path: Path, capsys: pytest.CaptureFixture[str], forked_processes: None) -> None:
    """Truth, supernets (two in their processes, the others in this one), report; results are not computed again."""
    pytest.importorskip('matplotlib')
    module = tool()
    truth, scores = tmp_path / 'truth.jsonl', tmp_path / 'scores.jsonl'
    extend(truth, STUDY, 8)
    small = 'units=12 linear_steps=6 batch=16 dim=8 queue_length=64 calibration_batches=2 held_out=64 probes=2'
    small += ' checkpoints=1 checkpoint_linear_steps=2 checkpoint_paths=3 bfloat16=false'
    common = ['--truth', str(truth), '--scores', str(scores), '--set', *small.split()]
    settings = ['--paths', '8', '--workers', '2', '--seeds', '1']
    assert module.main(['run', *common, *settings, '--methods', 'spos', 'pinas']) == 0
    first = scores.read_bytes()
    assert module.main(['run', *common, *settings, '--methods', 'spos', 'pinas']) == 0
    assert scores.read_bytes() == first
    assert '2 of 2 supernets are done' in capsys.readouterr().out
    with pytest.MonkeyPatch.context() as patch:
        use_serial_pool(patch, study)
        assert module.main(['run', *common, *settings]) == 0
    rows = read_lines(scores)
    assert scores.read_bytes().startswith(first) and len(rows) == len(CONTESTANTS)
    assert {row['threads'] for row in rows} == {1}
    with pytest.warns(UserWarning, match='only 4 paths'):
        assert module.main(['report', *common, '--out', str(tmp_path)]) == 0
    report = json.loads((tmp_path / 'report.json').read_text())
    assert set(report['runs']) == set(CONTESTANTS) and 'FairNAS' in capsys.readouterr().out


def test_the_published_report_is_that_of_the_committed_files() -> None:
    """Means of tau without the bootstrap, straight from truth and scores; and the page shows them."""
    root = Path(__file__).parents[1]
    truth = read_truth(root / 'benchmarks/rank/truth.jsonl')
    truth = with_further_seeds(truth, root / 'benchmarks/rank/truth_seeds.jsonl')
    report = json.loads((root / 'benchmarks/rank/report.json').read_text())
    lines = of_recipe(read_lines(root / 'benchmarks/rank/scores.jsonl'), truth, SupernetRecipe().id)
    assert len(truth.rows) >= 192 and report['recipe'] == SupernetRecipe().id and report['half'] == 'reporting'
    assert {'pinas', 'spos', 'fairnas', 'fpnas', 'sparse', 'entrannas', 'attentivenas', 'bnnas_tenth'} <= set(lines)
    assert all([row['seed'] for row in rows] == list(range(len(rows))) for rows in lines.values())
    assert all(report['runs'][name]['seeds'] == [row['seed'] for row in rows] for name, rows in lines.items())
    assert min(map(len, lines.values())) >= 3
    paths, page = truth.half('reporting'), (root / 'docs/ranking.md').read_text()
    true = [sum(path.top1) / len(path.top1) for path in paths]
    assert {len(path.top1) for path in paths} == {4}
    for view, index, sign in (('accuracy', 0, 1), ('loss_to_accuracy', 1, -1)):
        for name, rows in lines.items():
            scores = [[sign * row['scores'][truth.study.space.format(p.arch)][index] for p in paths] for row in rows]
            tau = float(np.mean([kendalltau(true, score)[0] for score in scores]))
            assert report[view]['contestants'][name]['tau']['mean'] == pytest.approx(tau, abs=1e-9)
            assert f'| {CONTESTANTS[name].label} | {tau:.2f} [' in page
            if name in report['registered'] and view == 'loss_to_accuracy':  # of the seeds after the questions
                found, new = report['registered'][name], scores[3:]
                tau = float(np.mean([kendalltau(true, score)[0] for score in new]))
                agreed = float(np.mean([kendalltau(*pair)[0] for pair in itertools.combinations(new, 2)]))
                assert found['seeds'] == list(range(3, 10))
                assert (found['tau']['mean'], found['agreement']['mean']) == pytest.approx((tau, agreed), abs=1e-9)
                assert f'| {CONTESTANTS[name].label} | 3 to 9 | {tau:.2f} [' in page
    assert set(report['registered']) == {'pinas', 'no_cross_path', 'moco', 'spos', 'fairnas'}
