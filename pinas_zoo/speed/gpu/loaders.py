"""The part that times loading: what the workers deliver, beside what a step takes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from torch.utils.data import DataLoader

from pinas_zoo.data import FourViews, collate_views
from pinas_zoo.speed.gpu.session import Session
from pinas_zoo.speed.loading import write_photos

__all__ = ['loading']


def loading(session: Session) -> None:
    """Four views of JPEG photos at 224 px from worker processes, and the copy of a batch to the device."""
    photos, batch = (16, 8) if session.tiny else (480, 24)
    cores = len(os.sched_getaffinity(0))
    with TemporaryDirectory() as folder:
        write_photos(Path(folder), photos, 0)
        data = FourViews({'kind': 'folder', 'root': folder})
        for workers in (0, 1) if session.tiny else (1, max(1, cores // 2), max(1, cores - 1)):
            rate, sample = _deliver(session, data, batch, workers)
            session.record(f'{workers} workers', images_per_second=rate, views_per_second=4 * rate)
    if not session.cuda:
        return
    views = sample['views']
    pinned = views.pin_memory()
    for name, source in (('pageable', views), ('pinned', pinned)):
        timing = session.time(lambda _, source=source: source.to(session.device, non_blocking=True), 5)
        session.record(f'copy, {name}', ms=timing.ms, host_ms=timing.host_ms, mebibytes=views.nbytes / 2**20)


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
