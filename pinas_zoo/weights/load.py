"""One way to read, load and write weights.

Files are `.safetensors`, or torch archives read with ``weights_only=True``; nothing here ever unpickles code.
Every load gives a `LoadReport` and is strict.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

__all__ = ['LoadReport', 'file_sha256', 'load_weights', 'read_weights', 'save_weights', 'write_atomic']


@dataclass
class LoadReport:
    """What a load did with each weight, by name."""

    source: str
    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def matched_share(self) -> float:
        """Share of the module's weights that the file filled, 0..1."""
        wanted = len(self.matched) + len(self.missing) + len(self.mismatched)
        return len(self.matched) / wanted if wanted else 0.0

    def summary(self) -> str:
        """One line of counts, and the names of what did not fit."""
        counts = ', '.join(
            f'{kind} {len(getattr(self, kind))}'
            for kind in ('matched', 'missing', 'unexpected', 'mismatched', 'skipped')
        )
        faults = [
            f'  {kind}: ' + ', '.join(names[:5]) + (f' and {len(names) - 5} more' if len(names) > 5 else '')
            for kind in ('missing', 'unexpected', 'mismatched', 'skipped')
            if (names := getattr(self, kind))
        ]
        return '\n'.join([f'{self.source}: {counts}', *faults])


def read_weights(path: str | Path, tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads the tensors and the metadata of a weight file.

    Args:
        path: A `.safetensors` file, or a torch archive whose tensors stand at the top or under ``state_dict`` or
            ``model``.
        tensors: False reads the metadata only.

    Returns:
        The tensors by name, and the metadata (strings; empty where the file has none).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, holds code, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no weight file {path}')
    if path.suffix == '.safetensors':
        try:
            with safe_open(path, framework='pt') as file:
                state = {name: file.get_tensor(name) for name in list(file.keys())} if tensors else {}
                return state, dict(file.metadata() or {})
        except SafetensorError as error:
            raise ValueError(f'{path} is no readable safetensors file: {error}') from error
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises several unrelated types for damaged and hostile files
        raise ValueError(f'{path} was refused; only plain tensors are read: {error}') from error
    for key in ('state_dict', 'model'):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            metadata = content.get('meta') if isinstance(content.get('meta'), Mapping) else {}
            content = content[key]
            break
    else:
        metadata = {}
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f'{path} holds no state dict of tensors')
    return dict(content), {k: v for k, v in metadata.items() if isinstance(v, str)}


def load_weights(
    module: nn.Module, state: Mapping[str, Tensor], source: str, optional: tuple[str, ...] = ()
) -> LoadReport:
    """Copies weights into a module, all or none.

    Args:
        module: The module to fill.
        state: Tensors by the module's own names.
        source: Where they come from, for messages.
        optional: Prefixes of names that may be missing, left over or misshapen (a classifier); reported as skipped.

    Returns:
        The report.

    Raises:
        ValueError: A weight is missing, left over or misshapen; nothing was copied then.
    """
    own, report = module.state_dict(), LoadReport(source)
    for name, tensor in own.items():
        if name not in state:
            # Counters are absent in old files and have no effect with a fixed momentum.
            kind = 'matched' if name.endswith('num_batches_tracked') else 'missing'
            (report.skipped if name.startswith(optional) else getattr(report, kind)).append(name)
        elif state[name].shape != tensor.shape:
            text = f'{name} {tuple(state[name].shape)} for {tuple(tensor.shape)}'
            (report.skipped if name.startswith(optional) else report.mismatched).append(text)
        else:
            report.matched.append(name)
    for name in state:
        if name not in own:
            (report.skipped if name.startswith(optional) else report.unexpected).append(name)
    if report.missing or report.unexpected or report.mismatched:
        raise ValueError(f'the weights do not fit {type(module).__name__}:\n{report.summary()}')
    module.load_state_dict({name: state[name] for name in report.matched if name in state}, strict=False)
    return report


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def write_atomic(path: str | Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a temporary file beside `path`, fsyncs it and renames it: all of it or nothing.

    Args:
        path: Final name; missing folders are made.
        write: Writes the content to the temporary path that it is given.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.', suffix='.tmp')
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_weights(path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Writes tensors and metadata as safetensors, atomically.

    Args:
        path: File to write.
        state: Tensors by name.
        metadata: Values are stored as strings; None is left out.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    strings = {key: str(value) for key, value in metadata.items() if value is not None}
    write_atomic(path, lambda temporary: save_file(plain, temporary, metadata=strings))
