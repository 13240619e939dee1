"""Two processes that read shards: killed and started again by torchrun, preempted and requeued by Slurm.

srun, sbatch and scontrol are played by scripts; torchrun, the launch scripts and the trainings are the real ones.
"""

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('mmengine')
pytestmark = pytest.mark.mm

import engine_utils  # noqa: E402
from mmengine.logging import MessageHub  # noqa: E402
from test_engine import toy_settings, write  # noqa: E402
from test_shards import picture, write_shard  # noqa: E402

from pinas_zoo.mm.engine.checkpoint_hook import ExactCheckpointHook  # noqa: E402
from pinas_zoo.mm.engine.preemption import SIGNALS, PreemptionHook  # noqa: E402

SRUN = """
# Runs the command after `bash` for every task; its status is the highest of theirs.
echo "srun $*"
while [ "$1" != bash ]; do if [ "$1" = --ntasks ]; then tasks=$2; fi; shift; done
export SLURM_NTASKS=$tasks SLURM_NTASKS_PER_NODE=$tasks SLURM_JOB_NODELIST=node1
for i in $(seq 0 $((tasks - 1))); do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & pids+=($!); done
worst=0
for pid in "${pids[@]}"; do wait "$pid"; status=$?; if [ $status -gt $worst ]; then worst=$status; fi; done
exit $worst
"""
SCONTROL = """
if [ "$1" = show ]; then echo 127.0.0.1; else echo "$1 $2" >>"$QUEUE"; fi
"""
SBATCH = """
# Runs the wrapped command as job 7, again as often as it was put back into the queue.
echo "sbatch $*"
while [ "$1" != --wrap ]; do shift; done
export SLURM_JOB_ID=7 SLURM_RESTART_COUNT=0
while :; do
    rm -f "$QUEUE"
    bash -c "$2"; status=$?
    echo "job 7, run $SLURM_RESTART_COUNT: status $status"
    if ! grep -q '^requeue 7$' "$QUEUE" 2>/dev/null; then exit $status; fi
    SLURM_RESTART_COUNT=$((SLURM_RESTART_COUNT + 1))
done
"""
PROGRAMS = {'srun': SRUN, 'sbatch': SBATCH, 'scontrol': SCONTROL}


def launch(folder: Path, script: str, *words: str, **variables: str) -> str:
    """What a launch script and its ranks print; it has to succeed."""
    more = {'TOY_QUICK': '1', 'PATH': f'{folder / "bin"}:{os.environ["PATH"]}', **variables}
    script = str(engine_utils.ROOT / 'tools' / script)
    result = engine_utils.run_tool(script, *words, program=['env', *(f'{k}={v}' for k, v in more.items()), 'bash'])
    assert result.returncode == 0, result.stdout[-5000:]
    return result.stdout


@pytest.fixture(scope='module')
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config on six shards, and Slurm's commands."""
    folder = tmp_path_factory.mktemp('cluster')
    for shard in range(6):
        numbers = range(4 * shard, 4 * shard + 4)
        pairs = [((f'{n}.png', picture(n * 37)), (f'{n}.cls', b'%d' % (n % 2))) for n in numbers]
        write_shard(folder / f'{shard}.tar', [member for pair in pairs for member in pair])
    for name, text in PROGRAMS.items():
        path = folder / 'bin' / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/bash{text}')
        path.chmod(0o755)
    settings = toy_settings(find_unused_parameters=True)
    source = {'kind': 'shards', 'shards': '{0..5}.tar', 'root': str(folder), 'window': 2}
    view = {'type': 'pinas_zoo.SupervisedView', 'source': source, 'size': 8, 'train': True}
    settings['train_dataloader']['dataset'] = view
    settings['custom_hooks'] = [{'type': 'SignalHook'}, {'type': 'RankDumpHook'}]
    write(settings, folder, workers=1)
    return folder


@pytest.fixture(scope='module')
def slurm(case: Path) -> dict[str, str]:
    """Variables of slurm_train.sh."""
    return {'QUEUE': str(case / 'queue'), 'GPUS': '2', 'GPUS_PER_NODE': '0'}


@pytest.fixture(scope='module')
def reference(case: Path, slurm: dict[str, str]) -> Path:
    """A run on two processes that is never stopped."""
    launch(case, 'slurm_train.sh', 'gpu', 'job', str(case / 'toy.py'), '--work-dir', str(case / 'run'), **slurm)
    return case / 'run'


def assert_equal(reference: Path, other: Path) -> None:
    """Everything but the text of the config, which names the launcher, and whether the run was resumed."""
    found = engine_utils.differences(reference, other)
    assert all('.cfg: ' in name for name in found), found
    assert engine_utils.logged(reference) == engine_utils.logged(other)
    assert len({tuple(sorted(path.name for path in folder.glob('*.pth'))) for folder in (reference, other)}) == 1


@pytest.mark.processes
@pytest.mark.slow
def test_ranks_are_equal_and_another_number_is_refused(case: Path, reference: Path) -> None:
    ranks = [torch.load(reference / f'rank{rank}.pth', weights_only=True)['parameters'] for rank in range(2)]
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in ranks[0])
    assert len(engine_utils.last_checkpoint(reference)['random_states']) == 2
    result = engine_utils.run_train(case / 'toy.py', reference, '--resume')
    assert result.returncode != 0 and 'world_size 2 in the checkpoint, 1 now' in result.stdout


@pytest.mark.processes
@pytest.mark.slow
def test_a_preempted_job_is_requeued(case: Path, slurm: dict[str, str], reference: Path, tmp_path: Path) -> None:
    """The signal reaches one rank, before iteration 7; both stop after 8, between the saves at 6 and 9."""
    words = ('gpu', 'job', str(case / 'toy.py'), '--work-dir', str(tmp_path / 'run'))
    text = launch(case, 'slurm_train.sh', *words, **slurm, REQUEUE='120', TOY_SIGNAL='1 7 SIGUSR1')
    assert '--requeue --open-mode append --signal USR1@120' in text
    assert 'job 7, run 0: status 75' in text and 'job 7, run 1: status 0' in text
    assert 'stopped by a signal after iteration 8: saved' in text and 'resumed epoch: 0, iter: 8' in text
    assert_equal(reference, tmp_path / 'run')  # the interim checkpoint is gone


@pytest.mark.processes
@pytest.mark.slow
def test_a_killed_process_is_started_again(case: Path, reference: Path, tmp_path: Path) -> None:
    words = (str(case / 'toy.py'), '2', '--work-dir', str(tmp_path / 'run'))
    text = launch(case, 'dist_train.sh', *words, MAX_RESTARTS='1', TOY_SIGNAL='1 8 SIGKILL')
    assert 'nothing was saved' in text and 'resumed epoch: 0, iter: 6' in text
    assert_equal(reference, tmp_path / 'run')


def test_a_signal_within_an_accumulation_waits_for_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {'optim_wrapper': SimpleNamespace(_accumulative_counts=2), 'max_iters': 9, 'message_hub': MessageHub('x')}
    checkpoint, hook, saved = ExactCheckpointHook(interval=100), PreemptionHook(), []
    monkeypatch.setattr(checkpoint, '_save_checkpoint', lambda runner: saved.append(runner.iter + 1))
    messages: list[str] = []
    others = {'logger': SimpleNamespace(warning=messages.append), 'visualizer': SimpleNamespace(close=lambda: None)}
    runner = SimpleNamespace(iter=1, hooks=[checkpoint, hook], **steps, **others)
    before = [signal.getsignal(number) for number in SIGNALS]
    try:
        hook.before_train(runner)
        hook.after_train_iter(runner, 0)
        os.kill(os.getpid(), signal.SIGTERM)
        runner.iter = 2  # the third iteration begins an accumulation
        hook.after_train_iter(runner, 0)
        assert saved == []
        runner.iter = 3
        with pytest.raises(SystemExit) as stopped:
            hook.after_train_iter(runner, 0)
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
    assert stopped.value.code == 75 and saved == [4] and 'after iteration 4' in messages[0]
