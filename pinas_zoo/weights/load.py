"""The one way to read, load and write weights.

Files are `.safetensors`, or torch archives read with ``weights_only=True``; nothing here ever unpickles code, and no
option allows it. The only globals beyond torch's own are numpy's scalar, dtype and array reconstructors, which old
training files contain beside the weights. Every load is strict and returns a `LoadReport`.
"""

import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pinas_zoo.files import write_atomic

__all__ = [
    'Checkpoint',
    'LoadReport',
    'load_weights',
    'read_archive',
    'read_checkpoint',
    'read_weights',
    'save_weights',
]

FAULTS = ('missing', 'unexpected', 'mismatched')
COUNTS = ('matched', 'remapped', *FAULTS, 'skipped', 'dropped')


@dataclass
class LoadReport:
    """What a load or a conversion did with each weight, by name.

    Args:
        source: Where the weights come from.
        matched: Used, either unchanged or after renaming.
        remapped: Those of them that were renamed, as 'old -> new'.
        missing: Expected, but not in the file.
        unexpected: In the file, but not expected.
        mismatched: Of another shape.
        skipped: Did not fit, but need not.
        dropped: Known not to be weights.
        notes: Remarks for the reader.
    """

    source: str
    matched: list[str] = field(default_factory=list)
    remapped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether nothing is missing, unexpected or mismatched."""
        return not any(getattr(self, kind) for kind in FAULTS)

    def summary(self) -> str:
        """One line of counts, the names of what did not fit, and the notes."""
        counts = ', '.join(f'{kind} {len(getattr(self, kind))}' for kind in COUNTS)
        faults = [
            f'  {kind}: ' + ', '.join(names[:5]) + (f' and {len(names) - 5} more' if len(names) > 5 else '')
            for kind in (*FAULTS, 'skipped', 'dropped')
            if (names := getattr(self, kind))
        ]
        return '\n'.join([f'{self.source}: {counts}', *faults, *(f'  note: {note}' for note in self.notes)])


@dataclass(frozen=True)
class Checkpoint:
    """The content of a weight file.

    Args:
        state: Tensors by name.
        metadata: Its strings.
        extras: Other entries beside the state dict, by name.
    """

    state: dict[str, Tensor]
    metadata: dict[str, str]
    extras: dict[str, Any] = field(default_factory=dict)

    @property
    def dataset_meta(self) -> dict[str, Any]:
        """Its description of the data that it was trained on: classes, palette."""
        found = (self.extras.get('meta') or self.metadata).get('dataset_meta') or {}
        return json.loads(found) if isinstance(found, str) else dict(found)

    @property
    def classes(self) -> list[str]:
        """Names of the classes that it was trained on; empty if it does not state them."""
        return list(self.dataset_meta.get('classes') or ())


def read_weights(path: str | Path, tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads the tensors and the metadata of a weight file. Arguments and errors as for `read_checkpoint`.

    Returns:
        The tensors by name, and the metadata (strings; empty if the file has none).
    """
    content = read_checkpoint(path, tensors)
    return content.state, content.metadata


def read_checkpoint(path: str | Path, tensors: bool = True) -> Checkpoint:
    """Reads a weight file without running any code in it.

    Args:
        path: A `.safetensors` file, or a torch archive whose tensors are at the top level or under ``state_dict`` or
            ``model``.
        tensors: False reads only the metadata, if the format allows it.

    Raises:
        FileNotFoundError: It does not exist.
        ValueError: The file is damaged, needs code (the message names the global), or contains no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'the weight file {path} does not exist')
    if path.suffix == '.safetensors':
        try:
            with safe_open(path, framework='pt') as file:
                state = {name: file.get_tensor(name) for name in list(file.keys())} if tensors else {}
                return Checkpoint(state, dict(file.metadata() or {}))
        except SafetensorError as error:
            raise ValueError(f'{path} is not a readable safetensors file: {error}') from error
    content = read_archive(path)
    if not isinstance(content, Mapping):
        raise ValueError(f'{path} must contain a state dict of tensors, but contains a {type(content).__name__}')
    inner = next((key for key in ('state_dict', 'model') if isinstance(content.get(key), Mapping)), None)
    if inner is None:
        extras = {str(name): value for name, value in content.items() if not isinstance(value, Tensor)}
        state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    else:
        extras = {str(name): value for name, value in content.items() if name != inner}
        state = dict(content[inner])
    foreign = [name for name, value in state.items() if not isinstance(value, Tensor) or not isinstance(name, str)]
    if foreign or not state:
        named = f'; not tensors: {foreign[:5]}' if foreign else ''
        raise ValueError(f'{path} contains no state dict of tensors{named}')
    metadata = extras.get('meta')
    texts = metadata.items() if isinstance(metadata, Mapping) else ()
    return Checkpoint(state, {k: v for k, v in texts if isinstance(v, str)}, extras)


def read_archive(path: str | Path, map_location: Any = 'cpu', mmap: bool = False) -> Any:
    """What `torch.save` wrote, read without running any code in it.

    Args:
        path: The file.
        map_location: As for `torch.load`.
        mmap: Leave tensors on disk until they are used, where the file's format allows it.

    Raises:
        ValueError: The file is damaged, or needs code; the message names both.
    """
    try:
        with _only_numpy_allowed():
            lazily = mmap and zipfile.is_zipfile(path)
            return torch.load(path, map_location=map_location, weights_only=True, mmap=lazily)
    except Exception as error:  # torch raises several unrelated types for damaged and malicious files
        if (match := re.search(r'GLOBAL (\S+)|nsupported class (\S+)', str(error))) is not None:
            name = match[1] or match[2]
            raise ValueError(
                f'{path} was refused: it needs {name}, which is code or not plain data. Nothing in it was run. '
                'Only tensors, plain values and numpy scalars and arrays are read.'
            ) from None
        raise ValueError(f'{path} was refused, it is not a readable torch archive: {_reason(path, error)}') from error


def _reason(path: str | Path, error: Exception) -> str:
    """Why torch cannot read a file, in one line."""
    with open(path, 'rb') as file:
        start = file.read(16)
    if not start.startswith((b'PK', b'\x80')):  # a zip archive, or a pickle of old versions
        return f'it begins with {start!r}' if start else 'it is empty'
    # advice on unsafe loading surrounds torch's own reason
    inside = re.search(r'WeightsUnpickler error:\s*(.+)', str(error))
    return inside[1] if inside else str(error).splitlines()[0] if str(error) else type(error).__name__


def _named(function: Any, module: str, name: str) -> Callable[..., Any]:
    """`function` under another full name: numpy 1 and 2 have the same reconstructors in different modules."""

    def alias(*args: Any) -> Any:
        return function(*args)

    alias.__module__, alias.__name__, alias.__qualname__ = module, name, name
    return alias


#: The only allow-list for unpickling beyond torch's own: numpy's reconstructors, and the classes of plain
#: dtypes (no objects) whose state they set.
PLAIN_GLOBALS: list[Any] = [np.dtype, np.ndarray, *{type(np.dtype(code)) for code in '?bhilqBHILQefdFDSU'}]
for _module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
    PLAIN_GLOBALS.append(_named(np.float64(0).__reduce__()[0], _module, 'scalar'))
    PLAIN_GLOBALS.append(_named(np.zeros(1).__reduce__()[0], _module, '_reconstruct'))


@contextmanager
def _only_numpy_allowed() -> Iterator[None]:
    """Allows only `PLAIN_GLOBALS` beyond torch's own, whatever else the process has allowed."""
    serialization = torch.serialization
    before = serialization.get_safe_globals()
    serialization.clear_safe_globals()
    serialization.add_safe_globals(PLAIN_GLOBALS)
    try:
        yield
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(before)


def load_weights(
    module: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    optional: tuple[str, ...] = (),
    remapped: Mapping[str, str] | None = None,
) -> LoadReport:
    """Copies weights into a module: all of them, or none.

    Args:
        module: The module to fill.
        state: Tensors by the module's own names.
        source: Where they come from, for messages.
        optional: Prefixes of names that may be missing, unexpected or mismatched (a classifier); reported as skipped.
        remapped: Names in the file by their current names; for the report.

    Returns:
        The report.

    Raises:
        ValueError: A weight is missing, unexpected or mismatched; then nothing was copied.
    """
    own, report = module.state_dict(), LoadReport(source)
    report.remapped = [f'{old} -> {new}' for new, old in (remapped or {}).items() if old != new]
    for name, tensor in own.items():
        if name not in state:
            # Counters are missing in old files and have no effect with a fixed momentum.
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
    if not report.fits:
        raise ValueError(f'the weights do not fit {type(module).__name__}:\n{report.summary()}')
    module.load_state_dict({name: state[name] for name in report.matched if name in state}, strict=False)
    return report


def save_weights(path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Writes tensors and metadata as safetensors, atomically.

    Args:
        path: File to write.
        state: Tensors by name.
        metadata: Values are stored as strings; None is left out.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    strings = {key: str(value) for key, value in metadata.items() if value is not None}
    write_atomic(path, lambda temporary: temporary.write_bytes(_ordered(save(plain, metadata=strings))))


def _ordered(content: bytes) -> bytes:
    """The same safetensors file with sorted metadata: the order that safetensors writes differs from call to call.

    Equal weights then have equal hashes.
    """
    size = int.from_bytes(content[:8], 'little')
    header = json.loads(content[8 : 8 + size])
    header['__metadata__'] = dict(sorted(header['__metadata__'].items()))
    text = json.dumps({'__metadata__': header.pop('__metadata__')} | header, separators=(',', ':')).encode()
    text = text.ljust(-len(text) % 8 + len(text))  # tensors begin at a multiple of eight bytes
    return len(text).to_bytes(8, 'little') + text + content[8 + size :]
