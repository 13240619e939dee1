"""Records of evaluations and their append-only log.

Pure Python. The log is the entire state of a search: a searcher that replays the recorded
evaluations (`Searcher.replay`) continues exactly as if it had never been stopped.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pinas_zoo.files import numbered_lines, sync_folder

__all__ = [
    'OBJECTIVES',
    'SearchLog',
    'SearchRecord',
    'finished',
    'objective_of',
    'ranked',
    'score_of',
]

#: What a search ranks by: the held-out cross-entropy, or the accuracy, as released.
OBJECTIVES = ('loss', 'top1')

#: Version of the log's format, written in its header.
LOG_FORMAT = 1


def score_of(objective: str, top1: float, loss: float) -> float:
    """What a search maximises: minus the loss, or the accuracy in percent.

    Raises:
        ValueError: The objective is unknown.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f'objective {objective!r} is unknown, allowed: {", ".join(OBJECTIVES)}')
    return -loss if objective == 'loss' else top1


def objective_of(header: Mapping[str, Any]) -> str:
    """The objective in a log's header; logs without one are older and ranked by accuracy."""
    return str(header.get('objective', 'top1'))


@dataclass(frozen=True)
class SearchRecord:
    """One evaluated architecture, one line of the log.

    Args:
        index: Place in the order of proposals, from 0.
        arch: The architecture as `SearchSpace.format` writes it.
        score: What the search maximises, see `score_of`; finite.
        loss: Evaluation loss, if known.
        top1: Accuracy in percent, if known.
        images: Held-out images on which the path itself was scored; a race scores bad paths on fewer.
        latency: Seconds by the latency table of the limits, if there is one.
        macs: Multiply-accumulates, if known.
        params: Parameters, if known.
        seconds: Wall-clock time of the evaluation, if known.

    Raises:
        ValueError: The index is negative, or a number is not finite.
    """

    index: int
    arch: str
    score: float
    loss: float | None = None
    macs: float | None = None
    params: float | None = None
    seconds: float | None = None
    top1: float | None = None
    images: int | None = None
    latency: float | None = None

    def __post_init__(self) -> None:
        if self.index < 0:
            raise ValueError(f'SearchRecord.index must be at least 0, got {self.index}')
        for name in ('score', 'loss', 'macs', 'params', 'seconds', 'top1', 'latency'):
            value = getattr(self, name)
            if value is None and name != 'score':
                continue
            if value is None or not math.isfinite(value):
                raise ValueError(f'{name} of arch {self.arch} must be finite, got {value!r}')


def finished(records: Sequence[SearchRecord]) -> list[SearchRecord]:
    """The records without the paths that a race dropped, whose scores are estimates from fewer images."""
    most = max((record.images or 0 for record in records), default=0)
    return [record for record in records if (record.images or 0) == most]


def ranked(records: Sequence[SearchRecord]) -> list[SearchRecord]:
    """Records from best to worst, the first of equal ones first; paths that a race dropped come after all others."""
    whole = {record.index for record in finished(records)}
    return sorted(records, key=lambda record: (record.index not in whole, -record.score, record.index))


class SearchLog:
    """An append-only file of evaluations, `archs.jsonl`: a header line, then one line per record.

    Every line is on disk before `append` returns. If a kill left the last line incomplete, it is cut off
    on reopening; a complete one that only lacks its newline is kept. Only one process may write (rank
    0); the others use `read`.

    Args:
        path: The file; created with its folder if missing.
        header: Plain values that must be equal when the log is continued, see `Searcher.header`.

    Raises:
        ValueError: The file belongs to a search with another header (each differing field is named
            with both values), or a line before the last is unreadable.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / 'archs.jsonl'
        >>> with SearchLog(path, {'seed': 0}) as log:
        ...     log.append(SearchRecord(0, '30-12', score=0.7))
        >>> SearchLog.read(path)[1][0].score
        0.7
    """

    def __init__(self, path: str | Path, header: dict[str, Any]) -> None:
        self.path = Path(path)
        self.header = _plain({'format': LOG_FORMAT, **header})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        recorded, self._records, size = _scan(self.path)
        if recorded is not None:
            _compare(self.path, recorded, self.header)
        # Unbuffered, so that a failed write cannot leave bytes that a later flush would emit.
        self._file = open(self.path, 'r+b' if self.path.exists() else 'x+b', buffering=0)  # noqa: SIM115 - closed by close()
        self._file.truncate(size)
        self._file.seek(size)
        if recorded is None:
            self._write(self.header)
            sync_folder(self.path.parent)
        elif size and not _ends_with_newline(self.path):
            self._put(b'\n')

    @property
    def records(self) -> list[SearchRecord]:
        """The recorded evaluations in the order of their proposals."""
        return list(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def append(self, record: SearchRecord) -> None:
        """Writes one evaluation and waits until it is on disk.

        Raises:
            ValueError: The record does not have the next index: one would be lost or repeated.
        """
        if record.index != len(self._records):
            raise ValueError(f'{self.path}: the next record must have index {len(self._records)}, got {record.index}')
        self._write(asdict(record))
        self._records.append(record)

    def close(self) -> None:
        """Closes the file; further appends fail."""
        self._file.close()

    def __enter__(self) -> SearchLog:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @staticmethod
    def read(path: str | Path) -> tuple[dict[str, Any], list[SearchRecord]]:
        """Reads header and records without changing the file; an incomplete last line is left out.

        Raises:
            ValueError: The file has no readable header, or a line before the last is unreadable.
        """
        header, records, _ = _scan(Path(path))
        if not Path(path).is_file():
            raise ValueError(f'{path} does not exist: give the work dir of a search, or its archs.jsonl')
        if header is None:
            raise ValueError(f'{path} is not a search log: it has no header line')
        return header, records

    @staticmethod
    def check(path: str | Path, header: dict[str, Any]) -> None:
        """Raises a ValueError if the file, where there is one, belongs to a search with another header."""
        recorded = _scan(Path(path))[0]
        if recorded is not None:
            _compare(Path(path), recorded, _plain({'format': LOG_FORMAT, **header}))

    def _write(self, values: dict[str, Any]) -> None:
        self._put((json.dumps(values, allow_nan=False) + '\n').encode())

    def _put(self, data: bytes) -> None:
        while data:
            data = data[self._file.write(data) :]
        os.fsync(self._file.fileno())


def _scan(path: Path) -> tuple[dict[str, Any] | None, list[SearchRecord], int]:
    """Returns header (None if absent), records, and the length of the readable part."""
    header: dict[str, Any] | None = None
    records: list[SearchRecord] = []
    size = 0
    names = {field.name for field in fields(SearchRecord)}
    always = names - {'top1', 'images', 'latency'}  # missing in older logs
    for number, line, values in numbered_lines(path):
        if header is None:
            if not isinstance(values, dict) or 'format' not in values:
                raise ValueError(f'{path} is not a search log: its first line is {line[:80]!r}')
            header = values
        elif not isinstance(values, dict) or not always <= set(values) <= names:
            raise ValueError(f'{path}: line {number} is not a record of {sorted(names)}: {line[:80]!r}')
        elif values['index'] != len(records):
            raise ValueError(f'{path}: line {number} has index {values["index"]}, expected {len(records)}')
        else:
            records.append(SearchRecord(**values))
        size += len(line)
    return header, records, size


def _compare(path: Path, recorded: dict[str, Any], running: dict[str, Any]) -> None:
    differing = [
        f'{key}: recorded {recorded.get(key)!r}, running {running.get(key)!r}'
        for key in sorted(set(recorded) | set(running))
        if recorded.get(key) != running.get(key)
    ]
    if differing:
        raise ValueError(
            f'{path} belongs to another search; ' + '; '.join(differing) + '. '
            'Use the recorded settings, or another work directory.'
        )


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """The values as JSON returns them, so that a tuple equals the list that it became."""
    plain: dict[str, Any] = json.loads(json.dumps(values, allow_nan=False))
    return plain


def _ends_with_newline(path: Path) -> bool:
    return path.read_bytes()[-1:] == b'\n'
