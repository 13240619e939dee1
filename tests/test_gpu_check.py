"""The GPU check, rehearsed on a CPU: every part runs, is bounded, and its results are written."""

import json
import time
from pathlib import Path

import pytest
import torch
from tape import TapeRecorder

from pinas_cli.main import main as pinas
from pinas_zoo.models.captured import CapturedBlock
from pinas_zoo.speed import step
from pinas_zoo.speed.gpu import right
from pinas_zoo.speed.gpu import session as sessions
from pinas_zoo.speed.gpu.main import PARTS, check
from pinas_zoo.speed.gpu.session import LeftOutError, Part, Session


def rehearse(folder: Path, *parts: str) -> tuple[int, dict]:
    status = check(folder, 440, parts, 'cpu', tiny=True)
    return status, json.loads((folder / 'results.json').read_text())


def test_what_is_right_and_the_step(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    status, results = rehearse(tmp_path, 'graphs', 'host_syncs', 'step', 'autotune')
    assert status == 0
    parts = results['parts']
    assert 'needs CUDA' in parts['graphs']['left_out']
    assert parts['host_syncs']['rows']['eager'] == {'waits': 'none'}
    assert {'ours, bf16, contiguous', 'floor, bf16, contiguous'} <= set(parts['step']['rows'])
    assert all(row['ms'] > 0 and row['host_ms'] > 0 for row in parts['step']['rows'].values())
    assert results['environment']['torch'] == torch.__version__.split('+')[0] or results['environment']['torch']
    assert 'host_syncs' in capsys.readouterr().out


def test_graphs_run_in_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (right, step):
        monkeypatch.setattr(module, 'CudaRecorder', TapeRecorder)
    monkeypatch.setattr(right, 'STEPS', 3)
    status, results = rehearse(tmp_path, 'graphs')
    rows = results['parts']['graphs']['rows']
    assert status == 0, results['parts']['graphs']
    assert rows.pop('a capture that waits') == {'recovered': True}
    assert all(row['graphs_equal'] and row['same_gradients'] and row['loss'] for row in rows.values())
    ways = {name: (row['direct'] > 0, row['autograd'] > 0, row['ran_eagerly'] > 0) for name, row in rows.items()}
    assert ways == {
        'bf16, gradients direct': (True, False, False),
        'bf16, gradients autograd': (False, True, False),
        'fp16, 2 batches a step, gradients mixed': (True, True, False),
    }
    monkeypatch.setattr(right, '_hook', lambda _: None)  # it then takes another way than it should
    add = CapturedBlock.add_gradients
    monkeypatch.setattr(CapturedBlock, 'add_gradients', lambda block: (add(block), block.parameters[0].grad.mul_(2)))
    status, results = rehearse(tmp_path, 'graphs')
    assert status == 1 and results['parts']['graphs']['error'] == f'AssertionError: failed: {"; ".join(rows)}'


@pytest.mark.slow
def test_every_other_part(tmp_path: Path, forked_python: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(right, 'CudaRecorder', TapeRecorder)
    tested = ('graphs', 'host_syncs', 'step', 'autotune', 'dense', 'loading')
    others = [part.name for part in PARTS if part.name not in tested]
    status, results = rehearse(tmp_path, *others)
    parts = results['parts']
    assert status == 0, parts
    assert parts['compiled'].keys() == parts['compiled_step'].keys() == {'left_out', 'seconds'}
    rows = parts['programs']['rows']
    assert rows['resume, amp']['bit_equal']
    assert len(rows['torchrun, SyncBN']['losses']) == 2
    parity = parts['parity']['rows']
    assert all(row['passed'] for row in parity.values()) and parity['float64 graphs']['direct'] == 4 * 2 * 16
    assert parity['float64 graphs, hooks']['autograd'] == 4 * 2 * 16
    assert parts['precision']['rows']['96 paths']['tau'] > 0


@pytest.mark.slow
@pytest.mark.mm
def test_detection_and_segmentation(tmp_path: Path) -> None:
    pytest.importorskip('mmdet')
    status, results = rehearse(tmp_path, 'dense')
    assert status == 0, results['parts']['dense']
    assert all(row['images_per_second'] > 0 for row in results['parts']['dense']['rows'].values())


def test_a_part_that_fails_or_cannot_run_does_not_stop_the_others(tmp_path: Path) -> None:
    def failing(session: Session) -> None:
        session.record('half of it', value=1.5)
        raise RuntimeError('no such kernel')

    def elsewhere(session: Session) -> None:
        raise LeftOutError('needs a clone')

    def fine(session: Session) -> None:
        session.record('all', values=[1.0, float('nan')])

    session = Session(torch.device('cpu'), True, tmp_path, 10)
    assert not session.run([Part(failing, 5), Part(elsewhere, 5), Part(fine, 5)])
    parts = json.loads((tmp_path / 'results.json').read_text())['parts']
    assert parts['failing']['error'] == 'RuntimeError: no such kernel'
    assert parts['failing']['rows'] == {'half of it': {'value': 1.5}}
    assert parts['elsewhere']['left_out'] == 'needs a clone' and 'all' in parts['fine']['rows']


def test_a_part_is_stopped_at_its_limit() -> None:
    with pytest.raises(TimeoutError, match='stopped after'), sessions.time_limit(0.05):
        while True:
            time.sleep(0.01)


def test_wrong_arguments(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(ValueError, match=r"--only got \['steps'\], allowed: parity"):
        check(tmp_path, 10, ['steps'], 'cpu')
    assert pinas(['benchmark', 'gpu', '--only', 'step,x', '--device', 'cpu']) == 1
    assert "--only got ['x']" in capsys.readouterr().err


def test_loading(tmp_path: Path) -> None:
    status, results = rehearse(tmp_path, 'loading')
    rows = results['parts']['loading']['rows']
    assert status == 0 and rows['augment, device against CPU']['apart'] < 1 / 255
    assert {'unfinished views, 0 workers', 'unfinished views, 1 workers', 'torchvision, 1 workers'} <= set(rows)
    assert all(row.get('images_per_second', 1) > 0 for row in rows.values())
