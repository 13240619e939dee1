"""The part that times detection and segmentation; mmdet and mmseg are imported in a separate process."""

import json
from importlib.util import find_spec

from pinas_zoo.speed.gpu.session import LeftOutError, Session, python

__all__ = ['dense']


def dense(session: Session) -> None:
    """Forward and backward passes of a detector and a segmentor with AMP, on pinas_a and on ResNet-50."""
    missing = [name for name in ('mmengine', 'mmcv', 'mmdet', 'mmseg') if find_spec(name) is None]
    if missing:
        raise LeftOutError(f'needs {", ".join(missing)}')
    out = session.out.resolve() / 'dense.json'
    arguments = ['--device', session.device.type, '--out', str(out), *['--tiny'] * session.tiny]
    status, log = session.commands({'dense': python('-m', 'pinas_zoo.mm.dense_speed', *arguments)}, 100)['dense']
    rows = json.loads(out.read_text()) if out.is_file() else {}
    for name, row in rows.items():
        session.record(name, **row)
    if status or not rows:
        raise RuntimeError(f'exit status {status}: {log.strip()[-300:]}')
