"""Parts that time the training step: forms, precisions, layouts, batch sizes, compiled blocks."""

import cProfile
import pstats
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from pinas_zoo.models.compiling import compile_blocks
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.models.typed import to_memory_format
from pinas_zoo.space import get_space
from pinas_zoo.speed.gpu.session import LeftOutError, Session, Timing
from pinas_zoo.speed.step import LAYOUTS, PAPER, QUICK, Sizes, Trainer

__all__ = ['autotune', 'batches', 'compiled', 'compiled_step', 'profile', 'step']

HALVES = {'bf16': torch.bfloat16, 'fp16': torch.float16, 'TF32': None}
#: Form, precision, layout, graphs; the forms of one trainer are adjacent.
STEPS = (
    ('ours', 'bf16', 'contiguous', True),
    ('floor', 'bf16', 'contiguous', True),
    ('ours', 'bf16', 'contiguous', False),
    ('floor', 'bf16', 'contiguous', False),
    ('released', 'fp16', 'contiguous', False),
    ('ours', 'fp16', 'contiguous', True),
    ('ours', 'bf16', 'channels_last', True),
    ('floor', 'bf16', 'channels_last', True),
    ('ours', 'TF32', 'contiguous', True),
    ('floor', 'TF32', 'contiguous', False),
    ('ours', 'fp16', 'channels_last', True),
)


def _sizes(session: Session) -> Sizes:
    return QUICK if session.tiny else PAPER


@contextmanager
def _autotuned(how: bool) -> Iterator[None]:
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = how
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _keep(session: Session, name: str, timing: Timing, images: int, **more: Any) -> None:
    rate = 1e3 * images / timing.ms
    session.record(name, **asdict(timing), images_per_second=rate, **more)


def step(session: Session) -> None:
    """The recipe's step on random paths with cudnn's default kernels: form, precision and layout."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    sizes, last, trainer, found = _sizes(session), None, None, {}
    for form, precision, layout, captured in STEPS:
        if not session.cuda and (captured or precision == 'fp16'):
            continue
        if last != (precision, layout, captured):
            trainer = None  # frees its memory first
            session.free()
            trainer = Trainer(sizes, layout, 0, session.device, HALVES[precision], captured)
            last = (precision, layout, captured)
        name = f'{form}, {precision}, {layout}{", graphs" * captured}'
        assert trainer is not None
        lines = len(trainer.lines)
        timing = session.time(getattr(trainer, form), rounds=30 if captured else 8, warm_ups=4)
        trainer.clear()
        found[name] = timing.ms
        _keep(
            session, name, timing, sizes.images, kernels_ms=_kernels(session, trainer, form), log=trainer.lines[lines:]
        )
    _ratios(session, found)


def _ratios(session: Session, found: dict[str, float]) -> None:
    """The goals: at most 1.25 times the floor in the same precision, 1.5 times the released form in fp16."""
    for layout in LAYOUTS:
        floor, ours = (f'{form}, bf16, {layout}, graphs' for form in ('floor', 'ours'))
        if floor in found and ours in found:
            session.record(f'ours / floor, graphs, bf16, {layout}', ratio=found[ours] / found[floor])
    released, ours = 'released, fp16, contiguous', 'ours, fp16, contiguous, graphs'
    if released in found and ours in found:
        session.record('released / ours, fp16', ratio=found[released] / found[ours])


def kernels(session: Session, call: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds of the device's kernels in one call, by name; empty if they cannot be measured."""
    if not session.cuda:
        return {}
    found: dict[str, float] = {}
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call()
            torch.cuda.synchronize()
        for event in profile.events():
            if event.device_type == torch.autograd.DeviceType.CUDA:
                found[event.name] = found.get(event.name, 0.0) + event.time_range.elapsed_us() / 1e3
    except (RuntimeError, AttributeError):
        return {}
    return found


def _kernels(session: Session, trainer: Trainer, form: str) -> float | None:
    """Milliseconds of kernels in one step; None if they cannot be measured."""
    found = kernels(session, lambda: getattr(trainer, form)(0))
    trainer.clear()
    return sum(found.values()) or None


def autotune(session: Session) -> None:
    """What cudnn's search for the fastest kernel gains and costs, on one pair of paths."""
    sizes = _sizes(session)
    for layout in ('contiguous', 'channels_last'):
        for how in (False, True):
            with _autotuned(how):
                start = time.monotonic()
                trainer = Trainer(sizes, layout, 0, session.device, torch.bfloat16, session.cuda, pairs=1)
                trainer.ours(0)
                session.synchronise()
                seconds = time.monotonic() - start
                timing = session.time(trainer.ours, rounds=20)
            _keep(session, f'{layout}, cudnn.benchmark {how}', timing, sizes.images, first_step_seconds=seconds)
            del trainer
            session.free()


def batches(session: Session) -> None:
    """Larger batches, eagerly: where the GPU is the limit, which layout is faster, and what fits."""
    for images in (4,) if session.tiny else (96, 192, 384, 768):
        for layout in ('contiguous', 'channels_last'):
            sizes = replace(_sizes(session), images=images)
            trainer: Trainer | None = None
            try:
                trainer = Trainer(sizes, layout, 0, session.device, torch.bfloat16, False, pairs=1)
                timing = session.time(trainer.ours, rounds=4, warm_ups=2)
                _keep(session, f'{images} images, {layout}', timing, images)
            except torch.OutOfMemoryError:
                session.record(f'{images} images, {layout}', fits=False)
                return
            finally:
                trainer = None
                session.free()


def compiled(session: Session) -> None:
    """Kernels of single blocks, forward and backward, eagerly and compiled."""
    _needs_cuda(session)
    sizes = _sizes(session)
    space = get_space(sizes.space)
    net = to_memory_format(SuperNet(space, zero_init_last=False).to(session.device), torch.channels_last)
    for stage in range(len(space.depths)):
        position = sum(space.depths[:stage]) + 1
        side = sizes.side // (4 * 2**stage)
        for choice in space.choices(position) if stage == 2 else space.choices(position)[:1]:
            x = torch.randn(sizes.images, space.in_channels(position), side, side, device=session.device)
            x = x.contiguous(memory_format=torch.channels_last)
            _compile_block(session, f'stage {stage + 1}, candidate {choice}', net.blocks[position][choice], x)


def compiled_step(session: Session) -> None:
    """One pair of paths from graphs, with compiled blocks and without; compiling takes minutes.

    The paths take the same candidate at every position, so that few kinds of blocks are compiled.
    """
    _needs_cuda(session)
    found, sizes = {}, _sizes(session)
    space = get_space(sizes.space)
    pair = tuple(tuple(space.choices(p)[index] for p in range(space.num_positions)) for index in (0, 1))
    for how in ('as it is', 'compiled'):
        trainer = Trainer(sizes, 'channels_last', 0, session.device, torch.bfloat16, graphs=True)
        trainer.method.paths = lambda _: pair  # type: ignore[method-assign, assignment]
        if how == 'compiled':
            compile_blocks(trainer.method)
        start = time.monotonic()
        loss = float(trainer.ours(0))
        seconds = time.monotonic() - start
        timing = session.time(trainer.ours, rounds=20)
        found[how] = timing.ms
        _keep(session, how, timing, sizes.images, first_step_seconds=seconds, loss=loss, log=trainer.lines)
        del trainer
        session.free()
    session.record('as it is / compiled', ratio=found['as it is'] / found['compiled'])


def _needs_cuda(session: Session) -> None:
    if not session.cuda:
        raise LeftOutError('needs CUDA: compiling on a CPU takes minutes')


def _compile_block(session: Session, name: str, block: torch.nn.Module, x: torch.Tensor) -> None:
    x = x.relu_().requires_grad_()

    def both() -> torch.Tensor:
        with torch.autocast(session.device.type, torch.bfloat16, cache_enabled=False):
            out: torch.Tensor = block(x)
        out.backward(torch.ones_like(out))
        return out.detach()

    both()
    eager, out = sum(kernels(session, both).values()), both()
    compile_blocks(block)
    start = time.monotonic()
    both()
    seconds = time.monotonic() - start
    fused, other = sum(kernels(session, both).values()), both()
    apart = float((other.float() - out.float()).norm() / out.float().norm())
    session.record(name, eager_ms=eager, compiled_ms=fused, first_call_seconds=seconds, apart=apart)


def profile(session: Session) -> None:
    """Where a step's time goes: kernels on the device by name, functions on the host."""
    for layout in LAYOUTS if session.cuda else ('contiguous',):
        _profile(session, layout)
        session.free()


def _profile(session: Session, layout: str) -> None:
    trainer = Trainer(_sizes(session), layout, 0, session.device, torch.bfloat16, graphs=session.cuda, pairs=1)
    for _ in range(3):
        trainer.ours(0)
    found = kernels(session, lambda: trainer.ours(0))
    total = sum(found.values())
    for name, ms in sorted(found.items(), key=lambda item: -item[1])[:16]:
        session.record(f'{layout}, {name[:110]}', ms=ms, share=ms / total)
    session.synchronise()
    host = cProfile.Profile()
    host.enable()
    trainer.ours(0)
    host.disable()
    session.synchronise()
    rows = pstats.Stats(host).get_stats_profile().func_profiles.items()
    for name, row in sorted(rows, key=lambda item: -item[1].tottime)[:16]:
        place = f'{Path(row.file_name).name}:{row.line_number} {name}'
        session.record(f'{layout}, host, {place}', own_ms=1e3 * row.tottime, ms=1e3 * row.cumtime, calls=row.ncalls)
