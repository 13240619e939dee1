"""The published table of NAS-Bench-Macro as a truth, and supernets on pictures; the table itself is not here."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import kendalltau

from pinas_cli.main import main
from pinas_zoo.files import file_sha256
from pinas_zoo.models.cost import Cost, CostTable
from pinas_zoo.ranking import macro, study
from pinas_zoo.ranking.instruments import INSTRUMENTS
from pinas_zoo.ranking.macro import differing_costs, find_table, published_truth, read_table
from pinas_zoo.ranking.pictures import ROOT_VARIABLE, PictureTask
from pinas_zoo.ranking.recipe import SupernetRecipe
from pinas_zoo.ranking.report import compute
from pinas_zoo.ranking.statistics import attainable_tau
from pinas_zoo.ranking.study import Job, run, train_contestant
from pinas_zoo.ranking.tables import markdown
from pinas_zoo.ranking.truth import draw_paths
from pinas_zoo.space import NAS_BENCH_MACRO

ROOT = Path(__file__).resolve().parents[1]
TASK = PictureTask(side=8, train=32, heldout=12)
STUDY = replace(INSTRUMENTS['macro'].study, task=TASK)
RECIPE = SupernetRecipe(
    units=5, batch=8, linear_steps=3, calibration_batches=2, held_out=8, queue_length=16, probes=0, checkpoints=0
)
PATHS = 12


def write_table(path: Path, **changes: Any) -> Path:
    """A table of the drawn paths with our costs and random accuracies, in the published form."""
    rng, costs = np.random.default_rng(0), CostTable(NAS_BENCH_MACRO, 32, 10)
    table = {}
    for arch in draw_paths(STUDY, PATHS):
        cost = costs.of(arch)
        top1 = rng.uniform(80, 90) + rng.normal(0, 0.2, 3)
        entry = dict(test_acc=top1.tolist(), mean_acc=0, std=0, params=cost.params, flops=cost.macs)
        table[NAS_BENCH_MACRO.format(arch).replace('-', '')] = entry | changes
    path.write_text(json.dumps(table))
    return path


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10's layout as class folders, with few random pictures."""
    rng = np.random.default_rng(1)
    for name in range(10):
        folder = tmp_path / 'pictures' / 'train' / f'class{name}'
        folder.mkdir(parents=True)
        for index in range(5):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f'{index}.png')
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / 'pictures'))
    return tmp_path / 'pictures'


def test_the_truth_is_what_the_table_says(tmp_path: Path) -> None:
    file = write_table(tmp_path / 'table.json')
    truth = published_truth(file, STUDY, PATHS, sha256=None)
    table = json.loads(file.read_text())
    assert [row.arch for row in truth.rows] == draw_paths(STUDY, PATHS)
    for row in truth.rows:
        entry = table[''.join(map(str, row.arch))]
        assert list(row.top1) == entry['test_acc'] and (row.params, row.macs) == (entry['params'], entry['flops'])
    assert all(NAS_BENCH_MACRO.canonical(row.arch) == row.arch for row in truth.rows)
    with pytest.raises(ValueError, match='lacks 8 paths, the first is'):
        published_truth(file, STUDY, PATHS + 8, sha256=None)


def test_costs_of_a_table_are_checked(tmp_path: Path) -> None:
    file = write_table(tmp_path / 'table.json', params=5)
    differing = differing_costs(read_table(file, NAS_BENCH_MACRO, None), NAS_BENCH_MACRO)
    assert len(differing) == PATHS and all(theirs.params == 5 != ours.params for theirs, ours in differing.values())
    with pytest.raises(ValueError, match=r'has .* there, .* here'):
        published_truth(file, STUDY, PATHS, sha256=None)
    assert isinstance(next(iter(differing.values()))[0], Cost)


def test_another_file_is_refused_and_the_message_says_where_the_table_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_table(tmp_path / 'table.json')
    with pytest.raises(ValueError, match=f'its sha256 is {file_sha256(file)}, expected {macro.SHA256}; get nas'):
        read_table(file, NAS_BENCH_MACRO)
    file.write_text('{"00000000": {"test_acc": [1, 2, 3]}}')
    with pytest.raises(ValueError, match='is not a table with test_acc, params, flops per architecture'):
        read_table(file, NAS_BENCH_MACRO, None)
    monkeypatch.delenv(macro.TABLE_VARIABLE, raising=False)
    with pytest.raises(ValueError, match='no file is given; get nas-bench-macro_cifar10.json of https://github'):
        find_table()
    monkeypatch.setenv(macro.TABLE_VARIABLE, str(file))
    assert find_table() == file
    assert main(['rank', 'truth', '--instrument', 'macro', '--table', str(tmp_path / 'none')]) != 0
    assert 'none is not a file' in capsys.readouterr().err


def test_pictures_are_disjoint_reduced_and_normalised(pictures: Path) -> None:
    train, held = TASK.compose('train'), TASK.compose('heldout')
    assert train.images.shape == (32, 3, 8, 8) and train.images.dtype == torch.uint8 and len(held) == 12
    assert train.data == 'cifar10 as pictures in folders' and len(set(train.labels.tolist())) > 5
    rows = {tuple(image.flatten().tolist()) for image in (*train.images, *held.images)}
    assert len(rows) == 44
    whole = replace(TASK, side=32).compose('train')
    assert torch.equal(whole.labels, train.labels)
    small = whole.images.float().view(32, 3, 8, 4, 8, 4).mean((3, 5))
    assert (small - train.images.float()).abs().mean() < 12  # a triangle filter instead of a box
    pixels = TASK.normalise(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))
    assert pixels[0, :, 0, 0].tolist() == pytest.approx(
        [(1 - 0.4914) / 0.247, (1 - 0.4822) / 0.2435, (1 - 0.4465) / 0.2616]
    )
    with pytest.raises(ValueError, match='unknown part'):
        TASK.compose('test')
    with pytest.raises(ValueError, match=r'together at most 50,000; got 32, 50000, 1'):
        PictureTask(train=50_000, heldout=1)


def test_a_study_from_end_to_end(pictures: Path, tmp_path: Path) -> None:
    """Trained, scored, reported; accuracies alone were published, so no view compares with a true loss."""
    archs = tuple(draw_paths(STUDY, PATHS))
    jobs = [Job(name, 0, NAS_BENCH_MACRO, TASK, RECIPE, archs) for name in ('pinas', 'spos', 'fairnas')]
    rows = json.loads(json.dumps([train_contestant(job) for job in jobs]))
    with pytest.MonkeyPatch.context() as patch:  # stopped while it scores, and continued
        patch.setattr(study, 'score_method', lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_contestant(jobs[1], keep=tmp_path / 'kept')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, 'optimise', lambda *_, **__: 1 / 0)
        again = json.loads(json.dumps(train_contestant(jobs[1], keep=tmp_path / 'kept')))
    assert again['scores'] == rows[1]['scores'] and again['loss'] == rows[1]['loss']
    assert not list((tmp_path / 'kept').iterdir())
    assert all(row['data'] == 'cifar10 as pictures in folders' and row['task'] == asdict(TASK) for row in rows)
    (tmp_path / 'scores.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    run(tmp_path / 'scores.jsonl', jobs)  # nothing is left to do
    truth = published_truth(write_table(tmp_path / 'table.json'), STUDY, PATHS, sha256=None)
    with pytest.warns(UserWarning, match='only 12 paths'):
        report = compute(truth, rows, RECIPE, 'both')
    assert {'pinas', 'spos', 'fairnas', 'macs', 'params'} <= set(report['accuracy']['contestants'])
    assert 'minus_loss' not in report and report['truth']['seeds'] == 3
    true = [np.mean(row.top1) for row in truth.rows]
    losses = [-rows[1]['scores'][NAS_BENCH_MACRO.format(row.arch)][1] for row in truth.rows]
    found = report['loss_to_accuracy']['contestants']['spos']['tau']['mean']
    assert found == pytest.approx(kendalltau(true, losses)[0], abs=1e-12)
    assert 'the mean of 3 noisy seeds' in markdown(report, ('loss_to_accuracy', 'accuracy'))


def test_attainable_tau_of_three_seeds() -> None:
    """As measured: the noiseless truth against the mean of noisy seeds."""
    rng = np.random.default_rng(0)
    true = rng.normal(size=4000)
    seeds = true + rng.normal(0, 0.7, (3, 4000))
    for count in (2, 3):
        expected = kendalltau(true, seeds[:count].mean(axis=0))[0]
        assert attainable_tau(*seeds[:count]) == pytest.approx(expected, abs=0.02)


def test_the_page_is_the_committed_report() -> None:
    file = ROOT / 'benchmarks/rank_macro/report.json'
    report, page = json.loads(file.read_text()), (ROOT / 'docs/ranking_macro.md').read_text()
    assert markdown(report, ('loss_to_accuracy', 'accuracy')) in page
