"""What a checkpoint contains and how it is written: plain values, random states, atomic files.

Our checkpoints are read with `torch.load(weights_only=True)`, which refuses every class it does not know: a single
np.float64 makes a whole file unreadable. Types are therefore compared with `type(x)`, never with isinstance.
"""

import math
import os
import random
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import HistoryBuffer

from pinas_zoo.files import write_bytes
from pinas_zoo.mm.checkpoint_loader import load_from_local
from pinas_zoo.weights.loading import last_checkpoint

RandomState = dict[str, torch.Tensor]

_PLAIN = (int, float, bool, str, bytes, type(None), torch.dtype, torch.device)
_ARRAY = '__numpy__'
_DROPPED = object()


# ---- plain values ---------------------------------------------------------------------------


def to_plain(value: Any, dropped: list[str], name: str = '') -> Any:
    """Rewrite a value with types that a weights-only load accepts.

    Args:
        value: What to store; dicts, lists, tuples and sets are traversed.
        dropped: Receives the names of members that cannot be stored as a plain type; they are left out.
        name: Dotted name of the value, for `dropped`.

    Returns:
        The plain value, on the CPU.
    """
    plain = _plain(value, dropped, name)
    return None if plain is _DROPPED else plain


def _plain(value: Any, dropped: list[str], name: str) -> Any:
    if type(value) in _PLAIN:
        return value
    if isinstance(value, torch.Tensor):
        # Clone parts of a larger storage: torch.save would write all of it.
        tensor = value.detach().cpu()
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        return tensor if whole else tensor.clone()
    if isinstance(value, np.generic):
        return _plain(value.item(), dropped, name)
    if isinstance(value, np.ndarray):
        if value.dtype.kind in 'biuf':
            return {_ARRAY: torch.from_numpy(np.array(value, order='C'))}
        return _plain(value.tolist(), dropped, name)
    if isinstance(value, dict):
        return _plain_dict(value, dropped, name)
    if isinstance(value, (list, tuple, set, frozenset)):
        kind = next(kind for kind in (list, tuple, set, frozenset) if isinstance(value, kind))
        members = (_plain(item, dropped, f'{name}[{i}]') for i, item in enumerate(value))
        return (set if kind is frozenset else kind)(m for m in members if m is not _DROPPED)
    if isinstance(value, Path):
        return str(value)
    plain: Any
    for plain in (bool, int, float, str, bytes):  # subclasses, such as enums of int
        if isinstance(value, plain):
            return plain(value)
    dropped.append(f'{name} ({type(value).__module__}.{type(value).__qualname__})')
    return _DROPPED


def _plain_dict(value: dict[str, Any], dropped: list[str], name: str) -> dict[str, Any]:
    """A dict of plain members; Counter and OrderedDict (with a module's `_metadata`) keep their type."""
    kind = next((k for k in (Counter, OrderedDict) if type(value) is k), dict)
    result: dict[str, Any] = kind()
    for key, item in value.items():
        plain_key = _plain(key, dropped, f'{name} key')
        plain_item = _plain(item, dropped, f'{name}.{key}' if name else str(key))
        if plain_key is not _DROPPED and plain_item is not _DROPPED:
            result[plain_key] = plain_item
    metadata = getattr(value, '_metadata', None)
    if isinstance(result, OrderedDict) and metadata is not None:
        result._metadata = _plain(metadata, dropped, f'{name}._metadata')  # type: ignore[attr-defined] # torch's own
    return result


def from_plain(value: Any) -> Any:
    """Undo what `to_plain` did to numpy arrays; everything else is unchanged."""
    if type(value) is dict:
        if set(value) == {_ARRAY}:
            return value[_ARRAY].cpu().numpy()
        return {key: from_plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(from_plain(item) for item in value)
    return value


def hub_to_plain(hub: dict[str, Any], history: int, dropped: list[str]) -> dict[str, Any]:
    """A message hub's state in plain values, with the newest `history` entries of each scalar."""
    scalars = {}
    for key, buffer in hub['log_scalars'].items():
        values, counts = buffer.data
        scalars[str(key)] = {
            'values': torch.from_numpy(np.array(values[-history:])),
            'counts': torch.from_numpy(np.array(counts[-history:])),
        }
    return {
        'log_scalars': scalars,
        'runtime_info': to_plain(dict(hub['runtime_info']), dropped, 'message_hub'),
        'resumed_keys': {str(key): bool(kept) for key, kept in hub['resumed_keys'].items()},
    }


def hub_from_plain(plain: dict[str, Any], history: int) -> dict[str, Any]:
    """The state for `MessageHub.load_state_dict`, from the plain form."""
    scalars = {}
    for key, entry in plain['log_scalars'].items():
        if isinstance(entry, dict):
            values, counts = entry['values'].cpu().numpy(), entry['counts'].cpu().numpy()
            entry = HistoryBuffer(values, counts, max_length=history)
        scalars[key] = entry
    known = set(scalars) | set(plain['runtime_info'])
    return {
        'log_scalars': scalars,
        'runtime_info': from_plain(plain['runtime_info']),
        'resumed_keys': {key: kept for key, kept in plain['resumed_keys'].items() if key in known},
    }


# ---- random states --------------------------------------------------------------------------


def random_state() -> RandomState:
    """The states of random, numpy and torch (and of the current CUDA device), as tensors."""
    version, keys, gauss = random.getstate()
    generator: Any = np.random.get_state()
    _, np_keys, np_pos, np_has_gauss, np_gauss = generator
    state = {
        'python': torch.tensor([version, *keys], dtype=torch.int64),
        'python_gauss': torch.tensor([gauss is not None, gauss if gauss is not None else 0.0], dtype=torch.float64),
        'numpy': torch.from_numpy(np.append(np_keys.astype(np.int64), [np_pos, np_has_gauss])),
        'numpy_gauss': torch.tensor([np_gauss], dtype=torch.float64),
        'torch': torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: RandomState) -> None:
    """Restore what `random_state` returned; a CUDA state is ignored without a CUDA device."""
    version, *keys = state['python'].tolist()
    has_gauss, gauss = state['python_gauss'].tolist()
    random.setstate((version, tuple(keys), gauss if has_gauss else None))
    numbers = state['numpy'].cpu().numpy()
    np_keys = numbers[:-2].astype(np.uint32)
    np_gauss = float(state['numpy_gauss'])
    np.random.set_state(('MT19937', np_keys, int(numbers[-2]), int(numbers[-1]), np_gauss))
    torch.set_rng_state(state['torch'].cpu())
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())


@contextmanager
def preserved_random_state() -> Iterator[RandomState]:
    """Restores the random states of entry on exit; yields them."""
    state = random_state()
    try:
        yield state
    finally:
        set_random_state(state)


def gather_random_states(state: RandomState) -> list[RandomState]:
    """The states of all ranks, in rank order, on every rank. A collective: call it on all ranks."""
    gathered = {key: all_gather(tensor) for key, tensor in sorted(state.items())}
    world_size = len(gathered['torch'])
    return [{key: parts[r].cpu() for key, parts in gathered.items()} for r in range(world_size)]


# ---- conditions -----------------------------------------------------------------------------


def precision_of(optim_wrapper: Any) -> str:
    """The precision of the forward passes, according to the optimiser wrapper or wrappers."""
    wrappers = optim_wrapper.values() if hasattr(optim_wrapper, 'values') else [optim_wrapper]
    dtypes = (getattr(w, 'cast_dtype', None) or ('float16' if hasattr(w, 'loss_scaler') else None) for w in wrappers)
    names = zip((type(w).__name__ for w in wrappers), map(str, dtypes), strict=True)
    return ', '.join(f'{name} {dtype}' for name, dtype in names)


def accumulation_steps(optim_wrapper: Any) -> int:
    """Iterations that share one optimiser step (the least common multiple over optimisers)."""
    wrappers = optim_wrapper.values() if hasattr(optim_wrapper, 'values') else [optim_wrapper]
    return math.lcm(*(getattr(w, '_accumulative_counts', 1) for w in wrappers))


# ---- files ----------------------------------------------------------------------------------


@register_backend('pinas_zoo_atomic')
class AtomicBackend(LocalBackend):
    """Local files that are either the old or the new one, whatever happens while writing.

    Removals inside `deferred()` wait until its end, so that no old file is removed before the new one is
    on disk: mmengine's CheckpointHook removes first and writes afterwards.
    """

    #: Files to remove at the end of `deferred()`; None outside of it.
    _waiting: list[str] | None = None

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a temporary name beside the file, flush them to disk and rename."""
        write_bytes(filepath, obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text as `put` writes bytes."""
        self.put(obj.encode(encoding), filepath)

    def remove(self, filepath: str | Path) -> None:
        """Remove a file, or postpone it inside `deferred()`."""
        if self._waiting is None:
            super().remove(filepath)
        else:
            self._waiting.append(str(filepath))

    @contextmanager
    def deferred(self, keep: Any = tuple) -> Iterator[list[str]]:
        """Remove the postponed files on leaving without an error; yields their list.

        Args:
            keep: Called at the end; the paths that it returns are not removed.
        """
        waiting: list[str] = []
        self._waiting = waiting
        try:
            yield waiting
        finally:
            self._waiting = None
        for path in sorted(set(waiting) - {str(path) for path in keep()}):
            Path(path).unlink(missing_ok=True)


# ---- finding one ----------------------------------------------------------------------------


def find_checkpoint(work_dir: str | Path, resume: str) -> str | None:
    """The checkpoint to continue from.

    Args:
        work_dir: Folder of the run.
        resume: 'auto' or a file.

    Returns:
        Its path; None for 'auto' if nothing was saved yet.

    Raises:
        FileNotFoundError: The named file, or the one that last_checkpoint names, is missing.
    """
    if resume != 'auto':
        if not Path(resume).is_file():
            raise FileNotFoundError(f'--resume got {resume}, which is not a file; give a checkpoint file or auto')
        return str(resume)
    try:
        saved = last_checkpoint(work_dir)
    except FileNotFoundError as error:
        raise FileNotFoundError(f'{error}; name another checkpoint with --resume FILE') from None
    return None if saved is None else str(saved)


def find_start(work_dir: str | Path, resume: str, notes: list[str]) -> str | None:
    """The checkpoint that a run continues from, as `find_checkpoint`; the last one if a scheduler started it again.

    Args:
        work_dir: Folder of the run.
        resume: 'auto' or a file.
        notes: Receives a line if there is none.
    """
    # torchrun and Slurm start a run again with its first arguments.
    again = any(int(os.environ.get(f'{name}_RESTART_COUNT') or 0) for name in ('TORCHELASTIC', 'SLURM'))
    found = (find_checkpoint(work_dir, 'auto') if again else None) or find_checkpoint(work_dir, resume)
    if found is None:
        notes.append(f'--resume: nothing was saved in {work_dir} yet, starting from the beginning')
    return found


def saved_seed(checkpoint: str | Path) -> int | None:
    """The seed of the run that wrote a checkpoint; None if it does not say."""
    content = load_from_local(checkpoint, mmap=True)
    seed = content.get('engine', {}).get('seed', content.get('meta', {}).get('seed'))
    return None if seed is None else int(seed)
