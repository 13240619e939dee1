"""tools/benchmark.py: what it writes, and that its contestants do the same work. Times are not checked."""

import argparse
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from fork_server import python

from pinas_zoo.space import PINAS_NANO, PINAS_TINY

TOOLS = Path(__file__).resolve().parents[1] / 'tools'
CHEAP = ['--quick', '--rounds', '1', '--warmups', '0', '--threads', '1']


def run_tool(*arguments: str) -> subprocess.CompletedProcess:
    env = os.environ | {'PYTHONPATH': f'{TOOLS.parent}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'}
    command = [python(), str(TOOLS / 'benchmark.py'), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)


# ---- the contestants of the step -------------------------------------------------------------------------------------


@pytest.fixture
def trainers():
    from pinas_zoo.speed.step import Sizes, Trainer

    return [Trainer(Sizes('pinas_nano', 6, 28, 32), 'contiguous') for _ in range(3)]


def test_released_form_is_the_same_step(trainers):
    ours, released, _ = trainers
    # One step differs by rounding alone; later ones start from weights that do, and BN over six images magnifies it.
    for index, tolerance in zip((-2, -1, 0, 1, 2), (1e-6, *[1e-4] * 4)):
        torch.testing.assert_close(ours.ours(index), released.released(index), rtol=tolerance, atol=0)
    torch.testing.assert_close(ours.method.state_dict(), released.method.state_dict(), rtol=1e-3, atol=1e-3)


def test_optimisers_are_the_same(trainers):
    for index in (-2, -1, 0):
        losses = [trainer.ours(index, name) for trainer, name in zip(trainers, ('loop', 'foreach', 'fused'))]
        torch.testing.assert_close(losses, losses[:1] * 3, rtol=0, atol=1e-5)
    first, *others = (trainer.method.state_dict() for trainer in trainers)
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-4, atol=1e-5)


def test_floor_updates_nothing(trainers):
    trainer = trainers[0]
    before = {name: parameter.detach().clone() for name, parameter in trainer.method.named_parameters()}
    assert trainer.floor(0).isfinite()
    for name, parameter in trainer.method.named_parameters():
        assert torch.equal(parameter, before[name])
    path = trainer.method.student.on_path(trainer.paths(0)[0])
    assert all(parameter.grad is not None for parameter in path)
    trainer.clear()
    assert all(parameter.grad is None for parameter in path)


def test_two_warm_ups_meet_every_candidate(trainers):
    met = [arch for index in (-2, -1) for arch in trainers[0].paths(index)]
    assert all(set(column) == {0, 1, 2, 3} for column in zip(*met))
    assert trainers[0].paths(0) == trainers[0].draw(0)


# ---- timing ----------------------------------------------------------------------------------------------------------


def test_contestants_alternate(capsys):
    from pinas_zoo.speed.timing import Settings, alternate, compare, row

    calls: list[tuple[str, int]] = []
    contestants = {name: lambda index, name=name: calls.append((name, index)) for name in 'ab'}
    times = alternate(contestants, Settings(rounds=2, warmups=1), 'title', after=lambda: calls.append(('after', 0)))
    assert [call for call in calls if call[0] != 'after'] == [
        ('b', -1), ('a', -1), ('a', 0), ('b', 0), ('b', 1), ('a', 1),
    ]  # fmt: skip
    assert calls[1::2] == [('after', 0)] * 6
    assert len(times['a'].wall) == len(times['a'].cpu) == 2
    assert 'title: round 2/2, a' in capsys.readouterr().err
    times['a'].wall, times['b'].wall = [2.0, 6.0], [1.0, 2.0]
    times['a'].cpu, times['b'].cpu = [3.0, 3.0], [1.0, 1.0]
    assert compare(times['a'], times['b']) == {'ratio': pytest.approx(8 / 3), 'paired': 2.5, 'cpu': 3.0}
    assert row('a', times['a'], 8)['images_per_second'] == 2.0


def test_peak_memory_counts_a_large_tensor():
    from pinas_zoo.speed.timing import peak_memory

    before = peak_memory()
    kept = torch.ones(64 * 2**20)  # 256 MiB
    assert peak_memory() >= before
    assert before > 50
    assert len(kept)


# ---- the other parts -------------------------------------------------------------------------------------------------


def test_mutations_are_distinct():
    from pinas_zoo.speed.rank import mutations

    archs = mutations(PINAS_NANO, 8, 64, seed=0)
    assert len(set(archs)) == 64
    assert archs == mutations(PINAS_NANO, 8, 64, seed=0) != mutations(PINAS_NANO, 8, 64, seed=1)
    assert all(PINAS_TINY.parse(arch) for arch in mutations(PINAS_TINY, 2, 4, seed=0))


def test_evaluation_one_by_one_scores_as_shared():
    from pinas_zoo.speed.rank import measure
    from pinas_zoo.speed.timing import Settings

    result = measure(Settings(quick=True, rounds=1, warmups=0))
    assert result['ratios']['largest difference of a loss']['ratio'] < 1e-5
    assert 0 < result['ratios']['blocks run, shared / one by one']['ratio'] < 1


def test_photos_weigh_as_photos_do(tmp_path):
    from pinas_zoo.speed.loading import write_photos

    write_photos(tmp_path, 2, seed=0)
    assert all(50_000 < file.stat().st_size < 200_000 for file in tmp_path.iterdir())
    assert len(list(tmp_path.glob('*.jpg'))) == 2


# ---- the tool --------------------------------------------------------------------------------------------------------


def test_writes_json(tmp_path):
    out = tmp_path / 'deep' / 'benchmark.json'
    done = run_tool(*CHEAP, '--only', 'loading', '--out', str(out))
    assert done.returncode == 0, done.stderr
    values = json.loads(out.read_text())
    assert {'torch', 'cpu', 'cores', 'threads', 'date', 'load_average'} <= set(values['environment'])
    assert values['environment']['threads'] == values['parts']['loading']['torch']['threads'] == 1
    assert list(values['parts']) == ['loading'] and values['quick']
    assert all(line['images_per_second'] > 0 for line in values['parts']['loading']['rows'])
    assert not list(out.parent.glob('*.partial'))
    assert 'images/s' in done.stdout and 'round 1/1' in done.stderr


def test_rows_of_the_step(tmp_path, capsys, monkeypatch):
    from pinas_cli import benchmark

    def run_here(task, args):  # a process each costs a minute
        args.task, args.out = task, tmp_path / 'task.json'
        benchmark.run_task(args)
        return json.loads(args.out.read_text())

    parser = argparse.ArgumentParser()
    benchmark.add_arguments(parser)
    threads = torch.get_num_threads()
    monkeypatch.setattr(benchmark, 'run_worker', run_here)
    result = benchmark.measure_part('step', parser.parse_args(CHEAP))
    torch.set_num_threads(threads)
    rows = {line['name']: line for line in result['rows']}
    for name in ('released, contiguous', 'ours, contiguous', 'ours, channels_last', 'floor, contiguous'):
        assert rows[name]['images_per_second'] > 0 and rows[name]['memory']['peak_mib'] > 50
    assert {'teacher, loop', 'teacher, foreach', 'shuffle', 'queue, cloned', 'queue, in place'} <= set(rows)
    assert {'released / ours', 'ours / floor'} <= set(result['ratios'])
    benchmark.print_part('step', result)
    assert 'MiB' in capsys.readouterr().out


def test_a_part_that_fails_is_said(tmp_path, capsys, monkeypatch):
    from pinas_cli import benchmark
    from pinas_cli.main import main

    ended = subprocess.CompletedProcess([], 3)
    monkeypatch.setattr(benchmark.subprocess, 'run', lambda *args, **kwargs: ended)
    out = tmp_path / 'benchmark.json'
    assert main(['benchmark', *CHEAP, '--only', 'inference', '--out', str(out)]) == 1
    assert 'exit status 3' in json.loads(out.read_text())['parts']['inference']['error']
    assert 'exit status 3' in capsys.readouterr().out


@pytest.mark.parametrize('wrong', [['--only', 'stp'], ['--rounds', '0'], ['--threads', '0']])
def test_wrong_arguments(wrong, capsys):
    from pinas_cli.main import main

    assert main(['benchmark', *wrong]) == 2
    assert 'allowed' in capsys.readouterr().err
