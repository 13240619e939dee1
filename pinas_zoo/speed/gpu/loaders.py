"""The part that times loading: what the workers deliver, beside what a step takes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor
from torch.utils.data import DataLoader

from pinas_zoo.data import FourViews, collate_views, finish_views
from pinas_zoo.speed.gpu.session import Session
from pinas_zoo.speed.loading import write_photos

__all__ = ['loading']


def loading(session: Session) -> None:
    """Four views of JPEG photos at 224 px: from the workers, on their way to the device, and finished there."""
    photos, batch = (16, 8) if session.tiny else (480, 24)
    cores = len(os.sched_getaffinity(0))
    counts = (1,) if session.tiny else (1, max(2, cores // 2), max(2, cores - 1))
    with TemporaryDirectory() as folder:
        write_photos(Path(folder), photos, 0)
        for finish in (False, True):
            data = FourViews({'kind': 'folder', 'root': folder}, finish=finish)
            for workers in counts if not finish else counts[-1:]:
                rate, found = _deliver(session, data, batch, workers)
                name = f'{workers} workers, {"finished there" if finish else "uint8"}'
                session.record(name, images_per_second=rate, views_per_second=4 * rate)
                if not finish:
                    sample = found
    _to_device(session, sample)


def _to_device(session: Session, batch: dict) -> None:
    """The copy of an unfinished batch, and what is left to do on the device."""
    device = session.device
    if session.cuda:
        pinned = batch['views'].pin_memory()
        for name, source in (('pageable', batch['views']), ('pinned', pinned)):
            timing = session.time(lambda _, source=source: source.to(device, non_blocking=True), 5)
            session.record(f'copy, {name}', ms=timing.ms, host_ms=timing.host_ms, mebibytes=source.nbytes / 2**20)
    there = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
    for channels_last in (False, True):
        timing = session.time(lambda _, how=channels_last: finish_views(there, channels_last=how), 10)
        layout = 'channels_last' if channels_last else 'contiguous'
        rate = 1e3 * len(batch['index']) / timing.ms
        session.record(
            f'finished on the device, {layout}', ms=timing.ms, host_ms=timing.host_ms, images_per_second=rate
        )


def _deliver(session: Session, data: FourViews, batch: int, workers: int) -> tuple[float, dict]:
    """Images a second once the workers run, and a batch."""
    loader = DataLoader(
        data, batch, num_workers=workers, persistent_workers=workers > 0, pin_memory=session.cuda, drop_last=True,
        collate_fn=collate_views,
    )  # fmt: skip
    first = next(iter(loader))  # starts them
    start, images = time.monotonic(), 0
    for found in loader:
        images += len(found['index'])
    return images / (time.monotonic() - start), first
