"""The part that runs the project's own programs: exact resume, and torchrun with NCCL."""

from importlib.util import find_spec
from pathlib import Path

import torch

from pinas_zoo.speed.gpu.session import LeftOutError, Session, python

__all__ = ['programs']

CONFIG = 'configs/quickstart/pinas-nano-supernet_b128-coslr_fmnist.py'
#: Warnings that a log may contain; searched for in lines that warn.
WARNINGS = ('strides', 'start method', 'destroy_process_group', 'AccumulateGrad')
EXACT = {'randomness.deterministic': 'True'}
#: Time limit of one program in seconds.
LIMIT = 100


def _train(session: Session, name: str, iterations: int, *more: str, **options: str) -> list[str]:
    """Arguments of tools/train.py."""
    settings = {
        'train_cfg.max_iters': str(iterations),
        'default_hooks.logger.interval': '2',
        'default_hooks.checkpoint.interval': str(iterations // 2),
        'param_scheduler.T_max': str(iterations),
    } | options
    if session.tiny:
        settings['train_dataloader.batch_size'] = '8'
    tool, work_dir = session.root() / 'tools/train.py', _folder(session, name)
    pairs = (f'{key}={value}' for key, value in settings.items())
    return [str(tool), CONFIG, '--work-dir', str(work_dir), *more, '--cfg-options', *pairs]


def _folder(session: Session, name: str) -> Path:
    return session.out.resolve() / name.replace(', ', '_').replace(' ', '_')


def programs(session: Session) -> None:
    """Exact resume of eight iterations from four with deterministic kernels, and torchrun with BN and SyncBN.

    The programs run side by side, since starting takes most of their time; nothing here is a timing.
    """
    if find_spec('mmengine') is None:
        raise LeftOutError('needs mmengine')
    amp = ['--amp']
    launch = python('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '1')
    backend = ['--launcher', 'pytorch', *(amp if session.cuda else [])]
    kinds: dict[str, tuple[list[str], dict[str, str]]] = {'resume, amp': (amp, EXACT)}
    if session.cuda:  # a rehearsal shows that the programs start, of which one kind is enough
        kinds['resume, fp32'] = [], EXACT
        kinds['resume, amp, channels-last'] = amp, EXACT | {'model.channels_last': 'True'}
    norms = {'BN': {}, 'SyncBN': {'sync_bn': 'torch'}} if session.cuda else {'SyncBN': {'sync_bn': 'torch'}}
    logs = session.commands(
        {name: python(*_train(session, name, 8, *more, **options)) for name, (more, options) in kinds.items()}
        | {
            f'torchrun, {norm}': [*launch, *_train(session, f'torchrun, {norm}', 4, *backend, **options)]
            for norm, options in norms.items()
        },
        LIMIT,
    )
    for name in (f'torchrun, {norm}' for norm in norms):
        status, log = logs[name]
        warned = [word for word in WARNINGS if any('arn' in line and word in line for line in log.splitlines())]
        session.record(name, status=status, losses=_losses(log), warned_of=warned, log=_last(status, log))
    begun = {name: kind for name, kind in kinds.items() if logs[name][0] == 0}
    again = {
        name: python(*_train(session, f'{name}, again', 8, *more, '--resume', _saved(session, name, 4), **options))
        for name, (more, options) in begun.items()
    }
    continued = session.commands(again, LIMIT)
    failed = [name for name, (status, _) in logs.items() if status]
    for name in kinds:
        status, log = continued.get(name, logs[name])
        equal = status == 0 and _equal(_saved(session, name, 8), _saved(session, f'{name}, again', 8))
        if not equal:
            failed.append(name)
        session.record(name, status=status, bit_equal=equal, losses=_losses(logs[name][1]), log=_last(status, log))
    if failed:
        raise AssertionError(f'failed, or not equal: {", ".join(dict.fromkeys(failed))}')


def _saved(session: Session, name: str, iteration: int) -> str:
    return str(_folder(session, name) / f'iter_{iteration}.pth')


def _losses(log: str) -> list[str]:
    return [line.split('loss:')[1].split()[0] for line in log.splitlines() if 'Iter(train)' in line]


def _last(status: int, log: str) -> list[str]:
    """What the log says about graphs, or its end if the program failed."""
    if status:
        return [log.strip()[-400:]]
    return [line[line.index('CUDA graphs') :][:160] for line in log.splitlines() if 'CUDA graphs' in line]


def _equal(first: str, second: str) -> bool:
    a, b = (torch.load(path, map_location='cpu', weights_only=True)['state_dict'] for path in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
