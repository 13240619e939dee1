"""The part that times loading: what workers deliver, what is copied, and the augmentation on the device."""

import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pinas_zoo.data import FolderSource, FourViews, augment, collate_views, finish_views
from pinas_zoo.dist import cores
from pinas_zoo.speed.gpu.session import Session
from pinas_zoo.speed.loading import TorchvisionViews, unfinished_batch, write_photos

__all__ = ['loading']


def loading(session: Session) -> None:
    """Four views of JPEG photos at 224 px from worker processes, the copy of a batch, and `augment` on the device."""
    photos, batch = (8, 4) if session.tiny else (96, 24)
    _device_part(session, batch)
    counts = (0, 1) if session.tiny else sorted({n for n in (1, 2, 4, 8, 15) if n < cores()} or {1})
    with TemporaryDirectory() as folder:
        write_photos(Path(folder), photos, 0)
        source = FolderSource(folder)
        whole = TorchvisionViews(source)
        rate = _deliver(session, whole, batch, counts[-1])
        session.record(f'torchvision, {counts[-1]} workers', images_per_second=rate, views_per_second=4 * rate)
        for workers in counts:
            rate = _deliver(session, FourViews(source, finish=False), batch, workers)
            session.record(f'unfinished views, {workers} workers', images_per_second=rate, views_per_second=4 * rate)


def _deliver(session: Session, data: FourViews | TorchvisionViews, batch: int, workers: int) -> float:
    """Images per second once the workers run and the prefetched batches are used up."""
    seconds = 0.2 if session.tiny else 2.0
    endless = [index % len(data) for index in range(10**5)]  # there are only a few photos
    loader = DataLoader(
        data, batch, sampler=endless, num_workers=workers, pin_memory=session.cuda, collate_fn=collate_views
    )
    batches = iter(loader)
    for _ in range(2 * workers + 1):
        next(batches)
    start, images = time.monotonic(), 0
    while (past := time.monotonic() - start) < seconds or not images:
        images += len(next(batches)['index'])
    return images / past if images and past else 0.0


def _device_part(session: Session, batch: int) -> None:
    raw = unfinished_batch(batch, 64 if session.tiny else 224)
    if session.cuda:
        raw = {key: value.pin_memory() if isinstance(value, Tensor) else value for key, value in raw.items()}
        floats = finish_views(raw)['views'].contiguous()
        copies = (
            ('float views, pageable', floats),
            ('float views, pinned', floats.pin_memory()),
            ('uint8', raw['views']),
        )
        for name, tensor in copies:
            timing = session.time(partial(_copy, tensor, session.device), 10)
            session.record(f'copy, {name}', ms=timing.ms, host_ms=timing.host_ms, mebibytes=tensor.nbytes / 2**20)
    moved = _moved(raw, session.device)
    recipe = raw['spec'][1]
    forms: tuple[tuple[str, dict[str, Any]], ...] = (
        ('float32', {}),
        ('float32 channels-last', dict(channels_last=True)),
        ('bfloat16 channels-last', dict(dtype=torch.bfloat16, channels_last=True)),
    )
    for name, how in forms:
        timing = session.time(partial(_augment, moved, how), 10)
        session.record(
            f'augment {batch} x 4, {name}',
            ms=timing.ms,
            host_ms=timing.host_ms,
            images_per_second=1e3 * batch / timing.ms,
        )
    std = torch.tensor(recipe.std).view(-1, 1, 1)
    here = augment(raw['views'][:2], raw['plan'][:2], recipe)
    apart = (augment(moved['views'], moved['plan'], recipe)[:2].cpu() - here) * std
    session.record('augment, device against CPU', apart=float(apart.abs().max()), allowed=1 / 255)
    if apart.abs().max() > 1 / 255:
        raise AssertionError(f'views differ by {float(apart.abs().max()):.2g} of the range between device and CPU')
    if session.cuda:
        session.record('copy and augment wait for the device', waits=_waits(raw, session.device))


def _copy(tensor: Tensor, device: torch.device, _: int) -> Tensor:
    return tensor.to(device, non_blocking=True)


def _augment(moved: dict[str, Any], how: dict[str, Any], _: int) -> Tensor:
    return augment(moved['views'], moved['plan'], moved['spec'][1], **how)


def _moved(raw: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in raw.items()}


def _waits(raw: dict[str, Any], device: torch.device) -> str:
    """The synchronisations in copying and finishing a pinned batch; 'nothing' is right."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        finish_views(_moved(raw, device))
        return 'nothing'
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode('default')
