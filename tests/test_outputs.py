"""Outputs that are read late: what the guard and the log see, and when."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip('mmengine')
from mmengine.hooks import LoggerHook
from torch import nn

from pinas_zoo.mm.engine import hooks
from pinas_zoo.mm.engine.checkpoint_hook import NonFiniteError, flush_outputs
from pinas_zoo.mm.engine.hooks import LateInfoHook, NonFiniteGuardHook

pytestmark = pytest.mark.mm


class Hub(dict):
    def update_scalar(self, name: str, value: float) -> None:
        self.setdefault(name, []).append(value)


class Paths(nn.Module):
    """Returns the path of the requested step."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last_step = nn.BatchNorm2d(2), 0

    @property
    def last_paths(self) -> list[str]:
        return [f'path {self.last_step}']


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs arrive as from a GPU: one step late."""
    event = SimpleNamespace(synchronize=lambda: None)
    monkeypatch.setattr(hooks, '_copy', lambda *given, copy=hooks._copy: replace(copy(*given), arrived=event))


def runner(folder: Path, scaler: Any = None) -> Any:
    chain = [LateInfoHook(), NonFiniteGuardHook(), LoggerHook(interval=4)]
    chain[1].overflows = 2
    logger = SimpleNamespace(lines=[], error=lambda line: None)
    logger.warning = logger.lines.append
    wrapper = SimpleNamespace() if scaler is None else SimpleNamespace(loss_scaler=scaler, cast_dtype=None)
    return SimpleNamespace(
        hooks=chain, iter=0, max_iters=10, message_hub=Hub(), work_dir=str(folder), logger=logger, model=Paths(),
        optim_wrapper=wrapper, train_dataloader=range(100),
    )  # fmt: skip


def take(run: Any, loss: float) -> None:
    run.model.last_step = run.iter
    for hook in run.hooks[:2]:
        outputs = {'loss': torch.tensor(loss), 'top1': torch.tensor(50.0, dtype=torch.float64)}
        hook.after_train_iter(run, run.iter, {'name': [f'{run.iter}.png']}, outputs)
    run.iter += 1


def test_values_come_late_and_all_are_there_when_they_are_logged_or_saved(tmp_path: Path, late: None) -> None:
    run = runner(tmp_path)
    counts = []
    for index in range(10):
        take(run, index / 4)
        counts.append(len(run.message_hub.get('train/loss', [])))
    assert counts == [0, 1, 2, 4, 4, 5, 6, 8, 8, 10]  # logged after iterations 4 and 8, and at the end
    run = runner(tmp_path)
    take(run, 0.25)
    flush_outputs(run)
    assert run.message_hub == {'train/loss': [0.25], 'train/top1': [50.0]}


def test_nothing_waits_on_a_cpu(tmp_path: Path) -> None:
    run = runner(tmp_path)
    take(run, 0.1)
    assert run.message_hub['train/loss'] == [torch.tensor(0.1).item()]


def test_a_late_report_names_its_own_step(tmp_path: Path, late: None) -> None:
    run = runner(tmp_path)
    take(run, 1.0)
    take(run, math.nan)
    with pytest.raises(NonFiniteError, match='iteration 2 on rank 0'):
        take(run, 1.0)
    report = json.loads((tmp_path / 'non_finite.json').read_text())
    assert (report['iteration'], report['paths'], report['files']) == (2, ['path 1'], ['1.png'])
    assert run.message_hub['train/loss'] == [1.0] and run.model.last_step == 2


def test_a_save_passes_the_guard_first(tmp_path: Path, late: None) -> None:
    run = runner(tmp_path)
    take(run, math.inf)
    with pytest.raises(NonFiniteError, match='iteration 1 '):
        flush_outputs(run)


def test_overflows_are_the_loss_scalers(tmp_path: Path) -> None:
    scaler = SimpleNamespace(is_enabled=lambda: True)
    run = runner(tmp_path, scaler)
    run.model.norm.running_mean[1] = math.nan
    run.model.norm.running_var.fill_(3)
    take(run, math.inf)
    assert 'overflow in float16 at iteration 1' in run.logger.lines[0] and '1 BN layers' in run.logger.lines[0]
    assert run.model.norm.running_mean.tolist() == [0, 0] and run.model.norm.running_var.tolist() == [3, 1]
    take(run, math.nan)
    take(run, 1.0)  # the row ends
    take(run, math.nan), take(run, math.nan)
    with pytest.raises(NonFiniteError, match='iteration 6 '):
        take(run, math.nan)
    run.optim_wrapper.cast_dtype = torch.bfloat16  # does not overflow: a fault
    with pytest.raises(NonFiniteError, match='iteration 6 '):
        take(run, math.nan)
